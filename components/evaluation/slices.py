"""Slices of the judged queries: a mean over all of them can hide that short, rare or foreign ones got worse.

Definitions are data (`SliceConfig`); each is one dimension, and a query is in at most one slice of a dimension.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from components.evaluation.slice_config import SliceConfig

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd

    from components.data.dataset import Dataset
    from components.evaluation.summarize import JudgedSplit

COLUMNS = ("query_id", "dimension", "slice")


def assign_slices(judged: JudgedSplit, dataset: Dataset, definitions: Sequence[SliceConfig]) -> pd.DataFrame:
    """DataFrame[query_id, dimension, slice], ordered by definition and query; a dimension that the data cannot tell has no rows."""
    raise NotImplementedError
