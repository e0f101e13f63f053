"""Attacks by files and names: too large, given twice, links, pipes, no numbers, letters that look like others."""

from __future__ import annotations

import json
import math
import os
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from components import settings
from components.artifacts import MOST_JSON, read_bounded, read_json, seal, strict_json, verify, verify_noted, write_json
from components.errors import ArtifactError, ConfigError, PromotionError
from components.gates.config import PolicyConfig
from components.gates.policy import foreign_policy
from components.promotion.status import compare_anchor, history_of, render_history
from components.release.champion import RED
from components.release.manifest import load_release
from components.release.reviewers import require_independent
from components.signing.keys import make_key, public_file, trusted_keys
from components.text import reads_like
from components.tracking import embedded, registry
from components.tracking import promotion_records as record_store
from components.tracking.audit_log import append_entry, read_audit
from components.tracking.packaging import SEALED_PATH
from components.tracking.server.bootstrap import load_users
from components.tracking.server.permissions import load_permissions, local_files
from components.tracking.store import client
from flows.config import RetrainConfig, load_settings
from tests.unit.promotion_world import NAME, POLICY, MemoryTracking, World, make_part
from tests.unit.proof_world import call


def sparse(path: Path, size: int) -> None:
    """A file of this size that takes no place on the disk."""
    with path.open("wb") as file:
        file.truncate(size)


# --- Files that are too large, or that nobody can read to the end.


def test_a_release_of_two_gigabytes_is_refused_in_a_sentence_before_it_is_read(tmp_path: Path) -> None:
    sparse(tmp_path / "release.json", 2_000_000_000)
    for read in (load_release, lambda folder: read_json(folder / "release.json")):
        with pytest.raises(ArtifactError, match=r"has 2,000,000,000 bytes; at most 64,000,000 are read"):
            read(tmp_path)
    sparse(tmp_path / "manifest.json", MOST_JSON + 1)
    with pytest.raises(ArtifactError, match=r"manifest.json has 64,000,001 bytes"):
        verify(tmp_path)


def test_pipes_devices_and_folders_are_no_files_and_nobody_waits_for_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for place in (tmp_path / "pipe", tmp_path / "folder", Path("/dev/zero")):
        with pytest.raises(ArtifactError, match="is no plain file"):
            read_bounded(place, 1000)
        with pytest.raises(ConfigError, match="is no anchor"):
            compare_with(place, monkeypatch)
    keys = tmp_path / "keys"
    keys.mkdir()
    monkeypatch.setenv("SCALINGNOTE_TRUSTED_KEYS", str(keys))
    os.mkfifo(keys / "a.pem")
    with pytest.raises(ConfigError, match=r"is no plain file\. Put the file itself there\. Expected a key in PEM form"):
        trusted_keys()
    (keys / "a.pem").unlink()
    sparse(keys / "a.pem", 10**9)
    with pytest.raises(ConfigError, match=r"has 1,000,000,000 bytes.*Expected a key"):
        trusted_keys()


def test_a_store_that_somebody_filled_with_a_million_tags_is_answered_in_a_sentence(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = f"{NAME}-release"
    registry.ensure_model(model)
    client().create_model_version(model, source=str(home), await_creation_for=0)
    with sqlite3.connect(home / "mlflow" / "mlflow.db") as store:
        rows = ((model, 1, f"tag-{number}", "x" * 100, "default") for number in range(5_000))
        store.executemany("INSERT INTO model_version_tags (name, version, key, value, workspace) VALUES (?, ?, ?, ?, ?)", rows)
    assert len(registry.versions(model)[0].tags) >= 5_000
    monkeypatch.setattr(embedded, "MOST_BYTES", 1_000_000)
    with pytest.raises(ArtifactError, match=r"takes more than 1,000,000 bytes, so somebody has filled it with tags"):
        record_store.read_records(NAME)


# --- Fields that stand there twice, and numbers that are none.


def compare_with(path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """`history --anchor PATH` of a retriever with one record."""
    with monkeypatch.context() as patch:
        patch.setattr(record_store, "read_records", lambda name: [{"sequence": 1, "digest": "d" * 64}])
        return compare_anchor(NAME, path)


ANCHORS = {
    "a sequence that is none": '{"digest": "d", "retriever": "retriever", "sequence": NaN}',
    "an infinite one": '{"digest": "d", "retriever": "retriever", "sequence": Infinity}',
    "one beyond all numbers": '{"digest": "d", "retriever": "retriever", "sequence": 1e999}',
    "one that is a word": '{"digest": "d", "retriever": "retriever", "sequence": true}',
    "none": '{"digest": "d", "retriever": "retriever", "sequence": 0}',
    "less than none": '{"digest": "d", "retriever": "retriever", "sequence": -1}',
    "two": '{"digest": "d", "retriever": "retriever", "sequence": 1, "sequence": 2}',
    "two retrievers": '{"digest": "d", "retriever": "other", "retriever": "retriever", "sequence": 1}',
    "nested without an end": "[" * 200_000,
    "half a character": '{"digest": "d", "retriever": "retriever", "sequence": 1, "x": "\udcff"}',
    "too much": " " * 20_000 + '{"digest": "d", "retriever": "retriever", "sequence": 1}',
}


@pytest.mark.parametrize("kind", ANCHORS)
def test_an_anchor_of_another_form_is_refused_and_kept(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "anchor.json"
    path.write_bytes(ANCHORS[kind].encode("utf-8", "surrogateescape"))
    before = path.read_bytes()
    with pytest.raises(ConfigError, match="is no anchor"):
        compare_with(path, monkeypatch)
    assert path.read_bytes() == before


def test_an_anchor_that_is_a_link_is_neither_followed_nor_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, true = tmp_path / "anchor.json", tmp_path / "true.json"
    compare_with(true, monkeypatch)
    path.symlink_to(true)
    with pytest.raises(ConfigError, match="is a link, and whoever may change it chooses"):
        compare_with(path, monkeypatch)
    true.unlink()
    with pytest.raises(ConfigError, match="is a link"):
        compare_with(path, monkeypatch)
    assert path.is_symlink() and not true.exists()


def test_a_field_that_is_given_twice_is_refused_wherever_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "doc.json"
    file.write_text('{"schema_version": 1, "a": {"verdict": "fail", "verdict": "pass"}}')
    with pytest.raises(ArtifactError, match="the field 'verdict' stands there twice"):
        read_json(file)
    assert strict_json(b'{"a": [{"b": 1}, {"b": 2}]}') == {"a": [{"b": 1}, {"b": 2}]}
    policy = tmp_path / "policy.yaml"
    policy.write_text("margin: 0.01\nmargin: 0.5\n")
    monkeypatch.setenv("SCALINGNOTE_POLICY", str(policy))
    with pytest.raises(ConfigError, match="is no policy: the field 'margin' is given twice"):
        local_files()
    users = tmp_path / "users.yaml"
    users.write_text("users:\n  ada: {roles: [auditor]}\n  ada: {roles: [reviewer]}\n")
    with pytest.raises(ConfigError, match="given twice"):
        load_users(users, load_permissions())
    rules = tmp_path / "permissions.yaml"
    rules.write_text("schema_version: 1\nschema_version: 1\n")
    with pytest.raises(ConfigError, match="given twice"):
        load_permissions(rules)
    config = tmp_path / "config.yaml"
    config.write_text("policy: {margin: 0.01}\npolicy: {margin: 0.5}\n")
    with pytest.raises(ConfigError, match="given twice"):
        load_settings(RetrainConfig, file=config)


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_no_gate_asks_for_a_number_that_is_none(number: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every comparison with NaN is false, so a bound of NaN would let everything through, or nothing."""
    taken = []
    for field in PolicyConfig.model_fields:
        try:
            PolicyConfig.model_validate({field: number})
            taken.append(field)
        except ValueError:
            continue
    assert taken == []
    policy = tmp_path / "policy.yaml"
    policy.write_text(yaml.safe_dump({**POLICY.model_dump(mode="json"), "margin": number}))
    monkeypatch.setenv("SCALINGNOTE_POLICY", str(policy))
    with pytest.raises(ConfigError, match=r"policy.yaml"):
        foreign_policy(POLICY.model_dump(mode="json"))


# --- Links.


@pytest.fixture
def part(tmp_path: Path) -> Path:
    make_part(tmp_path / "part", "index")
    return tmp_path / "part"


def outside(place: Path) -> None:
    """Move what lies at `place` elsewhere, and lead there by a link."""
    away = place.parent.parent / f"away-{place.name}"
    place.rename(away)
    place.symlink_to(away)


@pytest.mark.parametrize("which", ["doc_ids.parquet", "manifest.json", ""])
def test_a_link_in_an_artifact_or_in_its_place_is_refused(part: Path, which: str) -> None:
    expected = verify(part).digest
    outside(part / which if which else part)
    for check in (lambda: verify(part, expected), lambda: verify_noted(part, expected, part.parent / "note.json")):
        with pytest.raises(ArtifactError, match="is a link, and what it leads to can change"):
            check()


def test_a_change_through_a_hard_link_is_seen_at_the_next_look(part: Path) -> None:
    note, other = part.parent / "note.json", part.parent / "same.parquet"
    os.link(part / "doc_ids.parquet", other)
    expected = verify_noted(part, None, note).digest
    os.utime(other, (1, 1))  # so that the first look is noted
    assert verify_noted(part, expected, note).digest == expected
    content = other.read_bytes()
    with other.open("r+b") as file:
        file.write(content[:-1] + bytes([content[-1] ^ 1]))
    os.utime(other, (1, 1))
    with pytest.raises(ArtifactError, match="was changed"):
        verify_noted(part, expected, note)


def test_a_folder_of_the_store_that_leads_out_of_it_is_refused(home: Path, tmp_path: Path) -> None:
    root = settings.artifact_root()
    make_part(root / "1" / "models" / "m" / "artifacts" / SEALED_PATH, "index")
    source = root / "1" / "models" / "m" / "artifacts"
    registry.ensure_model("thing")
    client().create_model_version("thing", source=source.as_uri(), await_creation_for=0)
    assert verify(registry.artifact_folder("thing", 1)).kind == "index"
    shutil.move(root / "1", tmp_path / "elsewhere")
    (root / "1").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ArtifactError, match="leads out of the artifact store through a link"):
        registry.artifact_folder("thing", 1)
    (root / "1").unlink()
    shutil.move(root, tmp_path / "disk")
    root.symlink_to(tmp_path / "disk")  # the whole store on another disk is its owner's decision
    shutil.move(tmp_path / "elsewhere", root / "1")
    assert verify(registry.artifact_folder("thing", 1)).kind == "index"


def test_a_trusted_key_is_no_link_out_of_its_folder(home: Path, tmp_path: Path) -> None:
    key = make_key(settings.keys_folder() / "signing.pem")
    public, folder = public_file(key), settings.keys_folder() / "trusted"
    data = folder / "..data"
    data.mkdir()
    public.rename(data / public.name)
    public.symlink_to(f"..data/{public.name}")  # as Kubernetes mounts a secret
    assert set(trusted_keys()) == {key.key_id}
    (data / public.name).rename(tmp_path / "else.pem")
    (data / public.name).symlink_to(tmp_path / "else.pem")
    with pytest.raises(ConfigError, match="is a link out of the folder of trusted keys"):
        trusted_keys()


# --- Letters that look like others.

CYRILLIC_A, CYRILLIC_E, GREEK_O, FULL_A = "\u0430", "\u0435", "\u03bf", "\uff41"


@pytest.mark.parametrize(
    ("name", "other"),
    [
        *(("ada", f"{CYRILLIC_A}d{CYRILLIC_A}"), ("bob", f"b{GREEK_O}b"), ("ada", f"{FULL_A}da"), ("ada", "a\u200bda"), ("ada", "ADA")),
        *(("alice", "a1ice"), ("bob", "b0b"), ("tom", "torn"), ("walt", "VVALT")),
    ],
)
def test_nobody_approves_their_own_work_under_a_name_that_looks_like_theirs(tmp_path: Path, name: str, other: str) -> None:
    assert reads_like(name) == reads_like(other) and reads_like("ada") != reads_like("adam")
    log = tmp_path / "audit.jsonl"
    append_entry(log, {**call(1), "user": name, "subject": {"model": f"{NAME}-candidate", "version": "1"}})
    manifest = type("Manifest", (), {"pins": {}})()
    with pytest.raises(PromotionError, match="nobody approves their own"):
        require_independent(read_audit(log), (f"{NAME}-candidate", 1), manifest, other)
    require_independent(read_audit(log), (f"{NAME}-candidate", 1), manifest, "charles")


def test_the_history_shows_names_that_look_like_those_of_others(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    world = World(MemoryTracking(), tmp_path)
    world.tracking.install(monkeypatch)
    false = f"{CYRILLIC_A.upper()}da"
    for number, who in enumerate(("Ada", "ada", false, "Bob"), 1):
        record = {"action": "promote", "from_version": None, "to_version": number, "candidate_version": 1, "approved_by": who}
        world.tracking.append_record(NAME, {**record, "time": f"2026-01-0{number}T00:00:00+00:00"})
    lines = [line for line in render_history(NAME, history_of(NAME)).splitlines() if RED in line]
    assert lines == [f"     {RED} '{false}' reads like 'Ada' of an earlier record, and is written in another way"]


def test_names_of_users_and_retrievers_are_of_plain_letters(tmp_path: Path) -> None:
    users = tmp_path / "users.yaml"
    users.write_text(f"users: {{r{CYRILLIC_E}viewer: {{roles: [reviewer]}}}}", encoding="utf-8")
    with pytest.raises(ConfigError, match="cannot be a user's name"):
        load_users(users, load_permissions())
    for name in (f"pag{CYRILLIC_E}s", f"{FULL_A}bc", "pages\n", "pages\u200b", "\u00b2", "a" * 61):
        with pytest.raises(ValueError, match="allowed: small letters"):
            settings.checked_retriever_name(name)


def test_a_policy_whose_version_looks_like_an_allowed_one_is_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = POLICY.model_dump(mode="json")
    policy = tmp_path / "policy.yaml"
    policy.write_text(yaml.safe_dump({**own, "version": "a1"}))
    monkeypatch.setenv("SCALINGNOTE_POLICY", str(policy))
    assert foreign_policy({**own, "version": "a1"}) is None
    assert foreign_policy({**own, "version": f"{CYRILLIC_A}1"}) is not None


def test_json_that_is_written_is_read_again(tmp_path: Path) -> None:
    value: dict[str, Any] = {"b": [1, 2.5, None, True], "a": {"\u00e9": "\U0001f7e5"}}
    write_json(tmp_path / "x.json", value)
    assert read_json(tmp_path / "x.json") == value == strict_json(json.dumps(value).encode())
    sealed: Callable[[], object] = lambda: verify(tmp_path, seal(tmp_path, "dataset").digest)  # noqa: E731
    assert sealed()
