"""Query texts by source: what a student learns from, and what the teacher encodes for it.

Noise makes further ones as people and programs do: typing errors, words left out, other case, polite padding.

What happens to a query depends on its text, the kind, the rate and the seed alone, not on the queries around it, so that every system is
asked the same noisy queries.

Where the teacher's query vectors are stored and some are missing, a document's own vector stands in for its title, and the mean of the
relevant documents' vectors for a train query: the student is to land where the answers lie, and the refinement goes on from there.
Held-out queries get no stand-in, since they are measured.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from components.artifacts import Artifact, DatasetArtifact, EncoderArtifact, VectorShards, by_role, parents_of
from components.data.dataset import TRANSLATED, load_dataset, wording
from components.distillation.config import DistillationConfig
from components.distillation.teacher_targets import write_teacher_targets
from components.errors import DataError
from components.text import is_blank, joined, words_in
from components.towers.encoder import open_tower
from components.towers.trained.stored import TextVectors

if TYPE_CHECKING:
    import pandas as pd

    from components.data.dataset import Dataset
    from components.towers.contract import TextEncoder


SHORTEST = 3  # letters of a word that can get a typing error; in a shorter one it would leave another word
KEYBOARD = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
POLITE = (
    "Hello, could you please tell me {}? Thank you very much.",
    "I was wondering if you could help me with the following: {}",
    "Hi there! I am looking for information about {}, thanks in advance.",
    "Please find everything that you know about {} for me.",
)

MIXED = (("typos", 0.3), ("dropped_words", 0.3), ("lower_case", 1.0), ("verbosity", 1.0))  # kind and rate, each as often as another


class Noise(NamedTuple):
    """One of `KINDS`, the share of the words that change (for verbosity of the queries), and the seed."""

    kind: str
    rate: float
    seed: int


def add_noise(texts: Sequence[str], noise: Noise) -> list[str]:
    """`texts` with the noise in them, in the same order."""
    change = KINDS[noise.kind]
    return [change(text, noise.rate, random.Random(f"{noise.seed}:{noise.kind}:{text}")) for text in texts]


def mixed_noise(texts: Sequence[str], seed: int) -> list[str]:
    """`texts` with one of `MIXED` in each, which follows from the text and the seed."""
    chosen = [random.Random(f"{seed}:mixed:{text}").choice(MIXED) for text in texts]
    return [add_noise([text], Noise(kind, rate, seed))[0] for text, (kind, rate) in zip(texts, chosen, strict=True)]


def typos(text: str, rate: float, rng: random.Random) -> str:
    """One error in each chosen word: a letter doubled, left out, struck beside its key, or exchanged with the next."""
    return _each_word(text, rate, rng, lambda word: _misspelt(word, rng) if len(word) >= SHORTEST else word)


def dropped_words(text: str, rate: float, rng: random.Random) -> str:
    """The chosen words are left out; one word always stays."""
    words = words_in(text)
    kept = [word for word in words if rng.random() >= rate]
    return joined(kept or ([rng.choice(words)] if words else []))


def upper_case(text: str, rate: float, rng: random.Random) -> str:
    """The chosen words in capitals."""
    return _each_word(text, rate, rng, str.upper)


def lower_case(text: str, rate: float, rng: random.Random) -> str:
    """The chosen words without capitals."""
    return _each_word(text, rate, rng, str.lower)


def verbosity(text: str, rate: float, rng: random.Random) -> str:
    """The chosen queries within a polite sentence."""
    return rng.choice(POLITE).format(text) if rng.random() < rate else text


KINDS: dict[str, Callable[[str, float, random.Random], str]] = {
    "typos": typos,
    "dropped_words": dropped_words,
    "upper_case": upper_case,
    "lower_case": lower_case,
    "verbosity": verbosity,
}


def _each_word(text: str, rate: float, rng: random.Random, change: Callable[[str], str]) -> str:
    return " ".join(change(word) if rng.random() < rate else word for word in text.split())


def _misspelt(word: str, rng: random.Random) -> str:
    place = rng.randrange(1, len(word))  # the first letter is the one that people get right
    before, first, second, after = word[: place - 1], word[place - 1], word[place], word[place + 1 :]
    return before + rng.choice((second + first, first, first + second + second, first + _beside(second, rng))) + after


def _beside(letter: str, rng: random.Random) -> str:
    """A key beside that of `letter`; the letter itself doubled where the keyboard has no such key."""
    row = next((row for row in KEYBOARD if letter.lower() in row), None)
    if row is None:
        return letter * 2
    place = row.index(letter.lower())
    return rng.choice([row[i] for i in (place - 1, place + 1) if 0 <= i < len(row)])


# --- Query texts by source: what a student learns from, and what the teacher encodes for it.


SENTENCE_WORDS = (3, 40)  # shorter ones are headings and numbers, longer ones are no queries
SPAN_WORDS = (3, 12)  # of what is cut from anywhere in a document, as long as queries are
# Latin, Arabic, Urdu and Indic marks end a sentence before white space; those of Chinese and Japanese with none, but for closing brackets.
_SENTENCE_END = re.compile(
    "(?<=[.!?\u061f\u06d4\u0964\u0965\u1362\u104b\u17d4])\\s+|(?<=[\u3002\uff01\uff1f\uff61])(?![\u3002\uff01\uff1f\u300d\u300f\uff09\u201d\u2019])\\s*"
    "|(?<=[\u3002\uff01\uff1f][\u300d\u300f\uff09\u201d\u2019])\\s*|\\s*\\n\\s*"
)


def query_sources(dataset: Dataset, config: DistillationConfig, generated: Sequence[str] = ()) -> dict[str, list[str]]:
    """Texts for the alignment by source: queries (train, unlabelled, translated, generated), titles, sentences, spans (seeded samples).

    Beside the train queries none of them reads as a query that is held out (see `learnable`).
    """
    return learnable(dataset, config, generated)[0]


def learnable(dataset: Dataset, config: DistillationConfig, generated: Sequence[str] = ()) -> tuple[dict[str, list[str]], dict[str, int]]:
    """The texts of `query_sources`, and by source how many different ones were left out because they read as a held-out query.

    Held out are the judged queries of every split but train; a translation is left out with its original too. Texts are compared as the
    contracts compare them, without case and punctuation. Train queries are left to the contracts: there such a text has an answer, and
    the data has to be corrected.
    """
    titles = dataset.documents["title"]
    titles = titles[[not is_blank(title) for title in titles.fillna("")]].drop_duplicates()
    if len(titles) > config.titles:
        titles = titles.sample(config.titles, random_state=config.seed)
    same = originals(dataset)
    drawn = {
        **({TRANSLATED: list(same)} if same else {}),  # before the unlabelled: logs hold the same texts, without their originals
        "unlabelled": dataset.unlabelled["text"].tolist(),
        "titles": titles.tolist(),
        "sentences": document_sentences(dataset.documents["text"].tolist(), config.sentences, config.seed),
        **({"spans": document_spans(dataset.documents["text"].tolist(), config.spans, config.seed)} if config.spans else {}),
        "generated": list(generated),
    }
    tested = held_out_wordings(dataset)
    kept = {source: [text for text in texts if wording(text) not in tested] for source, texts in drawn.items()}
    if same:
        kept[TRANSLATED] = [text for text in kept[TRANSLATED] if wording(same[text]) not in tested]
    left_out = {source: len(set(texts)) - len(set(kept[source])) for source, texts in drawn.items()}
    return {"train": dataset.judged_queries("train")["text"].tolist(), **kept}, left_out


def originals(dataset: Dataset) -> dict[str, str]:
    """Each translated query with what the teacher reads in its place; those that are blank on either side are left out."""
    rows = zip(dataset.translated["text"].fillna(""), dataset.translated["original"].fillna(""), strict=True)
    found: dict[str, str] = {}
    for text, original in rows:
        if not is_blank(text) and not is_blank(original):
            found.setdefault(text, original)
    return found


def held_out_wordings(dataset: Dataset) -> frozenset[str]:
    """The normalised texts of the judged queries of every split but train."""
    splits = [split for split in dataset.splits if split != "train"]
    return frozenset(wording(text) for split in splits for text in dataset.judged_queries(split)["text"]) - {""}


def document_sentences(texts: Sequence[str], count: int, seed: int) -> list[str]:
    """At most `count` different sentences of 3 to 40 words, from as many documents as possible, in the seed's order.

    A sentence ends at a full stop, question or exclamation mark (of Arabic, Urdu and Indic scripts too) before white space, at one of
    Chinese or Japanese, or at a line's end.
    Words are those of `words_in`: where none are written apart, two letters count as one.
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
        words = words_in(texts[document] or "")
        for _ in range(each if len(words) >= SPAN_WORDS[0] else 0):
            length = int(rng.integers(SPAN_WORDS[0], min(SPAN_WORDS[1], len(words)) + 1))
            start = int(rng.integers(0, len(words) - length + 1))
            chosen.setdefault(joined(words[start : start + length]))
        if len(chosen) >= count:
            break
    return list(chosen)[:count]


def _sentences(text: str) -> Iterator[str]:
    for sentence in _SENTENCE_END.split(text):
        if SENTENCE_WORDS[0] <= len(words_in(sentence)) <= SENTENCE_WORDS[1]:
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


@dataclass(frozen=True)
class TeacherInputs:
    """What the teacher's query vectors are made from.

    `generated`: queries that a decoder wrote. `document_tower`: needed where the teacher is stored vectors alone, since those of documents
    stand in for missing ones.
    """

    dataset: DatasetArtifact
    query_tower: EncoderArtifact
    generated: Artifact | None = None
    document_tower: EncoderArtifact | None = None


def encode_teacher_queries(inputs: TeacherInputs, config: DistillationConfig, generated: Callable[[], Texts], folder: Path) -> VectorShards:
    """The step encode_teacher_queries: what the student learns from, and the dev queries, with the teacher's vectors of them.

    `generated` reads the queries that a decoder wrote; it is handed in, so that the code which reads them counts only where there are some.
    Raises as `answerable` does, and ModelError or ArtifactError for a tower that cannot be opened.
    """
    data = load_dataset(inputs.dataset.path)
    sources, left_out = learnable(data, config, generated())
    documents = open_tower(inputs.document_tower.path) if inputs.document_tower else None
    teacher, sources, held_out = answerable(open_tower(inputs.query_tower.path), documents, data, (sources, dev_queries(data)))
    return write_teacher_targets(teacher, sources, parents_of(by_role(inputs)), folder, held_out, left_out, originals(data))


def answerable(
    teacher: TextEncoder, documents: TextEncoder | None, dataset: Dataset, asked: tuple[Mapping[str, Texts], Texts]
) -> tuple[TextEncoder, dict[str, list[str]], list[str]]:
    """The teacher, and of the texts to learn from (by source) and those held out (`asked`) those that it has vectors for.

    A teacher that can encode answers all of them. One of stored vectors gets stand-ins from the document tower `documents`. Raises
    DataError when no text is left to learn from.
    """
    sources, held_out = asked
    if not isinstance(teacher, TextVectors):
        return teacher, {source: list(texts) for source, texts in sources.items()}, list(held_out)
    others = stand_ins(dataset, documents) if isinstance(documents, TextVectors) else {}
    same = originals(dataset)

    def read_as(source: str, text: str) -> str:
        return same[text] if source == TRANSLATED else text

    known = {source: _known(teacher, [read_as(source, text) for text in texts]) for source, texts in sources.items()}
    chosen = {
        source: [text for text in texts if (read := read_as(source, text)) in others or read in known[source]]
        for source, texts in sources.items()
    }
    if not any(chosen.values()):
        raise DataError("No query and no title has a vector to learn from. Give vectors of train queries, or documents with titles.")
    for source, texts in chosen.items():
        if sources[source]:
            print(
                f"[encode_teacher_queries] {source}: {sum(read_as(source, text) in known[source] for text in sources[source]):,} of "
                f"{len(sources[source]):,} texts have a vector of their own, for "
                f"{sum(read_as(source, text) not in known[source] for text in texts):,} that of their documents stands in",
                flush=True,
            )
    answered = _known(teacher, held_out)
    return teacher.with_stand_ins(others), chosen, [text for text in held_out if text in answered]


def stand_ins(dataset: Dataset, documents: TextVectors) -> dict[str, NDArray[np.float32]]:
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


def _known(teacher: TextVectors, texts: Texts) -> set[str]:
    return {text for text, there in zip(texts, teacher.knows(texts), strict=True) if there}


def _mean(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    mean = vectors.mean(0)
    length = np.linalg.norm(mean)
    return (mean / length).astype(np.float32) if length > 1e-6 else vectors[0]
