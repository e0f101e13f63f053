"""Names that people type for a release, and the registered version each one means."""

from __future__ import annotations

from collections.abc import Sequence

from components.errors import PromotionError
from components.release.champion import CHAMPION, PREVIOUS, candidate_model, expected_aliases, release_model, trusted_version
from components.tracking import promotion_records as record_store
from components.tracking import registry

TRACED = "a release (champion, previous, candidate/N, release/N), model/NAME/N, index/N, answer:ID, or the id of a document"
FORMS = "champion, previous, candidate/N or release/N (N a number or 'latest')"


def resolve(name: str, ref: str) -> tuple[str, int]:
    """(registered model, version) of `ref`: champion, previous, candidate/N or release/N, N a number or 'latest'.

    `champion` and `previous` follow the promotion records, not an alias that was moved by hand. Raises PromotionError for a
    reference that is malformed or names nothing; the message lists what there is.
    """
    if ref == CHAMPION:
        return release_model(name), trusted_version(name)
    if ref == PREVIOUS:
        return release_model(name), _previous(name)
    kind, _, number = ref.partition("/")
    models = {"candidate": candidate_model(name), "release": release_model(name)}
    if kind not in models or not (number == "latest" or (number.isascii() and number.isdigit())):
        raise PromotionError(f"'{ref}' names no release. Expected {FORMS}.")
    return models[kind], _existing(name, kind, models[kind], number)


def candidate_number(ref: str | int, there: Sequence[int]) -> int | None:
    """N of `candidate/N`, a bare number or, of those that are `there`, `candidate/latest`; None for anything else."""
    if ref in ("latest", "candidate/latest"):
        return max(there, default=None)
    kind, _, number = str(ref).rpartition("/")
    return int(number) if kind in ("", "candidate") and number.isascii() and number.isdigit() else None


def describe_versions(name: str, kind: str, numbers: list[int]) -> str:
    """A sentence about the versions there are, for error messages."""
    if not numbers:
        return f"'{name}' has no {kind}s yet; 'scalingnote retrain' makes a candidate, an approval makes a release."
    shown = ", ".join(f"{kind}/{number}" for number in sorted(numbers)[-10:])
    return f"The newest {kind}s of '{name}': {shown}."


def _existing(name: str, kind: str, model: str, number: str) -> int:
    numbers = [info.version for info in registry.versions(model)]
    if number == "latest" and numbers:
        return max(numbers)
    if number != "latest" and int(number) in numbers:
        return int(number)
    raise PromotionError(f"{kind}/{number} does not exist. {describe_versions(name, kind, numbers)}")


def _previous(name: str) -> int:
    previous = expected_aliases(record_store.read_records(name)).previous
    if previous is None:
        raise PromotionError(f"'{name}' has no previous release: the champion is the first one, or nothing was promoted yet.")
    return previous
