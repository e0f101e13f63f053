"""The command `models`: fetch, list and verify the base models of a configuration before the training day."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from components.errors import ConfigError
from components.towers.config import WITHOUT_WEIGHTS
from flows.cli.build import read_config
from flows.cli.output import only_result_on_stdout, show


def models(options: argparse.Namespace) -> int:
    """Pull, list or verify; returns 1 when a file of a model is not what the hub named it for."""
    return {"pull": _pull, "list": _list, "verify": _verify}[options.action](options)


def _pull(options: argparse.Namespace) -> int:
    from components.towers.base_models import resolve_base

    found = []
    with only_result_on_stdout(options):
        for name, revision, code in _asked_for(options):
            # Those that are built from the data's texts are made when the data is there.
            base = resolve_base(name, ["any text"], revision, code)
            found.append({"model": base.name, "commit": base.revision, "digest": base.digest, "folder": base.location})
    show(options, {"models": found}, "\n".join(_line(model) for model in found))
    return 0


def _list(options: argparse.Namespace) -> int:
    from components.towers.hub import cache_folder, cached_models

    found = [{"model": name, "commit": commit, "bytes": size} for name, commit, size in cached_models()]
    lines = [f"{m['model']}  commit {str(m['commit'])[:12]}  {int(str(m['bytes'])) / 1e9:.2f} GB" for m in found]
    text = "\n".join([*lines, f"{len(found)} model revisions in {cache_folder()}"])
    show(options, {"cache": str(cache_folder()), "models": found}, text)
    return 0


def _verify(options: argparse.Namespace) -> int:
    from components.towers.base_models import resolve_base
    from components.towers.hub import verify

    found: list[dict[str, Any]] = []
    for name, revision, code in _asked_for(options):
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
        for given in options.models:
            name, at, revision = given.partition("@")
            if not name or (at and not revision):
                raise ConfigError(f"Expected a model as NAME or NAME@REVISION, not '{given}'.")
            yield (given, None, False) if revision.isdecimal() else (name, revision or None, False)  # NAME@6 keeps six layers
        return
    config = read_config(options)
    if config.towers.base_model not in WITHOUT_WEIGHTS:
        yield config.towers.base_model, config.towers.revision, config.towers.trust_remote_code
    if config.distillation.student != "teacher":
        yield config.distillation.student, config.distillation.revision, False
    if config.distillation.generated:
        yield config.distillation.generator, config.distillation.generator_revision, False


def _line(model: dict[str, Any]) -> str:
    commit = f"commit {model['commit'][:12]}, " if model["commit"] else ""
    return f"{model['model']}: {commit}digest {model['digest'][:12]}"
