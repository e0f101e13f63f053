"""The command `models`: before the training day, from a hub on loopback."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from components.towers.base_models import build_decoder, build_tiny_encoder
from flows.cli.main import main
from tests.hub_world import hub_on_loopback, use_cache
from tests.training.tiny_world import documents


@pytest.fixture
def models(tmp_path: Path) -> tuple[Path, Path]:
    decoder, encoder = tmp_path / "decoder", tmp_path / "encoder"
    for folder in (decoder, encoder):
        folder.mkdir()
    build_decoder(documents(), decoder, 64, 2)
    build_tiny_encoder(documents(), encoder)
    return decoder, encoder


def test_pull_fetches_the_models_of_a_configuration_and_verify_and_list_find_them(
    models: tuple[Path, Path], home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = tmp_path / "cache"
    chosen = ["--preset", "gpu", "--set", "towers.base_model=acme/llm-0.6B", "--set", "distillation.student=acme/small-v1.5"]
    with hub_on_loopback(monkeypatch, cache) as server:
        commits = [server.add("acme/llm-0.6B", models[0]), server.add("acme/small-v1.5", models[1])]
        assert main(["models", "pull", *chosen, "--json"]) == 0
        pulled = json.loads(capsys.readouterr().out)["models"]
        assert [(m["model"], m["commit"]) for m in pulled] == list(zip(["acme/llm-0.6B", "acme/small-v1.5"], commits, strict=True))
    use_cache(monkeypatch, cache)  # without a network from here on
    assert main(["models", "verify", *chosen]) == 0
    assert commits[0][:12] in capsys.readouterr().out
    beside = ["--set", "towers.companion.base_model=acme/small-v1.5"]  # the student's encoder: told, and hashed, once
    assert main(["models", "verify", *chosen, *beside, "--json"]) == 0
    assert [m["commit"] for m in json.loads(capsys.readouterr().out)["models"]] == commits
    assert main(["models", "list", "--json"]) == 0
    assert [m["commit"] for m in json.loads(capsys.readouterr().out)["models"]] == commits
    for words, missing in ((chosen[:4], ["sentence-transformers/all-MiniLM-L6-v2"]), (["acme/llm-0.6B", "acme/other"], ["acme/other"])):
        assert main(["models", "list", *words, "--json"]) == 0  # it listed all, whatever was asked for
        listed = json.loads(capsys.readouterr().out)
        assert [m["commit"] for m in listed["models"]] == commits[:1] and listed["missing"] == missing
    assert main(["models", "list", "acme/other", "tiny-decoder"]) == 0
    assert "acme/other: not in the cache" in (said := capsys.readouterr().out) and "tiny-decoder: no model of a hub" in said
    weights = next(cache.glob("models--acme--llm*/snapshots/*/model.safetensors")).resolve()
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    assert main(["models", "verify", *chosen]) == 1
    assert "model.safetensors: its content has the sha256" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["pull", "acme/none"], 4, "is not on http"),
        (["pull", "acme/none@v2"], 4, "is not on http"),
        (["pull", "a/b/c"], 4, "does not exist"),
        (["pull", "@v2"], 2, "NAME or NAME@REVISION"),
        (["verify", "acme/none@"], 2, "NAME or NAME@REVISION"),
        (["verify", "tiny-decoder@v2"], 4, "is no model of a hub"),
        (["list", "--preset", "nosuch"], 2, "nosuch"),
        (["pull", "acme/none", "--preset", "gpu"], 2, "not both: --preset would do nothing"),
        (["list", "acme/none", "--set", "towers.steps=1", "--data", "x"], 2, "not both: --data, --set would do nothing"),
    ],
)
def test_a_model_that_is_not_there_is_said_in_words(
    arguments: list[str],
    status: int,
    words: str,
    home: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with hub_on_loopback(monkeypatch, tmp_path / "cache"):
        assert main(["models", *arguments]) == status
    assert words in capsys.readouterr().err
