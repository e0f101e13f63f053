"""Promotion records read from their files alone, as in a backup of the artifact store: no server and no database is asked.

The chain's claims stand in the database. Without it a file counts when the record after it names its digest; the newest one is what the
files say it is, so that the end was cut off shows in the audit log, or by what the release's own signature names.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

from components.artifacts import digest_of
from components.errors import ArtifactError
from components.tracking.chain import OVERTAKEN_FILE, RECORD_FILE, parse_record

_OVERTAKEN = " overtaken"  # no field of a record begins with a space


def read_record_files(root: Path, retriever_name: str) -> list[dict[str, Any]]:
    """The records of a retriever below `root` in order, verified; raises ArtifactError that names the one that is broken or missing."""
    places: dict[int, list[dict[str, Any]]] = {}
    for path in _record_paths(root, retriever_name):
        record = _read(path)
        if record.get("retriever") == retriever_name:
            places.setdefault(int(record["sequence"]), []).append({**record, _OVERTAKEN: path.with_name(OVERTAKEN_FILE).is_file()})
    if (missing := next(number for number in count(1) if number not in places)) < max(places, default=0):
        raise ArtifactError(f"{root}: the file of promotion record {missing} is missing.")
    return _linked(places)


def _record_paths(root: Path, retriever_name: str) -> list[Path]:
    """The record files of one experiment: runs of a training may hold files of the same name, which nobody who promotes has written.

    A record lies at EXPERIMENT/RUN/artifacts/record.json. Where a folder bears the experiment's name it alone counts; a server names its
    folders by numbers, and then the folder with the record 1 of this retriever does.
    """
    found: dict[Path, list[Path]] = {}
    for path in sorted(root.rglob(f"*/artifacts/{RECORD_FILE}")):
        found.setdefault(path.parents[2], []).append(path)
    named = [folder for folder in found if folder.name == f"{retriever_name}-promotions"]
    firsts = named or [folder for folder, paths in found.items() if any(_place(path) == (retriever_name, 1) for path in paths)]
    if len({frozenset(path.read_bytes() for path in found[folder]) for folder in firsts}) > 1:
        raise ArtifactError(
            f"{root} holds promotion records of '{retriever_name}' in {len(firsts)} folders: {firsts[0]} and {firsts[1]}. They differ, so "
            "one of them was not written by the promote flow or is older; give a folder without it."
        )
    if firsts:
        return found[firsts[0]]
    return [path for paths in found.values() for path in paths if (_place(path) or ("", 0))[0] == retriever_name]


def _place(path: Path) -> tuple[str, int] | None:
    """Retriever and number that a record file names, None for a file that is none: it is looked at more closely where it counts."""
    try:
        record = json.loads(path.read_bytes())
        return str(record["retriever"]), int(record["sequence"])
    except (ValueError, TypeError, KeyError, RecursionError):
        return None


def _read(path: Path) -> dict[str, Any]:
    record = parse_record(path.read_bytes(), f"The promotion record {path}")
    if type(record.get("sequence")) is not int or record["sequence"] < 1:
        raise ArtifactError(f"{path} does not hold a promotion record.")
    if digest_of({key: value for key, value in record.items() if key != "digest"}) != record.get("digest"):
        raise ArtifactError(f"{path}: promotion record {record['sequence']} was changed: its digest is not that of its content.")
    return record


def _linked(places: Mapping[int, Sequence[dict[str, Any]]]) -> list[dict[str, Any]]:
    """From the newest back: of files that several writers left for one place, the one that is followed counts.

    Of the newest ones the one that is not marked as overtaken does. The mark alone never takes a record away.
    """
    chain: list[dict[str, Any]] = []
    for number in sorted(places, reverse=True):
        fitting = [record for record in places[number] if not chain or record["digest"] == chain[0]["previous"]]
        fitting = [record for record in fitting if not record[_OVERTAKEN]] or fitting
        if len({record["digest"] for record in fitting}) != 1:
            raise ArtifactError(f"The files hold {len(fitting)} promotion records {number} that the next one could follow; expected one.")
        chain.insert(0, {key: value for key, value in fitting[0].items() if key != _OVERTAKEN})
    if chain and chain[0]["previous"] is not None:
        raise ArtifactError("Promotion record 1 names a record before it; the chain is broken there.")
    return chain
