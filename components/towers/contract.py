"""EncodingContract: all that two encoders must share to write into one vector space, and the probe texts that prove it.

Also the check for collapse: embeddings that crowd in one direction or one small subspace cannot tell texts apart.

A digest cannot see a changed kernel, library or number format; the probes can.

It is written once, when the encoder is made, and read ever after; nobody types its values a second time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from components.artifacts import digest_of, read_json, write_json
from components.errors import ArtifactError, CollapseError, ModelError, ProbeMismatch
from components.progress import Progress
from components.settings import PRECISION_VARIABLE


@dataclass(frozen=True)
class Spread:
    """How widely embeddings spread: mean cosine of two different rows, and effective rank."""

    mean_cosine: float
    effective_rank: float


def measure_spread(vectors: NDArray[np.float32]) -> Spread:
    """Spread of unit rows (n, d), not a number where a value of theirs is none; one row alone tells nothing: 0 and 1.

    Effective rank: exp of the entropy of the normalised singular values (Roy & Vetterli 2007).
    """
    n = len(vectors)
    if not np.isfinite(vectors).all():
        return Spread(mean_cosine=float("nan"), effective_rank=float("nan"))
    if n < 2:
        return Spread(mean_cosine=0.0, effective_rank=1.0)
    total = vectors.sum(0, dtype=np.float64)
    # Rows of unit length to float32 only: equal ones would have a mean cosine of a hair above 1.
    mean_cosine = min(1.0, (float(total @ total) - n) / (n * (n - 1)))
    singular = np.linalg.svd(vectors.astype(np.float64), compute_uv=False)
    share = singular / max(singular.sum(), 1e-12)
    entropy = -float((share * np.log(np.clip(share, 1e-12, None))).sum())
    return Spread(mean_cosine=mean_cosine, effective_rank=float(np.exp(entropy)))


def refuse_collapse(label: str, spread: Spread, max_mean_cosine: float, min_effective_rank: float) -> None:
    """Raise CollapseError when the spread is outside its bounds; `label` names the encoder."""
    advice = "Lower the learning rate, raise the batch size or the temperature, or train on more varied data."
    if not spread.mean_cosine <= max_mean_cosine:
        raise CollapseError(
            f"The {label} has collapsed: two random texts have a mean cosine of {spread.mean_cosine:.3f} "
            f"(allowed: at most {max_mean_cosine}). {advice}"
        )
    if not spread.effective_rank >= min_effective_rank:
        raise CollapseError(
            f"The {label} has collapsed: its embeddings have an effective rank of {spread.effective_rank:.1f} "
            f"(allowed: at least {min_effective_rank}). {advice}"
        )


# --- Probe texts: 64 fixed texts whose vectors are recorded beside every encoder and computed again when it is loaded.


PROBE_FILE = "probes.npy"
_SUBJECTS = ("kidney stone", "red bicycle", "tax return", "list files by size", "cold coffee", "broken leg", "Łódź 1945", "x = y + 1")
_FRAMES = ("{}", "what is {}?", "{} in winter", "how to treat {} at home", "NO {}", "{}, {}", "a long story about {} and the sea", "{}!")
PROBE_TEXTS: tuple[str, ...] = tuple(frame.replace("{}", subject) for subject in _SUBJECTS for frame in _FRAMES)


def record_probes(encoder: TextEncoder, folder: Path) -> None:
    """Write the encoder's vectors for the probe texts, float32 (64, dimension), into `folder`.

    Raises ModelError when they are not finite, and for a model whose code cannot calculate in the number format of this machine.
    """
    name = encoder.contract.base_model
    try:
        vectors = encoder.encode(PROBE_TEXTS, batch_size=16)
    except RuntimeError as error:
        raise mixed_formats(name, error) or error from None
    np.save(folder / PROBE_FILE, require_finite(vectors, name))


def mixed_formats(name: str, error: Exception) -> ModelError | None:
    """What to tell of a model whose code cannot calculate in the number format of this machine; None for another error."""
    said = str(error).strip().partition("\n")[0][:160]
    if not isinstance(error, RuntimeError) or not any(word in said for word in ("dtype", "scalar type", "BFloat16")):
        return None
    return ModelError(
        f"'{name}' mixes number formats ({said}). Set {PRECISION_VARIABLE}=float32 in the environment, with the setting precision left at "
        "auto, or use another model."
    )


def unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """The rows (n, d) at length 1; float32 like them."""
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True).clip(1e-12)


def require_finite(vectors: NDArray[np.float32], model: str) -> NDArray[np.float32]:
    """The vectors (n, d) as they are; raises ModelError, which names the `model` that made them, for values that are not finite."""
    if wrong := int((~np.isfinite(vectors)).any(axis=1).sum()):
        raise ModelError(
            f"An encoder made from '{model}' gives values that are not finite for {wrong} of {len(vectors)} texts: its weights hold such "
            f"values, or its states outgrow the number format. Fetch the weights again, or set {PRECISION_VARIABLE}=float32 "
            "in the environment."
        )
    return vectors


def check_probes(encoder: TextEncoder, folder: Path, tolerance: float) -> float:
    """Largest 1 - cosine between recorded and fresh probe vectors; raises ProbeMismatch when above `tolerance`.

    Raises ArtifactError where nothing was recorded that can be read.
    """
    try:
        recorded = np.load(folder / PROBE_FILE, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{folder / PROBE_FILE} cannot be read ({error}). Restore the encoder or retrain.") from None
    fresh = encoder.encode(PROBE_TEXTS, batch_size=16)
    if fresh.shape != recorded.shape:
        raise ProbeMismatch(f"{folder}: the probe vectors have the shape {recorded.shape}, the encoder gives {fresh.shape}.")
    cosines = (fresh * recorded).sum(1) / np.linalg.norm(recorded, axis=1).clip(1e-9)
    worst = float(1 - cosines.min())
    if not worst <= tolerance:
        text = PROBE_TEXTS[int(cosines.argmin())]
        raise ProbeMismatch(
            f"{folder}: the encoder no longer gives its recorded vectors (1 - cosine is {worst:.4f} for the probe '{text}', allowed "
            f"{tolerance}). A library, kernel or number format has changed: use the recorded versions, or retrain."
        )
    return worst


# --- The encoding contract: everything that must be equal for two texts to be encoded alike, saved beside every encoder.


CONTRACT_FILE = "encoding_contract.json"
COMPANION = "companion"  # folder of the second encoder, in that of a tower
WHOLE_TOKENIZER = "whole:"  # begins a digest over all of a tokenizer
Role = Literal["query", "document"]
ROLES: tuple[Role, Role] = ("query", "document")


class EncodingContract(BaseModel):
    """How one encoder turns a text into a vector.

    `split_special_tokens`: the name of a control token in a text is ordinary text (see `components.towers.tokens`). It is False for
    encoders that were made before there was a choice, which keep encoding as they were trained. `head` are the linear maps behind the
    pooling of a published model, as `768 -> 3072`, and `head_digest` their identity. `base_code` is the digest of the Python files that
    the base model brought and that were allowed to run; `map_digest` that of the map which leads a new teacher's queries into the space
    of another document tower (`components.distillation.new_teacher`). Nobody here knows how encoders of the forms
    `vectors` and `endpoint` pool and cut texts. `companion` is the identity of the encoder whose vectors stand beside this one's,
    `companion_share` what its cosine counts; `dimension` is then that of both.
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
    map_digest: str | None = None
    companion: str | None = None
    companion_share: float | None = None


class TextEncoder(Protocol):
    """What every tower and student can do."""

    contract: EncodingContract
    space_id: str

    def encode(self, texts: Sequence[str], batch_size: int | None = None, progress: Progress = None) -> NDArray[np.float32]:
        """Encode `texts` to float32 (len(texts), dimension), rows of unit length; `progress`: a bar's label, or who is told."""
        ...


def space_id_of(document_contract: EncodingContract) -> str:
    """Identity of a vector space: the digest of its document encoder's contract, weights' included; raises ArtifactError for a query's."""
    if document_contract.role != "document":
        raise ArtifactError(f"A space is named by its document encoder; this contract is for the role '{document_contract.role}'.")
    return identity_of(document_contract)


def identity_of(contract: EncodingContract) -> str:
    """Digest of what an encoder makes of texts, weights' digests included."""
    # The commit says where the base came from; what it is stands in its digest, which another commit may share. Contracts of before had
    # none of these fields; without them their spaces keep their names.
    later = set() if contract.split_special_tokens else {"split_special_tokens"}
    later |= {"head", "head_digest"} if contract.head_digest is None else set()
    later |= {"base_code"} if contract.base_code is None else set()
    later |= {"map_digest"} if contract.map_digest is None else set()
    later |= {"companion", "companion_share"} if contract.companion is None else set()
    return digest_of(contract.model_dump(exclude={"base_revision", *later}))


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
