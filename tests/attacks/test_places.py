"""Attacks by what stands in the place of a file: pipes, links, folders, files that others may write, keys that fit everything."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from components.artifacts import MANIFEST, read_json, seal, verify, write_json
from components.errors import ArtifactError, ConfigError, DataError
from components.serving import answer_log
from components.signing import keys
from components.signing.statements import _fits
from components.tracking import audit_log as audit
from tests.attacks.test_odd_values import CALL

SERVED = answer_log.Served("retriever", "retriever-release", 1, "d" * 64)


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SCALINGNOTE_HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


PLACES: dict[str, Callable[[Path], object]] = {"pipe": os.mkfifo, "folder": Path.mkdir}


@pytest.mark.parametrize("kind", PLACES)
@pytest.mark.parametrize("ending", ["", ".head", ".lock"])
def test_nobody_waits_for_a_pipe_in_the_place_of_the_audit_log(tmp_path: Path, ending: str, kind: str) -> None:
    log = tmp_path / "audit.jsonl"
    audit.append_entry(log, CALL)
    place = log.with_name(log.name + ending)
    place.unlink()
    PLACES[kind](place)
    with pytest.raises(ArtifactError, match="is no plain file"):
        audit.check_end(log)
    if ending != ".lock":
        assert "is no plain file" in audit.state_of(log, "log").fault
        with pytest.raises(ArtifactError, match="is no plain file"):
            audit.read_audit(log)


def test_no_log_writes_into_what_a_link_in_its_place_leads_to(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine\n")
    victim.chmod(0o644)
    answers, log = answer_log.answers_file("retriever"), tmp_path / "audit.jsonl"
    answers.parent.mkdir(parents=True)
    for path in (answers, log):
        path.symlink_to(victim)
    for write in (
        lambda: answer_log.log_answers(SERVED, ["q"], [[]]),
        lambda: answer_log.prune_answers("retriever"),
        lambda: audit.append_entry(log, CALL),
    ):
        with pytest.raises(ArtifactError, match="is no plain file, and nothing is written into"):
            write()
    assert victim.read_text() == "mine\n" and victim.stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("kind", PLACES)
def test_nobody_waits_for_a_pipe_in_the_place_of_the_answers(kind: str) -> None:
    place = answer_log.answers_file("retriever")
    place.parent.mkdir(parents=True)
    PLACES[kind](place)
    with pytest.raises((ArtifactError, DataError)):
        answer_log.find_answer("0" * 16)
    for use in (lambda: answer_log.logged_queries("retriever", 3), lambda: answer_log.log_answers(SERVED, ["q"], [[]])):
        with pytest.raises(ArtifactError, match="is no plain file"):
            use()


@pytest.mark.parametrize("line", ["x}", "{}", '{"last":5}', '{"last":null}', '{"last":"\\u001b[2J"}', "5}"])
def test_a_line_that_no_pruning_wrote_is_passed_over(line: str) -> None:
    place = answer_log.pruned_file("retriever")
    place.parent.mkdir(parents=True)
    place.write_text(f"{line}\n")
    with pytest.raises(DataError, match="No answer 1111111111111111 is logged in") as told:
        answer_log.find_answer("1" * 16)
    assert "by a pruning" not in str(told.value)


def test_an_answer_of_another_retriever_in_the_log_of_this_one_is_refused() -> None:
    place = answer_log.answers_file("retriever")
    (identity,) = answer_log.log_answers(SERVED._replace(retriever="other"), ["q"], [[]])
    answer_log.answers_file("other").rename(place)
    with pytest.raises(ArtifactError, match="names the retriever 'other': the log was changed"):
        answer_log.find_answer(identity, "retriever")


def test_a_pipe_beside_the_files_of_an_artifact_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "artifact"
    folder.mkdir()
    (folder / "weights.bin").write_bytes(b"1")
    seal(folder, "encoder")
    os.mkfifo(folder / "more.parquet")
    with pytest.raises(ArtifactError, match="is no plain file: a pipe or device, for which a reader would wait"):
        verify(folder)


@pytest.mark.parametrize("size", ['"1"', "1.0", "true"])
def test_a_manifest_whose_numbers_are_of_another_kind_is_another(tmp_path: Path, size: str) -> None:
    """The digest is over the numbers, so texts of them would have the same."""
    folder = tmp_path / "artifact"
    folder.mkdir()
    (folder / "weights.bin").write_bytes(b"1")
    seal(folder, "encoder")
    content = (folder / MANIFEST).read_text()
    (folder / MANIFEST).write_text(content.replace('"bytes": 1', f'"bytes": {size}'))
    with pytest.raises(ArtifactError, match="is not a manifest"):
        verify(folder)


@pytest.mark.parametrize("name", ["../artifact/weights.bin", "./weights.bin", "weights.bin/", "/etc/hostname", "weights.bin\0"])
def test_a_manifest_names_no_file_by_a_way_around(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "artifact"
    folder.mkdir()
    (folder / "weights.bin").write_bytes(b"1")
    seal(folder, "encoder")
    content = read_json(folder / MANIFEST)
    write_json(folder / MANIFEST, {**content, "files": {name: content["files"]["weights.bin"]}})
    with pytest.raises(ArtifactError, match="is missing"):
        verify(folder)


@pytest.mark.parametrize("leads_to", ["nowhere", "itself"])
def test_trusted_keys_behind_a_link_that_leads_nowhere_are_not_taken_for_none(own_home: Path, leads_to: str) -> None:
    place = own_home / "keys" / "trusted"
    place.parent.mkdir()
    place.symlink_to(place if leads_to == "itself" else own_home / "not mounted")
    with pytest.raises(ConfigError, match="is a link that leads nowhere"):
        keys.trusted_keys()


def test_a_signing_key_behind_a_link_that_leads_nowhere_is_not_taken_for_none(own_home: Path) -> None:
    (own_home / "keys").mkdir()
    (own_home / "keys" / "signing.pem").symlink_to(own_home / "not mounted")
    with pytest.raises(ConfigError, match="cannot be read"):
        keys.load_signing_key()


def trusted(home: Path) -> Path:
    """The file of one trusted key."""
    return keys.public_file(keys.make_key(home / "keys" / "signing.pem"))


def test_a_trusted_key_that_everybody_may_change_is_none(own_home: Path) -> None:
    trusted(own_home).chmod(0o666)
    with pytest.raises(ConfigError, match="can be changed by everybody on this machine"):
        keys.trusted_keys()


@pytest.mark.parametrize(("place", "mode"), [("trusted", 0o777), ("trusted", 0o1777), (".", 0o777)])
def test_a_folder_of_trusted_keys_that_everybody_may_write_into_is_none(own_home: Path, place: str, mode: int) -> None:
    """Each file in it was its owner's alone, and anybody could lay another beside it."""
    trusted(own_home)
    folder = own_home / "keys" / place
    folder.chmod(mode)
    with pytest.raises(ConfigError, match="Everybody on this machine may put files into"):
        keys.trusted_keys()
    folder.chmod(0o755)
    assert len(keys.trusted_keys()) == 1


def test_one_trusted_key_in_a_folder_where_nobody_replaces_what_is_anothers_counts(
    own_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "shared").mkdir()
    monkeypatch.setenv(keys.TRUSTED_VARIABLE, str(trusted(own_home).rename(tmp_path / "shared" / "key.pem")))
    (tmp_path / "shared").chmod(0o1777)
    assert len(keys.trusted_keys()) == 1
    (tmp_path / "shared").chmod(0o777)
    with pytest.raises(ConfigError, match="Everybody on this machine may put files into"):
        keys.trusted_keys()


def test_a_trusted_file_holds_one_key(own_home: Path) -> None:
    place = trusted(own_home)
    place.write_bytes(place.read_bytes() * 2)
    with pytest.raises(ConfigError, match="holds more than one key"):
        keys.trusted_keys()


@pytest.mark.parametrize("start", [0, 1, 0xEC, 0xED, 0xEE])
@pytest.mark.parametrize("sign", [0, 0x80])
def test_a_key_that_fits_what_nobody_signed_is_not_trusted(own_home: Path, start: int, sign: int) -> None:
    from cryptography.hazmat.primitives import serialization as form
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    raw = bytes([start]) + (bytes(30) + bytes([sign]) if start < 2 else b"\xff" * 30 + bytes([0x7F | sign]))
    if start == 1 and not sign:
        assert _fits(raw, b"\x01" + bytes(63), b"what nobody signed")
    content = Ed25519PublicKey.from_public_bytes(raw).public_bytes(form.Encoding.PEM, form.PublicFormat.SubjectPublicKeyInfo)
    trusted(own_home).with_name("weak.pem").write_bytes(content)
    with pytest.raises(ConfigError, match="holds a key that anybody can sign for"):
        keys.trusted_keys()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_a_signing_key_of_another_user_is_warned_of(own_home: Path) -> None:
    trusted(own_home)
    os.chown(own_home / "keys" / "signing.pem", 1234, 1234)
    assert "belongs to another user" in str(keys.exposure(own_home / "keys" / "signing.pem"))
