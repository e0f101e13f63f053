"""SCALINGNOTE_PRECISION: the number format that stands in place of the automatic choice."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from components import settings
from components.artifacts import Artifact
from components.errors import ConfigError, ModelError
from components.evaluation.speed import describe_machine
from components.towers.contract import require_finite
from components.towers.device import pick_dtype
from components.towers.encoder import load_tower
from components.tracking.provenance import collect_provenance
from flows.runner import Step


def never(_: Path) -> Artifact:
    raise AssertionError("no step is made here")


@pytest.mark.parametrize(("name", "dtype"), [("float32", torch.float32), ("bfloat16", torch.bfloat16)])
def test_the_variable_decides_what_auto_means(name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(settings.PRECISION_VARIABLE, name)
    assert pick_dtype("auto") is dtype
    assert describe_machine().endswith(name)
    assert collect_provenance().machine["precision"] == name


def test_a_setting_that_names_a_format_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(settings.PRECISION_VARIABLE, "float32")
    assert pick_dtype("bfloat16") is torch.bfloat16


@pytest.mark.parametrize(("there", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_without_it_the_machine_chooses_and_nothing_is_recorded(there: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(settings.PRECISION_VARIABLE, "")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: there)
    assert pick_dtype("auto") is dtype
    assert "precision" not in collect_provenance().machine


@pytest.mark.parametrize("value", ["fp32", "Float32", " float32", "auto", "16"])
def test_any_other_word_is_refused(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(settings.PRECISION_VARIABLE, value)
    with pytest.raises(ConfigError, match="allowed: float32 or bfloat16"):
        pick_dtype("auto")


def test_what_one_format_made_is_not_taken_for_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    folders: dict[str, list[Path]] = {"load_tower": [], "never": []}
    for value in ("", "float32", "bfloat16"):
        monkeypatch.setenv(settings.PRECISION_VARIABLE, value)
        for make in (load_tower, never):
            folders[make.__name__].append(Step("train_towers", make).folder)  # type: ignore[arg-type]  # only its code is looked at
    assert len(set(folders["load_tower"])) == 3
    assert len(set(folders["never"])) == 1  # a step that reaches no number format has one result


def test_what_a_number_format_cannot_hold_is_told_with_the_word_that_an_encoder_opened_again_obeys() -> None:
    with pytest.raises(ModelError, match=r"not finite for 1 of 2 texts.* set SCALINGNOTE_PRECISION=float32 in the environment"):
        require_finite(np.array([[1.0, 0.0], [np.nan, 0.0]], np.float32), "acme/large")
