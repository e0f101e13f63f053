"""A champion in memory whose lineage is complete, and the traces of it that the exports are tested on."""

from __future__ import annotations

from pathlib import Path

import pytest

from components.lineage.graph import Trace, trace
from components.promotion.approval import approve
from components.promotion.promote import promote
from tests.unit.promotion_world import NAME, MemoryTracking, World


def champion_trace(folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Trace, MemoryTracking]:
    """One candidate, approved and promoted, and its trace."""
    tracking = MemoryTracking()
    tracking.install(monkeypatch)
    approve(NAME, World(tracking, folder).candidate(), "Ada <script>")
    promote(NAME, lambda manifest: None)
    return trace(NAME, "champion"), tracking
