"""What the full release refuses before it trains anything, and what the candidate's page says."""

from __future__ import annotations

from argparse import Namespace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from components import settings
from components.artifacts import DatasetArtifact
from components.data.config import DataConfig
from components.data.dataset import load_dataset
from components.data.snapshot import snapshot
from components.errors import ConfigError, DataError, ModelError
from components.planning.facts import guessed_tokens
from components.signing.keys import make_key, trusted_keys
from flows.cli.build import study
from flows.cli.parser import build_parser
from flows.cli.search import run
from flows.config import RetrainConfig, load_config, preset_names
from flows.retrain import _require_affordable, require_usable
from tests.data_world import write_folder, write_lines, write_rows
from tests.flows.cli_world import assert_refused, scalingnote


@pytest.fixture
def dataset(tmp_path: Path) -> DatasetArtifact:
    (tmp_path / "snapshot").mkdir()
    return snapshot(DataConfig(source=str(write_folder(tmp_path / "data"))), tmp_path / "snapshot")


def config(**changes: Any) -> RetrainConfig:
    return load_config("smoke", None, {key.replace("__", "."): value for key, value in changes.items()})


def test_usable_data_and_settings_pass(dataset: DatasetArtifact) -> None:
    require_usable(config(evaluation__extra_splits=["dev"]), dataset)


def test_prompts_and_generated_queries_are_sent_to_an_endpoint_too(dataset: DatasetArtifact) -> None:
    data = load_dataset(dataset.path)
    at = {"towers__base_model": "endpoint", "towers__endpoint__url": "http://127.0.0.1:1/v1", "towers__endpoint__model": "mini"}

    def needed(**changes: Any) -> int:
        with pytest.raises(ConfigError, match="The run needs about") as caught:
            _require_affordable(config(**at, towers__endpoint__max_tokens=1, **changes), data)
        return int(str(caught.value).split("about ")[1].split(" tokens")[0].replace(",", ""))

    plain = needed(towers__query_prompt="", towers__document_prompt="")
    documents = len(data.documents)
    assert needed(towers__query_prompt="", towers__document_prompt="12345678") == plain + 2 * documents
    assert needed(towers__query_prompt="1234" * 50, towers__document_prompt="") >= plain + 50 * len(data.judged_queries("test"))
    generated = needed(
        towers__query_prompt="", towers__document_prompt="", distillation__generated=100, distillation__generator="tiny-decoder"
    )
    assert generated >= plain + 100 * 10
    assert guessed_tokens("ein Satz mit Wörtern") < 8 < guessed_tokens("心臓の痛みがあります、先生")


def test_an_extra_split_without_judgements_is_refused(dataset: DatasetArtifact) -> None:
    with pytest.raises(DataError, match="no judgements for the split 'other'; it has: dev, test, train"):
        require_usable(config(evaluation__extra_splits=["other"]), dataset)


def test_nothing_is_measured_on_train_queries_of_another_name(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "data")
    rows = [line.split("\t") for line in (folder / "qrels" / "train.tsv").read_text().splitlines()[1:4]]
    write_lines(folder / "qrels" / "holdout.tsv", ["\t".join(row) for row in rows])
    (tmp_path / "snapshot").mkdir()
    data = snapshot(DataConfig(source=str(folder)), tmp_path / "snapshot")
    for changes in ({"evaluation__split": "holdout", "policy__split": "holdout"}, {"evaluation__extra_splits": ["holdout"]}):
        with pytest.raises(DataError, match=f"3 of 3 judged queries of the split 'holdout' are train queries.*'{rows[0][0]}'"):
            require_usable(config(**changes), data)


def test_a_share_of_queries_that_are_not_there_is_refused(dataset: DatasetArtifact) -> None:
    with pytest.raises(DataError, match="'unlabelled' a share"):
        require_usable(config(distillation__source_shares={"train": 0.5, "unlabelled": 0.5}), dataset)


def test_layers_that_do_not_exist_are_refused(dataset: DatasetArtifact) -> None:
    with pytest.raises(ModelError, match="layers"):
        require_usable(config(distillation__layers=[0, 7]), dataset)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"index__index_key": "HNFW32"}, "index_key HNFW32.*FAISS does not know the key"),
        ({"index__index_key": "IVF4,PQ7x4fs"}, "index_key IVF4,PQ7x4fs"),
        ({"index__index_key": "IVF4096,Flat"}, r"4,096 lists.*Take at most .* lists"),
        ({"index__index_key": "HNSW8", "index__refine": "none"}, "keeps no vectors"),
        ({"policy__min_off_distribution_retention": 0.9}, "extra_splits names no judged query set"),
        ({"policy__required_slices": ["chapter=9"]}, r"names 'chapter=9', but evaluation\.slices defines only query_length, head_tail"),
        ({"evaluation__slices": []}, r"slice_margin is 1, but evaluation\.slices is empty"),
        ({"index__index_key": "HNSW8", "index__target_recall": 0.8}, r"target_recall is 0\.8.*min_ann_recall asks for 0\.95"),
    ],
)
def test_an_index_that_cannot_be_made_or_released_is_refused(dataset: DatasetArtifact, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        require_usable(config(**changes), dataset)


def test_an_index_that_the_policy_does_not_ask_about_may_keep_no_vectors(dataset: DatasetArtifact) -> None:
    require_usable(config(index__index_key="HNSW8", index__refine="none", policy__min_ann_recall=None), dataset)
    require_usable(config(index__index_key="Flat", index__refine="none"), dataset)


@pytest.mark.parametrize("preset", preset_names())
def test_every_preset_tunes_its_index_to_more_than_the_gate_asks_for(preset: str) -> None:
    """Tuned to the same recall, every other index would fail: queries that were not tuned on find a little less or more."""
    chosen = load_config(preset)
    assert chosen.policy.min_ann_recall is not None
    assert chosen.index.target_recall > chosen.policy.min_ann_recall
    assert chosen.index.refine != "none"


@pytest.mark.parametrize("setting", ["towers.base_model=a/b/c", "distillation.student=a/b/c", "distillation.layers=[0,7]"])
def test_a_model_that_cannot_be_used_is_said_before_any_server_starts(
    setting: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SCALINGNOTE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("flows.servers.run_flow", lambda *_, **__: pytest.fail("a server was started"))
    data = write_folder(tmp_path / "data")
    assert_refused(scalingnote("retrain", "--preset", "smoke", "--data", data, "--set", setting), 4)


@pytest.mark.parametrize("command", [("adopt", "--vectors", "vectors"), ("retrain", "--preset", "smoke"), ("study", "worth")])
def test_data_that_are_not_there_are_said_before_a_server_starts(
    command: tuple[str, ...], home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flows.servers.run_flow", lambda *_, **__: pytest.fail("a server was started"))
    assert_refused(scalingnote(*command, "--data", tmp_path / "nosuch"), 3, "does not exist")


def test_vectors_are_adopted_with_a_whole_file_of_settings_for_towers_that_are_trained(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`adopt --config FILE` was told to set training to none where the file named another training, as a whole one does."""
    asked: list[RetrainConfig] = []

    def seen(flow: str, config: RetrainConfig) -> None:
        asked.append(config)
        raise ConfigError("enough was seen")

    monkeypatch.setattr("flows.servers.run_flow", seen)
    data, whole = write_folder(tmp_path / "data"), tmp_path / "whole.yaml"
    assert scalingnote("config", "show", "--preset", "pages", "--write", whole).status == 0
    assert_refused(scalingnote("adopt", "--config", whole, "--vectors", tmp_path, "--data", data), 2, "enough was seen")
    assert (asked[0].towers.base_model, asked[0].towers.training, asked[0].towers.companion.base_model) == ("vectors", "none", "")


def test_the_demo_of_adopted_vectors_asks_each_flow_for_what_it_takes(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def validated(flow: str, **parameters: Any) -> dict[str, Any]:
        module, _, name = flow.partition(":")
        getattr(import_module(module), name).validate_parameters({"again": [], **parameters} if "refresh" in name else parameters)
        asked.append(name)
        if name == "refresh_query_tower":
            raise ConfigError("enough was seen")
        return {"name": "adopted", "queries": 1, "documents": 1, "dimension": 4, "index": "adopted-index/1"}

    monkeypatch.setattr("flows.adopt.existing_vectors", lambda config: tmp_path)
    monkeypatch.setattr("flows.servers.run_flow", validated)
    assert_refused(scalingnote("demo", "--adopt", "--preset", "demo"), 2, "enough was seen")  # vectors have no companion
    assert asked == ["adopt", "refresh_query_tower"]


@pytest.mark.parametrize("query", ["q 1", "", "q\x851"])
def test_ids_that_no_run_file_can_hold_are_said_before_the_release_is_opened(query: str, tmp_path: Path) -> None:
    write_rows(tmp_path / "queries.jsonl", [{"_id": "q0", "text": "cough"}, {"_id": query, "text": "cough"}])
    given = Namespace(queries=tmp_path / "queries.jsonl", output=tmp_path / "o.trec", name=None, release="champion", k=10, json=False)
    with pytest.raises(DataError, match=r"is empty or holds white space, .* \(1 such ids\)"):
        run(given)


def test_cells_that_name_none_do_not_run_the_whole_study(tmp_path: Path) -> None:
    given = build_parser().parse_args(["study", "worth", "--cells", " , ", "--data", str(write_folder(tmp_path))])
    with pytest.raises(ConfigError, match="--cells ' , ' names no cell, and all of them would run"):
        study(given)


@pytest.mark.parametrize(
    ("words", "role"),
    [
        (("history",), None),
        (("history", "--strike", "2", "--as", "Ada", "--reason", "forged"), "promoter"),
        (("keys", "list"), None),
        (("keys", "sign"), "promoter"),
        (("rollback", "--as", "Ada", "--reason", "slow"), "promoter"),
    ],
)
def test_what_changes_records_goes_through_the_server_with_sign_in(
    words: tuple[str, ...], role: str | None, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A strike was written around it, past the audit log."""
    asked: list[str] = []
    monkeypatch.setattr("flows.cli.main.sign_in", asked.append)
    scalingnote(*words)
    assert asked == ([role] if role else [])


@pytest.mark.parametrize("words", [("keys", "sign"), ("keys", "rotate"), ("history", "--strike", "1", "--as", "Ada", "--reason", "forged")])
def test_keys_do_not_sign_in_a_store_that_is_not_there(
    words: tuple[str, ...], home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rotation found nothing to sign there and withdrew the key, so that the champion of the true store was not served any more."""
    key = make_key(settings.keys_folder() / "signing.pem")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mistyped.db'}")
    assert_refused(scalingnote(*words), 2, "is not there, so there is nothing to tell or to change")
    assert list(trusted_keys()) == [key.key_id] and not (tmp_path / "mistyped.db").exists()
