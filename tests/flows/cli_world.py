"""The command line as the tests of this ring call it, in a home folder of its own, and a small collection to build from."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from tests.data_world import write_lines, write_rows

PARTS = ("heart", "kidney", "liver", "lung", "skin", "eye", "ear", "knee", "hip", "spine", "stomach", "brain", "tooth", "bladder")
TROUBLES = ("stone", "attack", "burn", "fracture", "infection", "tumour", "ulcer", "cyst")
TROUBLES += ("rash", "bleeding", "swelling", "failure", "cramp", "abscess", "scar")
TITLES = {f"d{n}": f"{trouble.title()} of the {part}" for n, (part, trouble) in enumerate((p, t) for p in PARTS for t in TROUBLES)}
# The smoke preset's models over the collection, with as little training and timing as there can be.
_LESS = {
    "data.max_documents": "null",
    "towers.steps": 8,
    "towers.checkpoint_every": 2,
    "towers.batch_size": 8,
    "distillation.epochs": 1,
    "evaluation.latency_queries": 20,
    "evaluation.speed_precision": 1,
    "evaluation.throughput_batch": 8,
    "policy.margin": 0.5,
    "policy.min_retention": 0.01,
}
SMALL = ("--preset", "smoke", "--name", "retriever", *(word for field, value in _LESS.items() for word in ("--set", f"{field}={value}")))


@dataclass(frozen=True)
class Outcome:
    """What a command left behind."""

    status: int
    out: str
    err: str

    @property
    def result(self) -> Any:
        """The JSON on stdout, which has to be all of it."""
        return json.loads(self.out)


@dataclass(frozen=True)
class Built:
    """A home where the retriever `retriever` was built once from `data`, and the JSON of that command.

    Another retriever built there from the same data takes its steps from the cache.
    """

    home: Path
    data: Path
    first: Any


def scalingnote(*arguments: str | Path) -> Outcome:
    """Run one command in this process."""
    from flows.cli.main import main

    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = main([str(argument) for argument in arguments])
        except SystemExit as stop:  # argparse leaves this way
            status = int(stop.code or 0)
    return Outcome(status, out.getvalue(), err.getvalue())


def done(*arguments: str | Path) -> Any:
    """The JSON result of a command that has to succeed."""
    outcome = scalingnote(*arguments, "--json")
    assert outcome.status == 0, outcome.out + outcome.err
    return outcome.result


def assert_refused(outcome: Outcome, status: int, *named: str) -> None:
    """The command ended with `status`, and its message names what is wrong."""
    said = outcome.out + outcome.err
    assert outcome.status == status, said
    assert "Traceback" not in said, said[max(0, said.find("Traceback") - 600) : said.find("Traceback") + 900]
    missing = [word for word in named if word not in said]
    assert not missing, f"{missing} not in: {said}"


def write_collection(folder: Path) -> Path:
    """210 documents in the BEIR layout, each with its query; the train documents have two."""
    documents, queries, judged = [], [], {"train": [], "dev": [], "test": []}
    for n, (doc_id, title) in enumerate(TITLES.items()):
        trouble, _, part = title.lower().partition(" of the ")
        documents.append({"_id": doc_id, "title": title, "text": f"A patient with {trouble}, found in the {part}.", "metadata": {}})
        queries.append({"_id": f"q{n}", "text": f"{part} {trouble}"})
        split = "test" if n % 5 == 0 else "dev" if n % 10 == 1 else "train"
        judged[split].append(f"q{n}\t{doc_id}\t1")
        if split == "train":
            queries.append({"_id": f"r{n}", "text": f"my {part} has a {trouble}"})
            judged[split].append(f"r{n}\t{doc_id}\t1")
    write_rows(folder / "corpus.jsonl", documents)
    write_rows(folder / "queries.jsonl", queries)
    for split, lines in judged.items():
        write_lines(folder / "qrels" / f"{split}.tsv", ["query-id\tcorpus-id\tscore", *lines])
    return folder


def environment(home: Path, mlflow_template: Path) -> dict[str, str]:
    """The variables of a process that works in `home`, none left from other tests; its MLflow store is made ready unless it is there."""
    store = home / "mlflow" / "mlflow.db"
    store.parent.mkdir(parents=True, exist_ok=True)
    if not store.exists():
        shutil.copyfile(mlflow_template, store)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "PREFECT_", "SCALINGNOTE_"))}
    return {**kept, "SCALINGNOTE_HOME": str(home), "OMP_NUM_THREADS": "1", "MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}


def free_port() -> int:
    """A port of the loopback address that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


@contextlib.contextmanager
def at_home(home: Path, mlflow_template: Path) -> Iterator[Path]:
    """Commands of this process work in `home`; Prefect's settings, which are read at its first import, are put there as well."""
    from prefect.settings import PREFECT_HOME, PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS, temporary_settings

    from components.tracking.store import clear_caches

    with mock.patch.dict(os.environ, environment(home, mlflow_template), clear=True):
        clear_caches()
        # As components.settings has it, which comes too late here: Prefect has read its settings by then.
        with temporary_settings({PREFECT_HOME: home / "prefect", PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS: 180}):
            yield home
        clear_caches()


def require_valid_exports(ref: str, folder: Path, *name: str) -> list[dict[str, Any]]:
    """The events of OpenLineage and the bill of CycloneDX of a release are valid by the schemas of both; the events."""
    from tests.openlineage_world import problems_of
    from tests.unit.lineage.test_lineage_trace_exports import require_valid

    folder.mkdir(exist_ok=True)
    for form in ("openlineage", "cyclonedx"):
        done("trace", ref, "--format", form, "-o", folder / form, *name)
    events: list[dict[str, Any]] = json.loads((folder / "openlineage").read_text(encoding="utf-8"))
    assert problems_of(events) == []
    require_valid(json.loads((folder / "cyclonedx").read_text(encoding="utf-8")))
    return events
