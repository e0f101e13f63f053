"""The command study: one experiment, its table and its plot."""

from __future__ import annotations

import argparse

from flows.cli.build import read_settings
from flows.cli.disk import require_space
from flows.cli.output import only_result_on_stdout, show
from flows.studies.config import StudySettings
from flows.studies.registry import require_study


def study(options: argparse.Namespace) -> None:
    """Run a study and show its table."""
    from components.data.sources import source_digest

    name = require_study(options.study)
    config = read_settings(options, StudySettings)
    cells = tuple(cell.strip() for cell in (options.cells or "").split(",") if cell.strip())
    source_digest(config.data)  # a missing folder is said at once, before any server starts
    require_space()
    from flows.servers import run_flow

    with only_result_on_stdout(options):
        result = run_flow("flows.studies.flow:run_study", name, config, cells)
    cached = "All cells were taken from the cache.\n" if result["cached"] else ""
    show(options, result, f"\n{result['text']}\n{cached}Table and plot: {result['folder']}")
