"""The configuration of a whole retraining: presets, a YAML file over them, single settings over both; and errors in it as sentences.

Cheap to import (pydantic and yaml alone), since every command reads it.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar, get_args

import yaml
from pydantic import BaseModel, Field, ValidationError, field_validator

from components.data.config import DataConfig, ViolationConfig
from components.distillation.config import DistillationConfig
from components.errors import ConfigError
from components.evaluation.config import EvaluationConfig
from components.gates.config import PolicyConfig
from components.index.config import EncodingConfig, IndexConfig
from components.settings import RETRIEVER_NAME, StepConfig, checked_retriever_name, strict_yaml
from components.towers.config import TowerConfig

_TYPES = {
    "integer": "a whole number",
    "number": "a number",
    "string": "a text",
    "boolean": "true or false",
    "array": "a list",
    "null": "null",
    "object": "a section",
}


def explain(error: ValidationError, model: type[BaseModel], sources: str) -> str:
    """One line for each wrong field of `model`; `sources` says where the values came from."""
    lines: dict[str, None] = {}  # keeps the order and drops repetitions
    for found in error.errors():
        lines[_line(found, model)] = None
    where = f" ({sources})" if sources else ""
    return f"The configuration{where} is not valid:\n" + "\n".join(f"  {line}" for line in lines)


def did_you_mean(word: str, known: Sequence[str]) -> str:
    """`; did you mean 'x'?`, or nothing when no known word is near."""
    near = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean '{near[0]}'?" if near else ""


def allowed(schema: dict[str, Any]) -> str:
    """The values that a field's JSON schema allows, in words."""
    if isinstance(schema.get("additionalProperties"), dict):
        return f"names, each with {allowed(schema['additionalProperties'])}"
    if "$ref" in schema or schema.get("type") == "object":
        return "a section with its own fields"
    if "anyOf" in schema:
        return " or ".join(allowed(option) for option in schema["anyOf"])
    if "enum" in schema or "const" in schema:
        chosen = schema.get("enum", [schema.get("const")])
        return " or ".join(str(choice).lower() if isinstance(choice, bool) else str(choice) for choice in chosen)
    return _TYPES.get(schema.get("type", ""), "a value") + _items(schema) + _bounds(schema) + _text_rules(schema)


def _line(found: Any, model: type[BaseModel]) -> str:
    owner, path = _locate(found["loc"], model)
    field = ".".join(path)
    if found["type"] in ("extra_forbidden", "invalid_key"):
        return _unknown(path, owner, model)
    if found["type"] == "value_error":  # two fields that do not fit together: the model itself says what is wrong
        return f"{field or 'the whole file'}: {found['ctx']['error']}"
    schema = _schema(owner, path[-1]) if path else {}
    about = f" ({schema['description']})" if "description" in schema else ""
    text = found["type"] in ("float_type", "int_type") and isinstance(found["input"], str)
    hint = "; this is a text: write numbers without quotes, and 1e-2 as 0.01" if text else ""
    return f"{field or 'the whole file'}: got {_shown(found['input'])}; allowed: {allowed(schema)}{hint}{about}"


def _locate(loc: Sequence[int | str], model: type[BaseModel]) -> tuple[type[BaseModel], list[str]]:
    """The model that owns the field at `loc`, and the field's path; positions in a list of values and union branches are left out."""
    owner, path = model, []
    for part in loc:
        path.append(str(part))
        if isinstance(part, int):  # in a list of sections
            continue
        field = owner.model_fields.get(part)
        inner = _section(field.annotation) if field is not None else None
        if inner is None:
            break
        if len(path) < len(loc):
            owner = inner
    return owner, path


def _section(annotation: Any) -> type[BaseModel] | None:
    """The model of a section, or of a list of sections."""
    for kind in (annotation, *get_args(annotation)):
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            return kind
    return None


def _unknown(path: list[str], owner: type[BaseModel], model: type[BaseModel]) -> str:
    section, name = path[:-1], path[-1]
    known = [".".join([*section, field]) for field in owner.model_fields]
    hint = _in_sections(".".join(path), model) or _elsewhere(name, model) or did_you_mean(".".join(path), known)
    names = ", ".join(owner.model_fields)
    return f"{'.'.join(path)}: unknown field{hint or '.'} Allowed{' in ' + '.'.join(section) if section else ''}: {names}"


def _in_sections(path: str, model: type[BaseModel]) -> str:
    """How a field is written in a file whose dotted name stands there, as `--set` takes it."""
    if path not in field_paths(model):
        return ""
    *sections, name = path.split(".")
    return f"; write it in its section, {': {'.join(sections)}: {{{name}: ...{'}' * len(sections)}."


def _elsewhere(name: str, model: type[BaseModel]) -> str:
    """A field or section of the same name in another section: the usual slip is one level too high."""
    paths = list(field_paths(model))
    within = dict.fromkeys(path.rpartition(".")[0] for path in paths if path.count(".") > 1)
    same = [path for path in (*paths, *within) if path.rpartition(".")[2] == name]
    return f"; did you mean {' or '.join(repr(path) for path in same)}?" if same else ""


def field_paths(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Dotted paths of all fields that are no sections."""
    for name, field in model.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from field_paths(inner, f"{prefix}{name}.")
        else:
            yield prefix + name


def _schema(owner: type[BaseModel], name: str) -> dict[str, Any]:
    return dict(owner.model_json_schema()["properties"].get(name, {}))


def _bounds(schema: dict[str, Any]) -> str:
    parts = []
    for key, words in (("minimum", "at least"), ("exclusiveMinimum", "above"), ("maximum", "at most"), ("exclusiveMaximum", "below")):
        if key in schema:
            parts.append(f"{words} {schema[key]:g}" if isinstance(schema[key], float) else f"{words} {schema[key]}")
    return f", {' and '.join(parts)}" if parts else ""


def _items(schema: dict[str, Any]) -> str:
    items = schema.get("items", {})
    if "$ref" in items or items.get("type") == "object":
        return " of sections"
    if "type" not in items:
        return ""
    kind, comma, rest = allowed(items).removeprefix("a ").partition(",")
    return f" of {kind}s{comma}{rest}"


def _text_rules(schema: dict[str, Any]) -> str:
    length = ", not empty" if schema.get("minLength") == 1 else ""
    return length + (f" that matches {schema['pattern']}" if "pattern" in schema else "")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


# --- The configuration of a whole retraining: presets, a YAML file over them, single settings over both.


PRESETS = Path(__file__).parent / "presets"
COMMAND_LINE = "command line"


class RetrainConfig(StepConfig):
    """Everything the flow `retrain` needs, one section for each component."""

    name: str = Field(
        "retriever",
        pattern=RETRIEVER_NAME,
        description="Name of the retriever: small letters, digits and hyphens; its registered models begin with it",
    )
    data: DataConfig = Field(default_factory=DataConfig, description="Which data the release is built from")
    towers: TowerConfig = Field(default_factory=TowerConfig, description="Stage 1: the two towers on one LLM")
    encoding: EncodingConfig = Field(default_factory=EncodingConfig, description="Encoding of the corpus")
    distillation: DistillationConfig = Field(default_factory=DistillationConfig, description="Stage 2: the student")
    index: IndexConfig = Field(default_factory=IndexConfig, description="The index")
    evaluation: EvaluationConfig = Field(default_factory=EvaluationConfig, description="What is measured")
    policy: PolicyConfig = Field(default_factory=PolicyConfig, description="The gates")

    @field_validator("name")
    @classmethod
    def _own_name(cls, name: str) -> str:
        return checked_retriever_name(name)


Settings = TypeVar("Settings", bound=RetrainConfig)


class Layer(NamedTuple):
    """Settings that one place gives (a preset, a file, the command line), nested like the YAML.

    `by` says who chose them: a preset or a release's record is a `proposal`, of which a person may switch parts off; a `file` of a person
    may hold settings that are in use at other times; a `person` who gives single settings means each of them now.
    """

    source: str
    values: Mapping[str, Any]
    by: Literal["proposal", "file", "person"] = "proposal"


class _Switch(NamedTuple):
    """Settings, by the beginning of their names, that do something only where the setting `field` has a value `on`; `cure` gives it one."""

    settings: str
    field: str
    on: Callable[[Any], bool]
    cure: str


_SWITCHES = (
    _Switch("towers.companion.", "towers.companion.base_model", bool, "name an encoder there"),
    _Switch("towers.judge.", "towers.judge.base_model", bool, "name a model there"),
    _Switch("towers.companion.lora_", "towers.companion.training", "lora".__eq__, "set that to lora"),
    _Switch("towers.lora_", "towers.training", "lora".__eq__, "set that to lora"),
    _Switch("towers.endpoint.", "towers.base_model", "endpoint".__eq__, "set that to endpoint"),
    _Switch("distillation.generator", "distillation.generated", bool, "set that to the number of queries"),
)


def preset_names() -> list[str]:
    """Names of the presets that come with the project, in alphabetical order."""
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def load_config(preset: str | None = None, file: Path | None = None, overrides: Mapping[str, Any] | None = None) -> RetrainConfig:
    """The configuration of a retraining (see `load_settings`)."""
    return load_settings(RetrainConfig, preset, file, overrides)


def amend_config(recorded: Mapping[str, Any], overrides: Mapping[str, Any], source: str) -> RetrainConfig:
    """A configuration that was recorded in `source`, with `overrides` (as for `load_settings`) laid over it; raises ConfigError."""
    return settle(RetrainConfig, [Layer(source, recorded), Layer(COMMAND_LINE, nested(overrides), "person")])


def load_settings(
    model: type[Settings], preset: str | None = None, file: Path | None = None, overrides: Mapping[str, Any] | None = None
) -> Settings:
    """The configuration `model` made from `preset` (None: the defaults), then `file`, then `overrides`; the later one wins.

    `overrides` are nested like the YAML, or have dotted keys (`towers.steps`), or both.
    Raises ConfigError that names each wrong field, what was given and what is allowed.
    """
    return settle(model, layers_of(preset, file, overrides))


def layers_of(preset: str | None = None, file: Path | None = None, overrides: Mapping[str, Any] | None = None) -> list[Layer]:
    """What `load_settings` lays over the defaults, the one that wins last; raises ConfigError for what cannot be read."""
    layers = []
    if preset is not None:
        layers.append(Layer(f"preset {preset}", read_yaml(_preset_path(preset))))
    if file is not None:
        layers.append(Layer(str(file), read_yaml(file), "file"))
    if overrides:
        layers.append(Layer(COMMAND_LINE, nested(overrides), "person"))
    return layers


def settle(model: type[Settings], layers: Sequence[Layer]) -> Settings:
    """The configuration `model` with `layers` over its defaults; raises ConfigError as `load_settings` does.

    A person's own setting that would do nothing is refused as well. One of a preset is not: what it is for may be switched off over it.
    """
    merged: list[dict[str, Any]] = [{}]
    for layer in layers:
        merged.append(_merged(merged[-1], _spelled_out(layer.values)))
    sources = [layer.source for layer in layers]
    settled = _checked(model, merged[-1], sources)
    if idle := [line for layer, so_far in zip(layers, merged[1:], strict=True) for line in _without_effect(layer, so_far, settled)]:
        raise ConfigError("\n  ".join([f"The configuration ({', '.join(sources)}) is not valid:", *idle]))
    return settled


def _without_effect(layer: Layer, so_far: Mapping[str, Any], settled: RetrainConfig) -> Iterator[str]:
    """A line for each setting of a person in `layer` that does nothing in `settled`, and differs from its default.

    `so_far`: the layer on those below it. What a file sets for itself, or a layer above it has switched off, is no slip of the file.
    """
    if layer.by == "proposal":
        return
    values, defaults, given = settled.model_dump(), RetrainConfig().model_dump(), dict(_leaves(layer.values))
    there = _merged(defaults, so_far)
    for switch in _SWITCHES:
        state = value_at(values, switch.field)
        if switch.on(state) or (layer.by == "file" and (switch.field in given or switch.on(value_at(there, switch.field)))):
            continue
        for field in given:
            if field != switch.field and field.startswith(switch.settings) and value_at(values, field) != value_at(defaults, field):
                yield f"{field}: it has no effect while {switch.field} is {state!r}; {switch.cure}, or leave it out"


# Settings of a preset that were chosen for its base model.
OF_THE_BASE = ("query_prompt", "document_prompt", "pooling", "attention", "lora_layers", "learning_rate", "temperature")


def left_by_preset(layers: Sequence[Layer]) -> str:
    """A sentence about the settings that a preset chose for its own base model and that stay although another one is named; else empty."""
    below: dict[str, tuple[Any, str]] = {}  # field -> what a preset says of it, and which one
    another = "", ("", "")
    for layer in layers:
        towers = layer.values.get("towers")
        towers = towers if isinstance(towers, Mapping) else {}
        if layer.by == "proposal":
            below |= {field: (value, layer.source) for field, value in towers.items() if value is not None}
            continue
        chosen, named = below.get("base_model"), towers.get("base_model")
        for field in towers:
            below.pop(field, None)
        if chosen and named and named != chosen[0]:
            another = named, chosen
    named, (base, source) = another
    kept = ", ".join(f"{field} {below[field][0]!r}" for field in OF_THE_BASE if field in below)
    if not named or not kept:
        return ""
    return (
        f"towers.base_model is {named}, and what {source} chose for {base} stays: {kept}. Set these too where they do not suit it, or take "
        "a preset of its kind."
    )


def value_at(values: Mapping[str, Any], path: str) -> Any:
    """The value at a dotted path of nested settings; None within a section that is null."""
    return reduce(lambda section, part: section and section[part], path.split("."), values)


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted path and value of all that stands in nested settings."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def read_yaml(file: Path) -> dict[str, Any]:
    """The mapping in a YAML file; raises ConfigError with file, line and column when it is none."""
    try:
        content = strict_yaml(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"The configuration file {file} does not exist.") from None
    except UnicodeDecodeError:
        raise ConfigError(f"The configuration file {file} cannot be read: it is not UTF-8. Convert it to UTF-8.") from None
    except OSError as error:
        said = "it is a folder. Name a file in it" if file.is_dir() else f"{error.strerror}. Check its permissions"
        raise ConfigError(f"The configuration file {file} cannot be read: {said}.") from None
    except RecursionError as error:
        raise ConfigError(f"The configuration file {file} cannot be read: {error}") from None
    except yaml.YAMLError as error:
        raise ConfigError(_yaml_problem(file, error)) from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"{file}: expected settings as 'section: {{field: value}}', found {type(content).__name__}.")
    return content


def _checked(model: type[Settings], values: Mapping[str, Any], sources: Sequence[str]) -> Settings:
    try:
        return model.model_validate(_without_empty_sections(values))
    except ValidationError as error:
        raise ConfigError(explain(error, model, ", ".join(sources))) from None


def _yaml_problem(file: Path, error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or str(error).splitlines()[0]
    if mark is None:
        return f"{file} is not valid YAML: {problem}."
    return f"{file}, line {mark.line + 1}, column {mark.column + 1}: not valid YAML: {problem}."


def _preset_path(preset: str) -> Path:
    names = preset_names()
    if preset not in names:
        raise ConfigError(f"Unknown preset '{preset}'{did_you_mean(preset, names) or '.'} Presets: {', '.join(names)}.")
    return PRESETS / f"{preset}.yaml"


def _merged(base: Mapping[str, Any], over: Mapping[str, Any], within: bool = False) -> dict[str, Any]:
    """`over` laid on `base`, section by section.

    An empty section (`towers:` alone) changes nothing; within a section null takes back what stood there (`companion: null`).
    """
    result = dict(base)
    for key, value in over.items():
        before = result.get(key)
        if isinstance(before, Mapping) and isinstance(value, Mapping):
            result[key] = _merged(before, value, within=True)
        elif within or not (isinstance(before, Mapping) and value is None):
            result[key] = value
    return result


def nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Turn dotted keys into sections: {'towers.steps': 5} -> {'towers': {'steps': 5}}.

    Raises ConfigError for a section that is taken back (null) while one of its settings is given.
    """
    result: dict[str, Any] = {}
    for key, value in flat.items():
        if value is None and (within := next((other for other in flat if str(other).startswith(f"{key}.")), None)):
            raise ConfigError(f"{key} is taken back (null), and {within} is set. Leave one of them out.")
        section, dot, rest = str(key).partition(".")
        result = _merged(result, _spelled_out({section: nested({rest: value}) if dot else _in_full(section, value)}))
    return result


def _spelled_out(values: Mapping[str, Any]) -> dict[str, Any]:
    """`values` with a word that stands for a whole section as that section, so that a single field can be laid over it."""
    data = values.get("data")
    return {**values, "data": {key: _in_full(key, value) for key, value in data.items()}} if isinstance(data, Mapping) else dict(values)


def _in_full(field: str, value: Any) -> Any:
    return dict.fromkeys(ViolationConfig.model_fields, value) if field == "on_violation" and isinstance(value, str) else value


def _without_empty_sections(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None or key == "name"}
