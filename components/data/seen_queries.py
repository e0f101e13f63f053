"""Which queries the models of a release were trained on, as digests that are kept with it: a refresh keeps models and takes new queries.

The contracts compare the queries of one data set with each other. A query that moves from train to test between two data sets is in
nobody's sight but ours: the towers that a refresh keeps have learned it.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from components.artifacts import write_atomic
from components.data.tables import normalise_text
from components.errors import ArtifactError, DataError

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


def _digests(texts: Sequence[str]) -> Seen:
    """One for each text; texts without letters and numbers, which are all equal once they are normalised, stand as they are."""
    wordings = (normalise_text(text) or text for text in texts)
    return np.array(
        [int.from_bytes(hashlib.sha256(wording.encode("utf-8", "surrogatepass")).digest()[:8]) for wording in wordings], np.uint64
    )
