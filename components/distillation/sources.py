"""Query texts by source: what a student learns from, and what the teacher encodes for it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from components.distillation.config import DistillationConfig
from components.visible import is_blank

if TYPE_CHECKING:
    import pandas as pd

    from components.data.dataset import Dataset

SENTENCE_WORDS = (3, 40)  # shorter ones are headings and numbers, longer ones are no queries
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\s*\n\s*")


def query_sources(dataset: Dataset, config: DistillationConfig, generated: Sequence[str] = ()) -> dict[str, list[str]]:
    """Texts for the alignment by source: train queries, unlabelled queries, titles, sentences (seeded samples), generated queries."""
    titles = dataset.documents["title"]
    titles = titles[[not is_blank(title) for title in titles.fillna("")]].drop_duplicates()
    if len(titles) > config.titles:
        titles = titles.sample(config.titles, random_state=config.seed)
    return {
        "train": dataset.judged_queries("train")["text"].tolist(),
        "unlabelled": dataset.unlabelled["text"].tolist(),
        "titles": titles.tolist(),
        "sentences": document_sentences(dataset.documents["text"].tolist(), config.sentences, config.seed),
        "generated": list(generated),
    }


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


def _sentences(text: str) -> Iterator[str]:
    for sentence in _SENTENCE_END.split(text):
        if SENTENCE_WORDS[0] <= len(sentence.split()) <= SENTENCE_WORDS[1]:
            yield sentence.strip()


def dev_queries(dataset: Dataset) -> list[str]:
    """The texts of the judged dev queries, in the order of their ids."""
    texts: list[str] = relevant(dataset, "dev").groupby("query_id", sort=True)["text"].first().tolist()
    return texts


def relevant(dataset: Dataset, split: str) -> pd.DataFrame:
    """query_id, doc_id, score and text of the judgements of a split that say relevant."""
    judged = dataset.judgements(split)
    return judged[judged["score"] > 0].merge(dataset.judged_queries(split), on="query_id")
