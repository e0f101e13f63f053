"""What a student learns from where the teacher's query vectors are stored, and some or all of them are missing.

A document's own vector stands in for its title, and the mean of the relevant documents' vectors for a train query: the student is to
land where the answers lie, and the refinement goes on from there. Held-out queries get no stand-in, since they are measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from components.distillation.sources import relevant
from components.errors import DataError
from components.towers.trained.stored import StoredVectors

if TYPE_CHECKING:
    from components.data.dataset import Dataset
    from components.towers.contract import TextEncoder

Texts = Sequence[str]


def answerable(
    teacher: TextEncoder, documents: TextEncoder | None, dataset: Dataset, asked: tuple[Mapping[str, Texts], Texts]
) -> tuple[TextEncoder, dict[str, list[str]], list[str]]:
    """The teacher, and of the texts to learn from (by source) and those held out (`asked`) those that it has vectors for.

    A teacher that can encode answers all of them. One of stored vectors gets stand-ins from the document tower `documents`. Raises
    DataError when no text is left to learn from.
    """
    sources, held_out = asked
    if not isinstance(teacher, StoredVectors):
        return teacher, {source: list(texts) for source, texts in sources.items()}, list(held_out)
    others = stand_ins(dataset, documents) if isinstance(documents, StoredVectors) else {}
    known = {source: _known(teacher, texts) for source, texts in sources.items()}
    chosen = {source: [text for text in texts if text in others or text in known[source]] for source, texts in sources.items()}
    if not any(chosen.values()):
        raise DataError("No query and no title has a vector to learn from. Give vectors of train queries, or documents with titles.")
    for source, texts in chosen.items():
        if sources[source]:
            print(
                f"[encode_teacher_queries] {source}: {len(known[source]):,} of {len(sources[source]):,} texts have a vector of their own, "
                f"for {sum(text not in known[source] for text in texts):,} that of their documents stands in",
                flush=True,
            )
    return teacher.with_stand_ins(others), chosen, [text for text in held_out if text in _known(teacher, held_out)]


def stand_ins(dataset: Dataset, documents: StoredVectors) -> dict[str, NDArray[np.float32]]:
    """Titles and train queries -> unit vector float32 (dimension,) of the documents that they belong to."""
    table = dataset.documents
    vectors = documents.of_documents(table["doc_id"].tolist(), table["content_hash"].tolist())
    row = {name: place for place, name in enumerate(table["doc_id"])}
    rows: dict[str, list[int]] = {}
    for place, title in enumerate(table["title"].fillna("")):
        rows.setdefault(title, []).append(place)
    train = relevant(dataset, "train")
    asked: dict[str, list[int]] = {}
    for text, doc_id in zip(train["text"], train["doc_id"], strict=True):
        asked.setdefault(text, []).append(row[doc_id])
    return {text: _mean(vectors[places]) for text, places in {**rows, **asked}.items()}


def _known(teacher: StoredVectors, texts: Texts) -> set[str]:
    return {text for text, there in zip(texts, teacher.knows(texts), strict=True) if there}


def _mean(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    mean = vectors.mean(0)
    length = np.linalg.norm(mean)
    return (mean / length).astype(np.float32) if length > 1e-6 else vectors[0]
