"""Files in TREC format: runs (`query_id Q0 doc_id rank score tag`, one line a document) and judgements (`query_id 0 doc_id score`)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from components.artifacts import write_named
from components.errors import DataError
from components.evaluation.metrics import Ranking, first_places

if TYPE_CHECKING:
    import pandas as pd

QRELS = "qrels.trec"  # the judgements beside the runs of an evaluation; those of an extra split have its name in front


def write_trec_run(path: Path, rankings: Mapping[str, Ranking], tag: str) -> None:
    """Write the rankings (query_id -> best first) where `write_named` puts them, in the order of the mapping; ranks count from 1.

    A score that is not below the one before it is lowered to the next smaller float32: trec_eval ignores the rank, sorts by score and
    breaks ties in its own way, so it would otherwise see another order. A document that a ranking holds twice is written at its first
    place alone, as it is measured. Raises DataError for an id with white space, which the format cannot hold.
    """
    lines = (line for query_id, ranking in rankings.items() for line in _lines(query_id, ranking, tag))
    write_named(path, "".join(lines).encode())


def write_trec_qrels(path: Path, judgements: pd.DataFrame) -> None:
    """Write the judgements (query_id, doc_id, score) as trec_eval, ir-measures and ranx read them; below 0 is written as 0, as measured.

    Raises DataError for an id with white space, which the format cannot hold.
    """
    lines = []
    for query_id, doc_id, score in zip(judgements["query_id"], judgements["doc_id"], judgements["score"], strict=True):
        _require_one_word(str(query_id), str(doc_id))
        lines.append(f"{query_id} 0 {doc_id} {max(int(score), 0)}\n")
    write_named(path, "".join(lines).encode())


def _lines(query_id: str, ranking: Ranking, tag: str) -> Iterator[str]:
    _require_one_word(query_id, tag, *(doc_id for doc_id, _ in ranking))
    above = np.float32(np.inf)
    for rank, (doc_id, score) in enumerate(first_places(ranking), start=1):
        above = min(np.float32(score), np.nextafter(above, np.float32(-np.inf)))
        yield f"{query_id} Q0 {doc_id} {rank} {float(above):.9g} {tag}\n"


def _require_one_word(*names: str) -> None:
    for name in names:
        if not name or name.split() != [name]:
            raise DataError(f"'{name}' cannot stand in a TREC file, where white space separates the columns. Rename it.")
