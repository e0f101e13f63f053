"""The name of a control token in a text is ordinary text, and a text without tokens has no state of the padding."""

from __future__ import annotations

import copy
import json
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from components.distillation.config import DistillationConfig
from components.distillation.student.forms import packed_vectors
from components.distillation.student.initial import Source, bare_student, load_small_encoder, new_student
from components.distillation.student.storage import load_student, save_student, save_tokenizer
from components.towers.base_models import GEMMA_PACKAGE, MINILM_PACKAGE, _assemble_gguf, resolve_base, tokenizer_of
from components.towers.config import TowerConfig
from components.towers.contract import ROLES, EncodingContract, load_contract, save_contract, space_id_of
from components.towers.encoder import load_tower
from components.towers.losses import build
from components.towers.tokens import pad_batch, token_ids
from components.towers.transformer import pool
from components.towers.two_towers import TwoTowers
from tests.encoders import contract_of
from tests.training.tiny_world import documents, queries

NAMES = ("<eos>", "<pad>", "<bos>", "<unk>", "<mask>", "<start_of_turn>", "<end_of_turn>", "</s>", "<unused7>")
NAMES += ("[SEP]", "[CLS]", "[PAD]", "[UNK]", "[MASK]")
PLAIN = ("heart attack", "x > 3 [a] <b>", "Łódź 1945\n\n<table> C++", "हिन्दी में", "", "a" * 300, "日本語のテキスト \t 🙂")


def gemma(folder: Path) -> Any:
    """Gemma's tokenizer alone, out of its package."""
    from transformers import AutoTokenizer

    gguf = _assemble_gguf(folder)
    return AutoTokenizer.from_pretrained(folder, gguf_file=gguf.name)


def unigram() -> Any:
    """A tokenizer as XLM-R's and T5's: its model finds control tokens among its own words, whatever it is told about special ones."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    control = [("<bos>", 0.0), ("<pad>", 0.0), ("<eos>", 0.0), ("<unk>", 0.0)]
    letters = sorted({letter for text in (*NAMES, *queries(), "▁hatck") for letter in text if letter != " "})
    words = [*control, *((letter, -8.0) for letter in letters), ("▁heart", -5.0), ("▁attack", -5.0), ("▁kidney", -5.0), ("▁stone", -5.0)]
    tokenizer = Tokenizer(models.Unigram(words, unk_id=3, byte_fallback=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A <eos>", special_tokens=[("<bos>", 0), ("<eos>", 2)])
    names = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Tokenizers by name, as far as their packages are installed, the tiny one always."""
    from transformers import AutoTokenizer

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SCALINGNOTE_HOME", str(tmp_path_factory.mktemp("home")))
        tiny = resolve_base("tiny-encoder", [*documents(), *queries(), *NAMES])
        found = {"tiny": AutoTokenizer.from_pretrained(tiny.location)}
        if find_spec(MINILM_PACKAGE):
            found["minilm"] = AutoTokenizer.from_pretrained(resolve_base("all-minilm-l6-v2").location)
        found["unigram"] = unigram()
    if find_spec(GEMMA_PACKAGE) and find_spec("gguf"):
        found["gemma"] = gemma(tmp_path_factory.mktemp("gemma"))
    return found


@pytest.fixture(params=["tiny", "unigram", "minilm", "gemma"])
def tokenizer(request: pytest.FixtureRequest, tokenizers: dict[str, Any]) -> Any:
    if request.param not in tokenizers:
        pytest.skip(f"the package with the tokenizer of {request.param} is not installed")
    return tokenizers[request.param]


def contract(tokenizer: Any, **changes: Any) -> EncodingContract:
    given = {"append_eos": tokenizer.eos_token_id is not None, "prompt": "query: ", "max_length": 64, **changes}
    return contract_of("query").model_copy(update=given)


def control_ids(tokenizer: Any) -> set[int]:
    return {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}


@pytest.mark.parametrize("append_eos", [True, False])
def test_the_name_of_a_control_token_is_no_control_token(tokenizer: Any, append_eos: bool) -> None:
    how = contract(tokenizer, append_eos=append_eos and tokenizer.eos_token_id is not None)
    control = control_ids(tokenizer) - {tokenizer.unk_token_id}
    plain = token_ids(tokenizer, ["heart attack"], how)[0]
    for name in NAMES:
        texts = [f"a {name} b", f"heart attack {name}", f"{name}heart", name * 3]
        for text, row in zip(texts, token_ids(tokenizer, texts, how), strict=True):
            assert [i for i in row if i in control] == [i for i in plain if i in control], text
        assert token_ids(tokenizer, [f"heart attack {name}"], how)[0] != plain, name


def test_the_name_of_a_control_token_in_wide_letters_is_text_too(tokenizers: dict[str, Any]) -> None:
    """XLM-R's normalizer writes them as plain ones, after which its model finds the token among its words."""
    from tokenizers import normalizers

    wide = copy.deepcopy(tokenizers["unigram"])
    wide.backend_tokenizer.normalizer = normalizers.NFKC()
    for prompt in ("query: ", ""):
        how = contract(wide, prompt=prompt, append_eos=False)
        given, plain = token_ids(wide, ["heart \uff1ceos\uff1e attack", "heart <eos> attack"], how)
        assert given == plain and given.count(wide.eos_token_id) == 1


def test_all_other_texts_keep_their_tokens(tokenizer: Any) -> None:
    for changes in ({}, {"append_eos": False}, {"prompt": ""}, {"max_length": 5}):
        after, before = (contract(tokenizer, split_special_tokens=split, **changes) for split in (True, False))
        assert token_ids(tokenizer, PLAIN, after) == token_ids(tokenizer, PLAIN, before)


def test_an_added_word_stays_one_token_and_an_added_control_token_is_text(tokenizers: dict[str, Any]) -> None:
    for name in ("tiny", "unigram"):
        own = copy.deepcopy(tokenizers[name])
        own.add_tokens(["stent-graft"])
        own.add_special_tokens({"additional_special_tokens": ["<|tool|>"]})
        word, control = own.convert_tokens_to_ids(["stent-graft", "<|tool|>"])
        (row,) = token_ids(own, ["a stent-graft of the <|tool|> heart"], contract(own, prompt=""))
        assert row.count(word) == 1, name
        assert control not in row, name


def test_a_contract_from_before_still_reads_names_as_tokens(tokenizer: Any) -> None:
    before = contract(tokenizer, split_special_tokens=False, append_eos=False, prompt="")
    name = tokenizer.pad_token
    assert tokenizer.pad_token_id in token_ids(tokenizer, [f"a {name} b"], before)[0]
    assert tokenizer.pad_token_id not in token_ids(tokenizer, [f"a {name} b"], contract(tokenizer, prompt=""))[0]


def test_a_control_token_of_the_prompt_stays_one(tokenizer: Any) -> None:
    name = tokenizer.pad_token
    how = contract(tokenizer, prompt=f"task {name} query: ")
    plain, named = token_ids(tokenizer, ["heart attack", f"heart {name} attack"], how)
    assert plain == token_ids(tokenizer, ["heart attack"], how.model_copy(update={"split_special_tokens": False}))[0]
    assert plain.count(tokenizer.pad_token_id) == named.count(tokenizer.pad_token_id) == 1
    apart = token_ids(tokenizer, [f"heart {name} attack"], contract(tokenizer, prompt=" query: "))[0]
    assert named[named.index(tokenizer.pad_token_id) + 1 :] == apart[1:]
    short = token_ids(tokenizer, [f"heart {name} attack " * 30], how)[0]
    assert len(short) == 64
    assert short[-1] == named[-1]


def test_texts_that_are_read_in_pieces_keep_their_tokens(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Control tokens of a text are looked up by its place, which is another in a piece."""
    texts, how = [*PLAIN, "", *(f"heart {name} attack" for name in NAMES), *PLAIN], contract(tokenizer)
    whole = token_ids(tokenizer, texts, how)
    monkeypatch.setattr("components.towers.tokens._AT_ONCE", 2)
    assert token_ids(tokenizer, texts, how) == whole == [token_ids(tokenizer, [text], how)[0] for text in texts]


@pytest.mark.parametrize("longest", [1, 2, 3, 4])
def test_no_row_is_empty_or_longer_than_the_longest(tokenizer: Any, longest: int) -> None:
    for append_eos in {tokenizer.eos_token_id is not None, False}:
        how = contract(tokenizer, prompt="", max_length=longest, append_eos=append_eos)
        rows = token_ids(tokenizer, ["", " ", "\u200b", "heart attack of the heart", "<eos>[SEP]"], how)
        assert all(0 < len(row) <= longest for row in rows)


def test_a_tokenizer_that_adds_nothing_gives_an_empty_text_a_token_that_is_no_padding(tokenizers: dict[str, Any]) -> None:
    bare = copy.deepcopy(tokenizers["tiny"])
    bare.backend_tokenizer.post_processor = None
    rows = token_ids(bare, ["", "kidney"], contract(bare, prompt="", append_eos=False))
    assert rows[0] == [bare.bos_token_id]
    assert bare.pad_token_id not in rows[0]


@pytest.mark.parametrize("how", ["last", "mean", "cls"])
def test_a_row_without_tokens_pools_no_padding(how: str) -> None:
    batch = pad_batch([[5, 6], [], [7]], 0)
    states = torch.full((3, 2, 4), float("nan"))
    states[0], states[2, 0] = 2.0, 3.0
    states[2, 1] = 100.0
    pooled = pool(states, batch["attention_mask"], how)
    assert pooled.tolist() == [[2.0] * 4, [0.0] * 4, [3.0] * 4]
    assert pad_batch([[], []], 9)["attention_mask"].tolist() == [[0], [0]]


@pytest.mark.parametrize("how", ["last", "mean", "cls"])
def test_a_packed_row_without_tokens_takes_nothing_of_its_neighbours(home: Path, how: str) -> None:
    model = load_small_encoder(resolve_base("tiny-encoder", [*documents(), *queries()]))[0].eval()
    rows, device = [[], [1, 9, 2], [], [1, 5, 6, 2]], torch.device("cpu")
    found = packed_vectors(model, rows, how, device)
    assert found[[0, 2]].abs().sum() == 0
    torch.testing.assert_close(found[[1, 3]], packed_vectors(model, [rows[1], rows[3]], how, device))
    assert packed_vectors(model, [[], []], how, device).tolist() == [[0.0] * model.config.hidden_size] * 2


@pytest.mark.parametrize("settings", [{}, {"pooling": "cls"}, {"pooling": "last"}, {"form": "static"}])
def test_students_read_names_as_text_and_so_does_sentence_transformers(home: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    from sentence_transformers import SentenceTransformer

    texts = [*queries(), *(f"kidney {name} stone" for name in NAMES), "stone [SEP]", "[PAD]", "stone"]
    config = DistillationConfig(student="tiny-encoder", precision="float32", query_prompt="find: ", **settings)
    vectors = np.random.default_rng(3).normal(size=(len(texts), 24)).astype(np.float32)
    student = new_student(texts, vectors, "space", config, None)
    save_contract(tmp_path, save_student(student, tmp_path), "space")
    ours = load_student(tmp_path, precision="float32")
    np.testing.assert_allclose(ours.encode(texts), student.encode(texts), atol=1e-5)
    np.testing.assert_allclose(SentenceTransformer(str(tmp_path), device="cpu").encode_query(texts), ours.encode(texts), atol=1e-5)
    named, plain = ours.encode(["stone [SEP]", "stone"])
    assert float(named @ plain) < 0.9999
    assert np.isfinite(ours.encode(["", "\u200b", " "])).all()


@pytest.mark.skipif(find_spec(MINILM_PACKAGE) is None, reason="the package of MiniLM is not installed")
@pytest.mark.parametrize("form", ["transformer", "static"])
def test_a_saved_minilm_gives_sentence_transformers_the_tokens_of_ours(home: Path, tmp_path: Path, form: str) -> None:
    from sentence_transformers import SentenceTransformer

    texts = ["heart attack", "heart [SEP] attack [MASK]", "[PAD]", "a </s> <eos>", "naïve 5 µm"]
    config = DistillationConfig(student="all-minilm-l6-v2", form="transformer", layers=1, precision="float32")
    student = bare_student(Source(config, texts, None))
    if form == "static":
        from components.distillation.student.encoder import StudentEncoder
        from components.distillation.student.forms import static_model

        table = static_model(student.model.get_input_embeddings().weight.detach())
        student = StudentEncoder(table, student.tokenizer, None, student.contract.model_copy(update={"form": "static"}), "space")
    student.head = torch.nn.Sequential(torch.nn.Linear(384, 8, bias=False))
    student.contract = student.contract.model_copy(update={"dimension": 8})
    save_contract(tmp_path, save_student(student, tmp_path), "space")
    theirs = SentenceTransformer(str(tmp_path), device="cpu").encode_query(texts)
    np.testing.assert_allclose(theirs, load_student(tmp_path, precision="float32").encode(texts), atol=1e-5)


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_towers_read_names_as_text_and_saved_ones_too(home: Path, tmp_path: Path, pooling: str) -> None:
    base = resolve_base("tiny-decoder", [*documents(), *queries()])
    towers = TwoTowers(base, TowerConfig(base_model=base.name, pooling=pooling, precision="float32", query_prompt=""))
    ended, plain, padded = (towers.tokens([text], "document")[0] for text in ("kidney stone [SEP]", "kidney stone", "kidney stone [PAD]"))
    assert ended != plain
    assert padded.count(towers.tokenizer.pad_token_id) == 0
    made = towers.save("document", tmp_path)
    assert made is not None
    assert made.split_special_tokens
    save_contract(tmp_path, made, space_id_of(made))
    loaded = load_tower(tmp_path, "float32")
    texts = ["kidney stone [SEP]", "kidney stone", "", "\u200b"]
    wanted = towers.encode(towers.tokens(texts, "document"), "document")
    np.testing.assert_allclose(loaded.encode(texts), wanted, atol=1e-5)
    prediction = build(towers.input_embeddings(), towers.tokens(["kidney [SEP]", "stone [PAD]"], "query"), towers.tokenizer.all_special_ids)
    assert not set(prediction._vocabulary) & set(towers.tokenizer.all_special_ids)


def test_encoders_of_one_base_share_its_tokenizer_and_what_is_written_of_one_changes_nothing(home: Path, tmp_path: Path) -> None:
    base = resolve_base("tiny-decoder", [*documents(), *queries()])
    towers = TwoTowers(base, TowerConfig(base_model=base.name, pooling="last", precision="float32", query_prompt="find: "))
    made = towers.save("document", tmp_path / "tower")
    assert made is not None
    save_contract(tmp_path / "tower", made, space_id_of(made))
    tower = load_tower(tmp_path / "tower", "float32")
    assert tower.tokenizer is towers.tokenizer
    before, state = tower.tokens(queries()), tower.tokenizer.backend_tokenizer.to_str()
    save_tokenizer(tower.tokenizer, made.model_copy(update={"append_eos": True, "max_length": 3}), tmp_path / "package")
    assert tower.tokenizer.backend_tokenizer.to_str() == state and tower.tokens(queries()) == before
    assert tower.tokenizer.model_max_length > 3 and not getattr(tower.tokenizer, "split_special_tokens", False)
    changed = Path(base.location) / "tokenizer.json"
    changed.write_text(changed.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    assert tokenizer_of(base) is not tower.tokenizer, "a file that has changed is read again"


def test_encoders_in_threads_take_the_settings_of_a_shared_tokenizer_one_after_the_other(home: Path) -> None:
    base = resolve_base("tiny-decoder", [*documents(), *queries()])
    plain = {"query_prompt": "", "document_prompt": "", "max_query_length": 4, "max_document_length": 8}
    towers = TwoTowers(base, TowerConfig(base_model=base.name, precision="float32", **plain))
    texts = [f"{text} {text} {text}" for text in documents()] * 4
    alone = {role: towers.tokens(texts, role) for role in ROLES}
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda role: (role, towers.tokens(texts, role)), [*ROLES] * 20))
    assert all(rows == alone[role] for role, rows in found)


def test_a_contract_without_the_field_is_one_from_before_and_keeps_the_name_of_its_space(tmp_path: Path) -> None:
    new = contract_of("document")
    save_contract(tmp_path, new, "space")
    path = tmp_path / "encoding_contract.json"
    content = json.loads(path.read_text())
    for later in (
        "split_special_tokens",
        "base_revision",
        "head",
        "head_digest",
        "base_code",
        "map_digest",
        "companion",
        "companion_share",
    ):
        del content["contract"][later]
    path.write_text(json.dumps(content))
    old, _ = load_contract(tmp_path)
    assert (new.split_special_tokens, old.split_special_tokens) == (True, False)
    # What `space_id_of` gave before the fields: the digest of all others.
    from components.artifacts import digest_of

    assert space_id_of(old) == digest_of(content["contract"]) != space_id_of(new)
    save_contract(tmp_path, old, "space")
    assert load_contract(tmp_path)[0] == old


def test_generated_queries_are_asked_of_the_decoder_with_documents_as_text(home: Path) -> None:
    from components.distillation.generation import _Generator

    base = resolve_base("tiny-decoder", [*documents(), *queries()])
    generator = _Generator(base, DistillationConfig(precision="float32"))
    seen: list[torch.Tensor] = []
    generate = generator._model.generate
    generator._model.generate = lambda **given: (seen.append(given["input_ids"]), generate(**given))[1]
    generator.continue_all(["Document: kidney [SEP] stone [MASK]\nSearch query:"])
    marks = {generator._tokenizer.sep_token_id, generator._tokenizer.mask_token_id}
    assert not marks & set(seen[0].flatten().tolist())


def test_the_tower_of_an_old_contract_is_loaded_as_it_was_trained(home: Path, tmp_path: Path) -> None:
    base = resolve_base("tiny-decoder", [*documents(), *queries()])
    towers = TwoTowers(base, TowerConfig(base_model=base.name, precision="float32"))
    old = towers.save("document", tmp_path)
    assert old is not None
    old = old.model_copy(update={"split_special_tokens": False})
    save_contract(tmp_path, old, space_id_of(old))
    tower = load_tower(tmp_path, "float32")
    assert tower.space_id == space_id_of(tower.contract)
    # The fault, kept where the vectors of the index have it: the padding stands in the text.
    rows = [
        [*token_ids(tower.tokenizer, ["kidney stone"], tower.contract)[0][:-1], tower.tokenizer.pad_token_id, tower.tokenizer.eos_token_id]
    ]
    np.testing.assert_allclose(tower.encode(["kidney stone [PAD]"]), towers.encode(rows, "document"), atol=1e-5)
