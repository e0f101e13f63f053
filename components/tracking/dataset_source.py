"""Where a data set input of an MLflow run comes from, in MLflow's own terms, so that `mlflow.data.get_source` can open it.

MLflow finds this class by the entry point `mlflow.dataset_source`. A data set of a flow is an artifact of this installation, known by
its digest; its rows stay in the working files, and MLflow has the manifest alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mlflow.data.dataset_source import DatasetSource
from mlflow.exceptions import MlflowException

from components import settings
from components.artifacts import MANIFEST, open_artifact, verify
from components.errors import ArtifactError

SOURCE_TYPE = "scalingnote"


class ArtifactSource(DatasetSource):  # type: ignore[misc, unused-ignore]
    """An artifact by `kind` and sha256 digest, or the files that a data set was read from (kind `source`)."""

    def __init__(self, kind: str, sha256: str) -> None:
        self.kind, self.sha256 = kind, sha256

    @staticmethod
    def _get_source_type() -> str:
        return SOURCE_TYPE

    def load(self, dst_path: str | None = None) -> str:
        """The folder of the artifact on this machine, every file verified. `dst_path` is not used: nothing is copied.

        Raises MlflowException where no folder below `SCALINGNOTE_HOME` holds it, and ArtifactError for one that was changed.
        """
        for manifest in settings.work_folder().glob(f"*/*/{MANIFEST}"):
            if _digest(manifest.parent) == self.sha256:
                return str(verify(manifest.parent, self.sha256).path)
        read_from = "The files that a data set was read from are known by their digest alone." if self.kind == "source" else ""
        raise MlflowException(
            f"The working files in {settings.work_folder()} hold no {self.kind} with the digest {self.sha256[:12]}. "
            f"{read_from or 'Set SCALINGNOTE_HOME to the home folder of the run that made it.'}"
        )

    @staticmethod
    def _can_resolve(raw_source: Any) -> bool:
        return isinstance(raw_source, ArtifactSource)

    @classmethod
    def _resolve(cls, raw_source: Any) -> ArtifactSource:
        return cls(raw_source.kind, raw_source.sha256)

    def to_dict(self) -> dict[str, str]:
        """Kind and digest."""
        return {"kind": self.kind, "sha256": self.sha256}

    @classmethod
    def from_dict(cls, source_dict: dict[Any, Any]) -> ArtifactSource:
        """Raises MlflowException where kind or digest is missing."""
        try:
            return cls(str(source_dict["kind"]), str(source_dict["sha256"]))
        except (KeyError, TypeError):
            raise MlflowException(f"A source of the type {SOURCE_TYPE} names kind and sha256; found: {source_dict}") from None


def _digest(folder: Path) -> str:
    try:
        return open_artifact(folder).digest
    except ArtifactError:
        return ""
