"""Vectors that a team has already, read from a folder and checked: Parquet, NumPy or FAISS, each vector under the id of its text.

    documents.parquet                 _id, vector; or a folder documents/ of such files
    documents.npy + documents.ids.txt (.json)   one row and one id for each document
    documents.faiss [+ documents.ids.txt]       without a file of ids those of the index itself

and the same under the name `queries`, as far as there are any.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from tokenize import TokenError
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from components.artifacts import Scalar, digest_of, file_sha256, is_complete, read_manifest
from components.data.values import plain_name
from components.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

from components.towers.trained.stored import VectorTable

Kind = Literal["documents", "queries"]
KINDS: tuple[Kind, Kind] = ("documents", "queries")
# As `plain_name` writes them. That of a text's own kind counts before a plain id, as in the tables of texts.
ID_COLUMNS = ("docid", "queryid", "qid", "id")
VECTOR_COLUMNS = ("vector", "embedding", "embeddings", "values")
FORMATS = (".parquet", ".npy", ".faiss")
IDS = (".ids.txt", ".ids.json", "_ids.txt", "_ids.json")
COPY_KIND = "collection"  # of the artifact that a copy of a database's collection is (see `vector_stores`)
_SHOWN = 3
_HEAD = 16  # rows of a table that are read for the length of a vector
_BLOCK = 65_536  # rows that are looked at together


def vector_files(folder: Path) -> list[Path]:
    """The files of `folder` that hold vectors or their ids, in a fixed order; raises DataError without a folder, and for a broken link."""
    if not folder.is_dir():
        raise DataError(f"The folder of vectors '{folder}' does not exist. Give one with documents.parquet, .npy or .faiss.")
    wanted = [folder / f"{kind}{ending}" for kind in KINDS for ending in (*FORMATS, *IDS)]
    wanted += [path for kind in KINDS for path in (folder / kind).glob("*.parquet")]
    # Those of queries may be missing: a link that was not fetched would have documents stand in for them.
    if broken := next((path for path in (*wanted, *(folder / kind for kind in KINDS)) if path.is_symlink() and not path.exists()), None):
        raise DataError(f"{broken} is a link to {broken.readlink()}, which is not there. Fetch that file, or remove the link.")
    return sorted(path for path in wanted if path.is_file())


def files_digest(folder: Path) -> str:
    """Identity of the files of vectors in `folder`, for the key of a step."""
    return digest_of({path.relative_to(folder).as_posix(): file_sha256(path) for path in vector_files(folder)})


def copied_from(folder: Path) -> dict[str, Scalar]:
    """The collection that the files in `folder` were copied from, for the records; nothing for files that came otherwise."""
    found = read_manifest(folder) if is_complete(folder) else None
    return {"copied_from": found.attributes["collection"]} if found is not None and found.kind == COPY_KIND else {}


def stored_width(folder: Path) -> int:
    """Dimensions of the documents' vectors, from the head of their file; raises DataError where there are none."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    files = vector_files(folder)
    whole = [path for path in files if path.stem == "documents" and path.suffix in FORMATS]
    paths = whole[:1] or [path for path in files if path.parent == folder / "documents"]
    if not paths:
        raise DataError(f"{folder} has no vectors of documents. Expected documents.parquet, documents.npy or documents.faiss.")
    if paths[0].suffix == ".faiss":
        return int(_opened_faiss(paths[0]).d)
    if paths[0].suffix == ".npy":
        return int(_opened_npy(paths[0]).shape[1])
    for path in paths:
        try:
            for batch in pq.ParquetFile(path).iter_batches(_HEAD):
                column = _column(path, pa.Table.from_batches([batch]), VECTOR_COLUMNS).drop_null()
                for chunk in column.chunks:
                    if width := next(iter(_rows_of(str(path), chunk)[0]), 0):
                        return width
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"{path} cannot be read as Parquet ({type(error).__name__}).") from None
    raise DataError(f"{paths[0]} holds no vectors. Give one vector for each document.")


def read_vectors(folder: Path, kind: Kind) -> VectorTable | None:
    """The vectors of documents or queries in `folder`; None where it has none.

    Raises DataError, with counts, for vectors with values that are not finite, of two lengths or without a direction, for ids that are
    missing, blank or repeated, and for files that cannot be read.
    """
    parquet = _shards(folder / kind)
    there = [path for path in vector_files(folder) if path.parent == folder and path.suffix in FORMATS and path.stem == kind]
    if len(there) + bool(parquet) > 1:
        named = ", ".join(path.name for path in there) + (f" and the folder {kind}/" if parquet else "")
        raise DataError(f"{folder} has the vectors of {kind} more than once: {named}. Leave one of them.")
    if parquet:
        return parquet_vectors(parquet, str(folder / kind))
    if not there:
        return None
    path, ids = there[0], _ids_beside(folder, kind)
    if path.suffix == ".parquet":
        return parquet_vectors([path], str(path))
    if path.suffix == ".faiss":
        return _of_faiss(path, ids)
    if ids is None:
        raise DataError(f"{path} has no ids beside it. Write one id a line, in the order of the rows, into {kind}.ids.txt.")
    with np.errstate(over="ignore"):  # a value beyond float32 becomes infinite, which is refused by its id
        vectors = np.asarray(_opened_npy(path), dtype=np.float32)
    return _checked(ids, vectors, str(path))


def not_read(folder: Path) -> list[str]:
    """What stands in `folder` beside the vectors and their ids, in words; nothing for what is hidden and for the copy of a collection."""
    if is_complete(folder):
        return []
    known = {path for file in vector_files(folder) for path in (file, file.parent)}
    others = sorted(path.name for path in folder.iterdir() if path not in known and not path.name.startswith((".", "_")))
    wanted = "queries.parquet, queries.npy or queries.faiss"
    return [f"Not read: {', '.join(others[:_SHOWN])} ({len(others)} in all); vectors of queries are expected in {wanted}"] if others else []


def _shards(folder: Path) -> list[Path]:
    """The Parquet files of a folder of vectors; raises DataError for one that holds other files too, whose vectors nobody would miss."""
    entries = sorted(path for path in folder.iterdir() if not path.name.startswith((".", "_"))) if folder.is_dir() else []
    if foreign := next((path for path in entries if path.suffix != ".parquet" or not path.is_file()), None):
        raise DataError(f"{foreign}: expected only files named .parquet in {folder.name}/. Convert or move it.")
    return entries


def parquet_vectors(paths: Sequence[Path], named: str) -> VectorTable:
    """The vectors of Parquet files, which messages call `named`; raises DataError as `read_vectors` does."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    ids: list[str] = []
    blocks: list[NDArray[np.float32]] = []
    lengths: Counter[int] = Counter()
    without = 0
    for path in paths:
        try:
            table = pq.read_table(path)
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"{path} cannot be read as Parquet ({str(error).splitlines()[0]}).") from None
        id_column, column = (_column(path, table, names) for names in (ID_COLUMNS, VECTOR_COLUMNS))
        ids += [_id_text(value, f"{path}, row {row}") for row, value in enumerate(id_column.to_pylist(), start=1)]
        without += column.null_count
        for chunk in column.chunks if not without else ():
            found, rows = _rows_of(named, chunk)
            lengths.update(found)
            blocks.append(rows)
    if without:
        raise DataError(f"{named}: {without:,} of {len(ids):,} rows have no vector. Leave them out or encode them.")
    if len(lengths) > 1:
        shown = ", ".join(f"{count:,} of {length}" for length, count in lengths.most_common(_SHOWN))
        raise DataError(f"{named} has vectors of {len(lengths)} lengths: {shown}. One encoder gives one length: encode the others again.")
    width = next(iter(lengths), 0)
    vectors = np.concatenate([block.reshape(-1, width) for block in blocks]) if width else np.empty((len(ids), 0), np.float32)
    return _checked(ids, vectors, named)


def _column(path: Path, table: pa.Table, names: Sequence[str]) -> pa.ChunkedArray:
    known = {wanted: [name for name in table.column_names if plain_name(name) == wanted] for wanted in names}
    found = [name for wanted in names for name in known[wanted]]
    if not found:
        shown = " or ".join(("_id", "doc_id", "query_id", "qid") if names is ID_COLUMNS else names)
        raise DataError(f"{path} has the columns {', '.join(table.column_names)}; expected one named {shown}.")
    rivals = found if names is VECTOR_COLUMNS else known[plain_name(found[0])]
    if len(rivals) > 1:
        raise DataError(f"{path} has the columns {' and '.join(rivals)}, and either could be meant. Leave or rename one of them.")
    return table.column(found[0])


def _id_text(value: Any, where: str) -> str:
    """An id as text; nothing is a blank one, and raises DataError for what is neither text nor a whole number."""
    if isinstance(value, bytes):  # as NumPy and Spark write text
        try:
            return value.decode()
        except UnicodeDecodeError:
            pass
    if value is None or (isinstance(value, str | int) and not isinstance(value, bool)):
        return "" if value is None else str(value)
    raise DataError(f"{where}: an id has to be text or a whole number, as in the data; found {value!r:.60}. Write the ids as text.")


def _rows_of(named: str, chunk: pa.Array) -> tuple[Counter[int], NDArray[np.float32]]:
    """Counts of vectors by length, and all their numbers one after the other."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if isinstance(chunk, pa.ExtensionArray):  # tensors of one shape
        chunk = chunk.storage
    if pa.types.is_list_view(chunk.type) or pa.types.is_large_list_view(chunk.type):
        chunk = chunk.cast(pa.large_list(chunk.type.value_type))
    if not (pa.types.is_list(chunk.type) or pa.types.is_large_list(chunk.type) or pa.types.is_fixed_size_list(chunk.type)):
        raise DataError(f"{named}: the vectors are of type {chunk.type}; expected lists of numbers.")
    lengths = Counter(pc.list_value_length(chunk).to_pylist())
    flat = chunk.flatten()
    if not pa.types.is_floating(flat.type) and not pa.types.is_integer(flat.type):
        raise DataError(f"{named}: the vectors hold values of type {flat.type}; expected numbers.")
    return lengths, flat.to_numpy(zero_copy_only=False).astype(np.float32)


def _opened_npy(path: Path) -> NDArray[Any]:
    try:
        found: NDArray[Any] = np.load(path, allow_pickle=False, mmap_mode="r")
    except (OSError, ValueError, EOFError, TokenError) as error:  # the last for a header that breaks off
        raise DataError(f"{path} is not a table of numbers as numpy.save writes it ({str(error).splitlines()[0]}).") from None
    if not isinstance(found, np.ndarray):
        raise DataError(f"{path} is an archive of tables (.npz). Write the one table of vectors with numpy.save.")
    if found.ndim != 2 or not np.issubdtype(found.dtype, np.number) or np.iscomplexobj(found):
        raise DataError(f"{path} holds {found.dtype} of the shape {found.shape}; expected numbers of the shape (texts, dimensions).")
    return found


def _ids_beside(folder: Path, kind: Kind) -> list[str] | None:
    there = [path for ending in IDS if (path := folder / f"{kind}{ending}").is_file()]
    if len(there) > 1:
        raise DataError(f"{folder} has the ids of {kind} more than once: {', '.join(path.name for path in there)}. Leave one of them.")
    if not there:
        return None
    path = there[0]
    try:
        text = path.read_text(encoding="utf-8-sig")
        # By line breaks alone: str.splitlines also parts an id at U+2028 and its like.
        found = json.loads(text) if path.suffix == ".json" else text.rstrip("\n").split("\n") if text.strip() else []
    except (OSError, UnicodeDecodeError, ValueError, RecursionError) as error:
        advice = "Write a list of ids in UTF-8." if path.suffix == ".json" else "Write one id a line in UTF-8."
        raise DataError(f"{path} cannot be read ({str(error).splitlines()[0]}). {advice}") from None
    if not isinstance(found, list):
        raise DataError(f"{path} holds {type(found).__name__}; expected a list of ids.")
    return [_id_text(value, f"{path}, id {number}") for number, value in enumerate(found, start=1)]


def _of_faiss(path: Path, ids: list[str] | None) -> VectorTable:
    """What a FAISS index gives back of its vectors, which of a compressed one is near them and not they themselves."""
    import faiss

    whole = _opened_faiss(path)  # held, since the index within it does not live on without it
    numbers, index = _numbered(whole)
    lists = _inverted(index)
    # These end the process when they are asked (faiss 1.15.1); there is no error to catch.
    if isinstance(lists, faiss.IndexIVFFastScan) and not isinstance(lists, faiss.IndexIVFRaBitQFastScan):
        raise DataError(f"{path}: FAISS does not give the vectors of {type(lists).__name__} back. Give them as .npy or .parquet.")
    try:
        if lists is not None:
            rows = _ids_of_lists(lists)
            lists.set_direct_map_type(faiss.DirectMap.Hashtable)
            vectors = index.reconstruct_batch(rows)
            numbers = rows if numbers is None else numbers
        else:
            vectors = index.reconstruct_n(0, index.ntotal)
    except RuntimeError as error:
        raise DataError(f"{path}: FAISS does not give its vectors back ({str(error).strip().splitlines()[-1][:160]}).") from None
    exact = isinstance(index, (faiss.IndexFlat, faiss.IndexIVFFlat, faiss.IndexHNSWFlat))
    remark = () if exact else (f"{path.name} is compressed ({type(index).__name__}): its vectors are near those that were encoded",)
    return _checked(_ids_of_rows(path, len(vectors), numbers, ids, lists is not None), vectors, str(path), remark)


def _ids_of_rows(path: Path, rows: int, numbers: NDArray[np.int64] | None, ids: list[str] | None, scattered: bool) -> list[str]:
    """The id of each row: what the index calls it (`numbers`), or the line of the file of ids that this number names.

    Numbers that are no lines leave the order in which vectors were added, which the lists of an inverted file do not keep (`scattered`).
    """
    own = np.arange(rows) if numbers is None else numbers
    if ids is None:
        return [str(number) for number in own]
    if len(ids) == rows and np.array_equal(np.sort(own), np.arange(rows)):
        return [ids[number] for number in own]
    if scattered and len(ids) == rows:
        raise DataError(
            f"{path} numbers its vectors itself ({', '.join(str(number) for number in own[:_SHOWN])}, ...), and these are no lines of the "
            "file of ids. Leave that file out where the numbers are the ids, or give the vectors as .npy in the order of the ids."
        )
    return ids


def _inverted(index: Any) -> Any:
    """The inverted file that `index` is, or has behind its transforms; None for others."""
    import faiss

    inner = faiss.downcast_index(index.index) if isinstance(index, faiss.IndexPreTransform) else index
    return inner if isinstance(inner, faiss.IndexIVF) else None


def _opened_faiss(path: Path) -> Any:
    import faiss

    try:
        return faiss.read_index(str(path))
    except RuntimeError as error:
        said = str(error).strip().splitlines()[-1][:160]
        raise DataError(f"{path} is no index of vectors that FAISS can read ({said}). Copy it again; one of bits has none.") from None


def _ids_of_lists(index: Any) -> NDArray[np.int64]:
    """The ids in the lists of an inverted file, in their order."""
    import faiss

    lists = index.invlists
    found = [faiss.rev_swig_ptr(lists.get_ids(number), lists.list_size(number)).copy() for number in range(lists.nlist)]
    return np.sort(np.concatenate(found)).astype(np.int64)


def _numbered(index: Any) -> tuple[NDArray[np.int64] | None, Any]:
    """The ids that an IndexIDMap holds, and the index within it."""
    import faiss

    if not isinstance(index, faiss.IndexIDMap):
        return None, index
    return faiss.vector_to_array(index.id_map), faiss.downcast_index(index.index)


def _checked(ids: list[str], vectors: NDArray[np.float32], named: str, remarks: tuple[str, ...] = ()) -> VectorTable:
    if len(ids) != len(vectors):
        raise DataError(f"{named} has {len(vectors):,} vectors and {len(ids):,} ids. Each vector needs one id, in the same order.")
    if not ids or not vectors.shape[1]:
        raise DataError(f"{named} holds no vectors.")
    if blank := sum(not name.strip() for name in ids):
        raise DataError(f"{named}: {blank:,} of {len(ids):,} vectors have a blank id.")
    repeated = {name: count for name, count in Counter(ids).items() if count > 1}
    if repeated:
        shown = ", ".join(f"'{name}'" for name in list(repeated)[:_SHOWN])
        raise DataError(f"{named}: {len(repeated):,} of {len(set(ids)):,} ids occur more than once ({shown}). Leave one vector for each.")
    lengths = np.concatenate([np.linalg.norm(vectors[s : s + _BLOCK].astype(np.float64), axis=1) for s in range(0, len(vectors), _BLOCK)])
    if len(strange := np.flatnonzero(~np.isfinite(lengths))):
        first = f"first: '{ids[strange[0]]}'"
        raise DataError(f"{named}: {len(strange):,} of {len(ids):,} vectors have values that are not finite ({first}). Make them again.")
    if len(empty := np.flatnonzero(lengths < 1e-9)):
        first = f"first: '{ids[empty[0]]}'"
        raise DataError(f"{named}: {len(empty):,} of {len(ids):,} vectors are zero and have no direction ({first}). Make them again.")
    unit = (vectors / lengths[:, None]).astype(np.float32)
    if len(unit) > 1 and np.abs(unit - unit[0]).max() < 1e-6:
        raise DataError(f"{named}: all {len(ids):,} vectors point the same way, so no search can tell them apart. Make them again.")
    return VectorTable(ids, unit, (float(lengths.min()), float(lengths.mean()), float(lengths.max())), remarks)
