"""Rows of a source that are left out instead of refused, where the configuration asks for that: found, counted and kept with reasons.

Also the train queries that the models of a release have seen, as digests: a refresh keeps models and takes new queries.

The contracts compare the queries of one data set with each other. A query that moves from train to test between two data sets is in
nobody's sight but ours: the towers that a refresh keeps have learned it.

Public data sets judge documents or queries that they do not have, and repeat rows. What contradicts itself is never left out.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from components.artifacts import read_json, write_atomic, write_json
from components.data.config import DataConfig
from components.data.dataset import NAMED_SPLITS, LeftOut, RawTables, normalise_text
from components.data.values import on_one_line
from components.errors import ArtifactError, DataError
from components.text import is_blank

if TYPE_CHECKING:
    from components.data.dataset import Dataset


SEEN_FILE = "seen_queries.npy"
Seen = NDArray[np.uint64]


def seen_queries(dataset: Dataset, earlier: Seen | None = None) -> Seen:
    """The first 8 bytes of the sha256 of each normalised train query, sorted uint64 without repetition, with those of `earlier`."""
    own = _digests(dataset.judged_queries("train")["text"].tolist())
    return np.unique(own if earlier is None else np.concatenate([own, earlier]))


def write_seen(folder: Path, seen: Seen) -> None:
    """Write `seen_queries.npy` into `folder`, atomically."""
    buffer = io.BytesIO()
    np.save(buffer, seen, allow_pickle=False)
    write_atomic(folder / SEEN_FILE, buffer.getvalue())


def load_seen(folder: Path) -> Seen | None:
    """What `write_seen` wrote; None for a release of before there was any. Raises ArtifactError for a broken file."""
    path = folder / SEEN_FILE
    if not path.exists():
        return None
    try:
        seen = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ArtifactError(f"{path} cannot be read ({error}). Restore the release, or retrain.") from None
    if seen.dtype != np.uint64 or seen.ndim != 1:
        raise ArtifactError(f"{path} does not hold the digests of queries. Restore the release, or retrain.")
    return np.asarray(seen)


def require_unseen(dataset: Dataset, splits: Sequence[str], seen: Seen, release: str) -> None:
    """Raise DataError when a judged query of `splits` is among those that the models of `release` were trained on.

    A query that is a train query of the data set itself is left to the contracts, which say what such a one means.
    """
    own = seen_queries(dataset)
    for split in splits:
        queries = dataset.judged_queries(split)
        digests = _digests(queries["text"].tolist())
        found = np.flatnonzero(np.isin(digests, seen) & ~np.isin(digests, own))
        if len(found):
            first = queries.iloc[int(found[0])]
            raise DataError(
                f"{len(found):,} of {len(queries):,} judged queries of the split '{split}' were train queries of {release}, whose models "
                f"the refresh keeps; the first is '{first['query_id']}'. Their scores would measure memory. Put them back into train or "
                "take them out of the data, or train again: scalingnote retrain."
            )


def require_not_trained_on(dataset: Dataset, splits: Sequence[str]) -> None:
    """Raise DataError when a judged query of a further split among `splits` reads as a train query of the same data.

    Of test and dev the contracts decide whether that stops the flow; of a split that only the configuration knows they can but warn.
    """
    own = seen_queries(dataset) if "train" in dataset.splits else np.empty(0, np.uint64)
    for split in splits:
        if split in NAMED_SPLITS:
            continue
        queries = dataset.judged_queries(split)
        if len(found := np.flatnonzero(np.isin(_digests(queries["text"].tolist()), own))):
            first = on_one_line(str(queries.iloc[int(found[0])]["query_id"]))
            raise DataError(
                f"{len(found):,} of {len(queries):,} judged queries of the split '{split}' are train queries but for case and punctuation; "
                f"the first is '{first}'. Their scores would measure memory. Take them out of one of the two, or measure on another split."
            )


MOST_SHARED = 0.01  # of a further split's queries: fewer move no retention by more than the noise of its measurement


def shared_queries(dataset: Dataset, splits: Sequence[str], than: Sequence[str], refused: bool) -> list[str]:
    """A sentence for each of `splits` and of `than` that have judged queries in common: what is measured on these says nothing of others.

    Raises DataError where these are more than `MOST_SHARED` of the former and `refused` is set: a refresh at night should go on.
    """
    found_shared: list[str] = []
    for split in splits:
        queries = dataset.judged_queries(split)
        digests = _digests(queries["text"].tolist())
        for other in (name for name in than if name != split and name in dataset.splits):
            found = np.flatnonzero(np.isin(digests, _digests(dataset.judged_queries(other)["text"].tolist())))
            if len(found):
                first = on_one_line(str(queries.iloc[int(found[0])]["query_id"]))
                said = (
                    f"{len(found):,} of {len(queries):,} judged queries of the split '{split}' are queries of '{other}' but for case and "
                    f"punctuation; the first is '{first}'. policy.min_off_distribution_retention asks about other queries: take them out "
                    f"of '{split}', or set it to null."
                )
                if refused and len(found) > MOST_SHARED * len(queries):
                    raise DataError(said)
                found_shared.append(said)
    return found_shared


def _digests(texts: Sequence[str]) -> Seen:
    """One for each text; texts without letters and numbers, which are all equal once they are normalised, stand as they are."""
    wordings = (normalise_text(text) or text for text in texts)
    return np.array(
        [int.from_bytes(hashlib.sha256(wording.encode("utf-8", "surrogatepass")).digest()[:8]) for wording in wordings], np.uint64
    )


# --- Rows that are left out of a source, where the configuration asks for that, instead of refusing it: found, counted and kept with
# --- reasons.


SUMMARY_FILE, QUARANTINE_FILE = "left_out.json", "quarantine.jsonl"
_SINGULAR = {"documents": "document", "queries": "query", "unlabelled": "unlabelled query", "judgements": "judgement"}
_ID = {"documents": "doc_id", "queries": "query_id", "unlabelled": "query_id"}


@dataclass(frozen=True)
class _Fault:
    """Rows of a table that break a rule: which, by their place, and what is wrong with them."""

    rule: str
    table: str
    reason: str
    rows: pd.Series


def leave_out(tables: RawTables, config: DataConfig) -> RawTables:
    """The tables without the rows that `config.on_violation` drops, and these in `left_out`.

    Raises DataError when they are more than `config.max_dropped_share` of a table, or of the judgements of a split.
    """
    if "drop" not in config.on_violation.model_dump().values():
        return tables
    frames = {name: getattr(tables, name) for name in _SINGULAR}
    found: list[LeftOut] = []
    kept = dict(frames)
    for fault in _faults(kept, config):
        rows = kept[fault.table].loc[fault.rows]
        kept[fault.table] = kept[fault.table].loc[~fault.rows]
        found += _by_split(fault, rows, frames[fault.table])
    found = _with_unanswered(found, kept["judgements"], set(kept["queries"]["query_id"]))
    _require_few(found, config.max_dropped_share)
    return replace(tables, **{name: frame.reset_index(drop=True) for name, frame in kept.items()}, left_out=tuple(found))


def _faults(kept: Mapping[str, pd.DataFrame], config: DataConfig) -> Iterator[_Fault]:
    """One fault after the other; `kept` has lost the rows of the earlier ones when the next is looked for."""
    chosen = config.on_violation
    settled = ~_contradicting(kept["judgements"])
    if chosen.exact_duplicates == "drop":
        for table, singular in _SINGULAR.items():
            again = kept[table].duplicated()
            again = again & settled if table == "judgements" else again
            yield _Fault(f"duplicate_{singular.replace(' ', '_')}", table, f"the same {singular} stands there before", again)
    blank: dict[str, set[str]] = {}
    if chosen.blank_texts == "drop":
        for table, identifier in _ID.items():
            empty = kept[table]["text"].map(lambda text: not isinstance(text, str) or is_blank(text)).astype(bool)
            blank[table] = set(kept[table].loc[empty, identifier]) - set(kept[table].loc[~empty, identifier])
            yield _Fault(f"blank_{_SINGULAR[table].replace(' ', '_')}", table, "the text is blank", empty)
    for table, identifier in (("documents", "doc_id"), ("queries", "query_id")):
        singular = _SINGULAR[table]
        judged = kept["judgements"][identifier]
        of_blank = judged.isin(blank.get(table, set())) & settled.loc[judged.index]
        yield _Fault(f"judgement_of_blank_{singular}", "judgements", f"the {singular} was dropped, its text is blank", of_blank)
        if chosen.dangling_judgements == "drop":
            judged = kept["judgements"][identifier]
            unknown = ~judged.isin(set(kept[table][identifier])) & settled.loc[judged.index]
            yield _Fault(f"dangling_{singular}", "judgements", f"there is no such {singular}", unknown)


def _contradicting(judgements: pd.DataFrame) -> pd.Series:
    """Which judgements are of a pair that has another grade in its split: which of them is right, nobody can tell from the data."""
    pair = ["split", "query_id", "doc_id"]
    repeated = judgements.loc[judgements.duplicated(pair, keep=False)]
    graded = repeated.drop_duplicates()
    open_pairs = set(graded.loc[graded.duplicated(pair), pair].itertuples(index=False, name=None))
    found = [row in open_pairs for row in repeated[pair].itertuples(index=False, name=None)]
    return pd.Series(found, index=repeated.index, dtype=bool).reindex(judgements.index, fill_value=False)


def _by_split(fault: _Fault, rows: pd.DataFrame, whole: pd.DataFrame) -> Iterator[LeftOut]:
    if not len(rows):
        return
    if fault.table != "judgements":
        yield LeftOut(fault.rule, fault.table, "", fault.reason, rows, len(whole))
        return
    sizes = whole["split"].value_counts()
    for split, part in rows.groupby("split", sort=True):
        yield LeftOut(fault.rule, fault.table, str(split), fault.reason, part, int(sizes[split]))


def _with_unanswered(found: Sequence[LeftOut], after: pd.DataFrame, queries: set[str]) -> list[LeftOut]:
    """Each entry with the number of `queries` that have no relevant document `after` all, under the first entry that took one from them."""
    answered = {split: set(rows["query_id"]) for split, rows in after.loc[after["score"] > 0].groupby("split")}
    counted: list[LeftOut] = []
    seen: set[tuple[str, str]] = set()
    for entry in found:
        lost: set[tuple[str, str]] = set()
        if entry.table == "judgements":
            relevant = queries.intersection(entry.rows.loc[entry.rows["score"] > 0, "query_id"])
            lost = {(entry.split, query) for query in relevant - answered.get(entry.split, set())} - seen
        counted.append(replace(entry, unanswered=len(lost)))
        seen |= lost
    return counted


def _require_few(found: Sequence[LeftOut], most: float) -> None:
    dropped: dict[tuple[str, str], list[LeftOut]] = {}
    for entry in found:
        dropped.setdefault((entry.table, entry.split), []).append(entry)
    for (table, split), entries in dropped.items():
        rows, total = sum(len(entry.rows) for entry in entries), entries[0].total
        if rows > most * total:
            where = f"{table} of the split {split}" if split else table
            rules = "; ".join(f"{len(entry.rows):,} because {entry.reason} ({entry.rule}), first {_first(entry)}" for entry in entries)
            raise DataError(
                f"data.on_violation would drop {rows:,} of {total:,} {where} ({rows / total:.1%}): {rules}. data.max_dropped_share allows "
                f"{most:.1%}. Look whether all files belong together; if they do, raise data.max_dropped_share."
            )


def _first(entry: LeftOut) -> str:
    row = entry.rows.iloc[0]
    return ", ".join(f"{name} '{on_one_line(str(row[name]))}'" for name in ("query_id", "doc_id") if name in row)


def write_left_out(left_out: Sequence[LeftOut], folder: Path) -> None:
    """Write left_out.json, the counts by rule, and quarantine.jsonl, every row with its reason; neither when nothing was left out."""
    for name in (SUMMARY_FILE, QUARANTINE_FILE):
        (folder / name).unlink(missing_ok=True)  # of a killed attempt
    if left_out:
        write_atomic(folder / QUARANTINE_FILE, "".join(f"{json.dumps(line, ensure_ascii=False)}\n" for line in _lines(left_out)).encode())
        write_json(folder / SUMMARY_FILE, [_summary(entry) for entry in left_out])


def read_left_out(folder: Path) -> list[dict[str, Any]]:
    """What left_out.json of a dataset artifact says; empty when nothing was left out. Raises ArtifactError when it cannot be read."""
    path = folder / SUMMARY_FILE
    return read_json(path) if path.exists() else []


def _summary(entry: LeftOut) -> dict[str, Any]:
    names = ("rule", "table", "split", "reason", "total", "unanswered", "source")
    return {**{name: getattr(entry, name) for name in names}, "rows": len(entry.rows), "first": _first(entry)}


def _lines(left_out: Iterable[LeftOut]) -> Iterator[dict[str, Any]]:
    for entry in left_out:
        about = {"rule": entry.rule, "reason": entry.reason, "table": entry.table, **({"data_set": entry.source} if entry.source else {})}
        for row in entry.rows.to_dict("records"):
            yield {**about, "row": {name: None if value != value else value for name, value in row.items()}}


def counts_of(left_out: Iterable[LeftOut]) -> dict[str, int]:
    """Rows that were left out, by rule; empty when there are none."""
    counts: dict[str, int] = {}
    for entry in left_out:
        counts[f"dropped_{entry.rule}"] = counts.get(f"dropped_{entry.rule}", 0) + len(entry.rows)
    return counts
