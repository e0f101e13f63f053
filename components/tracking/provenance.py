"""What the running code is and runs on: revision, local changes, lock file, versions, machine and user, as far as it can be known."""

from __future__ import annotations

import getpass
import hashlib
import logging
import os
import platform
import re
import subprocess
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from components import settings
from components.artifacts import digest_of, file_sha256
from components.settings import forced_precision, usable_processors

_GPUS = Path("/proc/driver/nvidia/gpus")


def describe_host() -> dict[str, str | int | float]:
    """Host name, processor, usable cores, memory in GiB and the GPUs, as far as the system tells; the number format, if one is forced."""
    found: dict[str, str | int | float] = {"host": platform.node(), "processor": processor(), "cores": usable_processors()}
    if "SC_PHYS_PAGES" in os.sysconf_names:
        found["memory_gib"] = round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    if gpus := _gpus():
        found["gpus"] = ", ".join(gpus)
    if forced := forced_precision():
        found["precision"] = forced
    return found


def processor() -> str:
    """The model name of the processor."""
    return _first(Path("/proc/cpuinfo"), r"^model name\s*:\s*(.+)$") or platform.processor() or platform.machine()


def _gpus() -> list[str]:
    """Names of NVIDIA GPUs, from the driver: importing torch for it would take a second."""
    files = sorted(_GPUS.glob("*/information")) if _GPUS.is_dir() else []
    return [name for file in files if (name := _first(file, r"^Model:\s*(.+)$"))]


def _first(file: Path, pattern: str) -> str:
    try:
        found = re.search(pattern, file.read_text(encoding="utf-8"), re.MULTILINE)
    except OSError:  # not a Linux machine, or no right to read it
        return ""
    return found[1].strip() if found else ""


# --- What the running code is: revision, local changes, lock file, versions, machine and user, as far as it can be known.


LOCK_FILE = "requirements.lock"
# Whoever configured colours, another diff program or other prefixes gets the same digest as everybody else.
_PLAIN_DIFF = (
    *("--no-ext-diff", "--no-textconv", "--no-color", "--no-renames", "--binary", "--full-index", "--unified=3", "--no-relative"),
    *("--src-prefix=a/", "--dst-prefix=b/", "--diff-algorithm=myers", "--ignore-submodules=none", "--inter-hunk-context=0"),
)
# Untracked files that count: all in these folders, and elsewhere those that Python, or this program by itself, may read.
_OF_THE_CODE = (b"components/", b"flows/", b"mlflow/", b"data_contracts/")
_CODE = frozenset({".py", ".pth", ".so", ".toml", ".lock", ".cfg", ".ini"})
_log = logging.getLogger(__name__)
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
    """Identity of the code and its surroundings. `user` is what the machine claims, not proof of a person.

    `revision_claimed`: there is no git history here, and the revision is what `SCALINGNOTE_REVISION` says. `code_problem` says why git
    could not be asked though its history is here; empty where it was asked, and where there is none.
    """

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
    revision_claimed: bool = False
    code_problem: str = ""


def collect_provenance() -> Provenance:
    """Read the provenance of this process.

    Without git, `SCALINGNOTE_REVISION` names the revision, for example in an image; one that ends in `-dirty`, as `git describe --dirty`
    writes it, says that the code was not all committed.
    """
    root = project_root()
    revision, dirty, patch, problem = _revision(root)
    claimed = os.environ.get("SCALINGNOTE_REVISION", "") if not revision and not problem else ""
    if problem:
        _log.warning("The revision of the code is not known: %s", problem)
    lock = settings.shipped(LOCK_FILE)
    return Provenance(
        code_revision=revision or claimed.removesuffix("-dirty") or "unknown",
        dirty=dirty or claimed.endswith("-dirty"),
        patch_digest=patch,
        code_digest=code_digest(root),
        lock_digest=file_sha256(lock) if lock.is_file() else None,
        python=platform.python_version(),
        packages=installed(KEY_PACKAGES),
        platform=platform.platform(),
        user=claimed_user(),
        machine=describe_host(),
        revision_claimed=bool(claimed),
        code_problem=problem,
    )


def provenance_tags(provenance: Provenance) -> dict[str, str | bool | None]:
    """The part of the provenance that every run and every registered version carries as tags."""
    return provenance.model_dump(include={"code_revision", "dirty", "patch_digest", "code_digest", "lock_digest"})


def source_tags(provenance: Provenance, flow: str) -> dict[str, str]:
    """MLflow's own tags for what made a run, which the columns Source and Version of its pages show."""
    known = {"mlflow.source.name": f"scalingnote {flow}", "mlflow.source.type": "JOB"}
    if provenance.code_revision != "unknown":
        known |= {"mlflow.source.git.commit": provenance.code_revision, "mlflow.source.git.dirty": str(provenance.dirty).lower()}
    return known


def version_tags(provenance: Provenance, data_digest: str, config: Mapping[str, Any], flow_run_id: str) -> dict[str, str | bool | None]:
    """All tags for `registry.register` that do not come from the artifact itself."""
    known = {"data_digest": data_digest, "config_digest": digest_of(dict(config)), "flow_run_id": flow_run_id}
    return {**provenance_tags(provenance), **known}


def project_root() -> Path:
    """The folder that holds the packages `components` and `flows`."""
    return Path(__file__).resolve().parents[2]


def code_digest(root: Path) -> str:
    """sha256 over the project's Python files and templates: identifies the code where there is no git, too."""
    files = sorted(path for part in ("components", "flows") for path in (root / part).rglob("*") if path.suffix in (".py", ".j2"))
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


class _Revision(NamedTuple):
    """Commit (empty where there is no git history), whether the code differs from it, sha256 of the difference, why git failed."""

    commit: str = ""
    dirty: bool = False
    patch: str | None = None
    problem: str = ""


def _revision(root: Path) -> _Revision:
    """What git says of the code in `root`, which may be a folder of a larger repository."""
    if not any((folder / ".git").exists() for folder in (root, *root.parents)):
        return _Revision()
    try:
        if _git(root, "ls-files", "--", "components/__init__.py") == b"":
            return _Revision()  # the repository around it is somebody else's
        commit = _git(root, "rev-parse", "HEAD").decode().strip()
        patch = _patch_digest(root)
    except (OSError, subprocess.SubprocessError) as error:
        said = (getattr(error, "stderr", None) or b"").decode(errors="replace").strip().partition("\n")[0]
        return _Revision(problem=f"git could not be asked about {root} ({said or error}).")
    return _Revision(commit, patch is not None, patch)


def _patch_digest(root: Path) -> str | None:
    """sha256 over the uncommitted changes and the untracked files that can be code; None for a clean tree.

    Whoever keeps data in the checkout has not changed the code, and would have all of it hashed by every run.
    """
    changes = _git(root, "diff", *_PLAIN_DIFF, "HEAD", "--", ".")
    found = _git(root, "ls-files", "-z", "--others", "--exclude-standard").split(b"\0")[:-1]
    untracked = [name for name in found if name.startswith(_OF_THE_CODE) or Path(os.fsdecode(name)).suffix in _CODE]
    if not changes and not untracked:
        return None
    digest = hashlib.sha256(changes)
    for name in untracked:
        path = root / os.fsdecode(name)
        digest.update(name + f"\0{file_sha256(path) if path.is_file() else ''}\0".encode())
    return digest.hexdigest()


def _git(root: Path, *arguments: str) -> bytes:
    """Output of a git command in `root`, whatever repository and settings the user's environment names."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    # A checkout that belongs to another account is read all the same: this process runs its code already.
    command = ["git", "-c", "core.quotePath=false", "-c", "core.fsmonitor=false", "-c", f"safe.directory={_top(root)}", "-C", str(root)]
    return subprocess.run([*command, *arguments], capture_output=True, timeout=30, check=True, env=environment).stdout


def _top(root: Path) -> Path:
    return next(folder for folder in (root, *root.parents) if (folder / ".git").exists())
