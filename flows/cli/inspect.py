"""Commands that look: status, trace, verify, ui."""

from __future__ import annotations

import argparse
import re
from dataclasses import asdict

from flows.cli.output import retriever_name, show

RELEASE_REF = re.compile(r"^(champion|previous|(candidate|release)/.*)$")


def status(options: argparse.Namespace) -> int:
    """What is served and what waits."""
    from components.promotion.status import render_status, status_of

    state = status_of(retriever_name(options))
    show(options, state, render_status(state))
    return 1 if state["alarm"] else 0


def trace(options: argparse.Namespace) -> None:
    """A release or document back to where it came from."""
    from components.promotion import trace as tracing

    name = retriever_name(options)
    is_release = RELEASE_REF.match(options.ref)
    found = tracing.trace(name, options.ref) if is_release else tracing.trace_document(name, options.release, options.ref)
    show(options, found.to_json(), found.text())


def verify(options: argparse.Namespace) -> int:
    """Check everything a release stands on."""
    from components.promotion.verification import verify_release

    checks = verify_release(retriever_name(options), options.ref)
    good = all(check.ok for check in checks)
    lines = [f"{'ok  ' if check.ok else 'FAIL'}  {check.name}: {check.detail}" for check in checks]
    lines.append(f"{options.ref}: {'verified' if good else 'NOT verified'}, {sum(c.ok for c in checks)} of {len(checks)} checks hold.")
    show(options, {"ref": options.ref, "verified": good, "checks": [asdict(check) for check in checks]}, "\n".join(lines))
    return 0 if good else 6


def ui(options: argparse.Namespace) -> None:
    """Start both servers."""
    from flows.servers import serve

    serve(options.mlflow_port, options.prefect_port, options.auth)
