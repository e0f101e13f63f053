"""Append-only promotion records, chained by digest and kept in MLflow, so that a team shares them.

Each record is one run of the experiment `<name>-promotions` with the artifact `record.json`. It exists from the moment its
place in the chain is claimed: a parameter of the chain's own run, `record-000007 = <run id>:<digest>`. MLflow never lets a
parameter change, so of two writers that want the same place the second is refused, and a writer that is killed before the claim
leaves only a run that nobody counts. Which run is the chain stands in a tag that is set in the act that makes the experiment.

Who may write to that experiment could name a shorter chain there. So the head of the chain (number and digest of the newest record) also
stands in a tag of the release that the record made champion, and every reading compares (`state_head`); an auditor keeps one as well.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from components.artifacts import digest_of
from components.errors import ArtifactError, PromotionError
from components.tracking import labels, registry
from components.tracking.chain import ANCHOR, CHAIN, OVERTAKEN_FILE, RECORD_FILE, RECORD_KEY, Chain, open_chain, read_file, renamed_to
from components.tracking.provenance import claimed_user
from components.tracking.store import client, create_experiment, error_code, experiment_id, translated

_OWN = ("sequence", "previous", "recorded_at", "retriever", "signature", "digest")
HEAD = labels.PREFIX + "chain_head"
HEAD_FORM = re.compile(r"(\d+):(\d+):(\d+):([0-9a-f]{64})")
_log = logging.getLogger(__name__)
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
    chain, existing = _read(retriever_name)
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
def read_records(retriever_name: str) -> list[dict[str, Any]]:
    """All records in order, verified. Raises ArtifactError that names the record where the chain is broken."""
    return _read(retriever_name)[1]


def _read(retriever_name: str) -> tuple[Chain | None, list[dict[str, Any]]]:
    heads = stated_heads(retriever_name)  # before the chain, which only grows
    chain = open_chain(_experiment(retriever_name))
    if chain is None:
        _refuse_renamed(retriever_name)
    records: list[dict[str, Any]] = []
    for number, (run_id, digest) in enumerate(chain.places() if chain else [], start=1):
        assert chain is not None
        content = read_file(chain, run_id, number)
        _check(content, number, digest, records[-1]["digest"] if records else None)
        if content.get("retriever") != retriever_name:
            raise ArtifactError(
                f"{chain.name}: promotion record {number} is one of the retriever '{content.get('retriever')}': its experiment was "
                "renamed. Give both experiments their own names again in MLflow."
            )
        records.append(content)
    if chain is not None:
        _refuse_outside(chain)
    for place, (sequence, digest) in heads.items():
        require_head(records, sequence, digest, f"{retriever_name}-release/{place}")
    return chain, records


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
                "them. Restore the experiment from a backup; `scalingnote history --anchor FILE` tells which records there were."
            )


def foreign_runs(retriever_name: str) -> list[str]:
    """Ids of runs in the experiment of the records that are none, and claims of no place.

    They change nothing, but somebody writes there who should not.
    """
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
    version = int(records[-1]["to_version"])
    release = there.get(version) or there.get(max(there, default=0))  # the newest one, where the champion was deleted
    if release is None:
        return
    head = f"{release.version}:{release.created_ms}:{records[-1]['sequence']}:{records[-1]['digest']}"
    if release.tags.get(HEAD) != head:
        registry.set_version_tag(release.name, release.version, HEAD, head)


def require_head(records: Sequence[Mapping[str, Any]], sequence: int, digest: str, witness: str) -> None:
    """Raise ArtifactError unless record `sequence` is there with the digest that `witness` names."""
    if 0 < sequence <= len(records) and records[sequence - 1]["digest"] == digest:
        return
    there = f"there are {len(records)}" if sequence > len(records) else f"record {sequence} is {records[sequence - 1]['digest'][:12]}"
    raise ArtifactError(
        f"The promotion records were cut or replaced: {witness} names record {sequence} ({digest[:12]}), and {there}. "
        "Somebody moved or renamed the experiment of the records; restore it in MLflow, or from a backup."
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
    run = client().create_run(chain.experiment, run_name=RECORD_KEY.format(record["sequence"]), tags=labels.prefixed(tags))
    run_id = str(run.info.run_id)
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
    if create_experiment(name, {ANCHOR: str(run.info.run_id)}) is None:
        client().delete_run(run.info.run_id)
    else:
        client().set_terminated(run.info.run_id, "FINISHED")


def _experiment(retriever_name: str) -> str:
    return f"{retriever_name}-promotions"
