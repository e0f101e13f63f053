"""The way back from a release, a model, an index, one document or one served answer to data, code, configuration and approval."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from components.errors import PromotionError
from components.lineage.release_graph import Opened, open_version, release_node
from components.lineage.trace_model import model_node, role_of
from components.lineage.trace_node import Node, text_of
from components.release.references import TRACED, resolve

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


def follow(name: str, ref: str, release: str = "champion") -> Trace:
    """Trace whatever `ref` names (see TRACED) but an answer; a document is looked up in `release`.

    Raises PromotionError, ModelError or DataError for a reference that names nothing, ArtifactError for changed files.
    """
    if found := _MODEL.match(ref):
        return trace_model(found[1], _number(found[2], ref), ref)
    if found := _PART.match(ref):
        return trace_model(f"{name}-{found[1]}", _number(found[2], ref), ref)
    if _RELEASE.match(ref):
        return trace(name, ref)
    return trace_document(name, release, ref.removeprefix(DOCUMENT))


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
    from components.lineage.trace_documents import checked_index, find_document  # pandas takes as long as the rest of a trace

    opened = open_version(name, *resolve(name, ref))
    details = find_document(checked_index(opened.manifest.pins.index), doc_id)
    root = Node(f"document {doc_id}", details, (release_node(opened),), "document")
    return Trace(name, ref, opened.info.name, opened.info.version, root, opened)


def _number(text: str, ref: str) -> int:
    if not text.isascii() or not text.isdigit():
        raise PromotionError(f"'{ref}' names no version: expected a number after the last slash. Known are {TRACED}.")
    return int(text)
