"""Promotion records read from their files alone, as in a backup of the artifact store: no server and no database is asked.

The chain's claims stand in the database. Without it a file counts when the record after it names its digest; the newest one is what the
files say it is, so that the end was cut off shows in the audit log, or by what the release's own signature names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from components.artifacts import digest_of
from components.errors import ArtifactError
from components.tracking.chain import RECORD_FILE, parse_record


def read_record_files(root: Path, retriever_name: str) -> list[dict[str, Any]]:
    """The records of a retriever below `root` in order, verified; raises ArtifactError that names the one that is broken or missing."""
    places: dict[int, list[dict[str, Any]]] = {}
    for path in sorted(root.rglob(RECORD_FILE)):
        record = _read(path)
        if record.get("retriever") == retriever_name:
            places.setdefault(int(record["sequence"]), []).append(record)
    if missing := [number for number in range(1, max(places, default=0)) if number not in places]:
        raise ArtifactError(f"{root}: the file of promotion record {missing[0]} is missing.")
    return _linked(places)


def _read(path: Path) -> dict[str, Any]:
    record = parse_record(path.read_bytes(), f"The promotion record {path}")
    if not isinstance(record.get("sequence"), int):
        raise ArtifactError(f"{path} does not hold a promotion record.")
    if digest_of({key: value for key, value in record.items() if key != "digest"}) != record.get("digest"):
        raise ArtifactError(f"{path}: promotion record {record['sequence']} was changed: its digest is not that of its content.")
    return record


def _linked(places: Mapping[int, Sequence[dict[str, Any]]]) -> list[dict[str, Any]]:
    """From the newest back: of files that a killed writer and its successor left for one place, the one that is followed counts."""
    chain: list[dict[str, Any]] = []
    for number in sorted(places, reverse=True):
        fitting = [record for record in places[number] if not chain or record["digest"] == chain[0]["previous"]]
        if len({record["digest"] for record in fitting}) != 1:
            raise ArtifactError(f"The files hold {len(fitting)} promotion records {number} that the next one could follow; expected one.")
        chain.insert(0, fitting[0])
    if chain and chain[0]["previous"] is not None:
        raise ArtifactError("Promotion record 1 names a record before it; the chain is broken there.")
    return chain
