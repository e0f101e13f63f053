"""The reviewer's report: everything in it, nothing from outside, readable without colour and without a script."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from components.artifacts import read_manifest
from components.errors import ArtifactError, PromotionError
from components.promotion.evidence import Compared, Dossier, Making
from components.promotion.evidence_report import render_report, write_report_page
from components.promotion.release import REPORT_PAGE, require_report
from components.promotion.verification import check_version
from components.tracking import labels
from tests.unit.evidence_world import EVIL, make_dossier
from tests.unit.promotion_world import NAME, MemoryTracking, World, make_evaluation, rewrite

SECTIONS = ("glance", "gates", "changes", "quality", "slices", "queries")
SECTIONS += ("agreement", "speed", "index", "contracts", "retention", "cost", "origin")
VOID = {"meta", "line", "circle", "path", "polyline"}


class _Page(HTMLParser):
    """Open tags, ids and attributes of a page; fails at a tag that closes another than the last."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.stack: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)
        assert not self.stack

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.stack.pop() == tag


@pytest.fixture
def dossier(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Dossier:
    return make_dossier(tmp_path, monkeypatch)


def test_every_section_is_there_and_nothing_comes_from_outside(dossier: Dossier) -> None:
    text = render_report(dossier)
    page = _Page(text)
    tags = {tag for tag, _ in page.seen}
    assert [attributes["id"] for tag, attributes in page.seen if tag == "h2"] == list(SECTIONS)
    assert not tags & {"script", "link", "img", "iframe", "object", "form"}
    assert not re.search(r"https?:|url\(|@import|javascript:", text)
    assert all(not name.startswith("on") and name not in ("src", "href") for _, attributes in page.seen for name in attributes)


def test_what_comes_from_the_data_is_escaped(dossier: Dossier) -> None:
    text = render_report(dossier)
    assert EVIL not in text
    assert text.count("&lt;script&gt;alert(&#x27;x&#x27;)&lt;/script&gt;") >= 5  # note, query, titles, contract


def test_plots_have_words_and_tables_have_headers(dossier: Dossier) -> None:
    page = _Page(render_report(dossier))
    drawings = [attributes for tag, attributes in page.seen if tag == "svg"]
    assert len(drawings) == 6  # metric deltas, baselines, slices, recall over latency, towers, student
    assert all(found["role"] == "img" and found["aria-label"] for found in drawings)
    assert [tag for tag, _ in page.seen].count("desc") == 6
    assert all(attributes.get("scope") in ("col", "row") for tag, attributes in page.seen if tag == "th")


def test_the_figures_stand_in_words(dossier: Dossier) -> None:
    text = render_report(dossier)
    for figure in (
        "+0.0250",  # the mean difference: (36 * 0.05 - 4 * 0.2) / 40
        "length=short",
        "p95 0.50, queries per second 2.00",
        "50.0%",  # agreement
        "1.00 MB",
        "90.0 s",
        "Taken over from earlier releases, and counted there: snapshot_data.",
        "1 warnings",
        "off the training distribution",
    ):
        assert figure in text or figure.capitalize() in text, figure


def test_a_first_release_and_an_old_report_say_what_is_missing(dossier: Dossier) -> None:
    old = replace(make_evaluation(), slices=None)
    bare = replace(dossier, champion=None, compared=Compared(missing="Nothing to compare."), evaluation=old, making=Making())
    text = render_report(bare)
    for words in ("This is a first release", "Nothing to compare.", "The evaluation has no slices", "no curve", "No time was recorded"):
        assert words in text, words
    _Page(text)


def test_a_champion_that_could_not_be_asked_is_compared_by_the_evaluations(dossier: Dossier) -> None:
    alone = replace(dossier, compared=Compared(missing="It could not be opened."))
    assert "made at different times" in render_report(alone)
    assert dossier.champion is not None
    other = replace(dossier.champion, evaluation=make_evaluation(judgements="j2"))
    text = render_report(replace(alone, champion=other))
    assert "cannot be compared query by query" in text
    assert "It could not be opened." in text


def test_a_report_over_zero_queries_is_refused(dossier: Dossier, tmp_path: Path) -> None:
    empty = make_evaluation(queries=1)
    empty = replace(empty, summary=empty.summary.model_copy(update={"queries": 0}), per_query=empty.per_query.head(0))
    with pytest.raises(PromotionError, match="no judged query"):
        write_report_page(replace(dossier, evaluation=empty), tmp_path)
    assert not (tmp_path / REPORT_PAGE).exists()


def test_a_candidate_without_a_report_is_refused_unless_it_is_old(dossier: Dossier, tmp_path: Path) -> None:
    folder = tmp_path / "page"
    with pytest.raises(ArtifactError, match=REPORT_PAGE):
        require_report(folder, dossier.manifest)
    require_report(folder, dossier.manifest.model_copy(update={"schema_version": 2}))
    write_report_page(dossier, folder)
    require_report(folder, dossier.manifest)


def test_verification_refuses_a_release_without_its_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tracking = MemoryTracking()
    tracking.install(monkeypatch)
    version = World(tracking, tmp_path).candidate()
    model = f"{NAME}-candidate"
    assert all(check.ok for check in check_version(NAME, model, version))
    folder = tracking.folders[model, version]
    (folder / REPORT_PAGE).unlink()
    rewrite(folder, lambda content: None)  # sealed again without it, as somebody with write access to the store could
    info = tracking.models[model][0]
    tracking.models[model][0] = info.model_copy(update={"tags": {**info.tags, labels.DIGEST: read_manifest(folder).digest}})
    failed = {check.name: check.detail for check in check_version(NAME, model, version) if not check.ok}
    assert list(failed) == ["evidence"] and REPORT_PAGE in failed["evidence"]
