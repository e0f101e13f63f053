"""A configuration for people: every value with its meaning, its bounds and where it comes from, and what differs between two of them."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any

import yaml
from pydantic import BaseModel

from flows.config import Layer, RetrainConfig, allowed, settle, value_at

DEFAULT = "default"
TEACHERS_OWN = "the model, or default"  # whom a setting is from that a teacher which is taken as it is brings, where its model says so
GENERAL = "general"  # heading of the fields that stand in no section
_VALUE_WIDTH, _SOURCE_WIDTH, _MEANING_WIDTH = 30, 24, 40  # columns: the first two at most, the last at least


@dataclass(frozen=True)
class Setting:
    """One field: dotted path, value and default as plain values, who gave the value, and what the field means and allows."""

    field: str
    value: Any
    default: Any
    source: str
    description: str
    allowed: str

    @property
    def section(self) -> str:
        """The part before the first dot; empty for a field of the whole."""
        section, dot, _ = self.field.partition(".")
        return section if dot else ""

    @property
    def name(self) -> str:
        """The field within its section; with dots where the section has parts of its own."""
        return self.field.partition(".")[2] or self.field

    @property
    def changed(self) -> bool:
        """Whether the value is another one than the default."""
        return not same(self.value, self.default)


@dataclass(frozen=True)
class Difference:
    """One field of two configurations; `in_a` and `in_b` say whether it stands in each, as older releases lack newer fields."""

    field: str
    a: Any
    b: Any
    in_a: bool
    in_b: bool


def settings_of(layers: Sequence[Layer]) -> list[Setting]:
    """All fields of a retraining in the order of their sections, with what `layers` give; raises ConfigError for wrong settings."""
    settled = settle(RetrainConfig, layers)
    values, defaults, own = settled.model_dump(mode="json"), RetrainConfig().model_dump(mode="json"), left_to_the_model(settled)
    found = []
    for field, schema in field_schemas(RetrainConfig).items():
        given = [layer.source for layer in layers if _gives(layer.values, field.split("."))]
        source = given[-1] if given else TEACHERS_OWN if field in own else DEFAULT
        found.append(
            Setting(field, value_at(values, field), value_at(defaults, field), source, schema.get("description", ""), allowed(schema))
        )
    return found


def left_to_the_model(config: RetrainConfig) -> frozenset[str]:
    """Dotted names of the settings that a teacher which is taken as it is brings itself, as long as nobody sets them.

    See `components.towers.trained.published.with_own_settings`. Written down with their defaults, they would count as set.
    """
    towers = config.towers
    if towers.training != "none" or towers.base_model == "vectors":
        return frozenset()
    from components.towers.trained.published import OWN

    brought = ("query_prompt", "document_prompt") if towers.base_model == "endpoint" else OWN
    return frozenset(f"towers.{field}" for field in brought if field not in towers.model_fields_set)


def as_given(config: RetrainConfig) -> dict[str, Any]:
    """The configuration as plain values from which the same one is made again: without what is left to the model."""
    values, own = config.model_dump(mode="json"), left_to_the_model(config)
    return {**values, "towers": {field: value for field, value in values["towers"].items() if f"towers.{field}" not in own}}


def field_schemas(model: type[BaseModel]) -> dict[str, dict[str, Any]]:
    """Dotted path of each field -> its JSON schema without references, which stands alone."""
    schema = model.model_json_schema()
    resolved = _resolved(schema, schema.get("$defs", {}))
    return dict(_leaves(resolved["properties"]))


def render_settings(settings: Sequence[Setting], width: int) -> str:
    """A table for each section, `width` columns wide or somewhat more."""
    blocks = []
    for section, group in groupby(settings, key=lambda setting: setting.section):
        rows = [(s.name, shown(s.value), s.source, _meaning(s)) for s in group]
        about = RetrainConfig.model_fields[section].description if section else "the retriever as a whole"
        table = _table(("field", "value", "from", "meaning"), rows, (_VALUE_WIDTH, _SOURCE_WIDTH), width)
        blocks.append(f"{section or GENERAL}: {about}\n{table}")
    return "\n\n".join(blocks)


def as_yaml(settings: Sequence[Setting], heading: Sequence[str]) -> str:
    """The settings as a file for `--config`, each with its meaning as a comment; `heading` becomes the first lines.

    What is left to the model stands there as a comment alone.
    """
    lines = [f"# {line}".rstrip() for line in heading]
    open_sections: list[str] = []
    for setting in settings:
        *sections, name = setting.field.split(".")
        shared = next((depth for depth, pair in enumerate(zip(open_sections, sections, strict=False)) if pair[0] != pair[1]), None)
        shared = min(len(open_sections), len(sections)) if shared is None else shared
        lines += [f"{'  ' * depth}{sections[depth]}:" for depth in range(shared, len(sections))]
        open_sections = sections
        entry = yaml.safe_dump({name: setting.value}, allow_unicode=True, sort_keys=False, width=2**30)
        entry = f"# {name}: left out, so that the model's own counts where it has one" if setting.source == TEACHERS_OWN else entry
        comment = "\n".join(textwrap.wrap(_meaning(setting), 120, initial_indent="# ", subsequent_indent="# "))
        lines.append(textwrap.indent(f"{comment}\n{entry}".rstrip("\n"), "  " * len(sections)))
    return "\n".join(lines) + "\n"


def differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[Difference]:
    """The fields that differ between two configurations as plain values, in the order of the first."""
    left, right = flat(a), flat(b)
    fields = [*left, *(field for field in right if field not in left)]
    return [
        Difference(field, left.get(field), right.get(field), field in left, field in right)
        for field in fields
        if (field in left) != (field in right) or not same(left[field], right[field])
    ]


def render_differences(found: Sequence[Difference], names: tuple[str, str], width: int) -> str:
    """Both values of each field, headed by the names of the two configurations; fields that one of them lacks come last."""
    both = [(d.field, shown(d.a), shown(d.b)) for d in found if d.in_a and d.in_b]
    half = max(_VALUE_WIDTH, (width - _MEANING_WIDTH) // 2)
    blocks = [_table(("field", *names), both, (half,), width)] if both else []
    for here, there, known in ((names[0], names[1], "in_a"), (names[1], names[0], "in_b")):
        lone = [d for d in found if getattr(d, known) and not (d.in_a and d.in_b)]
        if lone:
            rows = [(d.field, shown(d.a if d.in_a else d.b)) for d in lone]
            blocks.append(f"Only in {here}; {there} does not record:\n{_table(('field', here), rows, (), width)}")
    return "\n\n".join(blocks)


def flat(values: Mapping[str, Any]) -> dict[str, Any]:
    """Sections and their parts by dotted paths; a mapping that is a field's own value stays whole."""
    return dict(_flat(values, "", {field.rpartition(".")[0] for field in field_schemas(RetrainConfig)}))


def _flat(values: Mapping[str, Any], prefix: str, sections: Collection[str]) -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        path = f"{prefix}{key}"
        if isinstance(value, Mapping) and (not prefix or path in sections):  # older releases have sections that are gone
            yield from _flat(value, f"{path}.", sections)
        else:
            yield path, value


def same(a: Any, b: Any) -> bool:
    """Equality in which true is not 1, at any depth."""
    return bool(a == b) and _kinds(a) == _kinds(b)


def shown(value: Any) -> str:
    """A value on one line as YAML would take it: a text in quotes only where it would be read as something else or could not be seen."""
    if isinstance(value, str) and value and value.isprintable() and value == value.strip():
        try:
            if yaml.safe_load(value) == value:
                return value
        except (yaml.YAMLError, ValueError):  # the latter of a day that there is not, such as 2026-02-30
            pass
    printable = json.dumps(value, ensure_ascii=False)
    return printable if printable.isprintable() else json.dumps(value)


def plain(setting: Setting) -> dict[str, Any]:
    """A setting as JSON has it, without its field."""
    values = asdict(setting) | {"changed": setting.changed}
    values["from"] = values.pop("source")
    del values["field"]
    return values


def _kinds(value: Any) -> Any:
    """Where in a value the booleans stand."""
    if isinstance(value, Mapping):
        return {key: _kinds(inner) for key, inner in value.items()}
    return [_kinds(inner) for inner in value] if isinstance(value, list | tuple) else isinstance(value, bool)


def _gives(values: Any, path: Sequence[str]) -> bool:
    """Whether `values` hold something for the field at `path`; an empty section gives nothing, null within a section takes back."""
    for depth, part in enumerate(path[:-1]):
        if part not in values:
            return False
        values = values[part]
        if not isinstance(values, Mapping):
            return depth > 0 if values is None else True  # one word for a whole section
    return path[-1] in values


def _resolved(schema: Any, definitions: Mapping[str, Any]) -> Any:
    """The schema with each `$ref` replaced by what it names; what stands beside the reference, as a description, wins."""
    if isinstance(schema, list):
        return [_resolved(part, definitions) for part in schema]
    if not isinstance(schema, Mapping):
        return schema
    whole = {key: _resolved(part, definitions) for key, part in schema.items() if key not in ("$ref", "$defs")}
    named = schema.get("$ref")
    return {**_resolved(definitions[named.rpartition("/")[2]], definitions), **whole} if isinstance(named, str) else whole


def _leaves(properties: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    for name, schema in properties.items():
        if "properties" in schema:
            yield from _leaves(schema["properties"], f"{prefix}{name}.")
        else:
            yield prefix + name, schema


def _meaning(setting: Setting) -> str:
    default = f"; default {shown(setting.default)}" if setting.changed else ""
    return f"{setting.description} ({setting.allowed}{default})"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], limits: Sequence[int], width: int) -> str:
    """Left-aligned columns. The first never wraps, those between it and the last wrap at `limits`, the last at what is left of `width`."""
    widest = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head) - 1)]
    widths = [widest[0], *(min(found, limit) for found, limit in zip(widest[1:], limits, strict=True))]
    widths.append(max(_MEANING_WIDTH, width - sum(widths) - 2 * len(head)))
    return "\n".join(line for row in (head, *rows) for line in _wrapped(row, widths))


def _wrapped(row: Sequence[str], widths: Sequence[int]) -> list[str]:
    cells = [textwrap.wrap(cell, limit, break_on_hyphens=False) or [""] for cell, limit in zip(row, widths, strict=True)]
    height = max(len(cell) for cell in cells)
    padded = ([*cell, *[""] * (height - len(cell))] for cell in cells)
    return [("  " + "  ".join(part.ljust(w) for part, w in zip(line, widths, strict=True))).rstrip() for line in zip(*padded, strict=True)]
