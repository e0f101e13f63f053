"""Whether encoders and index belong to one vector space, by what each of them states and by the contract that the space is named after."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from components.artifacts import Artifact

INDEX, DOCUMENT_TOWER = "index", "document_tower"


def space_mismatches(parts: Mapping[str, Artifact]) -> tuple[str, ...]:
    """One sentence for every part (role -> artifact, `index` among them) that belongs to another space than the index does.

    Raises ArtifactError for an artifact that names no space, or an encoder without a contract.
    """
    expected = parts[INDEX].space_id
    return tuple(
        f"The {role.replace('_', ' ')} {says} the space {space[:12]}, the index {expected[:12]}."
        for role, artifact in parts.items()
        for says, space in _spaces(role, artifact)
        if space != expected
    )


def _spaces(role: str, artifact: Artifact) -> Iterator[tuple[str, str]]:
    from components.towers.contract import load_contract, space_id_of

    yield "belongs to", artifact.space_id
    if role == INDEX:
        return
    contract, stated = load_contract(artifact.path)
    yield "has a contract for", stated
    if role == DOCUMENT_TOWER:  # the space is named after this contract, so it has to give the name
        yield "has a contract that gives", space_id_of(contract)
