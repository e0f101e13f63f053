"""Commands that build: demo, retrain, adopt, validate, refresh-index, refresh-query-tower, study."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Mapping
from itertools import zip_longest
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Any

from components.errors import ConfigError
from components.text import one_line
from flows.cli.output import name_option, only_result_on_stdout, require_space, retriever_name, show
from flows.cli.prepare import parsed_settings, planned, policy_settings, read_config, read_layers, read_settings
from flows.config import RetrainConfig, left_by_preset
from flows.refresh_index import Refresh, RefreshConfig, configured
from flows.studies.context import StudySettings
from flows.studies.registry import require_study

if TYPE_CHECKING:
    from components.evaluation.report import Summary
    from components.index.drift import GuardReport
    from flows.candidate import CandidateResult


EXAMPLES = ("heart attack", "kidney stone")
EXAMPLE_DEPTH = 3
COLUMN = 42  # characters of a system's column


def retrain(options: argparse.Namespace) -> None:
    """Build a candidate and say what comes next; with a budget, by the settings of its plan."""
    config, estimate = planned(options) if options.budget is not None else (read_config(options), None)
    result = _build(options, config, estimate=estimate)
    show(
        options, {**result.as_json(), "in_short": in_short(result)}, "\n\n".join([report_of(result), next_steps(result), in_short(result)])
    )


def adopt(options: argparse.Namespace) -> None:
    """Take over vectors that exist, and say how a query encoder is made for them."""
    _copied(options)
    result = _adopted(options, _with_vectors(options))
    show(options, result, _adopted_text(result))


def _copied(options: argparse.Namespace) -> None:
    """Put a copy of the database's collection that the command line names, if it names one, in the place of --vectors."""
    from components.settings import activate, expanded, work_folder
    from components.towers.trained.vector_stores import STORES, Collection, copy_collection
    from flows.adopt import COLLECTIONS

    store = next((store for store in STORES if getattr(options, store) is not None), None)
    if store is None:
        if named := next((name for name in ("collection", "id_field", "vector_field") if getattr(options, name) is not None), None):
            raise ConfigError(f"--{named.replace('_', '-')} belongs to a database. Name it with --qdrant, --milvus or --pgvector.")
        return
    if options.collection is None:
        raise ConfigError(f"--{store} needs the collection or table to read: --collection NAME.")
    read_config(options)  # a wrong setting is said before the database is asked
    activate()
    wanted = Collection(store, getattr(options, store), options.collection, options.id_field, options.vector_field)
    queries = None if options.vectors is None else expanded(options.vectors)
    with only_result_on_stdout(options):
        copied = copy_collection(wanted, queries, work_folder() / COLLECTIONS)
        fields = f"ids: {copied.attributes['id_field']}; vectors: {copied.attributes['vector_field']}"
        print(f"{copied.attributes['documents']:,} vectors were read from {wanted.title} ({fields}).", flush=True)
    options.vectors = str(copied.path)


def _with_vectors(options: argparse.Namespace) -> RetrainConfig:
    """The configuration that the command line names, with the folder of --vectors in it."""
    if options.vectors is None and not any(entry.startswith("towers.vectors=") for entry in options.set):
        raise ConfigError(
            "Name the folder of the vectors with --vectors DIR, or the database that holds them (--qdrant, --milvus, --pgvector)."
        )
    given = [] if options.vectors is None else [f"towers.vectors={options.vectors}"]
    options.set = [*options.set, "towers.base_model=vectors", "towers.training=none", "towers.companion=null", "towers.judge=null", *given]
    return read_config(options)


def _adopted(options: argparse.Namespace, config: RetrainConfig) -> dict[str, Any]:
    from components.data.sources import source_digest
    from flows.servers import run_flow
    from flows.steps import at_commits

    source_digest(config.data)  # a missing folder is said at once, before any server starts
    require_space()
    with only_result_on_stdout(options):
        return run_flow("flows.adopt:adopt", config=at_commits(config))


def _adopted_text(result: dict[str, Any]) -> str:
    from flows.adopt import ADOPTED

    name, queries = name_option(result["name"]), result["queries"]
    return (
        f"{result['documents']:,} vectors of documents in {result['dimension']} dimensions are now {result['index']}; "
        f"{f'{queries:,} queries have vectors too' if queries else 'no query has one: those of the documents stand in'}.\n"
        f"Next, a query encoder for them:\n  scalingnote refresh-query-tower{name} --release {ADOPTED}"
    )


def demo(options: argparse.Namespace) -> None:
    """The whole job on the built-in data."""
    if options.full:
        options.set = [*options.set, "data.scope=full"]
    if options.adopt:
        _demo_adopt(options)
        return
    options.preset = options.preset or "demo"
    config = read_config(options)
    teacher = " beside ".join(filter(None, (config.towers.base_model, config.towers.companion.base_model)))
    about = f"Demo: {config.data.source} ({config.data.scope}), teacher {teacher}, student {config.distillation.student}"
    result = _build(options, config, about)
    examples = _examples(options, result, config) if config.data.source == "icd10cm" else {}
    shown = [_side_by_side(query, answers) for query, answers in examples.items()]
    told = "\n\n".join([report_of(result), *shown, next_steps(result), in_short(result)])
    show(options, {**result.as_json(), "examples": examples, "in_short": in_short(result)}, told)


def _demo_adopt(options: argparse.Namespace) -> None:
    """The second story: an index exists already, here of MiniLM's own vectors, and gets a small query encoder."""
    from flows.adopt import existing_vectors
    from flows.refresh_query import QueryRefreshConfig
    from flows.servers import run_flow

    options.preset = options.preset or "adopt"
    if not any(entry.startswith("name=") for entry in options.set):
        options.name = options.name or "adopted"
    config = read_config(options)
    with only_result_on_stdout(options):
        print(f"Demo: the vectors of {config.data.source} by all-minilm-l6-v2 are the index that exists.", flush=True)
        options.vectors = str(existing_vectors(config))
    adopted = _adopted(options, _with_vectors(options))
    with only_result_on_stdout(options):
        print(_adopted_text(adopted), flush=True)
        request = QueryRefreshConfig(name=config.name, release="adopted")
        result = run_flow("flows.refresh_query:refresh_query_tower", request=request)
    show(options, {**result.as_json(), "adopted": adopted}, "\n\n".join([report_of(result), next_steps(result)]))


def validate(options: argparse.Namespace) -> None:
    """Hold data against its contracts and say where the report lies."""
    from components.data.left_out import QUARANTINE_FILE
    from components.data.sources import remarks_on
    from components.data.validation import load_report, require_valid
    from flows.runner import make_step
    from flows.steps import snapshot_step, validation_step

    config = read_config(options)
    with only_result_on_stdout(options):
        dataset: Any = make_step(snapshot_step(config))
        validation = make_step(validation_step(config, dataset))
        project = _gx_project(options, config, dataset)
    if not options.json:
        print("\n".join([f"Report: {validation.path / 'report.html'}", *([f"Data Docs: {project['data_docs']}"] if project else [])]))
    require_valid(validation)
    report = load_report(validation)
    count = validation.attributes["warnings"] or "no"
    warnings = f"{count} warning{'' if count == 1 else 's'}"
    dropped = [f"Left out: {entry.summary}" for entry in report.left_out]
    kept_at = [f"All rows left out, with reasons: {dataset.path / QUARANTINE_FILE}"] if dropped else []
    result = {**report.model_dump(mode="json"), "remarks": remarks_on(config.data), **({"gx_project": project} if project else {})}
    show(options, result, "\n".join([*dropped, *kept_at, f"The data keeps its contracts, {warnings}."]))


def _gx_project(options: argparse.Namespace, config: RetrainConfig, dataset: Any) -> dict[str, Any]:
    """What was written for users of Great Expectations; nothing unless they asked for it."""
    if options.gx_project is None:
        return {}
    from components.data.contracts import contracts_folder, load_contracts
    from components.data.dataset import load_dataset
    from components.data.gx_project import write_gx_project

    return write_gx_project(load_dataset(dataset.path), load_contracts(contracts_folder(config.data.contracts)), options.gx_project)


def _build(options: argparse.Namespace, config: RetrainConfig, about: str = "", estimate: str | None = None) -> CandidateResult:
    """Run the flow; the first line says what is built (`about`) and how long it will take, where something is to be made.

    `estimate`: known already, and said.
    """
    from components.distillation.student import check_before_towers
    from flows.parameters import require_steps
    from flows.planning import announce
    from flows.retrain import AGAIN
    from flows.servers import run_flow
    from flows.steps import at_commits

    again = getattr(options, "again", [])  # the demo has no such option
    require_steps("retrain", again, AGAIN)
    require_space()
    with only_result_on_stdout(options):
        config = at_commits(config)  # the estimate asks which steps are done, by keys that hold the commits
        # A missing folder and a model that cannot be used are said here, before any server starts.
        check_before_towers(config.distillation, config.towers)
        said = None if estimate else announce(config)
        if stays := left_by_preset(read_layers(options)):
            print(stays, flush=True)
        if line := ": ".join(filter(None, (about or ("This run" if said else ""), said))):
            print(f"{line}.", flush=True)
        result: CandidateResult = run_flow("flows.retrain:retrain", config=config, again=again)
        return result


def report_of(result: CandidateResult) -> str:
    """The table of the evaluation, and how the gates ended."""
    from components.evaluation.table import render_table
    from components.evidence.labels import first_line, held_out_titles
    from components.release.manifest import load_release

    summary = _summary_of(result)
    gates = [f"  {gate.status:<14} {one_line(f'{gate.name}: {gate.told}')}" for gate in result.gates]  # a slice's name is the data's
    verdict = first_line(f"Gates of {result.candidate}: {result.verdict}", summary)
    titles = held_out_titles(load_release(Path(result.folder)))
    return "\n".join([render_table(summary), *([titles] if titles else []), "", verdict, *gates])


def in_short(result: CandidateResult) -> str:
    """For somebody who decides on the money: what was gained, what BM25 beside it adds, and what it costs."""
    from components.evaluation.table import cost_sentence, fusion_sentence, gain_sentence
    from components.release.manifest import load_release
    from components.release.training_noise import load_noise, short_words_on

    summary, folder = _summary_of(result), Path(result.folder)
    trainings = short_words_on(load_noise(folder), load_release(folder).release_type)
    told = (gain_sentence(summary, trainings), fusion_sentence(summary), cost_sentence(summary, result.cost))
    return "\n".join(sentence for sentence in told if sentence)


def _summary_of(result: CandidateResult) -> Summary:
    from components.evaluation.report import load_summary
    from components.release.manifest import EVALUATION_FOLDER

    return load_summary(Path(result.folder) / EVALUATION_FOLDER)


def _examples(options: argparse.Namespace, result: CandidateResult, config: RetrainConfig) -> dict[str, dict[str, list[dict[str, str]]]]:
    """What BM25, the untrained encoder and the candidate answer to each example: query -> system -> id and title of the best documents."""
    from components.data.dataset import load_dataset
    from components.evaluation.bm25 import bm25_ranker
    from components.evaluation.systems import untrained_ranker
    from flows.cli.search import hits_of
    from flows.runner import make_step
    from flows.steps import snapshot_step

    with only_result_on_stdout(options):
        dataset = load_dataset(make_step(snapshot_step(config)).path)
    rankers: dict[str, Any] = {"BM25": bm25_ranker(dataset, config.evaluation.bm25_stemmer, progress=False)}
    if config.distillation.student != "teacher":
        rankers["untrained encoder"] = untrained_ranker(dataset, config.distillation, None, kept=True, progress=False)
    titles = dict(zip(dataset.documents["doc_id"], dataset.documents["title"], strict=True))
    candidate = str(result.candidate)
    found: dict[str, dict[str, list[dict[str, str]]]] = {query: {} for query in EXAMPLES}
    for name, ranker in rankers.items():
        for query, answer in zip(EXAMPLES, ranker.rank(EXAMPLES, EXAMPLE_DEPTH), strict=True):
            found[query][name] = [{"doc_id": doc_id, "title": titles[doc_id]} for doc_id, _ in answer]
    for query in EXAMPLES:
        hits = hits_of(result.name, candidate, query, EXAMPLE_DEPTH)
        found[query][candidate] = [{"doc_id": hit["doc_id"], "title": hit["title"]} for hit in hits]
    return found


def _side_by_side(query: str, answers: Mapping[str, list[dict[str, str]]]) -> str:
    """A column a system, a line a rank."""
    columns = [[name, *(f"{hit['doc_id']} {hit['title']}" for hit in hits)] for name, hits in answers.items()]
    rows = zip_longest(*columns, fillvalue="")
    first, *rest = ("  ".join(shorten(cell, COLUMN, placeholder="...").ljust(COLUMN) for cell in row).rstrip() for row in rows)
    return "\n".join([f"'{query}'", f"   {first}", *(f"{rank}  {line}" for rank, line in enumerate(rest, 1))])


def next_steps(result: CandidateResult) -> str:
    """What a person does with the candidate."""
    name = name_option(result.name)
    if result.verdict != "pass":
        return (
            f"{result.candidate} did not pass its gates. To release it all the same, a person has to say why:\n"
            f"  scalingnote approve {result.candidate} --as NAME --override REASON{name}"
        )
    state = "All steps were taken from the cache, nothing has changed.\n" if result.cached else ""
    return (
        f"{state}Next, a reviewer decides: open {result.name}-candidate in the MLflow UI (scalingnote ui) and press Promote into "
        f"{result.name}-release,\nor without a browser:\n"
        f"  scalingnote approve {result.candidate} --as NAME{name} && scalingnote promote{name} && "
        f"scalingnote search {shlex.quote(_example(result))}{name}"
    )


def _example(result: CandidateResult) -> str:
    """A query that makes sense on the data: the demo's own, else one of the judged ones."""
    from components.release.manifest import load_release

    manifest = load_release(Path(result.folder))
    return EXAMPLES[0] if manifest.dataset.name == "icd10cm" or not manifest.smoke else manifest.smoke[0].query


# --- Commands that refresh a part of a release: refresh-index, refresh-query-tower.


def refresh_index(options: argparse.Namespace) -> None:
    """Encode the documents that changed and register the candidate."""
    from flows.parameters import require_steps
    from flows.refresh_index import AGAIN
    from flows.servers import run_flow

    require_steps("refresh-index", options.again, AGAIN)
    request = _request(options, RefreshConfig)
    with only_result_on_stdout(options):
        result = run_flow("flows.refresh_index:refresh_index", request=request, again=options.again)
    show(options, result.as_json(), _index_text(result))


def refresh_query_tower(options: argparse.Namespace) -> None:
    """Teach a new student for a release's index and register the candidate."""
    from flows.parameters import require_steps
    from flows.refresh_query import AGAIN, QueryRefreshConfig
    from flows.servers import run_flow

    require_steps("refresh-query-tower", options.again, AGAIN)
    request = _request(options, QueryRefreshConfig, new_teacher=options.new_teacher)
    with only_result_on_stdout(options):
        result = run_flow("flows.refresh_query:refresh_query_tower", request=request, again=options.again)
    what = "A new query encoder of a new teacher" if options.new_teacher else "A new query encoder"
    encoded = "only a sample of the documents was" if options.new_teacher else "no document was"
    text = f"{what} for {result.base} in {result.seconds:.1f} s; {encoded} encoded, its index stays."
    show(options, result.as_json(), "\n\n".join([text, report_of(result), next_steps(result)]))


def _request(options: argparse.Namespace, kind: type[Refresh], **own: bool) -> Refresh:
    """What the command line asks for, with the fields that `kind` alone has, checked against the release before any server starts."""
    from components.data.sources import source_digest
    from components.release.open import load_manifest
    from flows.adopt import adopted_run
    from flows.refresh_query import QueryRefreshConfig, require_released, require_weights

    name = retriever_name(options)
    settings = {**policy_settings(options), **parsed_settings(options)}
    request = kind(name=name, release=options.release, data=options.data or "", preset=options.preset, settings=settings, **own)
    adopted = adopted_run(request) if isinstance(request, QueryRefreshConfig) else None
    config = configured(request, load_manifest(name, options.release) if adopted is None else adopted, request.changeable)
    if isinstance(request, QueryRefreshConfig) and request.new_teacher:
        require_weights(config)
        if adopted is not None:
            require_released(request)
    source_digest(config.data)
    require_space()
    return request


def _index_text(result: CandidateResult) -> str:
    changes = ", ".join(f"{count:,} {what}" for what, count in result.changes.items())
    if not any(count for what, count in result.changes.items() if what != "unchanged"):
        return (
            f"No document changed since {result.base}: nothing was encoded in {result.seconds:.1f} s, and its index stays as it is. "
            "New queries or judgements alone: scalingnote refresh-query-tower."
        )
    cached = ", all taken from the cache" if result.cached else ""
    done = f"Since {result.base}: {changes} documents; {result.encoded:,} encoded, {result.seconds:.1f} s{cached}."
    return "\n\n".join([done, *_guard_text(result.guard), report_of(result), next_steps(result)])


def _guard_text(guard: GuardReport | None) -> list[str]:
    if guard is None or guard.status == "ok":
        return []
    reasons = "\n".join(f"  {reason}" for reason in guard.reasons)
    return [f"The index no longer fits its documents well; build a new one with 'scalingnote retrain':\n{reasons}"]


# --- The command study: one experiment, its table and its plot.


def study(options: argparse.Namespace) -> None:
    """Run a study and show its table."""
    from components.data.sources import source_digest

    name = require_study(options.study)
    config = read_settings(options, StudySettings)
    cells = tuple(cell.strip() for cell in (options.cells or "").split(",") if cell.strip())
    if options.cells is not None and not cells:
        raise ConfigError(f"--cells '{options.cells}' names no cell, and all of them would run. Name some, or leave the option out.")
    source_digest(config.data)  # a missing folder is said at once, before any server starts
    require_space()
    from flows.servers import run_flow

    with only_result_on_stdout(options):
        result = run_flow("flows.studies.framework:run_study", name, config, cells)
    cached = "All cells were taken from the cache.\n" if result["cached"] else ""
    show(options, result, f"\n{result['text']}\n{cached}Table and plot: {result['folder']}")
