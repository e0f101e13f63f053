"""Whether a refreshed index still fits its documents: its template was trained, and its search tuned, on those of an earlier day.

Three signs say that the frozen centroids no longer fit: the lists have become uneven, so a search reads more; new vectors lie farther
from their centroids than those that trained them, so their codes lose more; and the index finds new documents less often than old
ones. A fourth is the number of documents, when it leaves the range that the search was tuned for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from components.artifacts import Scalar, read_json
from components.errors import ArtifactError
from components.index.config import IndexConfig
from components.index.engine import centroid_distances
from components.index.index_keys import is_exact, resolve_key
from components.index.parts import Template, imbalance
from components.index.rows import live_rows
from components.index.search import VectorIndex

GUARD_FILE = "guard.json"
TUNED_RANGE = 4  # times more or fewer documents than at the tuning: the lists are then four times longer or shorter
MEASURED = 4096  # new vectors whose distance is measured
ASKED = 64  # new documents, and as many old ones, whose neighbours are looked for


class GuardReport(BaseModel):
    """What was measured; None where the index has no lists, keeps no vectors, or nothing is new since its template was trained.

    `imbalance_growth` and `distance_growth` are ratios to the values at the training, `recall_old` and `recall_new` the shares of the
    true neighbours among old and new documents that the index finds.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    schema_version: int = 1
    status: Literal["ok", "retrain_due"]
    reasons: tuple[str, ...]
    documents: int
    tuned_documents: int | None
    imbalance_growth: float | None = None
    distance_growth: float | None = None
    recall_old: float | None = None
    recall_new: float | None = None


@dataclass(frozen=True)
class Watched:
    """A refreshed index with the template and attributes it had before, and the number of rows, the first ones, it was trained with."""

    index: VectorIndex
    template: Template
    about: Mapping[str, Scalar]
    rows_at_training: int


def watch(watched: Watched, config: IndexConfig) -> GuardReport:
    """Measure the signs and hold them against `config.max_imbalance`, `max_distance` and `max_recall_loss`."""
    documents, tuned = len(watched.index), watched.about.get("tuned_documents")
    measured: dict[str, float | None] = {**_lists(watched), **_recalls(watched, config)}
    reasons = [*_size_reasons(watched, config), *_fit_reasons(measured, watched.about.get("ann_recall"), config)]
    status: Literal["ok", "retrain_due"] = "retrain_due" if reasons else "ok"
    known = None if tuned is None else int(tuned)
    return GuardReport(status=status, reasons=tuple(reasons), documents=documents, tuned_documents=known, **measured)


def read_guard(folder: Path) -> GuardReport:
    """The report of a refreshed index; raises ArtifactError when it is missing or broken."""
    try:
        return GuardReport.model_validate(read_json(folder / GUARD_FILE))
    except ValidationError as error:
        raise ArtifactError(
            f"{folder / GUARD_FILE} is not a guard's report ({error.errors()[0]['msg']}). Refresh the index again."
        ) from None


def _size_reasons(watched: Watched, config: IndexConfig) -> list[str]:
    documents, tuned = len(watched.index), watched.about.get("tuned_documents")
    key, asked = str(watched.about["index_key"]), str(watched.about.get("asked_key", ""))
    reasons = []
    if is_exact(key):
        wanted = resolve_key(config.model_copy(update={"index_key": asked or key}), documents, watched.index.dimension)
        if not is_exact(wanted):
            reasons.append(f"{documents:,} documents are searched exactly; index_key auto would now take {wanted}.")
    elif tuned is not None and not int(tuned) / TUNED_RANGE <= documents <= int(tuned) * TUNED_RANGE:
        reasons.append(f"The index was tuned for {int(tuned):,} documents and now holds {documents:,}.")
    rows = len(watched.index.rows)
    if watched.index.stored is None and not watched.index.flat and rows - documents >= config.compact_share * rows:
        reasons.append(f"{rows - documents:,} of {rows:,} rows are deleted, and without stored vectors the index cannot be written anew.")
    return reasons


def _fit_reasons(measured: Mapping[str, float | None], tuned_recall: Scalar, config: IndexConfig) -> list[str]:
    """`tuned_recall`: what the index reached when it was tuned, which stands in where no old document is left to compare with."""
    reasons = []
    growth, distance = measured["imbalance_growth"], measured["distance_growth"]
    old, new = measured["recall_old"], measured["recall_new"]
    if growth is not None and growth > config.max_imbalance:
        reasons.append(f"The lists are {growth:.2f} times as uneven as when they were trained; {config.max_imbalance:g} is allowed.")
    if distance is not None and distance > config.max_distance:
        reasons.append(
            f"New vectors lie {distance:.2f} times as far from their centroids as those that trained them; {config.max_distance:g} is "
            "allowed."
        )
    then, what = (old, "of the old ones") if old is not None else (tuned_recall, "when it was tuned")
    if then is not None and new is not None and float(then) - new > config.max_recall_loss:
        reasons.append(
            f"The index finds {new:.3f} of the new documents that it should and {float(then):.3f} {what}; a loss of "
            f"{config.max_recall_loss:g} is allowed."
        )
    return reasons


def _lists(watched: Watched) -> dict[str, float | None]:
    """Growth of the imbalance and of the new vectors' distance, for an inverted file."""
    before, distance = watched.about.get("imbalance"), watched.about.get("centroid_distance")
    if before is None or distance is None or (sizes := watched.index.engine.sizes()) is None:
        return {"imbalance_growth": None, "distance_growth": None}
    grown: dict[str, float | None] = {"imbalance_growth": round(imbalance(sizes) / float(before), 6), "distance_growth": None}
    new = _some(_split(watched)[1], MEASURED)
    if watched.index.stored is not None and len(new):
        measured = centroid_distances(watched.template.index, watched.index.stored.unit_vectors(new))
        grown["distance_growth"] = round(float(measured.mean()) / max(float(distance), 1e-9), 6)
    return grown


def _recalls(watched: Watched, config: IndexConfig) -> dict[str, float | None]:
    """How many of the true neighbours of some documents, half of them new, are found: among the old documents, and among the new.

    All are new where none of the documents that the template was trained with is left.
    """
    old, new = _split(watched)
    index = watched.index
    if index.flat or index.stored is None or not len(new):
        return {"recall_old": None, "recall_new": None}
    asked = np.concatenate([_some(old, ASKED), _some(new, ASKED)])
    queries, depth = index.stored.unit_vectors(asked), min(config.recall_at, len(index))
    true, found = index.exact_rows(queries, depth), index.found(queries, depth)[1]
    hit = np.array([np.isin(row, also) for row, also in zip(true, found, strict=True)])
    other = true != asked[:, None]  # a document finds itself, whatever the centroids
    is_new = true >= watched.rows_at_training
    return {"recall_old": _share(hit, other & ~is_new), "recall_new": _share(hit, other & is_new)}


def _share(hit: NDArray[np.bool_], among: NDArray[np.bool_]) -> float | None:
    return round(float(hit[among].mean()), 6) if among.any() else None


def _split(watched: Watched) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Live rows that the template was trained with, and those that came later."""
    live = live_rows(len(watched.index.rows), watched.index.rows.deleted)
    return live[live < watched.rows_at_training], live[live >= watched.rows_at_training]


def _some(rows: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """At most so many of the rows, evenly spread."""
    return rows if len(rows) <= most else rows[np.arange(most) * len(rows) // most]
