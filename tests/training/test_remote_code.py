"""Models of a hub that bring Python code of their own: refused, unless it is asked for and pinned by a commit; then known by its bytes."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from components.artifacts import open_artifact
from components.distillation.config import DistillationConfig
from components.distillation.student import check_before_towers
from components.distillation.student.initial import Source, bare_student
from components.errors import ArtifactError, ModelError
from components.towers import hub
from components.towers.base_models import build_decoder, resolve_base, tower_base
from components.towers.config import TowerConfig
from components.towers.contract import load_contract
from components.towers.encoder import load_tower
from components.towers.train import train_towers
from flows.cli.main import main
from tests.hub_world import hub_on_loopback, keep_in_cache, use_cache
from tests.training.tiny_world import documents, pairs, queries

NAME, COMMIT = "acme/own-0.1B", "a" * 40
CONFIGURATION = """
from transformers import Qwen3Config


class OwnConfig(Qwen3Config):
    model_type = "acme_own"
"""
MODEL = """
from transformers import Qwen3Model

from .configuration_own import OwnConfig
from .norms_own import SHIFT


class OwnModel(Qwen3Model):
    config_class = OwnConfig

    def forward(self, *given, **named):
        found = super().forward(*given, **named)
        found.last_hidden_state = found.last_hidden_state + SHIFT
        return found
"""


@pytest.fixture
def own(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A decoder whose class is in a file beside its weights, as on a hub; its modules are kept in a folder of this test."""
    from transformers import dynamic_module_utils

    folder = tmp_path / "own"
    folder.mkdir()
    build_decoder([*documents(), *queries()], folder, 64, 2)
    config = json.loads((folder / "config.json").read_text())
    named = {"AutoConfig": "configuration_own.OwnConfig", "AutoModel": "modeling_own.OwnModel"}
    config |= {"model_type": "acme_own", "architectures": ["OwnModel"], "auto_map": named}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "configuration_own.py").write_text(CONFIGURATION)
    (folder / "modeling_own.py").write_text(MODEL)
    (folder / "norms_own.py").write_text("SHIFT = 0.5\n")
    (folder / "never_named.py").write_text("raise SystemExit('this file has nothing to do with the model')\n")
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield folder
    for name in [name for name in sys.modules if name.split(".")[0] == "transformers_modules"]:
        del sys.modules[name]


def settings(**changes: object) -> TowerConfig:
    given = {"base_model": NAME, "revision": COMMIT, "trust_remote_code": True, "steps": 4, "batch_size": 8, "lora_rank": 2}
    return TowerConfig.model_validate({**given, "precision": "float32", "max_mean_cosine": 1.0, "min_effective_rank": 1.0, **changes})


def test_code_is_refused_unless_it_was_asked_for(own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keep_in_cache(tmp_path / "cache", NAME, own, COMMIT)
    use_cache(monkeypatch, tmp_path / "cache")
    with pytest.raises(ModelError, match=r"code of its own, which runs here for a teacher alone, by towers\.trust_remote_code"):
        train_towers(pairs(), settings(trust_remote_code=False), {}, tmp_path / "towers")
    assert not (tmp_path / "modules").exists()


@pytest.mark.parametrize("revision", [None, "main", "v1.0", COMMIT[:12], COMMIT + "0", COMMIT.upper()])
def test_code_runs_of_a_full_commit_alone(revision: str | None) -> None:
    with pytest.raises(ValidationError, match="full commit"):
        settings(revision=revision)


def test_a_model_that_would_carry_the_code_along_is_refused() -> None:
    with pytest.raises(ValidationError, match="lora or none"):
        settings(training="full")


@pytest.mark.parametrize("training", ["lora", "none"])
def test_towers_of_such_a_model_are_trained_and_load_the_same_code(
    training: str, own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep_in_cache(tmp_path / "cache", NAME, own, COMMIT)
    use_cache(monkeypatch, tmp_path / "cache")
    base = tower_base(settings())
    assert base.code is not None and base.revision == COMMIT
    (tmp_path / "towers").mkdir()
    train_towers(pairs(), settings(training=training), {"dataset": "d"}, tmp_path / "towers")
    tower = tmp_path / "towers" / "document_tower"
    assert load_contract(tower)[0].base_code == base.code
    assert open_artifact(tower).attributes["base_code"] == base.code
    encoder = load_tower(tower, "float32")
    assert type(encoder._model).__name__ == "OwnModel"
    assert np.isfinite(encoder.encode(documents()[:3])).all()


def test_what_is_asked_before_the_towers_can_be_asked_of_such_a_model(own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """More than once in a process: a retraining looks at its teacher several times before anything is trained."""
    keep_in_cache(tmp_path / "cache", NAME, own, COMMIT)
    use_cache(monkeypatch, tmp_path / "cache")
    for _ in range(2):
        check_before_towers(DistillationConfig(student="tiny-encoder", max_query_length=24), settings())


def test_a_student_that_would_need_the_code_is_refused_before_the_towers(
    own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep_in_cache(tmp_path / "cache", NAME, own, COMMIT)
    use_cache(monkeypatch, tmp_path / "cache")
    (tmp_path / "towers").mkdir()
    train_towers(pairs(), settings(training="none"), {"dataset": "d"}, tmp_path / "towers")
    layered = DistillationConfig(student="teacher", precision="float32", max_query_length=24)
    static = layered.model_copy(update={"form": "static", "layers": None})
    tower = tmp_path / "towers" / "query_tower"
    for use in (lambda: check_before_towers(layered, settings()), lambda: bare_student(Source(layered, queries(), tower))):
        with pytest.raises(ModelError, match=r"run by Python code of its makers .OwnModel.*Name an encoder"):
            use()
    check_before_towers(static, settings())
    assert np.isfinite(bare_student(Source(static, queries(), tower)).encode(queries()[:2])).all()


def test_a_change_of_the_code_alone_is_another_model(own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "cache"
    keep_in_cache(cache, NAME, own, COMMIT)
    use_cache(monkeypatch, cache)
    (tmp_path / "towers").mkdir()
    train_towers(pairs(), settings(), {}, tmp_path / "towers")
    before = tower_base(settings())
    for file, same in (("never_named.py", True), ("norms_own.py", False)):
        with (own / file).open("a") as handle:
            handle.write("# changed\n")
        shutil.rmtree(cache)
        keep_in_cache(cache, NAME, own, COMMIT)
        use_cache(monkeypatch, cache)
        after = tower_base(settings())
        assert ((after.code, after.digest) == (before.code, before.digest)) is same
    with pytest.raises(ArtifactError, match="but that model is now"):
        load_tower(tmp_path / "towers" / "query_tower")


def test_the_code_is_fetched_from_the_hub_with_the_model(own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with hub_on_loopback(monkeypatch, tmp_path / "cache") as server:
        commit = server.add(NAME, own)
        assert resolve_base(NAME, revision=commit).code is None
        base = resolve_base(NAME, revision=commit, code=True)
        assert base.code is not None and (Path(base.location) / "norms_own.py").is_file()
        with pytest.raises(ModelError, match="full commit; the revision is 'main'"):
            resolve_base(NAME, code=True)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"AutoModel": "other/repository--modeling.OwnModel"}, "takes code from another repository"),
        ({"AutoModel": "missing.OwnModel"}, "names the code missing.py, which it does not have"),
    ],
)
def test_code_that_the_commit_does_not_hold_is_refused(
    change: dict[str, str], words: str, own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = json.loads((own / "config.json").read_text())
    config["auto_map"] |= change
    (own / "config.json").write_text(json.dumps(config))
    with hub_on_loopback(monkeypatch, tmp_path / "cache") as server:
        commit = server.add(NAME, own)
        with pytest.raises(ModelError, match=words):
            resolve_base(NAME, revision=commit, code=True)


@pytest.mark.parametrize(("named", "words"), [({"AutoModel": 1}, "must name classes by text; found 1"), (["a", {}], "found {}")])
def test_a_configuration_that_names_no_classes_is_refused_in_words(
    named: object, words: str, own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (own / "config.json").write_text(json.dumps({**json.loads((own / "config.json").read_text()), "auto_map": named}))
    keep_in_cache(tmp_path / "cache", NAME, own, COMMIT)
    use_cache(monkeypatch, tmp_path / "cache")
    with pytest.raises(ModelError, match=f"config.json: auto_map {words}" if words.startswith("must") else words):
        resolve_base(NAME, revision=COMMIT, code=True)


@pytest.mark.parametrize("content", [b"[]", b'{"auto_map": null}', b'{"auto_map": {"AutoTokenizer": [null, null]}}'])
def test_a_repository_without_classes_of_its_own_brings_no_code(
    content: bytes, own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (own / "config.json").write_bytes(content)
    keep_in_cache(tmp_path / "cache", NAME, own, COMMIT)
    use_cache(monkeypatch, tmp_path / "cache")
    assert hub.find(NAME, COMMIT, code=True).code is None


def test_code_that_fails_is_said_in_a_sentence(own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (own / "norms_own.py").write_text("raise RuntimeError('no licence for today')\n")
    keep_in_cache(tmp_path / "cache", NAME, own, COMMIT)
    use_cache(monkeypatch, tmp_path / "cache")
    with pytest.raises(ModelError, match=r"'acme/own-0\.1B' cannot be loaded: no licence for today"):
        train_towers(pairs(), settings(), {}, tmp_path / "towers")


def test_the_command_line_says_what_is_missing(
    own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    keep_in_cache(tmp_path / "cache", NAME, own, COMMIT)
    use_cache(monkeypatch, tmp_path / "cache")
    chosen = ["--preset", "smoke", "--set", f"towers.base_model={NAME}"]
    assert main(["retrain", *chosen, "--set", "towers.trust_remote_code=true"]) == 2
    assert "full commit" in capsys.readouterr().err
    pinned = [*chosen, "--set", "towers.trust_remote_code=true", "--set", f"towers.revision={COMMIT}"]
    assert main(["models", "pull", *pinned, "--set", "distillation.student=tiny-encoder"]) == 0
