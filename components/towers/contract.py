"""The encoding contract: everything that must be equal for two texts to be encoded alike, saved beside every encoder.

It is written once, when the encoder is made, and read ever after; nobody types its values a second time.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from components.artifacts import digest_of, read_json, write_json
from components.errors import ArtifactError
from components.progress import Progress

CONTRACT_FILE = "encoding_contract.json"
Role = Literal["query", "document"]
ROLES: tuple[Role, Role] = ("query", "document")


class EncodingContract(BaseModel):
    """How one encoder turns a text into a vector."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    role: Role
    base_model: str
    base_digest: str
    adapter_digest: str | None
    tokenizer_digest: str
    pooling: Literal["last", "mean", "cls"]
    normalize: bool
    prompt: str
    append_eos: bool
    max_length: int
    dimension: int
    similarity: Literal["cosine"] = "cosine"
    attention: Literal["causal", "bidirectional"] = "causal"
    form: Literal["transformer", "static"] = "transformer"


class TextEncoder(Protocol):
    """What every tower and student can do."""

    contract: EncodingContract
    space_id: str

    def encode(self, texts: Sequence[str], batch_size: int | None = None, progress: Progress = None) -> NDArray[np.float32]:
        """Encode `texts` to float32 (len(texts), dimension), rows of unit length; `progress`: a bar's label, or who is told."""
        ...


def space_id_of(document_contract: EncodingContract) -> str:
    """Identity of a vector space: the digest of its document encoder's contract, weights' digests included."""
    if document_contract.role != "document":
        raise ArtifactError(f"A space is named by its document encoder; this contract is for the role '{document_contract.role}'.")
    return digest_of(document_contract.model_dump())


def save_contract(folder: Path, contract: EncodingContract, space_id: str) -> None:
    """Write the contract and the space it encodes into beside the encoder's weights."""
    write_json(folder / CONTRACT_FILE, {"contract": contract.model_dump(), "space_id": space_id})


def load_contract(folder: Path) -> tuple[EncodingContract, str]:
    """The contract and space_id of the encoder in `folder`; raises ArtifactError when unreadable."""
    raw = read_json(folder / CONTRACT_FILE)
    try:
        return EncodingContract.model_validate(raw["contract"]), str(raw["space_id"])
    except (ValidationError, KeyError, TypeError) as error:
        raise ArtifactError(f"{folder / CONTRACT_FILE} is not an encoding contract: {error}") from None
