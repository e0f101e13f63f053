"""Query texts by source, and the teacher's vectors of them, kept as an artifact: aligning needs neither teacher nor documents.

Where the teacher's query vectors are stored and some are missing, a document's own vector stands in for its title, and the mean of the
relevant documents' vectors for a train query: the student is to land where the answers lie, and the refinement goes on from there.
Held-out queries get no stand-in, since they are measured.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from components.artifacts import VectorShards, seal
from components.data.dataset import normalise_text
from components.distillation.config import DistillationConfig
from components.errors import ArtifactError, DataError
from components.text import is_blank
from components.towers.contract import TextEncoder
from components.towers.trained.vector_files import StoredVectors

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

    from components.data.dataset import Dataset


SENTENCE_WORDS = (3, 40)  # shorter ones are headings and numbers, longer ones are no queries
SPAN_WORDS = (3, 12)  # of what is cut from anywhere in a document, as long as queries are
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\s*\n\s*")


def query_sources(dataset: Dataset, config: DistillationConfig, generated: Sequence[str] = ()) -> dict[str, list[str]]:
    """Texts for the alignment by source: train and unlabelled queries, titles, sentences, spans (seeded samples), generated queries.

    Beside the train queries none of them reads as a query that is held out (see `learnable`).
    """
    return learnable(dataset, config, generated)[0]


def learnable(dataset: Dataset, config: DistillationConfig, generated: Sequence[str] = ()) -> tuple[dict[str, list[str]], dict[str, int]]:
    """The texts of `query_sources`, and by source how many different ones were left out because they read as a held-out query.

    Held out are the judged queries of every split but train. Texts are compared as the contracts compare them, without case and
    punctuation. Train queries are left to the contracts: there such a text has an answer, and the data has to be corrected.
    """
    titles = dataset.documents["title"]
    titles = titles[[not is_blank(title) for title in titles.fillna("")]].drop_duplicates()
    if len(titles) > config.titles:
        titles = titles.sample(config.titles, random_state=config.seed)
    drawn = {
        "unlabelled": dataset.unlabelled["text"].tolist(),
        "titles": titles.tolist(),
        "sentences": document_sentences(dataset.documents["text"].tolist(), config.sentences, config.seed),
        **({"spans": document_spans(dataset.documents["text"].tolist(), config.spans, config.seed)} if config.spans else {}),
        "generated": list(generated),
    }
    tested = held_out_wordings(dataset)
    kept = {source: [text for text in texts if normalise_text(text) not in tested] for source, texts in drawn.items()}
    left_out = {source: len(set(texts)) - len(set(kept[source])) for source, texts in drawn.items()}
    return {"train": dataset.judged_queries("train")["text"].tolist(), **kept}, left_out


def held_out_wordings(dataset: Dataset) -> frozenset[str]:
    """The normalised texts of the judged queries of every split but train."""
    splits = [split for split in dataset.splits if split != "train"]
    return frozenset(normalise_text(text) for split in splits for text in dataset.judged_queries(split)["text"]) - {""}


def document_sentences(texts: Sequence[str], count: int, seed: int) -> list[str]:
    """At most `count` different sentences of 3 to 40 words, from as many documents as possible, in the seed's order.

    A sentence ends at a full stop, question or exclamation mark before white space, or at a line's end.
    """
    rng = np.random.default_rng([seed, 1])
    each = -(-count // max(1, len(texts)))  # sentences of one document
    chosen: dict[str, None] = {}
    for document in rng.permutation(len(texts)):
        if len(chosen) >= count:
            break
        sentences = list(_sentences(texts[document] or ""))
        chosen.update(dict.fromkeys(sentences[i] for i in rng.permutation(len(sentences))[:each]))
    return list(chosen)[:count]


def document_spans(texts: Sequence[str], count: int, seed: int) -> list[str]:
    """At most `count` different runs of 3 to 12 words from anywhere in a document, from as many documents as possible, in the seed's order.

    Source: random cropping, Izacard et al., Unsupervised Dense Information Retrieval with Contrastive Learning, TMLR 2022.
    """
    rng = np.random.default_rng([seed, 2])
    each = -(-count // max(1, len(texts)))  # spans of one document
    chosen: dict[str, None] = {}
    for document in rng.permutation(len(texts)):
        words = (texts[document] or "").split()
        for _ in range(each if len(words) >= SPAN_WORDS[0] else 0):
            length = int(rng.integers(SPAN_WORDS[0], min(SPAN_WORDS[1], len(words)) + 1))
            start = int(rng.integers(0, len(words) - length + 1))
            chosen.setdefault(" ".join(words[start : start + length]))
        if len(chosen) >= count:
            break
    return list(chosen)[:count]


def _sentences(text: str) -> Iterator[str]:
    for sentence in _SENTENCE_END.split(text):
        if SENTENCE_WORDS[0] <= len(sentence.split()) <= SENTENCE_WORDS[1]:
            yield sentence.strip()


def dev_queries(dataset: Dataset) -> list[str]:
    """The texts of the judged dev queries, in the order of their ids."""
    texts: list[str] = relevant(dataset, "dev").groupby("query_id", sort=True)["text"].first().tolist()
    return texts


def relevant(dataset: Dataset, split: str) -> pd.DataFrame:
    """The judgements of a split that call a document relevant: query_id, doc_id, score and the query's text."""
    judged = dataset.judgements(split)
    return judged[judged["score"] > 0].merge(dataset.judged_queries(split), on="query_id")


# --- What a student learns from where the teacher's query vectors are stored, and some or all of them are missing.


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


# --- The teacher's query vectors, computed once and kept as an artifact: aligning a student needs neither teacher nor documents.


TARGETS = "teacher_targets.parquet"
HELD_OUT = "held out"  # source of the queries that are only compared with, never learned from


def write_teacher_targets(
    teacher: TextEncoder,
    sources: Mapping[str, Sequence[str]],
    parents: Mapping[str, str],
    folder: Path,
    held_out: Sequence[str] = (),
    left_out: Mapping[str, int] | None = None,
) -> VectorShards:
    """Encode the queries of every source (name -> texts) with the teacher's query tower and keep text, source and vector (fp16).

    A text that stands in two sources counts for the first. `held_out` texts are encoded too, but are no targets. The artifact counts
    the queries of each source and names its share of all, and counts those `left_out` of each.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    first: dict[str, str] = {}
    for source, members in sources.items():
        for text in members:
            first.setdefault(text, source)
    texts, origins = [*first, *held_out], [*first.values(), *[HELD_OUT] * len(held_out)]
    vectors = teacher.encode(texts, progress="teacher queries").astype(np.float16)
    flat = pa.array(vectors.reshape(-1), type=pa.float16())
    column = pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])
    pq.write_table(pa.table({"text": texts, "source": origins, "vector": column}), folder / TARGETS)
    found = Counter(first.values())
    sizes = {source: found[source] for source in sources}
    counts = {"queries": len(first), **{f"source_{source}": size for source, size in sizes.items()}}
    counts |= {f"left_out_{source}": size for source, size in (left_out or {}).items() if size}
    shares = {f"share_{source}": round(size / max(1, len(first)), 4) for source, size in sizes.items()}
    attributes = {"space_id": teacher.space_id, "dimension": vectors.shape[1], **shares}
    made = seal(folder, "vectors", counts=counts, parents=parents, attributes=attributes)
    return VectorShards.model_validate(made.model_dump())


def read_teacher_targets(folder: Path) -> tuple[list[str], NDArray[np.float32]]:
    """Texts to learn from and their unit vectors, float32 (n, dimension)."""
    table = _read(folder, held_out=False)
    return table["text"].to_pylist(), _unit_vectors(table)


def read_sources(folder: Path) -> list[str]:
    """The source of each text, in the order of `read_teacher_targets`."""
    sources: list[str] = _read(folder, held_out=False)["source"].to_pylist()
    return sources


def read_held_out(folder: Path) -> dict[str, NDArray[np.float32]]:
    """Held-out texts with their unit vectors, float32 (dimension,)."""
    table = _read(folder, held_out=True)
    return dict(zip(table["text"].to_pylist(), _unit_vectors(table), strict=True))


def held_out_vectors(folder: Path) -> NDArray[np.float32] | None:
    """Unit vectors of the held-out texts alone, float32 (n, dimension); None when there are none."""
    table = _read(folder, held_out=True)
    return _unit_vectors(table) if len(table) else None


def _read(folder: Path, held_out: bool) -> pa.Table:
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(folder / TARGETS)
    except OSError as error:
        raise ArtifactError(f"{folder / TARGETS} cannot be read ({error}). Run the flow again to make it anew.") from None
    of_held_out = pc.equal(table["source"], HELD_OUT)
    return table.filter(of_held_out if held_out else pc.invert(of_held_out))


def _unit_vectors(table: pa.Table) -> NDArray[np.float32]:
    column = table["vector"].combine_chunks()
    vectors = column.flatten().to_numpy(zero_copy_only=False).astype(np.float32).reshape(len(table), column.type.list_size)
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True).clip(1e-12)).astype(np.float32)
