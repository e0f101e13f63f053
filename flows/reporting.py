"""What a run tells people: its lines in the terminal, on Prefect's page and in a file, its name and tags, its result, tables and events.

Nothing here decides or stops anything: what cannot be shown, such as a table on a server that just went away, is left out.
"""

from __future__ import annotations

import _thread
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from contextvars import copy_context
from datetime import UTC, datetime
from logging.handlers import RotatingFileHandler
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from components import settings
from components.errors import ConfigError, masked

if TYPE_CHECKING:
    from prefect.client.schemas.objects import FlowRun

LOG = logging.getLogger("scalingnote")
LOG_BYTES, LOG_FILES = 5_000_000, 4  # of logs/runs.log in the home folder, before it is begun anew, and how many are kept
LOCAL_MLFLOW = "http://127.0.0.1:5000"  # where `scalingnote ui` shows a local installation
MLFLOW_PAGE = "SCALINGNOTE_MLFLOW_PAGE"  # of people's browsers, which may know the server by another address than a worker
WATCH_SECONDS = 10.0  # between two looks at a step that works
RETELL_SECONDS = 60.0  # until a step that goes on is told again to end
MAX_DATA = 60  # characters of a data folder's name in that of a run
EVENTS = "scalingnote."
EVENT_SECONDS = 5.0  # that a command waits for the server to take an event
cancelled_runs: set[str] = set()  # Prefect's ids of the runs of this process that a person ended
told_again = threading.Event()  # set while a step goes on a minute after its cancellation was told
_unannounced: list[str] = []  # what goes on now that is nobody's to act on


def say(line: str, level: int = logging.INFO) -> None:
    """Print one line, and log it with a level: everything else that is printed while a run lasts is logged as INFO."""
    out = sys.stdout
    if not isinstance(out, _Logged):
        print(line, file=out, flush=True)
        return
    if level >= out.level:
        print(line, file=out.shown, flush=True)
    LOG.log(level, line)


@contextmanager
def logged_lines() -> Iterator[None]:
    """As long as the block runs, each line that is printed is a record of the logger `scalingnote` too: in Prefect, and in a file.

    What is below the level that `SCALINGNOTE_LOG_LEVEL` names (default: info) is shown nowhere. Raises ConfigError for one that is none.
    """
    if isinstance(sys.stdout, _Logged):  # a flow within another
        yield
        return
    wanted = _wanted_level()
    handlers = [_file_handler(), _page_handler()]
    level, propagated = LOG.level, LOG.propagate
    LOG.setLevel(wanted)
    LOG.propagate = False  # else the terminal would show each line twice
    for handler in handlers:
        LOG.addHandler(handler)
    try:
        with redirect_stdout(_Logged(sys.stdout, wanted)):
            yield
    finally:
        LOG.setLevel(level)
        LOG.propagate = propagated
        for handler in handlers:
            LOG.removeHandler(handler)
            if isinstance(handler, RotatingFileHandler):
                handler.close()


def _wanted_level() -> int:
    named = os.environ.get(settings.LOG_LEVEL) or "info"
    if named.lower() not in settings.LOG_LEVELS:
        raise ConfigError(f"{settings.LOG_LEVEL} is '{named}', which is no level. Give one of {', '.join(settings.LOG_LEVELS)}.")
    return logging.getLevelNamesMapping()[named.upper()]


class _Logged:
    """A stream that shows what it is given where it was shown before, and logs each whole line of a thread."""

    def __init__(self, shown: Any, level: int = logging.INFO) -> None:
        self.shown, self.level = shown, level
        self._begun = threading.local()

    def write(self, text: str) -> int:
        count = int(self.shown.write(text) or 0) if self.level <= logging.INFO else len(text)
        *lines, self._begun.text = (getattr(self._begun, "text", "") + text).split("\n")
        for line in lines:
            if line.strip():
                LOG.info(line)
        return count

    def __getattr__(self, name: str) -> Any:
        return getattr(self.shown, name)


class _File(RotatingFileHandler):
    """A log that several commands write at once: whoever finds it full begins it anew for all, and the others follow."""

    def shouldRollover(self, record: logging.LogRecord) -> bool:  # noqa: N802
        """Whether the file is full, that which bears the name now: another command may have moved ours away."""
        if not self._is_current():
            self.close()
        return bool(super().shouldRollover(record))

    def doRollover(self) -> None:  # noqa: N802
        """Begin anew, unless another command does so at this moment; a file that cannot be moved away is written on."""
        with suppress(OSError), Path(f"{self.baseFilename}.lock").open("a") as lock:
            settings.locked(lock)
            if self._is_current():
                super().doRollover()
            else:
                self.close()

    def _is_current(self) -> bool:
        try:
            return self.stream is not None and os.path.samestat(os.fstat(self.stream.fileno()), Path(self.baseFilename).stat())
        except OSError:
            return False

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        """Nothing: a home that is only read, or a full disk, is no reason for a traceback between the lines."""


def _file_handler() -> logging.Handler:
    path = settings.home() / "logs" / "runs.log"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handler: logging.Handler = _File(path, maxBytes=LOG_BYTES, backupCount=LOG_FILES, encoding="utf-8", errors="replace", delay=True)
    except OSError:
        handler = logging.NullHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s [%(process)d] %(message)s"))
    return handler


def _page_handler() -> logging.Handler:
    """Prefect's own handler, which finds out for which run and task a line is; a thread that belongs to none has none."""
    from prefect.context import FlowRunContext, TaskRunContext
    from prefect.logging.handlers import APILogHandler

    handler = APILogHandler()
    handler.addFilter(lambda _record: FlowRunContext.get() is not None or TaskRunContext.get() is not None)
    return handler


@contextmanager
def watched(step: str) -> Iterator[None]:
    """As long as the block works: its progress bars on Prefect's page, and an eye on whether somebody cancels the run there.

    A worker ends the process of a run that is cancelled; a run of the command line has no worker, so it ends itself.
    """
    done, made = threading.Event(), threading.Event()
    # In the context of this task, by which Prefect knows whose artifact it is.
    threading.Thread(target=copy_context().run, args=(_watch, step, done, made), name="watch", daemon=True).start()
    try:
        yield
        made.set()
    finally:
        done.set()


def _watch(step: str, done: threading.Event, made: threading.Event) -> None:
    """Look until `done` is set; a bar of work that was not `made` stays where it stopped."""
    from prefect.artifacts import create_progress_artifact, update_progress_artifact
    from prefect.context import FlowRunContext
    from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings

    context = FlowRunContext.get()
    run = context.flow_run if context else None
    if run is None:
        return
    shown: Any = None
    with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}):
        while not done.wait(WATCH_SECONDS):
            with suppress(Exception):  # a server that is busy or gone is asked again
                if run.deployment_id is None and _is_being_cancelled(run):
                    _interrupt_until(done)
                    return
                if (progress := _progress()) is not None:
                    share, text = progress
                    if shown is None:
                        shown = create_progress_artifact(share, key=step.replace("_", "-"), description=text)
                    else:
                        update_progress_artifact(shown, share, description=text)
        if shown is not None and made.is_set():
            with suppress(Exception):
                update_progress_artifact(shown, 100.0, description="done")


def _interrupt_until(done: threading.Event) -> None:
    """Interrupt the main thread, and again while its step goes on: what a signal raises within a destructor is lost."""
    while not done.is_set():
        # A script's background ignores Ctrl-C, and then only SIGTERM is heard.
        _thread.interrupt_main(signal.SIGTERM if signal.getsignal(signal.SIGINT) is signal.SIG_IGN else signal.SIGINT)
        if not done.wait(RETELL_SECONDS):
            told_again.set()
    told_again.clear()


def _is_being_cancelled(run: FlowRun) -> bool:
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        state = client.read_flow_run(run.id).state
    return state is not None and state.is_cancelling()


def _progress() -> tuple[float, str] | None:
    """Percent and words of the newest progress bar of this process; None while there is none."""
    bars = [bar for bar in list(getattr(getattr(sys.modules.get("tqdm"), "tqdm", None), "_instances", ())) if bar.total]
    if not bars:
        return None
    bar = max(bars, key=lambda bar: bar.start_t)
    return min(100.0, 100.0 * bar.n / bar.total), f"{bar.desc}: {bar.n:,} of {bar.total:,}".lstrip(": ")


def run_name() -> str:
    """`shop icd10cm 2026-11-28 12:30`: retriever, data or release, and start (UTC) of the run that Prefect makes just now."""
    from prefect.runtime import flow_run

    given = dict(flow_run.parameters)
    about = [str(given.get(key) or "") for key in ("name", "data", "release")]
    whole = given.get("request") or given.get("config")
    with suppress(Exception):  # parameters that do not fit are refused by the flow, in words; until then the run has a name
        if "preset" in given and "release" not in given:
            from flows.parameters import requested_config

            whole = requested_config(*(given[key] for key in ("preset", "data", "name", "settings", "config")))
        if whole is not None:
            source = whole.data if isinstance(whole.data, str) else whole.data.source
            about = [whole.name, source, getattr(whole, "release", "")]
    name, data, release = about
    words = [str(given.get("study") or ""), name or "retriever", PurePath(data).name[:MAX_DATA] or release]
    return " ".join([*filter(None, words), f"{datetime.now(UTC):%Y-%m-%d %H:%M}"])


def ended(result: Any, message: str) -> Any:
    """What a flow returns so that its page says `message`; who called the flow gets `result`."""
    from prefect.states import Completed

    return Completed(message=message, data=result)


def tag_run(tags: Iterable[str]) -> None:
    """Add tags to the flow run in Prefect, by which its page can be filtered."""
    from prefect.client.orchestration import get_client
    from prefect.context import FlowRunContext

    context = FlowRunContext.get()
    run: FlowRun | None = context.flow_run if context else None
    if run is None:
        return
    with shown_if_possible(), get_client(sync_client=True) as client:
        client.update_flow_run(run.id, tags=sorted({*run.tags, *tags}))


def show_text(key: str, text: str) -> None:
    """A text in Markdown, such as a study's table, on the page of the flow's run."""
    from prefect.artifacts import create_markdown_artifact
    from prefect.context import FlowRunContext

    if FlowRunContext.get() is None:
        return
    with shown_if_possible():
        create_markdown_artifact(markdown=text, key=key)


def show_link(key: str, link: str, text: str) -> None:
    """A link to one of MLflow's pages, such as `#/experiments/1/runs/2`, on the page of the flow's run."""
    from prefect.artifacts import create_link_artifact
    from prefect.context import FlowRunContext

    if FlowRunContext.get() is None:
        return
    with shown_if_possible():
        # A study's name has underscores, which a key may not have.
        create_link_artifact(link=f"{mlflow_address()}/{link}", link_text=text, key=key.replace("_", "-"), description=text)


def mlflow_address() -> str:
    """Where a browser finds MLflow: as `SCALINGNOTE_MLFLOW_PAGE` says, the server, or the place where `scalingnote ui` starts one."""
    from components.settings import without_user
    from components.tracking.store import is_server

    uri = settings.tracking_uri()
    return without_user(os.environ.get(MLFLOW_PAGE) or (uri if is_server(uri) else LOCAL_MLFLOW)).rstrip("/")


def emit(event: str, name: str, message: str, **payload: Any) -> None:
    """Tell Prefect, if this process knows a server, that something happened to the retriever `name`, such as `candidate.registered`.

    Automations match `scalingnote.<event>` of the resource `scalingnote.retriever.<name>`.
    """
    from prefect.events import emit_event
    from prefect.settings import PREFECT_API_URL

    if PREFECT_API_URL.value() and not _unannounced:
        with suppress(Exception):
            emit_event(event=EVENTS + event, resource=_resource(name, message), payload=payload)


@contextmanager
def unannounced(what: str) -> Iterator[None]:
    """As long as the block works at `what`, such as a replay, no event is emitted: its candidate waits for nobody."""
    _unannounced.append(what)
    try:
        yield
    finally:
        _unannounced.remove(what)


def tell_approved(name: str) -> bool:
    """Tell the Prefect server that the settings name which approved releases wait, so that it promotes; False where nobody is told.

    Outside of a flow nothing would wait for Prefect's own sender. Raises ServerError when the server does not take it.
    """
    from prefect.client.orchestration import get_client
    from prefect.events import Event
    from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings

    from components.promotion.promote import waiting_for_promotion
    from components.settings import without_user
    from components.tracking.promotion_records import read_records
    from flows.servers import ServerError

    api = PREFECT_API_URL.value()
    waiting = [info.version for info in waiting_for_promotion(name, read_records(name)).versions]
    if not api or not waiting:
        return False
    message = f"release/{waiting[-1]} of '{name}' is approved and waits to be promoted."
    event = Event(event=EVENTS + "release.approved", resource=_resource(name, message), payload={"waiting": waiting})
    try:
        with (
            temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}),
            get_client(sync_client=True, httpx_settings={"timeout": EVENT_SECONDS}) as client,
        ):
            client.request("POST", "/events", json=[event.model_dump(mode="json")])
    except Exception as error:
        raise ServerError(
            f"Prefect's server {without_user(str(api))} did not take the event release.approved ({type(error).__name__}: {error}). "
            "The approval counts all the same: the next scheduled run promotes it, or scalingnote promote."
        ) from error
    return True


def _resource(name: str, message: str) -> dict[str, str]:
    """Whom an event is about. Templates of automations read labels of the resource, so what people are told stands there too."""
    labels = {"prefect.resource.name": name, "scalingnote.name": name, "scalingnote.message": message}
    return {"prefect.resource.id": f"{EVENTS}retriever.{name}", **labels}


def shown_as_cancelled(flow: Any, flow_run: FlowRun, state: Any) -> None:
    """A flow's hook for crashes: what a person ended with Ctrl-C is no crash."""
    from prefect.client.orchestration import get_client
    from prefect.states import Cancelled

    if str(flow_run.id) in cancelled_runs:
        with get_client(sync_client=True) as client:
            client.set_flow_run_state(flow_run.id, Cancelled(message="The run was cancelled."), force=True)


@contextmanager
def shown_if_possible() -> Iterator[None]:
    """The run must not fail for what could not be shown, nor wait long for a server that is gone."""
    from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings

    try:
        with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 1}):
            yield
    except Exception as error:
        LOG.warning("Something could not be shown on Prefect's page: %s: %s", type(error).__name__, masked(str(error)))


# How Prefect runs each of our flows. It is never tried again as a whole, whatever a profile says: a step is, where its failure may pass.
# Whether its result is kept, for `run_deployment(...).state.result()`, is the team's to say: `PREFECT_RESULTS_PERSIST_BY_DEFAULT`.
AS_OURS: dict[str, Any] = {
    "flow_run_name": run_name,
    "on_crashed": [shown_as_cancelled],
    "validate_parameters": True,
    "retries": 0,
}
