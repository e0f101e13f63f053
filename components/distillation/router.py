"""A release as one package of sentence-transformers: a Router whose query route is the student and whose document route is the tower.

    model = SentenceTransformer(FOLDER)
    model.encode_query("...")       # the student
    model.encode_document(["..."])  # the document tower

What is written is loaded again and held against the release's own encoders, so a package that would answer otherwise is never left behind.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from components.distillation.student.forms import POOLINGS
from components.distillation.student.storage import MODULES, dense_modules, load_student, save_tokenizer
from components.errors import ConfigError, ModelError
from components.towers import hub
from components.towers.base_models import is_on_hub, published_folder
from components.towers.config import WITHOUT_WEIGHTS
from components.towers.contract import PROBE_TEXTS, EncodingContract, Role, TextEncoder, load_contract
from components.towers.encoder import TowerEncoder, load_tower
from components.towers.model_size import state_width
from components.towers.transformer import text_part
from components.towers.two_towers import ADAPTER

if TYPE_CHECKING:
    from torch.nn import Module

TOLERANCE = 1e-5  # of a number of a unit vector, float32 on both sides; what is measured is below 1e-6


def export_router(
    encoders: Mapping[Role, Path], target: Path, card: Callable[[Mapping[str, float]], str] | None = None
) -> dict[str, float]:
    """Write the package into the new folder `target`; returns, for each route, the largest difference from the release's own encoder.

    `encoders`: role -> folder of a student or a tower. A tower without weights (stored vectors, an endpoint) is left out, and the package
    refuses that role in words, as it refuses one that was not given. `card` makes the README.md from the differences. A tower that is
    an adapter on a model of a hub also lies in the folder `adapter`, with its tokenizer, for peft.
    Raises ModelError when the package would not give the release's vectors, as for attention that transformers cannot save, and when
    there is no encoder with weights.
    """
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Router

    own: dict[Role, TextEncoder] = {}
    routes: dict[str, list[Any]] = {}
    with tempfile.TemporaryDirectory(prefix="scalingnote-router-") as scratch:
        for role, folder in encoders.items():
            contract, _ = load_contract(folder)
            if contract.base_model in WITHOUT_WEIGHTS:
                continue
            _require_modules(contract)
            if (folder / MODULES).is_file():
                own[role], routes[role] = load_student(folder, "float32"), _student_modules(folder)
            else:
                own[role] = tower = load_tower(folder, "float32")
                routes[role] = _modules(tower, Path(scratch) / role)
        if not routes:
            raise ModelError(
                "The teacher has no weights here (stored vectors, or an endpoint), so there is no encoder to write. Export the student "
                "(--part student), or the vectors (--to)."
            )
        # Without a default route whoever says neither query nor document is told so, instead of getting a vector of one of them. A package
        # of one role has that role alone to give.
        alone = next(iter(own)) if len(encoders) == 1 else None
        prompts = {role: encoder.contract.prompt for role, encoder in own.items()}
        package = SentenceTransformer(
            modules=[Router(routes, default_route=alone, allow_empty_key=False)],
            prompts={"query": "", "document": "", **prompts},
            default_prompt_name=alone if alone and prompts[alone] else None,
            similarity_fn_name="cosine",
            device="cpu",
        )
        package.save(str(target), create_model_card=False)
    found = _differences(target, own)
    if worst := [role for role, difference in found.items() if not difference <= TOLERANCE]:
        shutil.rmtree(target)
        raise ModelError(
            f"A package would give other vectors for a {worst[0]} than the release (by {found[worst[0]]:.2g}), so none was left in "
            f"{target}. The model does something that sentence-transformers cannot be told, such as attention in both directions. Export "
            "the vectors (--to), or the other encoder alone (--part)."
        )
    if len(encoders) == 1:
        _write_adapter(next(iter(encoders.values())), target)
    if card is not None:
        (target / "README.md").write_text(card(found), encoding="utf-8")
    return found


def _require_modules(contract: EncodingContract) -> None:
    """Raise ModelError for an encoder that the modules of a package cannot be."""
    if contract.base_code is not None:
        raise ModelError(
            f"'{contract.base_model}' runs Python code of its makers, which a package cannot carry. Export the vectors (--to), or "
            "one encoder without such code (--part student)."
        )
    if contract.companion is not None:
        raise ModelError(
            "A tower with a companion is two encoders side by side, which the modules of a package cannot be. Export the vectors "
            "(--to), or the student alone (--part student)."
        )


def _differences(package: Path, own: Mapping[Role, TextEncoder]) -> dict[str, float]:
    """The package in `package`, as it is loaded, against the encoders: the largest difference of a number, by role."""
    from sentence_transformers import SentenceTransformer

    written = SentenceTransformer(str(package), device="cpu")
    asked = {"query": written.encode_query, "document": written.encode_document}
    return {role: float(np.abs(asked[role](list(PROBE_TEXTS)) - encoder.encode(PROBE_TEXTS)).max()) for role, encoder in own.items()}


def adapter_on_hub(tower: Path) -> bool:
    """Whether a tower is an adapter that peft can load by itself: its base has a name and a commit on a model hub, and all its layers.

    And its base looks both ways by itself, where the tower does: peft would put the adapter on a decoder that looks back alone.
    """
    contract, _ = load_contract(tower)
    return (
        (tower / ADAPTER).is_dir()
        and "@" not in contract.base_model
        and hub.is_commit(contract.base_revision)
        and is_on_hub(contract.base_model)
        and (contract.attention == "causal" or _looks_both_ways(contract))
    )


def _looks_both_ways(contract: EncodingContract) -> bool:
    """Whether the base of a tower is an encoder, or was published as a decoder that looks both ways."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    folder = published_folder(contract.base_model, contract.base_revision)
    config = hub.read_own(folder / "config.json") if folder is not None else {}
    of_texts = config.get("text_config") or config
    return of_texts.get("use_bidirectional_attention") in (True, "all") or config.get("model_type") in MODEL_FOR_MASKED_LM_MAPPING_NAMES


def _write_adapter(tower: Path, target: Path) -> None:
    """The adapter as it was trained, with the tokenizer, for `AutoPeftModel.from_pretrained`."""
    if not adapter_on_hub(tower):
        return
    shutil.copytree(tower / ADAPTER, target / ADAPTER)
    contract, _ = load_contract(tower)
    save_tokenizer(load_tower(tower).tokenizer, contract, target / ADAPTER)


def _student_modules(folder: Path) -> list[Any]:
    """The modules of a student; the route for queries alone that ends it is taken apart, since the package has routes of its own."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Router

    *before, last = SentenceTransformer(str(folder), device="cpu").float().children()
    return [*before, *(last.sub_modules["query"] if isinstance(last, Router) else [last])]


def require_new(folder: Path) -> None:
    """Raise ConfigError unless `folder` is new or empty: files of another model would be loaded with this one."""
    if os.path.lexists(folder) and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder} is there already and not empty. Give a new or empty folder for the package.")


def _modules(tower: TowerEncoder, scratch: Path) -> list[Module]:
    """The tower as modules of sentence-transformers: its transformer with all that was trained, pooling, maps, and unit length."""
    from sentence_transformers.base.modules import Normalize, Transformer
    from sentence_transformers.sentence_transformer.modules import Pooling
    from torch import eye, nn

    contract = tower.contract
    scratch.mkdir()
    text_part(tower.model).save_pretrained(scratch)
    save_tokenizer(tower.tokenizer, contract, scratch)
    width = state_width(tower.model.config)
    modules: list[Any] = [Transformer(str(scratch), max_seq_length=contract.max_length), Pooling(width, POOLINGS[contract.pooling])]
    modules += dense_modules(tower.head)
    width = modules[-1].out_features if tower.head is not None else width
    if contract.dimension != width:  # a prefix of the vectors, brought to unit length below
        prefix = nn.Linear(width, contract.dimension, bias=False)
        prefix.weight.data = eye(contract.dimension, width)
        modules += dense_modules([prefix])
    return [*modules, Normalize()]
