"""Append-only promotion records, chained by digest and kept in MLflow, so that a team shares them.

Each record is one run of the experiment `<name>-promotions` with the artifact `record.json`. It exists from the moment its
place in the chain is claimed: a parameter of the chain's own run, `record-000007 = <run id>:<digest>`. MLflow never lets a
parameter change, so of two writers that want the same place the second is refused, and a writer that is killed before the claim
leaves only a run that nobody counts. Which run is the chain stands in a tag that is set in the act that makes the experiment.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from components.artifacts import digest_of
from components.errors import ArtifactError, PromotionError
from components.tracking import labels
from components.tracking.chain import ANCHOR, RECORD_FILE, RECORD_KEY, Chain, open_chain, read_file
from components.tracking.provenance import claimed_user
from components.tracking.store import client, create_experiment, error_code, experiment_id, translated

_OWN = ("sequence", "previous", "recorded_at", "retriever", "signature", "digest")
Signer = Callable[[Mapping[str, Any]], Mapping[str, Any]]


@translated("write a promotion record")
def append_record(retriever_name: str, record: Mapping[str, Any], sign: Signer | None = None) -> dict[str, Any]:
    """Append `record` and return it with its sequence number, time, digest and the digest of the record before it.

    `sign` makes the signature of the record from all that it says; without it the record has none.
    Raises PromotionError when another writer took the place at the same time, ArtifactError when the chain is broken.
    """
    if taken := sorted(set(record) & set(_OWN)):
        raise PromotionError(f"A promotion record gets the field '{taken[0]}' from the chain; leave it out.")
    ensure_chain(retriever_name)
    chain, existing = _read(retriever_name)
    if chain is None:
        raise ArtifactError(f"The experiment {_experiment(retriever_name)} vanished while a record was written; run the command again.")
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
    chain = open_chain(_experiment(retriever_name))
    if chain is None:
        return None, []
    records: list[dict[str, Any]] = []
    for number, (run_id, digest) in enumerate(chain.places(), start=1):
        content = read_file(chain, run_id, number)
        _check(content, number, digest, records[-1]["digest"] if records else None)
        records.append(content)
    _refuse_strangers(chain)
    return chain, records


def _refuse_strangers(chain: Chain) -> None:
    """A finished record that holds no place was in the chain once, or never: either way somebody changed the store."""
    if strangers := chain.strangers():
        # Read again: another writer may have claimed and finished between our reading of the claims and of the runs.
        again = open_chain(chain.name)
        for run_id in strangers if again is None else strangers & again.strangers():
            raise ArtifactError(f"{chain.name}: the run {run_id} is a finished promotion record outside the chain.")


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
        client().log_param(chain.run_id, RECORD_KEY.format(record["sequence"]), f"{run_id}:{record['digest']}")
    except MlflowException as error:
        if error_code(error) != "INVALID_PARAMETER_VALUE":
            raise
        client().set_terminated(run_id, "KILLED")
        raise PromotionError(
            f"Another promotion or rollback of '{record['retriever']}' was recorded at the same time and this one was refused. "
            "Look at `scalingnote status`, then run the command again if it is still wanted."
        ) from None


@translated("make the chain of promotion records")
def ensure_chain(retriever_name: str) -> None:
    """Make the chain's run, then the experiment that names it: of two that try at once, the experiment's unique name lets one win."""
    name = _experiment(retriever_name)
    if open_chain(name) is not None:
        return
    run = client().create_run(experiment_id(retriever_name), run_name=f"{name}-chain", tags=labels.prefixed({"chain": name}))
    if create_experiment(name, {ANCHOR: str(run.info.run_id)}) is None:
        client().delete_run(run.info.run_id)
    else:
        client().set_terminated(run.info.run_id, "FINISHED")


def _experiment(retriever_name: str) -> str:
    return f"{retriever_name}-promotions"
