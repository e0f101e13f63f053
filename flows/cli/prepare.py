"""Commands before a run: plan, config show and diff, models."""

from __future__ import annotations

import argparse
import re
import shlex
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any

from components.errors import ConfigError
from components.gates.config import PolicyConfig
from components.settings import kinds_of, strict_yaml
from components.text import as_json
from components.towers.config import WITHOUT_WEIGHTS
from flows.cli.output import only_result_on_stdout, retriever_name, show
from flows.config import (
    Layer,
    RetrainConfig,
    Settings,
    did_you_mean,
    layers_of,
    left_by_preset,
    load_config,
    nested,
    preset_names,
    read_yaml,
    settle,
)
from flows.config_view import as_given, as_yaml, differences, plain, render_differences, render_settings, settings_of

if TYPE_CHECKING:
    from flows.planning import Plan


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
        "config": as_given(settle(RetrainConfig, layers)),
        "notes": [stays] if (stays := left_by_preset(layers)) else [],
    }
    table = render_settings(changed if options.changed else settings, _width())
    origin = ", ".join(["the defaults", *(layer.source for layer in layers)])
    count = f"{len(changed)} of {len(settings)} settings differ from their defaults ({origin}). {stays}".rstrip()
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
    from components.artifacts import write_named

    target: Path = options.write
    other = target.exists() and not target.is_file()
    if other or not target.absolute().parent.is_dir():
        wrong = "is no file" if other else "lies in a folder that does not exist"
        raise ConfigError(f"--write {target} {wrong}. Give a file in a folder that is there.")
    for option, given in (("--config", options.config), ("--policy", options.policy)):
        if given and target.resolve() == given.resolve():
            raise ConfigError(f"--write names the file that {option} reads, and its comments would be lost. Write to another file.")
    write_named(target, content.encode())
    return f"\nWritten to {target}."


def _recorded(options: argparse.Namespace, ref: str) -> Recorded:
    """The configuration that `ref` names; raises ConfigError or PromotionError that says what there is."""
    if ref in preset_names():
        return Recorded(f"preset {ref}", as_given(load_config(ref)))
    if _RUN_ID.fullmatch(ref):
        return _of_run(ref)
    if ref in ("champion", "previous") or ref.startswith(("candidate/", "release/")):
        return _of_release(retriever_name(options), ref)
    file = Path(ref)
    if file.suffix in (".yaml", ".yml") or file.is_file():
        return Recorded(f"file {ref}", as_given(load_config(None, file)))
    hint = did_you_mean(ref, [*preset_names(), "champion", "previous"])
    raise ConfigError(f"'{ref}' names no configuration{hint or '.'} Expected {_FORMS.format(', '.join(preset_names()))}.")


def _of_release(name: str, ref: str) -> Recorded:
    from components.release.manifest import load_release
    from components.release.open import resolve
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


# --- The command `models`: fetch, list and verify the base models of a configuration before the training day.


def models(options: argparse.Namespace) -> int:
    """Pull, list or verify; returns 1 when a file of a model is not what the hub named it for."""
    return {"pull": _pull, "list": _list, "verify": _verify}[options.action](options)


def _pull(options: argparse.Namespace) -> int:
    from components.towers.base_models import resolve_base

    found = []
    with only_result_on_stdout(options):
        for name, revision, code in dict.fromkeys(_asked_for(options)):
            # Those that are built from the data's texts are made when the data is there.
            base = resolve_base(name, ["any text"], revision, code)
            found.append({"model": base.name, "commit": base.revision, "digest": base.digest, "folder": base.location})
    show(options, {"models": found}, "\n".join(_line(model) for model in found))
    return 0


def _list(options: argparse.Namespace) -> int:
    """The whole cache, or what it holds of the models that somebody names, by themselves or by a configuration."""
    from components.towers.base_models import is_on_hub
    from components.towers.hub import cache_folder, cached_models, is_commit

    found = [{"model": name, "commit": commit, "bytes": size} for name, commit, size in cached_models()]
    lines, more = [_cached_line(model) for model in found], {}
    if options.models or _configured(options):
        rows, lines = found, []
        found, missing = [], []
        for name, revision, _ in dict.fromkeys(_asked_for(options)):
            whole = name.partition("@")[0]
            here = [row for row in rows if row["model"] == whole and (row["commit"] == revision or not is_commit(revision))]
            found += here
            lines += map(_cached_line, here)
            if not is_on_hub(name):
                lines.append(f"{name}: no model of a hub")
            elif not here:
                missing.append(name)
                lines.append(f"{name}: not in the cache; `scalingnote models pull` fetches it")
        more = {"missing": missing}
    text = "\n".join([*lines, f"{len(found)} model revisions in {cache_folder()}"])
    show(options, {"cache": str(cache_folder()), "models": found, **more}, text)
    return 0


def _cached_line(model: Mapping[str, Any]) -> str:
    return f"{model['model']}  commit {str(model['commit'])[:12]}  {int(model['bytes']) / 1e9:.2f} GB"


def _configured(options: argparse.Namespace) -> list[str]:
    """The options by which somebody has named a configuration."""
    given = {"--preset": options.preset, "--config": options.config, "--data": options.data, "--max-documents": options.max_documents}
    return [option for option, value in {**given, "--set": options.set or None}.items() if value is not None]


def _verify(options: argparse.Namespace) -> int:
    from components.towers.base_models import resolve_base
    from components.towers.hub import verify

    found: list[dict[str, Any]] = []
    for name, revision, code in dict.fromkeys(_asked_for(options)):
        base = resolve_base(name, ["any text"], revision, code)
        # The digest of any other model was made from its files a moment ago.
        faults = verify(Path(base.location)) if base.revision else []
        found.append({"model": base.name, "commit": base.revision, "digest": base.digest, "faults": faults})
    wrong = [f"{model['model']}: {fault}" for model in found for fault in model["faults"]]
    text = "\n".join([*(_line(model) for model in found if not model["faults"]), *wrong])
    show(options, {"models": found}, text)
    return 1 if wrong else 0


def _asked_for(options: argparse.Namespace) -> Iterator[tuple[str, str | None, bool]]:
    """The models that were named on the command line, or else those of the configuration: name, revision, whether their code may run."""
    if options.models:
        if others := _configured(options):
            raise ConfigError(f"Name models, or the configuration that names them, not both: {', '.join(others)} would do nothing.")
        for given in options.models:
            name, at, revision = given.partition("@")
            if not name or (at and not revision):
                raise ConfigError(f"Expected a model as NAME or NAME@REVISION, not '{given}'.")
            yield (given, None, False) if revision.isdecimal() else (name, revision or None, False)  # NAME@6 keeps six layers
        return
    config = read_config(options)
    if config.towers.base_model not in WITHOUT_WEIGHTS:
        yield config.towers.base_model, config.towers.revision, config.towers.trust_remote_code
    for beside in (config.towers.companion, config.towers.judge):
        if beside.base_model:
            yield beside.base_model, beside.revision, False
    if config.distillation.student != "teacher":
        yield config.distillation.student, config.distillation.revision, False
    if config.distillation.generated:
        yield config.distillation.generator, config.distillation.generator_revision, False


def _line(model: dict[str, Any]) -> str:
    commit = f"commit {model['commit'][:12]}, " if model["commit"] else ""
    return f"{model['model']}: {commit}digest {model['digest'][:12]}"


# --- The command `plan`, and the planning of a retraining that has a budget.


def plan(options: argparse.Namespace) -> int:
    """Print the plan, write its settings where asked; status 2 when nothing fits."""
    _require_new(options.write)
    found = _plan(options, read_config(options))
    if options.write is not None and not found.knob:
        from components.artifacts import write_named

        write_named(options.write, _as_yaml(found).encode())
    stays = left_by_preset(read_layers(options))
    found = replace(found, notes=[*found.notes, *([stays] if stays else [])])
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
        return make_plan(config, _set_by_person(options), budget, size, options.again is True)  # of retrain it names steps


def _set_by_person(options: argparse.Namespace) -> set[str]:
    """Dotted names of the settings that a person gave, by --set, --policy or a file; those of a preset are proposals themselves."""
    given = nested({**policy_settings(options), **parsed_settings(options)})
    from_file = read_yaml(options.config) if options.config is not None else {}
    return {*_leaves(given), *_leaves(from_file)}


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in values.items():
        if prefix or not isinstance(value, Mapping):
            yield f"{prefix}{key}"  # of a section within a section too: its own settings are told beside it
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")


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


def read_config(options: argparse.Namespace) -> RetrainConfig:
    """The configuration that the command line names."""
    return read_settings(options, RetrainConfig)


def read_settings(options: argparse.Namespace, model: type[Settings]) -> Settings:
    """The configuration `model` that the command line names."""
    return settle(model, read_layers(options, model))


def read_layers(options: argparse.Namespace, model: type[RetrainConfig] = RetrainConfig) -> list[Layer]:
    """What the command line lays over the defaults, the one that wins last: preset, file, policy, single settings.

    Raises ConfigError for what contradicts itself or cannot be read.
    """
    given = {"name": options.name, "data.source": options.data, "data.max_documents": options.max_documents}
    single = parsed_settings(options, model)
    for setting, value in given.items():
        if value is not None and single.setdefault(setting, value) != value:
            option = f"--{setting.removeprefix('data.').replace('source', 'data').replace('_', '-')}"
            raise ConfigError(f"{option} {value} and --set {setting}={single[setting]} contradict each other. Leave one of them out.")
    policy = policy_settings(options)
    layers = layers_of(options.preset, options.config)
    if policy:  # it stands alone: no floor of a preset's policy may stay beside its own
        layers = [layer._replace(values={key: values for key, values in layer.values.items() if key != "policy"}) for layer in layers]
        layers.append(Layer(f"policy {options.policy}", nested(policy)))
    return [*layers, *layers_of(overrides=single)]


def policy_settings(options: argparse.Namespace) -> dict[str, Any]:
    """The policy in the file given with --policy, by dotted names; it stands alone, so what it leaves out has the default of its field.

    Raises ConfigError for a file that cannot be read or names no version.
    """
    file: Path | None = getattr(options, "policy", None)  # commands that decide nothing have no such option
    if file is None:
        return {}
    given = read_yaml(file)
    if "version" not in given:
        raise ConfigError(f"The policy {file} names no version. Add a line such as 'version: \"2026-1\"'; change it with any threshold.")
    return {f"policy.{field}": value for field, value in {**PolicyConfig().model_dump(mode="json"), **given}.items()}


def parsed_settings(options: argparse.Namespace, model: type[RetrainConfig] = RetrainConfig) -> dict[str, Any]:
    """The settings of `model` given with --set, by their dotted names; raises ConfigError for what is no value of a setting."""
    settings: dict[str, Any] = {}
    for entry in options.set:
        field, equals, value = entry.partition("=")
        if not equals or not field:
            raise ConfigError(f"--set expects FIELD=VALUE, such as towers.steps=200, not '{entry}'.")
        settings[field] = _parsed(field, value, _kinds(model, field))
    return settings


_NOTHING = ("", "~", "null", "Null", "NULL")


def _parsed(field: str, value: str, kinds: frozenset[Any]) -> Any:
    """What stands behind --set FIELD=: words where the setting takes text (1.0, yes, a day, 'query: '), else what YAML makes of it."""
    import yaml

    text = str in kinds and not kinds & {int, float, bool}
    if not value.strip() and kinds and (not text or NoneType in kinds):
        raise ConfigError(f"--set {field}= gives no value; is a variable unset? Write null for none, or leave the option out.")
    if text and value.strip() not in _NOTHING and not value.startswith(("'", '"')):
        return value
    try:
        return strict_yaml(value)
    except yaml.YAMLError as error:
        if text:
            return value
        problem = getattr(error, "problem", None) or str(error).partition("\n")[0]
        raise ConfigError(f"--set {field}: '{value:.60}' is no value that YAML can read: {problem}.") from None


def _kinds(model: Any, name: str) -> frozenset[Any]:
    """The types of the field of this dotted name; none for a name that is not known."""
    section, _, rest = name.partition(".")
    field = getattr(model, "model_fields", {}).get(section)
    if field is None:
        return frozenset()
    return _kinds(field.annotation, rest) if rest else kinds_of(field.annotation)
