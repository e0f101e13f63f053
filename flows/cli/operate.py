"""Commands for those who run an installation: status, ui, bootstrap."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from dataclasses import asdict

from components import settings
from flows.cli.output import json_here, only_result_on_stdout, retriever_name, show


def status(options: argparse.Namespace) -> int:
    """What is served and what waits; with --why, what made the steps run again."""
    if options.why is not None:
        from flows.why import render_why, why

        answer = why(retriever_name(options), options.why)
        show(options, answer, render_why(answer))
        return 0
    from components.promotion.status import render_status, status_of

    state = status_of(retriever_name(options))
    show(options, state, render_status(state))
    return 1 if state["alarm"] else 0


def prune_work(options: argparse.Namespace) -> None:
    """Remove results of steps, and downloads, that nothing has used for a while."""
    from flows.runner import remove_unused

    only = retriever_name(options) if options.name else None
    removed = remove_unused(options.days, only, options.dry_run)
    freed, steps = sum(each.bytes for each in removed), Counter(each.step for each in removed)
    answer = {"days": options.days, "dry_run": options.dry_run, "bytes": freed, "removed": [asdict(each) for each in removed]}
    of, long = f" of '{only}' alone" if only else " and downloads", "a day" if options.days == 1 else f"{options.days} days"
    did = "would be" if options.dry_run else "were"
    text = f"{len(removed):,} results{of} that nothing has used for {long} {did} removed: {freed / 2**30:.2f} GiB"
    if not removed:
        what = f"result{of}" if only else "result or download"
        text = f"No {what} in {settings.work_folder()} has lain unused for {long}; what every retriever used last is kept"
    show(options, answer, "\n".join([f"{text}.", *(f"  {step} {count}" for step, count in sorted(steps.items()))]))


def ui(options: argparse.Namespace) -> None:
    """Start both servers."""
    from flows.servers import serve

    out = sys.stdout  # with --json everything else is sent to stderr while they run

    def ready(addresses: dict[str, str]) -> None:
        if options.json:
            print(json_here(addresses), file=out, flush=True)

    with only_result_on_stdout(options):
        serve(options.mlflow_port, options.prefect_port, options.auth, ready)


# --- The command that prepares a server with sign-in: bootstrap.


DEFAULT_SERVER = "http://127.0.0.1:5000"


def bootstrap(options: argparse.Namespace) -> None:
    """Make users, roles, models and experiments."""
    from components.tracking.server.bootstrap import bootstrap as prepare

    name = retriever_name(options)
    prepared = prepare(name, options.server or _server(), options.users)
    made = f"roles made: {', '.join(prepared.roles) or 'none'}; users made: {', '.join(prepared.users) or 'none'}"
    lines = [f"The server {prepared.server} is ready for '{name}': {made}; grants added: {prepared.grants}."]
    lines += [f"Password of {user}: {path}" for user, path in prepared.passwords.items()]
    lines += [
        f"Warning: {user} still holds the role {', '.join(roles)}, which the file does not give. Take it away in MLflow."
        for user, roles in prepared.kept.items()
    ]
    show(options, prepared.to_json(), "\n".join(lines))


def _server() -> str:
    """The server that the environment names, the one that runs over this home folder, or where one would be."""
    from components.tracking.sign_in import running_server
    from components.tracking.store import is_server

    uri = settings.tracking_uri()
    return uri if is_server(uri) else running_server() or DEFAULT_SERVER
