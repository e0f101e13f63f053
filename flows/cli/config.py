"""Commands about configurations: config show, config diff."""

from __future__ import annotations

import argparse
import re
import shlex
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from components.errors import ConfigError
from components.plain_text import as_json
from flows.cli.build import read_layers
from flows.cli.output import retriever_name, show
from flows.config import RetrainConfig, load_config, preset_names, settle
from flows.config_errors import did_you_mean
from flows.config_view import as_yaml, differences, plain, render_differences, render_settings, settings_of

_RUN_ID = re.compile(r"[0-9a-f]{32}")
_FORMS = "the id of a flow's run in MLflow, champion, previous, candidate/N, release/N, a preset ({}), or a YAML file"


@dataclass(frozen=True)
class Recorded:
    """A configuration with the name it is shown under; `facts` are what else is recorded of the build, such as its data's digest."""

    title: str
    values: Mapping[str, Any]
    facts: Mapping[str, Any] = field(default_factory=dict)


def show_config(options: argparse.Namespace) -> None:
    """Every setting with its value, meaning, bounds and origin; with --write also as a file."""
    layers = read_layers(options)
    settings = settings_of(layers)
    changed = [setting for setting in settings if setting.changed]
    written = _write(options, as_yaml(settings, _heading(options))) if options.write else ""
    value = {
        "sources": [layer.source for layer in layers],
        "settings": {setting.field: plain(setting) for setting in (changed if options.changed else settings)},
        "config": settle(RetrainConfig, layers).model_dump(mode="json"),
    }
    table = render_settings(changed if options.changed else settings, _width())
    origin = ", ".join(["the defaults", *(layer.source for layer in layers)])
    count = f"{len(changed)} of {len(settings)} settings differ from their defaults ({origin})."
    show(options, value, "\n\n".join(part for part in (table, count + written) if part))


def show_schema(options: argparse.Namespace) -> None:
    """The JSON schema of a configuration file. Editors find it by a first line such as `# yaml-language-server: $schema=FILE`."""
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **RetrainConfig.model_json_schema()}
    show(options, schema, as_json(schema, indent=1))


def show_completion(options: argparse.Namespace) -> None:
    """A completion script for the shell, made from the commands as they are."""
    import shtab

    from flows.cli.parser import build_parser

    script = shtab.complete(build_parser(), options.shell)
    show(options, {"shell": options.shell, "script": script}, script)


def diff_configs(options: argparse.Namespace) -> None:
    """The settings in which two configurations differ. The exit status is 0 either way: this command looks, and judges nothing."""
    a, b = (_recorded(options, ref) for ref in (options.a, options.b))
    found = differences(a.values, b.values)
    facts = [fact for fact in a.facts if fact in b.facts and a.facts[fact] != b.facts[fact]]
    value = {
        "a": {"ref": options.a, "title": a.title, "facts": a.facts},
        "b": {"ref": options.b, "title": b.title, "facts": b.facts},
        "equal": not found,
        "different": {d.field: {"a": d.a, "b": d.b} for d in found if d.in_a and d.in_b},
        "only_in_a": {d.field: d.a for d in found if not d.in_b},
        "only_in_b": {d.field: d.b for d in found if not d.in_a},
        "facts_that_differ": facts,
    }
    names = (options.a, options.b) if options.a != options.b else ("A", "B")
    summary = f"{len(found)} settings differ." if found else "All settings are equal."
    notes = [f"{fact} differs: {a.facts[fact]} and {b.facts[fact]}." for fact in facts]
    head = f"A: {a.title}\nB: {b.title}"
    show(options, value, "\n\n".join(p for p in (head, render_differences(found, names, _width()), "\n".join([summary, *notes])) if p))


def _heading(options: argparse.Namespace) -> list[str]:
    given = [("--preset", options.preset), ("--config", options.config), ("--policy", options.policy), ("--data", options.data)]
    given += [("--name", options.name), ("--max-documents", options.max_documents), *(("--set", entry) for entry in options.set)]
    words = [word for option, value in given if value is not None for word in (option, str(value))]
    command = shlex.join(["scalingnote", "config", "show", *words])
    # YAML refuses control characters even in comments.
    readable = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in command)
    return ["All settings, as this command found them:", f"    {readable}", "Build with them: scalingnote retrain --config FILE", ""]


def _write(options: argparse.Namespace, content: str) -> str:
    from components.artifacts import write_atomic

    target: Path = options.write
    other = target.exists() and not target.is_file()
    if other or not target.absolute().parent.is_dir():
        wrong = "is no file" if other else "lies in a folder that does not exist"
        raise ConfigError(f"--write {target} {wrong}. Give a file in a folder that is there.")
    for option, given in (("--config", options.config), ("--policy", options.policy)):
        if given and target.resolve() == given.resolve():
            raise ConfigError(f"--write names the file that {option} reads, and its comments would be lost. Write to another file.")
    write_atomic(target, content.encode())
    return f"\nWritten to {target}."


def _recorded(options: argparse.Namespace, ref: str) -> Recorded:
    """The configuration that `ref` names; raises ConfigError or PromotionError that says what there is."""
    if ref in preset_names():
        return Recorded(f"preset {ref}", load_config(ref).model_dump(mode="json"))
    if _RUN_ID.fullmatch(ref):
        return _of_run(ref)
    if ref in ("champion", "previous") or ref.startswith(("candidate/", "release/")):
        return _of_release(retriever_name(options), ref)
    file = Path(ref)
    if file.suffix in (".yaml", ".yml") or file.is_file():
        return Recorded(f"file {ref}", load_config(None, file).model_dump(mode="json"))
    hint = did_you_mean(ref, [*preset_names(), "champion", "previous"])
    raise ConfigError(f"'{ref}' names no configuration{hint or '.'} Expected {_FORMS.format(', '.join(preset_names()))}.")


def _of_release(name: str, ref: str) -> Recorded:
    from components.release.manifest import load_release
    from components.release.references import resolve
    from components.tracking import registry

    model, version = resolve(name, ref)
    manifest = load_release(registry.artifact_folder(model, version))
    found = f"{model.rpartition('-')[2]}/{version} of '{name}' ({manifest.release_type})"
    facts = {"data": manifest.dataset.digest, "code": manifest.provenance.get("code_revision", "unknown")}
    return Recorded(found if ref in found.split() else f"{ref}, {found}", manifest.config, facts)


def _of_run(run_id: str) -> Recorded:
    from components.tracking.runs import read_flow_run

    run = read_flow_run(run_id)
    if run is None:
        raise ConfigError(f"MLflow has no run {run_id}. The page of a flow's run in the MLflow UI (scalingnote ui) shows its id.")
    if run.parent:
        raise ConfigError(f"The run {run_id} is that of the step {run.title}. Its flow's run records the configuration: {run.parent}.")
    if run.config is None:
        raise ConfigError(
            f"The run {run_id} ({run.title}) holds no configuration: it is not the run of a flow that builds, or its config.json is gone. "
            "Compare a release (candidate/N, release/N) instead, whose manifest holds it."
        )
    facts = {"code": run.tags["scalingnote.code_revision"]} if "scalingnote.code_revision" in run.tags else {}
    return Recorded(f"run {run_id} ({run.title}, {run.started} UTC, {run.status.lower()})", run.config, facts)


def _width() -> int:
    """Columns of the terminal; where there is none, such as in a file, lines may be long."""
    return shutil.get_terminal_size((150, 24)).columns
