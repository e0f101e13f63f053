"""The student: a small encoder with its projection into the teacher's space inside it, saved as a SentenceTransformer.

`SentenceTransformer(path).encode_query` loads what is saved here. Our own loader reads the same files with transformers alone,
since importing sentence-transformers takes four seconds and a search must answer sooner.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from components.artifacts import digest_of, file_sha256, read_json, write_json
from components.errors import ArtifactError, ModelError
from components.towers.base_models import BaseModel
from components.towers.contract import EncodingContract, TextEncoder, load_contract
from components.towers.encoder import load_tower
from components.towers.pooling import pool
from components.towers.precision import pick_device, pick_dtype
from components.towers.tokens import batches_by_tokens, pad_batch, token_ids

if TYPE_CHECKING:
    from torch import Tensor

TOKENS_PER_BATCH = 4096
PROJECTION = "2_Dense"


def load_small_encoder(base: BaseModel, layers: Sequence[int] | None, attention: str = "sdpa") -> tuple[Any, Any]:
    """An encoder with the given layers (all when None) in float32, and its tokenizer.

    Raises ModelError for a model that is not an encoder with a list of layers, or for layers it does not have.
    """
    from transformers import AutoModel, AutoTokenizer
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        model = AutoModel.from_pretrained(base.location, add_pooling_layer=False, attn_implementation=attention)
        tokenizer = AutoTokenizer.from_pretrained(base.location)
    except (OSError, ValueError, TypeError) as error:
        raise ModelError(f"The student '{base.name}' cannot be loaded as an encoder: {str(error).strip().splitlines()[0]}") from None
    if layers is not None:
        _keep_layers(model, layers, base.name)
    return model, tokenizer


def _keep_layers(model: Any, layers: Sequence[int], name: str) -> None:
    from torch.nn import ModuleList

    stack = getattr(getattr(model, "encoder", None), "layer", None)
    if stack is None:
        raise ModelError(f"'{name}' keeps its layers under another name than encoder.layer; leave distillation.layers empty for it.")
    if not layers or any(i < 0 or i >= len(stack) for i in layers):
        raise ModelError(f"distillation.layers is {list(layers)}, but '{name}' has the layers 0 to {len(stack) - 1}.")
    model.encoder.layer = ModuleList([stack[i] for i in layers])
    model.config.num_hidden_layers = len(layers)


class StudentEncoder:
    """A student for inference and training (see `components.towers.contract.TextEncoder`)."""

    def __init__(self, model: Any, tokenizer: Any, projection: Any | None, contract: EncodingContract, space_id: str) -> None:
        self.contract = contract
        self.space_id = space_id
        self.device = pick_device()
        self.model = model.to(self.device)
        self.projection = projection.to(self.device) if projection is not None else None
        self.tokenizer = tokenizer

    def tokens(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids under the contract."""
        return token_ids(self.tokenizer, texts, self.contract)

    def project(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """Vectors (len(rows), dimension) float32 before normalisation."""
        batch = {k: v.to(self.device) for k, v in pad_batch(rows, self.tokenizer.pad_token_id or 0).items()}
        states = self.model(**batch).last_hidden_state
        pooled = pool(states, batch["attention_mask"], self.contract.pooling)
        return pooled if self.projection is None else self.projection(pooled)

    def encode(self, texts: Sequence[str], batch_size: int | None = None, progress: str | None = None) -> NDArray[np.float32]:
        """Unit float32 vectors (len(texts), dimension), in the order of `texts`."""
        vectors = self.features(texts, batch_size, progress)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True).clip(1e-12)

    def features(self, texts: Sequence[str], batch_size: int | None = None, progress: str | None = None) -> NDArray[np.float32]:
        """Vectors before normalisation, float32 (len(texts), dimension); the encoder's own width without a projection."""
        import torch
        from tqdm import tqdm

        rows = self.tokens(texts)
        width = self.contract.dimension if self.projection is not None else self.model.config.hidden_size
        vectors = np.empty((len(rows), width), dtype=np.float32)
        with torch.inference_mode(), tqdm(total=len(rows), desc=progress, disable=progress is None, unit="text", mininterval=1) as bar:
            for batch in batches_by_tokens([len(r) for r in rows], TOKENS_PER_BATCH, batch_size):
                vectors[batch] = self.project([rows[i] for i in batch]).float().cpu().numpy()
                bar.update(len(batch))
        return vectors


def untrained_encoder(base: BaseModel, layers: Sequence[int] | None, max_length: int) -> StudentEncoder:
    """The student's encoder as it was before training: mean pooling, no projection, no prompt; a space of its own."""
    model, tokenizer = load_small_encoder(base, layers)
    contract = student_contract(base, tokenizer, model.config.hidden_size, max_length, "")
    return StudentEncoder(model.eval().to(pick_dtype("auto")), tokenizer, None, contract, f"untrained:{base.digest}")


def student_contract(base: BaseModel, tokenizer: Any, dimension: int, max_length: int, prompt: str) -> EncodingContract:
    """Contract of a student; `adapter_digest` is filled in when the weights are saved."""
    return EncodingContract(
        role="query",
        base_model=base.name,
        base_digest=base.digest,
        adapter_digest=None,
        tokenizer_digest=digest_of(tokenizer.get_vocab()),
        pooling="mean",
        normalize=True,
        prompt=prompt,
        append_eos=False,
        max_length=max_length,
        dimension=dimension,
    )


def save_student(student: StudentEncoder, folder: Path) -> EncodingContract:
    """Write the student as a SentenceTransformer of four modules (transformer, pooling, dense, normalise); returns its contract."""
    from safetensors.torch import save_file

    student.model.save_pretrained(folder)
    student.tokenizer.save_pretrained(folder)
    contract, weight = student.contract, student.projection.weight.detach().float().cpu().contiguous()  # type: ignore[union-attr]
    _write_module(folder / "1_Pooling", {"word_embedding_dimension": weight.shape[1], "pooling_mode_mean_tokens": True})
    dense = {"in_features": weight.shape[1], "out_features": weight.shape[0], "bias": False}
    _write_module(folder / PROJECTION, {**dense, "activation_function": "torch.nn.modules.linear.Identity"})
    save_file({"linear.weight": weight}, folder / PROJECTION / "model.safetensors")
    _write_module(folder / "3_Normalize", {})
    write_json(folder / "modules.json", _modules())
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": contract.max_length, "do_lower_case": False})
    prompts = {"query": contract.prompt, "document": contract.prompt}
    write_json(
        folder / "config_sentence_transformers.json", {"prompts": prompts, "default_prompt_name": "query", "similarity_fn_name": "cosine"}
    )
    return contract.model_copy(update={"adapter_digest": weights_digest(folder)})


def weights_digest(folder: Path) -> str:
    """Digest over both weight files of a saved student."""
    return digest_of([file_sha256(folder / name) for name in ("model.safetensors", f"{PROJECTION}/model.safetensors")])


def _write_module(folder: Path, config: dict[str, Any]) -> None:
    folder.mkdir(exist_ok=True)
    write_json(folder / "config.json", config)


def _modules() -> list[dict[str, Any]]:
    paths = {"": "Transformer", "1_Pooling": "Pooling", PROJECTION: "Dense", "3_Normalize": "Normalize"}
    return [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(paths.items())
    ]


def load_student(folder: Path, precision: str = "auto") -> StudentEncoder:
    """Load a saved student; raises ArtifactError when the weights are not those of its contract."""
    from safetensors.torch import load_file
    from torch import nn
    from transformers import AutoTokenizer

    contract, space_id = load_contract(folder)
    if weights_digest(folder) != contract.adapter_digest:
        raise ArtifactError(f"{folder}: the weights are not those its contract names. Restore the student, or retrain.")
    dtype = pick_dtype(precision)
    model = _model_class(folder).from_pretrained(folder, dtype=dtype, add_pooling_layer=False)
    weight = load_file(folder / PROJECTION / "model.safetensors")["linear.weight"]
    projection = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    projection.weight.data = weight
    return StudentEncoder(model.eval(), AutoTokenizer.from_pretrained(folder), projection.eval(), contract, space_id)


def _model_class(folder: Path) -> Any:
    import transformers

    architectures = read_json(folder / "config.json").get("architectures") or ["AutoModel"]
    return getattr(transformers, architectures[0], transformers.AutoModel)


def load_encoder(folder: Path) -> TextEncoder:
    """Load whatever encoder lies in `folder`: a tower (it has an adapter) or a student."""
    return load_tower(folder) if (folder / "adapter").is_dir() else load_student(folder)
