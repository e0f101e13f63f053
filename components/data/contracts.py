"""Read data contracts: Open Data Contract Standard 3 YAML files, turned into the rules they state.

Every part of a contract that promises something about the data becomes a rule or is refused with the parts that can be used.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components import settings
from components.artifacts import digest_of, file_sha256
from components.data.contract_quality import check_counts, check_numbers, quality_rule, regular_expression
from components.data.dataset import TABLES
from components.data.rules import Contract, Place, Rule
from components.errors import ConfigError

if TYPE_CHECKING:
    from open_data_contract_standard.model import OpenDataContractStandard, SchemaObject, SchemaProperty

REQUIRED_TABLES = ("documents", "queries", "judgements")
LOGICAL_TYPES = ("string", "integer", "number", "boolean")
LENGTH_OPTIONS = {"minLength": "min", "maxLength": "max"}
RANGE_OPTIONS = {"minimum": "min", "maximum": "max"}
_OPTIONS = (*LENGTH_OPTIONS, *RANGE_OPTIONS, "pattern")


def contracts_folder(configured: str) -> Path:
    """The folder named in the configuration, or the one that comes with the project."""
    return settings.expanded(configured) if configured else settings.shipped("data_contracts")


def contracts_digest(folder: Path) -> str:
    """sha256 over the contracts' files by name and content; a part of the key under which a validation is cached."""
    return digest_of({path.name: file_sha256(path) for path in _files(folder)})


def load_contracts(folder: Path) -> list[Contract]:
    """Every contract of `folder`; raises ConfigError with file and place for what cannot be checked."""
    contracts = [_load(path) for path in _files(folder)]
    if twice := _first_repeated((contract.name, "") for contract in contracts):
        files = " and ".join(contract.file for contract in contracts if contract.name == twice[0])
        raise ConfigError(f"{folder} has two contracts of the name '{twice[0]}': {files}. Give each its own name, or remove one.")
    covered = {rule.table for contract in contracts for rule in contract.rules}
    if missing := [table for table in REQUIRED_TABLES if table not in covered]:
        raise ConfigError(f"{folder} has no contract for the table {missing[0]}. Every one of {', '.join(REQUIRED_TABLES)} needs one.")
    return contracts


def _files(folder: Path) -> list[Path]:
    files = sorted(path for pattern in ("*.yaml", "*.yml") for path in folder.glob(pattern))
    if not files:
        raise ConfigError(f"No contracts (*.yaml) in {folder}. Give a folder with contracts for {', '.join(REQUIRED_TABLES)}.")
    return files


def _load(path: Path) -> Contract:
    contract = _parse(path)
    version, name = contract.version, contract.name or contract.id
    if not version or not name or contract.kind != "DataContract" or not (contract.apiVersion or "").startswith("v3."):
        raise ConfigError(f"{path}: expected kind: DataContract, apiVersion: v3.1.0, a name and a version.")
    rules = [rule for table in contract.schema_ or [] for rule in _table_rules(table, Place(name, version, str(path), table.name or ""))]
    if twice := _first_repeated((rule.table, rule.name) for rule in rules):
        raise ConfigError(f"{path}: the table {twice[0]} has two rules named '{twice[1]}'. Give each its own name.")
    return Contract(name, version, path.name, tuple(rules))


def _parse(path: Path) -> OpenDataContractStandard:
    import yaml
    from open_data_contract_standard.model import OpenDataContractStandard
    from pydantic import ValidationError

    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
        contract = OpenDataContractStandard.model_validate(raw)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "the file"
        raise ConfigError(f"{path}: {place}: {first['msg']}. See the Open Data Contract Standard 3.1 for the fields.") from None
    # The standard's own model ignores unknown fields below the first level, so a misspelt rule would never be checked.
    if unknown := _unknown_field(raw, contract.model_dump(by_alias=True, exclude_unset=True)):
        raise ConfigError(f"{path}: {unknown} is no field of the Open Data Contract Standard 3.1. Correct its name or remove it.")
    return contract


def _unknown_field(raw: Any, read: Any) -> str | None:
    """Path of the first field of `raw` that was not read, or None."""
    if isinstance(raw, list) and isinstance(read, list):
        pairs = [(str(number), *both) for number, both in enumerate(zip(raw, read, strict=True))]
    elif isinstance(raw, dict) and isinstance(read, dict):
        if missing := [key for key in raw if key not in read]:
            return str(missing[0])
        pairs = [(str(key), value, read[key]) for key, value in raw.items()]
    else:
        return None
    found = ((key, _unknown_field(one, other)) for key, one, other in pairs)
    return next((f"{key}.{below}" for key, below in found if below), None)


def _table_rules(table: SchemaObject, place: Place) -> list[Rule]:
    if place.table not in TABLES:
        raise ConfigError(f"{place}: there is no such table. Allowed: {', '.join(TABLES)}.")
    if table.relationships:
        raise ConfigError(f"{place}: write relationships under the column they start from, with 'to: table.column'.")
    columns = table.properties or []
    rules = [rule for column in columns for rule in _column_rules(column, replace(place, column=column.name or ""))]
    return rules + _key_rules(columns, place) + [quality_rule(quality, place) for quality in table.quality or []]


def _column_rules(column: SchemaProperty, place: Place) -> list[Rule]:
    if place.column not in TABLES[place.table]:
        raise ConfigError(f"{place}: there is no column '{place.column}'. Allowed: {', '.join(TABLES[place.table])}.")
    if column.properties or column.items or column.map:
        raise ConfigError(f"{place}: nested columns cannot be checked; the tables here are flat.")
    rules = [place.derived("column_exists", "exists")]
    if column.logicalType:
        rules.append(place.derived("type", "type", type=_logical_type(column.logicalType, place)))
    if column.required:
        rules.append(place.derived("not_null", "required"))
    if column.unique:
        rules.append(place.derived("unique", "unique"))
    if column.enum:
        rules.append(place.derived("allowed_values", "allowed_values", values=[entry.value for entry in column.enum]))
    rules += _option_rules(column.logicalTypeOptions or {}, place)
    rules += [place.derived("references", "references", to=_target(relation.to, place)) for relation in column.relationships or []]
    return rules + [quality_rule(quality, place) for quality in column.quality or []]


def _option_rules(options: Mapping[str, Any], place: Place) -> list[Rule]:
    if unknown := [option for option in options if option not in _OPTIONS]:
        raise ConfigError(f"{place}: the option '{unknown[0]}' cannot be checked. Allowed: {', '.join(_OPTIONS)}.")
    length = {short: options[option] for option, short in LENGTH_OPTIONS.items() if option in options}
    bounds = {short: options[option] for option, short in RANGE_OPTIONS.items() if option in options}
    check_counts(length, place)
    check_numbers(bounds, place)
    rules = [place.derived("length", "length", **length)] if length else []
    if bounds:
        rules.append(place.derived("range", "range", **bounds))
    if "pattern" in options:
        rules.append(place.derived("pattern", "pattern", pattern=regular_expression(options["pattern"], place)))
    return rules


def _key_rules(columns: Sequence[SchemaProperty], place: Place) -> list[Rule]:
    keys = sorted((column for column in columns if column.primaryKey), key=lambda column: column.primaryKeyPosition or 0)
    names = [column.name for column in keys]
    if len(names) > 1:
        return [place.derived("unique_together", "key", columns=names)]
    return [replace(place, column=key.name).derived("unique", "unique") for key in keys if not key.unique]


def _logical_type(value: str, place: Place) -> str:
    if value not in LOGICAL_TYPES:
        raise ConfigError(f"{place}: the logicalType '{value}' cannot be checked. Allowed: {', '.join(LOGICAL_TYPES)}.")
    return value


def _target(value: str | list[str] | None, place: Place) -> str:
    table, _, column = str(value).partition(".")
    if not isinstance(value, str) or column not in TABLES.get(table, ()):
        raise ConfigError(f"{place}: the relationship to '{value}' cannot be checked. Expected table.column, such as documents.doc_id.")
    return value


def _first_repeated(keys: Iterable[tuple[str, str]]) -> tuple[str, str] | None:
    seen: set[tuple[str, str]] = set()
    for key in keys:
        if key in seen:
            return key
        seen.add(key)
    return None
