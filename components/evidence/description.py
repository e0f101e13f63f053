"""A candidate in Markdown: its description in MLflow, and model cards of its student and towers.

The front matter is that of the Hugging Face hub, so a folder can be uploaded there as it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Literal

from components.distillation.router import ADAPTER, adapter_on_hub
from components.evaluation.metrics import RETAINED, metric_words
from components.evaluation.report import Summary, load_summary
from components.evaluation.table import render_shift, split_mark, units_mark
from components.evaluation.units import effective_queries
from components.evidence.dossier import METRIC, Delta, Dossier, against_champion, baseline_rivals, deltas, require_measured
from components.evidence.labels import (
    STATUS_WORDS,
    first_line,
    gate_words,
    held_out_titles,
    noise_words,
    release_words,
    signed,
    systems_words,
)
from components.evidence.quality_sections import changes_of, moved, override_words
from components.gates.decision import GateResult
from components.release.champion import RED, as_text, release_model
from components.release.completeness import DATA_KIND, base_models_named_by, other_models
from components.release.manifest import EVALUATION_FOLDER, BaseModelPin, ReleaseManifest
from components.release.open import PinnedRelease, ancestors
from components.templates import shortened
from components.text import one_line
from components.towers.base_models import GEMMA, MINILM, MULTILINGUAL_E5, WARM_GEMMA, is_on_hub, published_folder
from components.towers.contract import Role, load_contract
from components.tracking.runs import version_link

LIMIT = 4500  # of MLflow's 5,000 characters: what is put above it later, as the mark of an override, has to fit as well
_SENTENCES = 4  # of what is worse and better
_LINES = 6  # of each subject that changed; the report has all of them
_REASON, _PASSED, _CHANGE = 240, 130, 140  # characters of a reason, of that of a gate that passed, and of a change
_MOST_GATES = 2000  # characters of the table; in a longer one the gates that passed are counted only
_MORE = "The rest stands in the report."
_SIGNS = {"pass": "\u2714 pass", "fail": "\u2718 **FAIL**", "not_decidable": "\u26a0 **not decidable**"}


def describe(dossier: Dossier, links: Mapping[str, str]) -> str:
    """Verdict, gates, differences with intervals, what changed, and the links (title -> address).

    A block that would make it too long is left out, and a line says so; raises PromotionError for an evaluation over no query.
    """
    require_measured(dossier)
    blocks = [_verdict(dossier), _links(links), _moved(dossier), _gates(dossier.manifest.decision.gates), _differences(dossier)]
    kept, whole = _fitting([*blocks, _next(dossier)], [])
    # What changed is never left out: of many changes fewer are named.
    changes = [_changes(dossier, lines) for lines in range(_LINES, -1, -1)]
    fitting = next((block for block in changes if not block or _fitting([block], kept)[1]), changes[-1])
    kept, whole_end = _fitting([fitting, _shift(dossier)], kept)
    return "\n\n".join(kept if whole and whole_end else [*kept, _MORE])


def _fitting(blocks: Sequence[str], before: Sequence[str]) -> tuple[list[str], bool]:
    """The blocks that fit behind those `before` them, with these, and whether all do; empty ones are passed over."""
    kept = list(before)
    for block in filter(None, blocks):
        if len("\n\n".join([*kept, block, _MORE])) <= LIMIT:
            kept.append(block)
    return kept, len(kept) == len(before) + sum(map(bool, blocks))


def _verdict(dossier: Dossier) -> str:
    decision, summary = dossier.manifest.decision, dossier.evaluation.summary
    champion = "This is a first release: there is no champion to compare with, a person has to decide."
    if dossier.champion is not None:
        champion = f"Champion: [release/{dossier.champion.version}]({_champion_page(dossier)})."
    own = f" {summary.own_documents.words}" if summary.own_documents else ""
    measured = f"{summary.queries:,} judged queries ({summary.split}), {summary.documents:,} documents.{own}{_left_out(dossier)}"
    measured += _units(dossier)
    first = f"## Verdict: {_SIGNS[decision.verdict]}{as_text(first_line('', summary))}"
    titles = held_out_titles(dossier.manifest)
    verdict = f"{first}\n\n{release_words(dossier.manifest.release_type)}. {champion} {measured}{f' {titles}' if titles else ''}"
    overridden = override_words(dossier)
    return f"{verdict}\n\n{RED} {as_text(shortened(overridden, _REASON))}" if overridden else verdict


def _units(dossier: Dossier) -> str:
    """In how many units the queries were drawn, where these are not the queries themselves."""
    found, queries = dossier.evaluation.summary.units, dossier.evaluation.summary.queries
    if found is None or found.units == queries:
        return ""
    told = f" The queries are {found.units:,} units, of up to {found.largest:,} that were drawn together"
    effect = found.design_effects.get(METRIC)
    return f"{told}: they say as much as {effective_queries(queries, effect):,} independent ones by nDCG@10." if effect else f"{told}."


def _left_out(dossier: Dossier) -> str:
    """The rows that the data lacks because they were dropped, by rule; what was measured was measured without them."""
    counts: dict[str, int] = {}
    for entry in dossier.validation.left_out:
        counts[entry.rule] = counts.get(entry.rule, 0) + entry.rows
    told = ", ".join(f"{rows:,} {as_text(rule)}" for rule, rows in counts.items())
    return f" **Left out of the data:** {sum(counts.values()):,} rows ({told})." if counts else ""


def _champion_page(dossier: Dossier) -> str:
    return version_link(release_model(dossier.manifest.name), dossier.champion.version if dossier.champion else 0)


def _links(links: Mapping[str, str]) -> str:
    return " · ".join(f"[{title}]({address})" for title, address in links.items())


def _moved(dossier: Dossier) -> str:
    """What is worse and what is better than in the champion, beyond chance; the first few of each."""
    if (found := moved(dossier)) is None:
        return ""
    rows = []
    for word, lines in (("Worse", found.worse), ("Better", found.better)):
        more = f"; and {len(lines) - _SENTENCES} more" if len(lines) > _SENTENCES else ""
        told = "; ".join(as_text(shortened(line, _CHANGE)) for line in lines[:_SENTENCES])
        rows.append(f"**{word} than the champion:** {told or 'nothing is shown to be'}{more}.")
    rows += [as_text(found.documents)] if found.documents else []
    if found.slices and any("=" in line for line in (*found.worse, *found.better)):
        rows.append(f"Of {found.slices} slices compared at 95 % about {found.slices * 0.05:.1f} differ by chance alone.")
    return "\n\n".join(rows)


def _gates(gates: Sequence[GateResult]) -> str:
    """Open gates first, with their reasons; what does not fit of those that passed, slices first, and those that are off are counted."""
    order = {"fail": 0, "not_decidable": 1, "first_release": 2, "pass": 3}
    shown = sorted((gate for gate in gates if gate.status in order), key=lambda gate: (order[gate.status], gate.slice is not None))
    opened = [gate for gate in shown if gate.status != "pass"]
    while len(_gate_table(shown)) > _MOST_GATES and len(shown) > len(opened):
        shown = shown[:-1]
    passed = sum(gate.status == "pass" for gate in gates) - (len(shown) - len(opened))
    counted = {"more passed": passed, "switched off by the policy": sum(gate.status == "off" for gate in gates)}
    others = ", ".join(f"{count} {what}" for what, count in counted.items() if count)
    return f"### Gates\n\n{_gate_table(shown)}" + (f"\n\nOther gates: {others}." if others else "")


def _gate_table(gates: Sequence[GateResult]) -> str:
    rows = [_row(gate_words(gate), _status(gate), as_text(_reason(gate))) for gate in gates]
    return "\n".join(["| gate | status | reason |", "|---|---|---|", *rows])


def _status(gate: GateResult) -> str:
    return _SIGNS.get(gate.status, STATUS_WORDS[gate.status][1])


def _reason(gate: GateResult) -> str:
    text = f"{gate.slice}: {gate.told}" if gate.slice else gate.told
    return shortened(text, _PASSED if gate.status == "pass" else _REASON)


def _differences(dossier: Dossier) -> str:
    rivals = against_champion(dossier)
    found = deltas(rivals, dossier) if rivals else []
    found = found or list(
        chain.from_iterable(deltas(pair, dossier, RETAINED) for pair in baseline_rivals(dossier) if pair.second != "teacher")
    )
    if not found:
        return ""
    rows = [_row(systems_words(d.name), metric_words(d.metric), signed(d.difference), _ends(d), f"{d.queries:,}") for d in found]
    head = ["| systems | metric | difference | 95 % interval | queries |", "|---|---|---:|---|---:|"]
    return "\n".join(["### Differences", "", *head, *rows, "", as_text(noise_words(dossier))])


def _ends(delta: Delta) -> str:
    return "no interval" if delta.low is None or delta.high is None else f"{signed(delta.low)} to {signed(delta.high)}"


def _changes(dossier: Dossier, most: int) -> str:
    notes = [f"- {as_text(note)}" for note in dossier.notes]
    found = changes_of(dossier)
    if found is None:
        return "\n".join(["### What changed", "", *notes]) if notes else ""
    lines = [line for name, changes in found.subjects().items() for line in _subject(name, changes, most)]
    return "\n".join(["### What changed since the champion", "", *notes, *lines])


def _subject(name: str, changes: Sequence[str], most: int) -> list[str]:
    if not changes or not most:
        return [f"- **{name}**: {f'{len(changes)} changes' if changes else 'unchanged'}"]
    more = [f"  - and {len(changes) - most} more"] if len(changes) > most else []
    return [f"- **{name}**:", *(f"  - {as_text(shortened(change, _CHANGE))}" for change in changes[:most]), *more]


def _shift(dossier: Dossier) -> str:
    """Retention off the training distribution and the spread of the vectors, as a terminal shows them."""
    text = render_shift(dossier.evaluation.summary)
    return f"### Off the training distribution, and spread of the vectors\n\n```\n{text}\n```" if text else ""


def _next(dossier: Dossier) -> str:
    text = (
        f"To approve: *Promote model* into `{release_model(dossier.manifest.name)}`. To reject: the tag `review` with the value "
        "`rejected: reason`."
    )
    if dossier.manifest.decision.verdict == "pass":
        return text
    return (
        f"{text} Its gates did not pass, so an approval takes a written reason: the tag `override` on the promoted version where people "
        "sign in, else `scalingnote approve --override REASON`."
    )


def _row(*cells: str) -> str:
    """Cells kept apart, which MLflow's style for tables does not."""
    return "| " + " &ensp;| ".join(cells) + " |"


# --- Model cards of exported encoders: what they were made from, what was measured, and which encoder belongs to which.


Part = Literal["pair", "student", "query-tower", "document-tower"]
PARTS: dict[Part, dict[Role, str]] = {
    "pair": {"query": "query_encoder", "document": "document_tower"},
    "student": {"query": "query_encoder"},
    "query-tower": {"query": "query_tower"},
    "document-tower": {"document": "document_tower"},
}
_TITLES = {"query_encoder": "student query encoder", "query_tower": "query tower", "document_tower": "document tower"}
_LICENCES = {
    **dict.fromkeys((GEMMA, WARM_GEMMA), "Gemma Terms of Use (Gemma is provided under and subject to https://ai.google.dev/gemma/terms)"),
    MINILM: "apache-2.0",
    MULTILINGUAL_E5: "mit",
}
_PARTS_OF_OTHERS = {"judge": "judge of the documents in training", "generator": "writer of queries that were trained on"}
_SHOWN = ("recall@10", "recall@50", "ndcg@10", "mrr@10")


def folders_of(release: PinnedRelease, part: Part) -> dict[Role, Path]:
    """Role -> folder of the encoders that `part` consists of."""
    return {role: getattr(release, pinned).path for role, pinned in PARTS[part].items()}


def model_card(release: PinnedRelease, part: Part, differences: Mapping[str, float]) -> str:
    """The README.md of the package of `part`. `differences`: role -> how far it is from the release's own encoder."""
    bases = {pinned: base_models_named_by(release.manifest)[pinned] for pinned in PARTS[part].values()}
    summary = load_summary(release.artifact.path / EVALUATION_FOLDER)
    title = f"{release.manifest.name} {release.title}"
    kinds = " and ".join(_TITLES[pinned] for pinned in PARTS[part].values())
    sections = [
        f"---\n{_front_matter(release, bases, summary, part)}\n---\n",
        f"# {title}: {kinds}",
        _usage(release, part, differences),
        _pairing(release, part),
        _origin(release, bases),
        _measured(summary),
    ]
    return "\n\n".join(section.strip() for section in sections if section) + "\n"


def stated_licence(base: BaseModelPin) -> str | None:
    """The licence that a base model is known to have, by the card beside its weights; None where nothing here says so."""
    import yaml

    folder = published_folder(base.name, base.revision)
    if folder is None:
        return _LICENCES.get(base.name.partition("@")[0])
    try:
        front = (folder / "README.md").read_text(encoding="utf-8").split("---\n")[1]
        licence = yaml.safe_load(front)["license"]
    except (OSError, ValueError, IndexError, KeyError, TypeError, yaml.YAMLError):
        return None
    return licence if isinstance(licence, str) else None


def _front_matter(release: PinnedRelease, bases: Mapping[str, BaseModelPin], summary: Summary, part: Part) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    licences = {stated_licence(pin) for pin in bases.values()}
    known = next(iter(licences)) if len(licences) == 1 else None
    measured = summary.systems.get("student" if "query_encoder" in bases else "teacher")
    data_set = one_line(release.manifest.dataset.name)
    shown = f"{data_set}, {summary.split}, {summary.queries} queries"
    results = [
        EvalResult("information-retrieval", data_set, shown, metric_words(name), value, dataset_split=summary.split)
        for name, value in (measured.metrics if measured else {}).items()
    ]
    data = ModelCardData(
        # Without the layers that were kept of it (`acme/mini@4`): no model can be called that on a hub.
        base_model=sorted({pin.name.partition("@")[0] for pin in bases.values() if is_on_hub(pin.name)}) or None,
        eval_results=results or None,
        library_name="sentence-transformers",
        license=known if known and known == known.casefold() and " " not in known else "other",
        model_name=f"{release.manifest.name} {release.title} ({part})",
        pipeline_tag="sentence-similarity",
        tags=["sentence-transformers", "feature-extraction", "dense-retrieval", "scalingnote"],
    )
    return str(data.to_yaml())


def _usage(release: PinnedRelease, part: Part, differences: Mapping[str, float]) -> str:
    code = ["from sentence_transformers import SentenceTransformer", "", "model = SentenceTransformer(FOLDER)"]
    calls = {
        "query": 'queries = model.encode_query(["kidney stone"])',
        "document": 'documents = model.encode_document(["Calculus of kidney"])',
    }
    code += [call for role, call in calls.items() if role in differences]
    code += ["scores = queries @ documents.T"] if len(differences) == 2 else []
    text = "```python\n" + "\n".join(code) + "\n```\n\n"
    worst = max(differences.values(), default=0.0)
    text += f"In float32 the vectors are those of the release; the largest difference of a number on 64 probe texts was {worst:.1g}. "
    text += f"They have {_dimension(release)} dimensions and unit length, and are compared by cosine."
    if refused := [role for role in calls if role not in differences]:
        text += f" `encode_{refused[0]}` raises an error: this package holds no encoder for that side."
    if part.endswith("tower") and adapter_on_hub(folders_of(release, part).popitem()[1]):
        text += f" The folder `{ADAPTER}` is the adapter alone, for `peft.AutoPeftModel.from_pretrained`."
    return "## Use\n\n" + text


def _dimension(release: PinnedRelease) -> int:
    return load_contract(release.query_encoder.path)[0].dimension


def _pairing(release: PinnedRelease, part: Part) -> str:
    here = PARTS[part].values()
    rows = [
        f"| {_TITLES[role]} | {'here' if role in here else 'another package'} | {pin.model}/{pin.version} | `{pin.digest[:16]}` |"
        for role, pin in release.manifest.pins.items()
        if role in _TITLES
    ]
    told = (
        f"Vectors can be compared within the space `{release.manifest.space_id[:16]}` alone. Documents are encoded by its document tower, "
        "queries by its student or its query tower. Vectors of another release mean nothing beside these, even of the same width."
    )
    head = ["| encoder | | registered as | digest |", "|---|---|---|---|"]
    return "\n".join(["## Which encoders belong together", "", told, "", *head, *rows])


def _origin(release: PinnedRelease, bases: Mapping[str, BaseModelPin]) -> str:
    lines = []
    for pinned, pin in bases.items():
        commit = f" at commit `{_as_code(pin.revision)}`" if pin.revision else ""
        licence = stated_licence(pin)
        said = f"Licence: {as_text(licence)}." if licence else "Its licence is not known here: see where it was published."
        lines.append(f"- The {_TITLES[pinned]} started from `{_as_code(pin.name)}`{commit} (digest `{pin.digest[:16]}`). {said}")
    lines += [
        f"- `{_as_code(model.name)}` took part as {_PARTS_OF_OTHERS[what]}, and no weights of it are here (digest `{model.digest[:16]}`)."
        for what, model in dict.fromkeys(found for node in release.manifest.lineage for found in other_models(node))
    ]
    lines += [
        f"- Data: {as_text(name)}, digest `{digest[:16]}`, read from files with the digest `{source[:16]}`."
        for name, digest, source in _trained_on(release.manifest, bases)
    ]
    made_by = {_revision(release.manifest, pinned): None for pinned in bases}
    lines.append(f"- Made by code revision {' and '.join(f'`{_as_code(found)}`' for found in made_by)} of scalingnote.")
    lines.append("- What was trained takes the licence of its base and of the data; whoever hands it on has to keep both.")
    return "\n".join(["## Made from", "", *lines])


def _trained_on(manifest: ReleaseManifest, roles: Iterable[str]) -> list[tuple[str, str, str]]:
    """Name, digest and digest of the files of the data that the parts come from: of one that a refresh kept not the release's own."""
    own = manifest.dataset
    nodes = [n for n in ancestors(manifest.lineage, [getattr(manifest.pins, role).digest for role in roles]) if n.kind == DATA_KIND]
    found = [(str(n.attributes.get("name") or n.name), n.digest, str(n.attributes.get("source_digest") or "unknown")) for n in nodes]
    return [(own.name, own.digest, own.source_digest) if digest == own.digest else (name, digest, source) for name, digest, source in found]


def _revision(manifest: ReleaseManifest, role: str) -> str:
    """The code that made a part: a refresh keeps parts that an earlier flow has made."""
    digest = getattr(manifest.pins, role).digest
    earlier = next((node.flow_run_id for node in manifest.lineage if node.digest == digest), None)
    known = manifest.earlier_flows.get(earlier, {}) if earlier else manifest.provenance
    return str(known.get("code_revision") or "unknown")


def _as_code(words: str) -> str:
    """Words from outside between the backticks of a piece of code, which none of their own ends."""
    return one_line(words).replace("`", "'")


def _measured(summary: Summary) -> str:
    shown = [name for name in _SHOWN if any(name in found.metrics for found in summary.systems.values())]
    header = ["| system | " + " | ".join(metric_words(name) for name in shown) + " |", "|---|" + "---|" * len(shown)]
    rows = [f"| {name} | " + " | ".join(_cell(found, metric) for metric in shown) + " |" for name, found in summary.systems.items()]
    units = f" {summary.units.words}" if summary.units else ""
    told = (
        f"On the split {summary.split}: {summary.queries:,} judged queries, {summary.documents:,} documents. In brackets are "
        f"{summary.confidence:.0%} intervals.{units} The teacher is query tower and document tower, the student is the student with the "
        "document tower's index."
    )
    marks = [f"**{mark}**" for mark in (split_mark(summary.split), units_mark(summary)) if mark]
    return "\n".join(["## Measured", "", " ".join([*marks, told]), "", *header, *rows])


def _cell(found: Any, metric: str) -> str:
    if metric not in found.metrics:
        return ""
    ends = found.intervals.get(metric)
    return f"{found.metrics[metric]:.3f}" + (f" [{ends[0]:.3f} {ends[1]:.3f}]" if ends else "")
