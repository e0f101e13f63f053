"""Commands that change what is served: approve, promote, rollback."""

from __future__ import annotations

import argparse
from dataclasses import asdict

from flows.cli.disk import require_space
from flows.cli.output import only_result_on_stdout, retriever_name, show


def approve(options: argparse.Namespace) -> None:
    """Approve a candidate as a named person."""
    from components.promotion.approval import approve as approve_candidate

    approval = approve_candidate(retriever_name(options), options.candidate, options.person, options.override)
    state = "approved" if approval.created else "was approved before"
    text = f"candidate/{approval.candidate_version} {state} by {approval.person} (unauthenticated) as release/{approval.release_version}."
    show(options, asdict(approval), text + "\nNext: scalingnote promote")


def promote(options: argparse.Namespace) -> None:
    """Promote the newest approved release."""
    require_space()
    from flows.promote import promote as flow

    with only_result_on_stdout(options):
        result = flow(retriever_name(options))
    warnings = "".join(f"\nWarning: {warning}" for warning in result["warnings"])
    show(options, result, f"Status: {result['status']}{warnings}")


def rollback(options: argparse.Namespace) -> None:
    """Go back one release."""
    from components.promotion.promote import rollback as change_back
    from components.serving.smoke import check_smoke
    from components.tracking.provenance import claimed_user

    change = change_back(retriever_name(options), options.person or claimed_user(), options.reason, check_smoke)
    warnings = "".join(f"\nWarning: {warning}" for warning in change.warnings)
    show(options, asdict(change), change.message + warnings)
