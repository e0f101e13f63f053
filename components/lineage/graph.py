"""Trace anything back: a release, an answer, a model, an index, a document."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.artifacts import Artifact, file_sha256, open_artifact, read_manifest, verify_sizes
from components.errors import ArtifactError, ConfigError, DataError, ModelError, PromotionError
from components.index.rows import DELETED_FILE, IDS_FILE, read_rows, read_single
from components.lineage.release_graph import (
    Ancestry,
    Node,
    Opened,
    Witness,
    approvals,
    call_witness,
    copies,
    open_info,
    open_version,
    promotions,
    release_node,
    surroundings,
    text_of,
)
from components.promotion.approval import find_version
from components.release.champion import CHAMPION, candidate_model
from components.release.manifest import Pin, PinRole
from components.release.open import TRACED, resolve
from components.text import whole_number
from components.tracking import labels, registry
from components.tracking.registry import VersionInfo

if TYPE_CHECKING:
    from components.index.rows import Rows


ROLES: tuple[PinRole, ...] = ("query_tower", "document_tower", "query_encoder", "index")


def role_of(model: str) -> tuple[str, PinRole] | None:
    """Retriever and role of a registered model; None for a candidate, a release or any other."""
    for role in ROLES:
        name = model.removesuffix(f"-{role.replace('_', '-')}")
        if name and name != model:
            return name, role
    return None


def model_node(model: str, version: int) -> tuple[Node, Opened | None]:
    """The tree of a registered version, and the oldest candidate that pins it, None when none does.

    Raises ModelError when there is no such version or it is no part of a retriever, ArtifactError for a candidate with changed files.
    """
    part, info = role_of(model), find_version(model, version)
    if part is None or info is None:
        raise ModelError(_unknown(model, version, info))
    name, role = part
    users = _pinned_in(name, role, info)
    if not users:
        return Node(f"{model}/{version}", _tags(info), (Node("used in", {"note": "no candidate pins it"}),), role), None
    built = users[0]
    node, witness = Ancestry(built).pin(role), call_witness(name)
    by = witness.registered(model, version)
    title, details = f"{model}/{version}", {**node.details, "registered_by_run": info.run_id, "registered_by": by}
    used = Node("used in", {}, tuple(_use(user, witness) for user in users), "release")
    return Node(title, details, (*node.children, *surroundings(built), used), node.kind, node.key), built


def _pinned_in(name: str, role: str, info: VersionInfo) -> list[Opened]:
    """Candidates that pin this version, oldest first. Tags only say where to look: the manifests, which are verified, decide.

    A tag that somebody changed hides no candidate whose files lie here.
    """
    digests = {info.tags.get(labels.DIGEST), *(here.digest for here in _lying_here(info))}
    named = [found for found in registry.versions(candidate_model(name)) if _may_pin(found, role, digests)]
    opened = [open_info(name, found) for found in named]
    return [candidate for candidate in opened if (info.name, info.version) == _pin(candidate, role)]


def _may_pin(candidate: VersionInfo, role: str, digests: Collection[str | None]) -> bool:
    stated = candidate.tags.get(f"{labels.PARENT}{role}")
    return stated is None or stated in digests or any(here.parents.get(role) in digests for here in _lying_here(candidate))


def _lying_here(info: VersionInfo) -> Iterator[Artifact]:
    """The artifact of a version as its manifest has it, not hashed; nothing for one in a remote store or of which nothing is left."""
    with suppress(ArtifactError, ModelError, OSError):
        if (folder := registry.local_files(info.name, info.version)) is not None:
            yield open_artifact(folder)


def _pin(candidate: Opened, role: str) -> tuple[str, int]:
    pin = getattr(candidate.manifest.pins, role)
    return pin.model, pin.version


def _use(candidate: Opened, witness: Witness) -> Node:
    """A candidate, its approvals, and the records of the releases that it became."""
    records = [promotions(candidate.name, info, witness) for info in copies(candidate.info, witness)]
    details = {"digest": candidate.artifact.digest, "verdict": candidate.manifest.decision.verdict}
    return Node(
        candidate.title, details, (approvals(candidate.name, candidate.info, witness), *records), "release", candidate.artifact.digest
    )


def _tags(info: VersionInfo) -> dict[str, str]:
    """What the registry says where no manifest does; anybody with the right to could have written it."""
    known = {key.removeprefix(labels.PREFIX): value for key, value in info.tags.items() if key.startswith(labels.PREFIX)}
    return {**known, "note": "from tags, which are no proof: no release manifest describes it"}


def _unknown(model: str, version: int, info: VersionInfo | None) -> str:
    if info is not None:
        return f"{model} is no tower, encoder or index of a retriever. Trace a release or candidate by its own name."
    numbers = [str(found.version) for found in registry.versions(model)]
    there = f"its versions: {', '.join(numbers[-10:])}" if numbers else "there is no such model; `scalingnote status` names a retriever's"
    return f"{model}/{version} does not exist; {there}."


# --- Documents in an index: row, file of the stored vector, and the digest of the content that was encoded.


SHARD_FILE = "vectors-{:05d}.parquet"
PART_FILE = "part-{:05d}.vectors.npy"


def checked_index(pin: Pin) -> Path:
    """Folder of a pinned index, the files that name its documents hashed and all others compared by size.

    Raises ArtifactError for a difference. `scalingnote verify` hashes the vectors as well, which takes seconds for a large index.
    """
    folder = registry.artifact_folder(pin.model, pin.version)
    verify_sizes(folder, pin.digest)
    for name, entry in read_manifest(folder).files.items():
        if name in (IDS_FILE, DELETED_FILE) and file_sha256(folder / name) != entry.sha256:
            raise ArtifactError(f"{folder}: the file {name} was changed. Restore it or run the step again.")
    return folder


def find_document(index_folder: Path, doc_id: str) -> dict[str, Any]:
    """Row, file of the stored vector and content hash of a document; raises DataError when the index does not hold it."""
    rows = read_rows(index_folder)
    found = _found(index_folder, rows, [doc_id])[0]
    if found is None:
        raise DataError(
            f"The index of this release has no document '{doc_id}'; it holds {rows.live:,} others. "
            f"Check the id, or give another reference: {TRACED}."
        )
    return found


def find_documents(index_folder: Path, doc_ids: Sequence[str]) -> list[dict[str, Any] | None]:
    """What `find_document` gives for each id; None for one that the index does not hold."""
    return _found(index_folder, read_rows(index_folder), doc_ids)


def _found(index_folder: Path, rows: Rows, doc_ids: Sequence[str]) -> list[dict[str, Any] | None]:
    places = [rows.row_of(doc_id) for doc_id in doc_ids]
    found = iter(read_single(index_folder, ("content_hash", "part", "shard"), [row for row in places if row is not None]))
    return [None if row is None else _described(row, next(found)) for row in places]


def _described(row: int, found: dict[str, Any]) -> dict[str, Any]:
    # Indexes of the first layout keep no vectors of their own, but name the shard of the encoding.
    where = {"shard": SHARD_FILE.format(found["shard"])} if "shard" in found else {"part": PART_FILE.format(found["part"])}
    return {"row": row, **where, "content_hash": found["content_hash"]}


# --- The way back from a release, a model, an index, one document or one served answer to data, code, configuration and approval.


_RELEASE = re.compile(r"^(champion|previous|(candidate|release)/.*)$")
_MODEL = re.compile(r"^model/([^/]+)/(.*)$")
_PART = re.compile(r"^(index|query-encoder|query-tower|document-tower)/(.*)$")
DOCUMENT = "document:"  # before the id of a document that looks like another reference
ANSWER = "answer:"


@dataclass(frozen=True)
class Trace:
    """Something traced back; `version` is that of the registered `model` that `ref` named or led to.

    `release` is the candidate or release whose manifest tells where all came from; None for a model that no candidate pins.
    """

    name: str
    ref: str
    model: str
    version: int
    root: Node
    release: Opened | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain values that `json.dumps` takes."""
        return {"retriever": self.name, "ref": self.ref, "model": self.model, "version": self.version, "trace": self.root.to_dict()}

    def text(self) -> str:
        """The trace as an indented tree."""
        return text_of(self.root)


def follow(name: str, ref: str, release: str | None = None) -> Trace:
    """Trace whatever `ref` names (see TRACED) but an answer; a document is looked up in `release`, by default the champion.

    Raises ConfigError for a `release` beside another reference than a document's, PromotionError, ModelError or DataError for a reference
    that names nothing, ArtifactError for changed files.
    """
    if release is not None and any(form.match(ref) for form in (_MODEL, _PART, _RELEASE)):
        raise ConfigError(
            f"--release says in which release a document's id is looked up, and '{ref}' is none. Leave it out, or write {DOCUMENT}{ref} "
            "where a document has that id."
        )
    if found := _MODEL.match(ref):
        return trace_model(found[1], _number(found[2], ref), ref)
    if found := _PART.match(ref):
        return trace_model(f"{name}-{found[1]}", _number(found[2], ref), ref)
    if _RELEASE.match(ref):
        return trace(name, ref)
    return trace_document(name, release or CHAMPION, ref.removeprefix(DOCUMENT))


def trace(name: str, ref: str) -> Trace:
    """Trace a release or candidate back; raises PromotionError for an unknown `ref`, ArtifactError for changed files."""
    opened = open_version(name, *resolve(name, ref))
    return Trace(name, ref, opened.info.name, opened.info.version, release_node(opened), opened)


def trace_model(model: str, version: int, ref: str) -> Trace:
    """Trace a registered tower, query encoder or index; candidates and releases are traced as such."""
    name, _, kind = model.rpartition("-")
    part = role_of(model)
    if part is None and kind in ("candidate", "release"):
        return trace(name, f"{kind}/{version}")
    root, opened = model_node(model, version)
    return Trace(part[0] if part else name, ref, model, version, root, opened)


def trace_document(name: str, ref: str, doc_id: str) -> Trace:
    """Trace one document of a release: row and shard of its vector, content hash, then the release itself.

    Raises DataError for an id that is not in the index, else as `trace`.
    """

    opened = open_version(name, *resolve(name, ref))
    details = find_document(checked_index(opened.manifest.pins.index), doc_id)
    root = Node(f"document {doc_id}", details, (release_node(opened),), "document")
    return Trace(name, ref, opened.info.name, opened.info.version, root, opened)


def _number(text: str, ref: str) -> int:
    if (number := whole_number(text)) is None:
        raise PromotionError(f"'{ref}' names no version: expected a number after the last slash. Known are {TRACED}.")
    return number
