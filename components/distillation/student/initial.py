"""The student before its training: what can be known of it before the towers, its encoder in its form, and a head fitted in closed form.

A token's first vector is what the encoder makes of a text of that token alone (as model2vec does), not the encoder's input embedding,
which its layers have not read yet. With MiniLM and a head fitted on 4,000 ICD-10-CM queries, the cosine to the teacher on others was
0.789 against 0.782 for input embeddings; vectors scaled down for frequent tokens (Arora, Liang and Ma 2017) gave 0.750, so they are not.
The vectors are trained like all else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from components.distillation.config import DistillationConfig
from components.distillation.student.encoder import StudentEncoder, new_head, ridge
from components.distillation.student.forms import FORMS, static_model
from components.errors import ModelError
from components.settings import expanded, free_memory
from components.towers import hub
from components.towers.base_models import (
    BaseModel,
    load_config,
    load_weights,
    named_as,
    require_embeddings,
    resolve_base,
    tokenizer_of,
    tower_base,
    why_unloadable,
)
from components.towers.config import WITHOUT_WEIGHTS, TowerConfig
from components.towers.contract import COMPANION, EncodingContract, Role, load_contract, tokenizer_digest
from components.towers.device import autocast, pick_device, pick_dtype
from components.towers.encoder import is_base_of, load_tower
from components.towers.model_size import count_layers, model_without_memory, require_positions, state_width
from components.towers.tokens import needs_end_token, require_words, rows_of, token_ids
from components.towers.trained.endpoint import endpoint_width
from components.towers.trained.published import (
    TRANSFORMER_SETTINGS,
    head_digest,
    head_width,
    load_head,
    published_head,
    published_pooling,
    published_prompts,
    stated_length,
)
from components.towers.trained.vector_files import stored_width
from components.towers.transformer import (
    first_and_last,
    keep_layers,
    layer_count,
    layer_stack,
    measured_attention,
    require_format,
    require_states,
    settle,
    text_part,
)
from components.towers.two_towers import check_teacher, require_own_direction

if TYPE_CHECKING:
    import torch
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


@dataclass(frozen=True)
class Source:
    """Where a student comes from: `config`, the texts that a tiny model is built from, and the trained query tower's folder.

    `trained`: where the query tower's companion is the same encoder, its trained weights are taken in the place of the published ones.
    """

    config: DistillationConfig
    texts: Sequence[str]
    teacher_folder: Path | None
    trained: bool = False


def bare_student(source: Source) -> StudentEncoder:
    """The student's encoder without a head, untrained, in a space of its own: the layers or token vectors that the config asks for.

    Raises ModelError for an encoder that cannot be loaded or lacks the layers asked for.
    """
    config = source.config
    student = _of_the_tower(source) if config.student == TEACHER else _of_an_encoder(source)
    if not FORMS[config.form].has_layers:
        return _static(student, source)
    _cut(student.model, choose_layers(config.layers, student.layer_count, config.student), config.student)
    return student


def _cut(model: Any, layers: Sequence[int], name: str) -> None:
    """`keep_layers`, and what is left is tried: a hybrid may not run with the layers of one kind alone."""
    whole = len(layers) == layer_count(model, name)
    keep_layers(model, layers, name)
    if not whole:
        require_states(model, f"{name} with the layers {list(layers)}", state_width(model.config))


def at_most_positions(student: StudentEncoder, length: int) -> int:
    """`length` in tokens, or the longest text that the student's encoder has positions for."""
    return length if student.longest is None else min(length, student.longest)


def load_small_encoder(base: BaseModel) -> tuple[Any, Any]:
    """An encoder in float32 without its pooler, and its tokenizer; raises ModelError for a model that cannot be loaded as one."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    load_config(base)
    try:
        model = _load_without_pooler(base)
    except base.faults as error:
        raise ModelError(f"The student '{base.name}' cannot be loaded as an encoder: {why_unloadable(error)}") from None
    tokenizer = _require_tokenizer(base, model)
    model = text_part(model)
    settle(model)
    if base.layers is not None:
        keep_layers(model, base.layers, base.name)
    require_states(model, base.name, state_width(model.config))
    require_own_direction(base, measured_attention(model))
    return model, tokenizer


def require_compiled(name: str, tokenizer: Any) -> None:
    """Raise ModelError for a tokenizer of Python code alone, which no student is saved with."""
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        raise ModelError(
            f"'{name}' splits texts by Python code ({type(tokenizer).__name__}), which a student cannot be saved with. "
            "Name an encoder that has a tokenizer.json."
        )


def require_known_class(name: str, model: Any) -> None:
    """Raise ModelError for a model that is run by code of its makers, since a saved student is loaded by transformers alone."""
    import transformers

    kind = type(text_part(model))
    if getattr(transformers, kind.__name__, None) is not kind:
        raise ModelError(
            f"distillation.student is teacher, but '{name}' is run by Python code of its makers ({kind.__name__}), which a student is not "
            "saved with. Name an encoder, or set distillation.form to static."
        )


def _load_without_pooler(base: BaseModel) -> Any:
    import torch

    # The fused attention's backward pass takes 40 % of a training step on a CPU at query lengths; the plain one next to nothing. On a GPU
    # transformers takes it where the architecture has it, as DeBERTa's has not.
    options = {"dtype": torch.float32, **({"attn_implementation": "eager"} if pick_device().type == "cpu" else {})}
    try:
        return load_weights(base, add_pooling_layer=False, **options)
    except TypeError:  # most architectures have no pooler to leave out
        return load_weights(base, **options)


def _of_an_encoder(source: Source) -> StudentEncoder:
    base = resolve_base(source.config.student, source.texts, source.config.revision)
    model, tokenizer = load_small_encoder(base)
    if source.trained and source.teacher_folder is not None:
        _take_from_companion(model, base, source.teacher_folder)
    published = published_pooling(base)
    pooling = source.config.pooling or published or "mean"
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
        # One that was published with the last token has been trained on what its tokenizer ends with, as Harrier on a text's last word.
        append_eos=pooling == "last" != published and needs_end_token(tokenizer),
        max_length=source.config.max_query_length,
        dimension=state_width(model.config),
        attention=measured_attention(model),
    )
    return StudentEncoder(model, tokenizer, None, contract, f"untrained:{base.digest}")


def _take_from_companion(model: Any, base: BaseModel, tower: Path) -> None:
    """Give `model` the weights that the tower's companion has for queries, where it was trained from the same `base`."""
    if load_contract(tower)[0].companion is None:
        return
    companion = load_contract(tower / COMPANION)[0]
    if companion.base_model == base.name and is_base_of(companion, base):  # the name says which layers of the files are meant
        model.load_state_dict(text_part(load_tower(tower / COMPANION, "float32").model).state_dict())


def published_length(location: str) -> int | None:
    """The longest text in tokens that the encoder was published with, where a sentence-transformers' configuration names it.

    Since version 6 it stands with the tokenizer.
    """
    paths, tokenizer = (Path(location) / file for file in TRANSFORMER_SETTINGS), Path(location) / "tokenizer_config.json"
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        return None
    length = stated_length(_object(path))
    if length is None and tokenizer.is_file():
        length = _object(tokenizer).get("model_max_length")
    return length if isinstance(length, int) and 0 < length < 10**6 else None


def _object(path: Path) -> dict[str, Any]:
    found = hub.read_own(path)
    if not isinstance(found, dict):
        raise ModelError(f"{path} is no JSON that holds an object. Fetch the model again, or name another.")
    return found


def _of_the_tower(source: Source) -> StudentEncoder:
    """The trained query tower with its pooling and end token; its adapter is merged into the weights."""
    if source.teacher_folder is None:
        raise ModelError("distillation.student is teacher, but no query tower was given; train the towers first.")
    tower = load_tower(source.teacher_folder, precision="float32")
    given = tower.contract
    require_compiled(given.base_model, tower.tokenizer)
    if FORMS[source.config.form].has_layers:
        require_known_class(given.base_model, tower.model)
    update = {
        "base_digest": given.adapter_digest or given.base_digest,  # of a teacher as it was published nothing was trained
        "adapter_digest": None,
        "head": (),  # what stood behind its pooling makes way for the student's own
        "head_digest": None,
        "map_digest": None,
        "companion": None,  # the student is cut from the tower itself
        "companion_share": None,
        "pooling": source.config.pooling or given.pooling,
        "prompt": source.config.query_prompt or given.prompt,
        "max_length": source.config.max_query_length,
        "dimension": state_width(tower.model.config),
    }
    contract = given.model_copy(update=update)
    return StudentEncoder(text_part(tower.model), tower.tokenizer, None, contract, f"untrained:{contract.base_digest}")


def _static(encoder: StudentEncoder, source: Source) -> StudentEncoder:
    """A static student whose token vectors come from `encoder`."""
    update = {"form": "static", "pooling": "mean", "append_eos": False, "prompt": source.config.query_prompt}
    contract = encoder.contract.model_copy(update=update)
    rows = FORMS[contract.form].tokens(encoder.tokenizer, source.texts, contract)
    with autocast(encoder.device, pick_dtype(source.config.precision)):
        vectors = initial_vectors(encoder, rows)
    return StudentEncoder(static_model(vectors), encoder.tokenizer, None, contract, encoder.space_id)


# --- The student before its training: what can be known of it before the towers, its form, and a head fitted in closed form.


TRIED_BYTES = 2 * 10**9  # of float32 weights: a student with fewer is run before the towers are trained


class Shape(NamedTuple):
    """A model's size: layers, and width of its vectors."""

    layers: int
    width: int


def check_before_towers(config: DistillationConfig, towers: TowerConfig, index_dimension: int | None = None) -> None:
    """Refuse a student that cannot be made, before the towers are trained; raises ModelError.

    `index_dimension`: of an index that stays, in whose space the student is to answer; None for one of these towers' own vectors.
    """
    teacher, shape = None, None
    if towers.base_model not in WITHOUT_WEIGHTS:
        shape = shape_of(towers.base_model, towers.revision, towers.trust_remote_code)
        teacher = tower_base(towers, ["any text"])
        if towers.training == "lora" and (towers.lora_layers or 0) > shape.layers:
            raise ModelError(
                f"towers.lora_layers is {towers.lora_layers}, but '{teacher.name}' has {shape.layers} layers. Give {shape.layers} at most, "
                "or null for all."
            )
        check_teacher(teacher, towers, model_without_memory(teacher))
        require_positions(teacher, towers.max_document_length, "towers.max_document_length")
        require_positions(teacher, towers.max_query_length, "towers.max_query_length")
        if towers.companion.base_model:
            with named_as(COMPANION):
                beside = resolve_base(towers.companion.base_model, ["any text"], towers.companion.revision)
            for setting in ("max_document_length", "max_query_length"):
                require_positions(beside, getattr(towers, setting), f"towers.{setting}, which the companion shares,")
    elif config.student == TEACHER:
        raise ModelError(f"distillation.student is teacher, but the teacher '{towers.base_model}' has no layers here. Name an encoder.")
    if FORMS[config.form].has_layers:
        student = teacher if config.student == TEACHER else resolve_base(config.student, ["any text"], config.revision)
        assert student is not None
        require_positions(student, config.max_query_length, "distillation.max_query_length")
    _check(config, width_of(towers) if index_dimension is None else index_dimension, shape)
    if config.student == TEACHER and teacher is not None:
        hollow = model_without_memory(teacher)
        if FORMS[config.form].has_layers:
            require_known_class(teacher.name, hollow)
        _try_cuts(hollow, teacher.name, config, hollow=True)
        require_compiled(teacher.name, tokenizer_of(teacher))
        _require_words(config, tokenizer_of(teacher), teacher.name, config.query_prompt or towers.query_prompt)
    else:
        base = resolve_base(config.student, ["any text"], config.revision)
        _try(base, config.layers, config.prune_to, config.trained_layers, pick_dtype(config.precision))
        _require_words(config, tokenizer_of(base), base.name, config.query_prompt)


def _require_words(config: DistillationConfig, tokenizer: Any, name: str, prompt: str) -> None:
    require_words(tokenizer, name, prompt, config.max_query_length, ("distillation.query_prompt", "distillation.max_query_length"))


@lru_cache(maxsize=8)
def _try(base: BaseModel, layers: tuple[int, ...] | int | None, prune_to: tuple[int, ...], trained: int | None, dtype: torch.dtype) -> None:
    """Cut the student as it will be: what it fails on is said before a day of training. Raises ModelError.

    It is run where its weights are small beside what is free: nobody has asked yet whether there is room. A large one its own step tries.
    """
    published_pooling(base)  # as it was published it is a baseline
    published_head(base)
    published_length(base.location)
    asked = DistillationConfig(layers=layers, prune_to=prune_to, trained_layers=trained)
    whole = model_without_memory(replace(base, layers=None))
    weights = 4 * sum(p.numel() for p in whole.parameters())  # all are read, whatever is kept
    hollow = text_part(whole if base.layers is None else model_without_memory(base))
    _require_tokenizer(base, hollow)
    _try_cuts(hollow, base.name, asked, hollow=True)
    if weights < min(TRIED_BYTES, free_memory() // 4):
        model, _ = load_small_encoder(base)
        require_format(model, base.name, dtype)
        _try_cuts(model, base.name, asked)


def _require_tokenizer(base: BaseModel, model: Any) -> Any:
    """The tokenizer of `base`; raises ModelError for one that does not fit `model`, or that no student is saved with."""
    try:
        tokenizer = tokenizer_of(base)
    except base.faults as error:
        raise ModelError(f"The student '{base.name}' cannot be loaded as an encoder: {why_unloadable(error)}") from None
    require_embeddings(base, model, tokenizer)
    require_compiled(base.name, tokenizer)
    return tokenizer


def _try_cuts(model: Any, name: str, config: DistillationConfig, hollow: bool = False) -> None:
    """Every cut of a student, one after the other; a `hollow` model has no numbers that could be tried."""
    cut = keep_layers if hollow else _cut
    cut(model, choose_layers(config.layers, layer_count(model, name), name), name)
    for count in config.prune_to:
        cut(model, first_and_last(count, layer_count(model, name)), name)
    if config.trained_layers is not None:
        layer_stack(model, name)


def width_of(towers: TowerConfig) -> int:
    """Dimensions of the teacher's vectors, known before anything is trained; raises ModelError for an unknown model."""
    beside = towers.companion
    return _own_width(towers) + (shape_of(beside.base_model, beside.revision).width if beside.base_model else 0)


def _own_width(towers: TowerConfig) -> int:
    if towers.dimension is not None:
        return towers.dimension
    if towers.vectors is not None:
        return stored_width(expanded(towers.vectors))
    if towers.base_model == "endpoint":
        return endpoint_width(towers.endpoint)
    return head_width(towers) or shape_of(towers.base_model, towers.revision, towers.trust_remote_code).width


def check_student(config: DistillationConfig, index_dimension: int, query_tower_folder: Path | None) -> None:
    """Refuse a student that cannot be made for an index of `index_dimension`, before it is trained; raises ModelError.

    Layers that do not exist, a pruning that takes nothing away, an encoder wider than the index, `student: teacher` without a tower.
    """
    tower = None
    if config.student == TEACHER:
        if query_tower_folder is None:
            raise ModelError("distillation.student is teacher, but no query tower was given; train the towers first.")
        contract = load_contract(query_tower_folder)[0]
        if contract.base_model in WITHOUT_WEIGHTS:
            raise ModelError(f"distillation.student is teacher, but the teacher '{contract.base_model}' has no layers here.")
        tower = shape_of(contract.base_model, contract.base_revision, contract.base_code is not None)
    _check(config, index_dimension, tower)


@cache  # finding a model hashes its files, and a study asks for every student
def shape_of(name: str, revision: str | None = None, code: bool = False) -> Shape:
    """Layers and width of the base model `name`, from its configuration alone; raises ModelError where that does not say them."""
    # The models built here are built from texts; their size does not depend on which.
    try:
        width = state_width(load_config(resolve_base(name, ["any text"], revision, code), finished=True))
    except (AttributeError, TypeError):
        raise ModelError(f"The configuration of '{name}' does not say how wide its vectors are; name another model.") from None
    return Shape(count_layers(name, revision, code), width)


def _check(config: DistillationConfig, dimension: int, tower: Shape | None) -> None:
    shape = tower if config.student == TEACHER and tower else shape_of(config.student, config.revision)
    if config.student != TEACHER and shape.width > dimension:
        raise ModelError(
            f"The student '{config.student}' is {shape.width} wide, the index {dimension}: a student must not be wider than its index. "
            "Take a narrower student, or build an index of wider vectors (towers.dimension)."
        )
    if not FORMS[config.form].has_layers:
        return
    kept = len(choose_layers(config.layers, shape.layers, config.student))
    if config.prune_to and config.prune_to[0] >= kept:
        raise ModelError(
            f"distillation.prune_to begins with {config.prune_to[0]}, but the student has {kept} layers; prune to 1 to {kept - 1}."
        )
    if config.prune_to and config.prune_to[-1] < 1:
        raise ModelError(f"distillation.prune_to ends with {config.prune_to[-1]}; a student needs at least one layer.")


# --- The student before its training: its form, and a head fitted to the teacher in closed form.


FIT_TEXTS = 8192  # texts that the head is fitted on, several for each row of its map


def new_student(
    texts: Sequence[str], teacher_vectors: NDArray[np.float32], space_id: str, config: DistillationConfig, teacher_folder: Path | None
) -> StudentEncoder:
    """A student for the space of the teacher's vectors (len(texts), dimension); `teacher_folder` is the query tower's.

    The head starts at the closed-form optimum of a linear one; started from a random map, several epochs go by to find it. Raises
    ModelError for an unusable encoder.
    """
    import torch

    torch.manual_seed(config.seed)
    student = bare_student(Source(config, texts, teacher_folder, trained=True))
    _require_words(config, student.tokenizer, student.contract.base_model, student.contract.prompt)
    sample = np.random.default_rng(0).permutation(len(texts))[:FIT_TEXTS]
    with autocast(student.device, pick_dtype(config.precision)):
        features = torch.from_numpy(student.features([texts[i] for i in sample], progress="fit the head"))
    head = new_head(ridge(features, torch.from_numpy(teacher_vectors[sample])), features, config)
    contract = student.contract.model_copy(update={"dimension": teacher_vectors.shape[1]})
    return StudentEncoder(student.model, student.tokenizer, head, contract, space_id)


def untrained_student(config: DistillationConfig, texts: Sequence[str], teacher_folder: Path | None, max_length: int) -> StudentEncoder:
    """The student's encoder as it was before training: no head, a space of its own; `texts` as in `new_student`."""
    wanted = config.model_copy(update={"max_query_length": max_length})
    student = bare_student(Source(wanted, texts, teacher_folder))
    if config.student != TEACHER and config == as_published(config):
        student = _with_published_head(student, resolve_base(config.student, texts, config.revision))
    # It also encodes documents, which may be longer than what it has positions for.
    student.contract = student.contract.model_copy(update={"max_length": at_most_positions(student, max_length)})
    _narrow(student.model, pick_dtype("auto"))
    return student


def _narrow(model: Any, dtype: Any) -> None:
    """Calculate in `dtype` from now on, but for the frequencies of rotary positions, which transformers loads as float32 in every case.

    Rounded to bfloat16 they turn a token that stands a hundred places away by a quarter of a radian too much or too little.
    """
    exact = {name: buffer.clone() for name, buffer in model.named_buffers() if "inv_freq" in name}
    model.to(dtype)
    for name, buffer in exact.items():
        owner, _, own = name.rpartition(".")
        setattr(model.get_submodule(owner), own, buffer)


def _with_published_head(student: StudentEncoder, base: BaseModel) -> StudentEncoder:
    """The encoder with the maps that its makers put behind the pooling, as LaBSE and EmbeddingGemma have them."""
    head = published_head(base) if base.layers is None else ()
    if not head:
        return student
    named = {"head": tuple(map(str, head)), "head_digest": head_digest(base, head), "dimension": head[-1].outputs}
    contract = student.contract.model_copy(update=named)
    return StudentEncoder(student.model, student.tokenizer, load_head(base, head), contract, student.space_id)


def as_published(config: DistillationConfig) -> DistillationConfig:
    """The student's encoder as its makers published it: all its layers, its own pooling."""
    return config.model_copy(update={"form": "transformer", "layers": None, "prune_to": (), "pooling": None})


def as_trained(config: DistillationConfig) -> DistillationConfig:
    """The student's encoder in the form that its training ends with."""
    return config.model_copy(update={"layers": config.prune_to[-1] if config.prune_to else config.layers, "prune_to": ()})


def untrained_roles(
    config: DistillationConfig, texts: Sequence[str], teacher_folder: Path | None, most: int
) -> tuple[StudentEncoder, StudentEncoder]:
    """`untrained_student` for queries and for documents, of at most `most` tokens or the length that it was published with.

    Each has the prompt of its role as published; where none is known, `query_prompt` stands before queries and nothing before documents.
    A student that is cut from the teacher has its query tower's prompt in both roles, since that tower knows no other.
    """
    if config.student == TEACHER:
        tower = untrained_student(config, texts, teacher_folder, most)
        return tower, tower
    prompts = role_prompts(config, texts)
    length = min(most, published_length(resolve_base(config.student, texts, config.revision).location) or most)
    query = untrained_student(config.model_copy(update={"query_prompt": prompts["query"]}), texts, teacher_folder, length)
    return query, with_prompt(query, prompts["document"])


def role_prompts(config: DistillationConfig, texts: Sequence[str]) -> dict[Role, str]:
    """The prompts that the student's encoder was published with; where none are known, `query_prompt` for queries alone."""
    return published_prompts(resolve_base(config.student, texts, config.revision)) or {"query": config.query_prompt, "document": ""}


def with_prompt(encoder: StudentEncoder, prompt: str) -> StudentEncoder:
    """The same weights behind another prompt."""
    contract = encoder.contract.model_copy(update={"prompt": prompt})
    return StudentEncoder(encoder.model, encoder.tokenizer, encoder.head, contract, encoder.space_id)
