"""An encoder as a pyfunc: texts in, vectors out. MLflow executes this file when it loads a registered encoder.

Here alone the tracking room calls rooms that stand above it: the import happens at load, in the process that serves the model,
and nothing of the room itself depends on it.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from mlflow.pyfunc import PythonModel, PythonModelContext
from numpy.typing import NDArray

# Python runs byte code in place of the source, and only the source was registered and is hashed by `verify`: none is left here.
sys.dont_write_bytecode = True
shutil.rmtree(Path(__file__).parent / "__pycache__", ignore_errors=True)


class EncoderModel(PythonModel):  # type: ignore[misc, unused-ignore]
    """Verifies the sealed folder, then encodes with the towers' or the students' own loader."""

    def load_context(self, context: PythonModelContext) -> None:
        """Raises ArtifactError when a file differs from the manifest."""
        from components.artifacts import verify
        from components.distillation.student import load_encoder
        from components.tracking.packaging import packaged_digest

        folder = Path(context.artifacts["sealed"])
        verify(folder, packaged_digest(folder))
        self.encoder = load_encoder(folder)

    def predict(self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> NDArray[np.float32]:
        """Texts (a table with one column) -> float32 (n, dimension), rows of unit length. Raises MlflowException for what is no text."""
        texts = list(model_input.iloc[:, 0])
        for row, text in enumerate(texts):
            if not isinstance(text, str):  # else a missing value would be the text "nan"
                raise MlflowException(f"Row {row} holds {text!r} in the place of a text. Give texts alone.", INVALID_PARAMETER_VALUE)
        return self.encoder.encode(texts)


set_model(EncoderModel())
