"""The MLflow and Prefect servers of a local installation, on loopback, over the same files that the commands use.

MLflow's also starts with sign-in, roles and audit log.

Both for people (`serve`), and a small one of Prefect alone for a command that runs a flow (`run_flow`). All end with us.
"""

from __future__ import annotations

import atexit
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, redirect_stderr, suppress
from dataclasses import dataclass, field, replace
from importlib import import_module
from importlib.metadata import entry_points
from io import StringIO
from pathlib import Path
from types import FrameType
from typing import Any

from components import settings
from components.artifacts import open_private, write_atomic
from components.errors import ConfigError, ScalingNoteError
from components.gates.policy import allowed_policies
from components.settings import answers, is_healthy, without_user
from components.tracking import audit_log as audit
from components.tracking import embedded, sign_in
from components.tracking.server.permissions import PERMISSIONS_FILE, load_permissions
from components.tracking.store import is_server, require_answer, require_driver

HOST = "127.0.0.1"
# Our commands silence Prefect in the terminal, but a server's log must say why it ended.
LOUD = {"PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "NOTSET"}


class ServerError(ScalingNoteError):
    """A local server that did not start, or that ended by itself."""

    exit_code = 8


@dataclass(frozen=True)
class ServerPlan:
    """How one server is started: its command and environment, and the path that answers once it is ready."""

    name: str
    port: int
    command: tuple[str, ...]
    health: str
    environment: dict[str, str] = field(default_factory=dict)
    log_name: str = ""  # of the file for what it prints, where not its name

    @property
    def url(self) -> str:
        """Where a browser finds it."""
        return f"http://{HOST}:{self.port}"

    @property
    def log(self) -> Path:
        """The file that holds what the server prints."""
        return settings.home() / "logs" / f"{self.log_name or self.name.lower()}-server.log"


def mlflow_plan(port: int) -> ServerPlan:
    """MLflow over the embedded store.

    Artifacts are not proxied: every experiment keeps a file location, which the server shows and the embedded commands read.
    One worker without job execution starts in 5 s and 2 processes instead of 19 s and 13.
    """
    command = (
        *(sys.executable, "-m", "mlflow", "server", "--host", HOST, "--port", str(port), "--workers", "1"),
        *("--no-serve-artifacts", "--default-artifact-root", settings.artifact_root().as_uri()),
    )
    environment = {
        "MLFLOW_BACKEND_STORE_URI": settings.tracking_uri(),  # not an argument: it may hold a password, and arguments are everybody's
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_LOGGING_LEVEL": "INFO",
    }
    return ServerPlan("MLflow", port, command, "/health", environment)


def small_prefect_plan(port: int) -> ServerPlan:
    """Prefect over the same database as long as one command runs: no page, and only the services that a run needs.

    The command and the variables are those of Prefect's own ephemeral server, which stays behind when we are killed.
    """
    from prefect.settings import get_current_settings

    command = (
        *(sys.executable, "-m", "uvicorn", "--factory", "prefect.server.api.server:create_app"),
        *("--host", HOST, "--port", str(port), "--log-level", "error", "--lifespan", "on"),
    )
    small = {"PREFECT_UI_ENABLED": "0", "PREFECT__SERVER_EPHEMERAL": "1", "PREFECT__SERVER_FINAL": "1"}
    environment = small | get_current_settings().to_environment_variables(exclude_unset=True) | LOUD
    return ServerPlan("Prefect", port, command, "/api/health", environment, "small-prefect")


def prefect_plan(port: int, account: str = "") -> ServerPlan:
    """Prefect over the database in the home folder, where runs without a server leave their history too.

    With an `account` (user:password) its API and page ask for it: whoever may start a run there runs code on the workers.
    """
    command = (sys.executable, "-m", "prefect", "server", "start", "--host", HOST, "--port", str(port), "--analytics-off")
    environment = {
        "PREFECT_UI_API_URL": f"http://{HOST}:{port}/api",  # else the page asks the address of some other profile
        "PREFECT_LOGGING_LEVEL": "INFO",  # our commands silence Prefect, but the log must say why a server ended
        # Prefect's second page asks a host of its makers' at every load, with its analytics switched off too; the first one does not.
        "PREFECT_SERVER_UI_V2_ENABLED": os.environ.get("PREFECT_SERVER_UI_V2_ENABLED", "false"),
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": _lease_storage(),
        **LOUD,
        # The server's own services are clients of its API.
        **({"PREFECT_SERVER_API_AUTH_STRING": account, "PREFECT_API_AUTH_STRING": account} if account else {}),
    }
    return ServerPlan("Prefect", port, command, "/api/health", environment)


def _lease_storage() -> str:
    """Where the server keeps who holds a limited slot: in files, unless a variable or a profile of Prefect says otherwise.

    In memory the holders end with the server: a slot whose run was killed with it was taken for ever.
    """
    from prefect.settings import get_current_settings

    known = get_current_settings().server.concurrency
    by_profile = known.lease_storage if "lease_storage" in known.model_fields_set else ""
    named = os.environ.get("PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE") or by_profile
    return named or "prefect.server.concurrency.lease_storage.filesystem"


# --- The MLflow and Prefect servers of a local installation, on loopback, over the same files that the commands use.


START_SECONDS = 300.0  # a starved machine has taken more than two minutes
STOP_SECONDS = 10.0
MOST_DELETED = 200  # old runs that a command deletes when it has done its work
ANSWER_SECONDS = 15.0  # that a run waits for a busy server before it begins
RETRIES = 7  # waits of 2, 4, ... 128 seconds: four minutes in all, where Prefect's own 5 end after one
SMALL_SERVERS = 3  # that may fail one after the other while one flow runs
GUARD = Path(__file__).with_name("guard.py")


def serve(
    mlflow_port: int = 5000, prefect_port: int = 4200, auth: bool = False, ready: Callable[[dict[str, str]], object] | None = None
) -> None:
    """Start both servers, print where they are, and stop them at Ctrl-C or SIGTERM. With `auth`, MLflow asks who you are.

    `ready` is told the addresses of `mlflow` and `prefect` once they answer.

    A server that the environment already names (`MLFLOW_TRACKING_URI`, `PREFECT_API_URL`) is shown, not started.
    Raises ConfigError for a port in use, ServerError when a server does not start or ends by itself.
    """
    settings.activate()
    require_usable_settings()
    plans = _plans(mlflow_port, prefect_port, auth)
    addresses = {"mlflow": without_user(settings.tracking_uri()), "prefect": without_user(_prefect_named()).removesuffix("/api")}
    addresses |= {plan.name.lower(): plan.url for plan in plans}
    if not plans:
        if ready is not None:
            ready(addresses)
        return
    require_driver()
    with settings.opening("MLflow"):
        embedded.settle()
    try:
        with _interrupted_by_sigterm(), running(plans) as processes, sign_in.announced(plans[0].url) if auth else nullcontext():
            for plan in plans:
                print(f"{plan.name:8} {plan.url}", flush=True)
            if auth:
                print(_sign_in_text(prefect=plans[-1].name == "Prefect"), flush=True)
            print("Approve in MLflow: Model registry > <name>-candidate > a version > Promote model > <name>-release.", flush=True)
            print("Ctrl-C stops the servers; nothing is lost.", flush=True)
            if ready is not None:
                ready(addresses)
            _watch(plans, processes)
    except KeyboardInterrupt:
        print("\nThe servers are stopped.", flush=True)


def run_flow(flow: str, *arguments: Any, **named: Any) -> Any:
    """Run the flow `module:function` for the command line, and return what it returns.

    It runs on the Prefect server that the settings name, else on a small one that ends with this process. A named one may be away for
    some minutes in mid-run; a small one that dies or hangs costs no work: another is started, and the flow goes on from its finished
    steps. Raises ServerError or TrackingError when a server does not answer, ConfigError for proxies or settings of Prefect that cannot
    be used.
    """
    import httpx

    given = require_prefect()
    from prefect.settings import PREFECT_API_URL, temporary_settings

    module, function = flow.split(":")
    run = getattr(import_module(module), function)
    for left in reversed(range(SMALL_SERVERS)):
        api = given or _small_server()
        try:
            with temporary_settings({PREFECT_API_URL: api, **(_patience() if given else {})}):
                result = run(*arguments, **named)
                if not given:
                    _delete_old_runs()
                return result
        except (httpx.TransportError, httpx.HTTPStatusError, RuntimeError) as error:
            if (recorder := sys.modules.get("flows.recorder")) is not None:  # not loaded by a flow that records nothing
                recorder.leave_untold()
            if given and (below := _api_below(given)):
                raise ServerError(below) from error
            if given and (isinstance(error, httpx.HTTPStatusError) or str(error).startswith("Found incompatible versions")):
                raise ServerError(_other_version(given, error)) from error
            if not isinstance(error, httpx.TransportError) and not str(error).startswith("Failed to reach API"):
                raise
            if given or not left:
                raise ServerError(
                    f"Prefect's server {without_user(api)} does not answer as one ({type(error).__name__}): it stopped, or another program "
                    "listens there. Finished steps are kept: run it again."
                ) from error
            why = type(error).__name__
            print(f"Prefect's own small server stopped answering ({why}); another is started.", file=sys.stderr, flush=True)
            _end_small_server()
    raise AssertionError("the last attempt returns or raises")


def require_prefect() -> str | None:
    """The API of the Prefect server that the settings name, which answers, and so does MLflow's; None where a run starts a small one.

    Raises what `run_flow` raises before it runs.
    """
    require_answer()
    _require_usable_proxies()
    require_usable_settings()
    from prefect.settings import PREFECT_API_URL

    given: str | None = PREFECT_API_URL.value()
    if given and not answers(f"{given}/health", ANSWER_SECONDS):
        raise ServerError(
            f"Prefect's server {without_user(given)} does not answer. Start it, or correct PREFECT_API_URL: it may also come from .env, "
            "prefect.toml or pyproject.toml in the current folder, or from a profile of Prefect."
        )
    return given


def _patience() -> dict[Any, int]:
    """How often Prefect's client tries again on a server that may be restarted in the middle of a training, unless a person has set it."""
    from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, get_current_settings

    return {} if "max_retries" in get_current_settings().client.model_fields_set else {PREFECT_CLIENT_MAX_RETRIES: RETRIES}


def _api_below(api: str) -> str:
    """A sentence where a server's page was named in the place of its API, and which answers to everything; empty for any other address."""
    place = without_user(api).rstrip("/")
    if place.endswith("/api") or not is_healthy(f"{place}/api/health", ANSWER_SECONDS):
        return ""
    return f"PREFECT_API_URL names {place}, the page of a Prefect server. Its API lies at {place}/api: name that."


def _other_version(api: str, error: Exception) -> str:
    """What to say of a server that answers, but not as this client expects: an account, a proxy, or mostly an older version."""
    status = getattr(getattr(error, "response", None), "status_code", 0)
    if status in (401, 403):
        return (
            f"Prefect's server {without_user(api)} does not let this client in (status {status}). Set PREFECT_API_AUTH_STRING to "
            f"USER:PASSWORD; `scalingnote ui --auth` keeps its own in {sign_in.password_file(sign_in.PREFECT_USER)}."
        )
    if status >= 500:
        return (
            f"Prefect's server {without_user(api)}, or a proxy before it, is in trouble (status {status}). See its log. Finished steps are "
            "kept: run the same command again."
        )
    from importlib.metadata import version

    from prefect.client.orchestration import get_client

    there = "of an unknown version"
    with suppress(Exception), get_client(sync_client=True) as client:
        there = f"of version {client.api_version()}"
    return (
        f"Prefect's server {without_user(api)} is {there}, this client of {version('prefect')}, and they do not understand each other "
        f"({' '.join(str(error).split())[:200]}). Run a server of the client's version. Finished steps are kept."
    )


def _delete_old_runs() -> None:
    """Delete runs that ended before the retention from the database of this home: the small server leaves that to one that stays."""
    from datetime import UTC, datetime

    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterEndTime
    from prefect.settings import get_current_settings

    vacuum = get_current_settings().server.services.db_vacuum
    with suppress(Exception), get_client(sync_client=True) as client:  # the flow has ended well, whatever becomes of its history
        if "flow_runs" in vacuum.enabled_vacuum_types:
            ended = FlowRunFilterEndTime(before_=datetime.now(UTC) - vacuum.retention_period)
            for run in client.read_flow_runs(flow_run_filter=FlowRunFilter(end_time=ended), limit=MOST_DELETED):
                client.delete_flow_run(run.id)


def _require_usable_proxies() -> None:
    import httpx

    try:
        httpx.Client().close()  # reads the proxies and certificates of the environment, as every client of Prefect does
    except (ValueError, ImportError, OSError, httpx.InvalidURL) as error:
        certificates = isinstance(error, OSError) and not isinstance(error, ImportError)
        names = ("SSL_CERT_FILE", "SSL_CERT_DIR") if certificates else ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
        given = [spelt for name in names for spelt in (name, name.lower()) if os.environ.get(spelt)]
        raise ConfigError(
            f"No connection can be made with {', '.join(given) or 'the proxies of this system'}: {error}. "
            "Expected a proxy as http://HOST:PORT and a file of certificates that exists; correct or unset them."
        ) from None


def require_usable_settings() -> None:
    """Make Prefect's folder and import Prefect, which reads its settings then, and says with a traceback what it cannot read or make.

    Raises ConfigError in its place.
    """
    folder = settings.expanded(os.environ.get("PREFECT_HOME") or "~/.prefect")
    if str(folder).startswith("~"):  # else a folder of that name would be made here
        raise ConfigError(f"PREFECT_HOME is '{folder}', but there is no such user, or no home folder of theirs. Give the whole path.")
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"PREFECT_HOME: the folder '{folder}' cannot be made: {error.strerror}. Name another, or unset it.") from None
    try:
        with redirect_stderr(StringIO()):
            import_module("prefect.settings").get_current_settings()
    except (ValueError, OSError) as error:
        raise ConfigError(
            f"Prefect's settings cannot be read: {' '.join(str(error).split())}. They come from the variables PREFECT_..., and from .env, "
            "prefect.toml or pyproject.toml in the current folder."
        ) from None


@dataclass
class _Small:
    """The small server of this process: its address, its process, and how it is stopped."""

    api: str
    process: subprocess.Popen[bytes]
    stack: ExitStack


_small: list[_Small] = []  # one or none


def _small_server() -> str:
    """Address of the API of this process's own server, started at the first call and again if it has ended."""
    if _small and _small[0].process.poll() is None:
        return _small[0].api
    _end_small_server()
    plan = small_prefect_plan(_free_port())
    with ExitStack() as stack:
        (process,) = stack.enter_context(running([plan]))
        _small[:] = [_Small(f"{plan.url}/api", process, stack.pop_all())]
    return _small[0].api


@atexit.register
def _end_small_server() -> None:
    """Stop the small server of this process, also one that hangs; the next flow starts another."""
    while _small:
        _small.pop().stack.close()


@contextmanager
def running(plans: Sequence[ServerPlan]) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Run the servers of `plans` as long as the block runs; they answer when it is entered and are gone when it is left."""
    check_ports(plans)
    with ExitStack() as stack:
        with ExitStack() as starting:
            for plan in plans:
                starting.enter_context(settings.opening(plan.name))
            processes = [stack.enter_context(_process(plan)) for plan in plans]
            for plan, process in zip(plans, processes, strict=True):
                _wait_until_healthy(plan, process)
        yield processes


def check_ports(plans: Sequence[ServerPlan]) -> None:
    """Raise ConfigError when a port is in use, out of range, or given to two servers."""
    taken: dict[int, str] = {}
    for plan in plans:
        option = f"--{plan.name.lower()}-port"
        if not 1 <= plan.port <= 65535:
            raise ConfigError(f"{option}: got {plan.port}; allowed: a whole number, at least 1 and at most 65535.")
        if plan.port in taken:
            raise ConfigError(f"{option}: got {plan.port}, which {taken[plan.port]} takes already. Give each server its own port.")
        if not _is_free(plan.port):
            raise ConfigError(
                f"{option}: the port {plan.port} is in use on {HOST}. Stop the program that listens there, "
                f"or choose another port: {option} {plan.port + 1}"
            )
        taken[plan.port] = plan.name


def _sign_in_text(prefect: bool) -> str:
    """Where the passwords lie and what comes next; `prefect`: its server is ours too."""
    given = bool(os.environ.get(sign_in.ADMIN_PASSWORD))
    place = f"the one in {sign_in.ADMIN_PASSWORD}" if given else f"in {sign_in.password_file('admin')}"
    both = f"Sign in as admin (password: {place}). Users and roles: scalingnote bootstrap. Audit log: {settings.audit_log()}"
    if not prefect or os.environ.get("PREFECT_SERVER_API_AUTH_STRING"):
        return both
    secret = f"{sign_in.PREFECT_USER}:PASSWORD (password: in {sign_in.password_file(sign_in.PREFECT_USER)})"
    return f"{both}\nPrefect asks for {secret}; workers and `prefect deploy` give it in PREFECT_API_AUTH_STRING."


def _named_elsewhere(name: str, url: str, health: str, variable: str) -> str:
    silent = "" if answers(f"{url.rstrip('/')}{health}") else ", and it does not answer"
    return f"{name:8} {without_user(url)} (from {variable}; not started here{silent})"


def _prefect_named() -> str:
    """The API of the Prefect server that the settings name; empty where they name none."""
    from prefect.settings import PREFECT_API_URL  # also from .env, prefect.toml or a profile, as the runs read it

    return os.environ.get("PREFECT_API_URL") or PREFECT_API_URL.value() or ""


def _plans(mlflow_port: int, prefect_port: int, auth: bool) -> list[ServerPlan]:
    plans = []
    if auth:
        if is_server(settings.tracking_uri()):
            named = without_user(settings.tracking_uri())
            raise ConfigError(f"--auth starts a server, but MLFLOW_TRACKING_URI names {named} already. Unset it first.")
        plans.append(auth_plan(mlflow_port))
    elif is_server(settings.tracking_uri()):
        print(_named_elsewhere("MLflow", settings.tracking_uri(), "/health", "MLFLOW_TRACKING_URI"), flush=True)
    else:
        plans.append(mlflow_plan(mlflow_port))
    if given := _prefect_named():
        print(_named_elsewhere("Prefect", given.removesuffix("/api"), "/api/health", "PREFECT_API_URL"), flush=True)
    else:
        own = auth and not os.environ.get("PREFECT_SERVER_API_AUTH_STRING")  # else the server asks for that one already
        plans.append(prefect_plan(prefect_port, sign_in.prefect_account() if own else ""))
    return plans


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
    return port


def _is_free(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # As the servers do: a port whose last connections are only fading away is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


@contextmanager
def _process(plan: ServerPlan) -> Iterator[subprocess.Popen[bytes]]:
    """The server in a session of its own, so that Ctrl-C reaches us alone and its children are stopped with it. It ends when we do."""
    plan.log.parent.mkdir(parents=True, exist_ok=True)
    with suppress(OSError):  # whoever starts a server that has died wants to read why
        plan.log.replace(plan.log.with_name(f"{plan.log.name}.1"))
    with plan.log.open("wb") as log:
        process = subprocess.Popen(
            (sys.executable, "-I", "-S", str(GUARD), str(os.getpid()), *plan.command),
            cwd=settings.home(),
            env=os.environ | plan.environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            yield process
        finally:
            _stop(process)


def _stop(process: subprocess.Popen[bytes]) -> None:
    for attempt in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, attempt)
        except ProcessLookupError:
            break
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            continue
    process.wait(STOP_SECONDS)


def _wait_until_healthy(plan: ServerPlan, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not is_healthy(plan.url + plan.health, 2):
        if process.poll() is not None:
            raise ServerError(f"The {plan.name} server ended while starting:\n{_tail(plan.log)}\nFull log: {plan.log}")
        if time.monotonic() > deadline:
            raise ServerError(f"The {plan.name} server did not answer within {START_SECONDS:.0f} s. Log: {plan.log}\n{_tail(plan.log)}")
        time.sleep(0.2)


def _watch(plans: Sequence[ServerPlan], processes: Sequence[subprocess.Popen[bytes]]) -> None:
    while True:
        for plan, process in zip(plans, processes, strict=True):
            if process.poll() is not None:
                raise ServerError(f"The {plan.name} server ended by itself:\n{_tail(plan.log)}\nFull log: {plan.log}")
        time.sleep(0.5)


def _tail(log: Path, lines: int = 8) -> str:
    return "\n".join(f"  {line}" for line in log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])


@contextmanager
def _interrupted_by_sigterm() -> Iterator[None]:
    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


# --- The MLflow server with sign-in, roles and audit log, over the files of this installation.


APP = "scalingnote"
PROJECT = Path(__file__).resolve().parents[1]


def auth_plan(port: int) -> ServerPlan:
    """The plan of `mlflow_plan` with our app in front.

    Raises, before anything starts, ArtifactError for a damaged audit log, ConfigError for a bad file of permissions or policies, and
    ServerError where such a server runs already.
    """
    if APP not in entry_points(group="mlflow.app").names:
        raise ServerError(f"MLflow does not know the app '{APP}'. Install scalingnote again with pip.")
    if url := sign_in.running_server() or sign_in.announced_server():
        raise ServerError(f"A server with sign-in runs over {settings.home()} already: {url}. Use it, or stop it first.")
    load_permissions()
    allowed_policies()
    if settings.audit_log().exists():
        audit.read_audit(settings.audit_log())
    plan = mlflow_plan(port)
    # Without a proxy in front anybody could name the address that the log then holds.
    command = (*plan.command, "--app-name", APP, "--uvicorn-opts=--no-proxy-headers")
    return replace(plan, command=command, environment=plan.environment | _environment())


def _environment() -> dict[str, str]:
    secret = settings.home() / "mlflow" / "server-secret"
    return {
        "MLFLOW_AUTH_CONFIG_PATH": str(_configuration()),
        "MLFLOW_AUTH_ADMIN_PASSWORD": sign_in.admin_password(),
        "MLFLOW_FLASK_SERVER_SECRET_KEY": (secret.read_text().strip() if secret.exists() else "") or sign_in.keep_secret(secret),
        "SCALINGNOTE_AUDIT_LOG": str(settings.audit_log()),
        **_import_path(),
    }


def _import_path() -> dict[str, str]:
    """The server works in the home folder, but imports our app: from the checkout, unless it is installed where Python looks anyway."""
    if not (PROJECT / "pyproject.toml").exists():
        return {}
    return {"PYTHONPATH": os.pathsep.join(filter(None, (str(PROJECT), os.environ.get("PYTHONPATH"))))}


def _configuration() -> Path:
    """The project's sign-in settings with a database in the home folder."""
    path = settings.home() / "mlflow" / "basic_auth.ini"
    open_private(path.with_suffix(".db")).close()  # the hashes of all passwords; SQLite would let everybody on the machine read them
    template = (PERMISSIONS_FILE.parent / "basic_auth.ini").read_text(encoding="utf-8")
    database = f"sqlite:///{settings.home() / 'mlflow' / 'basic_auth.db'}".replace("%", "%%")
    write_atomic(path, template.replace("sqlite:///basic_auth.db", database).encode())
    return path
