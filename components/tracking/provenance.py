"""What the running code is: revision, local changes, lock file, versions, machine and user, as far as it can be known."""

from __future__ import annotations

import getpass
import hashlib
import os
import platform
import subprocess
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from components import settings
from components.artifacts import digest_of, file_sha256
from components.tracking.machine import describe_host

LOCK_FILE = "requirements.lock"
KEY_PACKAGES = (
    "torch",
    "transformers",
    "sentence-transformers",
    "peft",
    "faiss-cpu",
    "mlflow",
    "prefect",
    "great-expectations",
    "numpy",
    "pandas",
    "pyarrow",
    "pydantic",
)


class Provenance(BaseModel):
    """Identity of the code and its surroundings. `user` is what the machine claims, not proof of a person."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    code_revision: str
    dirty: bool
    patch_digest: str | None
    code_digest: str
    lock_digest: str | None
    python: str
    packages: dict[str, str]
    platform: str
    user: str
    machine: dict[str, str | int | float] = Field(default_factory=dict)


def collect_provenance() -> Provenance:
    """Read the provenance of this process. Without git, `SCALINGNOTE_REVISION` names the revision, for example in an image."""
    root = project_root()
    inside_git = _git(root, "rev-parse", "--show-toplevel") == str(root)
    patch = _patch_digest(root) if inside_git else None
    lock = settings.shipped(LOCK_FILE)
    return Provenance(
        code_revision=os.environ.get("SCALINGNOTE_REVISION") or (_git(root, "rev-parse", "HEAD") if inside_git else "") or "unknown",
        dirty=patch is not None,
        patch_digest=patch,
        code_digest=code_digest(root),
        lock_digest=file_sha256(lock) if lock.is_file() else None,
        python=platform.python_version(),
        packages=installed(KEY_PACKAGES),
        platform=platform.platform(),
        user=claimed_user(),
        machine=describe_host(),
    )


def provenance_tags(provenance: Provenance) -> dict[str, str | bool | None]:
    """The part of the provenance that every run and every registered version carries as tags."""
    return provenance.model_dump(include={"code_revision", "dirty", "patch_digest", "code_digest", "lock_digest"})


def version_tags(provenance: Provenance, data_digest: str, config: Mapping[str, Any], flow_run_id: str) -> dict[str, str | bool | None]:
    """All tags for `registry.register` that do not come from the artifact itself."""
    known = {"data_digest": data_digest, "config_digest": digest_of(dict(config)), "flow_run_id": flow_run_id}
    return {**provenance_tags(provenance), **known}


def project_root() -> Path:
    """The folder that holds the packages `components` and `flows`."""
    return Path(__file__).resolve().parents[2]


def code_digest(root: Path) -> str:
    """sha256 over the project's Python files: identifies the code where there is no git, too."""
    files = sorted(path for part in ("components", "flows") for path in (root / part).rglob("*.py"))
    return digest_of({path.relative_to(root).as_posix(): file_sha256(path) for path in files})


def installed(names: tuple[str, ...]) -> dict[str, str]:
    """Versions of those packages that are installed."""
    found = {}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def claimed_user() -> str:
    """The user's name as the environment claims it."""
    if name := os.environ.get("MLFLOW_TRACKING_USERNAME"):
        return name
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container whose user id has no entry in the password file
        return "unknown"


def _patch_digest(root: Path) -> str | None:
    """sha256 over the uncommitted changes and the untracked files; None for a clean tree."""
    changes = _git(root, "diff", "HEAD", "--binary")
    untracked = _git(root, "ls-files", "--others", "--exclude-standard").splitlines()
    if not changes and not untracked:
        return None
    digest = hashlib.sha256(changes.encode())
    for name in untracked:
        path = root / name
        digest.update(f"{name}\0{file_sha256(path) if path.is_file() else ''}\0".encode())
    return digest.hexdigest()


def _git(root: Path, *arguments: str) -> str:
    """Output of a git command in `root`; an empty string when git or the repository is missing."""
    command = ["git", "-c", "core.quotePath=false", "-C", str(root), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.decode(errors="replace").strip()
