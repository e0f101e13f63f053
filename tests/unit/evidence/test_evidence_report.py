"""The reviewer's report: everything in it, nothing from outside, readable without colour and without a script."""

from __future__ import annotations

import re
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import pandas as pd
import pytest

from components.artifacts import read_manifest
from components.errors import ArtifactError, PromotionError
from components.evaluation.champion_comparison import CANDIDATE, CHAMPION, SERVED, SIDE_COLUMNS, ComparisonTables
from components.evaluation.report import Bm25Setup, ExtraSummary, UntrainedSetup
from components.evidence.description import describe
from components.evidence.dossier import Compared, Dossier, Making
from components.evidence.labels import systems_words
from components.evidence.quality_sections import champion_deltas
from components.evidence.report import render_report, write_report_page
from components.gates.decision import GateResult
from components.promotion.verification import check_version
from components.release.champion import Override
from components.release.manifest import REPORT_PAGE, BaseModelPin, LineageNode, require_report
from components.tracking import labels
from components.tracking.runs import PLOTS
from tests.unit.evidence_world import EVIL, slices, tables, validation_with_dropped_rows, with_units, world_of
from tests.unit.promotion_world import GOOD, NAME, MemoryTracking, World, make_evaluation, rewrite

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


def swapped() -> ComparisonTables:
    """Candidate and champion in each other's place."""
    found = tables()
    names = {CANDIDATE: CHAMPION, CHAMPION: CANDIDATE}
    return replace(found, per_query=found.per_query.assign(system=found.per_query["system"].map(names)))


@pytest.fixture(scope="module")
def dossier(tmp_path_factory: pytest.TempPathFactory) -> Dossier:
    return world_of(tmp_path_factory)


def test_every_section_is_there_and_nothing_comes_from_outside(dossier: Dossier) -> None:
    text = render_report(dossier)
    page = _Page(text)
    tags = {tag for tag, _ in page.seen}
    assert [attributes["id"] for tag, attributes in page.seen if tag == "h2"] == list(SECTIONS)
    assert not tags & {"script", "link", "img", "iframe", "object", "form"}
    assert not re.search(r"https?:|url\(|@import|javascript:", text)
    assert all(not name.startswith("on") and name not in ("src", "href") for _, attributes in page.seen for name in attributes)


def test_headings_stand_in_order(dossier: Dossier) -> None:
    levels = [int(tag[1]) for tag, _ in _Page(render_report(dossier)).seen if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))


def test_the_verdict_and_what_is_worse_stand_first(dossier: Dossier) -> None:
    worse = replace(dossier, compared=replace(dossier.compared, tables=swapped()))
    text = render_report(worse)
    start = text[: text.index('id="gates"')]
    assert "Verdict: \u2714 pass" in start
    worse_list, _, better_list = start.partition("Better than the champion")
    assert "nDCG@10 in length=short: -0.0500 [-0.0500, -0.0500], 36 queries" in worse_list
    assert "p95 of an answer: 2.00 ms, the champion&#39;s 4.00 ms (0.50 times)" in better_list
    assert "4 / 36" in start  # gained and lost


def test_an_override_of_the_champion_stands_in_red(dossier: Dossier) -> None:
    assert dossier.champion is not None
    text = render_report(replace(dossier, champion=replace(dossier.champion, override=Override("<i>late</i>", "Ada", "fail"))))
    assert re.search(r'class="banner bad"[^>]*><b>.*release/1 is there by an OVERRIDE.*&lt;i&gt;late', text)


HOSTILE = {
    "html": "</td></table></svg><img src=x onerror=alert(1)>]]>&nbsp;",
    "long": "W" * 100_000,
    "right to left": "\u202e\u2067\u0645\u0631\u062d\u0628\u0627 \u202e",
    "emoji": "\U0001f9d1\u200d\U0001f680" * 50,
    "zero bytes": "a\x00b\x1b[31m\x7f",
}


@pytest.mark.parametrize("words", HOSTILE.values(), ids=HOSTILE)
def test_hostile_text_neither_runs_nor_spreads(dossier: Dossier, tmp_path: Path, words: str) -> None:
    found = tables()
    hit = {"doc_id": words, "title": words, "score": 0.5, "relevant": True}
    row = {"query_id": words, "text": words, "difference": -0.2, "relevant": [hit], "candidate": [hit] * 10, "champion": [hit] * 10}
    world = replace(
        dossier,
        compared=replace(dossier.compared, tables=replace(found, side_by_side=pd.DataFrame([row] * 20))),
        evaluation=replace(dossier.evaluation, slices=slices().replace("short", words)),
        notes=(words,),
    )
    write_report_page(world, tmp_path)
    text = (tmp_path / REPORT_PAGE).read_text(encoding="utf-8")
    page = _Page(text)
    assert not {tag for tag, _ in page.seen} & {"script", "img"}
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f]", text)
    assert len(text) < 300_000
    assert text.count("<bdi>") == text.count("</bdi>") > 400
    for picture in (tmp_path / PLOTS).iterdir():
        ElementTree.parse(picture)


def test_the_report_of_two_thousand_queries_is_small(dossier: Dossier) -> None:
    hits = [{"doc_id": f"document-{n}", "title": "word " * 100, "score": 0.5, "relevant": n == 3} for n in range(10)]
    shown = [(f"q{n:03d}", "a long query " * 50, (n - 20) / 21, hits[:3], hits, hits) for n in range(40)]
    found = replace(tables(2000), side_by_side=pd.DataFrame(shown, columns=list(SIDE_COLUMNS)))
    rows = [(f"q{n:03d}", dimension, f"part {n % 7}") for n in range(2000) for dimension in ("length", "words")]
    evaluation = replace(make_evaluation(queries=2000), slices=pd.DataFrame(rows, columns=["query_id", "dimension", "slice"]))
    making = Making(tuple(float(n % 97) for n in range(100_000)), dossier.making.student_epochs)
    text = render_report(replace(dossier, evaluation=evaluation, compared=replace(dossier.compared, tables=found), making=making))
    assert len(text.encode()) < 500_000
    assert "2,000 judged queries" in text


def test_a_report_over_one_query_holds_back(dossier: Dossier) -> None:
    assert dossier.champion is not None
    one = replace(dossier.champion, evaluation=make_evaluation(queries=1))
    text = render_report(replace(dossier, champion=one, evaluation=make_evaluation(queries=1), compared=Compared(missing="Not asked.")))
    _Page(text)
    assert "too few queries" in text and "no interval, n = 1" in text
    assert "nan" not in re.sub("<[^>]*>", "", text).lower().replace("scalingnote", "").split()


def test_plots_are_pictures_too(dossier: Dossier, tmp_path: Path) -> None:
    write_report_page(dossier, tmp_path)
    (tmp_path / PLOTS / "9_old.svg").write_text("left by an attempt that was killed")
    write_report_page(dossier, tmp_path)
    names = sorted(path.stem for path in (tmp_path / PLOTS).iterdir())
    assert names == [
        "1_differences_from_champion",
        "2_differences_from_baselines",
        "3_slices",
        "4_recall_over_latency",
        "5_training_of_towers",
        "6_training_of_student",
    ]


def test_what_comes_from_the_data_is_escaped(dossier: Dossier) -> None:
    text = render_report(dossier)
    assert EVIL not in text
    assert text.count("&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;") >= 5  # note, query, titles, contract


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


def test_other_documents_of_both_releases_are_said_beside_what_is_better(dossier: Dossier) -> None:
    """With fewer documents every query is easier, and what is new to the champion it cannot find: both look like a gain."""
    compared = dossier.compared
    assert compared.summary is not None and compared.tables is not None
    ids = sorted(set(compared.tables.per_query["query_id"]))
    served = pd.DataFrame({"query_id": ids, "system": CHAMPION, "metric": SERVED, "value": [0.5] * 3 + [1.0] * (len(ids) - 3)})
    tables = replace(compared.tables, per_query=pd.concat([compared.tables.per_query, served], ignore_index=True))
    changed = replace(dossier, compared=Compared(compared.summary.model_copy(update={"removed": 7}), tables))
    for page in (render_report(changed), describe(changed, {"Report": "https://x"})):
        assert "The candidate lacks 7 of the champion's documents, which makes every query easier for it." in unescape(page)
        assert "For 3 of the queries the champion lacks a relevant document, which counts against it." in page
    assert "lacks" not in render_report(dossier)


def test_models_that_took_part_and_parts_of_earlier_flows_stand_under_origin(dossier: Dossier) -> None:
    manifest = dossier.manifest
    tower = manifest.pins.document_tower.digest
    judge = {"judge": EVIL, "judge_digest": "1" * 64}
    kept = {"attributes": judge, "flow_run_id": "flow-0"}
    lineage = tuple(node.model_copy(update=kept) if node.digest == tower else node for node in manifest.lineage)
    flows, bases = {"flow-0": {"code_revision": "old", "user": "Grace"}}, {"query_tower": BaseModelPin(name="acme/llm", digest="2" * 64)}
    changed = manifest.model_copy(update={"lineage": lineage, "earlier_flows": flows, "base_models": bases})
    text = render_report(replace(dossier, manifest=changed))
    _Page(text)
    for words in ("1" * 64, "2" * 64, "base of the query tower", "acme/llm", "judge"):
        assert words in text, words
    assert "Kept from the earlier flow flow-0: document tower; code revision old, made by Grace." in text
    assert "Kept from" not in render_report(dossier)


def test_a_further_split_that_is_dev_is_not_called_off_the_training_distribution(dossier: Dossier) -> None:
    summary = dossier.evaluation.summary
    split = ExtraSummary(queries=40, judgements_digest="d", systems=summary.systems, retention={"recall@50": 0.9}, retention_intervals={})
    gate = GateResult(name="off_distribution_retention[dev]", status="pass", reason="The student keeps 90 %.", slice="dev")
    decision = dossier.manifest.decision
    manifest = dossier.manifest.model_copy(update={"decision": decision.model_copy(update={"gates": (*decision.gates, gate)})})
    extra = replace(dossier.evaluation, summary=summary.model_copy(update={"extra": {"dev": split, "test_de": split}}))
    text = render_report(replace(dossier, manifest=manifest, evaluation=extra))
    assert "test_de (off the training distribution)" in text and "dev (off the training distribution)" not in text
    assert "dev (checkpoints were chosen on it, so its figures are too good)" in text
    assert text.count("NOT OFF THE DISTRIBUTION") == 2  # at the verdict, and in the table of the gates


def test_the_baselines_say_what_they_are_and_the_speeds_what_work_they_stand_for(dossier: Dossier) -> None:
    bm25 = Bm25Setup(stemmer="english", told=True, k1=0.9, b=0.6, dev_queries=7)
    encoder = UntrainedSetup(
        encoder="acme/embed", published=True, layers=6, pooling="cls", query_prompt=EVIL, document_prompt="", max_length=256
    )
    summary = dossier.evaluation.summary
    assert summary.speed is not None
    worked = summary.speed.student.model_copy(update={"tokens_per_second": 12345.0, "flops_per_query": 6.7e8})
    speed = summary.speed.model_copy(update={"student": worked, "threads": 2})
    changed = summary.model_copy(update={"bm25": bm25, "untrained": {"student_untrained": encoder}, "speed": speed})
    text = render_report(replace(dossier, evaluation=replace(dossier.evaluation, summary=changed)))
    _Page(text)
    for words in ("stemmer english (the documents tell the language), k1 0.9 and b 0.6 chosen on 7 dev queries", "6 layers, pooling cls"):
        assert words in unescape(text), words
    assert EVIL not in text and "12,345" in text and ">670<" in text and "2 threads" in text
    assert "Lucene's variant" not in unescape(render_report(dossier))  # a report of before does not say


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


def test_rows_that_the_data_lost_stand_at_a_glance_and_with_the_contracts(dossier: Dossier) -> None:
    assert "left out of the data" not in render_report(dossier)
    page = render_report(replace(dossier, validation=validation_with_dropped_rows()))
    _Page(page)
    assert 'Rows left out of the data<b class="">3</b><span>queries without an answer now: 1</span>' in page
    assert "3 of 200" in page and "dangling_document" in page and "1 query has no relevant document left" in page
    assert "<script>" not in page


def test_units_of_the_queries_stand_with_what_they_are_worth(dossier: Dossier) -> None:
    before, page = render_report(dossier), render_report(with_units(dossier))
    assert "Every query counts as drawn by itself" in before and "Training noise: unknown" in before
    assert "40 queries in units by page." in page
    # Four of forty queries lost 0.2, all of one unit: by units the difference of 0.025 is known far less well.
    found, alone = (next(d for d in champion_deltas(one) if d.metric == "ndcg@10") for one in (with_units(dossier), dossier))
    assert found.effective is not None and found.effective < 20 and alone.effective is None
    assert f"40 (as {found.effective})" in page and not re.search(r"\(as \d", before)
    assert found.low is not None and alone.low is not None and found.low < alone.low
    assert found.power is not None and alone.power is not None and found.power < alone.power


def test_a_report_on_a_single_unit_gives_no_interval(dossier: Dossier) -> None:
    page = render_report(with_units(dossier, 40))
    assert "one unit" in page and "no interval" in page and "inf" not in re.sub(r"<[^>]*>|[a-z]+inf[a-z]*|inf[a-z]+", "", page)


def on_dev_with_a_poor_teacher(dossier: Dossier) -> Dossier:
    """Measured on dev, where the teacher lies below the untrained encoder."""
    measured = make_evaluation({**GOOD, "student": 0.75, "student_untrained": 0.73})
    summary = measured.summary.model_copy(update={"split": "dev"})
    return replace(dossier, evaluation=replace(measured, slices=slices(), summary=summary))


def test_another_split_and_a_teacher_that_is_worth_nothing_stand_in_the_first_line_of_the_verdict(dossier: Dossier) -> None:
    found = on_dev_with_a_poor_teacher(dossier)
    page, text = render_report(found), describe(found, {})
    for first in (re.search(r'role="status"><b>(.*?)</b>', page)[1], text.splitlines()[0]):  # type: ignore[index]
        assert "NOT MEASURED ON TEST but on the split" in first
        assert "The teacher lies below doing nothing" in first and "-0.010" in first
    good = render_report(dossier)
    assert "NOT MEASURED" not in good and "doing nothing" not in good and "NOT MEASURED" not in describe(dossier, {})


def test_the_baselines_are_shown_in_both_metrics_on_the_page_and_in_the_description(dossier: Dossier) -> None:
    page = render_report(dossier)
    first = replace(dossier, champion=None, compared=Compared(missing="none"), notes=())
    text = describe(first, {})
    for metric in ("nDCG@10", "recall@50"):
        for pair in ("student - bm25", "teacher - student_untrained"):
            assert f"{systems_words(pair)}, {metric}" in page
            assert f"{systems_words(pair)} &ensp;| {metric}" in text


def test_held_out_documents_whose_titles_were_trained_on_are_counted_for_the_reviewer(dossier: Dossier) -> None:
    manifest = dossier.manifest
    node = LineageNode(digest=manifest.pins.query_encoder.digest, kind="encoder", name="distil", counts={"held_out_titles": 1234})
    found = replace(dossier, manifest=manifest.model_copy(update={"lineage": (node,)}))
    for text in (render_report(found), describe(found, {})):
        assert "The titles of 1,234 documents that no train query asks for" in text
    none = node.model_copy(update={"counts": {"held_out_titles": 0}})
    assert "The titles of" not in render_report(replace(found, manifest=manifest.model_copy(update={"lineage": (none,)})))


def test_queries_that_were_taken_apart_stand_in_the_first_line_of_the_verdict(dossier: Dossier) -> None:
    grouped = with_units(dossier)
    summary = grouped.evaluation.summary
    assert summary.units is not None
    apart = summary.model_copy(update={"units": summary.units.model_copy(update={"taken_apart": 3})})
    found = replace(grouped, evaluation=replace(grouped.evaluation, summary=apart))
    page, text = render_report(found), describe(found, {})
    for first in (re.search(r'role="status"><b>(.*?)</b>', page)[1], text.splitlines()[0]):  # type: ignore[index]
        assert "QUERIES THAT BELONG TOGETHER ARE TAKEN APART" in first and "of which the data makes 3" in first
    assert "TAKEN APART" not in render_report(grouped)
