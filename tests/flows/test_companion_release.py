"""A release whose towers have a companion, through the commands that a person types: built, served, verified, traced, refreshed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from components.towers.contract import PROBE_TEXTS
from components.towers.encoder import TowerEncoder
from tests.flows.cli_world import SMALL, Built, assert_refused, at_home, done, require_valid_exports, scalingnote
from tests.flows.test_refresh import edit

pytestmark = [pytest.mark.server, pytest.mark.slow]
NAME = ("--name", "joined")
COMPANION = ("--set", "towers.companion.base_model=tiny-encoder", "--set", "towers.companion.steps=4")


@pytest.fixture(scope="module")
def story(built: Built, mlflow_template: Path) -> Iterator[dict[str, Any]]:
    edited = edit(Path(shutil.copytree(built.data, built.data.parent / "edited for joined" / "clinic")))
    read: dict[str, int] = {}
    encode = TowerEncoder.encode

    def counting(self: TowerEncoder, texts: Sequence[str], *given: Any, **named: Any) -> Any:
        if list(texts) != list(PROBE_TEXTS):
            part = "companion" if self.contract.base_model.startswith("tiny-encoder") else "tower"
            read[part] = read.get(part, 0) + (self.contract.role == "document") * len(texts)
        return encode(self, texts, *given, **named)

    with at_home(built.home, mlflow_template), pytest.MonkeyPatch.context() as patch:
        first = done("retrain", *SMALL, "--data", built.data, *NAME, *COMPANION)
        done("approve", "candidate/1", "--as", "ann", *NAME)
        done("promote", *NAME)
        patch.setattr(TowerEncoder, "encode", counting)
        refreshed = done("refresh-index", "--data", edited, *NAME)
        numbers = dict(read)
        weighed = done("retrain", *SMALL, "--data", built.data, *NAME, *COMPANION, "--set", "towers.companion.share=0.3")
        yield {"first": first, "refreshed": refreshed, "read": numbers, "weighed": weighed}


def test_it_is_verified_and_answers(story: dict[str, Any]) -> None:
    found = done("verify", "champion", *NAME)
    assert found["verified"] and len(found["checks"]) == 18
    hits = done("search", "heart stone", "-k", "5", *NAME)["hits"]
    assert len({hit["doc_id"] for hit in hits}) == 5


def test_its_lineage_names_both_base_models(story: dict[str, Any], tmp_path: Path) -> None:
    text = scalingnote("trace", "champion", *NAME).out
    for role in ("query-tower", "document-tower"):
        part = text.split(f"joined-{role}/1")[1].split("tower: ")[0]
        assert "base model: tiny-decoder" in part and "base model: tiny-encoder" in part
    require_valid_exports("champion", tmp_path / "exports", *NAME)
    bill = json.loads((tmp_path / "exports" / "cyclonedx").read_text())
    bases = {part["name"].rpartition("-")[0] for part in bill["components"] if part["name"].startswith("tiny-")}
    assert bases == {"tiny-decoder", "tiny-encoder"}


def test_a_refresh_encodes_what_changed_with_both(story: dict[str, Any]) -> None:
    refreshed = story["refreshed"]
    assert refreshed["release_type"] == "index-refresh"
    assert done("verify", "candidate/2", *NAME)["verified"]
    assert story["read"] == {"tower": 3, "companion": 3}  # two documents that are new and one that was changed


def test_what_the_companion_counts_is_changed_without_a_training(story: dict[str, Any]) -> None:
    assert not story["weighed"]["cached"]
    told = {step["step"]: step for step in done("status", "--why", *NAME)["steps"]}
    assert [reason["subject"] for reason in told["join_companion"]["reasons"]] == ["towers.companion.share"]
    assert "because towers.companion.share changed from 0.5 to 0.3" in told["encode_corpus"]["text"]
    assert "The last run took it from the cache" in told["train_companion"]["text"]
    assert "was found finished" in told["train_towers"]["text"]  # another retriever's, whose teacher has no companion


def test_what_it_cannot_be_is_said(story: dict[str, Any], tmp_path: Path) -> None:
    assert_refused(scalingnote("export", "--router", tmp_path / "pair", *NAME), 4, "companion", "--part student")
    assert not (tmp_path / "pair").exists()
    assert done("export", "--router", tmp_path / "student", "--part", "student", *NAME)
    assert_refused(scalingnote("refresh-query-tower", "--new-teacher", *NAME), 2, "companion", "towers.companion.base_model")
