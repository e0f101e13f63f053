"""An index as a pyfunc: query vectors in, ranked document ids out. MLflow executes this file when it loads a registered index.

Here alone the tracking room calls rooms that stand above it: the import happens at load, in the process that serves the model,
and nothing of the room itself depends on it.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from mlflow.pyfunc import PythonModel, PythonModelContext

# Python runs byte code in place of the source, and only the source was registered and is hashed by `verify`: none is left here.
sys.dont_write_bytecode = True
shutil.rmtree(Path(__file__).parent / "__pycache__", ignore_errors=True)


class IndexModel(PythonModel):  # type: ignore[misc, unused-ignore]
    """Verifies the sealed folder, then searches it. The caller answers for vectors of the right space."""

    def load_context(self, context: PythonModelContext) -> None:
        """Raises ArtifactError when a file differs from the manifest."""
        from components.artifacts import verify
        from components.index.search import load_index
        from components.tracking.packaging import packaged_digest

        folder = Path(context.artifacts["sealed"])
        artifact = verify(folder, packaged_digest(folder))
        self.index = load_index(folder, artifact.space_id, check="sizes")

    def predict(self, context: PythonModelContext, model_input: np.ndarray, params: dict[str, Any] | None = None) -> list[list[str]]:
        """Vectors float32 (n, dimension) -> n lists of the `k` best document ids, best first.

        Raises MlflowException for vectors of another width or with values that are not finite, and for k < 1.
        """
        k = (params or {}).get("k", 10)
        if k is None or k < 1:
            raise MlflowException(f"k is a whole number from 1, not {k}.", INVALID_PARAMETER_VALUE)
        vectors = np.ascontiguousarray(model_input, dtype=np.float32)
        if vectors.ndim != 2 or vectors.shape[1] != self.index.dimension:
            expected = f"Give vectors of {self.index.dimension} dimensions, one in a row, not an array of the shape {vectors.shape}."
            raise MlflowException(expected, INVALID_PARAMETER_VALUE)
        if not np.isfinite(vectors).all():
            row = int(np.flatnonzero(~np.isfinite(vectors).all(axis=1))[0])
            raise MlflowException(f"Row {row} holds values that are not finite. Give numbers alone.", INVALID_PARAMETER_VALUE)
        _, ids = self.index.search(vectors, int(k))
        return [list(row) for row in ids]


set_model(IndexModel())
