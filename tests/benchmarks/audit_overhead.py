"""Cost of sign-in, rules and audit: the same calls to a server with them and to one without, in turns in one run.

    python tests/benchmarks/audit_overhead.py [--calls 200] [--entries 20000]

Prints the median milliseconds of a writing call (log-metric) and of a reading one (get run) on both servers and their ratio, of the first
call after the cache of checked passwords ran out, and of one entry appended to a short and to a long log with the time to verify it.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import sys
import tempfile
import time
from base64 import b64encode
from collections.abc import Callable
from pathlib import Path
from typing import Any

import requests

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from components.tracking import audit_log as audit
from tests.auth_world import PASSWORD, auth_server, free_port


def main() -> None:
    """Measure both servers, then the log alone."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=200)
    parser.add_argument("--entries", type=int, default=20_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        measure_servers(Path(folder), options.calls)
        measure_log(Path(folder), options.entries)


def measure_servers(folder: Path, calls: int) -> None:
    """Writing and reading calls, one to each server in turn."""
    from mlflow import MlflowClient

    from flows.servers import mlflow_plan, running

    template = folder / "template.db"
    MlflowClient(f"sqlite:///{template}").search_registered_models()
    plain_home = folder / "plain"
    (plain_home / "mlflow").mkdir(parents=True)
    shutil.copyfile(template, plain_home / "mlflow" / "mlflow.db")
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    os.environ["SCALINGNOTE_HOME"] = str(plain_home)
    plan = mlflow_plan(free_port())
    with running([plan]), auth_server(folder / "auth", template) as server:
        both = {"without": Caller(plan.url, None), "with": Caller(server.url, "trainer")}
        for name, call in (("write", Caller.write), ("read", Caller.read)):
            report(name, in_turns(both, call, calls))
        print(f"first call of another user: {timed(lambda: Caller(server.url, 'promoter').read()):.0f} ms (its password is checked)")


class Caller:
    """One user's connection and a run to write to."""

    def __init__(self, url: str, user: str | None) -> None:
        self.url, self.session = f"{url}/api/2.0/mlflow/", requests.Session()
        self.session.trust_env = False  # no proxy for our own machine
        if user:
            self.session.headers["authorization"] = "Basic " + b64encode(f"{user}:{PASSWORD}".encode()).decode()
        self.run = ""

    def write(self) -> None:
        """Log one metric, in a run of its own made at the first call."""
        if not self.run:
            found = self.post("runs/create", {"experiment_id": self.experiment()})
            self.run = found["run"]["info"]["run_id"]
        self.post("runs/log-metric", {"run_id": self.run, "key": "m", "value": 1.0, "timestamp": 1})

    def read(self) -> None:
        """List experiments."""
        self.post("experiments/search", {"max_results": 10})

    def experiment(self) -> str:
        """The experiment `retriever`, or the default one."""
        found = self.post("experiments/search", {"max_results": 10})["experiments"]
        return next((str(one["experiment_id"]) for one in found if one["name"] == "retriever"), "0")

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """The JSON that a call answers."""
        answer = self.session.post(self.url + path, json=body, timeout=60)
        answer.raise_for_status()
        return answer.json()


def in_turns(callers: dict[str, Caller], call: Callable[[Caller], None], calls: int) -> dict[str, list[float]]:
    """Milliseconds of each call, after five that do not count."""
    taken: dict[str, list[float]] = {name: [] for name in callers}
    for number in range(calls + 5):
        for name, caller in callers.items():
            spent = timed(lambda caller=caller: call(caller))
            if number >= 5:
                taken[name].append(spent)
    return taken


def report(name: str, taken: dict[str, list[float]]) -> None:
    """Medians and their ratio."""
    median = {side: statistics.median(values) for side, values in taken.items()}
    ratio = median["with"] / median["without"]
    print(
        f"{name:5}  without {median['without']:.1f} ms  with {median['with']:.1f} ms  ratio {ratio:.2f}  ({len(taken['with'])} calls each)"
    )


def measure_log(folder: Path, entries: int) -> None:
    """One entry on a short and on a long log, and the verification of the long one."""
    log = folder / "long.jsonl"
    fields = {
        "user": "u",
        "method": "POST",
        "path": "/p",
        "action": "log_metric",
        "subject": {"run": "r" * 32},
        "status": 200,
        "outcome": "ok",
    }
    short = statistics.median(timed(lambda: audit.append_entry(log, fields)) for _ in range(200))
    while len(log.read_bytes().splitlines()) < entries:
        for _ in range(1000):
            audit.append_entry(log, fields)
    long = statistics.median(timed(lambda: audit.append_entry(log, fields)) for _ in range(200))
    seconds = timed(lambda: audit.read_audit(log)) / 1000
    print(f"append: {short:.2f} ms on a new log, {long:.2f} ms after {entries:,} entries; verifying them all: {seconds:.2f} s")


def timed(act: Callable[[], Any]) -> float:
    """Milliseconds."""
    started = time.perf_counter()
    act()
    return (time.perf_counter() - started) * 1000


if __name__ == "__main__":
    main()
