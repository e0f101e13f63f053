"""The template of an index: trained, empty, and the same for every part, so that parts can be built apart and searched together."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from components.artifacts import file_sha256, open_artifact
from components.errors import ArtifactError
from components.index.index_keys import empty_index, inverted_file, is_exact, transformed

TEMPLATE_FILE = "template.faiss"
Refine = Literal["none", "int8", "fp16"]


@dataclass(frozen=True)
class Template:
    """What every part of an index shares. `index` (trained, empty) and `digest` (sha256 of its file) are None for exact search."""

    key: str
    dimension: int
    space_id: str
    refine: Refine
    index: Any | None
    digest: str | None


def train_template(key: str, sample: NDArray[np.float32], space_id: str, refine: Refine, folder: Path) -> Template:
    """Train on the sample, float32 (n, d) of unit length, and write `template.faiss` into `folder`.

    Exact search has no template file, and always keeps the vectors as fp16: they are its index.
    """
    dimension = sample.shape[1]
    if is_exact(key):
        return Template(key, dimension, space_id, "fp16", None, None)
    index = empty_index(key, dimension)
    index.train(sample)
    write_faiss(index, folder / TEMPLATE_FILE)
    return Template(key, dimension, space_id, refine, index, file_sha256(folder / TEMPLATE_FILE))


def read_template(folder: Path) -> Template:
    """The template of the finished index in `folder`; raises ArtifactError when its file is not what the manifest says."""
    artifact = open_artifact(folder)
    about, digest = artifact.attributes, artifact.attributes.get("template_digest")
    shared = (str(about["index_key"]), int(str(about["dimension"])), artifact.space_id)
    if digest is None:
        return Template(*shared, "fp16", None, None)
    path = folder / TEMPLATE_FILE
    if not path.is_file() or file_sha256(path) != digest:
        raise ArtifactError(
            f"{path} is missing or is not the template {str(digest)[:12]} that the index was made from. Build the index again."
        )
    refine: Refine = str(about["refine"])  # type: ignore[assignment]  # written from the same type
    return Template(*shared, refine, read_faiss(path), str(digest))


def list_sizes(index: Any) -> NDArray[np.int64]:
    """Vectors in each list of an inverted file, int64 (nlist,)."""
    lists = inverted_file(index).invlists  # type: ignore[union-attr]  # asked for inverted files only
    return np.array([lists.list_size(n) for n in range(lists.nlist)], np.int64)


def imbalance(sizes: NDArray[np.int64]) -> float:
    """FAISS's imbalance factor of list sizes: 1 when all are equal, 2 when a scan reads twice as much as it would then."""
    return float(len(sizes) * np.square(sizes, dtype=np.float64).sum() / max(1.0, float(sizes.sum()) ** 2))


def centroid_distances(index: Any, vectors: NDArray[np.float32]) -> NDArray[np.float64]:
    """Euclidean distance of each vector, float32 (n, d), to the centroid of the list it falls into."""
    quantizer = inverted_file(index).quantizer  # type: ignore[union-attr]  # asked for inverted files only
    projected = transformed(index, vectors)
    _, lists = quantizer.search(projected, 1)
    return np.linalg.norm(projected - quantizer.reconstruct_batch(lists[:, 0]), axis=1).astype(np.float64)


def read_faiss(path: Path, flags: int = 0) -> Any:
    """Read an index file; raises ArtifactError when this FAISS cannot."""
    import faiss

    try:
        return faiss.read_index(str(path), flags)
    except RuntimeError as error:
        raise ArtifactError(
            f"{path} cannot be read by faiss {faiss.__version__}; it may have been written by a newer one. "
            f"Use that version or build the index again. ({str(error).splitlines()[0][:200]})"
        ) from None


def write_faiss(index: Any, path: Path) -> None:
    """Write an index file: beside, then renamed. Raises OSError when the disk is full."""
    import faiss

    beside, failed = path.with_name(f".{path.name}.tmp"), []
    try:
        # FAISS's own files lose an error at their closing, and would leave a file without its end.
        with beside.open("wb") as handle:

            def write(content: bytes) -> None:
                try:
                    handle.write(content)
                except OSError as error:
                    failed.append(error)
                    raise

            faiss.write_index(index, faiss.PyCallbackIOWriter(write))
        beside.replace(path)
    except (RuntimeError, SystemError):
        if failed:
            raise failed[0] from None
        raise
    finally:
        beside.unlink(missing_ok=True)
