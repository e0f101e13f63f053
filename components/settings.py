"""Where a local installation keeps its state, and what its libraries must see before they are imported.

Also the base of every configuration, and connections: loopback goes past every proxy, and a server that is gone is noticed within
seconds.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
import ssl
import sys
import tempfile
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from datetime import timedelta
from http.client import HTTPException
from pathlib import Path
from types import UnionType
from typing import IO, Any, Union, get_args, get_origin
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from components.errors import ConfigError

PRECISION_VARIABLE = "SCALINGNOTE_PRECISION"
LOG_LEVEL = "SCALINGNOTE_LOG_LEVEL"
LOG_LEVELS = ("debug", "info", "warning", "error")
NUMBER_FORMATS = ("float32", "bfloat16")
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
LONGEST_HOME = 483  # bytes: SQLite's own limit, 504, without the name of a database in it
CLOCK_SLACK = timedelta(minutes=5)  # between the clocks of two machines
_unnamed: set[str] = set()  # tracking stores of homes, which `activate` put into the environment of this process
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)
_CGROUPS, _OWN_CGROUP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def expanded(path: str) -> Path:
    """`path` with the home folder of `~` or `~name` in its place; left as it is, and so not found, where there is no such user.

    Raises ConfigError for a link that leads back to itself, which `Path.resolve` answers with a RuntimeError in Python 3.11 and 3.12.
    """
    try:
        found = Path(path).expanduser()
    except RuntimeError:
        found = Path(path)
    try:
        found.stat()
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise ConfigError(f"'{path}' is a link that leads back to itself. Correct the link, or give another path.") from None
    except ValueError:  # a NUL, which whoever opens it refuses
        pass
    return found


def home() -> Path:
    """The one folder that holds all local state: `SCALINGNOTE_HOME`, or `.scalingnote` in the current folder.

    Raises ConfigError for a folder that no database can lie in, and one that cannot be found.
    """
    given = os.environ.get("SCALINGNOTE_HOME") or ".scalingnote"
    if not given.strip() or any(not letter.isprintable() and letter.isascii() for letter in given):
        raise ConfigError(
            f"SCALINGNOTE_HOME is {given!r}: blank, or with a line break or another control character, as of a file with the line ends of "
            "Windows. Give the path of a folder."
        )
    folder = expanded(given)
    if str(folder).startswith("~"):  # else a folder of that name would be made here
        raise ConfigError(f"SCALINGNOTE_HOME is '{given}', but there is no such user, or no home folder of theirs. Give the whole path.")
    try:
        folder = folder.resolve()
        folder.exists()  # or its name is too long
    except OSError as error:
        shown = given if len(given) < 100 else f"{given[:60]}...{given[-30:]}"
        gone = "the current folder was removed" if isinstance(error, FileNotFoundError) else error.strerror
        raise ConfigError(f"The home folder '{shown}' cannot be used: {gone}. Give the whole path of one with SCALINGNOTE_HOME.") from None
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


def check_note(folder: Path) -> Path:
    """Where the last full check of the artifact in `folder` is noted (see `components.artifacts.verify_noted`)."""
    return work_folder() / "checked" / f"{hashlib.sha256(os.fsencode(folder)).hexdigest()[:32]}.json"


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
    """The MLflow tracking server, or the embedded SQLite store (see `absolute_store`)."""
    given = os.environ.get("MLFLOW_TRACKING_URI")
    return absolute_store(given) if given else f"sqlite:///{home() / 'mlflow' / 'mlflow.db'}"


def is_named(uri: str) -> bool:
    """Whether somebody named this tracking store, and not `activate` for the home of that moment."""
    return uri not in _unnamed


def absolute_store(uri: str) -> str:
    """`uri` with the whole path of an SQLite file: the servers that we start work in the home folder, and would open another one there.

    SQLite's own addresses (`sqlite:///file:/PATH?uri=true`) stay as they are. Raises ConfigError for a store in memory, which ends with
    every command.
    """
    kind, found, path = uri.partition("sqlite:///")
    file, mark, options = path.partition("?")
    if uri.startswith("sqlite:") and file in ("", ":memory:"):
        raise ConfigError(
            f"MLFLOW_TRACKING_URI is '{uri}', a store in memory that ends with every command. Name a file, as in sqlite:////PATH/mlflow.db."
        )
    of_a_file = found and not kind and not file.startswith("file:")
    return f"{found}{Path(file).absolute()}{mark}{options}" if of_a_file else uri


def artifact_root() -> Path:
    """Where the embedded MLflow store keeps its artifacts."""
    return home() / "mlflow" / "artifacts"


def audit_log() -> Path:
    """The audit log that the tracking server of this installation writes: `SCALINGNOTE_AUDIT_LOG`, or a file beside the store."""
    given = os.environ.get("SCALINGNOTE_AUDIT_LOG")
    return expanded(given).resolve() if given else home() / "mlflow" / "audit.jsonl"


def opening(store: str) -> AbstractContextManager[None]:
    """Hold the home's lock for a store (MLflow or Prefect) as long as the block opens it: of two, both would make a new one's tables."""
    return alone(store.lower(), f"opening {store} in {home()}")


@contextmanager
def alone(lock: str, doing: str) -> Iterator[None]:
    """Hold the home's lock of that name for the block; one that waits says what another command is `doing`.

    Where no lock can be had (a home that is only read, a full disk, or somebody else's file) the block runs without one.
    """
    path = home() / "locks" / f"{lock}.lock"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = path.open("a")
    except OSError:
        yield
        return
    with handle:
        if not locked(handle, wait=False):
            print(f"Waiting: another command is {doing}.", file=sys.stderr, flush=True)
            locked(handle)
        yield


def locked(handle: IO[Any], wait: bool = True, shared: bool = False) -> bool:
    """Take the lock of an open file, which the system frees when its holder dies; False when another holds it and `wait` is False.

    Some network drives have no locks. There the lock counts as taken, and users have to run one command at a time.
    """
    try:
        fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
    return True


def forced_precision() -> str | None:
    """The number format that `SCALINGNOTE_PRECISION` names in place of the automatic choice; None where it is not set.

    Raises ConfigError for any other word.
    """
    named = os.environ.get(PRECISION_VARIABLE, "")
    if named and named not in NUMBER_FORMATS:
        raise ConfigError(f"{PRECISION_VARIABLE} is '{named}'; allowed: {' or '.join(NUMBER_FORMATS)}. Unset it for the automatic choice.")
    return named or None


def usable_processors() -> int:
    """Processors that this process may use: those of its affinity (taskset), or fewer where a container has a quota; at least 1."""
    return max(1, min([_affinity(), *(int(quota) for quota in _quotas())]))


def _affinity() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def asked_threads(variable: str = "OMP_NUM_THREADS") -> int | None:
    """The threads that a variable asks for; of OpenMP's list for nested levels (`4,2`) the first. None where it names no number above 0."""
    first = os.environ.get(variable, "").partition(",")[0].strip()
    return int(first) if first.isascii() and first.isdigit() and int(first) > 0 else None


def _quotas() -> Iterator[float]:
    """The processors that the control groups of this process allow; nothing where there is no limit."""
    for group in _groups("cpu"):
        yield from _quota_of(group)


def _groups(controller: str) -> Iterator[Path]:
    """Where the limits of the control groups of this process may stand, from its own group up to the root."""
    try:
        lines = _OWN_CGROUP.read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, name = [*line.split(":", 2), "", ""][:3]
        if controllers and controller not in controllers.split(","):
            continue
        root = _CGROUPS / controller if controllers else _CGROUPS
        group = Path(os.path.normpath("/" + name.lstrip("/")))
        # Within a container the groups above are not seen, and its own may lie at the root.
        for place in dict.fromkeys([group, *group.parents, Path("/")]):
            yield root / place.relative_to("/")


def _quota_of(group: Path) -> Iterator[float]:
    """Quota over period of a group, of the second version (cpu.max) or the first."""
    try:
        if (group / "cpu.max").is_file():
            quota, period = (group / "cpu.max").read_text(encoding="utf-8").split()
        else:
            quota, period = ((group / f"cpu.cfs_{name}_us").read_text(encoding="utf-8").strip() for name in ("quota", "period"))
        if quota.isdigit() and int(period) > 0:  # else "max" or -1
            yield int(quota) / int(period)
    except (OSError, ValueError):
        return


def _limit_threads() -> None:
    """Let libraries start no more threads than may run at once: they look at the affinity, but at no quota, and believe any variable."""
    usable = usable_processors()
    for variable in THREADS:
        asked = asked_threads(variable)
        if (asked or 0) > usable or (asked is None and variable in os.environ):
            os.environ[variable] = str(usable)
    if usable < _affinity():
        os.environ.setdefault("OMP_NUM_THREADS", str(usable))


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
    """Bytes that the control groups (version 2 or 1) still let this process take; without a limit more than any machine has."""
    return min([2**62, *(left for group in _groups("memory") for left in _left_in(group))])


def _left_in(group: Path) -> Iterator[int]:
    """What a group may still take. Files that it has read count as taken, but are given up where memory is asked for."""
    for limit, used, files in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        try:
            most, taken = ((group / name).read_text(encoding="ascii").strip() for name in (limit, used))
            if most != "max":
                yield max(0, int(most) - int(taken) + _stated(group / "memory.stat", files))
        except (OSError, ValueError):
            continue


def _stated(path: Path, name: str) -> int:
    """The number behind `name` in a list of names and numbers; 0 where there is none."""
    try:
        lines = [line.split() for line in path.read_text(encoding="ascii").splitlines()]
        return next((int(line[1]) for line in lines if line[:1] == [name]), 0)
    except (OSError, ValueError, IndexError):
        return 0


def _is_file(path: Path) -> bool:
    try:
        return path.exists() and not path.is_dir()
    except OSError:  # of somebody else
        return False


def _leads_nowhere(path: Path) -> bool:
    try:
        return path.is_symlink() and not path.exists()
    except OSError:  # of somebody else
        return False


def _make_folders(root: Path) -> None:
    """Make the home folder and those in it, if they may be written. Raises ConfigError where no folder, or no database in it, can be."""
    if (length := len(os.fsencode(root))) > LONGEST_HOME:
        raise ConfigError(
            f"The path of the home folder has {length} bytes, and SQLite opens no database below one of more than {LONGEST_HOME}. Name a "
            "folder with a shorter path with SCALINGNOTE_HOME; a link makes it no shorter."
        )
    wanted = (root, work_folder(), models_folder(), artifact_root(), root / "prefect", root / "cache")
    if other := next((path for folder in wanted for path in (folder, *folder.parents) if _is_file(path)), None):
        what = "is a file, or lies below one" if other in (root, *root.parents) else f"holds a file in the place of the folder {other.name}"
        raise ConfigError(f"The home folder '{root}' {what}. Name a folder with SCALINGNOTE_HOME.")
    if lost := next((path for folder in wanted for path in (folder, folder.parent) if _leads_nowhere(path)), None):
        raise ConfigError(f"'{lost}' is a link to '{lost.readlink()}', which is not there. Make or mount that folder, or remove the link.")
    try:
        root.mkdir(parents=True, exist_ok=True, mode=0o700)  # queries, names and the store lie there, and are nobody else's
        for folder in wanted:
            folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.EINVAL, errno.ENOTSUP):  # as below /proc
            raise ConfigError(f"The home folder '{root}' cannot be made: {error.strerror}. Name another with SCALINGNOTE_HOME.") from None
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise


def activate() -> None:
    """Make the home folder and point every library's state into it. Call before the first heavy import.

    A value that is already set wins, so a team's servers, caches and proxies are left alone; loopback alone goes past the proxies.
    An empty one counts as none: Prefect would take it for the current folder, and MLflow for a store in there.
    """
    spare_loopback()
    _limit_threads()
    root = home()
    _make_folders(root)
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
    if not os.environ.get("MLFLOW_TRACKING_URI"):
        _unnamed.add(tracking_uri())
    os.environ["MLFLOW_TRACKING_URI"] = tracking_uri()
    defaults = {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
        "PREFECT_HOME": str(root / "prefect"),
        "PREFECT_LOCAL_STORAGE_PATH": str(root / "prefect" / "storage"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        # Prefect keeps every run for ever by itself. With this those that ended 90 days ago are deleted
        # (PREFECT_SERVER_SERVICES_DB_VACUUM_RETENTION_PERIOD, in seconds); lineage and records lie in MLflow.
        "PREFECT_SERVER_SERVICES_DB_VACUUM_ENABLED": "events,flow_runs",
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
        os.environ[name] = os.environ.get(name) or value
    # A step continues by itself when it is run again; wrong data and wrong settings are said once, whatever a team's profile retries.
    os.environ["PREFECT_TASKS_DEFAULT_RETRIES"] = os.environ["PREFECT_FLOWS_DEFAULT_RETRIES"] = "0"


# --- The base of every component's configuration: frozen, closed, each field bounded and described.


# No retriever bears the name of what belongs to another one: `x-promotions` would write into the records of `x`.
RESERVED_ENDINGS = ("promotions", "candidate", "release", "query-tower", "document-tower", "query-encoder", "index")
RETRIEVER_NAME = r"^[a-z0-9][a-z0-9-]{0,59}$"


def checked_retriever_name(name: str) -> str:
    """`name`; raises ValueError for a form that none can have, and for the name of a model or experiment of another retriever."""
    if not re.fullmatch(RETRIEVER_NAME.rstrip("$"), name):
        raise ValueError(f"got '{name}'; allowed: small letters, digits and hyphens, at most 60")
    for ending in RESERVED_ENDINGS:
        if name.endswith(f"-{ending}"):
            raise ValueError(f"'{name}' is where the retriever '{name[: -len(ending) - 1]}' keeps its {ending}; choose another name")
    return name


def strict_yaml(text: str, merging: bool = False) -> Any:
    """The value in a YAML text. A key that is given twice is refused, where YAML's own loader takes the last one without a word.

    `merging`: whether fields may be merged by `<<`. Raises yaml.YAMLError, with the place where there is one, for all that cannot be read.
    """
    import yaml

    wrong = yaml.constructor.ConstructorError
    looked_at: set[int] = set()  # a merge puts the fields of one mapping before those of another, which override them

    class Strict(yaml.SafeLoader):
        def flatten_mapping(self, node: Any) -> None:
            if id(node) not in looked_at:
                looked_at.add(id(node))
                self.require_plain(node)
            super().flatten_mapping(node)

        def require_plain(self, node: Any) -> None:
            seen = set()
            for key, _ in node.value:
                if key.tag == "tag:yaml.org,2002:merge" and not merging:
                    raise wrong(None, None, "fields are merged by <<; write each field out", key.start_mark)
                if not isinstance(key, yaml.ScalarNode):
                    raise wrong(None, None, "a field's name must be a single word", key.start_mark)
                if key.value in seen:
                    raise wrong(None, None, f"the field '{key.value}' is given twice", key.start_mark)
                seen.add(key.value)

        def construct_object(self, node: Any, deep: bool = False) -> Any:
            try:
                return super().construct_object(node, deep)
            except (ValueError, LookupError, AttributeError, TypeError) as error:  # 2026-02-30, a number of 5,000 digits, !!bool maybe
                kind = node.tag.rpartition(":")[2]
                raise wrong(None, None, f"'{node.value!s:.40}' is no {kind} ({str(error)[:60]})", node.start_mark) from None

    def plain(loader: Any, node: Any) -> Any:
        """YAML 1.1 reads 010 as 8 and 1:30 as 90, later readers do not."""
        if re.fullmatch(r"[-+]?0[0-9_]+|[-+]?[0-9_]*[_:][0-9_:.]*", node.value):
            raise wrong(None, None, f"the number {node.value} is not in plain digits", node.start_mark)
        kind = node.tag.rpartition(":")[2]
        return loader.construct_yaml_int(node) if kind == "int" else loader.construct_yaml_float(node)

    Strict.add_constructor("tag:yaml.org,2002:int", plain)
    Strict.add_constructor("tag:yaml.org,2002:float", plain)
    try:
        return yaml.load(text, Strict)
    except RecursionError:
        raise yaml.YAMLError("it is nested too deeply") from None


LARGEST_SEED = 2**63 - 1  # torch takes no larger one, and says so when the towers are trained already


class StepConfig(BaseModel):
    """Refuses unknown fields, and numbers that are none (nan, inf, true); cannot be changed after it was checked."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_word_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        """Pydantic takes false for 0: who means to switch a gate off would have asked for the threshold 0."""
        kinds = kinds_of(cls.model_fields[str(info.field_name)].annotation) if isinstance(value, bool) else frozenset()
        if kinds & {int, float} and bool not in kinds:
            raise PydanticCustomError("number_expected", "expected a number")
        return value


def kinds_of(annotation: Any) -> frozenset[Any]:
    """The types that a field takes: those of `A | B`, else the annotation itself."""
    return frozenset(get_args(annotation) if get_origin(annotation) in (Union, UnionType) else [annotation])


# --- Connections as a machine's environment has them: loopback goes past every proxy, and a server that is gone is noticed within
# --- seconds.


LOOPBACK = ("127.0.0.1", "localhost", "::1")
CONTACT_SECONDS = 2.5


def spare_loopback() -> None:
    """Name the loopback addresses in NO_PROXY, beside what stands there, for this process and all that it starts.

    Prefect (httpx), MLflow (requests), websockets and urllib ask the proxy of a company's network for 127.0.0.1 otherwise.
    """
    given = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    if given.strip() == "*":  # no proxy for anything
        return
    entries = [entry.strip() for entry in given.split(",") if entry.strip()]
    # Both spellings: some libraries read one alone, and the others let the small letters win.
    os.environ["no_proxy"] = os.environ["NO_PROXY"] = ",".join([*entries, *(a for a in LOOPBACK if a not in entries)])


def without_user(url: str) -> str:
    """`url` without the user name and password that it may carry."""
    return re.sub(r"(?<=://)[^/?#]*@", "", url)


def answers(url: str, seconds: float = CONTACT_SECONDS) -> bool:
    """Whether a server answers at `url` within about `seconds`, with whatever HTTP status or certificate."""
    return _status(url, seconds) is not None


def is_healthy(url: str, seconds: float = CONTACT_SECONDS) -> bool:
    """Whether a server answers at `url` within about `seconds`, with HTTP status 200."""
    return _status(url, seconds) == 200


def _status(url: str, seconds: float) -> int | None:
    """The HTTP status; 0 for a server whose certificate is not known here, None where nobody answers.

    It is asked in a thread of its own: looking up a host's name takes no time limit.
    """
    found: list[int | None] = []
    asking = threading.Thread(target=lambda: found.append(_ask(without_user(url), seconds)), daemon=True)
    asking.start()
    asking.join(seconds)
    return found[0] if found else None


def _ask(url: str, seconds: float) -> int | None:
    try:
        own = urlsplit(url).hostname in LOOPBACK
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({})) if own else urllib.request.build_opener()
        with opener.open(url, timeout=seconds) as response:
            return int(response.status)
    except HTTPError as error:
        return error.code
    except URLError as error:
        return 0 if isinstance(error.reason, ssl.SSLError) else None
    except (OSError, ValueError, HTTPException):
        return None
