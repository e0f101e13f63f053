"""A release as one package of sentence-transformers: a Router whose query route is the student and whose document route is the tower.

    model = SentenceTransformer(FOLDER)
    model.encode_query("...")       # the student
    model.encode_document(["..."])  # the document tower

What is written is loaded again and held against the release's own encoders, so a package that would answer otherwise is never left behind.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from components.distillation.saved import POOLINGS, load_student, save_tokenizer
from components.errors import ArtifactError, ModelError
from components.towers.config import WITHOUT_WEIGHTS
from components.towers.contract import TextEncoder, load_contract
from components.towers.encoder import TowerEncoder, load_tower
from components.towers.probes import PROBE_TEXTS

if TYPE_CHECKING:
    from torch.nn import Module

TOLERANCE = 1e-4  # of a number of a unit vector, float32 on both sides


def export_router(student: Path, document_tower: Path, target: Path) -> dict[str, float]:
    """Write the package into the new folder `target`; returns, for each route, the largest difference from the release's own encoder.

    A document tower without weights (stored vectors, an endpoint) leaves a package that encodes queries alone and refuses documents.
    Raises ModelError when the package would not give the release's vectors, as for attention that transformers cannot save.
    """
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Router

    encoders: dict[str, TextEncoder] = {"query": load_student(student, "float32")}
    routes: dict[str, list[Any]] = {"query": list(SentenceTransformer(str(student), device="cpu").float().children())}
    prompts = {"query": encoders["query"].contract.prompt}
    with tempfile.TemporaryDirectory(prefix="scalingnote-router-") as scratch:
        if load_contract(document_tower)[0].base_model not in WITHOUT_WEIGHTS:
            tower = load_tower(document_tower, "float32")
            encoders["document"], prompts["document"] = tower, tower.contract.prompt
            routes["document"] = _modules(tower, Path(scratch))
        # Without a default route whoever says neither query nor document is told so, instead of getting a vector of one of them.
        router = Router(routes, default_route=None, allow_empty_key=False)
        package = SentenceTransformer(modules=[router], prompts=prompts, similarity_fn_name="cosine", device="cpu")
        package.save(str(target), create_model_card=False)
    written = SentenceTransformer(str(target), device="cpu")
    asked = {"query": written.encode_query, "document": written.encode_document}
    found = {role: float(np.abs(asked[role](list(PROBE_TEXTS)) - own.encode(PROBE_TEXTS)).max()) for role, own in encoders.items()}
    if worst := [role for role, difference in found.items() if not difference <= TOLERANCE]:
        shutil.rmtree(target)
        raise ModelError(
            f"A package would give other vectors for a {worst[0]} than the release (by {found[worst[0]]:.2g}), so none was left in "
            f"{target}. The model does something that sentence-transformers cannot be told, such as attention in both directions."
        )
    return found


def require_new(folder: Path) -> None:
    """Raise ArtifactError unless `folder` is new or empty: files of another model would be loaded with this one."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ArtifactError(f"{folder} is there already and not empty. Give a new or empty folder for the package.")


def _modules(tower: TowerEncoder, scratch: Path) -> list[Module]:
    """The tower as modules of sentence-transformers: its transformer with all that was trained, pooling, maps, and unit length."""
    from sentence_transformers.base.modules import Dense, Normalize, Transformer
    from sentence_transformers.sentence_transformer.modules import Pooling
    from torch import eye, nn

    contract = tower.contract
    tower.model.save_pretrained(scratch)
    save_tokenizer(tower.tokenizer, contract, scratch)
    width = int(tower.model.config.get_text_config().hidden_size)
    modules: list[Any] = [Transformer(str(scratch), max_seq_length=contract.max_length), Pooling(width, POOLINGS[contract.pooling])]
    layers = list(tower.head or ())
    for linear, bend in zip(layers[::2], layers[1::2], strict=True):
        modules.append(_dense(Dense, linear, bend))
        width = linear.out_features
    if contract.dimension != width:  # a prefix of the vectors, brought to unit length below
        prefix = nn.Linear(width, contract.dimension, bias=False)
        prefix.weight.data = eye(contract.dimension, width)
        modules.append(_dense(Dense, prefix, nn.Identity()))
    return [*modules, Normalize()]


def _dense(kind: Any, linear: Any, bend: Any) -> Any:
    bias = None if linear.bias is None else linear.bias.data.clone()
    return kind(linear.in_features, linear.out_features, bias is not None, bend, init_weight=linear.weight.data.clone(), init_bias=bias)
