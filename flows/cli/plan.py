"""The command `plan`, and the planning of a retraining that has a budget."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.errors import ConfigError
from flows.cli.build import parsed_settings, policy_settings, read_config
from flows.cli.output import only_result_on_stdout, show
from flows.config import RetrainConfig, nested, read_yaml

if TYPE_CHECKING:
    from flows.planning import Plan


def plan(options: argparse.Namespace) -> int:
    """Print the plan, write its settings where asked; status 2 when nothing fits."""
    _require_new(options.write)
    found = _plan(options, read_config(options))
    if options.write is not None and not found.knob:
        options.write.write_text(_as_yaml(found), encoding="utf-8")
    show(options, {**vars(found), "fits": not found.knob}, _rendered(options, found))
    return 2 if found.knob else 0


def planned(options: argparse.Namespace) -> tuple[RetrainConfig, str | None]:
    """The configuration that a budget leads to, and the estimate of its run in words. Raises ConfigError when nothing fits."""
    from flows.planning import begin_planned

    asked = read_config(options)
    found = _plan(options, asked)
    if found.knob:
        raise ConfigError(f"Nothing that would train fits. {found.knob}")
    config = RetrainConfig.model_validate(found.config)
    estimate = begin_planned(config, found)
    with only_result_on_stdout(options):
        print(f"Planned for {options.budget}: {estimate or 'all is there, taken from the cache'}.\n{_choices(found)}", flush=True)
    return config, estimate


def _plan(options: argparse.Namespace, config: RetrainConfig) -> Plan:
    from components.planning.plan import parse_budget, parse_card
    from flows.planning import make_plan

    budget = None if options.budget is None else parse_budget(options.budget)
    card = getattr(options, "card", None)
    size = None if card is None else parse_card(card)
    with only_result_on_stdout(options):
        return make_plan(config, _set_by_person(options), budget, size, getattr(options, "again", False))


def _set_by_person(options: argparse.Namespace) -> set[str]:
    """Dotted names of the settings that a person gave, by --set, --policy or a file; those of a preset are proposals themselves."""
    given = nested({**policy_settings(options), **parsed_settings(options)})
    from_file = read_yaml(options.config) if options.config is not None else {}
    return {*_leaves(given), *_leaves(from_file)}


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in values.items():
        if isinstance(value, Mapping) and not prefix:
            yield from _leaves(value, f"{key}.")
        else:
            yield f"{prefix}{key}"


def _require_new(file: Path | None) -> None:
    if file is None:
        return
    if file.is_dir():
        raise ConfigError(f"--write: {file} is a folder; name a new file in it, such as {file / 'plan.yaml'}.")
    if file.exists():
        raise ConfigError(f"--write: {file} exists already; name a new file, or remove it first.")
    if not file.absolute().parent.is_dir():
        raise ConfigError(f"--write: the folder {file.absolute().parent} does not exist; make it first.")


def _as_yaml(found: Plan) -> str:
    """The settings that differ from the defaults, with the reason of each that was proposed."""
    import yaml

    defaults = RetrainConfig().model_dump(mode="json")
    different = {section: _differing(values, defaults[section]) for section, values in found.config.items()}
    kept = {section: values for section, values in different.items() if values not in ({}, defaults[section])}
    reasons = [f"# {c['field']}: {c['reason']}" for c in found.choices]
    head = ["# Planned by scalingnote plan; what is not named here has its default.", *reasons]
    return "\n".join(head) + "\n" + yaml.safe_dump(kept, sort_keys=False, allow_unicode=True)


def _differing(values: Any, defaults: Any) -> Any:
    if not isinstance(values, dict):
        return values
    return {key: value for key, value in values.items() if value != defaults[key]}


def _rendered(options: argparse.Namespace, found: Plan) -> str:
    from components.planning.plan import in_words

    if found.knob:
        end = f"It does not fit. {found.knob}" + (f" {options.write} was not written." if options.write is not None else "")
    elif options.write is not None:
        end = f"Written to {options.write}. Next:\n  scalingnote retrain --config {options.write}"
    else:
        end = "With --write FILE these settings go into a file that scalingnote retrain --config takes."
    total = in_words(found.seconds) if all(row["seconds"] is not None for row in found.rows) else "not known here"
    state = f"On {found.device}, still to be made: {total}"
    return "\n\n".join(["\n".join(found.data), _choices(found), _steps(found), "\n".join([state, *found.notes]), end])


def _choices(found: Plan) -> str:
    rows = [("setting", "was", "planned", "reason")]
    rows += [(c["field"], _shown(c["before"]), _shown(c["value"]), c["reason"]) for c in found.choices]
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    return "\n".join("  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[3]]) for row in rows)


def _shown(value: Any) -> str:
    return "null" if value is None else str(value)


def _steps(found: Plan) -> str:
    from components.planning.plan import in_words

    card = any(row["card"] for row in found.rows)
    rows = [("step", "time", "memory", "disk", *(["card"] if card else []))]
    for row in found.rows:
        time = "?" if row["seconds"] is None else in_words(row["seconds"]) if row["step"] in found.pending else "made"
        on_card = [f"{row['card'] / 2**30:.1f} GiB" if row["card"] else "-"] if card else []
        rows.append((row["step"], time, f"{row['memory'] / 1e9:.1f} GB", f"{row['disk'] / 1e6:,.0f} MB", *on_card))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join([row[0].ljust(widths[0]), *(row[i].rjust(widths[i]) for i in range(1, len(row)))]) for row in rows)
