"""What `bootstrap` says of a server, a users' file or a password that it cannot use."""

from __future__ import annotations

from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any

import pytest

from components.errors import ConfigError
from components.tracking import sign_in
from components.tracking.server import bootstrap as preparing
from components.tracking.server.bootstrap import Prepared, User, Users, bootstrap
from components.tracking.store import TrackingError
from tests.auth_world import PASSWORD, free_port
from tests.flows.cli_world import scalingnote


@pytest.mark.parametrize(
    ("statuses", "message"),
    [
        ({"/health": 200}, "runs without sign-in"),
        ({"/health": 200, "/api/2.0/mlflow/users/current": 401}, "does not accept this user name and password"),
        ({"/health": 200, "/api/2.0/mlflow/users/current": 200}, "is not an administrator"),
    ],
)
def test_bootstrap_says_what_is_wrong_with_a_server(
    home: Path, monkeypatch: pytest.MonkeyPatch, statuses: dict[str, int], message: str
) -> None:
    monkeypatch.setenv("MLFLOW_AUTH_ADMIN_PASSWORD", PASSWORD)
    with StandIn(statuses) as url, pytest.raises(TrackingError, match=message):
        bootstrap("retriever", url)


def test_bootstrap_needs_a_server_and_passwords(home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "users.yaml").write_text("users: {ada: {roles: [trainer], password_env: ADA}}")
    for given, words in (("", "ADA, which is not set"), ("short", "5 characters; at least 12")):
        monkeypatch.setenv("ADA", given)
        with pytest.raises(ConfigError, match=words):
            bootstrap("retriever", "http://127.0.0.1:1", tmp_path / "users.yaml")
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        bootstrap("retriever", "http://127.0.0.1:1", tmp_path)
    with pytest.raises(TrackingError, match="No server answers at"):
        bootstrap("retriever", f"http://127.0.0.1:{free_port()}")
    with pytest.raises(TrackingError, match="is no server"):
        bootstrap("retriever", "sqlite:///x.db")
    monkeypatch.delenv("MLFLOW_AUTH_ADMIN_PASSWORD", raising=False)
    with StandIn({"/health": 200}) as url, pytest.raises(TrackingError, match="No administrator's password is known here"):
        bootstrap("retriever", url)


def test_a_role_that_the_file_no_longer_gives_is_told_since_nothing_is_taken_away(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever moved an account from one role to another had it hold both, and was told that all was ready."""

    class Service:
        def get_user(self, _name: str) -> None:
            pass

        def list_user_roles(self, name: str) -> list[SimpleNamespace]:
            return [SimpleNamespace(name="promoter")] if name == "worker" else [SimpleNamespace(name="reviewer")]

        def assign_role(self, *_: object) -> None:
            pass

    monkeypatch.setattr(preparing, "_service", Service)
    prepared = Prepared("http://x")
    users = Users(users={"worker": User(roles=("trainer",)), "ada": User(roles=("reviewer",))})
    preparing._make_users(users, {"trainer": 1, "reviewer": 2}, prepared)
    assert (prepared.kept, prepared.assignments) == ({"worker": ["promoter"]}, 1)
    monkeypatch.setattr(preparing, "bootstrap", lambda *_: prepared)
    assert "Warning: worker still holds the role promoter" in scalingnote("bootstrap", "--server", "http://x").out


class StandIn:
    """A server that gives the listed statuses, else 404, as MLflow without sign-in does for its routes of users."""

    def __init__(self, statuses: dict[str, int]) -> None:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(statuses.get(self.path, 404))
                self.end_headers()
                self.wfile.write(b"{}")

            def log_message(self, *_: Any) -> None:
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)

    def __enter__(self) -> str:
        Thread(target=self.server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{self.server.server_port}"

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()


def test_a_password_that_lies_there_of_another_server_is_kept(home: Path) -> None:
    """Made anew for the second server, that of the first was lost, and nobody could enter it any more."""
    made: list[str] = []
    service = SimpleNamespace(create_user=lambda name, password: made.append(password))
    for server in ("http://one", "http://two"):
        preparing._create(service, "promoter", User(roles=("promoter",)), Prepared(server))
    assert len(made) == 2 and len(set(made)) == 1 and sign_in.stored_password("promoter") == made[0]
