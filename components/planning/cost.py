"""What a retraining costs: pure arithmetic from settings and facts to counts of work, and from counts and rates to seconds.

A step's work is a mapping from a unit (such as a token through the teacher) to how often it occurs. Its seconds are the sum of count
times rate, where the rates come from `calibration`. Memory and disk need no calibration: they follow from shapes and settings.
Counting uses the functions that the steps themselves use for their batches, so it changes with them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from components.distillation.student.forms import FORMS
from components.index.workers import useful_workers
from components.planning.facts import Facts, Texts, added_by, batch_tokens, index_bytes, padded, passed, real, token_bytes
from components.towers.device import FREED_FROM, even_shapes, pick_dtype
from components.towers.encoder import TOKENS_PER_BATCH
from components.towers.losses import judge_length
from components.towers.model_size import Shape, trained_layers
from components.towers.tokens import even_length, longest_text

# Every unit of work, and what one of it is.
UNITS: Mapping[str, str] = {
    "reference_second": "a second of plain Python on the machine that the constants here were measured on",
    "teacher_load": "loading a trained tower, its base model's digest included",
    "teacher_token": "a token, padding included, through a merged tower",
    "teacher_cached_token": "a token, padding included, through a tower with its adapter beside it, without a graph",
    "teacher_train_token": "a token, padding included, forward and backward",
    "teacher_step": "an optimizer step of the towers",
    "teacher_character": "a character through the teacher's tokenizer",
    "student_load": "loading the student",
    "student_token": "a token through the student as it will serve",
    "student_float_token": "a token through the student in float32, as it is scored while it learns",
    "align_batch": "a batch of the alignment, forward, backward and optimizer step",
    "refine_batch": "a batch of the refinement without its scores",
    "refine_score": "a query against a document in the refinement, forward and backward",
    "score": "a query against a document in a search by batches",
    "single_score": "a query against a document in a search by one query",
    "bm25_character": "a character read by BM25",
    "bm25_score": "a query against a document by BM25",
    "metric_query": "the metrics of a query for one system",
    "timing": "the rounds of timing of teacher and student",
    "written_byte": "a byte written and flushed",
}
STEPS = (
    "snapshot_data", "validate_data", "generate_queries", "train_companion", "train_towers", "join_companion", "encode_corpus",
    "encode_teacher_queries", "build_index", "distil_query_tower", "evaluate", "register",
)  # fmt: skip
PROBES = 64  # texts of `components.towers.contract`, some 12 tokens each with prompt and end token
PROBE_TOKENS = 12
GENERATED_TOKENS = 24  # tokens that a decoder writes for a query, each a pass through the model
# Seconds of plain Python, libraries' start and bookkeeping, by step: what is left of measured runs when all that is counted is taken off.
OVERHEAD = {
    "snapshot_data": 0.8,
    "validate_data": 2.4,
    "train_towers": 1.0,
    "train_companion": 1.0,
    "encode_corpus": 0.3,
    "encode_teacher_queries": 0.3,
    "build_index": 0.3,
    "distil_query_tower": 0.5,
    "evaluate": 2.0,
    "register": 8.0,
}
READ_DOCUMENT = 2e-5  # reference seconds to read, hash and write a document, and to hold it against the contracts
VALIDATED_DOCUMENT = 5e-5
HASHED_BYTE = 5e-10  # reference seconds of a byte of a file that is held against its digest, or sealed
JOINED_TIMES = 3  # that the files of joined towers are hashed: as what they are made of, in each tower, and as one artifact
BOOTSTRAP_VALUE = 6e-9  # reference seconds of a resampled value of the bootstrap
BOOTSTRAPS = 86  # intervals, differences and ratios of a report
COMPANION_STEP = 1.6  # a training step of padded texts through an encoder with adapters, over one of packed texts through the student
LISTS_VISITED = 0.05  # share of the documents that an approximate search compares with
KMEANS_ROUNDS = 10
FIT_TEXTS = 8192  # texts that the student's head is fitted on

# Memory in bytes, measured on whole runs in one process.
PROGRAM = 1_150_000_000  # interpreter and libraries
WORKER = 500_000_000  # the same of a process beside this one that encodes or trains
KEPT_MODELS = 2  # copies of the teacher that a finished step leaves to the garbage collector
STUDENT_TRAINING = 24  # bytes of a trained parameter of the student: weight, gradient, two moments, the best epoch and the checkpoint
TABLE_ROW, TABLE_CHARACTER = 600, 4  # of a data set that is held as tables and as lists of texts
INFERENCE_TOKEN = 60_000  # of a token on its way through a model without a graph
# Measured peaks of a process over the tensors that it keeps (scores, passing tensors, gradients on their way), and where freed tensors
# stay in the heap (`device.freed_at_once`).
HOST_OVERHEAD, HEAP_OVERHEAD = 1.15, 1.5
HEAP_HOLES = 200_000_000  # of short-lived tensors there, which the kept ones say nothing of; .13 to .42 GB were measured
HOST_BUFFERS = 60_000_000  # what the libraries take for themselves while they train, as measured beside that
CARD_PROGRAM = 800_000_000  # of a GPU: its context, and the libraries' own buffers
MARGIN = 1.15  # over the sum, before a job is refused nothing may be short by chance

Work = dict[str, float]


@dataclass(frozen=True)
class Need:
    """What a step takes: bytes of memory at its peak, `judge` of them a judge's, and of disk (`extra_disk`: more while it runs)."""

    memory: int
    disk: int
    extra_disk: int = 0
    judge: int = 0


def work_of(config: Any, facts: Facts) -> dict[str, Work]:
    """The work of every step of a retraining, by its name; `config` is a RetrainConfig. Steps that it does not have are left out."""
    documents, targets = facts.documents.count, target_texts(config, facts)
    kept = 4 * (trained_parameters(config.towers, facts) + companion_parameters(config.towers, facts))
    # A companion is loaded before the towers are trained, so that what is wrong with it is said in time.
    look: Work = {} if facts.companion is None else {"student_load" if _like_the_student(config) else "teacher_load": 1}
    found: dict[str, Work] = {
        "snapshot_data": {"reference_second": READ_DOCUMENT * documents},
        "validate_data": {"reference_second": VALIDATED_DOCUMENT * documents},
        "train_towers": _added(_added(_training(config, facts), _judging(config, facts)), look),
        "train_companion": _companion_training(config, facts),
        "join_companion": {"teacher_load": 2, "student_load": 2, "reference_second": JOINED_TIMES * HASHED_BYTE * kept},
        "generate_queries": {"teacher_token": config.distillation.generated * GENERATED_TOKENS, "teacher_load": 1},
        "encode_corpus": _corpus(config, facts),
        "encode_teacher_queries": _teacher_queries(config, facts, targets),
        "build_index": _index(config, facts),
        "distil_query_tower": _distillation(config, facts, targets),
        "evaluate": _evaluation(config, facts),
        "register": {"student_load": 2},
    }
    for step, seconds in OVERHEAD.items():
        found[step]["reference_second"] = found[step].get("reference_second", 0.0) + seconds
    return {step: found[step] for step in work_steps(config)}


def seconds_of(work: Mapping[str, float], rates: Mapping[str, float]) -> float:
    """Seconds of some work: the sum of count times rate. A unit without a rate raises KeyError: nothing costs nothing by mistake."""
    return float(sum(count * rates[unit] for unit, count in work.items() if count))


def target_texts(config: Any, facts: Facts) -> list[Texts]:
    """The texts that the teacher encodes under `config`, which may ask for fewer titles, sentences and spans than the facts have."""
    limits = {source: getattr(config.distillation, source) for source in ("titles", "sentences", "spans")}
    found = [texts.at_most(limits.get(source)) for source, texts in facts.sources.items()]
    if config.distillation.generated and "train" in facts.sources:
        train = facts.sources["train"]
        found.append(Texts(config.distillation.generated, 0, train.teacher, train.student))
    return [texts for texts in found if texts.count]


def _training(config: Any, facts: Facts) -> Work:
    towers = config.towers
    if towers.training == "none":
        return {"teacher_load": 4, "teacher_token": 2 * PROBES * PROBE_TOKENS}
    graph, cached = step_tokens(towers, facts)
    rounds = _mining_rounds(towers)
    chunk = towers.chunk_size * longest_text(towers)
    train = facts.sources.get("train") or facts.dev
    even = even_shapes(towers.precision)
    everything = padded(facts.documents.teacher, facts.documents.count, towers.max_document_length, chunk, even)
    everything += padded(train.teacher, train.count, towers.max_query_length, chunk, even)
    checked = padded(facts.documents.teacher, min(256, facts.documents.count), towers.max_document_length, chunk, even)
    checked += padded(train.teacher, min(256, train.count), towers.max_query_length, chunk, even)
    return {
        "teacher_train_token": towers.steps * graph,
        "teacher_cached_token": towers.steps * cached + rounds * everything + checked,
        "teacher_step": towers.steps,
        "score": rounds * train.count * facts.documents.count,
        "teacher_character": facts.documents.characters + train.characters,
        "teacher_load": 3,
        "teacher_token": 2 * PROBES * PROBE_TOKENS,
        "written_byte": (towers.steps // towers.checkpoint_every) * checkpoint_bytes(towers, facts),
    }


def _added(work: Work, more: Work) -> Work:
    return {unit: work.get(unit, 0.0) + more.get(unit, 0.0) for unit in {**work, **more}}


def _companion_training(config: Any, facts: Facts) -> Work:
    """The training of the companion, in batches of the student's alignment: most companions are what the student starts from."""
    towers, own = config.towers, config.towers.companion
    if facts.companion is None:
        return {}
    queries, documents = np.minimum(facts.pairs, [towers.max_query_length, towers.max_document_length]).mean(0)
    texts = own.steps * towers.batch_size
    if not _like_the_student(config):
        return {"teacher_train_token": texts * (queries + documents) * _size(facts.companion, facts.teacher), "teacher_load": 3}
    batches = texts / config.distillation.batch_size * (1 + documents / max(1.0, queries))
    return {"align_batch": COMPANION_STEP * batches * _size(facts.companion, _student_shape(config, facts)), "student_load": 3}


def _judging(config: Any, facts: Facts) -> Work:
    """What the judge reads while the towers are trained, counted as a cross-encoder's: each query with each of its documents."""
    towers, own = config.towers, config.towers.judge
    if facts.judge is None:
        return {}
    documents = min(1 + own.documents, towers.batch_size * (1 + towers.hard_negatives))
    read = np.minimum(facts.pairs.sum(1), judge_length(towers)).mean() * documents
    slower = 4 / pick_dtype(towers.precision).itemsize  # it is loaded as float32
    return {"teacher_token": towers.steps * towers.batch_size * read * slower * _size(facts.judge, facts.teacher), "teacher_load": 2}


def _through_companion(config: Any, facts: Facts, kinds: Iterable[Texts], longest: int) -> Work:
    """Texts through the companion, in tokens of an encoder whose speed is known."""
    if facts.companion is None:
        return {}
    if not _like_the_student(config):
        size = _size(facts.companion, facts.teacher)
        return {"teacher_token": sum(real(texts.teacher, texts.count, longest) for texts in kinds) * size}
    size = _size(facts.companion, _student_shape(config, facts))
    return {"student_token": sum(real(texts.student, texts.count, longest) for texts in kinds) * size}


def _like_the_student(config: Any) -> bool:
    """Whether the student is a small encoder with layers, whose measured speed says something of the companion's."""
    return FORMS[config.distillation.form].has_layers and config.distillation.student != "teacher"


def _student_shape(config: Any, facts: Facts) -> Shape:
    return replace(facts.student, layers=layers_kept(config.distillation.layers, facts.student.layers))


def _size(one: Shape, other: Shape) -> float:
    """Parameters in the layers of one over those of the other."""
    return (one.parameters - one.embeddings) / max(1, other.parameters - other.embeddings)


def step_tokens(towers: Any, facts: Facts) -> tuple[float, float]:
    """Tokens, padding included, of a training step: forward and backward, and those of cached chunks that go forward once more.

    The mean over up to 40 steps of the real plan of batches on the sampled pairs. Raises ModelError for fewer pairs than a batch.
    """
    from components.towers.pairs import BatchPlan, Pairs

    lengths = np.minimum(facts.pairs, [towers.max_query_length, towers.max_document_length])
    if len(lengths) < towers.batch_size <= facts.pair_count:  # a batch larger than the sample
        lengths = np.resize(lengths, (towers.batch_size, 2))
    numbers = Pairs([], [], [(i, i) for i in range(len(lengths))], {})
    single = towers.model_copy(update={"homogeneous_batches": False})
    plan = BatchPlan(numbers, single, lengths[:, 0].tolist(), lengths[:, 1].tolist())
    steps = range(min(towers.steps, plan.steps_per_epoch, 40))
    sums = np.array([_tokens_of_batch(towers, facts, lengths[plan.of_step(step)]) for step in steps])
    return float(sums[:, 0].mean()), float(sums[:, 1].mean())


def _tokens_of_batch(towers: Any, facts: Facts, lengths: NDArray[np.int64]) -> tuple[float, float]:
    queries, documents = lengths[:, 0].tolist(), lengths[:, 1].tolist()
    if towers.hard_negatives:
        more = np.resize(np.minimum(facts.documents.teacher, towers.max_document_length), len(lengths) * towers.hard_negatives)
        documents += more.tolist()
    most, even = towers.chunk_size * longest_text(towers), even_shapes(towers.precision)
    parts = [batch_tokens(rows, most, even) for rows in (queries, documents)]
    whole = float(sum(map(sum, parts)))
    if all(len(part) == 1 for part in parts):
        return whole, 0.0
    # The first chunk of documents keeps its graph; of the others the layers below the first trained one are worked out once.
    return whole, (whole - parts[1][0]) * facts.teacher.passed_twice(trained_layers(towers))


def _mining_rounds(towers: Any) -> int:
    from components.towers.negatives import round_of_step

    last = round_of_step(towers.steps - 1, towers)
    return 0 if last is None else last + 1


def _corpus(config: Any, facts: Facts) -> Work:
    documents, towers, encoding = facts.documents, config.towers, config.encoding
    tokens = passed(documents, documents.count, towers.max_document_length, encoding.tokens_per_batch, towers.attention)
    work: Work = {
        "teacher_load": 1,
        "teacher_token": tokens + PROBES * PROBE_TOKENS,
        "teacher_character": documents.characters,
        "written_byte": 2.0 * documents.count * dimension_of(config, facts),
    }
    return _added(work, _through_companion(config, facts, [documents], towers.max_document_length))


def _teacher_queries(config: Any, facts: Facts, targets: Sequence[Texts]) -> Work:
    texts = [*targets, facts.dev]
    tokens = sum(_query_tokens(config, t) for t in texts)
    size = 2.0 * sum(t.count for t in texts) * dimension_of(config, facts)
    work: Work = {
        "teacher_load": 1,
        "teacher_token": tokens,
        "teacher_character": sum(t.characters for t in texts),
        "written_byte": size,
    }
    return _added(work, _through_companion(config, facts, texts, config.towers.max_query_length))


def _query_tokens(config: Any, texts: Texts) -> float:
    return passed(texts, texts.count, config.towers.max_query_length, TOKENS_PER_BATCH, config.towers.attention)


def _index(config: Any, facts: Facts) -> Work:
    from components.index.index_keys import is_exact

    documents, key = facts.documents.count, index_key(config, facts)
    work: Work = {"written_byte": 2.0 * documents * dimension_of(config, facts), "reference_second": 1e-5 * documents}
    if not is_exact(key):
        centroids, compared = added_by(key)
        trained = min(documents, config.index.train_vectors, 256 * max(1, centroids))
        tuned = min(config.index.tuning_queries, max(1, facts.dev.count))
        work["score"] = KMEANS_ROUNDS * trained * centroids + documents * compared + tuned * documents * (1 + 10 * LISTS_VISITED)
    return work


def _distillation(config: Any, facts: Facts, targets: Sequence[Texts]) -> Work:
    from components.distillation.plan import make_plan

    settings, size = config.distillation, config.distillation.batch_size
    # Noised copies have the teacher's vectors of their originals, whose lengths they about have.
    more, left = [], settings.noised
    for texts in targets:
        more.append(texts.at_most(left))
        left -= more[-1].count
    targets = [*targets, *(texts for texts in more if texts.count)]
    count, documents = sum(t.count for t in targets), facts.documents.count
    known = {source: texts.count for source, texts in facts.sources.items()}
    lost = max(0, known.get("titles", 0) - settings.titles) if settings.refine_titles else 0
    epochs = make_plan(count, max(0, facts.refine_pairs - lost), settings)
    aligned = [epoch for epoch in epochs if epoch.phase.kind == "align"]
    refined = [epoch for epoch in epochs if epoch.phase.kind == "refine"]
    cap = settings.max_query_length
    mined = settings.refine_negatives == "mined"
    against = documents if settings.refine_negatives == "all" else min(documents, size * settings.refine_depth)
    rows = sum(epoch.phase.rows for epoch in refined)
    chosen = 0 if settings.refine_negatives == "all" else rows * documents
    dev = real(facts.dev.student, facts.dev.count, cap)
    fitted = min(FIT_TEXTS, count)
    return {
        "student_load": 2,
        "student_token": sum(real(t.student, t.count, cap) for t in targets) * fitted / max(1, count),
        "align_batch": sum(-(-epoch.phase.rows // size) for epoch in aligned),
        "refine_batch": sum(-(-epoch.phase.rows // size) for epoch in refined),
        "refine_score": rows * against,
        "student_float_token": (len(epochs) + 1) * dev + (len(refined) * rows / max(1, len(refined)) * 12 if mined else 0),
        "score": (len(epochs) + 1) * facts.dev.count * documents * _visited(config, facts) + chosen,
        "metric_query": len(epochs) * facts.dev.count * 0.2,
        "written_byte": len(epochs) * student_checkpoint_bytes(config, facts),
    }


def _evaluation(config: Any, facts: Facts) -> Work:
    from components.evaluation.bm25 import DEV_DOCUMENTS, DEV_QUERIES, GRID
    from components.evaluation.rankers import FUSION_QUERIES
    from components.evaluation.rankers import GRID as FUSIONS

    evaluation, documents, share = config.evaluation, facts.documents, _visited(config, facts)
    queries = sum(texts.count for texts in facts.judged.values())
    teacher = sum(_query_tokens(config, t) for t in facts.judged.values())
    student = sum(real(t.student, t.count, config.distillation.max_query_length) for t in facts.judged.values())
    # Every document through each untrained encoder; tokens of one with more layers than the student count as more of the student's.
    passes = untrained_passes(config, facts)
    untrained = sum(passes) * (real(documents.student, documents.count, facts.untrained_length) + student)
    systems = 3 + len(passes) + evaluation.fusion
    exact = 1 + (queries > 0)  # the exact search that the index is held against
    bootstraps = BOOTSTRAPS * evaluation.bootstrap_samples * queries
    asked = min(DEV_QUERIES, facts.dev.count)
    tried, fusions = len(GRID) * asked, len(FUSIONS) * min(FUSION_QUERIES, facts.dev.count) * evaluation.fusion
    part = min(1.0, DEV_DOCUMENTS / max(1, documents.count))
    work: Work = {
        "teacher_load": 1,
        "student_load": 1 + len(passes),
        "teacher_token": teacher,
        "student_token": untrained + student,
        "bm25_character": documents.characters * (1 + part * (part < 1)),
        "bm25_score": (queries + tried * part) * documents.count,
        "score": queries * documents.count * (exact + len(passes) + 2 * share),
        "single_score": evaluation.latency_queries * documents.count * share,
        "metric_query": queries * systems + tried + fusions,
        "timing": 1,
        "reference_second": BOOTSTRAP_VALUE * bootstraps,
    }
    return _added(work, _through_companion(config, facts, facts.judged.values(), config.towers.max_query_length))


def untrained_passes(config: Any, facts: Facts) -> list[float]:
    """For each untrained encoder that is measured, its layers over the student's."""
    from components.evaluation.systems import untrained_systems

    settings, layers = config.distillation, facts.student.layers
    if not config.evaluation.untrained_student:
        return []
    kept = layers_kept(settings.layers, layers) if FORMS[settings.form].has_layers else layers
    return [
        (layers if found.layers is None else layers_kept(found.layers, layers)) / kept for found in untrained_systems(settings).values()
    ]


def layers_kept(named: int | Sequence[int] | None, layers: int) -> int:
    """How many of a model's layers a setting such as `distillation.layers` keeps."""
    return layers if named is None else min(layers, named if isinstance(named, int) else len(named))


def _visited(config: Any, facts: Facts) -> float:
    """Share of the documents that a search of the index compares a query with."""
    from components.index.index_keys import is_exact

    return 1.0 if is_exact(index_key(config, facts)) else LISTS_VISITED


def index_key(config: Any, facts: Facts) -> str:
    """The FAISS key of the index; raises ConfigError for one that does not fit the data."""
    from components.index.index_keys import usable_key

    return usable_key(config.index, facts.documents.count, dimension_of(config, facts))


def dimension_of(config: Any, facts: Facts) -> int:
    """Dimensions of the vectors."""
    own = int(config.towers.dimension or facts.teacher.width) + (facts.companion.width if facts.companion else 0)
    return own if facts.dimension is None else facts.dimension


def trained_parameters(towers: Any, facts: Facts) -> int:
    """Parameters of both towers that are trained."""
    if towers.training == "none":
        return 0
    shape = facts.teacher
    return _of_both_roles(shape, towers, min(trained_layers(towers) or shape.layers, shape.layers))


def companion_parameters(towers: Any, facts: Facts) -> int:
    """The same of the companion; 0 without one."""
    return _of_both_roles(facts.companion, towers.companion, facts.companion.layers) if facts.companion else 0


def _of_both_roles(shape: Shape, config: Any, layers: int) -> int:
    adapters = shape.adapter_parameters(config.lora_rank) * layers // max(1, shape.layers)
    return 2 * (shape.parameters if config.training == "full" else adapters)


def checkpoint_bytes(towers: Any, facts: Facts) -> int:
    """Bytes of a checkpoint of the towers: weights and two moments in float32."""
    return 12 * trained_parameters(towers, facts)


def student_parameters(config: Any, facts: Facts) -> tuple[int, int]:
    """Parameters of the student in all, its head included, and those of them that are trained."""
    shape, settings = facts.student, config.distillation
    width, dimension = shape.width, dimension_of(config, facts)
    head = width * dimension if settings.head == "linear" else settings.head_width * (width + dimension)
    if not FORMS[settings.form].has_layers:
        return shape.embeddings + head, shape.embeddings + head
    layers = layers_kept(settings.layers, shape.layers) * (shape.parameters - shape.embeddings) // shape.layers
    return shape.embeddings + layers + head, layers + head + (shape.embeddings if settings.train_embeddings else 0)


def student_checkpoint_bytes(config: Any, facts: Facts) -> int:
    """Bytes of a checkpoint of the student: weights, the best ones and two moments in float32."""
    return 16 * student_parameters(config, facts)[1]


def needs_of(config: Any, facts: Facts, number_bytes: int, on_card: bool = False) -> dict[str, Need]:
    """Memory and disk of every step that `work_of` names; `number_bytes`: of a weight of the teacher as it is loaded (2 or 4).

    `on_card`: the models work on a GPU (see `card_needs`), so that memory holds their weights while they are read, and data alone.
    The steps run one after the other in one process, so a later one also holds what an earlier one has not given back.
    """
    documents, dimension, towers = facts.documents.count, dimension_of(config, facts), config.towers
    tables = TABLE_ROW * documents + TABLE_CHARACTER * facts.documents.characters
    weights, vectors = facts.teacher.parameters * number_bytes, documents * dimension
    weights += facts.companion.parameters * number_bytes if facts.companion else 0
    loaded = PROGRAM + tables  # before a model is
    floor = loaded + KEPT_MODELS * weights
    inference = weights + (0 if on_card else INFERENCE_TOKEN * max(config.encoding.tokens_per_batch, 2048))
    training = weights if on_card else HOST_BUFFERS + training_bytes(config, facts, number_bytes, on_host=True)
    training += facts.judge_bytes(towers) + mined_bytes(towers, facts)
    training = weights + (training if towers.training == "none" else _with_tokens(towers, facts, training))
    beside = weights + _with_tokens(towers, facts, 0 if on_card else HOST_BUFFERS + companion_bytes(config, facts, on_host=True))
    every, trained = student_parameters(config, facts)
    targets = sum(texts.count for texts in target_texts(config, facts))
    queries = sum(texts.count for texts in facts.judged.values())
    adapters, small = (4 * parameters(towers, facts) for parameters in (trained_parameters, companion_parameters))
    learning = STUDENT_TRAINING * trained + 4 * every + 12 * vectors + 8 * targets * dimension
    learning += 24 * config.distillation.batch_size * documents if config.distillation.refine_negatives == "all" else 0
    measuring = inference + 4 * every + 4 * vectors
    if config.evaluation.untrained_student:  # it reads all documents at once
        measuring += 8 * documents * facts.student.width + token_bytes(facts.documents.student, documents, facts.untrained_length)
    built, index, merging = index_bytes(config.index, documents, dimension)
    encoding = inference + 6 * dimension * config.encoding.shard_size
    registered = adapters + small + 4 * every + index + 100 * documents
    needs = {
        "snapshot_data": Need(PROGRAM // 3 + 2 * tables, int(0.6 * facts.documents.characters) + 100 * documents),
        "validate_data": Need(PROGRAM // 3 + 3 * tables, 100_000),
        "generate_queries": Need(floor + inference, 200 * config.distillation.generated),
        "train_towers": Need(
            loaded + _together(towers, tables, training), adapters + 1_000_000, checkpoint_bytes(towers, facts), facts.judge_bytes(towers)
        ),
        "train_companion": Need(loaded + beside, small + 1_000_000, 3 * small),
        "join_companion": Need(loaded + inference, 1_000_000, adapters + small),  # where the files cannot be linked
        "encode_corpus": Need(floor + _side_by_side(config.encoding, documents, encoding), 2 * vectors + 100 * documents),
        "encode_teacher_queries": Need(floor + inference + 8 * targets * dimension, (2 * dimension + 60) * targets),
        "build_index": Need(floor + built, index + 150 * documents, merging),
        "distil_query_tower": Need(floor + learning, 4 * every + 2_000_000, student_checkpoint_bytes(config, facts)),
        "evaluate": Need(floor + measuring, 40 * queries * 4 * config.evaluation.depth),
        "register": Need(floor + 4 * every + 4 * vectors, registered + 5_000_000),
    }
    return {step: needs[step] for step in work_steps(config)}


def _with_tokens(towers: Any, facts: Facts, training: int) -> int:
    """Bytes of a training that takes `training` beside the tokens of all texts, which it holds."""
    queries = facts.sources.get("train") or facts.dev
    training += token_bytes(queries.teacher, queries.count, towers.max_query_length)
    return training + token_bytes(facts.documents.teacher, facts.documents.count, towers.max_document_length)


def mined_bytes(towers: Any, facts: Facts) -> int:
    """Bytes of the vectors of all queries and documents that negatives are mined with, and of what was found; 0 without mining."""
    if towers.training == "none" or not towers.hard_negatives:
        return 0
    queries, width = (facts.sources.get("train") or facts.dev).count, int(towers.dimension or facts.teacher.width)
    return 4 * width * (facts.documents.count + queries) + 12 * queries * towers.mining_depth


def _together(towers: Any, tables: int, one: int) -> int:
    """Bytes of all processes of a training, of which each takes `one` beside its libraries and texts; divided among them, all take it."""
    if towers.training == "none" or towers.processes == 1:
        return one
    return towers.processes * (WORKER + tables) + one * (towers.processes if towers.sharding == "none" else 1)


def _side_by_side(encoding: Any, documents: int, one: int) -> int:
    """Bytes of all processes of this machine that encode, of which each takes `one` beside its libraries."""
    if encoding.runner == "in_process":
        return one
    if encoding.runner == "dask" and encoding.dask_address:
        return 0
    return min(useful_workers(encoding.workers), -(-documents // encoding.shard_size)) * (WORKER + one)


def work_steps(config: Any) -> list[str]:
    """The steps of a retraining under `config`, in their order."""
    alone, given = not config.towers.companion.base_model, not config.distillation.generated
    left_out = {"generate_queries": given, "train_companion": alone, "join_companion": alone}
    return [step for step in STEPS if not left_out.get(step)]


def training_bytes(config: Any, facts: Facts, number_bytes: int, on_host: bool = False) -> int:
    """Bytes of a training step of the towers beyond the frozen weights: what a chunk keeps, gradients and moments."""
    towers = config.towers
    if towers.training == "none":
        return 0
    kept = kept_bytes(towers, facts)
    if on_host:
        kept = round(kept * HOST_OVERHEAD if kept >= FREED_FROM else kept * HEAP_OVERHEAD + HEAP_HOLES)
    if facts.teacher.passed_twice(trained_layers(towers)) < 1:  # a state a token of the batch, see `LowerStates`
        texts = towers.batch_size * (1 + towers.hard_negatives)
        lengths = texts * towers.max_document_length + towers.batch_size * towers.max_query_length
        kept += lengths * facts.teacher.width * number_bytes
    # Gradient and two moments of what is trained, and its weights: of two full models the first one's count as the frozen weights do.
    new = facts.teacher.parameters if towers.training == "full" else trained_parameters(towers, facts)
    return kept + 12 * trained_parameters(towers, facts) + 4 * new


def companion_bytes(config: Any, facts: Facts, on_host: bool = False) -> int:
    """The same of the companion's training; 0 without one."""
    if facts.companion is None:
        return 0
    from components.towers.train import companion_towers

    own = companion_towers(config.towers)
    beside = replace(facts, teacher=facts.companion)
    return training_bytes(SimpleNamespace(towers=own), beside, pick_dtype(own.precision).itemsize, on_host)


def kept_bytes(towers: Any, facts: Facts) -> int:
    """Bytes that the largest chunk of a training step keeps for its backward pass."""
    queries = (facts.sources.get("train") or facts.dev).teacher
    longest = min(longest_text(towers), even_length(int(max(facts.documents.teacher.max(initial=1), queries.max(initial=1)))))
    tokens = min(towers.chunk_size * longest_text(towers), longest * towers.batch_size * (1 + towers.hard_negatives))
    return facts.teacher.kept(tokens, pick_dtype(towers.precision).itemsize, bool(towers.activation_checkpointing), trained_layers(towers))


def card_needs(config: Any, facts: Facts, number_bytes: int) -> dict[str, int]:
    """Bytes that each step takes of a GPU at its peak, nothing of another step beside it; steps that do not use it are left out."""
    towers, dimension, documents = config.towers, dimension_of(config, facts), facts.documents.count
    weights, (every, trained) = facts.teacher.parameters * number_bytes, student_parameters(config, facts)
    weights += facts.companion.parameters * number_bytes if facts.companion else 0
    through = facts.teacher.passing(max(config.encoding.tokens_per_batch, towers.max_document_length), number_bytes)
    queries = weights + facts.teacher.passing(TOKENS_PER_BATCH, number_bytes)
    mining = 4 * dimension * min(documents, 2**19) + 8 * min(2**28, documents * facts.pair_count)
    beside = facts.judge_bytes(towers) + (mining if towers.hard_negatives else 0)
    learning = STUDENT_TRAINING * trained + 4 * every + 4 * documents * dimension + 8 * config.distillation.batch_size * documents
    needs = {
        "generate_queries": weights + through,
        "train_towers": weights + training_bytes(config, facts, number_bytes) + beside,
        "train_companion": weights + companion_bytes(config, facts),
        "join_companion": weights + through,
        "encode_corpus": weights + through,
        "encode_teacher_queries": queries,
        "distil_query_tower": learning,
        "evaluate": queries + 4 * every,
    }
    return {step: CARD_PROGRAM + needs[step] for step in work_steps(config) if step in needs}
