"""Open a registered release for serving: resolve, verify, load the query encoder and the index, check space and probes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from components import settings
from components.artifacts import Artifact, open_artifact, read_json, verify, verify_noted
from components.data.config import IgnoreIdenticalIds
from components.data.dataset import content_hash, document_text, reads_as
from components.distillation.student import StudentEncoder, load_student
from components.errors import ArtifactError, ModelError, ScalingNoteError
from components.evaluation.report import load_summary
from components.index.config import IndexConfig
from components.index.rows import read_single, read_titles
from components.release.champion import CHAMPION, PREVIOUS, Record, candidate_model, digest_in, expected_aliases, record_of, release_model
from components.release.manifest import EVALUATION_FOLDER, RELEASE_FILE, Pin, ReleaseManifest, load_release_of
from components.release.open import recorded_digest, resolve
from components.serving.answer_log import Served
from components.serving.retriever import Retriever
from components.signing.keys import trusted_keys
from components.signing.statements import require_vouched
from components.tracking import labels, registry
from components.tracking import promotion_records as record_store
from components.tracking.packaging import packaged_digest
from components.tracking.promotion_records import read_records


class Opened(NamedTuple):
    """A release that is ready to answer."""

    model: str
    version: int
    manifest: ReleaseManifest
    retriever: Retriever
    titles: Mapping[str, str]
    digest: str

    @property
    def served(self) -> Served:
        """What the log of answers keeps of the release."""
        return Served(self.manifest.name, self.model, self.version, self.digest)


def open_release(name: str, ref: str) -> Opened:
    """Open `ref` (champion, previous, candidate/N, release/N) of the retriever `name`.

    Raises PromotionError for an unknown reference, ArtifactError, SpaceMismatch or ProbeMismatch when a part is not what the
    manifest pins, ArtifactError when trusted keys are configured and did not sign the records that say what is champion or previous,
    ModelError for a query encoder that the libraries here cannot load, TrackingError for a store that does not answer.
    """
    model, version = resolve(name, ref)
    records = read_records(name)
    if ref in (CHAMPION, PREVIOUS):
        require_signed(records, ref)
    expected = recorded_digest(name, model, version, records)
    try:
        artifact = verify(registry.artifact_folder(model, version), expected)
    except ArtifactError:
        if not registry.forget_download(model, version):
            raise
        artifact = verify(registry.artifact_folder(model, version), expected)
    manifest = load_release_of(name, artifact.path)
    retriever = open_retriever(manifest)
    titles = read_titles(registry_folder(manifest.pins.index), retriever.index.rows)
    return Opened(model, version, manifest, retriever, titles, artifact.digest)


def own_documents(opened: Opened, queries: Mapping[str, str], policy: IgnoreIdenticalIds | None = None) -> frozenset[str]:
    """Those of `queries` (id -> text) that are documents of the release, whose own document is no answer to them.

    Nobody has judged these queries, so without a `policy` the release's evaluation decides: where it left own documents out, they are;
    where all were judged relevant to themselves, none is; where it met no such query, a document has to say all that the query says, and a
    title alone does not count.
    """
    if policy == "never" or not (rows := opened.retriever.index.rows.live_rows_of(list(queries))):
        return frozenset()
    if policy == "always":
        return frozenset(rows)
    titles_count = policy is not None
    if policy is None:
        evaluated = load_summary(registry.artifact_folder(opened.model, opened.version) / EVALUATION_FOLDER).own_documents
        if evaluated is not None and evaluated.same_text and not evaluated.left_out:
            return frozenset()
        titles_count = evaluated is not None and bool(evaluated.left_out)
    documents = read_single(registry_folder(opened.manifest.pins.index), ("content_hash", "title"), list(rows.values()))
    found = []
    for query, document in zip(rows, documents, strict=True):
        title, text = document.get("title") or "", queries[query]
        # The index keeps no texts: the query is held against the digest of its document as it stands, and as what follows the title.
        said = {document_text("", text), document_text(title, text), document_text(title, text.strip().removeprefix(title))}
        if document["content_hash"] in map(content_hash, said) or (titles_count and reads_as(text, title)):
            found.append(query)
    return frozenset(found)


def require_signed(records: Sequence[Record], ref: str) -> None:
    """Raise ArtifactError when trusted keys are configured and one of `records` is signed by another key, or the newest by none."""
    try:
        require_vouched(records)
    except ArtifactError as error:
        raise ArtifactError(
            f"'{ref}' is not served: nobody who counts here vouches for the promotion records. {error} "
            "See `scalingnote keys list` and `scalingnote history`; release/N serves a version that you choose yourself."
        ) from None


def open_retriever(manifest: ReleaseManifest) -> Retriever:
    """Query encoder and index of a manifest as one object, after every check. A damaged local copy of a remote store is fetched again.

    Files are hashed when they are not as they were at the last full check (see `verify_noted`), and always where keys are trusted.
    """
    try:
        return _open_parts(manifest)
    except ArtifactError:
        forgotten = [registry.forget_download(pin.model, pin.version) for pin in (manifest.pins.query_encoder, manifest.pins.index)]
        if not any(forgotten):
            raise
        return _open_parts(manifest)


def _open_parts(manifest: ReleaseManifest) -> Retriever:
    encoder_folder = registry_folder(manifest.pins.query_encoder)
    whole = bool(trusted_keys())
    verify_noted(encoder_folder, manifest.pins.query_encoder.digest, settings.check_note(encoder_folder), whole)
    encoder = _student(manifest.pins.query_encoder, encoder_folder)
    index_folder = registry_folder(manifest.pins.index)
    tolerance = IndexConfig.model_validate(manifest.config.get("index", {})).probe_tolerance
    verify_noted(index_folder, manifest.pins.index.digest, settings.check_note(index_folder), whole)
    retriever = Retriever.open(encoder, encoder_folder, index_folder, tolerance, manifest.pins.index.digest, "sizes")
    if retriever.index.space_id != manifest.space_id:
        raise ArtifactError(
            f"The release manifest names the space {manifest.space_id[:12]}, its index has {retriever.index.space_id[:12]}."
        )
    return retriever


def _student(pin: Pin, folder: Path) -> StudentEncoder:
    """The query encoder; whatever a library raises for weights or settings that it cannot read any more becomes a ModelError."""
    try:
        return load_student(folder)
    except ScalingNoteError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:  # the system says what it was
            raise
        reason = (str(error).strip().splitlines() or ["no reason given"])[0]
        raise ModelError(
            f"{pin.model}/{pin.version} is whole, but cannot be loaded ({type(error).__name__}: {reason}). Install the versions of the "
            "libraries that it was made with, which its release names, or take another release."
        ) from error


def registry_folder(pin: Pin) -> Path:
    """Folder of the artifact a pin names."""
    return registry.artifact_folder(pin.model, pin.version)


def require_as_registered(folder: Path) -> Artifact:
    """The release in the package that MLflow loads by itself, if it is the registered one and no alias that was moved by hand led there.

    MLflow follows the alias alone and asks for no record, and does not tell the model by which way it was loaded. So a release that the
    alias `champion` names against the promotion records is not loaded at all, whatever its tags say by now. Raises ArtifactError in all
    these cases, and where trusted keys do not vouch for the records that say so.
    """
    artifact = verify(folder, packaged_digest(folder))
    name = str(read_json(folder / RELEASE_FILE).get("name"))
    releases = registry.versions(release_model(name))
    digests = {info.version: info.tags.get(labels.DIGEST) for info in releases}
    if artifact.digest not in {*digests.values(), *(info.tags.get(labels.DIGEST) for info in registry.versions(candidate_model(name)))}:
        raise ArtifactError(
            f"{folder}: no candidate or release of '{name}' is registered with the digest {artifact.digest[:12]}. It was made or changed "
            "past the registry; restore the artifact store."
        )
    records = record_store.read_records(name)
    champion, alias = expected_aliases(records).champion, registry.alias(release_model(name), CHAMPION)
    # By the record, not by the number: that of a version that was deleted is given again.
    recorded = None if champion is None else record_of(records, champion)
    true = None if recorded is None else digest_in(recorded)
    if artifact.digest != true and artifact.digest in (digests.get(alias or 0), _digest_there(release_model(name), alias)):
        decided = f"release/{champion} is champion, of the digest {str(true)[:12]}" if champion else "nothing was promoted"
        raise ArtifactError(
            f"The alias 'champion' of {release_model(name)} points at release/{alias}, but by the promotion records {decided}: it was "
            "moved by hand, or a change was interrupted. Nothing is served; run `scalingnote promote` to put the alias right."
        )
    if true == artifact.digest:
        require_vouched(records)
    return artifact


def _digest_there(model: str, version: int | None) -> str | None:
    """The digest of the files of a version; None where there is none, or they are gone."""
    try:
        return None if version is None else open_artifact(registry.artifact_folder(model, version)).digest
    except (ArtifactError, ModelError):
        return None
