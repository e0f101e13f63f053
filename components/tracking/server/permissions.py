"""Roles and rules of the tracking server as data, and the pure function that says whether a call breaks a rule.

Also the policies that an installation allows: as files on this machine, and as the server hands them out.

MLflow's permissions cannot express what governance needs: who may create a version may also move aliases, and nobody is kept from copying
their own candidate. The rules narrow them; the server's plugin asks `refusal` before a call reaches MLflow's handlers.

Whoever trains owns the machine that they train on, and with it the environment there. So the administrator of the server names the
policies in the server's own environment, and every client asks the server for them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from components import settings
from components.artifacts import read_bounded
from components.errors import ArtifactError, ConfigError
from components.settings import without_user
from components.text import reads_like
from components.tracking import labels
from components.tracking.store import TrackingError, is_server, translated

SCHEMA_VERSION = 1
ADMIN = "admin"
RUN_ACTION = "run"
OWN_PASSWORD = "update_user_password"  # MLflow lets everybody change their own
OTHER_ACTION = "other"  # of a model: every change that has no rule of its own
PERMISSIONS_FILE = settings.shipped("mlflow") / "permissions.yaml"
_COPY = re.compile(r"models:/+([^/@]+)/([0-9]{1,18})/?")
_REGISTERED = re.compile(r"models:/+[^/@]+[/@]", re.IGNORECASE)  # of a registered model; `models:/m-1` is a logged one
_STRICT = ConfigDict(frozen=True, extra="forbid")
Resource = Literal["workspace", "experiment", "registered_model", "registered_model_version", "run", "logged_model"]


class Grant(BaseModel):
    """One permission of MLflow on a resource; `{name}` in its name is the retriever's."""

    model_config = _STRICT
    resource: Resource
    name: str
    permission: Literal["READ", "USE", "EDIT", "MANAGE"]


class Role(BaseModel):
    """What a role is for, and what MLflow lets its holders do."""

    model_config = _STRICT
    description: str
    reads_audit: bool = False
    grants: tuple[Grant, ...] = ()

    @property
    def changes(self) -> bool:
        """Whether its holders may change anything."""
        return any(grant.permission in ("EDIT", "MANAGE") for grant in self.grants)


class Verdicts(BaseModel):
    """Tags by which a person decides about a version, the models they count on, and who may set them."""

    model_config = _STRICT
    models: tuple[str, ...]
    tags: tuple[str, ...]
    set_by: tuple[str, ...]

    def covers(self, model: str, tag: str) -> bool:
        """Whether `tag`, with or without the project's prefix, is such a tag of `model`. Some databases overlook capitals and blanks."""
        return model.endswith(self.models) and plain(tag).removeprefix(labels.PREFIX) in self.tags


class Permissions(BaseModel):
    """The file `permissions.yaml`: roles with their grants, and rules: end of a name -> action -> roles that may."""

    model_config = _STRICT
    schema_version: Literal[1]
    roles: dict[str, Role] = Field(min_length=1)
    rules: dict[str, dict[str, tuple[str, ...]]]
    verdicts: Verdicts
    sealed: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _roles_are_known(self) -> Permissions:
        if ADMIN in self.roles:
            raise ValueError(f"'{ADMIN}' is MLflow's own administrator and cannot be a role")
        known = {ADMIN, *self.roles}
        for place, actions in {**self.rules, "verdicts": {"set_by": self.verdicts.set_by}}.items():
            for action, names in actions.items():
                if unknown := sorted(set(names) - known):
                    raise ValueError(f"{place}: {action}: unknown role '{unknown[0]}'; known: {', '.join(sorted(known))}")
        return self

    def rule(self, name: str, action: str) -> tuple[str, ...] | None:
        """Roles that may do `action` to the model or experiment `name`; None when the grants alone decide."""
        ending = self.ending(name)
        return self.rules[ending].get(action) if ending else None

    def only_reads(self, roles: Sequence[str]) -> bool:
        """Whether all of `roles` are for reading. MLflow would let their holders make experiments and models of their own."""
        return bool(roles) and all(name in self.roles and not self.roles[name].changes for name in roles)

    def ending(self, name: str) -> str | None:
        """The end of `name` that has rules; None when the grants alone decide."""
        return next((ending for ending in self.rules if name.endswith(ending)), None)


@dataclass(frozen=True)
class Call:
    """A call that somebody who signed in asks for. `tags` are those a version is to be created with."""

    user: str
    roles: tuple[str, ...]
    action: str
    subject: Mapping[str, str]
    tags: Mapping[str, str] = field(default_factory=dict)


class RegistryView(Protocol):
    """What the rules must know of the registry."""

    def exists(self, model: str) -> bool:
        """Whether there is a registered model of this name."""

    def creator(self, model: str, version: int) -> str | None:
        """Who created a version, by the audit log; None when it was not created through this server."""

    def tags(self, model: str, version: int) -> Mapping[str, str]:
        """Tags of a version; empty when there is none."""


def load_permissions(path: Path | None = None) -> Permissions:
    """Read a permissions file (default: `SCALINGNOTE_PERMISSIONS`, else the project's own); ConfigError names the field at fault."""
    import yaml

    named = os.environ.get("SCALINGNOTE_PERMISSIONS")
    path = path or (settings.expanded(named) if named else PERMISSIONS_FILE)
    try:
        raw = settings.strict_yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(
            f"{path} is missing. It comes with the project's folder mlflow/; name another in SCALINGNOTE_PERMISSIONS."
        ) from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    try:
        return Permissions.model_validate(raw)
    except ValidationError as error:
        raise ConfigError(f"{path}: {first_problem(error)}") from None


def first_problem(error: ValidationError) -> str:
    """The place and the reason of the first problem that pydantic found, in one line."""
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return f"unknown field '{place}'. Remove it or correct its name."
    reason = first["msg"].removeprefix("Value error, ")
    if first["type"] in ("model_type", "dict_type"):
        reason = f"expected fields with values (`field: value`), got {first['input']!r}"
    return f"{place}: {reason}." if place else f"{reason}."


def refusal(call: Call, permissions: Permissions, world: RegistryView) -> str | None:
    """Why `call` breaks a rule, in a sentence for the person who asked; None when it does not."""
    for name in _names(call):
        if name != call.subject.get("experiment") and permissions.ending(name) is None and permissions.ending(name.strip().casefold()):
            return f"The name '{name}' would end like a model that has rules but for capitals or spaces, which some databases overlook."
        if reason := _refused_by_rule(call, name, permissions, world):
            return reason
    if permissions.only_reads(call.roles) and call.action != OWN_PASSWORD:
        return f"{_who(call)} may read and change nothing."
    return _refused_version(call, permissions, world) if call.action == "create_model_version" else None


def plain(key: str) -> str:
    """A tag's key as a database may read it that overlooks capitals and blanks at the ends."""
    return key.strip().casefold()


def _names(call: Call) -> list[str]:
    """Names that the rules look at: of the model or experiment, and the one it would be renamed to."""
    found = (call.subject.get(key) for key in ("model", "experiment", "new_name"))
    return [name for name in found if name]


def _refused_by_rule(call: Call, name: str, permissions: Permissions, world: RegistryView) -> str | None:
    alias = call.subject.get("alias")
    allowed = permissions.rule(name, f"{call.action} {alias}") if alias else None  # a rule may speak of one alias alone
    if allowed is None:
        allowed = permissions.rule(name, call.action)
    if allowed is None and (call.action == "create_run" or "run" in call.subject):
        allowed = permissions.rule(name, RUN_ACTION)
    if allowed is None and name == call.subject.get("model"):
        allowed = permissions.rule(name, OTHER_ACTION)
    key = call.subject.get("key", "") if call.action in ("set_version_tag", "delete_version_tag") else ""
    if plain(key) in permissions.sealed and permissions.ending(name):
        return f"The tag '{key}' is set when a version of {name} is created; nobody may change it."
    if permissions.verdicts.covers(name, key):
        return _refused_verdict(call, permissions.verdicts)
    if allowed is None or set(allowed) & set(call.roles):
        return None
    if call.action == "create_registered_model":
        if world.exists(name):
            return None  # MLflow answers that it exists, which is what a step that makes sure of it wants to hear
        retriever = name.removesuffix(permissions.ending(name) or "")
        return f"The model {name} is made by the administrator: scalingnote bootstrap --name {retriever}"
    return f"{_who(call)} may not {_words(call.action)} {name}; {_needed(allowed)}."


def _refused_verdict(call: Call, verdicts: Verdicts) -> str | None:
    key, value = call.subject.get("key", ""), call.subject.get("value", "")
    if not set(verdicts.set_by) & set(call.roles):
        return f"{_who(call)} may not set or remove the tag '{key}'; {_needed(verdicts.set_by)}."
    if call.action == "set_version_tag" and plain(key).removeprefix(labels.PREFIX) == "approved_by" and value != call.user:
        return f"The tag '{key}' must name the person who is signed in: {call.user}."
    return None


def _refused_version(call: Call, permissions: Permissions, world: RegistryView) -> str | None:
    model = call.subject.get("model", "")
    if not model.endswith(permissions.verdicts.models):
        return None
    if model.endswith("-release"):
        return _refused_approval(call, model, permissions, world)
    if _REGISTERED.match(call.subject.get("source", "")):
        return f"A version of {model} cannot be a copy: who copies it is not who made it. Build it."
    given = [tag for tag in call.tags if permissions.verdicts.covers(model, tag)]
    return f"A version of {model} cannot be created with the tag '{given[0]}': a reviewer sets it." if given else None


def _refused_approval(call: Call, model: str, permissions: Permissions, world: RegistryView) -> str | None:
    """A release is the copy of a candidate of the same retriever, which another person created, with that one's tags."""
    wanted = model.removesuffix("-release") + "-candidate"
    matched = _COPY.fullmatch(call.subject.get("source", ""))
    if matched is None or matched.group(1) != wanted:
        return f"A version of {model} can only be a copy of a version of {wanted}: use Promote model on the candidate's page."
    version = int(matched.group(2))
    source = world.tags(wanted, version)
    added = [tag for tag, value in call.tags.items() if permissions.verdicts.covers(model, tag) and source.get(tag) != value]
    if added:
        return f"A version of {model} cannot be created with the tag '{added[0]}'."
    if other := [tag for tag in permissions.sealed if call.tags.get(tag) != source.get(tag)]:
        return f"The tag '{other[0]}' of {wanted}/{version} is not that of this copy: it has changed, or was left out. Load the page again."
    if reason := labels.rejection(source):
        return f"{wanted}/{version} was rejected ({reason}). Approve another candidate."
    creator = world.creator(wanted, version)
    if creator is None:
        return f"{wanted}/{version} was not created through this server, so nobody knows by whom. Build it again while signed in."
    if reads_like(creator) == reads_like(call.user):  # a database may let `Ada` sign in as `ada`
        return f"{call.user} created {wanted}/{version} and cannot approve it too: another reviewer has to."
    return None


def _who(call: Call) -> str:
    return f"{call.user} ({', '.join(call.roles) or 'no role'})"


def _needed(allowed: tuple[str, ...]) -> str:
    return f"allowed: {', '.join(allowed)}" if allowed else "nobody may"


def _words(action: str) -> str:
    return f"{action.replace('_', ' ')} on" if action != "create_model_version" else "create a version of"


# --- Files of the policies that an installation allows: as they lie on this machine, and as the tracking server hands them out.


POLICY_VARIABLE = "SCALINGNOTE_POLICY"
ENDPOINT = "/ajax-api/2.0/scalingnote/policies"
_MAX_BYTES = 1_000_000


@dataclass(frozen=True)
class PolicyFiles:
    """Name of each file -> its fields, and in words where they come from."""

    place: str
    files: Mapping[str, Mapping[str, Any]]


def sources(ask_server: bool = True) -> list[PolicyFiles]:
    """The policies that this environment names, and those of the tracking server; a place that names none is left out.

    `ask_server`: False for what is verified from files alone, where no server may be there to ask.
    Raises ConfigError for a place that is not there or holds no policies, TrackingError for a server that does not say.
    """
    found = [PolicyFiles(POLICY_VARIABLE, here)] if (here := local_files()) is not None else []
    uri = settings.tracking_uri()
    theirs = _of_server(uri) if ask_server and is_server(uri) else None
    # Where a policy came from is recorded with what was decided by it, and an address may hold a password.
    return found if theirs is None else [*found, PolicyFiles(f"the server {without_user(uri)}", theirs)]


def local_files() -> dict[str, dict[str, Any]] | None:
    """What `SCALINGNOTE_POLICY` names, a YAML file or a folder of `*.yaml`; None where it is not set. Raises ConfigError."""
    named = os.environ.get(POLICY_VARIABLE)
    if not named:
        return None
    place = settings.expanded(named)
    try:
        files = sorted(place.glob("*.yaml")) if place.is_dir() else [place] if place.is_file() else []
    except (OSError, ValueError) as error:  # a name too long, a NUL, a folder of somebody else
        raise ConfigError(f"{POLICY_VARIABLE} names {place}, which cannot be read: {error}. Correct it.") from None
    if not files:
        raise ConfigError(f"{POLICY_VARIABLE} names {place}, which is no YAML file with a policy and no folder of them. Correct it.")
    return {file.name: _fields(file) for file in files}


def serve(flask_app: Any) -> str:
    """A route that gives the server's policies, and its address. They are read anew each time, so a new file counts at once.

    Raises ConfigError where there are none to give, so that the server does not start.
    """
    from flask import jsonify
    from mlflow.server.handlers import _add_static_prefix

    local_files()

    def give() -> Any:
        try:
            return jsonify(policies=local_files())
        except ConfigError as error:
            answer = jsonify(error_code="INTERNAL_ERROR", message=str(error))
            answer.status_code = 500
            return answer

    address = _add_static_prefix(ENDPOINT)
    flask_app.add_url_rule(address, "scalingnote_policies", give)
    return str(address)


def _fields(file: Path) -> dict[str, Any]:
    import yaml

    try:
        given = settings.strict_yaml(read_bounded(file, _MAX_BYTES).decode("utf-8"))
    except (ArtifactError, OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        first = str(error).partition("\n")[0].rstrip(".")
        raise ConfigError(f"{file} ({POLICY_VARIABLE}) is no policy: {first}. Give the fields of `policy` as YAML.") from None
    if not isinstance(given, dict) or not all(isinstance(key, str) for key in given):
        raise ConfigError(f"{file} ({POLICY_VARIABLE}) is no policy: it holds no fields. Give the fields of `policy` as YAML.")
    return given


@translated("ask for the policies of the installation")
def _of_server(uri: str) -> dict[str, dict[str, Any]] | None:
    """The server's policies; None where it names none, or is a plain MLflow that knows nothing of them."""
    from mlflow.utils.credentials import get_default_host_creds
    from mlflow.utils.rest_utils import http_request

    answer = http_request(get_default_host_creds(uri), ENDPOINT, "GET", raise_on_status=False, max_retries=0)
    if answer.status_code == 404:
        return None
    try:
        given = answer.json()
        policies, said = given.get("policies", {}), str(given.get("message", ""))
    except (ValueError, AttributeError):
        policies, said = {}, answer.text[:300]
    if answer.status_code != 200 or not (policies is None or _are_files(policies)):
        raise TrackingError(
            f"The server {uri} could not give the policies of the installation (status {answer.status_code}): {said or 'no policies'} "
            "Nothing is decided without them; ask its administrator."
        )
    return policies


def _are_files(policies: Any) -> bool:
    return isinstance(policies, dict) and bool(policies) and all(isinstance(fields, dict) for fields in policies.values())
