"""A plan: settings that the data ask for and the budget allows, each with its reason, and what every step of them will take.

Two passes. What the data decide (lengths, titles, margins) is settled first, since the machine is measured with these lengths. What the
budget decides (steps, passes, in the end shorter documents) is searched on the cost model: of all combinations that fit, the one that
gives up least. A setting that a person named is never changed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np

from components.errors import ConfigError, ResourceError
from components.evaluation.units import margin_for, queries_for, units_alike
from components.planning.cost import MARGIN, Need, card_needs, index_key, kept_bytes, needs_of, seconds_of, work_of
from components.planning.facts import Facts, Texts
from components.settings import free_memory
from components.towers.device import FREED_FROM

PLAN_VERSION = 14  # change it where the same data, machine and budget should lead to other settings
# Standard deviation of the difference in nDCG@10 of a query between two trainings, measured on the demo and on pages.
TRAINING_SPREAD = 0.22
GROUPED = 1.05  # a design effect above this is worth a word
SPARE = 0.9  # share of the budget that a plan fills: the rest is for what it does not foresee
MEMORY_SHARE = 0.8  # of the memory that is free, for the largest step
LONGEST_QUERY, LONGEST_DOCUMENT = 64, 512  # tokens that are proposed; more only by hand
MOST_SENTENCES = 10_000
FEW_QUERIES = 10_000  # below so many texts to align on, sentences of documents are added
PASSES = 2.0  # over the training pairs: more has not been seen to pay before the negatives become harder
MOST_EPOCHS = 12  # of the alignment, see flows/studies/RESULTS.md
FEWEST_STEPS, FEWEST_EPOCHS = 40, 1
MOST_STEPS = 10_000_000  # that `towers.steps` may be
COMPANION_STEPS = "towers.companion.steps"
HELD = ("towers.steps", COMPANION_STEPS, "distillation.epochs", "distillation.refine_epochs")
SHORTEST = 24  # tokens of a document below which none is cut to fit a budget
TRIES, SHRINKING = 32, 0.85  # ways to spend a budget, and what the next one keeps of the one before, at most
BUILT_IN = "icd10cm"
QUIET_SHARE = 0.6  # processor seconds over wall seconds; on a quiet machine they are equal at least, but for waits
CARD_CHUNK = 32  # documents that are tried at once on a card, where small parts leave it idle
FEWEST_ROWS = 8  # of a chunk, before the layers are worked out twice instead: fewer do not keep a processor busy
GPU_BATCH = 256  # pairs; no processor trains an LLM with so many in useful time


@dataclass(frozen=True)
class Choice:
    """One setting by its dotted name: what it was, what is proposed, and why."""

    field: str
    before: Any
    value: Any
    reason: str


@dataclass(frozen=True)
class Row:
    """What a step is expected to take: wall and processor seconds (None: not measured), bytes of memory and disk (see `Need`)."""

    step: str
    seconds: float | None
    cpu_seconds: float | None
    memory: int
    disk: int
    extra_disk: int
    card: int | None = None  # bytes of a GPU; None without one, and for a step that does not use it
    judge: int = 0

    @property
    def need(self) -> Need:
        """The row's memory and disk, without its times."""
        return Need(self.memory, self.disk, self.extra_disk, self.judge)


@dataclass(frozen=True)
class Room:
    """Bytes that are free: memory within the limits of this process, and disk where the home folder lies."""

    memory: int
    disk: int


def free_room(home: Path) -> Room:
    """What is free now: the least of the machine's and the control group's memory, and the disk of `home`."""
    import shutil

    while not home.exists():
        home = home.parent
    return Room(free_memory(), shutil.disk_usage(home).free)


# What lowers the memory of a step beside a smaller model and fewer documents, for the beginning of a sentence.
_IN_TRAINING = "Lower towers.chunk_size or the lengths, set towers.activation_checkpointing, or "
_IN_MEMORY = {
    "train_towers": f"Set towers.processes to fewer where there are several. {_IN_TRAINING}",
    "train_companion": _IN_TRAINING,
    "encode_corpus": "Set encoding.workers to fewer where there are several, lower encoding.tokens_per_batch or encoding.shard_size, or ",
    "build_index": "Set index.index_key to auto where it is another, or ",
    "distil_query_tower": "Set distillation.refine_negatives to mined where it is all, or ",
    "evaluate": "Set evaluation.untrained_student to false where it is true, with policy.beat_untrained and policy.teacher_worth, or ",
}


def require_room(needs: Mapping[str, Need], room: Room) -> None:
    """Raise ResourceError, with the sum, when memory or disk cannot hold the steps of a job."""
    step, most = max(((step, need.memory) for step, need in needs.items()), key=lambda pair: pair[1], default=("", 0))
    if most > room.memory:
        cure = _IN_MEMORY.get(step, "")
        raise ResourceError(
            f"This job needs about {_gb(most)} of memory in the step {step}, and {_gb(room.memory)} is free. {_of_judge(needs[step].judge)}"
            f"{cure}{'take' if cure else 'Take'} a smaller {_model_of(step)}, fewer documents (--max-documents) or a larger machine."
        )
    kept, extra = sum(need.disk for need in needs.values()), max((need.extra_disk for need in needs.values()), default=0)
    if (kept + extra) * MARGIN > room.disk:
        largest = sorted(needs.items(), key=lambda pair: -pair[1].disk)[:3]
        parts = ", ".join(f"{step} {_gb(need.disk)}" for step, need in largest)
        raise ResourceError(
            f"This job writes about {_gb(kept)} ({parts}) and {_gb(extra)} while it runs, and {_gb(room.disk)} is free. Free some space, "
            "move SCALINGNOTE_HOME to a larger disk, or take fewer documents (--max-documents)."
        )


def _of_judge(size: int) -> str:
    """A sentence about the part of a step's memory that a judge of `size` bytes takes; empty without one."""
    return f"The judge takes {_gb(size)} of it: name a smaller towers.judge.base_model, or none. " if size else ""


def room_problem(needs: Mapping[str, Need], room: Room) -> str:
    """What `require_room` would say; empty when there is room."""
    try:
        require_room(needs, room)
    except ResourceError as error:
        return str(error)
    return ""


def device_memory() -> int | None:
    """Bytes that are free on the GPU; None where there is none."""
    import torch

    return int(torch.cuda.mem_get_info()[0]) if torch.cuda.is_available() else None


def _gb(size: float) -> str:
    return f"{size / 1e9:.1f} GB"


def changed(config: Any, settings: Mapping[str, Any]) -> Any:
    """`config` (a RetrainConfig) with settings by their dotted names, checked again."""
    values = config.model_dump()
    for name, value in settings.items():
        *sections, field = name.split(".")
        place = values
        for section in sections:
            place[section] = {**place[section]}
            place = place[section]
        place[field] = value
    return type(config).model_validate(values)


def value_of(config: Any, name: str) -> Any:
    """The value of a setting by its dotted name."""
    return reduce(getattr, name.split("."), config)


def wanted_facts(config: Any, fixed: Iterable[str]) -> Any:
    """`config` with as many titles and sentences as a plan may propose, so that `Facts` of it know how many there are."""
    fixed = set(fixed)
    if config.data.source == BUILT_IN or "distillation.sentences" in fixed:
        return config
    return changed(config, {"distillation.sentences": max(config.distillation.sentences, MOST_SENTENCES)})


def from_data(config: Any, facts: Facts, fixed: Iterable[str], room: Room, number_bytes: int, on_card: bool = False) -> list[Choice]:
    """What the data and the memory decide, one choice for each setting that was looked at, changed or not.

    `fixed`: dotted names that a person set, which stay. `number_bytes` of a weight of the teacher (2 or 4). `on_card`: the memory of
    `room` is a GPU's.
    """
    given = set(fixed)
    made = [*_lengths(config, facts), *_batches(config, facts), *_queries(config, facts), *_margins(config, facts, given)]
    kept = [_kept(choice, config, given) for choice in made]
    sized = changed(config, {choice.field: choice.value for choice in kept})

    def peak(step: str, tried: Any) -> int:
        """Of a training of the towers also that of their companion."""
        needs = card_needs(tried, facts, number_bytes) if on_card else needs_of(tried, facts, number_bytes)
        counted = [needs[name] for name in (step, *(["train_companion"] if step == "train_towers" else ())) if name in needs]
        return max(need.memory if isinstance(need, Need) else need for need in counted)

    def wanted(tried: Any) -> bool:
        """Whether a training step keeps little enough: all of a card's, on a processor what the heap may hold (see `freed_at_once`)."""
        if peak("train_towers", tried) > MEMORY_SHARE * room.memory:
            return False
        return on_card or tried.towers.training == "none" or kept_bytes(tried.towers, facts) < FREED_FROM

    memory = [_kept(choice, config, given) for choice in _memory(sized, given, room, peak, wanted, on_card)]
    return [*kept, *memory, _index(sized, facts)]


def _kept(choice: Choice, config: Any, fixed: set[str]) -> Choice:
    if choice.value == choice.before:
        return choice
    if choice.field in fixed:
        return replace(choice, value=choice.before, reason=f"as you set it; the data would ask for {choice.value}: {choice.reason}")
    if config.data.source == BUILT_IN and choice.field.startswith(("towers.max", "distillation.")):
        return replace(choice, value=choice.before, reason="the presets were made for this data")
    return choice


def _lengths(config: Any, facts: Facts) -> Iterator[Choice]:
    asked = [texts for texts in (facts.sources.get("train"), *facts.judged.values()) if texts is not None]
    p99 = int(np.ceil(np.percentile(np.concatenate([texts.teacher for texts in asked]), 99)))
    value = min(max(8, _up(p99, 4)), LONGEST_QUERY)
    yield Choice("towers.max_query_length", config.towers.max_query_length, value, f"99 % of the queries have at most {p99} tokens")
    p50, p95, p99 = facts.documents.percentiles()
    value = min(max(16, _up(p95, 8)), LONGEST_DOCUMENT)
    reason = f"documents have {p50} tokens in the middle, {p95} at 95 %, {p99} at 99 %"
    cut = float((facts.documents.teacher > value).mean())
    yield Choice("towers.max_document_length", config.towers.max_document_length, value, f"{reason}; {cut:.0%} are cut")
    p99 = int(np.ceil(np.percentile(np.concatenate([texts.student for texts in asked]), 99)))
    before = config.distillation.max_query_length
    value = min(max(before, _up(p99, 4)), LONGEST_QUERY)
    yield Choice("distillation.max_query_length", before, value, f"99 % of the queries have at most {p99} of the student's")


def _up(value: int, step: int) -> int:
    return -(-value // step) * step


def _batches(config: Any, facts: Facts) -> Iterator[Choice]:
    before, pairs = config.towers.batch_size, facts.pair_count
    value = before if pairs >= before else max(2, 2 ** int(math.log2(max(2, pairs))))
    processes = config.towers.processes
    yield Choice("towers.batch_size", before, value if value % processes == 0 else before, f"{pairs:,} training pairs")


def _memory(
    config: Any, fixed: set[str], room: Room, peak: Callable[[str, Any], int], wanted: Callable[[Any], bool], on_card: bool
) -> Iterator[Choice]:
    """The largest part of a batch that fits, with the layers worked out again where it would else be too small, and the tokens encoded."""
    bound, towers = MEMORY_SHARE * room.memory, config.towers
    most = min(max(towers.chunk_size, CARD_CHUNK if on_card else 0), towers.batch_size * (1 + towers.hard_negatives))
    asked = towers.activation_checkpointing
    ways = [asked] if asked is not None or "towers.activation_checkpointing" in fixed else [False, True]
    tries = [(way, size) for way in ways for size in _halves(most, FEWEST_ROWS if way is not ways[-1] else 1)]
    found = next((pair for pair in tries if wanted(_tried(config, *pair))), tries[-1])
    taken = f"training then takes {_gb(peak('train_towers', _tried(config, *found)))} of the {_gb(room.memory)} that is free"
    if found[1] < most and peak("train_towers", _tried(config, found[0], 2 * found[1])) <= bound:
        taken += f"; a larger part keeps {_gb(FREED_FROM)} and more, which costs time at every step"
    yield Choice("towers.activation_checkpointing", asked, found[0] or asked, taken)
    chunk = max(found[1], towers.chunk_size) if found[1] == most else found[1]  # a chunk may be set above what a batch has
    yield Choice("towers.chunk_size", towers.chunk_size, chunk, taken)
    before = config.encoding.tokens_per_batch
    fits = (n for n in _halves(before, 2048) if peak("encode_corpus", changed(config, {"encoding.tokens_per_batch": n})) <= bound)
    tokens = next(fits, before)
    taken = _gb(peak("encode_corpus", changed(config, {"encoding.tokens_per_batch": tokens})))
    yield Choice("encoding.tokens_per_batch", before, tokens, f"encoding then takes {taken}")


def _halves(value: int, least: int) -> Iterator[int]:
    """`value`, and its halves down to `least`."""
    while True:
        yield value
        value //= 2
        if value < least:
            return


def _tried(config: Any, recomputed: bool | None, chunk: int) -> Any:
    return changed(config, {"towers.activation_checkpointing": recomputed, "towers.chunk_size": chunk})


def _queries(config: Any, facts: Facts) -> Iterator[Choice]:
    found = {source: texts.count for source, texts in facts.sources.items()}
    titles, sentences = found.get("titles", 0), found.get("sentences", 0)
    before = config.distillation.titles
    yield Choice("distillation.titles", before, before, f"{titles:,} different titles that are no query")
    others = sum(found.values()) - sentences
    before = config.distillation.sentences
    if others >= FEW_QUERIES:
        yield Choice("distillation.sentences", before, before, f"{others:,} other texts to align on")
    else:
        value = max(before, min(sentences, MOST_SENTENCES))
        yield Choice("distillation.sentences", before, value, f"only {others:,} other texts to align on, and the student needs many")


def _margins(config: Any, facts: Facts, fixed: set[str]) -> Iterator[Choice]:
    policy = config.policy
    queries = facts.judged[config.evaluation.split].count
    if policy.min_power is None:
        yield Choice("policy.margin", policy.margin, policy.margin, "policy.min_power is null, so no number of queries is asked for")
        return
    spread = TRAINING_SPREAD * math.sqrt(facts.design_effect)
    needed = queries_for(spread, policy.margin, policy.confidence, policy.min_power, queries / (facts.units or queries))
    smallest = margin_for(spread, queries, policy.confidence, policy.min_power, facts.units)
    value = policy.margin if queries >= needed else min(0.5, math.ceil(smallest * 200) / 200)
    reason = f"a margin of {policy.margin:g} takes about {needed:,} judged queries; {config.evaluation.split} has {queries:,}"
    if facts.design_effect > GROUPED:
        reason += f", which were drawn in groups: {facts.design_effect:.1f} of them say about as much as one drawn by itself"
    yield Choice("policy.margin", policy.margin, value, reason)
    if value != policy.margin and "policy.margin" not in fixed:  # who sets the margin has a policy of his own, and its name
        if value > policy.baseline_margin:
            yield Choice("policy.baseline_margin", policy.baseline_margin, value, "the baselines are compared on the same queries")
        named = f"{policy.version}-margin-{value:g}"[:60]
        yield Choice("policy.version", policy.version, named, "another margin is another policy")


def _index(config: Any, facts: Facts) -> Choice:
    key, before = index_key(config, facts), config.index.index_key
    return Choice("index.index_key", before, before, f"{facts.documents.count:,} documents: {key}")


def merged(choices: Iterable[Choice], later: Iterable[Choice]) -> list[Choice]:
    """One choice for each setting: the later one, with what the setting was before the earlier one."""
    found = {choice.field: choice for choice in choices}
    for choice in later:
        first = found.get(choice.field)
        found[choice.field] = replace(choice, before=first.before) if first else choice
    return list(found.values())


def describe_data(facts: Facts) -> list[str]:
    """What people should know of their data before they train on it, a line each."""
    p50, p95, p99 = facts.documents.percentiles()
    scripts = ", ".join(f"{script} {share:.0%}" for script, share in list(facts.scripts.items())[:4])
    lines = [f"{facts.documents.count:,} documents of {p50} / {p95} / {p99} tokens (50 / 95 / 99 %), scripts: {scripts}"]
    for name, texts in {**facts.sources, **facts.judged}.items():
        if texts.count:
            kind = "to align on" if name in facts.sources else "judged queries"
            p50, p95, p99 = texts.percentiles()
            lines.append(f"{texts.count:,} {kind} ({name}) of {p50} / {p95} / {p99} tokens")
    counts = ", ".join(f"{split} {count:,}" for split, count in facts.judged_counts.items())
    return [*lines, f"judged queries by split: {counts}; {facts.pair_count:,} training pairs"]


def notes_on(config: Any, facts: Facts, card: int | None, device: int | None) -> list[str]:
    """What no setting can mend: too few judged queries, a GPU that is planned for and is not here."""
    notes, policy, queries = [], config.policy, facts.judged[config.evaluation.split].count
    if queries < policy.min_queries:
        notes.append(
            f"The gates will decide nothing: {config.evaluation.split} has {queries:,} judged queries, and policy.min_queries asks for "
            f"{policy.min_queries:,}. Judge more queries, or lower policy.min_queries."
        )
    if facts.units is not None and facts.units < (least := units_alike(policy.confidence)):
        notes.append(
            f"The gates may decide nothing: the {queries:,} judged queries of {config.evaluation.split} were drawn in {facts.units} "
            f"unit{'' if facts.units == 1 else 's'}, fewer than {least}, so hardly anything says how far others would be from them. Judge "
            "queries of other groups, or, if they were drawn one by one, set evaluation.query_groups, and policy.own_units to false."
        )
    if policy.own_units and facts.taken_apart:
        notes.append(
            f"The gates will leave the verdict undecided: evaluation.query_groups takes queries apart of which the data makes "
            f"{facts.taken_apart:,} units. Set it to auto, or policy.own_units to false if they were drawn one by one."
        )
    if policy.slice_margin is not None and policy.min_power is not None:
        spread = TRAINING_SPREAD * math.sqrt(facts.design_effect)
        size = queries / (facts.units or queries)
        needed = queries_for(spread, policy.slice_margin, policy.confidence, policy.min_power, size)
        if needed > max(policy.min_slice_queries, queries):
            notes.append(f"A slice takes about {needed:,} queries at the margin of {policy.slice_margin:g}, more than {queries:,}.")
    if card is not None and device is None:
        notes.append("No GPU is here: the memory is planned for the card, and times are left open. Plan again on its machine for times.")
    elif card is not None and device is not None and device < card:
        notes.append(f"The GPU here has {_gb(device)} free, less than the {_gb(card)} that are planned for.")
    elif device is None and config.towers.batch_size >= GPU_BATCH:
        notes.append(f"No GPU is here, and a batch of {config.towers.batch_size} pairs is made for one: these times are the processor's.")
    return notes


def rows_of(config: Any, facts: Facts, wall: Mapping[str, float], cpu: Mapping[str, float], number_bytes: int) -> list[Row]:
    """What every step will take, by the rates of a calibration."""
    on_card = device_memory() is not None
    needs = needs_of(config, facts, number_bytes, on_card)
    cards = card_needs(config, facts, number_bytes) if on_card else {}
    return [
        Row(step, seconds_of(work, wall), seconds_of(work, cpu), **asdict(needs[step]), card=cards.get(step))
        for step, work in work_of(config, facts).items()
    ]


# Beside a smaller model; the student's scores of a batch, against every document, are what takes a card.
_ON_CARD = {"distil_query_tower": "lower distillation.batch_size, take fewer documents (--max-documents)"}


def card_problem(config: Any, facts: Facts, number_bytes: int, card: int) -> str:
    """Which step a GPU of `card` bytes cannot hold, and what to do about it; empty where all fit."""
    step, most = max(card_needs(config, facts, number_bytes).items(), key=lambda pair: pair[1])
    if most <= card:
        return ""
    model = _model_of(step)
    sharded = config.towers.training == "full" and step == "train_towers"
    cure = "give towers.sharding and more cards" if sharded else _ON_CARD.get(step, "lower the lengths")
    said = f"The step {step} needs about {_gb(most)} of the card's {_gb(card)}: take a smaller {model}, {cure}, or a larger card."
    return f"{said} {_of_judge(facts.judge_bytes(config.towers) if step == 'train_towers' else 0)}".rstrip()


def _model_of(step: str) -> str:
    """The setting that names the model which a step's time and memory hang on."""
    return {"train_companion": "towers.companion.base_model", "distil_query_tower": "distillation.student"}.get(step, "towers.base_model")


def busy_note(rows: Iterable[Row]) -> str:
    """That other programs took the processors while they were measured, in words; empty on a quiet machine."""
    known = [(row.cpu_seconds or 0.0, row.seconds or 0.0) for row in rows]
    cpu, wall = (sum(pair[kind] for pair in known) for kind in (0, 1))
    if not wall or cpu >= QUIET_SHARE * wall:
        return ""
    return f"other programs use this machine now: the measurements had a processor for {cpu / wall:.0%} of their time"


def total_of(config: Any, facts: Facts, rates: Mapping[str, float]) -> float:
    """Seconds of the whole retraining."""
    return sum(seconds_of(work, rates) for work in work_of(config, facts).values())


@dataclass(frozen=True)
class _Try:
    """A combination of settings, and how much it gives up: 0 for what the data would like best."""

    settings: Mapping[str, Any]
    loss: float


def to_budget(config: Any, facts: Facts, fixed: Iterable[str], budget: float, rates: Mapping[str, float]) -> list[Choice] | None:
    """Steps, passes and length of documents that fill `budget` seconds and give up least; None when not even the least fits."""
    given = set(fixed)
    for candidate in sorted(_tries(config, facts, given), key=lambda found: found.loss):
        settings = {name: value for name, value in candidate.settings.items() if name not in given}
        if total_of(changed(config, settings), facts, rates) <= SPARE * budget:
            return list(_budgeted(config, facts, settings))
    return None


def _tries(config: Any, facts: Facts, fixed: set[str]) -> Iterator[_Try]:
    towers, distillation = config.towers, config.distillation
    wanted_steps = max(towers.steps, min(MOST_STEPS, round(PASSES * facts.pair_count / towers.batch_size)))
    wanted_epochs = max(distillation.epochs, MOST_EPOCHS)
    longest, fewest_steps = towers.max_document_length, _fewest_steps(towers)
    # Of many pairs two passes are so many steps that a fixed rate would end far above the fewest, and refuse budgets that hold those.
    shrinking = min(SHRINKING, (fewest_steps / wanted_steps) ** (1 / (TRIES - 2)))
    for scale in (shrinking**number for number in range(TRIES)):
        steps = max(fewest_steps, round(wanted_steps * scale))
        epochs = max(FEWEST_EPOCHS, round(wanted_epochs * scale))
        refine = min(distillation.refine_epochs, max(1, round(max(3, distillation.refine_epochs) * scale**0.5)))
        # A companion's steps cost little and tell much, so they go as slowly as the passes of the refinement.
        own = towers.companion
        fewest = min(FEWEST_STEPS, own.steps)
        beside = {COMPANION_STEPS: max(fewest, min(own.steps, round(own.steps * scale**0.5)))} if own.base_model else {}
        length, loss = longest, -math.log(scale)
        while True:
            settings = {"towers.steps": steps, **beside, "distillation.epochs": epochs, "distillation.refine_epochs": refine}
            yield _Try({**settings, "towers.max_document_length": length}, loss + 2 * math.log(longest / length))
            if length <= SHORTEST or "towers.max_document_length" in fixed:
                break
            length = max(SHORTEST, length * 3 // 4)


def _fewest_steps(towers: Any) -> int:
    """Steps below which none are tried: a training comes to its first mining, and to all the weights that it merges, or is refused."""
    mined = towers.mining_start + 1 if towers.hard_negatives else 0
    return int(min(towers.steps, max(FEWEST_STEPS, mined, (towers.merge_last - 1) * towers.checkpoint_every + 1)))


def _budgeted(config: Any, facts: Facts, settings: Mapping[str, Any]) -> Iterator[Choice]:
    towers = config.towers
    for name, value in settings.items():
        before = value_of(config, name)
        if name == COMPANION_STEPS and value == before:
            yield Choice(name, before, value, "as they were: a plan gives a companion fewer steps where time is short, and never more")
        elif name in ("towers.steps", COMPANION_STEPS):
            passes = value * towers.batch_size / max(1, facts.pair_count)
            yield Choice(name, before, value, f"{passes:.2g} passes over {facts.pair_count:,} training pairs in the time there is")
        elif name == "towers.max_document_length":
            if value != before:
                yield Choice(name, before, value, "shorter documents, so that the rest of the budget trains")
        else:
            yield Choice(name, before, value, "passes that the time allows")


def knob(config: Any, facts: Facts, fixed: Iterable[str], budget: float, rates: Mapping[str, float]) -> str:
    """What to turn when nothing fits into `budget` seconds, in words."""
    given = set(fixed)
    least = _least(config, facts, given)
    needed = total_of(least, facts, rates) / SPARE
    held = sorted(name for name in given if name in HELD)
    words = f"The least that would train takes {in_words(needed)}: give --budget {_asked(needed)}"
    count = next((n for n in _fewer(facts.documents.count) if _fits(least, fewer_documents(facts, n), budget, rates)), None)
    if count is not None:
        words += f", or --max-documents {count}"
    elif held:
        words += f", or leave out {', '.join(held)}, which you set"
    else:
        heavy = max(work_of(least, facts).items(), key=lambda pair: seconds_of(pair[1], rates))[0]
        words += f". Fewer documents would not do, since {heavy} takes most: take a smaller {_model_of(heavy)}"
    return f"{words}.{_without_judge(least, facts, needed, rates)}"


def _fits(config: Any, facts: Facts, budget: float, rates: Mapping[str, float]) -> bool:
    try:
        return total_of(config, facts, rates) <= SPARE * budget
    except ConfigError:  # too few documents for the lists of the index that somebody named
        return False


def _without_judge(config: Any, facts: Facts, needed: float, rates: Mapping[str, float]) -> str:
    """What a budget would be without the judge, where it takes a tenth of the time or more; empty otherwise."""
    alone = total_of(config, replace(facts, judge=None), rates) / SPARE
    if facts.judge is None or alone > 0.9 * needed:
        return ""
    return (
        f" Of it the judge takes {in_words(needed - alone)}: name a smaller towers.judge.base_model or none, or lower "
        "towers.judge.documents or towers.judge.max_length."
    )


def _least(config: Any, facts: Facts, fixed: set[str]) -> Any:
    tries = list(_tries(config, facts, fixed))
    smallest = max(tries, key=lambda found: found.loss)
    return changed(config, {name: value for name, value in smallest.settings.items() if name not in fixed})


def _fewer(count: int) -> Iterator[int]:
    while (count := int(count * 0.8)) >= 200:
        digits = 10 ** (len(str(count)) - 2)
        yield count // digits * digits


def fewer_documents(facts: Facts, count: int) -> Facts:
    """`facts` as they would be with `count` documents, judged ones first, so that queries stay."""
    share = count / facts.documents.count

    def part(texts: Texts) -> Texts:
        return replace(texts, count=round(texts.count * share), characters=round(texts.characters * share))

    sources = {name: part(texts) if name in ("titles", "sentences") else texts for name, texts in facts.sources.items()}
    return replace(facts, documents=part(facts.documents), sources=sources, refine_pairs=round(facts.refine_pairs * share))


def in_words(seconds: float) -> str:
    """A span as people say it: '40 s', '12 min', '3.5 h', '2.1 days'."""
    for size, unit in ((172_800, "days"), (5_400, "h"), (90, "min")):
        if seconds >= size:
            value = seconds / {"days": 86_400, "h": 3_600, "min": 60}[unit]
            return f"{value:.1f} {unit}" if value < 10 and unit != "min" else f"{value:.0f} {unit}"
    return f"{seconds:.0f} s"


def _asked(seconds: float) -> str:
    return f"{math.ceil(seconds)}s" if seconds < 90 else f"{math.ceil(seconds / 60)}m"


class Forecast:
    """What is left of a flow: the expected seconds of the steps to be made, corrected by those that are done."""

    def __init__(self, expected: Mapping[str, float]) -> None:
        self._left = dict(expected)
        self._expected = self._taken = 0.0

    @property
    def seconds(self) -> float:
        """Seconds of the steps that are left. What the steps so far took, against what was expected, scales the rest."""
        # A step of seconds says little about one of minutes, so the expectation itself counts like a step of half the whole.
        weight = self._expected + 0.5 * sum(self._left.values())
        factor = (self._taken + 0.5 * sum(self._left.values())) / weight if weight else 1.0
        return sum(self._left.values()) * factor

    def after(self, step: str, seconds: float | None) -> str | None:
        """Note that `step` is done, in so many seconds (None: it was found finished); what is left in words, None at the end."""
        expected = self._left.pop(step, None)
        if expected is not None and seconds is not None:
            self._expected, self._taken = self._expected + expected, self._taken + seconds
        return f"about {in_words(self.seconds)} left of the whole flow" if self._left else None


def parse_card(text: str) -> int:
    """Bytes of a card's memory given as 24 GB, 80GB or 24; raises ConfigError for anything else."""
    import re

    found = re.fullmatch(r"(\d{1,4})\s*(?:GB|GiB|G)?", text.strip(), re.ASCII | re.IGNORECASE)
    if not found or not int(found[1]):
        raise ConfigError(f"--card is '{text}'; expected the memory of a GPU, such as \"24 GB\".")
    return int(found[1]) * 10**9


def parse_budget(text: str) -> float:
    """Seconds of a budget such as 90s, 30m, 1.5h, 2d or 1h30m; raises ConfigError for anything else, for none and for more than a year."""
    import re

    sizes = {"s": 1, "m": 60, "h": 3600, "d": 86400}
    if not re.fullmatch(r"(?:\d{1,9}(?:\.\d{1,3})?[smhd])+", text, re.ASCII):
        raise ConfigError(f"--budget is '{text}'; expected a number with a unit, s, m, h or d, such as 90s, 30m, 1.5h or 1h30m.")
    seconds = sum(float(number) * sizes[unit] for number, unit in re.findall(r"([\d.]+)([smhd])", text))
    if not 0 < seconds <= 366 * 86400:
        raise ConfigError(f"--budget is '{text}'; expected more than nothing and at most a year.")
    return seconds
