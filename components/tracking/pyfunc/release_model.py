"""A candidate or release as a pyfunc: queries in, ranked documents out. MLflow executes this file when it loads a version.

Here alone the tracking room calls rooms that stand above it: the import happens at load, in the process that serves the model,
and nothing of the room itself depends on it. The pinned versions are resolved through the registry and verified by digest.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from mlflow.pyfunc import PythonModel, PythonModelContext

# Python runs byte code in place of the source, and only the source was registered and is hashed by `verify`: none is left here.
sys.dont_write_bytecode = True
shutil.rmtree(Path(__file__).parent / "__pycache__", ignore_errors=True)


def _open_pin(release: dict[str, Any], role: str) -> Path:
    """Verified folder of the version that the release pins for `role`."""
    from components.artifacts import verify
    from components.tracking.registry import artifact_folder

    pin = release["pins"][role]
    return verify(artifact_folder(pin["model"], int(pin["version"])), pin["digest"]).path


class ReleaseModel(PythonModel):  # type: ignore[misc, unused-ignore]
    """Query encoder and index of one release as one object."""

    def load_context(self, context: PythonModelContext) -> None:
        """Raises ArtifactError for a changed file, an artifact that is not registered, and where the alias `champion` was moved by hand.

        SpaceMismatch and ProbeMismatch as the retriever does.
        """
        from components.artifacts import read_json
        from components.distillation.student import load_encoder
        from components.index.config import IndexConfig
        from components.index.rows import read_titles
        from components.serving.loader import require_as_registered
        from components.serving.retriever import Retriever

        folder = Path(context.artifacts["sealed"])
        require_as_registered(folder)
        release = read_json(folder / "release.json")
        encoder, index = _open_pin(release, "query_encoder"), _open_pin(release, "index")
        tolerance = IndexConfig.model_validate(release.get("config", {}).get("index", {})).probe_tolerance
        self.retriever = Retriever.open(load_encoder(encoder), encoder, index, tolerance, check="sizes")
        self.titles = read_titles(index, self.retriever.index.rows)

    def predict(self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Queries (a table with one column) -> a row each: `doc_ids` of the `k` best documents, their `scores` and `titles`, best first.

        Scores are cosines; a title is empty where the index keeps none. The rows are named as those of `model_input`, so that a table
        takes them as columns. Raises MlflowException for a query that is none and for k < 1.
        """
        from components.text import is_blank

        queries, k = list(model_input.iloc[:, 0]), (params or {}).get("k", 10)
        for row, query in enumerate(queries):
            if not isinstance(query, str) or is_blank(query):  # else a missing value would ask for "nan"
                raise MlflowException(f"Row {row} holds {query!r}, which asks for nothing. Give a text.", INVALID_PARAMETER_VALUE)
        if k is None or k < 1:
            raise MlflowException(f"k is a whole number from 1, not {k}.", INVALID_PARAMETER_VALUE)
        found = self.retriever.search(queries, int(k))
        rows = [([hit.doc_id for hit in hits], [hit.score for hit in hits]) for hits in found]
        named = [(ids, scores, [self.titles.get(doc_id, "") for doc_id in ids]) for ids, scores in rows]
        return pd.DataFrame(named, columns=["doc_ids", "scores", "titles"], index=model_input.index)


set_model(ReleaseModel())
