"""The rules of the project's own permissions file as a pure function, and files that are refused."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from components.errors import ConfigError
from components.tracking.server.bootstrap import load_users
from components.tracking.server.permissions import PERMISSIONS_FILE, Call, Permissions, load_permissions, refusal

RULES = load_permissions()
CANDIDATE, RELEASE = "r-candidate", "r-release"


class FakeWorld:
    def __init__(self, creator: str | None = "ada", tags: Mapping[str, str] | None = None, models: tuple[str, ...] = ()) -> None:
        self.by, self.held, self.models = creator, tags or {}, models

    def exists(self, model: str) -> bool:
        return model in self.models

    def creator(self, model: str, version: int) -> str | None:
        return self.by if (model, version) == (CANDIDATE, 2) else None

    def tags(self, model: str, version: int) -> Mapping[str, str]:
        return self.held


def asked(
    action: str, roles: str, world: FakeWorld | None = None, user: str = "ben", tags: Mapping[str, str] | None = None, **subject: str
) -> str:
    call = Call(user, tuple(roles.split()), action, subject, tags or {})
    return refusal(call, RULES, world or FakeWorld()) or ""


def copied(roles: str = "reviewer", source: str = f"models:/{CANDIDATE}/2", **options: object) -> str:
    return asked("create_model_version", roles, model=RELEASE, source=source, **options)  # type: ignore[arg-type]


def test_a_reviewer_approves_what_somebody_else_created() -> None:
    assert copied() == ""
    digest = {"scalingnote.digest": "d"}
    assert copied(tags=digest, world=FakeWorld(tags=digest)) == ""
    for tags in ({}, {"scalingnote.digest": "e"}):
        assert "'scalingnote.digest' of r-candidate/2 is not that of this copy" in copied(tags=tags, world=FakeWorld(tags=digest))
    for roles in ("trainer", "promoter", "auditor", "admin", ""):
        assert "may not create a version of r-release; allowed: reviewer" in copied(roles)


def test_nobody_approves_their_own() -> None:
    assert "ben created r-candidate/2 and cannot approve it too" in copied("reviewer trainer", world=FakeWorld("ben"))
    assert "ben created r-candidate/2 and cannot approve it too" in copied("reviewer trainer", world=FakeWorld("Ben"))
    assert "was not created through this server" in copied(world=FakeWorld(None))


@pytest.mark.parametrize(
    "source",
    [
        "models:/other-candidate/2",
        "models:/r-release/1",
        "models:/r-candidate@x",
        "file:///x",
        "models:/m-0a1b",
        "",
        "models:/r-index/2",
    ],
)
def test_a_release_is_a_copy_of_a_candidate_of_its_own_retriever(source: str) -> None:
    assert "can only be a copy of a version of r-candidate" in copied(source=source)


def test_a_rejected_candidate_and_an_approval_tag_at_creation_are_refused() -> None:
    assert "was rejected (too slow)" in copied(world=FakeWorld(tags={"review": "rejected: too slow"}))
    assert "was rejected (slow)" in copied(world=FakeWorld(tags={"scalingnote.rejected": "slow"}))
    assert "cannot be created with the tag 'scalingnote.approved_by'" in copied(tags={"scalingnote.approved_by": "ben"})
    for tag in ("review", "override", "approved_at", "scalingnote.override"):
        refused = asked("create_model_version", "trainer", model=CANDIDATE, source="models:/m-1", tags={tag: "yes"})
        assert f"cannot be created with the tag '{tag}'" in refused
    assert asked("create_model_version", "trainer", model=CANDIDATE, source="models:/m-1", tags={"scalingnote.digest": "d"}) == ""


@pytest.mark.parametrize("source", ["models:/r-candidate/3", "models:/r-index/1", "MODELS:/r-candidate@x", "models:///r-release/2"])
def test_a_candidate_is_no_copy(source: str) -> None:
    assert "cannot be a copy" in asked("create_model_version", "trainer", model=CANDIDATE, source=source)


def test_the_digest_is_sealed_for_everybody() -> None:
    for model in (CANDIDATE, RELEASE, "r-index", "r-query-encoder"):
        for action in ("set_version_tag", "delete_version_tag"):
            assert "nobody may change it" in asked(
                action, "admin reviewer trainer promoter", model=model, version="1", key="scalingnote.digest"
            )
    assert asked("set_version_tag", "trainer", model="something else", version="1", key="scalingnote.digest") == ""


def test_the_alias_of_the_newest_passing_candidate_is_the_trainers_and_no_other_alias() -> None:
    assert asked("set_alias", "trainer", model=CANDIDATE, alias="challenger", version="2") == ""
    for roles, model, alias in (
        ("trainer", CANDIDATE, "champion"),
        ("trainer", CANDIDATE, "Challenger"),
        ("trainer", CANDIDATE, "challenger "),
        ("trainer", CANDIDATE, ""),
        ("trainer", RELEASE, "challenger"),
        ("reviewer", CANDIDATE, "challenger"),
        ("auditor", CANDIDATE, "challenger"),
    ):
        assert "may not set alias" in asked("set_alias", roles, model=model, alias=alias, version="2")
    assert "may not delete alias" in asked("delete_alias", "trainer", model=CANDIDATE, alias="challenger")


def test_what_has_no_rule_of_its_own() -> None:
    for roles, may in (("promoter", True), ("admin", True), ("reviewer", False), ("trainer", False)):
        assert (asked("a_route_of_tomorrow", roles, model=RELEASE) == "") is may
    assert asked("transition_stage", "reviewer trainer", model=CANDIDATE, version="1")
    assert asked("create_run", "trainer", experiment="my-index") == ""  # experiments of a retriever may end like a model
    assert asked("delete_version", "trainer", model="r-index", version="1")


@pytest.mark.parametrize("name", ["r-RELEASE", "r-release ", " r-Candidate"])
def test_names_that_a_database_may_take_for_another(name: str) -> None:
    assert "but for capitals or spaces" in asked("set_alias", "trainer admin", model=name, alias="champion", version="1")
    assert "but for capitals or spaces" in asked("rename_registered_model", "admin", model="x", new_name=name)


def test_who_has_reading_roles_alone_changes_nothing() -> None:
    assert "ben (auditor) may read and change nothing" in asked("create_experiment", "auditor", experiment="x")
    assert asked("update_user_password", "auditor", username="ben") == ""
    for roles in ("", "trainer", "auditor trainer", "a role of somebody else"):
        assert asked("create_experiment", roles, experiment="x") == ""


@pytest.mark.parametrize("action", ["set_alias", "delete_alias"])
def test_only_the_promoter_moves_aliases(action: str) -> None:
    for roles, may in (("promoter", True), ("admin", True), ("reviewer", False), ("trainer", False), ("auditor", False)):
        assert (asked(action, roles, model=RELEASE, alias="champion", version="1") == "") is may


def test_verdicts_are_the_reviewers() -> None:
    for model in (RELEASE, CANDIDATE):
        for tag in ("review", "override", "scalingnote.override", "rejected"):
            assert asked("set_version_tag", "reviewer", model=model, version="1", key=tag, value="x") == ""
            for roles in ("trainer", "promoter", "admin", "auditor"):
                assert "allowed: reviewer" in asked("set_version_tag", roles, model=model, version="1", key=tag, value="x")
                assert "allowed: reviewer" in asked("delete_version_tag", roles, model=model, version="1", key=tag)
    assert asked("set_version_tag", "promoter", model=RELEASE, version="1", key="scalingnote.promoted_at", value="x") == ""
    assert asked("set_version_tag", "reviewer", model=RELEASE, version="1", key="scalingnote.promoted_at", value="x")
    assert asked("set_version_tag", "reviewer", model=RELEASE, version="1", key="scalingnote.approved_by", value="ben") == ""
    assert "must name the person who is signed in: ben" in asked(
        "set_version_tag", "reviewer", model=RELEASE, key="approved_by", value="ada"
    )


def test_evidence_is_deleted_by_nobody() -> None:
    for action in ("delete_version", "delete_registered_model", "rename_registered_model", "transition_stage"):
        assert "nobody may" in asked(action, "admin reviewer promoter trainer", model=RELEASE, version="1")
    assert "nobody may" in asked("rename_registered_model", "admin", model="x", new_name=RELEASE)
    assert asked("delete_run", "promoter", experiment="r-promotions", run="1")
    assert asked("log_param", "trainer", experiment="r-promotions", run="1")
    assert asked("log_param", "promoter", experiment="r-promotions", run="1") == ""
    assert "nobody may" in asked("update_experiment", "promoter", experiment="r", new_name="r-promotions")


def test_models_are_made_by_the_administrator_and_made_sure_of_by_all() -> None:
    assert "made by the administrator" in asked("create_registered_model", "trainer", model=CANDIDATE)
    assert asked("create_registered_model", "trainer", FakeWorld(models=(CANDIDATE,)), model=CANDIDATE) == ""
    assert asked("create_registered_model", "trainer", model="something else") == ""


def changed(path: Path, **changes: object) -> Path:
    path.write_text(yaml.safe_dump({**yaml.safe_load(PERMISSIONS_FILE.read_text()), **changes}))
    return path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"colour": "red"}, "unknown field 'colour'"),
        ({"roles": {"trainer": {"description": "x", "powers": []}}}, "unknown field 'roles.trainer.powers'"),
        ({"roles": {"trainer": {"description": "x", "grants": [{"resource": "moon", "name": "*", "permission": "EDIT"}]}}}, "resource"),
        ({"rules": {"-release": {"set_alias": ["chief"]}}}, "unknown role 'chief'; known: admin, auditor, promoter, reviewer, trainer"),
        ({"schema_version": 2}, "schema_version: Input should be 1"),
        ({"roles": {}}, "roles"),
    ],
)
def test_a_permissions_file_with_a_mistake_names_it(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_permissions(changed(tmp_path / "permissions.yaml", **changes))


def test_a_permissions_file_that_is_missing_or_no_yaml(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is missing"):
        load_permissions(tmp_path / "none.yaml")
    (tmp_path / "bad.yaml").write_text("roles: [")
    with pytest.raises(ConfigError, match="is not YAML"):
        load_permissions(tmp_path / "bad.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("users: {ada: {roles: [chief]}}", "ada: unknown role 'chief'"),
        ("users: {ada: {roles: [trainer], password: secret}}", "unknown field 'users.ada.password'"),
        ("users: {ada: {roles: []}}", "users.ada.roles"),
        ("users: {admin: {roles: [trainer]}}", "'admin' cannot be a user's name"),
        ("users: {'a/../b': {roles: [trainer]}}", "cannot be a user's name"),
        ("users: {ada: trainer}", "users.ada: expected fields with values .*, got 'trainer'"),
        ("", "expected fields with values .*, got None"),
        ("people: {}", "unknown field 'people'|users: Field required"),
    ],
)
def test_a_users_file_with_a_mistake_names_it(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "users.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_users(tmp_path / "users.yaml", RULES)


def test_without_a_users_file_each_role_gets_one() -> None:
    assert {name: user.roles for name, user in load_users(None, RULES).users.items()} == {role: (role,) for role in RULES.roles}


def test_each_rule_names_a_role_that_can_do_it() -> None:
    assert isinstance(RULES, Permissions)
    for role in ("trainer", "reviewer", "promoter", "auditor"):
        assert RULES.roles[role].description
    assert not RULES.roles["trainer"].reads_audit and RULES.roles["auditor"].reads_audit


def test_a_tilde_in_the_variable_of_the_permissions_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of variables is read by no shell, which would put it in its place."""
    (tmp_path / "rules.yaml").write_bytes(PERMISSIONS_FILE.read_bytes())
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SCALINGNOTE_PERMISSIONS", "~/rules.yaml")
    assert load_permissions() == RULES


def test_an_experiment_that_was_asked_for_before_it_was_made_has_rules_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Numbers of experiments can be guessed: whoever asked first had the rules of the records overlooked until the server's next start."""
    from mlflow.exceptions import MlflowException
    from mlflow.server import handlers

    from components.tracking.server.plugin import ServerStores

    made: list[str] = []

    class Store:
        def get_experiment(self, number: str) -> SimpleNamespace:
            if number not in made:
                raise MlflowException("no such experiment")
            return SimpleNamespace(name="r-promotions")

    monkeypatch.setattr(handlers, "_get_tracking_store", Store)
    world = ServerStores(tmp_path / "audit.jsonl")
    assert world.complete({"experiment_id": "57000"}) == {"experiment_id": "57000"}
    made.append("57000")
    subject = world.complete({"experiment_id": "57000", "key": "scalingnote.chain_run_id"})
    assert subject["experiment"] == "r-promotions"
    assert refusal(Call("ada", ("promoter",), "set_experiment_tag", subject), RULES, FakeWorld()) is not None
