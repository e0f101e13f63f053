"""The encoding contract: everything that must be equal for two texts to be encoded alike, saved beside every encoder.

It is written once, when the encoder is made, and read ever after; nobody types its values a second time.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from components.artifacts import digest_of, read_json, write_json
from components.errors import ArtifactError
from components.progress import Progress

CONTRACT_FILE = "encoding_contract.json"
WHOLE_TOKENIZER = "whole:"  # begins a digest over all of a tokenizer
Role = Literal["query", "document"]
ROLES: tuple[Role, Role] = ("query", "document")


class EncodingContract(BaseModel):
    """How one encoder turns a text into a vector.

    `split_special_tokens`: the name of a control token in a text is ordinary text (see `components.towers.tokens`). It is False for
    encoders that were made before there was a choice, which keep encoding as they were trained. `head` are the linear maps behind the
    pooling of a published model, as `768 -> 3072`, and `head_digest` their identity. `base_code` is the digest of the Python files that
    the base model brought and that were allowed to run. Nobody here knows how encoders of the forms
    `vectors` and `endpoint` pool and cut texts.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    role: Role
    base_model: str
    base_digest: str
    base_revision: str | None = None  # the commit of a base from a model hub
    adapter_digest: str | None
    tokenizer_digest: str
    pooling: Literal["last", "mean", "cls", "unknown"]
    normalize: bool
    prompt: str
    append_eos: bool
    max_length: int
    dimension: int
    similarity: Literal["cosine"] = "cosine"
    attention: Literal["causal", "bidirectional"] = "causal"
    form: Literal["transformer", "static", "vectors", "endpoint"] = "transformer"
    split_special_tokens: bool = True
    head: tuple[str, ...] = ()
    head_digest: str | None = None
    base_code: str | None = None


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
    # The commit says where the base came from; what it is stands in its digest, which another commit may share. Contracts of before had no
    # field `split_special_tokens`, `head`, `head_digest` or `base_code`; without them their spaces keep their names.
    later = set() if document_contract.split_special_tokens else {"split_special_tokens"}
    later |= {"head", "head_digest"} if document_contract.head_digest is None else set()
    later |= {"base_code"} if document_contract.base_code is None else set()
    return digest_of(document_contract.model_dump(exclude={"base_revision", *later}))


def tokenizer_digest(tokenizer: Any) -> str:
    """Identity of a tokenizer: all that it does to a text, not its vocabulary alone, and its special tokens.

    Length and padding are set anew for every use and take no part.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return digest_of(tokenizer.get_vocab())
    truncation, padding = backend.truncation, backend.padding
    backend.no_truncation()
    backend.no_padding()
    try:
        special = {role: str(token) for role, token in tokenizer.special_tokens_map.items()}
        return WHOLE_TOKENIZER + digest_of({"tokenizer": backend.to_str(), "special": special})
    finally:
        if truncation is not None:
            backend.enable_truncation(**truncation)
        if padding is not None:
            backend.enable_padding(**padding)


def is_tokenizer_of(contract: EncodingContract, tokenizer: Any) -> bool:
    """Whether `tokenizer` is the contract's; contracts from before `WHOLE_TOKENIZER` know the vocabulary alone."""
    if contract.tokenizer_digest.startswith(WHOLE_TOKENIZER):
        return tokenizer_digest(tokenizer) == contract.tokenizer_digest
    return digest_of(tokenizer.get_vocab()) == contract.tokenizer_digest


def save_contract(folder: Path, contract: EncodingContract, space_id: str) -> None:
    """Write the contract and the space it encodes into beside the encoder's weights."""
    write_json(folder / CONTRACT_FILE, {"contract": contract.model_dump(), "space_id": space_id})


def load_contract(folder: Path) -> tuple[EncodingContract, str]:
    """The contract and space_id of the encoder in `folder`; raises ArtifactError when unreadable."""
    raw = read_json(folder / CONTRACT_FILE)
    try:
        return EncodingContract.model_validate({"split_special_tokens": False, **raw["contract"]}), str(raw["space_id"])
    except (ValidationError, KeyError, TypeError) as error:
        raise ArtifactError(f"{folder / CONTRACT_FILE} is not an encoding contract: {error}") from None
