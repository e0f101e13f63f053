"""References of a trace: models, indexes, documents and answers, and what is said about those that name nothing."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from components.errors import ArtifactError, DataError, ModelError, PromotionError
from components.lineage.graph import follow
from components.promotion.approval import approve
from components.promotion.verification import verify_folder
from components.release.open import load_manifest, open_pinned, resolve, verified_index
from components.serving.answer_log import SETTING, Served, log_answers, trace_answer
from components.serving.loader import open_release
from components.serving.retriever import Hit
from tests.unit.promotion_world import NAME, MemoryTracking, World
from tests.unit.trace_world import champion_trace

RELEASE = f"{NAME}-release"


@pytest.fixture
def tracking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MemoryTracking:
    monkeypatch.setenv("SCALINGNOTE_HOME", str(tmp_path / "home"))
    return champion_trace(tmp_path, monkeypatch)[1]


def titles(ref: str) -> list[str]:
    return [child.title for child in follow(NAME, ref).root.children]


def test_an_index_is_traced_to_its_parents_and_to_the_releases_that_use_it(tracking: MemoryTracking) -> None:
    found = follow(NAME, "index/1")
    assert (found.model, found.version, found.root.title) == (f"{NAME}-index", 1, f"{NAME}-index/1")
    assert "vectors: corpus" in titles("index/1")
    assert {"data: toy", "code and machine", "flow run", "configuration", "used in"} <= set(titles("index/1"))
    text = found.text()
    assert f"{NAME}-candidate/1" in text and "approved_by: Ada" in text and "record 1: promote" in text


def test_a_model_is_named_in_full_or_by_its_part(tracking: MemoryTracking) -> None:
    full, short = follow("another", f"model/{NAME}-query-encoder/1"), follow(NAME, "query-encoder/1")
    assert full.root == short.root and full.name == NAME
    assert "base model: query_encoder" in titles("query-encoder/1")
    assert follow("another", f"model/{RELEASE}/1").root == follow(NAME, "release/1").root


def test_a_model_of_two_candidates_names_both_and_no_other(tracking: MemoryTracking, tmp_path: Path) -> None:
    first = tracking.models[f"{NAME}-candidate"][0]
    tracking.add(first.name, tracking.folders[first.name, 1], first.tags["scalingnote.digest"])
    World(tracking, tmp_path / "more").candidate()
    used = next(child for child in follow(NAME, "index/1").root.children if child.title == "used in")
    assert [child.title for child in used.children] == [f"{NAME}-candidate/1", f"{NAME}-candidate/2"]


@pytest.mark.parametrize(("model", "tag"), [("candidate", "scalingnote.parent.index"), ("index", "scalingnote.digest")])
def test_a_tag_that_somebody_changed_hides_no_use_of_a_model(tracking: MemoryTracking, model: str, tag: str) -> None:
    """Whoever trains may set tags of candidates: a release seemed to be made without a model that it pins."""
    for of, key in ((f"{NAME}-candidate", "scalingnote.parent.index"), (f"{NAME}-index", "scalingnote.digest")):
        tracking.models[of][0].tags[key] = tracking.models[f"{NAME}-index"][0].tags["scalingnote.digest"]  # as they are registered
    tracking.models[f"{NAME}-{model}"][0].tags[tag] = "0" * 64
    text = follow(NAME, "index/1").text()
    assert f"{NAME}-candidate/1" in text and "record 1: promote" in text and "no candidate pins it" not in text


@pytest.mark.parametrize(
    ("ref", "error", "said"),
    [
        ("index/9", ModelError, "retriever-index/9 does not exist; its versions: 1"),
        ("index/latest", PromotionError, "'index/latest' names no version"),
        ("model/nothing/1", ModelError, "there is no such model"),
        ("model/other-query-encoder/1", ModelError, "there is no such model"),
        ("candidate/9", PromotionError, "candidate/9 does not exist"),
        ("document:d9", DataError, "no document 'd9'"),
        ("index/", PromotionError, "names no version"),
    ],
)
def test_what_names_nothing_is_said_in_words(tracking: MemoryTracking, ref: str, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=re.escape(said)):
        follow(NAME, ref)


def test_a_release_of_another_retriever_is_none_of_this_one(tracking: MemoryTracking) -> None:
    """Its answers were logged under the name in its manifest, whatever that is, and it was traced as if it were one of this retriever."""
    tracking.copy_version(f"{NAME}-candidate", 1, "other-candidate")
    for opens in (open_release, open_pinned, verified_index, follow, load_manifest):
        with pytest.raises(ArtifactError, match=f"belongs to the retriever '{NAME}', not to 'other'"):
            opens("other", "candidate/1")


@pytest.mark.parametrize("number", ["00001", "01", "+1", "1 ", " 1", "1.0", "\u0661"])
def test_a_version_has_one_name_in_every_command(number: str, tracking: MemoryTracking, tmp_path: Path) -> None:
    """Reports and scripts keep what was given: `verify candidate/00001` told of a version that nothing else names so."""
    for ref in (f"candidate/{number}", f"release/{number}"):
        with pytest.raises(PromotionError, match=r"does not exist|names no release"):
            resolve(NAME, ref)
        with pytest.raises(PromotionError, match=r"does not exist|names no release"):
            follow(NAME, ref)
    for ref in (f"index/{number}", f"model/{RELEASE}/{number}"):
        with pytest.raises(PromotionError, match="names no version"):
            follow(NAME, ref)
    for ref in (f"candidate/{number}", number):
        with pytest.raises(PromotionError, match="There is no candidate"):
            approve(NAME, ref, "Ada")
    assert not verify_folder(NAME, tmp_path, f"release/{number}")[0].ok


def test_a_document_may_have_an_id_like_a_reference(tracking: MemoryTracking) -> None:
    assert follow(NAME, "document:d2").root.details == follow(NAME, "d2").root.details
    with pytest.raises(DataError, match="no document 'index/1'"):
        follow(NAME, "document:index/1")


def answer(tracking: MemoryTracking, digest: str | None = None) -> str:
    known = tracking.models[RELEASE][0].tags["scalingnote.digest"]
    return log_answers(Served(NAME, RELEASE, 1, digest or known), ["heart"], [[Hit("d2", 0.5), Hit("d9", 0.4)]])[0]


def test_an_answer_is_traced_to_documents_and_release(tracking: MemoryTracking, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SETTING, "full")
    found = trace_answer(f"answer:{answer(tracking)}")
    assert (found.model, found.version, found.root.details["query"]) == (RELEASE, 1, "heart")
    documents, release = found.root.children
    assert documents.children[0].details == {"rank": 1, "score": 0.5, "row": 1, "shard": "vectors-00001.parquet", "content_hash": "h2"}
    assert documents.children[1].details["note"] == "the index of this release does not hold it"
    assert release.title == f"{RELEASE}/1" and "record 1: promote" in found.text()


def test_an_answer_says_whether_its_release_was_champion_then(tracking: MemoryTracking) -> None:
    assert trace_answer(answer(tracking)).root.details["standing"] == "champion by promotion record 1"
    tracking.records[0]["recorded_at"] = "2999-01-01T00:00:00+00:00"
    assert trace_answer(answer(tracking)).root.details["standing"] == "not the champion"


def test_an_answer_of_another_digest_than_the_release_has_is_refused(tracking: MemoryTracking) -> None:
    with pytest.raises(ArtifactError, match="with the digest eeeeeeeeeeee, which now has"):
        trace_answer(answer(tracking, "e" * 64))
