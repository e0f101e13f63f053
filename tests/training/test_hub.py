"""Models of a hub: names, commits, the user's cache, and all that a hub can answer."""

from __future__ import annotations

import errno
import json
import re
import shutil
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from components.artifacts import digest_of, file_sha256
from components.errors import ArtifactError, ModelError, ResourceError
from components.towers import hub
from components.towers.base_models import (
    build_decoder,
    build_tiny_encoder,
    is_on_hub,
    load_config,
    load_weights,
    pinned_revision,
    resolve_base,
)
from components.towers.contract import EncodingContract
from components.towers.encoder import _base_of
from tests.hub_world import hub_on_loopback, keep_in_cache, use_cache
from tests.training.tiny_world import documents, queries

TEXTS = [*documents(), *queries()]


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("decoder")
    build_decoder(TEXTS, folder, 64, 2)
    return folder


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """Another state of the same model: other weights under the same names."""
    build_decoder(TEXTS[:100], tmp_path / "other", 64, 3)
    return tmp_path / "other"


@pytest.fixture
def cache(home: Path, tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.mark.parametrize(
    "name", ["Qwen/Qwen3-0.6B", "meta-llama/Llama-3.2-1B", "BAAI/bge-base-en-v1.5", "gpt2", "Qwen/Qwen2.5-0.5B", "google/gemma-3-1b-pt@6"]
)
def test_names_with_dots_and_digits_are_names_on_a_hub(name: str, home: Path) -> None:
    assert is_on_hub(name)


@pytest.mark.parametrize(
    "name", ["gemma3-270m", "all-minilm-l6-v2", "tiny-decoder", "decoder-64x2", "a/b/c", "./model", "/x", "~/x", "a b", ""]
)
def test_built_in_names_and_paths_are_not(name: str, home: Path) -> None:
    assert not is_on_hub(name)


def test_a_model_in_the_users_cache_is_found_offline_with_its_commit(cache: Path, decoder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = keep_in_cache(cache, "Acme/Mini-0.6B", decoder)
    use_cache(monkeypatch, cache)
    base = resolve_base("Acme/Mini-0.6B")
    assert (base.name, base.revision) == ("Acme/Mini-0.6B", commit)
    assert Path(base.location).parts[-2:] == ("snapshots", commit)
    assert load_config(base).num_hidden_layers == 2


def test_a_cut_model_of_a_hub_keeps_its_commit(cache: Path, decoder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = keep_in_cache(cache, "acme/mini", decoder)
    use_cache(monkeypatch, cache)
    cut = resolve_base("acme/mini@1")
    assert (cut.name, cut.layers, cut.revision) == ("acme/mini@1", (0,), commit)


def test_weights_decide_the_digest_and_the_rest_of_the_repository_does_not(
    cache: Path, decoder: Path, other: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_readme = tmp_path / "readme"
    shutil.copytree(decoder, with_readme)
    (with_readme / "README.md").write_text("A new picture.")
    keep_in_cache(cache, "acme/mini", decoder, "a" * 40)
    keep_in_cache(cache, "acme/mini", with_readme, "b" * 40)
    keep_in_cache(cache, "acme/mini", other, "c" * 40)
    use_cache(monkeypatch, cache)
    before, described, changed = (resolve_base("acme/mini", revision=letter * 40) for letter in "abc")
    assert before.digest == described.digest != changed.digest
    assert len({before.revision, described.revision, changed.revision}) == 3


def test_a_tower_loads_its_own_commit_after_main_has_moved(
    cache: Path, decoder: Path, other: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from components.towers.config import TowerConfig
    from components.towers.contract import save_contract, space_id_of
    from components.towers.encoder import load_tower
    from components.towers.two_towers import TwoTowers

    commit = keep_in_cache(cache, "acme/mini", decoder)
    use_cache(monkeypatch, cache)
    towers = TwoTowers(resolve_base("acme/mini"), TowerConfig(base_model="acme/mini", lora_rank=2))
    contract = towers.save("document", tmp_path / "tower")
    assert contract is not None and contract.base_revision == commit
    save_contract(tmp_path / "tower", contract, space_id_of(contract))
    keep_in_cache(cache, "acme/mini", other, "d" * 40)  # main is another model now
    use_cache(monkeypatch, cache)
    assert resolve_base("acme/mini").revision == "d" * 40
    vector = load_tower(tmp_path / "tower", "float32").encode(["kidney stone"])
    assert vector.shape == (1, 64)
    adapter = json.loads((tmp_path / "tower" / "adapter" / "adapter_config.json").read_text())
    assert (adapter["base_model_name_or_path"], adapter["revision"]) == ("acme/mini", commit)
    shutil.rmtree(cache / "models--acme--mini" / "snapshots" / commit)
    use_cache(monkeypatch, cache)
    with pytest.raises(ModelError, match="HF_HUB_OFFLINE is set"):
        load_tower(tmp_path / "tower")


def test_the_commit_takes_no_part_in_the_identity_of_a_space(cache: Path, decoder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from components.towers.config import TowerConfig
    from components.towers.contract import space_id_of
    from components.towers.two_towers import TwoTowers

    keep_in_cache(cache, "acme/mini", decoder)
    use_cache(monkeypatch, cache)
    contract = TwoTowers(resolve_base("acme/mini"), TowerConfig(base_model="acme/mini")).contracts["document"]
    assert space_id_of(contract) == space_id_of(contract.model_copy(update={"base_revision": None}))
    assert space_id_of(contract) != space_id_of(contract.model_copy(update={"base_digest": "0"}))


def test_an_incomplete_cache_is_completed_from_the_hub_and_not_asked_for_again(
    cache: Path, decoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with hub_on_loopback(monkeypatch, cache) as server:
        commit = server.add("acme/mini-1.5", decoder)
        kept = cache / "models--acme--mini-1.5" / "snapshots" / commit
        kept.mkdir(parents=True)
        shutil.copyfile(decoder / "config.json", kept / "config.json")  # all that some other program ever read
        base = resolve_base("acme/mini-1.5")
        assert base.revision == commit
        assert (Path(base.location) / "model.safetensors").is_file()
        hub._folder.cache_clear()
        before = len(server.requests)
        assert resolve_base("acme/mini-1.5", revision=commit) == base
        assert len(server.requests) == before


def test_what_another_program_left_out_of_the_cache_of_an_embedding_model_is_fetched(
    cache: Path, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from components.towers.trained.published import read_published
    from tests.published_world import FORMS

    model = FORMS["embeddinggemma"].write(TEXTS, tmp_path / "model")
    (model / "2_Dense" / "model.safetensors").rename(model / "2_Dense" / "pytorch_model.bin")  # the library's other form
    with hub_on_loopback(monkeypatch, cache) as server:
        commit = server.add("acme/embed", model)
        kept = cache / "models--acme--embed" / "snapshots" / commit
        kept.mkdir(parents=True)
        for file in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):  # as transformers alone fetches it
            shutil.copyfile(model / file, kept / file)
        base = resolve_base("acme/embed")
        found = read_published(base)
        assert found is not None and found.pooling == "mean" and [dense.outputs for dense in found.head] == [96, 32]
        hub._folder.cache_clear()
        before = len(server.requests)
        assert resolve_base("acme/embed", revision=commit) == base and len(server.requests) == before


def test_a_bare_model_in_the_cache_of_another_program_is_asked_about_once_and_taken_where_nobody_answers(
    cache: Path, decoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with hub_on_loopback(monkeypatch, cache) as server:
        commit = server.add("acme/mini", decoder)
        keep_in_cache(cache, "acme/mini", decoder, commit)
        server.status["acme/mini"] = (503, "")
        assert resolve_base("acme/mini", revision=commit).revision == commit
        asked = len(server.requests)
        hub._folder.cache_clear()
        assert resolve_base("acme/mini", revision=commit).revision == commit
        assert len(server.requests) == asked, "a hub that is silent is asked once"
        del server.status["acme/mini"]
        for count in (1, 1):
            hub._SILENT.clear()
            hub._folder.cache_clear()
            assert resolve_base("acme/mini", revision=commit).revision == commit
            assert len(server.requests) == asked + count, "what is not there is noted"


def test_one_commit_holds_for_the_whole_process_although_main_moves(
    cache: Path, decoder: Path, other: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with hub_on_loopback(monkeypatch, cache) as server:
        first = server.add("acme/mini", decoder)
        assert pinned_revision("acme/mini", None) == first
        server.add("acme/mini", other)
        base = resolve_base("acme/mini")
        assert base.revision == first and load_config(base).num_hidden_layers == 2


def test_a_flow_pins_every_model_of_a_hub_to_its_commit(
    cache: Path, decoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows.config import load_config as read_settings
    from flows.steps import at_commits

    with hub_on_loopback(monkeypatch, cache) as server:
        tower, student = server.add("acme/llm-0.6B", decoder), server.add("acme/small-v1.5", decoder)
        settings = {"towers.base_model": "acme/llm-0.6B", "distillation.student": "acme/small-v1.5"}
        config = at_commits(read_settings("smoke", None, settings))
    assert (config.towers.revision, config.distillation.revision, config.distillation.generator_revision) == (tower, student, None)
    builtin = at_commits(read_settings("smoke"))
    assert (builtin.towers.revision, builtin.distillation.revision) == (None, None)


def test_the_changed_folder_of_a_users_own_model_is_another_model(decoder: Path, other: Path, home: Path) -> None:
    from components.towers.base_models import folder_identity

    assert folder_identity(str(decoder)) == folder_identity(f"{decoder}@1") != folder_identity(str(other))
    assert folder_identity("acme/mini") == folder_identity("tiny-decoder") == {}


@pytest.mark.parametrize(
    ("status", "code", "words"),
    [
        (401, "RepoNotFound", "is not on http.*or is private"),
        (403, "GatedRepo", "is gated: accept its terms"),
        (403, "", "refused access"),
        (503, "", "status 503"),
        (404, "RevisionNotFound", "has no revision 'main'"),
    ],
)
def test_a_refusal_of_the_hub_is_one_sentence_at_once(
    status: int, code: str, words: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with hub_on_loopback(monkeypatch, cache) as server:
        server.status["acme/mini"] = (status, code)
        with pytest.raises(ModelError, match=words) as error:
            resolve_base("acme/mini")
        assert len(server.requests) <= 2  # no retries
    assert "\n" not in str(error.value)


def test_a_renamed_model_is_asked_for_by_its_new_name(cache: Path, decoder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with hub_on_loopback(monkeypatch, cache) as server:
        server.add("acme/new-name", decoder)
        server.renamed["acme/old-name"] = "acme/new-name"
        with pytest.raises(ModelError, match="is called 'acme/new-name' on the hub now"):
            resolve_base("acme/old-name")


def test_a_revision_that_does_not_exist_is_refused(cache: Path, decoder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with hub_on_loopback(monkeypatch, cache) as server:
        server.add("acme/mini", decoder)
        with pytest.raises(ModelError, match="has no revision 'v9'"):
            resolve_base("acme/mini", revision="v9")
        with pytest.raises(ModelError, match="has no revision '" + "e" * 40):
            resolve_base("acme/mini", revision="e" * 40)


def test_a_revision_of_a_model_that_is_on_no_hub_is_refused(home: Path) -> None:
    with pytest.raises(ModelError, match="is no model of a hub, so it has no revision 'main'"):
        resolve_base("tiny-decoder", TEXTS, "main")


def test_a_download_that_breaks_leaves_a_sentence_and_is_continued(cache: Path, decoder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with hub_on_loopback(monkeypatch, cache) as server:
        server.add("acme/mini", decoder)
        server.broken.add("acme/mini")
        with pytest.raises(ModelError, match="acme/mini"):
            resolve_base("acme/mini")
        server.broken.clear()
        assert load_config(resolve_base("acme/mini")).num_hidden_layers == 2


def test_a_cache_that_cannot_be_written_is_told_as_such_and_not_as_a_hub_that_is_away(
    cache: Path, decoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    cache.write_text("a file in the place of the folder")
    with hub_on_loopback(monkeypatch, cache) as server:
        server.add("acme/mini", decoder)
        with pytest.raises(ModelError, match=r"cannot be kept in the cache .*Not a directory.* HF_HOME"):
            resolve_base("acme/mini")
        cache.unlink()
        monkeypatch.setattr("huggingface_hub.file_download.http_get", full)
        with pytest.raises(ResourceError, match=r"cannot be kept in the cache .*No space left on device.* HF_HOME"):
            resolve_base("acme/mini")


def test_certificates_that_are_not_there_or_not_known_are_told_with_the_variable_that_helps(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def asked(*_: object, **__: object) -> None:
        raise said

    said: Exception = FileNotFoundError(errno.ENOENT, "No such file or directory")  # as ssl says it, without a name
    with hub_on_loopback(monkeypatch, cache):
        monkeypatch.setattr("huggingface_hub.HfApi.model_info", asked)
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "company.pem"))
        with pytest.raises(ModelError, match=r"SSL_CERT_FILE names '.*company\.pem', which is not there"):
            resolve_base("acme/mini")
        said = ConnectionError("[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: self-signed certificate in certificate chain")
        with pytest.raises(ModelError, match=r"signed by nobody who is known here.* SSL_CERT_FILE"):
            resolve_base("acme/mini")


def test_the_merges_of_a_tokenizer_of_python_code_are_fetched(
    cache: Path, decoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PhoBERT and BERTweet could not be loaded without them."""
    shutil.copytree(decoder, tmp_path / "pho")
    (tmp_path / "pho" / "bpe.codes").write_text("a b 1\n")
    with hub_on_loopback(monkeypatch, cache) as server:
        server.add("acme/pho", tmp_path / "pho")
        assert (Path(resolve_base("acme/pho").location) / "bpe.codes").is_file()


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_pointers_of_git_lfs_are_told_as_what_they_are(name: str, decoder: Path, tmp_path: Path, home: Path) -> None:
    shutil.copytree(decoder, tmp_path / "clone")
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'a' * 64}\nsize 133466304\n"
    (tmp_path / "clone" / "pytorch_model.bin").write_text(pointer)  # one that nothing loads may stay
    assert load_config(resolve_base(str(tmp_path / "clone"))).num_hidden_layers == 2
    (tmp_path / "clone" / name).write_text(pointer)
    with pytest.raises(ModelError, match=rf"{re.escape(name)} is a pointer of git-lfs.*git lfs pull"):
        load_config(resolve_base(str(tmp_path / "clone")))


def test_a_field_that_stands_twice_in_a_models_configuration_is_read_as_transformers_reads_it(
    decoder: Path, tmp_path: Path, home: Path
) -> None:
    """It was refused, with the advice to remove the folder."""
    shutil.copytree(decoder, tmp_path / "twice")
    config = tmp_path / "twice" / "config.json"
    config.write_text(config.read_text().replace("{", '{"num_hidden_layers": 9, ', 1))
    model = load_weights(resolve_base(str(tmp_path / "twice")))
    assert model.config.num_hidden_layers == hub.read_own(config)["num_hidden_layers"] == 2


def test_of_two_commands_that_make_one_base_model_the_second_waits(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It removed the files that the first was writing."""
    made: list[Path] = []

    def slowly(texts: Sequence[str], folder: Path, *shape: int) -> None:
        made.append(folder)
        (folder / "half").write_text("written")
        time.sleep(0.5)
        build_decoder(texts, folder, *shape)
        assert (folder / "half").read_text() == "written"

    monkeypatch.setattr("components.towers.base_models.build_decoder", slowly)
    with ThreadPoolExecutor(2) as both:
        found = list(both.map(lambda _: resolve_base("decoder-64x2", TEXTS), range(2)))
    assert len(made) == 1 and found[0] == found[1]


def test_a_tower_on_a_folder_that_is_not_here_asks_no_hub_for_its_name(
    cache: Path, decoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from components.towers.config import TowerConfig
    from components.towers.two_towers import TwoTowers

    shutil.copytree(decoder, tmp_path / "there" / "models" / "mine")
    monkeypatch.chdir(tmp_path / "there")
    with hub_on_loopback(monkeypatch, cache) as server:
        contract = TwoTowers(resolve_base("models/mine"), TowerConfig(base_model="models/mine")).contracts["document"]
        assert _base_of(tmp_path, contract).digest == contract.base_digest
        monkeypatch.chdir(tmp_path)
        server.add("models/mine", decoder)  # somebody else's
        with pytest.raises(ArtifactError, match="was made on the folder 'models/mine', which is not below the current folder"):
            _base_of(tmp_path, contract)
        assert not server.requests


def test_a_silent_hub_ends_in_a_sentence_or_in_the_cache(
    cache: Path, decoder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(hub, "ANSWER_SECONDS", 0.2)
    with hub_on_loopback(monkeypatch, cache) as server:
        server.delay = 2.0
        with pytest.raises(ModelError, match="cannot be reached"):
            resolve_base("acme/mini")
        assert len(server.requests) == 1  # one try, not five
        commit = keep_in_cache(cache, "acme/mini", decoder)
        assert resolve_base("acme/mini").revision == commit
    assert f"does not answer; 'acme/mini' is taken from the cache at commit {commit[:12]}" in capsys.readouterr().out


def test_a_hub_that_refuses_is_not_answered_from_the_cache(cache: Path, decoder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keep_in_cache(cache, "acme/mini", decoder)
    with hub_on_loopback(monkeypatch, cache) as server:
        server.status["acme/mini"] = (403, "GatedRepo")
        with pytest.raises(ModelError, match="gated"):
            resolve_base("acme/mini")


def test_offline_without_the_model_names_the_cache_that_was_searched(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_cache(monkeypatch, cache)
    with pytest.raises(ModelError) as error:
        resolve_base("acme/mini")
    assert str(cache) in str(error.value) and "scalingnote models pull" in str(error.value)


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"model.gguf": b"GGUF", "README.md": b"x"}, "no config.json.*GGUF"),
        ({"adapter_config.json": b"{}", "adapter_model.safetensors": b"x"}, "is an adapter, not a model"),
        ({"config.json": b'{"model_type": "bert"}', "tokenizer.json": b"{}"}, "lacks weights"),
        ({"config.json": b'{"model_type": "vit"}', "model.safetensors": b"x"}, "lacks a tokenizer .* as a model of images or sounds does"),
        (
            {"config.json": b'{"model_type": "bert"}', "tokenizer.json": b"{}", "model.safetensors.index.json": b'{"weight_map": ["x"]}'},
            "does not say in which files the weights are",
        ),
    ],
)
def test_repositories_that_hold_no_model_are_named_for_what_they_are(
    files: dict[str, bytes], words: str, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "repository"
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    with hub_on_loopback(monkeypatch, cache) as server:
        server.add("acme/thing", folder)
        with pytest.raises(ModelError, match=words):
            resolve_base("acme/thing")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"architectures": ["BertForSequenceClassification"]}, "cross-encoder or classifier"),
        ({"model_type": "vit", "architectures": ["ViTModel"], "vocab_size": None}, "does not read text"),
        ({"model_type": "newformer", "auto_map": {"AutoConfig": "configuration_new.NewConfig"}}, "brings Python code of its own"),
        ({"model_type": "newformer"}, "newformer"),
        ({"is_encoder_decoder": True}, "has an encoder and a decoder"),
        ({"logit_scale_init_value": 2.6592}, "is two models, of texts and of other things"),
    ],
)
def test_models_that_cannot_encode_texts_here_are_refused(changes: dict[str, object], words: str, tmp_path: Path, home: Path) -> None:
    build_tiny_encoder(TEXTS, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **changes}))
    with pytest.raises(ModelError, match=words) as error:
        load_config(resolve_base(str(tmp_path)))
    assert "\n" not in str(error.value)


def test_weights_that_are_cut_off_are_refused_in_words(tmp_path: Path, home: Path) -> None:
    from components.distillation.student.initial import load_small_encoder
    from components.towers.two_towers import load_decoder

    build_tiny_encoder(TEXTS, tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    base = resolve_base(str(tmp_path))
    for load in (load_small_encoder, lambda base: load_decoder(base, "float32", "bidirectional")):
        with pytest.raises(ModelError, match="cannot be loaded"):
            load(base)


@pytest.mark.parametrize("name", ["a/b/c", "./no/such/model", "/no/such", "~nosuchuser/model", "a b", "org/mo..del"])
def test_a_name_of_neither_form_says_both_forms(name: str, home: Path) -> None:
    with pytest.raises(ModelError, match="does not exist, and the name does not look like one of a model hub"):
        resolve_base(name)


@pytest.mark.parametrize("name", ["acme/mini@main", "gpt2@v1.0", "acme/mini@refs/pr/1", f"acme/mini-0.6B@{'a' * 40}"])
def test_a_revision_behind_the_name_is_told_where_it_belongs(name: str, home: Path) -> None:
    whole, _, revision = name.partition("@")
    with pytest.raises(ModelError, match=f"give '{whole}', and '{revision}' as towers.revision"):
        resolve_base(name)


def test_a_file_in_the_place_of_a_model_folder_is_called_one(home: Path, tmp_path: Path) -> None:
    (file := tmp_path / "model.safetensors").touch()
    with pytest.raises(ModelError, match=r"is a file\. Name the folder that holds the model"):
        resolve_base(str(file))


def test_a_changed_post_processor_is_another_tokenizer_although_the_vocabulary_is_the_same(decoder: Path, tmp_path: Path) -> None:
    from tokenizers.processors import TemplateProcessing
    from transformers import AutoTokenizer

    from components.artifacts import digest_of
    from components.towers.contract import tokenizer_digest

    before, after = (AutoTokenizer.from_pretrained(decoder) for _ in range(2))
    assert tokenizer_digest(before) == tokenizer_digest(after)
    before(["some text"], truncation=True, max_length=4, padding=True)  # how it is used is no part of what it is
    assert tokenizer_digest(before) == tokenizer_digest(after)
    after.backend_tokenizer.post_processor = TemplateProcessing(single="$A [SEP]:0 [SEP]:0", special_tokens=[("[SEP]", 2)])
    assert digest_of(before.get_vocab()) == digest_of(after.get_vocab())
    assert tokenizer_digest(before) != tokenizer_digest(after)


def test_a_tower_is_refused_when_its_tokenizer_has_changed_and_an_old_contract_is_still_read(
    decoder: Path, tmp_path: Path, home: Path
) -> None:
    from transformers import AutoTokenizer

    from components.artifacts import digest_of
    from components.towers.contract import is_tokenizer_of, tokenizer_digest
    from tests.encoders import contract_of

    tokenizer = AutoTokenizer.from_pretrained(decoder)
    today = contract_of("document", "x").model_copy(update={"tokenizer_digest": tokenizer_digest(tokenizer)})
    old = today.model_copy(update={"tokenizer_digest": digest_of(tokenizer.get_vocab())})
    assert is_tokenizer_of(today, tokenizer) and is_tokenizer_of(old, tokenizer)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<new>"]})
    assert not is_tokenizer_of(today, tokenizer) and not is_tokenizer_of(old, tokenizer)


def test_verify_finds_a_blob_whose_content_is_not_what_its_name_says(cache: Path, decoder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keep_in_cache(cache, "acme/mini", decoder)
    use_cache(monkeypatch, cache)
    model = hub.find("acme/mini")
    assert hub.verify(model.folder) == []
    weights = (model.folder / "model.safetensors").resolve()
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    assert len(found := hub.verify(model.folder)) == 1 and "model.safetensors" in found[0]


def _index(*shards: str) -> bytes:
    return json.dumps({"weight_map": {f"layer.{number}": shard for number, shard in enumerate(shards)}}).encode()


def _kept(cache: Path, commit: str, files: dict[str, bytes], tmp_path: Path) -> Path:
    """A model of these files, which nobody loads, at a commit of the cache."""
    folder = tmp_path / commit
    for name, content in {"config.json": b"{}", "tokenizer.json": b"{}", **files}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    keep_in_cache(cache, "acme/mini", folder, commit)
    return folder


@pytest.mark.parametrize(
    "files",
    [
        {"model.safetensors.index.json": _index("pytorch_model-1.safetensors"), "pytorch_model-1.safetensors": b""},
        {"model.safetensors.index.json": _index("parts/model-1.safetensors"), "parts/model-1.safetensors": b""},
        {"model.fp16.safetensors": b"of another form", "pytorch_model.bin": b""},
        {"pytorch_model.bin.index.json": _index("weights-1.bin"), "weights-1.bin": b""},
    ],
)
def test_the_weights_that_are_loaded_decide_the_digest_whatever_their_files_are_called(
    files: dict[str, bytes], cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_cache(monkeypatch, cache)
    for commit, content in (("a" * 40, b"these"), ("b" * 40, b"those"), ("c" * 40, b"these")):
        _kept(cache, commit, {name: given or content for name, given in files.items()}, tmp_path)
    these, those, again = (hub.find("acme/mini", letter * 40).digest for letter in "abc")
    assert these == again != those


def test_one_file_of_weights_is_enough_beside_an_index_of_another_form(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_cache(monkeypatch, cache)
    _kept(cache, "a" * 40, {"model.safetensors": b"x", "pytorch_model.bin.index.json": _index("pytorch_model-1.bin")}, tmp_path)
    _kept(cache, "b" * 40, {"model.safetensors": b"x"}, tmp_path)
    assert hub.find("acme/mini", "a" * 40).digest == hub.find("acme/mini", "b" * 40).digest


@pytest.mark.parametrize(
    ("index", "words"),
    [
        (b"{", "is not valid JSON .*Fetch the model again"),
        (_index(), "does not say in which files"),
        (_index("../../other/model.safetensors"), "does not say in which files"),
        (_index("/etc/passwd"), "does not say in which files"),
        (_index(""), "does not say in which files"),
    ],
)
def test_an_index_that_names_no_files_of_its_own_folder_is_refused(
    index: bytes, words: str, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_cache(monkeypatch, cache)
    _kept(cache, "a" * 40, {"model.safetensors.index.json": index}, tmp_path)
    with pytest.raises(ModelError, match=words):
        hub.find("acme/mini", "a" * 40)


def test_what_other_programs_keep_in_hidden_folders_makes_no_other_model(decoder: Path, tmp_path: Path, home: Path) -> None:
    from components.towers.base_models import folder_digest

    folder = Path(shutil.copytree(decoder, tmp_path / "local"))
    for hidden in (".cache/huggingface/download/config.json.metadata", ".git/HEAD", ".DS_Store"):  # times of downloads, what git did last
        (folder / hidden).parent.mkdir(parents=True, exist_ok=True)
        (folder / hidden).write_text("commit\netag\n1764400000.5\n")
    assert folder_digest(folder) == folder_digest(decoder)
    (folder / "shown").mkdir()
    (folder / "shown" / "weights").touch()
    assert folder_digest(folder) != folder_digest(decoder)


def test_a_tower_that_was_made_when_hidden_folders_counted_still_finds_its_folder(decoder: Path, tmp_path: Path, home: Path) -> None:
    folder = Path(shutil.copytree(decoder, tmp_path / "downloaded"))
    (folder / ".cache").mkdir()
    (folder / ".cache/config.json.metadata").write_text("1764400000.5")
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    former = digest_of({path.relative_to(folder).as_posix(): file_sha256(path) for path in files})
    contract = EncodingContract.model_validate(
        {
            "role": "document", "base_model": str(folder), "base_digest": former, "adapter_digest": None, "tokenizer_digest": "t",
            "pooling": "last", "normalize": True, "prompt": "", "append_eos": True, "max_length": 8, "dimension": 4,
        }
    )  # fmt: skip
    assert _base_of(tmp_path, contract).digest == resolve_base(str(folder)).digest != former
    (folder / "config.json").write_text((folder / "config.json").read_text() + " ")
    with pytest.raises(ArtifactError, match="Restore the base model"):
        _base_of(tmp_path, contract)


def test_a_tower_that_was_made_when_files_counted_by_their_names_still_finds_its_model_of_a_hub(
    cache: Path, decoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(decoder, tmp_path / "model"))
    (folder / "model.safetensors").rename(folder / "pytorch_model-1.safetensors")
    (folder / "model.safetensors.index.json").write_bytes(_index("pytorch_model-1.safetensors"))
    keep_in_cache(cache, "acme/mini", folder, "a" * 40)
    use_cache(monkeypatch, cache)
    for name in ("acme/mini", "acme/mini@1"):
        base = resolve_base(name, revision="a" * 40)
        named = digest_of({"config.json": file_sha256(Path(base.location) / "config.json")})
        former = named if base.layers is None else digest_of([named, list(base.layers)])
        assert base.digest != former
        given = {"role": "document", "base_model": name, "base_revision": "a" * 40, "adapter_digest": None, "tokenizer_digest": "t"}
        given |= {"pooling": "mean", "normalize": True, "prompt": "", "append_eos": False, "max_length": 8, "dimension": 64}
        assert _base_of(tmp_path, EncodingContract(**given, base_digest=former)) == base
        with pytest.raises(ArtifactError, match="that model is now"):
            _base_of(tmp_path, EncodingContract(**given, base_digest="0" * 64))
