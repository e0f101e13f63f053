"""Forged promotion records, and the way back from them: a trusted key strikes them out, and nobody else can."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from components import settings
from components.artifacts import digest_of
from components.errors import ArtifactError, ConfigError, PromotionError
from components.lineage.graph import follow
from components.lineage.standards import cyclonedx_of, openlineage_of
from components.promotion.approval import approve
from components.promotion.promote import promote, rollback
from components.promotion.record import rotate, sign_afterwards, strike
from components.promotion.status import status_of
from components.promotion.verification import verify_folder, verify_release
from components.release.champion import RED, expected_aliases, servable_release, standing
from components.serving.loader import require_signed
from components.signing.keys import KEY_VARIABLE, load_signing_key, make_key, public_file
from components.signing.statements import record_signer, signed_by
from components.tracking import embedded, registry
from components.tracking import promotion_records as record_store
from components.tracking.promotion_records import struck_out
from components.tracking.store import clear_caches, client
from tests.flows.cli_world import assert_refused, at_home, scalingnote
from tests.openlineage_world import problems_of
from tests.unit.lineage.test_lineage_trace_exports import require_valid
from tests.unit.promotion_world import GOOD, NAME, Killed, into_mlflow, make_candidate, no_smoke

WHO = ("--as", "Ada", "--reason", "nobody promoted it")
FORGED = {
    "action": "promote",
    "from_version": 1,
    "to_version": 2,
    "candidate_version": 2,
    "approved_by": "Ada",
    "manifest_digest": "0" * 64,
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, mlflow_template: Path) -> Path:
    """A home where release/1 is champion, promoted with a key that is trusted; candidate/2 is approved and signed as release/2."""
    folder = tmp_path_factory.mktemp("made")
    with at_home(folder / "home", mlflow_template) as home:
        make_key(settings.keys_folder() / "signing.pem")
        register = into_mlflow()
        for number in (1, 2):
            make_candidate(folder / str(number), register, {**GOOD, "student": 0.70 + number / 1000})
            approve(NAME, number, "Ada")
            sign_afterwards(NAME, f"release/{number}")
            if number == 1:
                promote(NAME, no_smoke)
    return home


@pytest.fixture
def champion(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of that home for one test."""
    home = tmp_path / "home"
    shutil.copytree(made, home)
    monkeypatch.setenv("SCALINGNOTE_HOME", str(home))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{home}/mlflow/mlflow.db")
    clear_caches()
    yield home
    clear_caches()


def forge(changes: dict[str, Any] | None = None, sign: record_store.Signer | None = None) -> None:
    record_store.append_record(NAME, {**FORGED, **(changes or {})}, sign)


def foreign_signer(folder: Path) -> record_store.Signer:
    """Signs with a key that nobody trusts."""
    key = make_key(folder / "foreign.pem")
    with pytest.MonkeyPatch.context() as elsewhere:
        elsewhere.setenv(KEY_VARIABLE, str(key.path))
        elsewhere.setenv("SCALINGNOTE_TRUSTED_KEYS", str(public_file(key)))
        sign = record_signer()
    assert sign is not None
    return sign


def served() -> int:
    require_signed(record_store.read_records(NAME), "champion")
    return servable_release(NAME).version


def holds() -> bool:
    return all(check.ok for check in verify_release(NAME, "champion"))


FORGERIES: dict[str, dict[str, Any]] = {
    "a promotion": {},
    "a rollback to where nothing stood": {"action": "rollback", "to_version": 7},
    "a record of no form": {"action": "seize", "to_version": "two"},
    "a record without a target": {"to_version": None},
    "a record with a signature that is none": {"note": {"payload": 1}},
    "a record that rests on an audit log": {"audit_sequence": "x", "audit_digest": "0" * 64},
    "a vouch for another release": {"action": "vouch"},
    "a strike of what was signed": {"action": "strike", "struck": {"1": "0" * 64}},
    "a strike without a form": {"action": "strike", "struck": ["all"], "to_version": None},
}


@pytest.mark.parametrize("kind", FORGERIES)
def test_a_forged_record_is_struck_out_and_all_goes_on_as_before_it(champion: Path, kind: str) -> None:
    signed = {"signatures": "none"} if "signature" in kind else None
    forge(FORGERIES[kind], (lambda record: signed) if signed else None)
    with pytest.raises((ArtifactError, PromotionError)):
        served()
    with pytest.raises((ArtifactError, PromotionError), match="history --strike 2"):
        promote(NAME, no_smoke)
    told = scalingnote("history", "--strike", "2", *WHO, "--name", NAME)
    assert told.status == 0 and "Struck out by record 3" in told.out and "release/1 is champion" in told.out, told
    assert served() == 1 and holds() and status_of(NAME)["alarm"] is None
    assert promote(NAME, no_smoke).to_version == 2  # what was approved still waits
    assert rollback(NAME, "Bob", "slow").to_version == 1 and served() == 1 and holds()


def test_what_was_struck_out_is_shown_in_red_ever_after(champion: Path) -> None:
    forge()
    strike(NAME, 2, "Ada", "nobody promoted it")
    promote(NAME, no_smoke)
    lines = scalingnote("history", "--name", NAME).out.splitlines()
    place = next(number for number, line in enumerate(lines) if line.startswith("  2  "))
    assert lines[place + 2] == f"     {RED} STRUCK OUT by record 3: this record counts no more"
    assert any(line.startswith(f"     {RED} STRIKES OUT record 2 as forged; signed by ") for line in lines)
    assert "     reason: nobody promoted it" in lines
    entries = scalingnote("history", "--name", NAME, "--json").result["history"]
    assert [entry["struck_by"] for entry in entries] == [None, 3, None, None]
    found = follow(NAME, "release/2")
    assert "struck_out_by" in found.text()
    assert problems_of(openlineage_of(found)) == []
    require_valid(cyclonedx_of(found))


def test_the_bill_of_materials_says_of_a_record_that_it_was_struck_out_and_names_no_key_that_nobody_trusts(
    champion: Path, tmp_path: Path
) -> None:
    """It stood there as a promotion like any other, in a document that the trusted key signs, and the forger's key as a control."""
    forge(sign=foreign_signer(tmp_path))
    foreign = signed_by(record_store.read_records(NAME)[-1])[0][:16]
    strike(NAME, 2, "Ada", "nobody promoted it")
    promote(NAME, no_smoke)
    bill = cyclonedx_of(follow(NAME, "release/2"))
    acts = [note["text"].partition(";")[0] for note in bill["annotations"]]
    assert [act for act in acts if "promote" in act] == [
        "STRUCK OUT by record 3, this counts no more: promote: action promote",
        "promote: action promote",
    ]
    controls = next(p["value"] for p in bill["metadata"]["component"]["properties"] if p["name"].endswith("security_controls"))
    own = load_signing_key()
    assert own is not None and f"records signed by {own.key_id[:16]};" in f"{controls};" and foreign not in controls
    require_valid(bill)


def test_a_chain_with_a_strike_verifies_from_its_files_alone(champion: Path) -> None:
    forge()
    strike(NAME, 2, "Ada", "forged")
    checks = {check.name: check for check in verify_folder(NAME, settings.artifact_root())}
    assert checks["signed records"].ok and checks["promotion record"].ok and "record 1 of 3" in checks["promotion record"].detail


def claim(number: int, content: bytes | None, digest: str | None = None, value: str = "") -> None:
    """Take a place of the chain by plain calls of MLflow, with any file or none behind it."""
    chain = record_store.open_chain(f"{NAME}-promotions")
    assert chain is not None
    run = client().create_run(chain.experiment).info.run_id
    if content is not None:
        file = settings.home() / "record.json"
        file.write_bytes(content)
        client().log_artifact(run, str(file))
    client().log_param(chain.run_id, f"record-{number:06d}", value or f"{run}:{digest or hashlib.sha256(content or b'').hexdigest()}")


def as_written(**changes: Any) -> tuple[bytes, str]:
    """The file of a record 2 that follows record 1, and the digest of what it says."""
    content = {**FORGED, "sequence": 2, "previous": numbered()[1]["digest"], "retriever": NAME, **changes}
    digest = digest_of(content)
    return json.dumps({**content, "digest": digest}, indent=2).encode(), digest


UNREADABLE: dict[str, Callable[[], None]] = {
    "a claim that is none": lambda: claim(2, None, value="mine"),
    "a claim without a file": lambda: claim(2, None),
    "a file that is no record": lambda: claim(2, b"\xff"),
    "a file of another digest": lambda: claim(2, as_written()[0]),
    "a field that stands there twice": lambda: claim(2, as_written()[0].replace(b"{", b'{\n  "to_version": 1,', 1), as_written()[1]),
    "a number that is none": lambda: claim(2, *as_written(override_by=float("nan"))),
    "an infinite number": lambda: claim(2, *as_written(to_version=float("inf"))),
    "half a character": lambda: claim(2, as_written(reason="?")[0].replace(b'"?"', b'"\\ud800"')),
    "a place that is another's": lambda: claim(2, *as_written(previous="0" * 64)),
    "a file too large to read": lambda: claim(2, b'"' + b"x" * record_store.MOST_BYTES + b'"'),
}


@pytest.mark.parametrize("kind", UNREADABLE)
def test_a_claim_that_nobody_can_read_is_struck_out_too(champion: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    UNREADABLE[kind]()
    with pytest.raises(ArtifactError, match=r"history --strike 2"):
        served()
    assert_refused(scalingnote("history", "--name", NAME), 6, "--strike 2")
    forge_after_it()
    done = strike(NAME, 2, "Ada", "nobody can read it")
    assert done.struck == [2, 3] and served() == 1
    assert "STRUCK OUT by record 4" in scalingnote("history", "--name", NAME).out
    by_view = record_store.read_records(NAME)
    assert [record["sequence"] for record in record_store.read_record_files(settings.artifact_root(), NAME)] == [1, 2, 3, 4]
    with monkeypatch.context() as patch:
        patch.setattr(embedded, "KNOWN_SCHEMAS", frozenset())
        patch.setattr(record_store, "local_path", lambda location: None)
        assert [record["digest"] for record in record_store.read_records(NAME)] == [record["digest"] for record in by_view]
    assert promote(NAME, no_smoke).to_version == 2 and served() == 2 and holds()


def forge_after_it() -> None:
    """One more forged record, which follows the claim that nobody can read."""
    chain = record_store.open_chain(f"{NAME}-promotions")
    assert chain is not None
    content = {**FORGED, "sequence": 3, "previous": chain.places()[1][1], "retriever": NAME}
    digest = digest_of(content)
    claim(3, json.dumps({**content, "digest": digest}, indent=2).encode(), digest)


def test_a_true_record_whose_file_is_gone_is_not_struck_out(champion: Path) -> None:
    promote(NAME, no_smoke)
    chain = record_store.open_chain(f"{NAME}-promotions")
    assert chain is not None
    run, _ = chain.places()[1]
    (settings.artifact_root() / f"{NAME}-promotions" / run / "artifacts" / "record.json").unlink()
    with pytest.raises(PromotionError, match=r"release/2 names it, or one that came after it, as the head of the chain"):
        strike(NAME, 2, "Eve", "it never was")
    with pytest.raises(ArtifactError, match=r"the file of promotion record 2 cannot be read"):
        served()


def test_all_after_the_first_forged_record_goes_with_it(champion: Path, tmp_path: Path) -> None:
    for sign in (None, foreign_signer(tmp_path), None):
        forge(sign=sign)
    done = strike(NAME, 2, "Ada", "three of them")
    assert (done.sequence, done.struck, done.vouched, done.champion) == (5, [2, 3, 4], [], 1)
    assert served() == 1 and holds()
    forge()  # and again
    assert strike(NAME, 6, "Ada", "one more").struck == [6]
    assert served() == 1 and promote(NAME, no_smoke).to_version == 2


def test_a_strike_by_nobody_or_by_a_foreign_key_serves_nothing_and_is_struck_out(champion: Path, tmp_path: Path) -> None:
    promote(NAME, no_smoke)
    digest = record_store.read_records(NAME)[1]["digest"]
    false = {"action": "strike", "to_version": 1, "struck": {"2": digest}, "keeps": kept(1), "reason": "release/2 was forged"}
    for number, sign in ((3, None), (5, foreign_signer(tmp_path))):
        forge(false if number == 3 else {**false, "struck": {str(n): r["digest"] for n, r in numbered().items() if n > 1}}, sign)
        for use in (served, lambda: promote(NAME, no_smoke), lambda: rollback(NAME, "Bob", "slow"), rotate):
            with pytest.raises((ArtifactError, PromotionError), match=f"record {number}"):
                use()
        with pytest.raises((ArtifactError, PromotionError)):
            sign_afterwards(NAME, "champion")  # no signature for all makes it right unseen
        assert not holds() and "not served" in str(status_of(NAME)["alarm"])
        strike(NAME, number, "Ada", "a false strike")
        assert served() == 2 and holds()


def kept(number: int) -> dict[str, Any]:
    return {"sequence": number, "digest": numbered()[number]["digest"]}


def numbered() -> dict[int, dict[str, Any]]:
    return {record["sequence"]: record for record in record_store.read_records(NAME)}


def test_what_a_trusted_key_signed_is_never_struck_out(champion: Path) -> None:
    promote(NAME, no_smoke)
    for number in (1, 2):
        with pytest.raises(PromotionError, match=r"is signed by the trusted key.*rollback"):
            strike(NAME, number, "Ada", "I do not like it")
    sign = record_signer()
    content = {"action": "strike", "to_version": 1, "struck": {"2": numbered()[2]["digest"]}, "keeps": kept(1), "reason": "by another"}
    record_store.append_record(NAME, content, sign)
    for use in (served, lambda: promote(NAME, no_smoke)):
        with pytest.raises((ArtifactError, PromotionError), match="strikes out record 2, which the trusted key"):
            use()


def test_without_a_trusted_key_nothing_is_struck_out(champion: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forge()
    with monkeypatch.context() as patch:
        patch.setenv(KEY_VARIABLE, str(make_key(tmp_path / "foreign.pem").path))
        with pytest.raises(ConfigError, match="is not among the trusted keys"):
            strike(NAME, 2, "Ada", "forged")
    (settings.keys_folder() / "signing.pem").rename(tmp_path / "away.pem")
    with pytest.raises(ConfigError, match="there is no signing key"):
        strike(NAME, 2, "Ada", "forged")
    (settings.keys_folder() / "trusted").rename(tmp_path / "trusted")
    with pytest.raises(ConfigError, match="Only a key that is trusted here"):
        strike(NAME, 2, "Ada", "forged")
    assert len(record_store.read_records(NAME)) == 2


def test_readers_without_trusted_keys_follow_a_strike_only_if_it_is_signed(champion: Path, tmp_path: Path) -> None:
    forge()
    strike(NAME, 2, "Ada", "forged")
    (settings.keys_folder() / "trusted").rename(tmp_path / "trusted")
    assert served() == 1 and holds()
    forge({"action": "strike", "to_version": None, "struck": {str(n): r["digest"] for n, r in numbered().items()}})
    with pytest.raises(ArtifactError, match="record 4 strikes out others and is not signed, so it was forged"):
        served()


@pytest.mark.parametrize("kind", ["a promotion", "a record of no form"])
def test_a_strike_that_was_killed_before_the_aliases_followed_serves_and_is_finished(
    champion: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    forge(FORGERIES[kind])
    registry.set_alias(f"{NAME}-release", "champion", 2)

    def killed(name: str) -> None:
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr("components.promotion.record.settle_aliases", killed)
        strike(NAME, 2, "Ada", "forged")
    assert served() == 1 and "The alias 'champion' points at release/2" in str(servable_release(NAME).alarm)
    with pytest.raises(PromotionError, match="has no promotion record 9"):
        strike(NAME, 9, "Ada", "forged")
    assert promote(NAME, no_smoke).to_version == 2 and registry.alias(f"{NAME}-release", "previous") == 1 and holds()


def test_a_rotation_and_a_first_record_that_was_forged_leave_a_way_on(champion: Path) -> None:
    forge()
    strike(NAME, 2, "Ada", "forged")
    rotate()
    assert served() == 1 and holds()
    assert promote(NAME, no_smoke).to_version == 2 and served() == 2 and holds()


def test_where_all_records_were_forged_nothing_is_champion_and_the_next_promotion_is_the_first(home: Path, tmp_path: Path) -> None:
    register = into_mlflow()
    make_candidate(tmp_path / "1", register)
    approve(NAME, 1, "Ada")
    forge({"from_version": None, "to_version": 1})
    make_key(settings.keys_folder() / "signing.pem")
    told = scalingnote("history", "--strike", "1", *WHO, "--name", NAME)
    assert told.status == 0 and "nothing is champion" in told.out, told
    assert expected_aliases(record_store.read_records(NAME)) == (None, None)
    assert registry.alias(f"{NAME}-release", "champion") is None
    assert scalingnote("status", "--name", NAME).status == 0
    rotate()
    assert_refused(scalingnote("search", "heart", "--name", NAME), 7, "No release")
    sign_afterwards(NAME, "release/1")
    assert promote(NAME, no_smoke).to_version == 1 and served() == 1 and holds()


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (("--strike", "2"), 7, "--as NAME and --reason"),
        (("--strike", "2", "--as", "Ada", "--reason", " "), 7, "--as NAME and --reason"),
        (("--strike", "9", *WHO), 7, "has no promotion record 9; there are 2"),
        (("--strike", "0", *WHO), 2, "expected a whole number"),
        (("--strike", "two", *WHO), 2, "expected a whole number"),
        (WHO, 2, "give --strike N with them"),
        (("--strike", "2", *WHO, "--anchor", "a.json"), 2, "run one after the other"),
    ],
)
def test_a_strike_that_is_not_meant_changes_nothing(champion: Path, words: tuple[str, ...], status: int, said: str) -> None:
    forge()
    assert_refused(scalingnote("history", *words, "--name", NAME), status, said)
    assert len(record_store.read_records(NAME)) == 2


def test_a_strike_that_names_what_is_not_there_or_leaves_something_out_counts_for_nothing() -> None:
    records = [{"sequence": n, "digest": str(n), "action": "promote", "to_version": n} for n in (1, 2, 3)]

    def struck(**named: str) -> list[dict[str, Any]]:
        keeps = {"sequence": 3 - len(named), "digest": str(3 - len(named))}
        strike = {"sequence": 4, "digest": "4", "action": "strike", "struck": {k[1:]: v for k, v in named.items()}, "keeps": keeps}
        return [*records, strike]

    assert [record["sequence"] for record in standing(struck(n2="2", n3="3"))] == [1]
    assert [record["sequence"] for record in standing(struck(n3="3"))] == [1, 2]
    wrong: list[Callable[[], object]] = [
        lambda: struck_out(struck()),
        lambda: struck_out(struck(n2="2")),
        lambda: struck_out(struck(n3="2")),
        lambda: struck_out(struck(n3="3", n4="4")),
        lambda: struck_out(struck(n0="0", n1="1", n2="2", n3="3")),
        lambda: struck_out([*records, {**struck(n3="3")[-1], "keeps": None}]),
        lambda: struck_out([*records, {**struck(n3="3")[-1], "keeps": {"sequence": 2, "digest": "3"}}]),
    ]
    for attempt in wrong:
        with pytest.raises(ArtifactError, match="record 4 strikes out other records than stand before it"):
            attempt()


def test_a_strike_that_was_killed_is_finished_by_the_same_command(champion: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was told that the record to strike out, its own, is signed by a trusted key."""
    forge()
    client().set_registered_model_alias(f"{NAME}-release", "champion", "2")

    def killed(_: str) -> None:
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr("components.promotion.record.settle_aliases", killed)
        strike(NAME, 2, "Ada", "nobody promoted it")
    assert registry.alias(f"{NAME}-release", "champion") == 2
    done = strike(NAME, 2, "Ada", "nobody promoted it")
    assert (done.sequence, done.struck, done.champion, len(record_store.read_records(NAME))) == (3, [2], 1, 3)
    assert registry.alias(f"{NAME}-release", "champion") == 1
