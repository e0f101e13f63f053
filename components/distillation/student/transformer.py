"""The student's encoder before its training: a small encoder, layers of the trained query tower, or token vectors taken from either.

A token's first vector is what the encoder makes of a text of that token alone (as model2vec does), not the encoder's input embedding,
which its layers have not read yet. With MiniLM and a head fitted on 4,000 ICD-10-CM queries, the cosine to the teacher on others was
0.789 against 0.782 for input embeddings; vectors scaled down for frequent tokens (Arora, Liang and Ma 2017) gave 0.750, so they are not.
The vectors are trained like all else.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from components.artifacts import read_json
from components.distillation.config import DistillationConfig
from components.distillation.student.encoder import StudentEncoder, ridge, static_model, static_tokens
from components.errors import ModelError
from components.towers.base_models import BaseModel, load_config, resolve_base, why_unloadable
from components.towers.contract import EncodingContract, Role, tokenizer_digest
from components.towers.device import autocast, pick_device, pick_dtype
from components.towers.encoder import load_tower
from components.towers.tokens import needs_end_token, rows_of, token_ids
from components.towers.transformer import first_and_last, keep_layers, measured_attention, position_limit

if TYPE_CHECKING:
    from torch import Tensor


def choose_layers(layers: Sequence[int] | int | None, total: int, name: str) -> tuple[int, ...]:
    """The layer numbers that the setting `layers` asks of a model with `total` layers; raises ModelError for ones it lacks."""
    if layers is None:
        return tuple(range(total))
    if isinstance(layers, int):
        if not 1 <= layers <= total:
            raise ModelError(f"distillation.layers is {layers}, but '{name}' has {total} layers; ask for 1 to {total}.")
        return first_and_last(layers, total)
    if not layers or any(not 0 <= i < total for i in layers) or len(set(layers)) < len(layers):
        raise ModelError(f"distillation.layers is {list(layers)}, but '{name}' has the layers 0 to {total - 1}, each to be taken once.")
    return tuple(layers)


# --- The token vectors that a static student starts from.


# Tokens that the encoder reads itself: all of a BERT's; of a decoder with 262,144 those in the texts and the first of the others.
DIRECT_TOKENS = 32_768


def initial_vectors(source: StudentEncoder, rows: Sequence[Sequence[int]]) -> Tensor:
    """Token vectors (vocabulary, width) float32 from the encoder `source`; `rows` are token ids of texts, read first."""
    import torch

    inputs = source.model.get_input_embeddings().weight.detach().float().cpu()
    counts = np.bincount(np.fromiter(chain.from_iterable(rows), dtype=np.int64), minlength=len(inputs))
    direct = torch.from_numpy(np.argsort(counts == 0, kind="stable")[:DIRECT_TOKENS].copy())
    read = torch.from_numpy(_vectors_of_single_tokens(source, direct.tolist()))
    # The rest by the linear map that comes closest to what the encoder does with the tokens it has read.
    table = inputs @ ridge(inputs[direct], read).T if len(direct) < len(inputs) else torch.empty(len(inputs), read.shape[1])
    table[direct] = read
    return table


def _vectors_of_single_tokens(source: StudentEncoder, tokens: Sequence[int]) -> NDArray[np.float32]:
    # Without an end token `token_ids` would give the empty text a token that no other text has.
    rows = (token_ids if source.contract.append_eos else rows_of)(source.tokenizer, ["", "a"], source.contract)
    empty, word = rows
    before = next((i for i, (x, y) in enumerate(zip(empty, word, strict=False)) if x != y), len(empty))
    return source.encode_rows([[*empty[:before], token, *empty[before:]] for token in tokens], progress="token vectors")


# --- The student's encoder before its training: a small encoder, layers of the trained query tower, or token vectors taken from either.


TEACHER = "teacher"
# Names of prompts in a sentence-transformers' configuration, the one that counts most last.
_PROMPT_NAMES: dict[str, Role] = {"passage": "document", "document": "document", "query": "query"}
# Families by how their names begin: prompts of queries and documents as the model cards have them.
PROMPTS = {
    r"(multilingual-)?e5-(small|base|large)(?!.*instruct)": ("query: ", "passage: "),
    r"bge-(small|base|large)-en": ("Represent this sentence for searching relevant passages: ", ""),
    r"bge-(small|base|large)-zh": ("为这个句子生成表示以用于检索相关文章：", ""),  # noqa: RUF001
    r"nomic-embed-text": ("search_query: ", "search_document: "),
    r"snowflake-arctic-embed-(xs|s|m|l)$": ("Represent this sentence for searching relevant passages: ", ""),
}
POOLINGS = {"mean": "mean", "cls": "cls", "lasttoken": "last"}  # sentence-transformers' names and ours


@dataclass(frozen=True)
class Source:
    """Where a student comes from: `config`, the texts that a tiny model is built from, and the trained query tower's folder."""

    config: DistillationConfig
    texts: Sequence[str]
    teacher_folder: Path | None


def bare_student(source: Source) -> StudentEncoder:
    """The student's encoder without a head, untrained, in a space of its own: the layers or token vectors that the config asks for.

    Raises ModelError for an encoder that cannot be loaded or lacks the layers asked for.
    """
    config = source.config
    student = _of_the_tower(source) if config.student == TEACHER else _of_an_encoder(source)
    if config.form == "static":
        return _static(student, source)
    keep_layers(student.model, choose_layers(config.layers, student.layer_count, config.student), config.student)
    return student


def at_most_positions(student: StudentEncoder, length: int) -> int:
    """`length` in tokens, or the longest text that the student's encoder has positions for."""
    limit = None if student.is_static else position_limit(student.model)
    return length if limit is None else min(length, limit)


def load_small_encoder(base: BaseModel) -> tuple[Any, Any]:
    """An encoder in float32 without its pooler, and its tokenizer; raises ModelError for a model that cannot be loaded as one."""
    from transformers import AutoTokenizer
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    load_config(base)
    try:
        model = _load_without_pooler(base.location)
        tokenizer = AutoTokenizer.from_pretrained(base.location, trust_remote_code=False)
    except base.faults as error:
        raise ModelError(f"The student '{base.name}' cannot be loaded as an encoder: {why_unloadable(error)}") from None
    return model, tokenizer


def _load_without_pooler(location: str) -> Any:
    import torch
    from transformers import AutoModel

    # The fused attention's backward pass takes 40 % of a training step on a CPU at query lengths; the plain one next to nothing.
    options = {"dtype": torch.float32, "attn_implementation": "eager" if pick_device().type == "cpu" else "sdpa"}
    try:
        return AutoModel.from_pretrained(location, add_pooling_layer=False, trust_remote_code=False, **options)
    except TypeError:  # most architectures have no pooler to leave out
        return AutoModel.from_pretrained(location, trust_remote_code=False, **options)


def _of_an_encoder(source: Source) -> StudentEncoder:
    base = resolve_base(source.config.student, source.texts, source.config.revision)
    model, tokenizer = load_small_encoder(base)
    pooling = source.config.pooling or pooling_of(base.location)
    contract = EncodingContract(
        role="query",
        base_model=base.name,
        base_digest=base.digest,
        base_revision=base.revision,
        adapter_digest=None,
        tokenizer_digest=tokenizer_digest(tokenizer),
        pooling=pooling,
        normalize=True,
        prompt=source.config.query_prompt,
        append_eos=pooling == "last" and needs_end_token(tokenizer),
        max_length=source.config.max_query_length,
        dimension=model.config.hidden_size,
        attention=measured_attention(model),
    )
    return StudentEncoder(model, tokenizer, None, contract, f"untrained:{base.digest}")


def pooling_of(location: str) -> str:
    """The pooling that the encoder was trained with, where a sentence-transformers' configuration names it; else mean."""
    path = Path(location) / "1_Pooling" / "config.json"
    if not path.is_file():
        return "mean"
    config = read_json(path)
    old = {"pooling_mode_cls_token": "cls", "pooling_mode_lasttoken": "lasttoken"}
    named = config.get("pooling_mode") or next((name for key, name in old.items() if config.get(key)), "mean")
    return POOLINGS.get(named, "mean") if isinstance(named, str) else "mean"


def published_length(location: str) -> int | None:
    """The longest text in tokens that the encoder was published with, where a sentence-transformers' configuration names it.

    Since version 6 it stands with the tokenizer.
    """
    path, tokenizer = Path(location) / "sentence_bert_config.json", Path(location) / "tokenizer_config.json"
    if not path.is_file():
        return None
    length = read_json(path).get("max_seq_length")
    if length is None and tokenizer.is_file():
        length = read_json(tokenizer).get("model_max_length")
    return length if isinstance(length, int) and 0 < length < 10**6 else None


def published_prompts(base: BaseModel) -> dict[Role, str] | None:
    """What the encoder's makers put before queries and documents; None where it is not known to have any.

    From a sentence-transformers' configuration, or else from the model cards of families that were published without one.
    """
    path = Path(base.location) / "config_sentence_transformers.json"
    named = read_json(path).get("prompts") if path.is_file() else None
    found = {role: named[key] for key, role in _PROMPT_NAMES.items() if isinstance(named.get(key), str)} if isinstance(named, dict) else {}
    if any(found.values()):
        return {"query": found.get("query", ""), "document": found.get("document", "")}
    last = base.name.rstrip("/").rpartition("/")[2].casefold()
    prompts = next((prompts for family, prompts in PROMPTS.items() if re.match(family, last)), None)
    return {"query": prompts[0], "document": prompts[1]} if prompts else None


def _of_the_tower(source: Source) -> StudentEncoder:
    """The trained query tower with its pooling and end token; its adapter is merged into the weights."""
    if source.teacher_folder is None:
        raise ModelError("distillation.student is teacher, but no query tower was given; train the towers first.")
    tower = load_tower(source.teacher_folder, precision="float32")
    given = tower.contract
    update = {
        "base_digest": given.adapter_digest,
        "adapter_digest": None,
        "pooling": source.config.pooling or given.pooling,
        "prompt": source.config.query_prompt or given.prompt,
        "max_length": source.config.max_query_length,
        "dimension": tower.model.config.hidden_size,
    }
    return StudentEncoder(tower.model, tower.tokenizer, None, given.model_copy(update=update), f"untrained:{given.adapter_digest}")


def _static(encoder: StudentEncoder, source: Source) -> StudentEncoder:
    """A static student whose token vectors come from `encoder`."""
    update = {"form": "static", "pooling": "mean", "append_eos": False, "prompt": source.config.query_prompt}
    contract = encoder.contract.model_copy(update=update)
    rows = static_tokens(encoder.tokenizer, source.texts, contract)
    with autocast(encoder.device, pick_dtype(source.config.precision)):
        vectors = initial_vectors(encoder, rows)
    return StudentEncoder(static_model(vectors), encoder.tokenizer, None, contract, encoder.space_id)
