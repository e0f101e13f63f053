"""Append-only promotion records, chained by digest and kept in MLflow, so that a team shares them.

The same chain can be read from files alone, as in a backup of the artifact store, where no server and no database is asked.

Each record is one run of the experiment `<name>-promotions` with the artifact `record.json`. It exists from the moment its place in the
chain is claimed: a parameter of the chain's own run, `record-000007 = <run id>:<digest>`. MLflow never lets a parameter change, so of two
writers that want the same place the second is refused, and a writer that is killed before the claim leaves only a run that nobody counts.
Which run is the chain stands in a tag that is set in the act that makes the experiment.

Who may write to that experiment could name a shorter chain there. So the head of the chain (number and digest of the newest record) also
stands in a tag of the release that the record made champion, and every reading compares (`state_head`); an auditor keeps one as well.

The chain's claims stand in the database. Without it a file counts when the record after it names its digest; the newest one is what the
files say it is, so that the end was cut off shows in the audit log, or by what the release's own signature names.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any

from components.artifacts import canonical_json, digest_of, file_sha256, read_bounded
from components.errors import ArtifactError, PromotionError, ScalingNoteError
from components.text import whole_number
from components.tracking import embedded, labels, registry, store
from components.tracking.packaging import WITHIN_A_RUN, local_path
from components.tracking.provenance import claimed_user
from components.tracking.store import ABOUT_CHAIN, client, create_experiment, error_code, experiment_id, require_answer, translated

_OWN = ("sequence", "previous", "recorded_at", "retriever", "signature", "digest")
UNREADABLE = "unreadable"  # the action that stands for a record whose file is gone or was changed
MOST_BYTES = 16_000_000  # of a record's file: the largest that was ever written has some 100,000
STRIKE = "strike"
FORGED = (
    "Where it was forged, a trusted key strikes it out, and all that came after it: scalingnote history --strike {} --as NAME --reason "
    "TEXT. Without keys only a backup brings back what was true."
)
HEAD = labels.PREFIX + "chain_head"
HEAD_FORM = re.compile(r"([0-9]{1,18}):([0-9]{1,18}):([0-9]{1,18}):([0-9a-f]{64})")
Signer = Callable[[Mapping[str, Any]], Mapping[str, Any]]


@translated("write a promotion record")
def append_record(retriever_name: str, record: Mapping[str, Any], sign: Signer | None = None, after: int | None = None) -> dict[str, Any]:
    """Append `record` and return it with its sequence number, time, digest and the digest of the record before it.

    `sign` makes the signature of the record from all that it says; without it the record has none. `after` is how many records
    there were when the decision behind this one was made: if another was appended since, that decision no longer holds.
    Raises PromotionError when another writer took the place at the same time, ArtifactError when the chain is broken.
    """
    if taken := sorted(set(record) & set(_OWN)):
        raise PromotionError(f"A promotion record gets the field '{taken[0]}' from the chain; leave it out.")
    ensure_chain(retriever_name)
    chain, existing = _read(retriever_name, record.get("action") == STRIKE)
    if chain is None:
        raise ArtifactError(f"The experiment {_experiment(retriever_name)} vanished while a record was written; run the command again.")
    if after is not None and len(existing) != after:
        raise _overtaken(retriever_name)
    complete = _complete(retriever_name, record, existing, sign)
    run_id = _write_run(chain, complete)
    _claim(chain, run_id, complete)
    client().set_terminated(run_id, "FINISHED")
    return complete


@translated("read the promotion records")
def read_records(retriever_name: str, unread: bool = False) -> list[dict[str, Any]]:
    """All records in order, verified. Raises ArtifactError that names the record where the chain is broken.

    One that was struck out need not be readable: it stands there by its number and digest alone (`UNREADABLE`). With `unread` this holds
    for every one, for whoever is to strike it out.
    """
    return _read(retriever_name, unread)[1]


def struck_out(records: Sequence[Mapping[str, Any]]) -> dict[int, Mapping[str, Any]]:
    """Number of each record that does not count -> the strike that says so, which a later strike can strike out in its turn.

    A strike names, each with its digest, the first forged record, all that came between it and the strike, and the record before, which
    one that is unreadable does not name. Raises ArtifactError for a strike of another form; whose signature it has, `check_records` asks.
    """
    digests = {record.get("sequence"): record.get("digest") for record in records}
    found: dict[int, Mapping[str, Any]] = {}
    for record in reversed(records):
        if record.get("action") != STRIKE or record.get("sequence") in found:
            continue
        named, own = record.get("struck"), int(record["sequence"])
        first = own - len(named) if isinstance(named, Mapping) else own
        kept = {"sequence": first - 1, "digest": digests.get(first - 1)} if first > 1 else None
        fits = 0 < first < own and record.get("keeps") == kept
        if not fits or named != {str(number): digests.get(number) for number in range(first, own)}:
            raise ArtifactError(
                f"Promotion record {own} strikes out other records than stand before it, so no command has written it. {FORGED.format(own)}"
            )
        found |= dict.fromkeys(range(first, own), record)
    return found


def _read(retriever_name: str, unread: bool = False) -> tuple[Chain | None, list[dict[str, Any]]]:
    heads = stated_heads(retriever_name)  # before the chain, which only grows
    chain = open_chain(_experiment(retriever_name))
    if chain is None:
        _refuse_renamed(retriever_name)
    records: list[dict[str, Any]] = []
    for number, (run_id, digest) in enumerate(chain.places() if chain else [], start=1):
        assert chain is not None
        try:
            content = read_file(chain, run_id, number)
            _check(content, number, digest, records[-1]["digest"] if records else None)
            if content.get("retriever") != retriever_name:
                raise ArtifactError(
                    f"{chain.name}: promotion record {number} is one of the retriever '{content.get('retriever')}': its experiment was "
                    "renamed. Give both experiments their own names again in MLflow."
                )
        except ArtifactError as error:
            content = _unreadable(number, digest, str(error))
        records.append(content)
    if not unread:
        _require_read(records)
    if chain is not None:
        _refuse_outside(chain)
    for place, (sequence, digest) in heads.items():
        hint = (
            f" Where an auditor's anchor or the audit log names no record after {len(records)}, the tag {HEAD} of that release was forged: "
            "delete it in MLflow."
        )
        require_head(records, sequence, digest, f"{retriever_name}-release/{place}", hint)
    return chain, records


def _unreadable(number: int, digest: str, problem: str) -> dict[str, Any]:
    return {"sequence": number, "digest": digest, "action": UNREADABLE, "problem": problem, "to_version": None}


def _require_read(records: Sequence[Mapping[str, Any]]) -> None:
    """Raise ArtifactError for the first record that could not be read, unless it was struck out."""
    lost = [record for record in records if record.get("action") == UNREADABLE and "problem" in record]
    struck: Mapping[int, Any] = {}
    with suppress(ArtifactError):  # what is lost is said first
        struck = struck_out(records) if lost else {}
    if left := next((record for record in lost if record["sequence"] not in struck), None):
        raise ArtifactError(f"{left['problem']} {FORGED.format(left['sequence'])}")


def _refuse_renamed(retriever_name: str) -> None:
    """An experiment that is not there was never made, or has another name now: then nothing is begun anew in its place."""
    name = _experiment(retriever_name)
    if (now := renamed_to(name)) is not None:
        raise ArtifactError(f"The experiment {name} with the promotion records is named '{now}' now. Give it its name again in MLflow.")


def _refuse_outside(chain: Chain) -> None:
    """A finished record that holds no place was in the chain once, or never: either way somebody changed the store."""
    if outside := chain.outside():
        # Read again: another writer may have claimed and finished between our reading of the claims and of the runs.
        again = open_chain(chain.name)
        for run_id in outside if again is None else outside & again.outside():
            raise ArtifactError(
                f"{chain.name}: the run {run_id} is a promotion record outside the chain, so records were cut off, or one was put beside "
                f"them. Where an auditor's anchor or the audit log names a later record than {len(chain.places())}, restore the experiment "
                f"from a backup. Where neither does, the run was put there: delete its tag {SEQUENCE}, then the run."
            )


@translated("look for runs beside the promotion records")
def foreign_runs(retriever_name: str) -> list[str]:
    """Ids of runs among the records that are none, and claims of no place: they change nothing, but nobody should write there."""
    chain = open_chain(_experiment(retriever_name))
    return [] if chain is None else [*chain.foreign(), *chain.strange_claims()]


def stated_heads(retriever_name: str) -> dict[int, tuple[int, str]]:
    """Version of the release model -> (sequence, digest) that its tag names as the head of the chain when it became champion.

    A tag that came along with a copy names another version or moment, and counts for nothing.
    """
    found = {}
    for info in registry.versions(f"{retriever_name}-release"):
        stated = HEAD_FORM.fullmatch(info.tags.get(HEAD, ""))
        if stated and (int(stated[1]), int(stated[2])) == (info.version, info.created_ms):
            found[info.version] = (int(stated[3]), stated[4])
    return found


def state_head(retriever_name: str, records: Sequence[Mapping[str, Any]]) -> None:
    """Write the head of the chain into a tag of the release that the newest record made champion; done again it changes nothing."""
    if not records:
        return
    there = {info.version: info for info in registry.versions(f"{retriever_name}-release")}
    release = there.get(records[-1]["to_version"]) or there.get(max(there, default=0))  # the newest, where that was deleted or none is left
    if release is None:
        return
    head = f"{release.version}:{release.created_ms}:{records[-1]['sequence']}:{records[-1]['digest']}"
    if release.tags.get(HEAD) != head:
        registry.set_version_tag(release.name, release.version, HEAD, head)


def require_head(records: Sequence[Mapping[str, Any]], sequence: int, digest: str, witness: str, hint: str = "") -> None:
    """Raise ArtifactError unless record `sequence` is there with the digest that `witness` names; `hint` ends its message."""
    if 0 < sequence <= len(records) and records[sequence - 1]["digest"] == digest:
        return
    there = f"there are {len(records)}" if sequence > len(records) else f"record {sequence} is {records[sequence - 1]['digest'][:12]}"
    raise ArtifactError(
        f"The promotion records were cut or replaced: {witness} names record {sequence} ({digest[:12]}), and {there}. "
        f"Somebody moved or renamed the experiment of the records; restore it in MLflow, or from a backup.{hint}"
    )


def _check(content: dict[str, Any], number: int, digest: str, previous: str | None) -> None:
    """Compare one record with its place in the chain."""
    actual = digest_of({key: value for key, value in content.items() if key != "digest"})
    if actual != digest or content.get("digest") != digest:
        raise ArtifactError(
            f"Promotion record {number} was changed: the chain holds the digest {digest[:12]}, its file gives {actual[:12]}."
        )
    if content.get("sequence") != number or content.get("previous") != previous:
        raise ArtifactError(f"Promotion record {number} does not follow the record before it; the chain is broken there.")


def _complete(retriever_name: str, record: Mapping[str, Any], existing: list[dict[str, Any]], sign: Signer | None) -> dict[str, Any]:
    """The record with the chain's own fields, in the form it will be read back: plain JSON values."""
    own = {
        "sequence": len(existing) + 1,
        "previous": existing[-1]["digest"] if existing else None,
        "recorded_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "retriever": retriever_name,
    }
    content: dict[str, Any] = json.loads(json.dumps({**record, **own}, default=str))
    if sign is not None:
        content["signature"] = dict(sign(content))
    return {**content, "digest": digest_of(content)}


def _write_run(chain: Chain, record: Mapping[str, Any]) -> str:
    """A run that holds the record. It stays RUNNING until its place is claimed."""
    tags = {"sequence": record["sequence"], "record_digest": record["digest"], "mlflow.user": claimed_user()}
    run_id = str(client().create_run(chain.experiment, None, labels.prefixed(tags), RECORD_KEY.format(record["sequence"])).info.run_id)
    client().log_dict(run_id, dict(record), RECORD_FILE)
    return run_id


def _claim(chain: Chain, run_id: str, record: Mapping[str, Any]) -> None:
    """Take the place in the chain: the one act that makes the record exist."""
    from mlflow.exceptions import MlflowException

    try:
        client().log_param(chain.run_id, RECORD_KEY.format(record["sequence"]), f"{run_id}:{record['digest']}", synchronous=True)
    except MlflowException as error:
        if error_code(error) != "INVALID_PARAMETER_VALUE":
            raise
        client().log_dict(run_id, {"overtaken": record["sequence"]}, OVERTAKEN_FILE)
        client().set_terminated(run_id, "KILLED")
        raise _overtaken(record["retriever"]) from None


def _overtaken(retriever_name: str) -> PromotionError:
    return PromotionError(
        f"Another promotion or rollback of '{retriever_name}' was recorded at the same time and this one was refused. "
        "Look at `scalingnote status`, then run the command again if it is still wanted."
    )


@translated("make the chain of promotion records")
def ensure_chain(retriever_name: str) -> None:
    """Make the chain's run, then the experiment that names it: of two that try at once, the experiment's unique name lets one win."""
    name = _experiment(retriever_name)
    if open_chain(name) is not None:
        return
    _refuse_renamed(retriever_name)
    run = client().create_run(experiment_id(retriever_name), run_name=f"{name}-chain", tags={CHAIN: name})
    if create_experiment(name, {ANCHOR: str(run.info.run_id)}, ABOUT_CHAIN.format(name=retriever_name)) is None:
        client().delete_run(run.info.run_id)
    else:
        client().set_terminated(run.info.run_id, "FINISHED")


def _experiment(retriever_name: str) -> str:
    return f"{retriever_name}-promotions"


# --- Reading the chain of promotion records: where it is, which runs hold its places, and what does not belong to it.

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
        """(run id, digest) of each record in order; raises ArtifactError for a gap.

        A claim that names no run and digest stands there without a run, and with a digest of its own. A place has one name:
        `record-0000003` beside `record-000003` would be a second claim of it, which MLflow takes for another.
        """
        numbered = {_number_of(key): value for key, value in self.claims.items() if _number_of(key)}
        if sorted(numbered) != list(range(1, len(numbered) + 1)):
            missing = next(number for number in range(1, max(numbered)) if number not in numbered)
            raise ArtifactError(f"{self.name}: promotion record {missing} is missing. Restore the experiment from a backup.")
        claims = (numbered[number] for number in sorted(numbered))
        return [(found[1], found[2]) if (found := _CLAIM.fullmatch(claim)) else ("", digest_of(claim)) for claim in claims]

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
    number = int(found[1]) if (found := _PLACE.fullmatch(key)) else 0
    return number if key == RECORD_KEY.format(number) else 0


def open_chain(name: str) -> Chain | None:
    """The chain kept in the experiment `name`; None when nothing was ever recorded there. Raises ArtifactError."""
    view = embedded.reader()
    found = _from_embedded(view, name) if view is not None else _from_client(name)
    if found is not None and found.run_id == "":
        raise ArtifactError(f"The experiment {name} names no chain of promotion records. Somebody else made it: rename it in MLflow.")
    return found


def renamed_to(name: str) -> str | None:
    """The experiment that holds the chain made for the experiment `name`, when that one was renamed; None when there is none."""
    view = embedded.reader()
    if view is not None:
        return view.experiment_of_run_tag(ANCHOR, CHAIN, name)
    found = _all_pages(lambda token: client().search_experiments(max_results=1000, page_token=token))
    made = ((experiment.name, _get_run(experiment.tags[ANCHOR])) for experiment in found if ANCHOR in experiment.tags)
    return next((str(title) for title, run in made if run is not None and run.data.tags.get(CHAIN) == name), None)


def _all_pages(search: Callable[[str | None], Any]) -> list[Any]:
    found, token = [], None
    while True:
        page = search(token)
        found += page
        token = page.token
        if not token:
            return found


def read_file(chain: Chain, run_id: str, number: int) -> dict[str, Any]:
    """Content of a record's file; raises ArtifactError when its run or its file is gone."""
    if not run_id:
        raise ArtifactError(f"{chain.name}: the claim of promotion record {number} is unreadable. Restore the experiment from a backup.")
    run = chain.runs.get(run_id)
    if run is None or not run.active:
        said = f"the run of promotion record {number} was deleted. Restore it: mlflow runs restore --run-id {run_id}"
        raise ArtifactError(f"{chain.name}: {said} (swept away by `mlflow gc`, it comes back from a backup alone).")
    folder = local_path(run.artifact_uri or "")
    try:
        content = read_bounded(folder / RECORD_FILE, MOST_BYTES) if folder is not None else _read_remote(run_id, chain.run_id)
    except (ArtifactError, OSError) as error:
        raise ArtifactError(f"{chain.name}: the file of promotion record {number} cannot be read. {error}") from None
    return parse_record(content, f"Promotion record {number}")


def parse_record(content: bytes, title: str) -> dict[str, Any]:
    """The record in a file as `MlflowClient.log_dict` writes it; raises ArtifactError that names it by `title` for any other bytes.

    A digest over the value cannot see a changed space, an escaped letter or a key that stands there twice. NaN and infinity are no JSON.
    """
    try:
        found = json.loads(content)
        again = canonical_json(found) and json.dumps(found, indent=2, allow_nan=False).encode()  # the first has no half characters
    except (ValueError, RecursionError):
        found = again = None
    if not isinstance(found, dict) or again != content:
        raise ArtifactError(f"{title} was changed: its file does not read as it was written. Restore it from a backup.")
    return found


def _read_remote(run_id: str, anchor: str) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        try:
            return read_bounded(Path(client().download_artifacts(run_id, RECORD_FILE, folder)), MOST_BYTES)
        except Exception as error:  # whatever a library says of a location that somebody wrote there; but a server in trouble is none
            if isinstance(error, ScalingNoteError) or (isinstance(error, OSError) and not store.is_of_a_store(error)):
                raise
            require_answer()
            with translated("read the promotion records"):  # its refusals have the form of an OSError too
                client().get_run(run_id)
                if embedded.reader() is None:
                    client().list_artifacts(anchor)  # the server may be well, and what keeps its files be away
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
    runs = _all_pages(lambda token: client().search_runs([number], run_view_type=ViewType.ALL, max_results=1000, page_token=token))
    return Chain(name, number, anchor, dict(state.data.params) if state else {}, {run.info.run_id: _run_state(run) for run in runs})


def _run_state(run: Any) -> RunState:
    info = run.info
    return RunState(info.run_id, info.status, info.lifecycle_stage == "active", info.artifact_uri, _number(run.data.tags.get(SEQUENCE)))


def _number(tag: str | None) -> int | None:
    """The place in a tag; 0 for a tag that names none, which is still the tag of a record."""
    return None if tag is None else whole_number(tag) or 0


def _get_run(run_id: str) -> Any:
    from mlflow.exceptions import MlflowException

    try:
        return client().get_run(run_id) if run_id else None
    except MlflowException as error:
        if error_code(error) in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise  # as of a server that is gone


def _require(name: str, experiment_active: bool, anchor: str, chain_active: bool) -> None:
    if not experiment_active:
        raise ArtifactError(f"The experiment {name} with the promotion records was deleted; restore it in MLflow.")
    if anchor and not chain_active:
        raise ArtifactError(
            f"{name}: the run that holds the chain of promotion records was deleted ({anchor}): restore it in MLflow, or "
            "the experiment that it lies in."
        )


# --- Promotion records read from their files alone, as in a backup of the artifact store: no server and no database is asked.


_MOST_LOST = 10_000  # records without a file in one chain
_OVERTAKEN = " overtaken"  # no field of a record begins with a space


def read_record_files(root: Path, retriever_name: str) -> list[dict[str, Any]]:
    """The records of a retriever below `root` in order, verified; raises ArtifactError that names the one that is broken or missing."""
    places: dict[int, list[dict[str, Any]]] = {}
    problems: list[str] = []
    for path in _record_paths(root, retriever_name):
        try:
            if (record := _read_file(path)).get("retriever") == retriever_name:
                places.setdefault(int(record["sequence"]), []).append({**record, _OVERTAKEN: path.with_name(OVERTAKEN_FILE).is_file()})
        except (ArtifactError, OSError) as error:
            problems.append(str(error))
    newest, gap = max(places, default=0), next(number for number in count(1) if number not in places)
    if newest - len(places) > _MOST_LOST:  # one that nobody can count to
        raise ArtifactError(f"{root}: the file of promotion record {gap} is missing.")
    named = _named_digests(places)
    for number in range(newest, 0, -1):
        if number not in places:
            problem = problems[0] if problems else f"{root}: the file of promotion record {number} is missing."
            digest = named.get(number) or str(places[number + 1][0].get("previous") or "")
            places[number] = [{**_unreadable(number, digest, problem), _OVERTAKEN: False}]
    chain = _linked(places, named)
    _require_read(chain)
    if problems and not any(record.get("action") == UNREADABLE for record in chain):  # perhaps the newest: no later one says so
        raise ArtifactError(problems[0])
    return chain


def _named_digests(places: Mapping[int, Sequence[Mapping[str, Any]]]) -> dict[int, str]:
    """Number -> digest of the records that a strike names, the forged ones and the one before them."""
    named: dict[str, Any] = {}
    for record in (record for found in places.values() for record in found if record.get("action") == STRIKE):
        struck, kept = (found if isinstance(found := record.get(field), Mapping) else {} for field in ("struck", "keeps"))
        named |= {str(kept.get("sequence")): kept.get("digest"), **struck}
    return {int(number): str(digest) for number, digest in named.items() if re.fullmatch(r"[0-9]{1,9}", number)}


def _record_paths(root: Path, retriever_name: str) -> list[Path]:
    """The record files of one experiment: runs of a training may hold files of the same name, which nobody who promotes has written.

    A record lies at EXPERIMENT/RUN/artifacts/record.json, and EXPERIMENT within nothing that a run or model keeps. Where a folder bears the
    experiment's name it alone counts; a server names its folders by numbers, and then the folder with the record 1 of this retriever does.
    Folders of any name can be made within one's own experiment, so a named one lies no deeper than one with a record 1.
    """
    found: dict[Path, list[Path]] = {}
    for path in sorted(root.rglob(f"*/artifacts/{RECORD_FILE}")):
        if not WITHIN_A_RUN.search(f"{path.parents[2].relative_to(root).as_posix()}/"):
            found.setdefault(path.parents[2], []).append(path)
    named = [folder for folder in found if folder.name == f"{retriever_name}-promotions"]
    above = {folder: paths for folder, paths in found.items() if all(len(folder.parts) < len(other.parts) for other in named)}
    firsts = named + [folder for folder, paths in above.items() if any(_place(path) == (retriever_name, 1) for path in paths)]
    if len({frozenset(file_sha256(path) for path in found[folder]) for folder in firsts}) > 1:
        raise ArtifactError(
            f"{root} holds promotion records of '{retriever_name}' in {len(firsts)} folders: {firsts[0]} and {firsts[1]}. They differ, so "
            "one of them was not written by the promote flow or is older; give a folder without it."
        )
    if firsts:
        return found[firsts[0]]
    return [path for paths in found.values() for path in paths if (_place(path) or ("", 0))[0] == retriever_name]


def _place(path: Path) -> tuple[str, int] | None:
    """Retriever and number that a record file names, None for a file that is none: it is looked at more closely where it counts."""
    try:
        record = json.loads(read_bounded(path, MOST_BYTES))
        return str(record["retriever"]), int(record["sequence"])
    except (ValueError, TypeError, KeyError, RecursionError, OverflowError, ArtifactError, OSError):
        return None


def _read_file(path: Path) -> dict[str, Any]:
    record = parse_record(read_bounded(path, MOST_BYTES), f"The promotion record {path}")
    if type(record.get("sequence")) is not int or record["sequence"] < 1:
        raise ArtifactError(f"{path} does not hold a promotion record.")
    if digest_of({key: value for key, value in record.items() if key != "digest"}) != record.get("digest"):
        raise ArtifactError(f"{path}: promotion record {record['sequence']} was changed: its digest is not that of its content.")
    return record


def _linked(places: Mapping[int, Sequence[dict[str, Any]]], named: Mapping[int, str]) -> list[dict[str, Any]]:
    """From the newest back: of files that several writers left for one place, the one that is followed counts.

    Of the newest ones the one that is not marked as overtaken does. The mark alone never takes a record away. What a strike names counts
    as `named` there: a record that it strikes out may name anything as the one before it.
    """
    chain: list[dict[str, Any]] = []
    for number in sorted(places, reverse=True):
        expected = named.get(number) or (chain[0].get("previous") if chain else None)
        fitting = [record for record in places[number] if expected is None or record["digest"] == expected]
        fitting = [record for record in fitting if not record[_OVERTAKEN]] or fitting
        problem = f"The files hold {len(fitting)} promotion records {number} that the next one could follow; expected one."
        if not fitting:
            fitting = [_unreadable(number, str(expected), problem)]
        if len({record["digest"] for record in fitting}) != 1:
            raise ArtifactError(problem)
        chain.insert(0, {key: value for key, value in fitting[0].items() if key != _OVERTAKEN})
    if chain and chain[0].get("previous") is not None and 1 not in named:
        raise ArtifactError("Promotion record 1 names a record before it; the chain is broken there.")
    return chain
