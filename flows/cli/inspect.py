"""Commands that look: status, verify, ui."""

from __future__ import annotations

import argparse
from dataclasses import asdict

from flows.cli.output import retriever_name, show


def status(options: argparse.Namespace) -> int:
    """What is served and what waits."""
    from components.promotion.status import render_status, status_of

    state = status_of(retriever_name(options))
    show(options, state, render_status(state))
    return 1 if state["alarm"] else 0


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
