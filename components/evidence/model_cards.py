"""Model cards of exported encoders: what they were made from, what was measured, and which encoder belongs to which.

The front matter is that of the Hugging Face hub, so a folder can be uploaded there as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from components.distillation.router import ADAPTER, adapter_on_hub
from components.evaluation.metrics import metric_words
from components.evaluation.report import Summary, load_summary
from components.release.base_models import base_models_named_by
from components.release.manifest import EVALUATION_FOLDER, BaseModelPin
from components.release.open import PinnedRelease
from components.towers.base_models import GEMMA, MINILM, WARM_GEMMA, is_on_hub, published_folder
from components.towers.contract import Role, load_contract

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
}
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
        f"---\n{_front_matter(title, bases, summary, part)}\n---\n",
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


def _front_matter(title: str, bases: Mapping[str, BaseModelPin], summary: Summary, part: Part) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    licences = {stated_licence(pin) for pin in bases.values()}
    known = next(iter(licences)) if len(licences) == 1 else None
    measured = summary.systems.get("student" if "query_encoder" in bases else "teacher")
    results = [
        EvalResult("information-retrieval", summary.split, f"{summary.split}, {summary.queries} queries", metric_words(name), value)
        for name, value in (measured.metrics if measured else {}).items()
    ]
    data = ModelCardData(
        base_model=sorted({pin.name for pin in bases.values() if is_on_hub(pin.name)}) or None,
        eval_results=results or None,
        library_name="sentence-transformers",
        license=known if known and known == known.casefold() and " " not in known else "other",
        model_name=f"{title} ({part})",
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
        commit = f" at commit `{pin.revision}`" if pin.revision else ""
        licence = stated_licence(pin)
        said = f"Licence: {licence}." if licence else "Its licence is not known here: see where it was published."
        lines.append(f"- The {_TITLES[pinned]} started from `{pin.name}`{commit} (digest `{pin.digest[:16]}`). {said}")
    data = release.manifest.dataset
    lines.append(f"- Data: {data.name}, digest `{data.digest[:16]}`, read from files with the digest `{data.source_digest[:16]}`.")
    lines.append(f"- Made by code revision `{release.manifest.provenance.get('code_revision', 'unknown')}` of scalingnote.")
    lines.append("- What was trained takes the licence of its base and of the data; whoever hands it on has to keep both.")
    return "\n".join(["## Made from", "", *lines])


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
    return "\n".join(["## Measured", "", told, "", *header, *rows])


def _cell(found: Any, metric: str) -> str:
    if metric not in found.metrics:
        return ""
    ends = found.intervals.get(metric)
    return f"{found.metrics[metric]:.3f}" + (f" [{ends[0]:.3f} {ends[1]:.3f}]" if ends else "")
