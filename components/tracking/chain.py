"""Reading the chain of promotion records: where it is, which runs hold its places, and what does not belong to it."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.errors import ArtifactError
from components.tracking import embedded, labels
from components.tracking.files import local_path
from components.tracking.store import client

ANCHOR = labels.PREFIX + "chain_run_id"
CHAIN = labels.PREFIX + "chain"  # a tag of the chain's run: the experiment that it was made for
RECORD_FILE = "record.json"
SEQUENCE = labels.PREFIX + "sequence"  # a tag that every run of a record has from its creation on
OVERTAKEN_FILE = "overtaken.json"  # beside the record of a writer that came second, for whoever has the files alone
RECORD_KEY = "record-{:06d}"
_PLACE = re.compile(r"record-([0-9]{6,})")
_CLAIM = re.compile(r"([0-9a-f]{32}):([0-9a-f]{64})")


@dataclass(frozen=True)
class RunState:
    """What the chain needs to know of a run. `sequence`: the place that a record's run was made for; None for any other run."""

    run_id: str
    status: str
    active: bool
    artifact_uri: str
    sequence: int | None = None


@dataclass(frozen=True)
class Chain:
    """The chain of one retriever as it stands in the store: claims of its run, and the runs of its experiment."""

    name: str
    experiment: str
    run_id: str
    claims: dict[str, str]
    runs: dict[str, RunState]

    def places(self) -> list[tuple[str, str]]:
        """(run id, digest) of each record in order; raises ArtifactError for a gap or an unreadable claim.

        A place has one name: `record-0000003` beside `record-000003` would be a second claim of it, which MLflow takes for another.
        """
        numbered = {_number_of(key): value for key, value in self.claims.items() if _number_of(key)}
        if sorted(numbered) != list(range(1, len(numbered) + 1)):
            missing = next(number for number in range(1, max(numbered)) if number not in numbered)
            raise ArtifactError(f"{self.name}: promotion record {missing} is missing. Restore the experiment from a backup.")
        parsed = [_CLAIM.fullmatch(numbered[number]) for number in sorted(numbered)]
        if None in parsed:
            number = parsed.index(None) + 1
            raise ArtifactError(f"{self.name}: the claim of promotion record {number} is unreadable. Restore the experiment from a backup.")
        return [(found.group(1), found.group(2)) for found in parsed if found]

    def outside(self) -> set[str]:
        """Ids of runs of records that are in no place of the chain, though only a changed store can leave them so.

        A writer that was killed leaves a running one, and one that another writer overtook leaves one for a place that is taken.
        """
        places = self.places()
        placed = {run_id for run_id, _ in places}
        ended = [run for run in self.runs.values() if run.sequence is not None and run.status != "RUNNING"]
        return {run.run_id for run in ended if run.status == "FINISHED" or int(run.sequence or 0) > len(places)} - placed

    def foreign(self) -> list[str]:
        """Ids of the runs in the experiment that are no runs of records at all: anybody may make one there, so they change nothing."""
        placed = {run_id for run_id, _ in self.places()} | {self.run_id}
        return sorted(run.run_id for run in self.runs.values() if run.active and run.sequence is None and run.run_id not in placed)

    def strange_claims(self) -> list[str]:
        """Parameters of the chain's run that are no claims: they change nothing, and nobody but a forger writes them."""
        return sorted(key for key in self.claims if not _number_of(key))


def _number_of(key: str) -> int:
    """The place that a parameter of the chain's run claims; 0 for one that claims none."""
    found = _PLACE.fullmatch(key)
    number = int(found[1]) if found else 0
    return number if key == RECORD_KEY.format(number) else 0


def open_chain(name: str) -> Chain | None:
    """The chain kept in the experiment `name`; None when nothing was ever recorded there."""
    view = embedded.reader()
    found = _from_embedded(view, name) if view is not None else _from_client(name)
    if found is not None and found.run_id == "":
        raise ArtifactError(f"The experiment {name} does not name its chain of promotion records; it was not made by this program.")
    return found


def renamed_to(name: str) -> str | None:
    """The experiment that holds the chain made for the experiment `name`, when that one was renamed; None when there is none."""
    view = embedded.reader()
    if view is not None:
        return view.experiment_of_run_tag(ANCHOR, CHAIN, name)
    found: list[Any] = []
    token = None
    while True:
        page = client().search_experiments(max_results=1000, page_token=token)
        found += [experiment for experiment in page if ANCHOR in experiment.tags]
        token = page.token
        if not token:
            break
    made = ((experiment.name, _get_run(experiment.tags[ANCHOR])) for experiment in found)
    return next((str(title) for title, run in made if run is not None and run.data.tags.get(CHAIN) == name), None)


def read_file(chain: Chain, run_id: str, number: int) -> dict[str, Any]:
    """Content of a record's file; raises ArtifactError when its run or its file is gone."""
    run = chain.runs.get(run_id)
    if run is None or not run.active:
        raise ArtifactError(f"{chain.name}: the run of promotion record {number} was deleted ({run_id}).")
    folder = local_path(run.artifact_uri)
    try:
        content = (folder / RECORD_FILE).read_bytes() if folder is not None else _read_remote(run_id)
    except (ArtifactError, OSError) as error:
        raise ArtifactError(f"{chain.name}: the file of promotion record {number} cannot be read. {error}") from None
    return parse_record(content, f"Promotion record {number}")


def parse_record(content: bytes, title: str) -> dict[str, Any]:
    """The record in a file as `MlflowClient.log_dict` writes it; raises ArtifactError that names it by `title` for any other bytes.

    A digest over the value cannot see a changed space, an escaped letter or a key that stands there twice.
    """
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict) or json.dumps(found, indent=2).encode() != content:
        raise ArtifactError(f"{title} was changed: its file does not read as it was written. Restore it from a backup.")
    return found


def _read_remote(run_id: str) -> bytes:
    import tempfile

    from mlflow.exceptions import MlflowException

    with tempfile.TemporaryDirectory() as folder:
        try:
            return Path(client().download_artifacts(run_id, RECORD_FILE, folder)).read_bytes()
        except MlflowException as error:
            raise ArtifactError(str(error)) from None


def _from_embedded(view: embedded.Reader, name: str) -> Chain | None:
    experiment = view.experiment(name)
    if experiment is None:
        return None
    number = int(experiment["experiment_id"])
    anchor = view.experiment_tags(number).get(ANCHOR, "")
    state = view.run(anchor)
    _require(name, experiment["lifecycle_stage"] == "active", anchor, state is not None and state["lifecycle_stage"] == "active")
    claims = view.parameters(anchor)  # before the runs: each claim's run then is among them
    tags = view.run_tags(number, SEQUENCE)
    runs = [
        RunState(r["run_uuid"], r["status"], r["lifecycle_stage"] == "active", r["artifact_uri"], _number(tags.get(r["run_uuid"])))
        for r in view.runs(number)
    ]
    return Chain(name, str(number), anchor, claims, {run.run_id: run for run in runs})


def _from_client(name: str) -> Chain | None:
    from mlflow.entities import ViewType

    experiment = client().get_experiment_by_name(name)
    if experiment is None:
        return None
    number, anchor = str(experiment.experiment_id), str(experiment.tags.get(ANCHOR, ""))
    state = _get_run(anchor)
    _require(name, experiment.lifecycle_stage == "active", anchor, state is not None and state.info.lifecycle_stage == "active")
    runs, token = [], None
    while True:
        page = client().search_runs([number], run_view_type=ViewType.ALL, max_results=1000, page_token=token)
        runs += [_run_state(run) for run in page]
        token = page.token
        if not token:
            break
    return Chain(name, number, anchor, dict(state.data.params) if state else {}, {run.run_id: run for run in runs})


def _run_state(run: Any) -> RunState:
    info = run.info
    return RunState(info.run_id, info.status, info.lifecycle_stage == "active", info.artifact_uri, _number(run.data.tags.get(SEQUENCE)))


def _number(tag: str | None) -> int | None:
    """The place in a tag; 0 for a tag that names none, which is still the tag of a record."""
    return None if tag is None else int(tag) if tag.isascii() and tag.isdigit() else 0


def _get_run(run_id: str) -> Any:
    from mlflow.exceptions import MlflowException

    try:
        return client().get_run(run_id) if run_id else None
    except MlflowException:
        return None


def _require(name: str, experiment_active: bool, anchor: str, chain_active: bool) -> None:
    if not experiment_active:
        raise ArtifactError(f"The experiment {name} with the promotion records was deleted; restore it in MLflow.")
    if anchor and not chain_active:
        raise ArtifactError(
            f"{name}: the run that holds the chain of promotion records was deleted ({anchor}): restore it in MLflow, or "
            "the experiment that it lies in."
        )
