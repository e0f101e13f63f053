"""Query texts by source: what a student learns from, and what the teacher encodes for it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from components.data.tables import normalise_text
from components.distillation.config import DistillationConfig
from components.visible import is_blank

if TYPE_CHECKING:
    import pandas as pd

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
