"""The files around the sealed artifact of a registered version: the code and the settings with which MLflow loads it.

The artifact's own manifest was sealed before they were written, so they are listed beside it. The digest of the list is given to the
version as a tag when it is made, and stands in the promotion record of the release that it belongs to.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from components.artifacts import digest_of, file_sha256, read_json, require_written, write_json
from components.errors import ArtifactError

SEALED = "sealed"  # name of the artifact inside the pyfunc, and of the folder that holds it
SEALED_PATH = f"artifacts/{SEALED}"
LIST_FILE = "package.json"
_META_FILE = "registered_model_meta"  # MLflow writes it when it loads a version where it lies


def write_package(root: Path) -> str:
    """List all files of a model's folder but the sealed ones by their sha256; returns the digest of the list."""
    files = {path.relative_to(root).as_posix(): file_sha256(path) for path in _members(root)}
    write_json(root / LIST_FILE, {"files": files})
    return digest_of({"files": files})


def check_package(folders: Sequence[Path], expected: str | None) -> bool:
    """Hash the files around the copies of a sealed artifact; False where none are listed, as for what was registered before.

    `expected`: the digest of the list, None when nothing names it. One copy has to have that list: another retriever may have registered
    the same artifact, with a list of its own. Raises ArtifactError that names the first difference, and for byte code beside the
    code, which Python would run in its place.
    """
    roots = [sealed.parents[1] for sealed in folders if sealed.relative_to(sealed.parents[1]).as_posix() == SEALED_PATH]
    listed = {_checked(root) for root in roots if (root / LIST_FILE).is_file()}
    if roots and expected is not None and expected not in listed:
        raise ArtifactError(f"{roots[0] / LIST_FILE} was changed or removed after the version was registered. Restore it.")
    return bool(listed)


def packaged_digest(sealed: Path) -> str:
    """The digest that the file MLmodel around a sealed artifact names for it; raises ArtifactError where it names none."""
    import yaml

    place = sealed.parents[1] / "MLmodel"
    try:
        entry = yaml.safe_load(place.read_text(encoding="utf-8"))["flavors"]["python_function"]["artifacts"][SEALED]["uri"]
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError):
        entry = ""
    scheme, _, digest = str(entry).partition(":")
    if scheme != "sha256" or not digest:
        raise ArtifactError(f"{place} does not name the digest of the artifact that belongs to it. Restore the model's folder.")
    return digest


def _checked(root: Path) -> str:
    """The digest of the list of a model's folder, whose files are those of the list."""
    listed = read_json(root / LIST_FILE)
    require_written(root / LIST_FILE)
    files = listed.get("files") if isinstance(listed, dict) else None
    if not isinstance(files, dict):
        raise ArtifactError(f"{root / LIST_FILE} is not a list of files. Restore it.")
    _compare(root, files, {path.relative_to(root).as_posix(): path for path in _members(root)})
    return digest_of(listed)


def _compare(root: Path, listed: dict[str, str], found: dict[str, Path]) -> None:
    if cached := sorted(name for name in set(found) - set(listed) if name.endswith(".pyc") or "__pycache__" in name.split("/")):
        raise ArtifactError(
            f"{root}: {cached[0]} is byte code, which Python runs in place of the source that was registered. Delete every folder "
            "__pycache__ there. Versions of today leave none when MLflow loads them; older ones do."
        )
    if strange := sorted(set(listed) ^ set(found)):
        what = "is missing" if strange[0] in listed else "does not belong there"
        raise ArtifactError(f"{root}: the file {strange[0]}, with which MLflow loads the version, {what}. Restore the model's folder.")
    for name, path in found.items():
        if file_sha256(path) != listed[name]:
            raise ArtifactError(f"{root}: the file {name}, with which MLflow loads the version, was changed. Restore it.")


def _members(root: Path) -> list[Path]:
    files = sorted(path for path in root.rglob("*") if path.is_file() and not path.is_relative_to(root / SEALED_PATH))
    return [path for path in files if path not in (root / LIST_FILE, root / _META_FILE)]
