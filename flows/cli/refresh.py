"""Commands that refresh a part of a release: refresh-index, refresh-query-tower."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from flows.cli.build import next_steps, parsed_settings, policy_settings, report_of
from flows.cli.disk import require_space
from flows.cli.output import only_result_on_stdout, retriever_name, show
from flows.refresh import RefreshConfig, configured


def refresh_index(options: argparse.Namespace) -> None:
    """Encode the documents that changed and register the candidate."""
    from flows.parameters import require_steps
    from flows.refresh_index import AGAIN, CHANGEABLE
    from flows.servers import run_flow

    require_steps("refresh-index", options.again, AGAIN)
    request = _request(options, CHANGEABLE)
    with only_result_on_stdout(options):
        result = run_flow("flows.refresh_index:refresh_index", request=request, again=options.again)
    show(options, result, _index_text(result))


def refresh_query_tower(options: argparse.Namespace) -> None:
    """Teach a new student for a release's index and register the candidate."""
    from flows.parameters import require_steps
    from flows.refresh_query import AGAIN, CHANGEABLE
    from flows.servers import run_flow

    require_steps("refresh-query-tower", options.again, AGAIN)
    request = _request(options, CHANGEABLE)
    with only_result_on_stdout(options):
        result = run_flow("flows.refresh_query:refresh_query_tower", request=request, again=options.again)
    text = f"A new query encoder for {result['base']} in {result['seconds']:.1f} s; no document was encoded, its index stays."
    show(options, result, "\n\n".join([text, report_of(result), next_steps(result)]))


def _request(options: argparse.Namespace, changeable: Sequence[str]) -> RefreshConfig:
    """What the command line asks for, checked against the release before any server starts."""
    from components.data.sources import source_digest
    from components.release.open import load_manifest
    from flows.adopt import adopted_run
    from flows.refresh_query import CHANGEABLE as QUERY_CHANGEABLE

    name = retriever_name(options)
    settings = {**policy_settings(options), **parsed_settings(options)}
    request = RefreshConfig(name=name, release=options.release, data=options.data or "", preset=options.preset, settings=settings)
    adopted = adopted_run(request) if changeable == QUERY_CHANGEABLE else None
    recorded = load_manifest(name, options.release) if adopted is None else adopted
    source_digest(configured(request, recorded, changeable).data)
    require_space()
    return request


def _index_text(result: dict[str, Any]) -> str:
    changes = ", ".join(f"{count:,} {what}" for what, count in result["changes"].items())
    if not any(count for what, count in result["changes"].items() if what != "unchanged"):
        return (
            f"No document changed since {result['base']}: nothing was encoded in {result['seconds']:.1f} s, and its index stays as it is. "
            "New queries or judgements alone: scalingnote refresh-query-tower."
        )
    cached = ", all taken from the cache" if result["cached"] else ""
    done = f"Since {result['base']}: {changes} documents; {result['encoded']:,} encoded, {result['seconds']:.1f} s{cached}."
    return "\n\n".join([done, *_guard_text(result["guard"]), report_of(result), next_steps(result)])


def _guard_text(guard: dict[str, Any]) -> list[str]:
    if guard["status"] == "ok":
        return []
    reasons = "\n".join(f"  {reason}" for reason in guard["reasons"])
    return [f"The index no longer fits its documents well; build a new one with 'scalingnote retrain':\n{reasons}"]
