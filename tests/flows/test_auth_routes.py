"""Every route of the installed MLflow server is logged when it can change something, and no way of writing a call gets round the rules."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from components.tracking import audit_log as audit
from components.tracking.server.calls import READING, SAFE_METHODS
from tests.auth_world import AuthServer, auth_server
from tests.flows.server_routes import Route, server_routes

pytestmark = pytest.mark.server
CANDIDATE, RELEASE = "retriever-candidate", "retriever-release"
DIGEST = "scalingnote.digest"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, mlflow_template: Path) -> Iterator[AuthServer]:
    with auth_server(tmp_path_factory.mktemp("auth"), mlflow_template) as running:
        yield running


@pytest.fixture(scope="module")
def routes(tmp_path_factory: pytest.TempPathFactory) -> list[Route]:
    return server_routes(tmp_path_factory.mktemp("routes"))


@pytest.fixture
def log(server: AuthServer) -> Path:
    return server.home / "mlflow" / "audit.jsonl"


def newest(log: Path) -> dict[str, Any]:
    return dict(json.loads(log.read_bytes().splitlines()[-1]))


def test_every_route_that_can_change_something_is_logged(server: AuthServer, routes: list[Route], log: Path) -> None:
    """With a body that no route takes, so that nothing is changed: the log does not wait for success."""
    bodies = {"graphql": {"query": "mutation { noSuchThing }"}}
    asked = [route for route in routes if route.method not in SAFE_METHODS]
    assert len(asked) > 250 and sum(route.native for route in asked) > 40
    missed = []
    for route in asked:
        for user in (None, "trainer"):
            before = newest(log)["sequence"]
            status, _ = server.call(route.method, route.example, bodies.get(route.action, ["nothing"]), user)
            entry = newest(log)
            logged = entry["sequence"] == before + 1 and (entry["user"], entry["method"], entry["path"], entry["status"]) == (
                user,
                route.method,
                route.example,
                status,
            )
            silent = entry["sequence"] == before and route.action in READING
            if not (logged or silent):
                missed.append((route, user, status, entry))
    assert missed == []
    assert audit.read_audit(log)


def test_the_list_of_views_that_only_read_is_of_views_that_exist(routes: list[Route]) -> None:
    assert {route.action for route in routes if route.method not in SAFE_METHODS} >= READING


def test_what_is_asked_with_get_only_reads(routes: list[Route]) -> None:
    """A view that changes something would not be logged. Look at a new name here before it is added."""
    reading = ("get_", "list_", "search_", "batch_get_", "download_", "deprecated_get_", "deprecated_search_", "static")
    known = {"artifacts", "gateway_proxy", "graphql", "health", "model_version_artifact", "not_implemented"}
    known |= {"scalingnote_audit", "scalingnote_audit_state", "scalingnote_policies"}
    known |= {"serve", "signup", "version", "stream_response", "provider_health_check", "health_check"}
    asked = {route.action for route in routes if route.method == "GET"}
    assert {action for action in asked if not action.startswith(reading)} - known == set()


def experiment(server: AuthServer, name: str = "retriever") -> str:
    _, found = server.call("GET", f"experiments/get-by-name?experiment_name={name}", user="auditor")
    return str(found["experiment"]["experiment_id"])


def chain_run(server: AuthServer) -> str:
    _, found = server.call("GET", "experiments/get-by-name?experiment_name=retriever-promotions", user="auditor")
    return next(str(tag["value"]) for tag in found["experiment"]["tags"] if tag["key"] == "scalingnote.chain_run_id")


def new_run(server: AuthServer, user: str = "trainer") -> str:
    status, made = server.call("POST", "runs/create", {"experiment_id": experiment(server)}, user)
    assert status == 200, made
    return str(made["run"]["info"]["run_id"])


def new_candidate(server: AuthServer, user: str = "trainer", digest: str = "d") -> str:
    run = new_run(server, user)
    uri = server.call("GET", f"runs/get?run_id={run}", user=user)[1]["run"]["info"]["artifact_uri"]
    body = {"name": CANDIDATE, "source": uri, "run_id": run, "tags": [{"key": DIGEST, "value": digest}]}
    status, made = server.call("POST", "model-versions/create", body, user)
    assert status == 200, made
    return str(made["model_version"]["version"])


def refused(answer: tuple[int, Any], status: int, words: str) -> None:
    assert answer[0] == status and words in answer[1]["message"], answer


def test_a_run_that_is_named_twice(server: AuthServer, log: Path) -> None:
    """MLflow looks at the permission of one and acts on the other."""
    chain, own = chain_run(server), new_run(server)
    for names in ({"run_id": chain, "run_uuid": own}, {"runId": chain, "run_uuid": own}, {"runId": chain, "run_id": own}):
        body = {**names, "key": "record-000001", "value": "x"}
        refused(server.call("POST", "runs/log-parameter", body, "trainer"), 400, "twice with different values")
    one = server.call("POST", "runs/log-parameter", {"runId": chain, "key": "record-000001", "value": "x"}, "trainer")
    assert one[0] in (400, 403)
    query = f"/ajax-api/2.0/mlflow/upload-artifact?run_id={own}&run_uuid={chain}&path=x.txt"
    refused(server.call("POST", query, ["x"], "trainer"), 400, "twice with different values")
    for address in (f"run_uuid={chain}", f"run_uuid={chain}&run_uuid={chain}"):
        answer = server.call("POST", f"/ajax-api/2.0/mlflow/upload-artifact?{address}&path=x.txt", {"run_uuid": own}, "trainer")
        refused(answer, 403, "may not upload artifact")
    entry = newest(log)
    assert (entry["action"], entry["subject"]["run"], entry["subject"]["artifact"]) == ("upload_artifact", chain, "x.txt")
    status, _ = server.call("POST", f"/ajax-api/2.0/mlflow/upload-artifact?run_uuid={own}&path=x.txt", {"run_uuid": chain}, "trainer")
    assert (status, newest(log)["outcome"], newest(log)["subject"]["run"]) == (200, "ok", own)
    status, found = server.call("GET", f"runs/get?run_id={chain}", user="auditor")
    assert "params" not in found["run"]["data"]


def test_a_model_that_is_named_in_the_address_and_otherwise_in_the_body(server: AuthServer, log: Path) -> None:
    assert server.call("POST", "registered-models/create", {"name": "mine"}, "trainer")[0] == 200
    assert new_candidate(server)
    for call in (
        ("model-versions/delete", {"version": "1"}),
        ("registered-models/alias", {"alias": "champion"}),
        ("registered-models/delete", {}),
    ):
        path, fields = call
        query = "&".join(f"{key}={value}" for key, value in {"name": "mine", **fields}.items())
        for kind in ("text/plain", "application/json"):
            status, answer = server.call("DELETE", f"{path}?{query}", {"name": "retriever-index", **fields}, "trainer", content_type=kind)
            assert status in (400, 403), answer
        assert server.call("DELETE", path, {"name": RELEASE, **fields}, "trainer", content_type="text/plain")[0] in (400, 403)
    assert newest(log)["user"] == "trainer"


def test_other_ways_to_write_a_path(server: AuthServer, log: Path) -> None:
    """Of an alias on the release, by one who may not set it: never carried out, and never logged as if it were."""
    body = {"name": CANDIDATE, "version": "1", "alias": "champion", "resource_type": "registered_model", "resource_id": CANDIDATE}
    for path in (
        "/api/2.0/mlflow/registered-models/alias/",
        "/api/2.0/mlflow//registered-models/alias",
        "//api/2.0/mlflow/registered-models/alias",
        "/api/2.0/mlflow/registered-models/./alias",
        "/API/2.0/mlflow/registered-models/alias",
        "/api/2.0/mlflow/registered-models/ALIAS",
        "/api/2.0/mlflow/registered-models/alias;x",
        "/health/../api/2.0/mlflow/registered-models/alias",
        "/static-files/../api/2.0/mlflow/registered-models/alias",
        "/api/2.0/mlflow/registered-models%2falias",
        "/api/2.0/mlflow/x//create_model_version",
        "/api/2.0/mlflow//webhooks/create_model_version",
        "/api/2.0/mlflow/registered-models/%61lias",
    ):
        for method in ("POST", "PUT", "PATCH", "DELETE"):
            before = newest(log)["sequence"]
            status, _ = server.call(method, path, body, "trainer")
            entry = newest(log)
            assert status >= 300 and entry["sequence"] == before + 1, (method, path, status)
            asks = not path.startswith(("/health", "/static"))  # where MLflow asks nobody to sign in
            assert (entry["user"], entry["status"]) == ("trainer" if asks else None, status) and entry["outcome"] != "ok", (method, path)
    assert server.call("GET", f"registered-models/get?name={CANDIDATE}", user="auditor")[1]["registered_model"].get("aliases", []) == []


def test_a_mutation_in_a_get_is_refused(server: AuthServer) -> None:
    mutation = {"query": 'mutation { testMutation(inputString: "x") { output } }'}
    refused(server.call("GET", "/graphql", mutation, "trainer"), 405, "with POST")
    assert server.call("GET", "/graphql", {"query": 'query { test(inputString: "x") { output } }'}, "trainer")[0] == 200


def test_an_artifact_may_be_called_search_and_is_logged(server: AuthServer, log: Path) -> None:
    path = f"/api/2.0/mlflow-artifacts/artifacts/{experiment(server)}/x/artifacts/search"
    for user in ("trainer", "auditor"):
        status, _ = server.call("PUT", path, {"a": 1}, user)
        entry = newest(log)
        assert (entry["user"], entry["action"], entry["path"], entry["status"]) == (user, "upload_artifact", path, status)
    assert entry["outcome"] == "refused"


def test_somebody_elses_candidate_cannot_be_turned_into_ones_own(server: AuthServer, log: Path) -> None:
    """`both` may train and review: every way to approve what is of `both` under the name of the trainer."""
    candidate = new_candidate(server)
    one = {"name": CANDIDATE, "version": candidate}
    for user in ("both", "trainer", "admin"):
        refused(server.call("POST", "model-versions/set-tag", {**one, "key": DIGEST, "value": "x"}, user), 403, "nobody may change it")
        assert server.call("DELETE", "model-versions/delete-tag", {**one, "key": DIGEST}, user)[0] == 403
    source = f"models:/{CANDIDATE}/{candidate}"
    copy = {"name": RELEASE, "source": source}
    for tags in ([], [{"key": DIGEST, "value": "of both"}], [{"key": DIGEST, "value": "d"}, {"key": DIGEST, "value": "of both"}]):
        refused(server.call("POST", "model-versions/create", {**copy, "tags": tags}, "both"), 403, "is not that of this copy")
    refused(server.call("POST", "model-versions/create", {"name": CANDIDATE, "source": source}, "both"), 403, "cannot be a copy")
    own = new_candidate(server, "both")
    refused(
        server.call("POST", "model-versions/create", {"name": CANDIDATE, "source": f"models:/{CANDIDATE}/{own}"}, "trainer"),
        403,
        "cannot be a copy",
    )
    tags = [{"key": DIGEST, "value": "d"}]
    status, made = server.call("POST", "model-versions/create", {**copy, "tags": tags}, "both")
    assert status == 200 and newest(log)["subject"]["digest"] == "d"
    release = {"name": RELEASE, "version": str(made["model_version"]["version"])}
    for user in ("both", "promoter", "admin"):
        refused(server.call("POST", "model-versions/set-tag", {**release, "key": DIGEST, "value": "x"}, user), 403, "nobody may change it")


def test_an_auditor_changes_nothing_and_the_assistant_is_nobodys(server: AuthServer, routes: list[Route], log: Path) -> None:
    for path, body in (
        ("experiments/create", {"name": "of the auditor"}),
        ("registered-models/create", {"name": "of the auditor"}),
        ("/ajax-api/3.0/mlflow/demo/generate", {"features": []}),
        ("/api/3.0/mlflow/mcp-servers", {"name": "com.example/x"}),
    ):
        answer = server.call("POST", path, body, "auditor")
        assert answer[0] == 403 and newest(log)["outcome"] == "refused", (path, answer)
    for route in routes:
        if "/assistant/" in route.path and route.method not in SAFE_METHODS:
            assert server.call(route.method, route.example, {"message": "x"}, "trainer")[0] == 403


def test_nobody_gives_themselves_a_role(server: AuthServer) -> None:
    roles = server.call("GET", "/api/3.0/mlflow/roles/list", user="admin")[1]["roles"]
    number = {role["name"]: role["id"] for role in roles}
    for user in ("trainer", "reviewer", "promoter", "auditor"):
        for root in ("/api/3.0/mlflow/", "/ajax-api/3.0/mlflow/"):
            for method, path, body in (
                ("POST", "roles/assign", {"username": user, "role_id": number["reviewer"]}),
                ("POST", "roles/create", {"workspace": "default", "name": "mine"}),
                ("PATCH", "roles/update", {"role_id": number["trainer"], "name": "reviewer"}),
                ("DELETE", "roles/delete", {"role_id": number["trainer"]}),
                ("DELETE", "roles/unassign", {"username": "trainer", "role_id": number["trainer"]}),
                (
                    "POST",
                    "roles/permissions/add",
                    {"role_id": number["trainer"], "resource_type": "registered_model", "resource_pattern": RELEASE, "permission": "EDIT"},
                ),
                (
                    "POST",
                    "users/permissions/grant",
                    {"username": user, "resource_type": "registered_model", "resource_id": RELEASE, "permission": "MANAGE"},
                ),
            ):
                answer = server.call(method, root + path, body, user)
                assert answer[0] == 403, (user, path, answer)
        assert server.call("PATCH", "users/update-admin", {"username": user, "is_admin": True}, user)[0] == 403
        assert server.call("PATCH", "users/update-password", {"username": "admin", "password": "a new password"}, user)[0] == 403


def test_the_address_in_the_log_is_not_what_a_caller_says(server: AuthServer, log: Path) -> None:
    server.call("POST", "runs/create", {"experiment_id": experiment(server)}, "trainer", X_Forwarded_For="10.1.2.3")
    assert newest(log)["address"] == "127.0.0.1"


def test_deleting_a_user_is_logged_with_the_name_in_the_address_too(server: AuthServer, log: Path) -> None:
    assert server.call("POST", "users/create", {"username": "temp", "password": "a long password"}, "admin")[0] == 200
    assert newest(log)["subject"] == {"username": "temp"}
    assert server.call("DELETE", "users/delete?username=temp", None, "admin", content_type="text/plain")[0] == 200
    assert (newest(log)["action"], newest(log)["subject"]) == ("delete_user", {"username": "temp"})
