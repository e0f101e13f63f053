"""What a deployment asks for: typed parameters, whose JSON schema becomes the form of the Prefect page, and the configuration they make.

A run is refused when it is made, in words, for any value that the schema rules out. That matters where runs wait for each other: found
by the flow, a wrong setting would be said after the run before it, hours later.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field, GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema, core_schema

from components.errors import ConfigError
from components.settings import RETRIEVER_NAME
from flows.config import Layer, RetrainConfig, did_you_mean, layers_of, nested, settle

Preset = Literal["adopt", "cluster", "demo", "embeddinggemma", "endpoint", "gpu", "harrier", "pages", "qwen3-embedding", "smoke"]
Name = Annotated[str, Field(pattern=RETRIEVER_NAME)]
NameOrEmpty = Annotated[str, Field(pattern=rf"^$|{RETRIEVER_NAME}")]
ReleaseRef = Annotated[str, Field(min_length=1)]
NO_SETTINGS: dict[str, Any] = {}
NOTHING: list[str] = []


def steps_form(steps: Sequence[str]) -> Any:
    """Makes of `Annotated[list[str], steps_form(steps)]` a choice among steps on the Prefect page."""
    return Field(json_schema_extra={"items": {"type": "string", "enum": list(steps)}, "uniqueItems": True})


def require_steps(flow: str, asked: Iterable[str], steps: Sequence[str]) -> None:
    """Raise ConfigError for a step that `flow` does not have."""
    for step in asked:
        if step not in steps:
            raise ConfigError(f"{flow} has no step '{step}'{did_you_mean(step, steps) or '.'} Steps: {', '.join(steps)}.")


@dataclass(frozen=True)
class SettingsForm:
    """Makes of `Annotated[dict[str, Any], SettingsForm()]` a mapping of settings whose JSON schema describes and bounds every field.

    Settings are sections with their fields, or fields by dotted names. `changeable` are the sections and `section.field` that may be
    given; empty for all. The schema names no defaults, since the page would fill them in and so override the preset; the descriptions
    name them.
    """

    changeable: tuple[str, ...] = ()

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_before_validator_function(_mapping, handler(source))

    def __get_pydantic_json_schema__(self, _schema: CoreSchema, _handler: GetJsonSchemaHandler) -> dict[str, Any]:
        from flows.config import allowed
        from flows.config_view import field_schemas, shown

        sections: dict[str, Any] = {}
        dotted: dict[str, Any] = {}
        for path, schema in field_schemas(RetrainConfig).items():
            *outer, field = path.split(".")
            enclosing = {".".join(outer[: depth + 1]) for depth in range(len(outer))}
            if not outer or (self.changeable and not {path, *enclosing} & set(self.changeable)):
                continue
            default = f"; default {shown(schema['default'])}" if "default" in schema else ""
            about = f"{schema['description']} ({allowed(schema)}{default})"  # the page shows no bounds of its own
            typed = {**{key: value for key, value in schema.items() if key != "default"}, "description": about}
            choices = [option.get("type") for option in typed.get("anyOf", [typed])]
            if "boolean" in choices:  # the page sends false for a switch that nobody touched: it would switch gates off
                rest = {key: value for key, value in typed.items() if key not in ("type", "anyOf")}
                typed = {**rest, "enum": [True, False]}  # with null among them the page's form cannot be sent
            section = sections.setdefault(outer[0], _section(outer[0]))
            for part in outer[1:]:
                section = section["properties"].setdefault(part, {"type": "object", "title": part, "properties": {}})
            section["properties"][field] = typed
            dotted["^" + path.replace(".", r"\.") + "$"] = typed
        wanted = f"one of the sections {', '.join(sections)}, or SECTION.FIELD as `scalingnote config show` lists them"
        return {
            "type": "object",
            "properties": sections,
            "patternProperties": dotted,
            "additionalProperties": {"const": wanted},  # its message is all that the sender of any other name is told
        }


def _mapping(value: Any) -> Any:
    if not isinstance(value, Mapping):
        raise ValueError(f"settings are a mapping such as {{towers.steps: 80}} or {{towers: {{steps: 80}}}}, not {value!r}")
    return value


def requested_config(
    preset: str | None, data: str, name: str, settings: Mapping[str, Any], config: RetrainConfig | None = None
) -> RetrainConfig:
    """The configuration that the parameters of `retrain` ask for; `settings` win over the preset, `data` and `name` over both.

    `config` is a whole configuration in the place of a preset. Raises ConfigError when both are given, and for wrong settings.
    """
    if preset is not None and config is not None:
        raise ConfigError(f"Both preset ({preset}) and config are given, and each is a whole configuration. Leave one of them out.")
    given = {**({"name": name} if name else {}), **({"data.source": data} if data else {})}
    over = [Layer("settings", nested(settings), "person"), Layer("data and name", nested(given))]
    # Without what nobody set: a teacher that is taken as it is brings its own values for some of that.
    layers = layers_of(preset) if config is None else [Layer("config", config.model_dump(mode="json", exclude_unset=True))]
    return settle(RetrainConfig, [*layers, *(layer for layer in over if layer.values)])


def _section(name: str) -> dict[str, Any]:
    described = RetrainConfig.model_fields[name].description
    return {"type": "object", "title": name, "description": described, "properties": {}, "additionalProperties": False}
