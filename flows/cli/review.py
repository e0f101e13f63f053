"""Commands that change what is served, or tell how it changed: approve, promote, webhook, rollback, history."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from components.errors import ConfigError, ScalingNoteError
from components.text import one_line, visible
from flows.cli.output import json_here, name_option, only_result_on_stdout, require_space, retriever_name, show

if TYPE_CHECKING:
    from flows.webhook import Watch


def approve(options: argparse.Namespace) -> None:
    """Approve a candidate as a named person."""
    from components.promotion.approval import approve as approve_candidate
    from components.release.champion import expected_aliases
    from components.tracking.promotion_records import read_records

    told = bool(os.environ.get("PREFECT_API_URL"))  # a team's server, whose automations promote
    if told:
        from flows.servers import require_usable_settings

        require_usable_settings()  # said before anything is approved
    approval = approve_candidate(retriever_name(options), options.candidate, options.person, options.override)
    state = "approved" if approval.created else "was approved before"
    proof = "unauthenticated" if approval.authentication == "none" else f"{approval.role}, signed in"
    person = approval.person or "somebody who gave no name"
    text = f"candidate/{approval.candidate_version} {state} by {person} ({proof}) as release/{approval.release_version}."
    following = f"Next: scalingnote promote{name_option(approval.name)}"
    if not approval.created and expected_aliases(read_records(approval.name)).champion == approval.release_version:
        following = "It is champion already."
    show(options, asdict(approval), f"{one_line(text)}\n{following}")
    if told:
        from flows.reporting import tell_approved

        try:
            tell_approved(approval.name)
        except ScalingNoteError as error:  # as of a tracking server that has just gone: what was approved is approved
            print(f"scalingnote: {visible(str(error))}", file=sys.stderr)


def promote(options: argparse.Namespace) -> None:
    """Promote the newest approved release, once or again and again."""
    require_space()
    if options.watch is not None:
        if options.without_champion:
            raise ConfigError("--without-champion is about one approval that somebody looked at; run it without --watch.")
        _run(_watch(options), options)
        return
    from flows.servers import run_flow

    with only_result_on_stdout(options):
        result = run_flow("flows.promote:promote", retriever_name(options), without_champion=options.without_champion)
    show(options, result, f"Status: {result['status']}{_warnings(result['warnings'])}")


def webhook(options: argparse.Namespace) -> None:
    """Watch, and look at once when MLflow calls."""
    from flows.webhook import Deliveries, receiving, secret

    require_space()
    if options.emit:
        _require_prefect()
    deliveries = Deliveries(retriever_name(options), secret())
    watch = _watch(options)
    watch.emit = options.emit
    with receiving((options.host, options.port), deliveries, watch.wake.set) as port:
        print(
            f"Receiving webhooks on http://{options.host}:{port}/. MLflow takes such an address where its server was started with "
            "MLFLOW_WEBHOOK_ALLOWED_SCHEMES=http,https and MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS=true.",
            file=sys.stderr,
            flush=True,
        )
        _run(watch, options)


def _require_prefect() -> None:
    from prefect.settings import PREFECT_API_URL

    if not PREFECT_API_URL.value():
        raise ConfigError(
            "--emit tells a Prefect server of approvals, and none is named. Set PREFECT_API_URL, such as http://HOST:4200/api."
        )


def rollback(options: argparse.Namespace) -> None:
    """Go back one release."""
    from components.promotion.promote import rollback as change_back
    from components.serving.promotion_checks import check_smoke

    change = change_back(retriever_name(options), options.person, options.reason, check_smoke, options.override, options.past_lost)
    show(options, asdict(change), change.message + _warnings(change.warnings))


def history(options: argparse.Namespace) -> int:
    """All promotions and rollbacks with their people and reasons."""
    from components.promotion.status import compare_anchor, damaged_log, history_of, render_history

    name = retriever_name(options)
    if options.strike is not None:
        _strike(name, options)
        return 0
    if options.person or options.reason:
        raise ConfigError("--as and --reason say who strikes a record out and why; give --strike N with them, or leave them out.")
    entries = history_of(name)
    alarm = damaged_log(entries)
    anchor = compare_anchor(name, options.anchor) if options.anchor else None
    told = render_history(name, entries, alarm) + (f"\n{anchor}" if anchor else "")
    show(options, {"name": name, "history": entries, "alarm": alarm, **({"anchor": anchor} if anchor else {})}, told)
    return 1 if alarm else 0


def _strike(name: str, options: argparse.Namespace) -> None:
    from components.promotion.record import strike

    if options.anchor:
        raise ConfigError("--anchor compares records, --strike changes what counts of them; run one after the other.")
    done = strike(name, options.strike, options.person, options.reason)
    left = f"release/{done.champion} is champion" if done.champion else "nothing is champion"
    numbers = ", ".join(map(str, done.struck))
    lines = [f"Struck out by record {done.sequence}, signed by {done.key_id[:16]}: {numbers}. Now {left}."]
    if done.vouched:
        lines.append(f"Its signature vouches for these records too, which no trusted key had signed: {', '.join(map(str, done.vouched))}.")
    lines.append(f"Next: scalingnote verify champion{name_option(name)}; and find out who wrote those records.")
    show(options, done._asdict(), "\n".join(lines))


def _watch(options: argparse.Namespace) -> Watch:
    from flows.webhook import Watch

    out = sys.stdout  # with --json everything else is sent to stderr while it runs

    def tell(change: dict[str, Any]) -> None:
        text = f"{change['status']}: {change['message']}{_warnings(change['warnings'])}"
        print(json_here(change) if options.json else visible(text), file=out, flush=True)

    return Watch(retriever_name(options), options.watch, tell)


def _run(watch: Watch, options: argparse.Namespace) -> None:
    print(f"Looking for approvals of '{watch.name}' every {watch.seconds:g} s; Ctrl-C stops it.", file=sys.stderr, flush=True)
    with only_result_on_stdout(options):
        watch.run()


def _warnings(warnings: Sequence[str]) -> str:
    return "".join(f"\nWarning: {one_line(warning)}" for warning in warnings)
