"""Which files of a data folder hold which table. JSON Lines, tab-separated and Parquet files may stand side by side.

The documents are one file, or a folder `corpus` of many: shards of one table, in the order of their names.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from components.errors import DataError

DOCUMENT_NAMES = ("corpus", "documents")
QUERY_NAMES = ("queries",)
UNLABELLED_NAMES = ("queries_unlabelled",)
TABLE_SUFFIXES = (".jsonl", ".jsonl.gz", ".parquet")
QRELS_SUFFIXES = (".tsv", ".tsv.gz", ".parquet")
_EXPECTED = "a folder with corpus.jsonl, queries.jsonl and qrels/"


@dataclass(frozen=True)
class SourceFiles:
    """The files of one data folder; `qrels` maps a split's name to its file."""

    documents: tuple[Path, ...]
    queries: Path
    qrels: dict[str, Path]
    unlabelled: Path | None

    def all(self) -> list[Path]:
        """Every file that is read, in a fixed order."""
        optional = [self.unlabelled] if self.unlabelled else []
        return [*self.documents, self.queries, *self.qrels.values(), *optional]


def locate(folder: Path) -> SourceFiles:
    """Find the tables of `folder`; raises DataError that names what is missing or stands there twice."""
    _require_folder(folder)
    return SourceFiles(
        documents=_documents(folder),
        queries=_required(folder, QUERY_NAMES, "queries.jsonl"),
        qrels=_qrels(folder),
        unlabelled=_only(folder, UNLABELLED_NAMES),
    )


def _require_folder(folder: Path) -> None:
    if not folder.exists():
        raise DataError(f"The data folder {folder} does not exist. Give {_EXPECTED}, or the built-in set: icd10cm.")
    if not folder.is_dir():
        raise DataError(f"{folder} is a file; expected {_EXPECTED}. Give the folder that holds it.")


def _documents(folder: Path) -> tuple[Path, ...]:
    """The file of the documents, or their shards."""
    shards = [path for name in DOCUMENT_NAMES if (path := folder / name).is_dir()]
    if not shards:
        return (_required(folder, DOCUMENT_NAMES, "corpus.jsonl"),)
    other = _only(folder, DOCUMENT_NAMES) or (shards[1] if len(shards) > 1 else None)
    if other is not None:
        raise DataError(f"{folder} holds the same table twice: the folder {shards[0].name} and {other.name}. Keep the one that counts.")
    return _shards(shards[0])


def _shards(folder: Path) -> tuple[Path, ...]:
    """Every file of `folder`; what cannot be read is refused, since its documents would be missed by nobody."""
    # Writers of many shards leave marks such as _SUCCESS and .part.crc.
    paths = sorted(path for path in folder.iterdir() if not path.name.startswith((".", "_")))
    if not paths:
        raise DataError(f"{folder} holds no documents. Put .jsonl, .jsonl.gz or .parquet files there, or remove the folder.")
    foreign = next((path for path in paths if not path.is_file() or not path.name.endswith(TABLE_SUFFIXES)), None)
    if foreign is not None:
        raise DataError(f"{foreign}: expected only files named .jsonl, .jsonl.gz or .parquet in {folder.name}. Convert or move it.")
    return tuple(paths)


def _required(folder: Path, names: Sequence[str], usual: str) -> Path:
    path = _only(folder, names)
    if path is None:
        others = ", ".join(name + suffix for name in names for suffix in TABLE_SUFFIXES if name + suffix != usual)
        raise DataError(
            f"{folder / usual} is missing (also accepted: {others}, or a folder corpus of such files). Add it, or give another data folder."
        )
    return path


def _only(folder: Path, names: Sequence[str]) -> Path | None:
    found = [path for name in names for suffix in TABLE_SUFFIXES if (path := folder / (name + suffix)).is_file()]
    if len(found) > 1:
        raise DataError(f"{folder} holds the same table twice: {found[0].name} and {found[1].name}. Keep the one that counts.")
    return found[0] if found else None


def _qrels(folder: Path) -> dict[str, Path]:
    splits: dict[str, Path] = {}
    for path in sorted((folder / "qrels").glob("*")):
        split = _split_name(path)
        if split is None:
            continue
        if split in splits:
            both = f"{splits[split].name} and {path.name}"
            raise DataError(f"{path.parent} holds the split '{split}' twice: {both}. Keep the one that counts.")
        splits[split] = path
    if not splits:
        raise DataError(
            f"{folder / 'qrels'} holds no judgements. Expected train.tsv, test.tsv and, if there is one, dev.tsv (or .parquet)."
        )
    return splits


def _split_name(path: Path) -> str | None:
    if path.name.startswith(".") or not path.is_file():
        return None
    return next((path.name.removesuffix(suffix) for suffix in QRELS_SUFFIXES if path.name.endswith(suffix)), None)
