"""`verify`, through the registry and from files alone.

Every changed byte is found: release, signature, pinned parts, audit log with its head, promotion records.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from components import settings
from components.artifacts import SIGNATURE, read_json
from components.errors import ConfigError, PromotionError
from components.promotion.verification import Check, verify_folder, verify_release
from components.release.manifest import load_release
from components.signing.keys import make_key, public_file
from components.tracking import registry
from components.tracking.audit_log import Head, append_entry, head_bytes, head_file
from tests.unit.promotion_world import NAME
from tests.unit.proof_world import Proven, call, proven_home

POSITIONS = 200
CHUNKS = 10


@pytest.fixture(scope="module")
def proven(tmp_path_factory: pytest.TempPathFactory, mlflow_template: Path) -> Iterator[Proven]:
    with proven_home(tmp_path_factory.mktemp("fuzz"), mlflow_template) as world:
        yield world


def from_files(world: Proven) -> list[Check]:
    return verify_folder(NAME, world.home / "mlflow")


def from_store(world: Proven) -> list[Check]:
    return verify_release(NAME, "champion")


def groups(world: Proven) -> dict[str, list[Path]]:
    """All files that a release stands on, by what they are: positions are drawn evenly from the groups, then from the bytes."""
    release = registry.artifact_folder(f"{NAME}-release", 2)
    parts = [registry.artifact_folder(pin.model, pin.version) for _, pin in load_release(release).pins.items()]
    log = settings.audit_log()
    beside = [path for part in (release, *parts) for path in part.parents[1].rglob("*") if path.is_file() and part not in path.parents]
    return {
        "release": [path for path in sorted(release.rglob("*")) if path.is_file() and path.name != SIGNATURE],
        "signature": [release / SIGNATURE],
        "parts": [path for part in parts for path in sorted(part.rglob("*")) if path.is_file()],
        "packages": sorted(path for path in beside if path.stat().st_size),  # an empty __init__.py has no byte to change
        "audit": [log, head_file(log)],
        "records": sorted((world.home / "mlflow").rglob("record.json")),
    }


def drawn(world: Proven) -> list[tuple[Path, int, int]]:
    """(file, position, bits to flip), the same ones each time."""
    rng = np.random.default_rng(7)
    found, made = list(groups(world).values()), []
    for number in range(POSITIONS):
        files = found[number % len(found)]
        path = files[int(rng.integers(len(files)))]
        made.append((path, int(rng.integers(path.stat().st_size)), int(rng.integers(1, 256))))
    return made


def undetected(world: Proven, changes: list[tuple[Path, int, int]], verify: object) -> list[tuple[str, int]]:
    """Change one byte at a time, verify, and put it back."""
    assert callable(verify)
    missed = []
    for path, position, bits in changes:
        whole = path.read_bytes()
        path.write_bytes(whole[:position] + bytes([whole[position] ^ bits]) + whole[position + 1 :])
        if all(check.ok for check in verify(world)):
            missed.append((path.name, position))
        path.write_bytes(whole)
    return missed


def test_unchanged_everything_holds(proven: Proven) -> None:
    for verify in (from_files, from_store):
        checks = verify(proven)
        assert [check for check in checks if not check.ok] == []
        assert {"files", "signature", "index", "packages", "decision", "signed records", "audit log"} <= {check.name for check in checks}
    assert {name: len(files) for name, files in groups(proven).items()}["records"] == 3


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_every_changed_byte_is_found(proven: Proven, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # The gates take most of the time, and what they find is only more: each byte has to be found by digests and signatures.
    monkeypatch.setattr("components.promotion.verification._decision", lambda *_: "not decided again")
    assert undetected(proven, drawn(proven)[chunk::CHUNKS], from_files) == []


def test_a_changed_byte_is_found_through_the_registry(proven: Proven) -> None:
    assert undetected(proven, drawn(proven)[:10], from_store) == []


def finding(checks: list[Check], name: str) -> str:
    """Detail of the one check of that name, which has to have failed."""
    (check,) = [check for check in checks if check.name == name]
    assert not check.ok, check
    return check.detail


@pytest.fixture
def copied(proven: Proven, tmp_path: Path) -> Path:
    """The store's files without its database."""
    return Path(shutil.copytree(proven.home / "mlflow", tmp_path / "copy", ignore=shutil.ignore_patterns("*.db*")))


def test_a_folder_is_verified_without_any_store(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    for ref in ("champion", "release/2"):
        assert [check for check in verify_folder(NAME, copied, ref) if not check.ok] == []
    with pytest.raises(PromotionError, match="not a folder"):
        verify_folder(NAME, copied / "nowhere")
    assert "name no 'release/7'" in finding(verify_folder(NAME, copied, "release/7"), "files")
    assert "name no 'best'" in finding(verify_folder(NAME, copied, "best"), "files")


def test_what_is_missing_from_a_folder_is_named(copied: Path) -> None:
    shutil.rmtree(next(path.parent for path in copied.rglob("weights.bin") if b"2/query_encoder" in path.read_bytes()))
    assert "retriever-query-encoder/2): it is missing or was changed" in finding(verify_folder(NAME, copied), "query encoder")
    first = next(path for path in sorted(copied.rglob("record.json")) if read_json(path)["sequence"] == 2)
    first.unlink()
    assert "promotion record 2 is missing" in finding(verify_folder(NAME, copied), "promotion record")


def test_a_release_alone_is_verified_when_it_is_the_only_one(copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_parts = tmp_path / "one"
    release = registry.artifact_folder(f"{NAME}-release", 1)
    shutil.copytree(release, with_parts / "release")
    for role, pin in load_release(release).pins.items():
        shutil.copytree(registry.artifact_folder(pin.model, pin.version), with_parts / role)
    checks = verify_folder(NAME, with_parts)
    assert [check for check in checks if not check.ok] == []
    assert next(check.detail for check in checks if check.name == "audit log").startswith("none")
    monkeypatch.chdir(with_parts)
    assert [check for check in verify_folder(NAME, Path()) if not check.ok] == []
    for ref in ("release/7", "candidate/1", "previous", "best", "champion"):  # each was told as verified, whatever the only release is
        assert f"nothing says which release is '{ref}'" in finding(verify_folder(NAME, with_parts, ref), "files")
    shutil.copytree(registry.artifact_folder(f"{NAME}-release", 2), with_parts / "second")
    assert "holds 2 releases and no promotion record" in finding(verify_folder(NAME, with_parts), "files")


def test_a_record_that_rests_on_an_entry_the_log_does_not_hold_is_found(proven: Proven, copied: Path) -> None:
    log = copied / "audit.jsonl"
    log.unlink()
    head_file(log).unlink()
    assert "rests on an audit log" in finding(verify_folder(NAME, copied), "audit log")
    for number in range(1, 6):
        append_entry(log, call(number))  # a new chain that holds: only the record knows that it is another one
    assert "rests on the audit entry 3" in finding(verify_folder(NAME, copied), "audit log")
    shutil.copytree(proven.home / "mlflow" / "artifacts", copied / "again")
    shutil.copy(log, copied / "again")
    assert "holds 2 audit logs" in finding(verify_folder(NAME, copied), "audit log")


def test_a_file_of_a_run_is_no_audit_log(proven: Proven, copied: Path) -> None:
    """Whoever trains may keep one under that name: every folder with it was refused."""
    notes = copied / "artifacts" / NAME / ("0" * 32) / "artifacts" / "notes"
    notes.mkdir(parents=True)
    (notes / "audit.jsonl").write_text("{}")
    assert {check.name: check.detail for check in verify_folder(NAME, copied) if not check.ok} == {}


def test_every_copy_in_a_folder_is_verified(proven: Proven, copied: Path) -> None:
    second = Path(shutil.copytree(registry.artifact_folder(f"{NAME}-index", 1), copied / "second"))
    assert [check for check in verify_folder(NAME, copied) if not check.ok] == []
    (second / "doc_ids.parquet").write_bytes(b"other")
    assert "doc_ids.parquet was changed" in finding(verify_folder(NAME, copied), "index")


@pytest.fixture
def whole(proven: Proven) -> Iterator[Proven]:
    """A test may do what it likes to the release, its parts, the audit log and the keys: all is put back."""
    saved = {path: path.read_bytes() for path in exposed(proven)}
    yield proven
    for path in {*exposed(proven)} - set(saved):
        path.unlink()
    for path, content in saved.items():
        if path.is_symlink() or not path.is_file() or path.read_bytes() != content:
            path.unlink(missing_ok=True)
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content)


def exposed(world: Proven) -> list[Path]:
    """All files and links that an attack of these tests may leave."""
    found = [path for files in groups(world).values() for path in files]
    folders = [settings.keys_folder(), *(path.parent for path in found if path.name == "manifest.json")]
    return [*found, *(path for folder in folders for path in folder.rglob("*") if path.is_symlink() or path.is_file())]


def swap(first: Path, second: Path) -> None:
    """Each file gets the other's content."""
    one, other = first.read_bytes(), second.read_bytes()
    first.write_bytes(other)
    second.write_bytes(one)


def append(path: Path, content: bytes) -> None:
    path.write_bytes(path.read_bytes() + content)


ATTACKS: dict[str, tuple[str, Callable[[Path, Path], object]]] = {
    "appended to a part": ("query tower", lambda release, part: append(part / "weights.bin", b"more")),
    "cut off a part": ("query tower", lambda release, part: (part / "weights.bin").write_bytes(b"")),
    "a file less": ("query tower", lambda release, part: (part / "weights.bin").unlink()),
    "a file more": ("query tower", lambda release, part: (part / "weights-2.bin").write_bytes(b"")),
    "a file renamed": ("query tower", lambda release, part: (part / "weights.bin").rename(part / "weights")),
    "a link to the same content": ("query tower", lambda release, part: relink(part / "weights.bin")),
    "a folder that is a link": ("query tower", lambda release, part: (part / "more").symlink_to(part)),
    "code that MLflow runs": ("packages", lambda release, part: append(next(part.parents[1].glob("*_model.py")), b"\nimport os\n")),
    "two reports swapped": ("files", lambda release, part: swap(release / "report.html", release / "facts.json")),
    "the signature of another release": (
        "signature",
        lambda release, part: shutil.copy(registry.artifact_folder(f"{NAME}-release", 1) / SIGNATURE, release / SIGNATURE),
    ),
    "no signature": ("signature", lambda release, part: (release / SIGNATURE).unlink()),
    "appended to the signature": ("signature", lambda release, part: append(release / SIGNATURE, b"\n")),
    "appended to the audit log": ("audit log", lambda release, part: append(settings.audit_log(), b"x")),
    "an empty line in the audit log": ("audit log", lambda release, part: append(settings.audit_log(), b"\n")),
    "no head file": ("audit log", lambda release, part: head_file(settings.audit_log()).unlink()),
    "no audit log": ("audit log", lambda release, part: settings.audit_log().unlink()),
    "audit log and head set back together": ("audit log", lambda release, part: set_back(settings.audit_log(), 2)),
}


def relink(path: Path) -> None:
    path.symlink_to(path.rename(settings.home() / "elsewhere"))


def set_back(log: Path, entries: int) -> None:
    """As somebody with an older backup of both files could: the chain holds, but ends before the entry that record 3 rests on."""
    lines = log.read_bytes().splitlines(keepends=True)[:entries]
    log.write_bytes(b"".join(lines))
    last = json.loads(lines[-1])
    head_file(log).write_bytes(head_bytes(Head(sequence=last["sequence"], digest=last["digest"])))


@pytest.mark.parametrize("attack", ATTACKS)
def test_every_attack_on_the_files_is_found_by_name(whole: Proven, attack: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("components.promotion.verification._decision", lambda *_: "not decided again")
    check, act = ATTACKS[attack]
    release = registry.artifact_folder(f"{NAME}-release", 2)
    pin = load_release(release).pins.query_tower
    act(release, registry.artifact_folder(pin.model, pin.version))
    failed = [found for found in from_store(whole) if not found.ok]
    # A link is one in the part and in the package around it: each check that meets it names it.
    both = [check, "packages"] if "link" in attack else [check]
    assert [found.name for found in failed] == both, failed
    assert "link" not in attack or all("is a link, and what it leads to can change" in found.detail for found in failed)


def test_a_trusted_key_that_was_removed_no_longer_counts(whole: Proven) -> None:
    trusted = settings.keys_folder() / "trusted"
    own = next(trusted.glob("*.pem"))
    make_key(settings.keys_folder() / "other.pem")  # its public half lies among the trusted ones
    own.unlink()
    checks = from_store(whole)
    assert "which is not trusted" in finding(checks, "signature") and "not trusted" in finding(checks, "signed records")
    shutil.rmtree(trusted)
    said = {check.name: check.detail for check in from_store(whole)}
    assert "nothing here says whether to trust" in said["signature"]


def test_untrusted_and_broken_keys(proven: Proven, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = make_key(tmp_path / "other.pem")
    monkeypatch.setenv("SCALINGNOTE_TRUSTED_KEYS", str(public_file(other)))
    checks = from_store(proven)
    assert "which is not trusted" in finding(checks, "signature")
    assert "record 3: It is signed by the key" in finding(checks, "signed records")
    monkeypatch.setenv("SCALINGNOTE_TRUSTED_KEYS", str(other.path))
    with pytest.raises(ConfigError, match="public key"):
        from_store(proven)
