"""Which files of a data folder hold which table, and which files of it hold none.

Every table is one file, or a folder of many: shards of one table, in the order of their names. JSON Lines, CSV, tab-separated, Parquet and
Arrow files (as `save_to_disk` of the package datasets writes them) may stand side by side. Judgements lie in `qrels/`, or where data sets
of the hubs have them, in `data/` or `default/`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

from components.data.values import on_one_line
from components.errors import DataError

DOCUMENT_NAMES = ("corpus", "documents")
QUERY_NAMES = ("queries",)
UNLABELLED_NAMES = ("queries_unlabelled",)
TRANSLATED_NAMES = ("queries_translated",)
QRELS_FOLDERS = ("qrels", "data", "default")
TABLE_SUFFIXES = (".jsonl", ".jsonl.gz", ".csv", ".csv.gz", ".tsv", ".tsv.gz", ".parquet", ".arrow")
MARKS = ("dataset_dict.json", "dataset_info.json", "state.json")  # what `save_to_disk` writes beside its tables
LOGS = {"_delta_log": "Delta Lake", ".hoodie": "Apache Hudi"}  # beside Parquet files of which not all count
QRELS_SUFFIXES = (*TABLE_SUFFIXES, *(end + gz for end in (".txt", ".trec", ".qrels", ".qrel") for gz in ("", ".gz")))
# The words of the hubs for the queries that checkpoints are chosen by.
DEV_WORDS = ("dev", "validation", "valid", "val")
_QRELS = re.compile(r"^qrels?[._-]|[._-]qrels?$")
_SHARD = re.compile(r"(?P<name>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})")
# How files of other kinds begin, what they are, and what to do with one whose name says something else.
_KINDS = (
    (b"\x1f\x8b", "compressed with gzip", "Let its name end in .gz."),
    (b"\x28\xb5\x2f\xfd", "compressed with Zstandard", "Unpack it: zstd -d."),
    (b"\xfd7zXZ\x00", "compressed with xz", "Unpack it: xz -d."),
    (b"BZh", "compressed with bzip2", "Unpack it: bzip2 -d."),
    (b"PK\x03\x04", "a zip archive or a spreadsheet", "Unpack it, or save it as CSV."),
    (b"PAR1\x15", "Parquet", "Let its name end in .parquet."),
)
_POINTERS = (b"version https://git-lfs.github.com/spec/", b"/annex/objects/")
_EXPECTED = "a folder with corpus.jsonl, queries.jsonl and qrels/"


@dataclass(frozen=True)
class SourceFiles:
    """The files of one data folder.

    `qrels` maps a split's name to its files. `remarks` says in sentences which file was read as something else than its name says, and
    `unread` maps every other file and folder, by its name in the folder, to the reason why it was not read.
    """

    documents: tuple[Path, ...]
    queries: tuple[Path, ...]
    qrels: dict[str, tuple[Path, ...]]
    unlabelled: tuple[Path, ...]
    translated: tuple[Path, ...]
    remarks: tuple[str, ...]
    unread: dict[str, str]

    def all(self) -> list[Path]:
        """Every file that is read, in a fixed order."""
        judged = (path for paths in self.qrels.values() for path in paths)
        return [*self.documents, *self.queries, *judged, *self.unlabelled, *self.translated]


def locate(folder: Path) -> SourceFiles:
    """Find the tables of `folder`; raises DataError that names what is missing, cannot be read, or stands there twice."""
    try:
        _require_folder(folder)
        documents, queries = _required(folder, DOCUMENT_NAMES, "corpus.jsonl"), _required(folder, QUERY_NAMES, "queries.jsonl")
        place, qrels = _qrels(folder)
        further = _table(folder, UNLABELLED_NAMES), _table(folder, TRANSLATED_NAMES)
        found = SourceFiles(documents, queries, qrels, *further, tuple(dict.fromkeys(_remarks(place, qrels))), {})
        for path in found.all():
            _require_content(path)
        return replace(found, unread=_unread(folder, place, found.all()))
    except OSError as error:
        raise DataError(f"The data folder {folder} cannot be read: {error.strerror}: {error.filename}. Check its permissions.") from None


def _require_folder(folder: Path) -> None:
    if not folder.exists():
        raise DataError(
            f"The data folder {folder} does not exist. Give {_EXPECTED}, the built-in set icd10cm, or a data set of a hub: hub:OWNER/NAME."
        )
    if not folder.is_dir():
        raise DataError(f"{folder} is a file; expected {_EXPECTED}. Give the folder that holds it.")


def _required(folder: Path, names: Sequence[str], usual: str) -> tuple[Path, ...]:
    found = _table(folder, names)
    if not found:
        others = ", ".join(name + suffix for name in names for suffix in TABLE_SUFFIXES if name + suffix != usual)
        near = [printable(path.relative_to(folder)) for path in _entries(folder) if path.name.lower().split(".")[0] in names]
        unread = f" {near[0]} is there, but its name ends in none of these: convert or unpack it." if near else ""
        raise DataError(
            f"{folder / usual} is missing (also accepted: {others}, or a folder {names[0]} of such files).{unread} "
            "Add it, or give another data folder."
        )
    return found


def _table(folder: Path, names: Sequence[str]) -> tuple[Path, ...]:
    """The files of the table that goes by one of `names`; none when it is not there."""
    found = [
        path for path in _entries(folder) if _stem(path, TABLE_SUFFIXES).lower() in names or (path.name in names and not path.is_file())
    ]
    numbered = ((path, _SHARD.fullmatch(_stem(path, TABLE_SUFFIXES))) for path in _entries(folder))
    shards = [path for path, shard in numbered if shard is not None and shard["name"] in names]
    if shards and not found:  # corpus-00000-of-00002.parquet, in no folder of its own
        if other := next((path for path in shards if not path.name.startswith(f"{shards[0].name.partition('-')[0]}-")), None):
            raise DataError(f"{folder} holds the same table twice: {shards[0].name} and {other.name}. Keep the one that counts.")
        _require_all_shards(shards, TABLE_SUFFIXES)
        return tuple(_require_file(path) for path in shards)
    if len(found) > 1:
        first, second = sorted(found, key=lambda path: not path.is_dir())[:2]
        both = f"{'the folder ' if first.is_dir() else ''}{first.name} and {second.name}"
        raise DataError(f"{folder} holds the same table twice: {both}. Keep the one that counts.")
    return _files(found[0], TABLE_SUFFIXES) if found else ()


def _files(path: Path, suffixes: Sequence[str]) -> tuple[Path, ...]:
    """The file itself, or the shards of a folder; what cannot be read is refused, since its rows would be missed by nobody."""
    if not path.is_dir():
        return (_require_file(path),)
    if log := next((log for log in LOGS if (path / log).is_dir()), None):
        raise DataError(
            f"{path} is a table of {LOGS[log]}, whose log {log} says which of its files count; read as files, rows that were removed or "
            "changed would come back. Write the rows that count now as Parquet, and give that folder."
        )
    entries = _entries(path)
    # corpus/corpus/0000.parquet, as hubs convert data sets; in what `save_to_disk` wrote the one split has a name of its own.
    if len(entries) == 1 and entries[0].is_dir() and (entries[0].name == path.name or (path / MARKS[0]).is_file()):
        return _files(entries[0], suffixes)
    if not entries:
        raise DataError(f"{path} holds no {'documents' if path.name in DOCUMENT_NAMES else 'files'}. Put some there, or remove the folder.")
    foreign = next((entry for entry in entries if not _stem(entry, suffixes) or entry.is_dir()), None)
    if foreign is not None:
        raise DataError(f"{foreign}: expected only files named {', '.join(TABLE_SUFFIXES)} in {path.name}. Convert or move it.")
    _require_all_shards(entries, suffixes)
    return tuple(_require_file(entry) for entry in entries)


def _entries(folder: Path) -> list[Path]:
    """What stands in `folder`, by name; without what is hidden and the marks that writers of many shards leave, such as _SUCCESS."""
    return sorted(path for path in folder.iterdir() if not path.name.startswith((".", "_")) and path.name not in MARKS)


def _stem(path: Path, suffixes: Sequence[str]) -> str:
    """A file's name without its ending; empty when it ends in none of `suffixes`."""
    name = path.name.lower()
    return next((path.name[: -len(end)] for end in sorted(suffixes, key=len, reverse=True) if name.endswith(end)), "")


def _require_file(path: Path) -> Path:
    if path.is_symlink() and not path.exists():
        raise DataError(f"{path} is a link to {path.readlink()}, which is not there. Fetch that file, or remove the link.")
    if not path.is_file():
        raise DataError(f"{path} is neither a file nor a folder. Put a file in its place.")
    return path


def _require_content(path: Path) -> None:
    """Raises DataError for a stand-in that version control keeps in the place of a large file, and for a name that is not plain text or
    says something else than what the file holds."""
    if printable(path) != path.as_posix():
        raise DataError(
            f"{printable(path)}: the name has to be text in UTF-8 without line breaks and control characters. Rename the file or folder."
        )
    with path.open("rb") as handle:
        start = handle.read(64)
    if start.startswith(_POINTERS):
        raise DataError(f"{path} is a pointer of Git LFS or git-annex, not the file itself. Fetch it: git lfs pull, or git annex get.")
    packed, name = start.startswith(_KINDS[0][0]), path.name.lower()
    if start and name.endswith(".gz") and not packed:
        raise DataError(
            f"{path} cannot be read: it is not compressed with gzip. Let its name end without .gz; if it was cut off, copy it again."
        )
    for begins, what, advice in () if name.endswith((".gz", ".parquet")) else _KINDS:
        if start.startswith(begins) and (begins != b"BZh" or start[4:10] == b"1AY&SY"):
            raise DataError(f"{path} is {what}, which its name does not say. {advice}")


def _require_all_shards(paths: Sequence[Path], suffixes: Sequence[str]) -> None:
    """Raises DataError when the names say how many shards there are (NAME-00000-of-00002) and one is not there, or say two numbers."""
    there = {stem for path in paths if (stem := _stem(path, suffixes))}
    matches = [match for match in map(_SHARD.fullmatch, sorted(there)) if match]
    for first, second in pairwise(matches):
        if first["name"] == second["name"] and first["count"] != second["count"]:
            both = f"{first[0]} and {second[0]}"
            raise DataError(f"{paths[0].parent} holds the shards of two writings: {both}. Keep those of the one that counts.")
    for match in matches:
        wanted = [f"{match['name']}-{number:05}-of-{match['count']}" for number in range(int(match["count"]))]
        if missing := [name for name in wanted if name not in there]:
            raise DataError(f"{paths[0].parent} lacks {len(missing)} of {len(wanted)} shards, first {missing[0]}. Fetch all of them.")


def _qrels(folder: Path) -> tuple[str, dict[str, tuple[Path, ...]]]:
    """The folder that holds the judgements, and the files of each split."""
    for place in QRELS_FOLDERS:
        if (folder / place).is_symlink() or (folder / place).is_dir():
            if not (folder / place).is_dir():
                _require_file(folder / place)
            if splits := _splits(folder / place):
                return place, splits
    raise DataError(
        f"{folder / 'qrels'} holds no judgements. Expected train.tsv, test.tsv and, if there is one, dev.tsv (or .jsonl, .csv, .parquet, "
        "or .txt as TREC has them)."
    )


def _splits(folder: Path) -> dict[str, tuple[Path, ...]]:
    """The files of each split, in the order of their names."""
    groups: dict[str, dict[str, list[Path]]] = {}
    for path in _entries(folder):
        stem = _stem(path, QRELS_SUFFIXES) or (path.name if path.is_dir() and any(_stem(p, QRELS_SUFFIXES) for p in path.iterdir()) else "")
        if stem:
            if path.is_dir():
                _require_shards_of(path)
            shard = _SHARD.fullmatch(stem)
            origin = f"{shard['name']}{path.name[len(stem) :]}" if shard else path.name
            groups.setdefault(split_of(stem), {}).setdefault(origin, []).append(path)
    for split, origins in groups.items():
        if len(origins) > 1:
            both = " and ".join(sorted(origins)[:2])
            raise DataError(f"{folder} holds the split '{split}' twice: {both}. Keep the one that counts.")
    found = {split: next(iter(origins.values())) for split, origins in groups.items()}
    for paths in found.values():
        _require_all_shards(paths, QRELS_SUFFIXES)
    return {split: tuple(file for path in paths for file in _files(path, QRELS_SUFFIXES)) for split, paths in found.items()}


def _require_shards_of(folder: Path) -> None:
    """Raises DataError for a folder of judgements whose files bear the names of other splits: they would be one split of its own name."""
    own, inside = split_of(folder.name), {split_of(_stem(path, QRELS_SUFFIXES)) for path in _entries(folder)}
    if other := sorted((inside & {"train", "dev", "test"}) - {own}):
        raise DataError(
            f"{folder} holds files that are named as the split {other[0]}, and would be read as shards of the split '{own}'. Put them into "
            f"{folder.parent}, or rename them where they are shards of '{own}', as to part-0.tsv."
        )


def split_of(stem: str) -> str:
    """The split that a file's name without its ending stands for: validation is dev, and the number of a shard is no part of the name.

    Nor is the word qrels before or behind it (`qrels.dev.tsv`): such a file would be a further split, and dev held out of train.
    """
    shard = _SHARD.fullmatch(stem)
    name = shard["name"] if shard else stem
    word = _QRELS.sub("", name.lower())
    if word in DEV_WORDS:
        return "dev"
    return word if word in ("train", "test") else name


def nearly_dev(splits: Iterable[str]) -> list[str]:
    """Splits that have a word for dev in their names and are further ones, where none is dev and it will be held out of train."""
    names = list(splits)
    if "dev" in names or "train" not in names:
        return []
    return [name for name in names if not {*re.split(r"[\W_]+", name.lower())}.isdisjoint(DEV_WORDS)]


def _remarks(place: str, qrels: dict[str, tuple[Path, ...]]) -> Iterator[str]:
    for split in ("train", "dev", "test"):
        for path in qrels.get(split, ()):
            word = path.parent.name if path.parent.name != place else path.name
            if not word.lower().startswith(split):
                yield f"{place}/{word} is read as the split {split}."


def _unread(folder: Path, place: str, read: Sequence[Path]) -> dict[str, str]:
    """Every file and folder that no table was read from, with the reason."""
    known = {*read, *(parent for path in read for parent in path.parents)}
    places = [folder, folder / place]
    found = [path for where in places for path in _entries(where) if path not in known]
    shards = sorted({path.parent for path in read} - {*places})
    found += [path for where in (*places, *shards) for path in sorted(where.glob("_*")) if _stem(path, QRELS_SUFFIXES)]
    return {printable(path.relative_to(folder)): _reason(path, folder, place) for path in found}


def printable(path: Path) -> str:
    """A path as text that every terminal and file can take: bytes of a name that are no UTF-8 and line breaks are written out."""
    return on_one_line(os.fsencode(path.as_posix()).decode("utf-8", "backslashreplace"))


def _reason(path: Path, folder: Path, place: str) -> str:
    if path.is_symlink() and not path.exists():
        return "a link to a file that is not there"
    if path.name.startswith("_"):
        return "a name that begins with _ is taken for the mark of a writer, such as _SUCCESS"
    if path.parent != folder:
        return f"a split is a file that ends in {', '.join(QRELS_SUFFIXES)}"
    if path.name in QRELS_FOLDERS:
        return f"the judgements are read from {place}"
    if path.is_dir():
        return "a folder of this name holds no table"
    if path.name.partition(".")[0] in (*DOCUMENT_NAMES, *QUERY_NAMES, *UNLABELLED_NAMES, *TRANSLATED_NAMES):
        return f"it ends in none of {', '.join(TABLE_SUFFIXES)}"
    return "a file of this name is no table; judgements belong into qrels"
