"""Prepare a tracking server with sign-in for a retriever: its models and experiments, the roles of `permissions.yaml`, and users.

Everything is made by the administrator, because who creates a model in MLflow may do anything with it. Run again, it adds what is
missing and leaves the rest: passwords of users that exist are not touched.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from components import settings
from components.errors import ConfigError
from components.settings import answers
from components.tracking import audit_log as audit
from components.tracking import sign_in
from components.tracking.promotion_records import ensure_chain
from components.tracking.registry import ensure_model
from components.tracking.server.permissions import ADMIN, Permissions, first_problem, load_permissions
from components.tracking.store import TrackingError, clear_caches, client, error_code, experiment_id, is_server, translated

PARTS = ("-query-tower", "-document-tower", "-query-encoder", "-index", "-candidate", "-release")
WORKSPACE = "default"
MIN_PASSWORD = 12  # MLflow's own limit
_CURRENT_USER = "/api/2.0/mlflow/users/current"


class User(BaseModel):
    """An account and its roles; `password_env` names the environment variable that holds its password."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    roles: tuple[str, ...] = Field(min_length=1)
    password_env: str | None = None


class Users(BaseModel):
    """The file of `--users`."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    users: dict[str, User] = Field(min_length=1)


@dataclass
class Prepared:
    """What was made; what is missing here was there already. `passwords`: user -> file of a generated password.

    `kept`: user -> roles that they hold on the server and the file does not give them: nothing is taken away.
    """

    server: str
    roles: list[str] = field(default_factory=list)
    users: list[str] = field(default_factory=list)
    grants: int = 0
    assignments: int = 0
    passwords: dict[str, str] = field(default_factory=dict)
    kept: dict[str, list[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.server = settings.without_user(self.server)  # it is printed

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)


def load_users(path: Path | None, permissions: Permissions) -> Users:
    """Read the users' file, or one user for each role; raises ConfigError that names the field at fault."""
    if path is None:
        return Users(users={role: User(roles=(role,)) for role in permissions.roles})
    import yaml

    try:
        users = Users.model_validate(settings.strict_yaml(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise ConfigError(f"--users: {path} is missing.") from None
    except OSError as error:
        raise ConfigError(f"--users: {path} cannot be read: {error.strerror}.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"--users: {path} is not YAML: {' '.join(str(error).split())}") from None
    except ValidationError as error:
        raise ConfigError(f"--users: {path}: {first_problem(error)}") from None
    for name, user in users.users.items():
        if name == ADMIN or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.@-]{0,63}", name):
            raise ConfigError(f"--users: {path}: '{name}' cannot be a user's name; allowed: letters, digits and . _ @ -, not '{ADMIN}'.")
        if unknown := sorted(set(user.roles) - set(permissions.roles)):
            raise ConfigError(f"--users: {path}: {name}: unknown role '{unknown[0]}'; known: {', '.join(sorted(permissions.roles))}.")
    return users


def bootstrap(name: str, server: str, users_file: Path | None = None) -> Prepared:
    """Prepare `server` for the retriever `name`. Signs in as the environment says, else as `admin`.

    Raises ConfigError for a bad file or a missing password, TrackingError for a server that does not run, asks nobody to sign in,
    keeps no audit log, or does not take the administrator's password.
    """
    permissions = load_permissions()
    users = load_users(users_file, permissions)
    _require_passwords(users)
    _require_running(server)
    with _signed_in(server):
        _require_ours(server)
        prepared = Prepared(server)
        _make_resources(name)
        roles = _make_roles(name, permissions, prepared)
        _make_users(users, roles, prepared)
    return prepared


@contextmanager
def _signed_in(server: str) -> Iterator[None]:
    """The environment by which MLflow's clients find and enter `server`."""
    own = {} if sign_in.names_account() else {sign_in.USERNAME: ADMIN, sign_in.PASSWORD: _known_admin_password()}
    wanted = {"MLFLOW_TRACKING_URI": server, **own}
    before = {key: os.environ.get(key) for key in wanted}
    os.environ.update(wanted)
    clear_caches()
    try:
        yield
    finally:
        for key, value in before.items():
            os.environ.pop(key) if value is None else os.environ.update({key: value})
        clear_caches()


def _known_admin_password() -> str:
    found = os.environ.get(sign_in.ADMIN_PASSWORD) or sign_in.stored_password(ADMIN)
    if not found:
        raise TrackingError(
            f"No administrator's password is known here. Set {sign_in.ADMIN_PASSWORD}, or run this where the server was started "
            f"(it keeps a generated one in {sign_in.password_file(ADMIN)})."
        )
    return found


def _require_passwords(users: Users) -> None:
    for name, user in users.users.items():
        given = os.environ.get(user.password_env, "") if user.password_env else None
        if given == "":
            raise ConfigError(f"The password of '{name}' is to come from the environment variable {user.password_env}, which is not set.")
        if given is not None and len(given) < MIN_PASSWORD:
            raise ConfigError(
                f"The password of '{name}' ({user.password_env}) has {len(given)} characters; at least {MIN_PASSWORD} are needed."
            )


def _require_running(server: str) -> None:
    if not is_server(server):
        raise TrackingError(f"{server} is no server: users and roles need one. Start it with `scalingnote ui --auth`.")
    if not answers(f"{server.rstrip('/')}/health"):
        raise TrackingError(f"No server answers at {server}. Start it with `scalingnote ui --auth`, or name another with --server URL.")


@translated("sign in")
def _require_ours(server: str) -> None:
    """A server that lets the administrator in, and that keeps our audit log."""
    status, account = _get(server, _CURRENT_USER)
    if status == 401:
        raise TrackingError(f"The server {server} does not accept this user name and password ({_user()}).")
    if status != 200:
        raise TrackingError(f"The server {server} runs without sign-in. Stop it and start it with `scalingnote ui --auth`.")
    if not account.get("is_admin"):
        raise TrackingError(f"'{_user()}' is not an administrator of {server}. Sign in as one: {sign_in.USERNAME}, {sign_in.PASSWORD}.")
    if _get(server, audit.ENDPOINT)[0] == 404:
        raise TrackingError(
            f"The server {server} has sign-in but keeps no audit log. Start it with `mlflow server --app-name scalingnote`."
        )


def _get(server: str, endpoint: str) -> tuple[int, Mapping[str, Any]]:
    from mlflow.utils.credentials import get_default_host_creds
    from mlflow.utils.rest_utils import http_request

    answer = http_request(get_default_host_creds(server), endpoint, "GET", raise_on_status=False)
    try:
        found = answer.json()
    except ValueError:
        found = {}
    return answer.status_code, found.get("user", found) if isinstance(found, dict) else {}


def _user() -> str:
    return os.environ.get(sign_in.USERNAME, "nobody")


def _make_resources(name: str) -> None:
    for part in PARTS:
        ensure_model(name + part)
    experiment_id(name)
    ensure_chain(name)


@translated("make the roles")
def _make_roles(name: str, permissions: Permissions, prepared: Prepared) -> dict[str, int]:
    """Role -> its number on the server, with all grants of the file for this retriever."""
    service = _service()
    known = {role.name: role.id for role in service.list_roles(WORKSPACE)}
    for role, wanted in permissions.roles.items():
        if role not in known:
            known[role] = service.create_role(WORKSPACE, role, wanted.description).id
            prepared.roles.append(role)
        present = {(had.resource_type, had.resource_pattern): had for had in service.list_role_permissions(known[role])}
        for grant in wanted.grants:
            pattern = _pattern(grant.resource, grant.name.replace("{name}", name))
            had = present.get((grant.resource, pattern))
            if had is None:
                service.add_role_permission(known[role], grant.resource, pattern, grant.permission)
            elif had.permission != grant.permission:
                service.update_role_permission(had.id, grant.permission)
            prepared.grants += had is None or had.permission != grant.permission
    return known


def _pattern(resource: str, name: str) -> str:
    """MLflow grants by the number of an experiment and by the name of a model."""
    if resource != "experiment" or name == "*":
        return name
    found = client().get_experiment_by_name(name)
    if found is None:
        raise ConfigError(f"permissions.yaml grants something on the experiment '{name}', which does not exist. Make it, or remove that.")
    return str(found.experiment_id)


@translated("make the users")
def _make_users(users: Users, roles: Mapping[str, int], prepared: Prepared) -> None:
    service = _service()
    for name, user in users.users.items():
        if not _exists(service, name):
            _create(service, name, user, prepared)
        held = {role.name for role in service.list_user_roles(name)}
        for role in user.roles:
            if role not in held:
                service.assign_role(name, roles[role])
                prepared.assignments += 1
        if more := sorted(held - set(user.roles)):
            prepared.kept[name] = more


def _exists(service: Any, name: str) -> bool:
    from mlflow.exceptions import MlflowException

    try:
        service.get_user(name)
    except MlflowException as error:
        if error_code(error) != "RESOURCE_DOES_NOT_EXIST":
            raise
        return False
    return True


def _create(service: Any, name: str, user: User, prepared: Prepared) -> None:
    """Make the account. A generated password is on the disk before the account exists, so a kill between the two loses nothing.

    One that lies there is taken: it may be that of the same user on another server, which nobody could enter any more.
    """
    password = os.environ.get(user.password_env, "") if user.password_env else ""
    if not password:
        password = sign_in.stored_password(name) or sign_in.keep_secret(sign_in.password_file(name))
        prepared.passwords[name] = str(sign_in.password_file(name))
    service.create_user(name, password)
    prepared.users.append(name)


def _service() -> Any:
    from mlflow.server import get_app_client

    return get_app_client("basic-auth", tracking_uri=os.environ["MLFLOW_TRACKING_URI"])
