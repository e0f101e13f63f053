"""What a plan has to know of the data and the models: counts, lengths in tokens, scripts, and the models' shapes. No model is loaded."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from components.distillation.config import DistillationConfig
from components.errors import ModelError
from components.evaluation.config import EvaluationConfig
from components.towers.config import WITHOUT_WEIGHTS, CompanionConfig, JudgeConfig, TowerConfig
from components.towers.encoder import WORTH, common_lengths
from components.towers.model_size import Shape, shape_of
from components.towers.tokens import batches_by_tokens, even_length, tokens_of

if TYPE_CHECKING:
    from components.data.dataset import Dataset
    from components.index.config import IndexConfig
    from components.towers.base_models import BaseModel

SAMPLE = 20_000  # texts of a kind whose tokens are counted; of more a seeded sample speaks for all
SHARES = (50, 95, 99)  # percentiles of the lengths that people are shown
LONGEST = 1_000_000  # characters of a text that are looked at
COMMON_AT_MOST = 2_000  # characters at the beginning of a text that are looked at for what it shares
BYTES_PER_TOKEN = 4  # where tokens are guessed: four Latin letters, two of Cyrillic, or one and a third of Chinese
KEPT_TOKEN = 55  # bytes of a token of texts whose tokens are held all at once (measured: of 40,000 texts, the pieces they are read in too)
# Comparisons of two vectors that take as long as adding a row to a graph (measured with 120,000 rows), or as finding its list by one.
GRAPH_SCORES, LIST_BY_GRAPH = 2_500, 500
RESIDUAL_BEAM = 4  # candidates that each level of residual lists goes on with


@dataclass(frozen=True)
class Texts:
    """Texts of one kind: how many there are, their characters in all, and for a sample of them the tokens, uncut.

    `teacher` counts by the teacher's tokenizer, with prompt and end token; `student` by the student's. `common`: how many of its first
    tokens a text shares with another of the sample, for which a causal teacher works once; None where nobody looked.
    """

    count: int
    characters: int
    teacher: NDArray[np.int64]
    student: NDArray[np.int64]
    common: NDArray[np.int64] | None = None

    def percentiles(self) -> tuple[int, ...]:
        """Tokens of the teacher at `SHARES`; empty where there are no texts."""
        return tuple(int(np.ceil(v)) for v in np.percentile(self.teacher, SHARES)) if len(self.teacher) else ()

    def at_most(self, limit: int | None) -> Texts:
        """So many of them, with their share of the characters; themselves where there are no more, or without a limit."""
        if limit is None or self.count <= limit:
            return self
        return Texts(limit, round(self.characters * limit / self.count), self.teacher, self.student)


@dataclass(frozen=True)
class Facts:
    """A data set as a plan sees it.

    `sources`: the texts that a student is aligned on, by source, each text counted for the first that has it. `pairs` (n, 2): tokens of
    query and document, uncut, of a sample of the `pair_count` training pairs. `refine_pairs`: pairs of the refinement. `judged`: queries
    of the splits that are evaluated; `judged_counts`: judged queries of every split. `scripts`: share of the documents by script.
    `design_effect`: how many judged queries of the decisive split say as much as one that was drawn by itself (`expected_effect`).
    `units`: in how many they were drawn, None where each is its own; `taken_apart`: how many the data would make, where the settings take
    some of these apart. `untrained_length`: tokens that the student's encoder reads of a text
    before training. `companion`: of the encoder beside the towers, `judge`: of the model that they learn to order documents by.
    `dimension`: of the vectors, where a teacher that is taken as it is does not give them as wide as it is itself.
    """

    documents: Texts
    sources: Mapping[str, Texts]
    dev: Texts
    judged: Mapping[str, Texts]
    judged_counts: Mapping[str, int]
    pairs: NDArray[np.int64]
    pair_count: int
    refine_pairs: int
    scripts: Mapping[str, float]
    teacher: Shape
    student: Shape
    design_effect: float = 1.0
    untrained_length: int = 512
    companion: Shape | None = None
    judge: Shape | None = None
    units: int | None = None
    taken_apart: int = 0
    dimension: int | None = None

    def judge_bytes(self, towers: TowerConfig) -> int:
        """Bytes of the judge's weights, which are float32, and of a batch on its way through; 0 without one."""
        from components.towers.losses import judge_length

        if self.judge is None:
            return 0
        longest = min(judge_length(towers), int(self.pairs.sum(1).max(initial=1)))
        return 4 * self.judge.parameters + self.judge.passing(towers.judge.batch_size * longest, 4)

    @property
    def targets(self) -> int:
        """Texts that a student is aligned on."""
        return sum(texts.count for texts in self.sources.values())


def shape_of_base(base: BaseModel, read: Callable[[BaseModel], Any] | None = None) -> Shape:
    """The shape of a base model, by default one that encodes texts; raises ModelError when its configuration states none."""
    from components.towers.base_models import load_config

    try:
        config = (read or load_config)(base)
        return shape_of(config, len(base.layers) if base.layers is not None else config.num_hidden_layers)
    except (AttributeError, TypeError, ValueError) as error:
        said = str(error).strip().splitlines()[0]
        raise ModelError(f"The configuration of '{base.name}' does not say how large it is: {said}. Name another model.") from None


def _teacher_shape(towers: TowerConfig, texts: Sequence[str]) -> Shape:
    """The teacher's shape; one without weights takes no memory here beyond its vectors."""
    from components.distillation.student.initial import width_of
    from components.towers.base_models import tower_base

    if towers.base_model not in WITHOUT_WEIGHTS:
        return shape_of_base(tower_base(towers, texts))

    return Shape(layers=0, width=width_of(towers), inner=0, heads=0, key_heads=0, head_width=0, vocabulary=0, gated=False)


def _shape_beside(own: CompanionConfig | JudgeConfig, texts: Sequence[str]) -> Shape | None:
    from components.towers.base_models import resolve_base
    from components.towers.losses import judge_config

    read = judge_config if isinstance(own, JudgeConfig) else None
    return shape_of_base(resolve_base(own.base_model, texts, own.revision), read) if own.base_model else None


def gather_facts(
    dataset: Dataset, towers: TowerConfig, distillation: DistillationConfig, evaluation: EvaluationConfig, rough: bool = False
) -> Facts:
    """Read a data set as `Facts`; `rough` guesses the tokens from the characters and loads no tokenizer.

    Raises DataError for data that cannot be trained or measured on, ModelError for an unknown model.
    """
    from components.distillation.query_sources import dev_queries, query_sources
    from components.distillation.student.initial import width_of
    from components.distillation.train import refinement_pairs
    from components.evaluation.slices import script_of
    from components.evaluation.summarize import judged_split
    from components.evaluation.units import expected_effect, query_units
    from components.towers.pairs import training_pairs

    pairs, units = training_pairs(dataset), query_units(judged_split(dataset, evaluation.split), dataset, evaluation.query_groups)
    built_from = [*pairs.documents, *pairs.queries]
    count = _Counter() if rough else _Counter.of(towers, distillation, built_from)
    first: dict[str, str] = {}
    for source, texts in query_sources(dataset, distillation).items():
        for text in texts:
            first.setdefault(text, source)
    by_source: dict[str, list[str]] = {}
    for text, source in first.items():
        by_source.setdefault(source, []).append(text)
    chosen = _sample(len(pairs.pairs))
    query_lengths = count.teacher([pairs.queries[pairs.pairs[i][0]] for i in chosen], towers.query_prompt)
    document_lengths = count.teacher([pairs.documents[pairs.pairs[i][1]] for i in chosen], towers.document_prompt)
    scripts = Counter(script_of(pairs.documents[i]) for i in _sample(len(pairs.documents))[:2000])
    splits = dict.fromkeys((evaluation.split, *evaluation.extra_splits))
    return Facts(
        documents=count.texts(pairs.documents, towers.document_prompt),
        sources={source: count.texts(texts, towers.query_prompt) for source, texts in by_source.items()},
        dev=count.texts(dev_queries(dataset), towers.query_prompt),
        judged={split: count.texts(judged_split(dataset, split).texts, towers.query_prompt) for split in splits},
        judged_counts={split: len(dataset.judged_queries(split)) for split in dataset.splits},
        pairs=np.stack([query_lengths, document_lengths], axis=1),
        pair_count=len(pairs.pairs),
        refine_pairs=len(refinement_pairs(dataset, list(first), distillation.refine_titles)),
        scripts={script: found / scripts.total() for script, found in scripts.most_common()},
        teacher=_teacher_shape(towers, built_from),
        student=shape_of_base(_student_base(towers, distillation, built_from)),
        design_effect=expected_effect(units),
        units=None if units.count == len(units.query_ids) else units.count,
        taken_apart=units.taken_apart,
        dimension=width_of(towers) if towers.training == "none" else None,
        untrained_length=_untrained_length(distillation, built_from),
        companion=_shape_beside(towers.companion, built_from),
        judge=_shape_beside(towers.judge, built_from),
    )


def _untrained_length(distillation: DistillationConfig, built_from: Sequence[str]) -> int:
    from components.distillation.student.initial import published_length
    from components.evaluation.systems import UNTRAINED_MAX_LENGTH
    from components.towers.base_models import resolve_base

    if distillation.student == "teacher":
        return UNTRAINED_MAX_LENGTH
    published = published_length(resolve_base(distillation.student, built_from, distillation.revision).location)
    return min(UNTRAINED_MAX_LENGTH, published or UNTRAINED_MAX_LENGTH)


class _Counter:
    """Counts tokens with both tokenizers; without any it guesses."""

    def __init__(self, teacher: Any = None, student: Any = None) -> None:
        self._teacher, self._student = teacher, student

    @classmethod
    def of(cls, towers: TowerConfig, distillation: DistillationConfig, built_from: Sequence[str]) -> _Counter:
        from components.towers.base_models import tower_base

        return cls(_tokenizer(tower_base(towers, built_from)), _tokenizer(_student_base(towers, distillation, built_from)))

    def teacher(self, texts: Sequence[str], prompt: str) -> NDArray[np.int64]:
        # One more than the tokenizer's own: the end token, which some of them add by themselves.
        ends = int(self._teacher is not None and self._teacher.eos_token_id is not None)
        return _lengths(self._teacher, [prompt + text for text in texts], ends)

    def texts(self, texts: Sequence[str], prompt: str) -> Texts:
        shown = [texts[i] for i in _sample(len(texts))]
        teacher, common = self.teacher(shown, prompt), _common_tokens(self._teacher, [prompt + text for text in shown])
        return Texts(len(texts), sum(map(len, texts)), teacher, _lengths(self._student, shown, 0), common)


def _student_base(towers: TowerConfig, distillation: DistillationConfig, built_from: Sequence[str]) -> BaseModel:
    from components.towers.base_models import resolve_base, tower_base

    if distillation.student == "teacher":
        return tower_base(towers, built_from)
    return resolve_base(distillation.student, built_from, distillation.revision)


def _tokenizer(base: BaseModel) -> Any:
    from components.towers.base_models import tokenizer_of, why_unloadable

    try:
        return tokenizer_of(base)
    except base.faults as error:
        raise ModelError(f"The tokenizer of '{base.name}' cannot be loaded: {why_unloadable(error)}") from None


def _lengths(tokenizer: Any, texts: Sequence[str], more: int) -> NDArray[np.int64]:
    """Tokens of each text and `more`; a text that already ends with the end token gets none on top."""
    if tokenizer is None or not texts:
        return np.array([1 + guessed_tokens(text) for text in texts], np.int64)
    rows = tokenizer([text[:LONGEST] for text in texts], truncation=False, verbose=False)["input_ids"]
    ends = [more if not row or row[-1] != tokenizer.eos_token_id else 0 for row in rows]
    return np.array([len(row) + end for row, end in zip(rows, ends, strict=True)], np.int64)


def guessed_tokens(text: str) -> int:
    """About how many tokens a text has, whatever its script: of Latin, Chinese or Japanese text a tokenizer may count a third more or less.

    Of other scripts it counts half as many where it was made for many languages, and twice as many where it was made for English.
    """
    return 1 + len(text.encode("utf-8", "surrogatepass")) // BYTES_PER_TOKEN


def _common_tokens(tokenizer: Any, texts: Sequence[str]) -> NDArray[np.int64] | None:
    if tokenizer is None or not texts:
        return None
    rows = tokenizer([text[:COMMON_AT_MOST] for text in texts], truncation=False, verbose=False)["input_ids"]
    found = np.zeros(len(rows), np.int64)
    for number, common in common_lengths(rows):
        found[number] = common
    return found


def _sample(count: int) -> list[int]:
    """At most SAMPLE of the numbers below `count`, in a fixed random order."""
    order = np.random.default_rng(0).permutation(count)
    return [int(i) for i in order[:SAMPLE]]


# --- Tokens of texts in batches, by the functions that the steps themselves make their batches with.


def padded(lengths: NDArray[np.int64], count: int, cap: int, tokens: int, even: bool = False) -> float:
    """Tokens, padding included, of `count` texts whose lengths are like `lengths`, in batches as the towers make them."""
    if not len(lengths) or not count:
        return 0.0
    cut = np.minimum(lengths, cap)
    if count < len(cut):
        cut = cut[:count]
    return sum(batch_tokens(cut.tolist(), tokens, even)) * count / len(cut)


def batch_tokens(lengths: Sequence[int], tokens: int, even: bool) -> list[int]:
    """Tokens of each batch of at most `tokens`, padding included."""
    lengths = [even_length(length) for length in lengths] if even else lengths
    return [tokens_of(lengths[batch[0]], len(batch), even) for batch in batches_by_tokens(lengths, tokens)]


def passed(texts: Texts, count: int, cap: int, tokens: int, attention: str) -> float:
    """Tokens of `count` texts like these that go through a saved tower, padding included and common beginnings counted once."""
    plain = padded(texts.teacher, count, cap, tokens)
    if attention != "causal" or texts.common is None or not len(texts.teacher):
        return plain
    cut = np.minimum(texts.teacher, cap)
    kept = float((cut - np.minimum(texts.common, cut - 1)).sum() / cut.sum())
    return kept * real(texts.teacher, count, cap) if kept <= WORTH else plain


def real(lengths: NDArray[np.int64], count: int, cap: int) -> float:
    """Tokens without padding of `count` texts whose lengths are like `lengths`."""
    return float(np.minimum(lengths, cap).mean() * count) if len(lengths) else 0.0


def token_bytes(lengths: NDArray[np.int64], count: int, cap: int) -> int:
    """Bytes of the tokens of `count` texts whose lengths are like `lengths`, cut at `cap`, while all are held at once."""
    return round(KEPT_TOKEN * real(lengths, count, cap))


# --- An index by its key: what it takes, and what it costs to add to it.


def bytes_per_row(key: str, dimension: int) -> int:
    """Bytes of a row in the FAISS index of a key: codes, its number in a list, links in a graph; 0 for exact search, which has none."""
    from components.index.engine import empty_index, graph, inner_index, inverted_file
    from components.index.index_keys import is_exact

    if is_exact(key):
        return 0
    index = empty_index(key, dimension)
    if (lists := inverted_file(index)) is not None:
        return int(lists.code_size) + 8
    if (small_world := graph(index)) is None:
        return int(inner_index(index).sa_code_size())
    links = small_world.hnsw.nb_neighbors(0) + 1  # and one in thirty rows or so stands on a higher level, with half as many
    return int(small_world.storage.sa_code_size()) + 4 * links + 12  # its level, and where its links begin


def index_bytes(config: IndexConfig, documents: int, dimension: int) -> tuple[int, int, int]:
    """Bytes of memory in which an index is built, of its files, and of those of its parts that lie beside them while they are merged.

    The ids are not counted. Raises ConfigError as `usable_key` does.
    """
    from components.index.engine import BLOCK, empty_index
    from components.index.index_keys import is_exact, usable_key
    from components.index.merging import can_merge

    key = usable_key(config, documents, dimension)
    if is_exact(key):
        return 8 * dimension * BLOCK, 2 * documents * dimension, 0
    codes, merged = bytes_per_row(key, dimension) * documents, config.layout == "merged"
    stored = {"none": 0, "int8": 1, "fp16": 2}[config.refine] * documents * dimension
    # Packed codes of a fast scan are in memory however they lie (see `open_mapped`), those of others as they are written.
    held = codes if merged or "fs" in key else codes * min(documents, config.part_size) // documents
    beside = codes if merged and can_merge(empty_index(key, dimension)) else 0
    return 8 * min(documents, config.train_vectors) * dimension + held, stored + codes, beside


def added_by(key: str) -> tuple[int, int]:
    """Centroids that the training of an index finds, and how many comparisons of two vectors take as long as adding a row to it."""
    lists = int(found[1]) if (found := re.search(r"IVF(\d+)", key)) else 0
    if levels := re.search(r"RCQ(\d+)x(\d+)", key):
        count, size = int(levels[1]), 2 ** int(levels[2])
        return count * size, size * (1 + RESIDUAL_BEAM * (count - 1))
    if "HNSW" in key:
        return lists, min(lists, LIST_BY_GRAPH) if lists else GRAPH_SCORES
    return lists, lists
