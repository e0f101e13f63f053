"""A candidate or release as a pyfunc: queries in, ranked document ids out. MLflow executes this file when it loads a version.

Here alone the tracking room calls rooms that stand above it: the import happens at load, in the process that serves the model,
and nothing of the room itself depends on it. The pinned versions are resolved through the registry and verified by digest.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import pandas as pd
from mlflow.models import set_model
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
        from components.promotion.pinned import require_as_registered
        from components.serving.retriever import Retriever

        folder = Path(context.artifacts["sealed"])
        require_as_registered(folder)
        release = read_json(folder / "release.json")
        encoder, index = _open_pin(release, "query_encoder"), _open_pin(release, "index")
        tolerance = IndexConfig.model_validate(release.get("config", {}).get("index", {})).probe_tolerance
        self.retriever = Retriever.open(load_encoder(encoder), encoder, index, tolerance, check="sizes")

    def predict(self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> list[list[str]]:
        """Queries (a table with one column) -> for each the `k` best document ids, best first."""
        queries = [str(text) for text in model_input.iloc[:, 0]]
        hits = self.retriever.search(queries, int((params or {}).get("k", 10)))
        return [[hit.doc_id for hit in row] for row in hits]


set_model(ReleaseModel())
