"""Promotion as a flow: look for an approval, verify the release again, make it champion. Safe to run at any time, as often as wanted."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from prefect import flow, task
from prefect.cache_policies import NO_CACHE


@task(name="promote_newest_approved", cache_policy=NO_CACHE, persist_result=False)
def promote_newest_approved(name: str, without_champion: str | None = None) -> dict[str, Any]:
    """Verify and promote the newest approved release, finish what a killed run began, or do nothing."""
    from components.promotion.promote import promote as change_champion
    from components.serving.smoke import check_smoke
    from components.serving.timing import compare_again

    return asdict(change_champion(name, check_smoke, compare_again, without_champion))


@flow(name="promote", persist_result=False, validate_parameters=True)
def promote(name: str = "retriever", without_champion: str | None = None) -> dict[str, Any]:
    """Promote the newest approved release of the retriever `name`; returns what was done, with a message.

    `without_champion`: the reason to do so although the champion was deleted or damaged, and nothing can be compared with it.
    """
    from components import settings

    settings.activate()
    done = promote_newest_approved(name, without_champion)
    print(done["message"], flush=True)
    return done
