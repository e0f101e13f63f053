"""Where a local installation keeps its state, and the environment its libraries must see before they are imported."""

from __future__ import annotations

import fcntl
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from components.errors import ConfigError
from components.network import spare_loopback

PRECISION_VARIABLE = "SCALINGNOTE_PRECISION"
NUMBER_FORMATS = ("float32", "bfloat16")


def expanded(path: str) -> Path:
    """`path` with the home folder of `~` or `~name` in its place; left as it is, and so not found, where there is no such user."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def home() -> Path:
    """The one folder that holds all local state: `SCALINGNOTE_HOME`, or `.scalingnote` in the current folder.

    Raises ConfigError for a folder that no database can lie in.
    """
    given = os.environ.get("SCALINGNOTE_HOME") or ".scalingnote"
    folder = expanded(given)
    if str(folder).startswith("~"):  # else a folder of that name would be made here
        raise ConfigError(f"SCALINGNOTE_HOME is '{given}', but there is no such user, or no home folder of theirs. Give the whole path.")
    folder = folder.resolve()
    if any(letter == "?" or "\ud800" <= letter <= "\udfff" for letter in str(folder)):
        shown = os.fsencode(folder).decode("utf-8", "backslashreplace")
        raise ConfigError(
            f"The home folder '{shown}' has a question mark or bytes that are no text in its path, with which SQLite's addresses name "
            "another file. Choose another folder with SCALINGNOTE_HOME."
        )
    return folder


def shipped(name: str) -> Path:
    """A file or folder of the project that is no Python: beside the packages in a checkout, within them where a wheel was installed."""
    packages = Path(__file__).resolve().parent
    packed = packages / "_shipped" / name
    return packed if packed.exists() else packages.parent / name


def work_folder() -> Path:
    """Working files of the steps, a cache by key."""
    return home() / "work"


def models_folder() -> Path:
    """Base models that were converted once."""
    return home() / "models"


def studies_folder() -> Path:
    """Tables and plots of the studies, for people; MLflow holds the same."""
    return home() / "studies"


def keys_folder() -> Path:
    """The key that signs releases, and below it the public keys that are trusted."""
    return home() / "keys"


def tracking_uri() -> str:
    """The MLflow tracking server, or the embedded SQLite store."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{home() / 'mlflow' / 'mlflow.db'}"


def artifact_root() -> Path:
    """Where the embedded MLflow store keeps its artifacts."""
    return home() / "mlflow" / "artifacts"


def audit_log() -> Path:
    """The audit log that the tracking server of this installation writes: `SCALINGNOTE_AUDIT_LOG`, or a file beside the store."""
    given = os.environ.get("SCALINGNOTE_AUDIT_LOG")
    return expanded(given).resolve() if given else home() / "mlflow" / "audit.jsonl"


@contextmanager
def opening(store: str) -> Iterator[None]:
    """Hold the home's lock for a store as long as the block opens it: of two that open a new database, both would make its tables.

    `store`: MLflow or Prefect. Where no lock can be had (a home that is only read), the block runs without one: it changes nothing there.
    """
    path = home() / "locks" / f"{store.lower()}.lock"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = path.open("a")
    except OSError:
        yield
        return
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"Waiting: another command is opening {store} in {home()}.", file=sys.stderr, flush=True)
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError:  # a file system without locks
            pass
        yield


def forced_precision() -> str | None:
    """The number format that `SCALINGNOTE_PRECISION` names in place of the automatic choice; None where it is not set.

    Raises ConfigError for any other word.
    """
    named = os.environ.get(PRECISION_VARIABLE, "")
    if named and named not in NUMBER_FORMATS:
        raise ConfigError(f"{PRECISION_VARIABLE} is '{named}'; allowed: {' or '.join(NUMBER_FORMATS)}. Unset it for the automatic choice.")
    return named or None


def free_memory() -> int:
    """Bytes of memory that this process may still take: what the machine has free, within the limit of its control group."""
    return min(_available(), _group_limit())


def _available() -> int:
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines())
        return int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):  # not a Linux machine
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _group_limit() -> int:
    """Bytes that the control group (version 2 or 1) still lets this process take; without a limit more than any machine has."""
    for limit, used in (("memory.max", "memory.current"), ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes")):
        try:
            most, taken = ((Path("/sys/fs/cgroup") / name).read_text(encoding="ascii").strip() for name in (limit, used))
            return max(0, int(most) - int(taken)) if most != "max" else 2**62
        except (OSError, ValueError):
            continue
    return 2**62


def activate() -> None:
    """Make the home folder and point every library's state into it. Call before the first heavy import.

    A value that is already set wins, so a team's servers, caches and proxies are left alone; loopback alone goes past the proxies.
    """
    spare_loopback()
    root = home()
    with suppress(PermissionError):  # of somebody who may only read an existing home
        root.mkdir(parents=True, exist_ok=True, mode=0o700)  # queries, names and the store lie there, and are nobody else's
        for folder in (work_folder(), models_folder(), artifact_root(), root / "prefect", root / "cache"):
            folder.mkdir(parents=True, exist_ok=True)
    try:
        Path.home()
    except RuntimeError:  # neither HOME nor an entry in the password file; Prefect and others fail without
        os.environ["HOME"] = str(root)
    try:
        tempfile.gettempdir()
    except FileNotFoundError:  # neither TMPDIR nor any of the usual folders can be written
        with suppress(OSError):
            (root / "cache" / "tmp").mkdir(exist_ok=True)
            os.environ["TMPDIR"] = str(root / "cache" / "tmp")
    defaults = {
        "MLFLOW_TRACKING_URI": tracking_uri(),
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
        "PREFECT_HOME": str(root / "prefect"),
        "PREFECT_LOCAL_STORAGE_PATH": str(root / "prefect" / "storage"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        # The server inside the process takes 6 s to start, but a loaded machine has made it miss the default of 20 s.
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "180",
        "GX_ANALYTICS_ENABLED": "false",
        "IR_DATASETS_HOME": str(root / "cache" / "ir_datasets"),
        "IR_MEASURES_HOME": str(root / "cache" / "ir_measures"),
        "MPLCONFIGDIR": str(root / "cache" / "matplotlib"),
        "NUMBA_CACHE_DIR": str(root / "cache" / "numba"),
        "TOKENIZERS_PARALLELISM": "false",
    }
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
    # A step continues by itself when it is run again; wrong data and wrong settings are said once, whatever a team's profile retries.
    os.environ["PREFECT_TASKS_DEFAULT_RETRIES"] = os.environ["PREFECT_FLOWS_DEFAULT_RETRIES"] = "0"
