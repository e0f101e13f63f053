"""Commands that look: status, ui."""

from __future__ import annotations

import argparse

from flows.cli.output import retriever_name, show


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


def ui(options: argparse.Namespace) -> None:
    """Start both servers."""
    from flows.servers import serve

    serve(options.mlflow_port, options.prefect_port, options.auth)
