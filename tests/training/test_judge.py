"""A judge: a model of somebody else that tells the towers in training which documents are how relevant."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from components.artifacts import DatasetArtifact, open_artifact
from components.errors import ModelError
from components.planning.facts import shape_of_base
from components.release.completeness import OTHER_MODELS
from components.towers import losses
from components.towers.base_models import resolve_base
from components.towers.config import JudgeConfig, TowerConfig
from components.towers.loop import Training
from components.towers.losses import Judge, judge_config, judge_length, listwise, matryoshka_listwise
from components.towers.train import train_towers, training_losses
from components.towers.two_towers import TwoTowers
from flows.config import RetrainConfig
from flows.steps import at_commits, towers_key, towers_step
from tests.hub_world import keep_in_cache, use_cache
from tests.training.tiny_world import documents, pairs, queries


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Tiny random models: a cross-encoder, one that tells three classes apart, one without its head, and a SentenceTransformer."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Transformer
    from sentence_transformers.sentence_transformer.modules import Pooling
    from transformers import AutoModel, AutoTokenizer, BertForSequenceClassification

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SCALINGNOTE_HOME", str(tmp_path_factory.mktemp("home")))
        encoder = resolve_base("tiny-encoder", documents() + queries()).location
        tokenizer, whole = AutoTokenizer.from_pretrained(encoder), AutoModel.from_pretrained(encoder)
        found = {"encoder": encoder}
        for name, classes in (("cross", 1), ("classes", 3)):
            folder = tmp_path_factory.mktemp(name)
            torch.manual_seed(5)
            whole.config.num_labels = classes
            model = BertForSequenceClassification(whole.config)
            torch.nn.init.normal_(model.classifier.weight, std=1.0)
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
            found[name] = str(folder)
        found["headless"] = str(tmp_path_factory.mktemp("headless"))
        whole.save_pretrained(found["headless"])
        tokenizer.save_pretrained(found["headless"])
        config = Path(found["headless"]) / "config.json"
        config.write_text(
            json.dumps(json.loads(config.read_text()) | {"architectures": ["BertForSequenceClassification"], "num_labels": 1})
        )
        found |= {name: str(tmp_path_factory.mktemp(name)) for name in ("wordless", "unpadded")}
        for name in ("wordless", "unpadded"):
            shutil.copytree(found["cross"], found[name], dirs_exist_ok=True)
        for file in Path(found["wordless"]).glob("*token*"):
            file.unlink()
        settings = json.loads((Path(found["cross"]) / "config.json").read_text())
        (Path(found["unpadded"]) / "config.json").write_text(json.dumps(settings | {"pad_token_id": 5}))
        module = Transformer(encoder)
        found["vectors"] = str(tmp_path_factory.mktemp("vectors"))
        prompts = {"query": "query: ", "document": ""}
        SentenceTransformer(modules=[module, Pooling(module.get_embedding_dimension())], prompts=prompts).save(found["vectors"])
        yield found


def judged(model: str, **changes: Any) -> TowerConfig:
    return TowerConfig(
        base_model="tiny-decoder", pooling="mean", steps=8, batch_size=16, checkpoint_every=3, lora_rank=4, precision="float32",
        max_mean_cosine=1.0, min_effective_rank=1.0, judge={"base_model": model, "documents": 4, **changes},
    )  # fmt: skip


def judge_of(model: str, **changes: Any) -> Judge:
    config = judged(model, **changes)
    return Judge(resolve_base(model), config)


def test_the_loss_is_the_divergence_from_the_judge_and_is_least_where_both_agree() -> None:
    torch.manual_seed(0)
    queries, documents = (torch.nn.functional.normalize(torch.randn(n, 8), dim=1) for n in (3, 6))
    chosen = torch.tensor([[0, 3, 5], [1, 0, 2], [2, 4, 1]])
    own = torch.softmax(torch.stack([queries[i] @ documents[row].T for i, row in enumerate(chosen)]) / 0.1, dim=1)
    assert float(listwise(queries, documents, 0.1, chosen, own)) == pytest.approx(0, abs=1e-6)
    other = torch.softmax(torch.randn(3, 3), dim=1)
    expected = (other * (other / own).log()).sum(1).mean()
    assert float(listwise(queries, documents, 0.1, chosen, other)) == pytest.approx(float(expected), rel=1e-4)


def test_a_cross_encoder_is_asked_of_query_and_document_together(models: dict[str, str]) -> None:
    from sentence_transformers import CrossEncoder

    asked, found = queries()[:2], [documents()[:3], documents()[3:6]]
    shares = judge_of(models["cross"], batch_size=2).distribution(asked, found)
    scores = CrossEncoder(models["cross"]).predict(
        [(q, d) for q, row in zip(asked, found, strict=True) for d in row], activation_fn=torch.nn.Identity()
    )
    expected = torch.softmax(torch.from_numpy(scores.reshape(2, 3)), dim=1).numpy()
    np.testing.assert_allclose(shares, expected, atol=1e-5)
    assert np.ptp(shares, axis=1).min() > 1e-3  # else any order would do


def test_a_sentence_transformer_compares_by_cosine_with_its_own_prompts(models: dict[str, str]) -> None:
    from sentence_transformers import SentenceTransformer

    asked, found = queries()[:2], [documents()[:3], documents()[1:4]]
    shares = judge_of(models["vectors"]).distribution(asked, found)
    model, options = SentenceTransformer(models["vectors"]), {"normalize_embeddings": True}
    cosines = [model.encode([f"query: {q}"], **options) @ model.encode(row, **options).T for q, row in zip(asked, found, strict=True)]
    expected = torch.softmax(torch.from_numpy(np.concatenate(cosines)) / TowerConfig().temperature, dim=1).numpy()
    np.testing.assert_allclose(shares, expected, atol=1e-4)
    flat = judge_of(models["vectors"], temperature=50.0).distribution(asked, found)
    np.testing.assert_allclose(flat, 1 / 3, atol=0.02)


def test_a_judge_that_has_no_place_for_a_word_or_wants_a_prompt_is_refused(models: dict[str, str], tmp_path: Path) -> None:
    from sentence_transformers import CrossEncoder

    long = Path(shutil.copytree(models["vectors"], tmp_path / "long"))
    prompted = Path(shutil.copytree(models["cross"], tmp_path / "prompted"))
    framed = Path(shutil.copytree(models["cross"], tmp_path / "framed"))
    settings = json.loads((long / "config_sentence_transformers.json").read_text())
    settings["prompts"] = {"query": "kidney stone " * 8, "document": ""}
    (long / "config_sentence_transformers.json").write_text(json.dumps(settings))
    with pytest.raises(ModelError, match=r"The judge's prompt for a query takes \d+ tokens .*towers.judge.max_length leaves 12"):
        judge_of(str(long), max_length=12)
    assert judge_of(str(long), max_length=40)
    CrossEncoder(models["cross"], device="cpu", prompts={"rank": "rank: "}, default_prompt_name="rank").save_pretrained(str(prompted))
    with pytest.raises(ModelError, match="puts the prompt 'rank: ' before each pair"):
        judge_of(str(prompted))
    # Of an encoder that the judge was made from: its prompt is put before no pair.
    settings = json.loads((prompted / "config_sentence_transformers.json").read_text())
    (prompted / "config_sentence_transformers.json").write_text(json.dumps(settings | {"model_type": "SentenceTransformer"}))
    assert judge_of(str(prompted)) and not CrossEncoder(str(prompted), device="cpu").default_prompt_name
    (prompted / "config_sentence_transformers.json").write_text(json.dumps(settings | {"default_prompt_name": None}))
    assert judge_of(str(prompted))
    tokenizer = json.loads((framed / "tokenizer.json").read_text())
    first, frame = {"SpecialToken": {"id": "[CLS]", "type_id": 0}}, tokenizer["post_processor"]
    tokenizer["post_processor"] = frame | {"pair": [first] * 7 + [{"Sequence": {"id": kind, "type_id": 0}} for kind in "AB"]}
    (framed / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(ModelError, match=r"puts 7 tokens of its own around a pair, and towers\.judge\.max_length leaves 8"):
        judge_of(str(framed), max_length=8)


def test_the_candidates_are_the_positive_and_the_nearest_others_once_each(models: dict[str, str]) -> None:
    judge = judge_of(models["cross"], documents=2)
    columns = [10, 11, 10, -1, 12, 13]  # document 10 twice, and a mined negative that is missing
    scores = torch.tensor([[0.9, 0.1, 0.9, 1.0, 0.5, 0.3], [0.2, 0.9, 0.2, 1.0, 0.8, 0.9]])
    assert judge.candidates(scores, columns, [0, 1]).tolist() == [[0, 4, 5], [1, 5, 4]]
    assert judge.candidates(scores, columns, [2, 1])[0].tolist() == [2, 4, 5]  # not its positive's other column
    assert judge.candidates(scores, columns, [0, 1], [12, None]).tolist() == [[0, 5, 1], [1, 5, 4]]  # not the query's own document
    few = judge_of(models["cross"], documents=50).candidates(scores, columns, [0, 1])
    assert few.shape == (2, 4) and few[0].tolist() == [0, 4, 5, 1]
    own = judge_of(models["cross"], documents=50).candidates(scores, columns, [0, 1], [12, None])
    assert own.shape == (2, 3) and 4 not in own[0] and 3 not in own


def test_towers_learn_the_order_of_a_judge(models: dict[str, str], tmp_path: Path) -> None:
    """Of the judged documents the towers' shares come nearer to the judge's than without it."""
    apart = {}
    for weight in (0.0, 20.0):
        folder = tmp_path / str(weight)
        folder.mkdir()
        config = judged(models["cross"], weight=weight or 1.0).model_copy(update={"steps": 40, "learning_rate": 3e-3})
        towers = TwoTowers(resolve_base("tiny-decoder", documents() + queries()), config)
        run = Training(towers, pairs(), config, folder)
        run.judge = judge_of(models["cross"]) if weight else None
        run.to_end()
        q, d = (
            torch.from_numpy(towers.encode(rows, role)) for rows, role in ((run.query_tokens, "query"), (run.document_tokens, "document"))
        )
        row = torch.arange(min(5, len(d))).repeat(len(q), 1)
        texts = [[pairs().documents[i] for i in r] for r in row.tolist()]
        shares = judge_of(models["cross"]).distribution(pairs().queries, texts)
        apart[weight] = float(listwise(q, d, config.temperature, row, torch.from_numpy(shares)))
    assert apart[20.0] < 0.7 * apart[0.0]


def test_a_killed_training_with_a_judge_ends_as_a_straight_one(models: dict[str, str], tmp_path: Path) -> None:
    config = judged(models["cross"])
    for name in ("straight", "killed"):
        (tmp_path / name).mkdir()
    train_towers(pairs(), config, {}, tmp_path / "straight")
    before, stop = Training._step, KeyboardInterrupt()

    def killed(run: Training, step: int) -> float:
        if step == 5:
            raise stop
        return before(run, step)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Training, "_step", killed)
        with pytest.raises(KeyboardInterrupt):
            train_towers(pairs(), config, {}, tmp_path / "killed")
    train_towers(pairs(), config, {}, tmp_path / "killed")
    assert training_losses(tmp_path / "killed") == training_losses(tmp_path / "straight")
    assert len({open_artifact(tmp_path / name / "query_tower").digest for name in ("killed", "straight")}) == 1
    (tmp_path / "without").mkdir()
    train_towers(pairs(), config.model_copy(update={"judge": TowerConfig().judge}), {}, tmp_path / "without")
    assert training_losses(tmp_path / "without") != training_losses(tmp_path / "straight")


def test_two_processes_learn_from_a_judge_what_one_does(models: dict[str, str], tmp_path: Path) -> None:
    for processes in (1, 2):
        (tmp_path / str(processes)).mkdir()
        train_towers(
            pairs(), judged(models["cross"], weight=3.0).model_copy(update={"processes": processes}), {}, tmp_path / str(processes)
        )
    one, two = (training_losses(tmp_path / name) for name in "12")
    np.testing.assert_allclose(one, two, rtol=1e-3)


def test_a_judge_of_a_hub_is_pinned_to_its_commit_and_named_with_it(
    models: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = keep_in_cache(tmp_path / "cache", "acme/judge", Path(models["cross"]))
    use_cache(monkeypatch, tmp_path / "cache")
    config = at_commits(RetrainConfig.model_validate({"towers": judged("acme/judge").model_dump()}))
    assert config.towers.judge.revision == commit
    (tmp_path / "towers").mkdir()
    train_towers(pairs(), config.towers, {}, tmp_path / "towers")
    told = open_artifact(tmp_path / "towers/query_tower").attributes
    assert (told["judge"], told["judge_revision"]) == ("acme/judge", commit)


def test_lineage_names_the_judge(models: dict[str, str], tmp_path: Path) -> None:
    train_towers(pairs(), judged(models["cross"]), {}, tmp_path)
    for role in ("query_tower", "document_tower"):
        told = open_artifact(tmp_path / role).attributes
        assert told["judge"] == models["cross"] and told["judge_digest"] == resolve_base(models["cross"]).digest
    assert "judge" in OTHER_MODELS


@pytest.mark.parametrize(
    ("model", "changes", "said"),
    [
        ("classes", {}, "tells 3 classes apart; a judge gives one score"),
        ("headless", {}, "was saved without classifier.bias, so it would score by chance"),
        ("encoder", {}, "is no judge. Expected a cross-encoder"),
        ("wordless", {}, "has no tokenizer"),
        ("unpadded", {}, "names no padding token, so it scores no two texts at once. Set towers.judge.batch_size to 1"),
        ("nowhere", {}, "towers.judge: The model folder '.*nowhere' does not exist"),
    ],
)
def test_what_is_no_judge_is_refused_before_anything_is_trained(
    models: dict[str, str], model: str, changes: dict[str, Any], said: str, tmp_path: Path
) -> None:
    config = judged(models.get(model, str(tmp_path / "nowhere")), **changes)
    beside = TowerConfig(companion={"base_model": models["encoder"], "steps": 2}).companion
    with pytest.raises(ModelError, match=said):
        train_towers(pairs(), config.model_copy(update={"companion": beside}), {}, tmp_path)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_judge_that_is_cut_to_some_layers_is_refused(models: dict[str, str]) -> None:
    with pytest.raises(ModelError, match="keeps a part of its layers, which a judge does not"):
        Judge(resolve_base(f"{models['encoder']}@1"), judged(models["encoder"]))


def test_a_judge_that_wants_a_chat_template_around_the_pair_is_refused(models: dict[str, str], tmp_path: Path) -> None:
    model = Path(shutil.copytree(models["cross"], tmp_path / "cross"))
    settings = {"transformer_task": "sequence-classification", "modality_config": {"message": {"method": "forward"}}}
    (model / "sentence_bert_config.json").write_text(json.dumps(settings))
    with pytest.raises(ModelError, match="wants a chat template around each pair"):
        Judge(resolve_base(str(model)), judged(str(model)))


def test_a_judge_that_reads_its_padding_is_refused(models: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses, "_of_pairs", lambda *_: lambda asked, found: np.full((len(asked), len(found[0])), float(len(found[0]))))
    with pytest.raises(ModelError, match="scores a text otherwise beside a longer one"):
        judge_of(models["cross"])


def test_a_judge_that_fails_on_a_text_is_refused_at_once(models: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(asked: Any, found: Any) -> Any:
        raise RuntimeError("expected scalar type Half but found Float\nat aten")

    monkeypatch.setattr(losses, "_of_pairs", lambda *_: failing)
    with pytest.raises(ModelError, match=r"cannot score texts: expected scalar type Half but found Float$"):
        judge_of(models["cross"])


def test_a_judge_reads_as_much_as_it_is_told_or_twice_what_the_towers_read() -> None:
    towers = TowerConfig(max_query_length=10, max_document_length=30)
    assert judge_length(towers) == 80
    assert judge_length(towers.model_copy(update={"judge": JudgeConfig(max_length=512)})) == 512


def test_prefixes_that_are_served_alone_learn_the_order_too() -> None:
    torch.manual_seed(0)
    queries, documents = (torch.nn.functional.normalize(torch.randn(n, 8), dim=1) for n in (2, 4))
    chosen, shares = torch.tensor([[0, 2], [1, 3]]), torch.tensor([[0.9, 0.1], [0.4, 0.6]])
    cut = [torch.nn.functional.normalize(rows[:, :4], dim=1) for rows in (queries, documents)]
    expected = (listwise(queries, documents, 0.1, chosen, shares) + listwise(*cut, 0.1, chosen, shares)) / 2
    assert float(matryoshka_listwise(queries, documents, 0.1, chosen, shares, (4,))) == pytest.approx(float(expected))


def test_scores_that_are_no_numbers_end_the_training(models: dict[str, str]) -> None:
    judge = judge_of(models["cross"])
    judge._scores = lambda queries, documents: np.full((len(queries), len(documents[0])), np.nan)
    with pytest.raises(ModelError, match="gives scores that are no numbers"):
        judge.distribution(queries()[:1], [documents()[:2]])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"training": "none", "judge": {"base_model": "x"}}, "a judge takes part in a training, and training is none"),
        ({"judge": {"base_model": "vectors"}}, "no model that could score texts"),
        ({"judge": {"base_model": "x", "weight": 0}}, "greater than 0"),
        ({"judge": {"documents": 0}}, "greater than or equal to 1"),
    ],
)
def test_settings_of_a_judge_that_cannot_be_are_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        TowerConfig(**changes)


@pytest.mark.parametrize("given", [None, {}, {"base_model": None}, {"base_model": ""}])
def test_null_takes_a_judge_back(given: Any) -> None:
    assert not TowerConfig(judge=given).judge.base_model


def test_the_key_holds_the_judge_and_nothing_of_one_that_is_not_there(models: dict[str, str], tmp_path: Path) -> None:
    dataset = DatasetArtifact(kind="dataset", path=tmp_path, digest="d")

    def key(**judge: Any) -> str:
        return towers_step(RetrainConfig.model_validate({"towers": {"judge": judge}}), dataset).folder.name

    model = Path(shutil.copytree(models["cross"], tmp_path / "cross"))
    keys = [key(), key(base_model=str(model)), key(base_model=str(model), weight=3)]
    assert key(weight=3) == keys[0]
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "changed": True}))
    keys.append(key(base_model=str(model)))
    assert len(set(keys)) == 4


def test_the_symmetric_pair_has_no_judge(models: dict[str, str]) -> None:
    assert towers_key(judged(models["cross"])) == towers_key(judged(""))


def test_a_plan_counts_what_a_judge_reads_and_holds(models: dict[str, str]) -> None:
    judge = shape_of_base(resolve_base(models["cross"]), judge_config)
    assert judge.parameters > 0
    with pytest.raises(ModelError, match="scores texts"):
        shape_of_base(resolve_base(models["cross"]))
