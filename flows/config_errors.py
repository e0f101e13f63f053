"""Turns pydantic's findings about a configuration into sentences: which field, what was given, what is allowed."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

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
    hint = did_you_mean(".".join(path), known) or _elsewhere(name, model)
    names = ", ".join(owner.model_fields)
    return f"{'.'.join(path)}: unknown field{hint or '.'} Allowed{' in ' + '.'.join(section) if section else ''}: {names}"


def _elsewhere(name: str, model: type[BaseModel]) -> str:
    """A field of the same name in another section: the usual slip is a field one level too high."""
    same = [path for path in field_paths(model) if path.rpartition(".")[2] == name]
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
    return f" of {allowed(items).removeprefix('a ')}s" if "type" in items else ""


def _text_rules(schema: dict[str, Any]) -> str:
    length = ", not empty" if schema.get("minLength") == 1 else ""
    return length + (f" that matches {schema['pattern']}" if "pattern" in schema else "")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
