"""Where the checks of a release read it, all that it rests on, and the records from: the registry, or nothing but files.

A folder of files may be a copy of the artifact store, an auditor's download, or a release with its parts beside it. Nothing in it is
looked up by its place: artifacts are found by the digest of their manifests, and every whole copy is checked.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from components import settings
from components.artifacts import MANIFEST, open_artifact, read_manifest
from components.errors import ArtifactError, PromotionError
from components.release.champion import (
    CHAMPION,
    PREVIOUS,
    Record,
    baseline_evaluation,
    digest_in,
    expected_aliases,
    record_of,
    release_model,
    verified_evaluation,
)
from components.release.manifest import RELEASE_FILE, Pin
from components.text import whole_number
from components.tracking import audit_log as audit
from components.tracking import labels, registry
from components.tracking import promotion_records as record_store
from components.tracking.packaging import WITHIN_A_RUN
from components.tracking.promotion_records import read_record_files

if TYPE_CHECKING:
    from components.evaluation.report import Evaluation
    from components.tracking.audit_log import AuditEntry

AUDIT_FILE = "audit.jsonl"


class Store(Protocol):
    """One release as the checks see it. Every method raises ArtifactError, or another expected error, for what is damaged or gone."""

    name: str

    def records(self) -> list[Record]:
        """The promotion records of the retriever, verified as a chain."""

    def record(self) -> Record | None:
        """The newest record that made this release the champion."""

    def copies(self) -> list[Path]:
        """Folders of the release; more than one where files are stored twice."""

    def digest(self) -> str | None:
        """What the release's digest has to be, as far as something outside its files says so."""

    def parts(self, pin: Pin) -> list[Path]:
        """Folders of a pinned part."""

    def package(self, pin: Pin | None) -> str | None:
        """Digest of the list of the files with which MLflow loads a part, or the release itself, as far as something says so."""

    def origin(self) -> int | None:
        """Number of the candidate that the release is a copy of, as far as something outside its files and records says so."""

    def baseline(self, version: int) -> Evaluation:
        """The evaluation of an earlier champion, verified."""

    def trail(self) -> list[AuditEntry] | None:
        """The audit log, verified as a chain; None when there is none."""


class RegistryStore:
    """A version of `<name>-candidate` or `<name>-release` in the tracking store."""

    def __init__(self, name: str, model: str, version: int) -> None:
        self.name, self.model, self.version = name, model, version
        self._records: list[Record] | None = None
        self._folders: dict[tuple[str, int], Path] = {}

    def records(self) -> list[Record]:
        """From MLflow, with the claims of the chain; read once, so that all checks see the same."""
        if self._records is None:
            self._records = list(record_store.read_records(self.name))
        return self._records

    def record(self) -> Record | None:
        """None for a candidate."""
        return record_of(self.records(), self.version) if self.model == release_model(self.name) else None

    def copies(self) -> list[Path]:
        """The one folder of the version."""
        return [self._folder(self.model, self.version)]

    def digest(self) -> str | None:
        """The digest that the version was registered with."""
        found = (info.tags.get(labels.DIGEST) for info in registry.versions(self.model) if info.version == self.version)
        return next(found, None)

    def parts(self, pin: Pin) -> list[Path]:
        """The one folder of the pinned version."""
        return [self._folder(pin.model, pin.version)]

    def package(self, pin: Pin | None) -> str | None:
        """By the promotion record, else what the version was registered with."""
        place = (pin.model, pin.version) if pin else (self.model, self.version)
        return _recorded_package(self.record(), *place) or registry.package_digest(*place)

    def origin(self) -> int | None:
        """By the source of the version, as the registry has it."""
        found = next((info for info in registry.versions(self.model) if info.version == self.version), None)
        copied = None if found is None else registry.copied_from(found)
        return None if copied is None else copied[1]

    def baseline(self, version: int) -> Evaluation:
        """By the promotion record of that version."""
        return baseline_evaluation(self.name, version)

    def _folder(self, model: str, version: int) -> Path:
        """What the store holds now, not what this machine has kept of it; fetched once, so that all checks see the same."""
        if (model, version) not in self._folders:
            self._folders[model, version] = registry.artifact_folder(model, version, fresh=True)
        return self._folders[model, version]

    def trail(self) -> list[AuditEntry] | None:
        """Of the tracking store."""
        entries, log = audit.trail(), settings.audit_log()
        if log.exists():
            audit.require_ended(log)
        return entries


class FolderStore:
    """A release below `root`: the one that `ref` names (champion, previous, release/N) by the records there are.

    Without a `ref` it is the champion, and the only release where there are no records.
    """

    def __init__(self, name: str, root: Path, ref: str | None = None) -> None:
        if not root.is_dir():
            raise PromotionError(
                f"{root} is not a folder. Give one that holds a release with its parts, such as a copy of the artifact store."
            )
        self.name, self.root, self.ref = name, root, ref
        self.found, self.unreadable = _scan(root)
        self._records: list[Record] | None = None

    def records(self) -> list[Record]:
        """From the record files below the folder, read once."""
        if self._records is None:
            self._records = list(read_record_files(self.root, self.name))
        return self._records

    def record(self) -> Record | None:
        """Of the version that `ref` names; PromotionError when the records know no such version."""
        records = self.records()
        if not records and self.ref is not None:  # the only release there would be verified under a name that it may not have
            raise PromotionError(
                f"There are no promotion records below {self.root}, so nothing says which release is '{self.ref}'. Leave that out to "
                "verify the only release there."
            )
        if not records:
            return None
        ref = self.ref or CHAMPION
        version = _version(ref, records)
        record = None if version is None else record_of(records, version)
        if record is None:
            raise PromotionError(f"The promotion records below {self.root} name no '{ref}'. Give champion, previous or release/N.")
        return record

    def copies(self) -> list[Path]:
        """By the digest in the promotion record, else the only release there is."""
        if (digest := self.digest()) is not None:
            return self._by_digest(digest, "the release that the promotion record names")
        releases = {digest: folders for digest, folders in self.found.items() if any((f / RELEASE_FILE).is_file() for f in folders)}
        if len(releases) != 1:
            raise ArtifactError(
                f"{self.root} holds {len(releases)} releases and no promotion record that says which one is meant. "
                f"Give the folder of one release and its parts.{self._unread()}"
            )
        return _whole(next(iter(releases.values())))

    def digest(self) -> str | None:
        """What the promotion record says."""
        record = self.record()
        return None if record is None else digest_in(record)

    def parts(self, pin: Pin) -> list[Path]:
        """Every whole copy below the folder."""
        return self._by_digest(pin.digest, f"{pin.model}/{pin.version}")

    def package(self, pin: Pin | None) -> str | None:
        """By the promotion record."""
        record = self.record()
        place = (pin.model, pin.version) if pin else (release_model(self.name), int(record["to_version"]) if record else 0)
        return _recorded_package(record, *place)

    def origin(self) -> int | None:
        """Nothing but records and files is here."""
        return None

    def baseline(self, version: int) -> Evaluation:
        """Of the release that the records name for `version`."""
        record = record_of(self.records(), version)
        if record is None:
            raise ArtifactError(f"No promotion record below {self.root} names release/{version}, which it was compared with.")
        digest = digest_in(record)
        return verified_evaluation(self._by_digest(digest, f"release/{version}, which it was compared with")[0], digest)

    def trail(self) -> list[AuditEntry] | None:
        """The one audit log below the folder."""
        # The head alone is looked for as well: a log that was removed is not the same as none.
        named = (path for name in (AUDIT_FILE, f"{AUDIT_FILE}.head") for path in self.root.rglob(name))
        own = (path for path in named if not WITHIN_A_RUN.search(path.relative_to(self.root).as_posix()))
        logs = sorted({path.with_name(AUDIT_FILE) for path in own})
        if len(logs) > 1:
            raise ArtifactError(f"{self.root} holds {len(logs)} audit logs; expected one.")
        if not logs:
            return None
        entries = audit.read_audit(logs[0])
        audit.require_ended(logs[0])
        return entries

    def _by_digest(self, digest: str, what: str) -> list[Path]:
        folders = _whole(self.found.get(digest, []))
        if not folders:
            raise ArtifactError(f"{self.root} holds no artifact {digest[:12]} ({what}): it is missing or was changed.{self._unread()}")
        return folders

    def _unread(self) -> str:
        return f" Unreadable: {self.unreadable[0]}" if self.unreadable else ""


def _recorded_package(record: Record | None, model: str, version: int) -> str | None:
    found = ((record or {}).get("packages") or {}).get(f"{model}/{version}")
    return None if found is None else str(found)


def _version(ref: str, records: list[Record]) -> int | None:
    places = expected_aliases(records)
    if ref in (CHAMPION, PREVIOUS):
        return places.champion if ref == CHAMPION else places.previous
    kind, _, number = ref.partition("/")
    return whole_number(number) if kind == "release" else None


def _scan(root: Path) -> tuple[dict[str, list[Path]], list[str]]:
    """Digest -> folders of the artifacts below `root`, and what is wrong with manifests that cannot be read."""
    found: dict[str, list[Path]] = {}
    unreadable = []
    for path in sorted(root.rglob(MANIFEST)):
        try:
            found.setdefault(open_artifact(path.parent).digest, []).append(path.parent)
        except ArtifactError as error:
            unreadable.append(str(error))
    return found, unreadable


def _whole(folders: list[Path]) -> list[Path]:
    """Those that hold the most of their files: runs keep manifests, and single files to look at, of artifacts that lie elsewhere."""
    held = {folder: sum((folder / name).is_file() for name in read_manifest(folder).files) for folder in folders}
    return [folder for folder, files in held.items() if files and files == max(held.values())]
