"""A published embedding model as it is: what a SentenceTransformer says of itself, read from its folder without that library.

`modules.json` lists its modules, `config_sentence_transformers.json` has prompts by name, each module its own configuration. What this
project's towers cannot do in the same way is refused by name, so that no vector differs without a word.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from components.artifacts import digest_of, file_sha256
from components.errors import ModelError
from components.towers import hub
from components.towers.base_models import BaseModel, load_config, tokenizer_of, tower_base, why_unloadable
from components.towers.config import TowerConfig
from components.towers.contract import ROLES, Role
from components.towers.model_size import model_without_memory, state_width
from components.towers.tokens import kinds_of_tokens
from components.towers.transformer import position_limit

if TYPE_CHECKING:
    from torch.nn import Module

MODULES = "modules.json"
SETTINGS = "config_sentence_transformers.json"
# Where the library looks for a Transformer module's own settings, by the names that it gave them over the years.
TRANSFORMER_SETTINGS = tuple(
    f"sentence_{kind}_config.json" for kind in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
Pooling = Literal["last", "mean", "cls"]
POOLINGS: dict[str, Pooling] = {"mean": "mean", "cls": "cls", "lasttoken": "last"}
# Names of prompts in a configuration, the one that counts most last.
_PROMPT_NAMES: dict[str, Role] = {"passage": "document", "document": "document", "query": "query"}
# Families by how their names begin: prompts of queries and documents as the model cards have them, where no file says them.
PROMPTS = {
    r"(multilingual-)?e5-(small|base|large)(?!.*instruct)": ("query: ", "passage: "),
    r"bge-(small|base|large)-en": ("Represent this sentence for searching relevant passages: ", ""),
    r"bge-(small|base|large)-zh": ("为这个句子生成表示以用于检索相关文章：", ""),  # noqa: RUF001
    r"nomic-embed-text": ("search_query: ", "search_document: "),
    r"snowflake-arctic-embed-(xs|s|m|l)$": ("Represent this sentence for searching relevant passages: ", ""),
}
# What a Transformer module's settings may tell transformers without another vector coming of it.
# The library puts its own in the place of a revision, a cache and whether to stay offline.
_HARMLESS = (
    "trust_remote_code", "torch_dtype", "dtype", "attn_implementation", "add_pooling_layer", "use_cache", "device_map", "use_fast",
    "revision", "cache_dir", "local_files_only", "use_safetensors", "low_cpu_mem_usage",
)  # fmt: skip
# And its tokenizer: a mask covers padding on either side, and the longest text is read (`_longest`).
_OF_TOKENIZER = ("padding_side", "model_max_length")
# Settings that a model which is taken as it is brings itself.
OWN = ("pooling", "query_prompt", "document_prompt", "dimension", "max_query_length", "max_document_length")
SILENT = ("Dropout",)  # modules that do nothing in inference
_FLAGS = "pooling_mode_"  # older configurations have one flag for each pooling


@dataclass(frozen=True)
class Dense:
    """A linear map behind the pooling: its folder in the model's, its widths, and the name of the torch class that bends its output."""

    path: str
    inputs: int
    outputs: int
    activation: str

    def __str__(self) -> str:
        bend = self.activation.rpartition(".")[2]
        return f"{self.inputs} -> {self.outputs}" + ("" if bend == "Identity" else f" {bend}")


@dataclass(frozen=True)
class Published:
    """What a model says of itself. The longest query and document in tokens, and `dimension`, are None where it says nothing."""

    pooling: Pooling
    query_prompt: str
    document_prompt: str
    longest_query: int | None
    longest_document: int | None
    dimension: int | None
    head: tuple[Dense, ...]


def read_published(base: BaseModel) -> Published | None:
    """What the SentenceTransformer in `base` says of itself; None for a model that is none.

    Raises ModelError for modules or settings that a tower cannot follow.
    """
    folder = Path(base.location)
    if not (folder / MODULES).is_file():
        return None
    modules = _modules(base)
    kinds = [kind for kind, _ in modules]
    if not kinds or kinds[0] != "Transformer" or modules[0][1] not in ("", "."):
        begins = f"the module {kinds[0]}{f' in the folder {modules[0][1]}' if modules[0][1] else ''}" if kinds else "no module"
        raise ModelError(f"'{base.name}' begins with {begins}; a teacher begins with one Transformer in the model's own folder.")
    head = published_head(base)
    whole = _json(folder / SETTINGS)
    if (similarity := whole.get("similarity_fn_name")) not in (None, "cosine") and kinds[-1] != "Normalize":
        raise ModelError(f"'{base.name}' compares by {similarity} and does not normalise its vectors; an index here compares by cosine.")
    # As `encode_query` and `encode_document` of sentence-transformers 6: these two names, whatever other prompts there are.
    prompts, dimension = whole.get("prompts") or {}, whole.get("truncate_dim")
    if not isinstance(prompts, dict) or not all(isinstance(prompt, str) for prompt in prompts.values() if prompt is not None):
        raise ModelError(f"{folder / SETTINGS}: prompts must be texts by name; found {prompts!r:.80}. Correct it, or name another model.")
    if dimension is not None and (not isinstance(dimension, int) or dimension < 1):
        raise ModelError(f"{folder / SETTINGS}: truncate_dim must be a whole number above 0 or null; found {dimension!r:.40}. Correct it.")
    named = {role: prompts.get(role) or "" for role in ROLES}
    if not any(prompts.values()):
        named = published_prompts(base) or named
    pooling = folder / next(path for kind, path in modules if kind == "Pooling") / "config.json"
    settings = next((_json(folder / file) for file in TRANSFORMER_SETTINGS if (folder / file).is_file()), {})
    lengths = _lengths(settings, base.name)
    longest = _longest(base, settings)
    query, document = (min((n for n in (longest, lengths.get(role)) if n is not None), default=None) for role in ROLES)
    return Published(
        pooling=_pooling(_read(pooling), base.name, any(named.values())),
        query_prompt=named["query"],
        document_prompt=named["document"],
        longest_query=query,
        longest_document=document,
        dimension=None if dimension is None else min(dimension, _width(base, head)),
        head=head,
    )


def _width(base: BaseModel, head: tuple[Dense, ...]) -> int:
    """Numbers of a vector before it is cut; a library that cuts it at more gives all of them."""
    return head[-1].outputs if head else state_width(load_config(base))


def published_head(base: BaseModel) -> tuple[Dense, ...]:
    """The linear maps that a SentenceTransformer has behind its pooling; none for another model. Raises ModelError for other modules."""
    folder = Path(base.location)
    if not (folder / MODULES).is_file():
        return ()
    modules = _modules(base)
    kinds = [kind for kind, _ in modules]
    behind = kinds[1:]
    while behind and behind[-1] == "Normalize":  # twice is once; between Dense modules it changes what the next one sees
        behind.pop()
    strange = [kind for place, kind in enumerate(behind) if kind != ("Dense" if place else "Pooling")]
    if strange or not behind:
        raise ModelError(f"'{base.name}' is made of {', '.join(kinds)}; expected Transformer, Pooling, any number of Dense, and Normalize.")
    return tuple(_dense(folder, path, base.name) for kind, path in modules if kind == "Dense")


def published_prompts(base: BaseModel) -> dict[Role, str] | None:
    """What a model's makers put before queries and documents; None where it is not known to have any.

    From a sentence-transformers' configuration, or else from the model cards of families that were published without one.
    """
    named = _json(Path(base.location) / SETTINGS).get("prompts")
    found = {role: named[key] for key, role in _PROMPT_NAMES.items() if isinstance(named.get(key), str)} if isinstance(named, dict) else {}
    if any(found.values()):
        return {"query": found.get("query", ""), "document": found.get("document", "")}
    last = base.name.rstrip("/").rpartition("/")[2].casefold()
    prompts = next((prompts for family, prompts in PROMPTS.items() if re.match(family, last)), None)
    return {"query": prompts[0], "document": prompts[1]} if prompts else None


def other_prompts(base: BaseModel) -> list[str]:
    """Names of the prompts that a model has where none of them is that of queries or documents (E5-Mistral's web_search_query)."""
    named = _json(Path(base.location) / SETTINGS).get("prompts")
    if not isinstance(named, dict) or any(named.get(key) for key in _PROMPT_NAMES):
        return []
    return [str(key) for key, prompt in named.items() if prompt]


def published_pooling(base: BaseModel) -> Pooling | None:
    """The pooling that a model was published with; None where it names none. Raises ModelError for one that is unknown here.

    A mean over the root of the length differs from the mean in length alone, and vectors are compared by direction.
    """
    folder = Path(base.location)
    listed = _modules(base) if (folder / MODULES).is_file() else []
    path = folder / next((path for kind, path in listed if kind == "Pooling"), "1_Pooling") / "config.json"
    if not path.is_file():
        return None
    modes = ["mean" if mode == "mean_sqrt_len_tokens" else mode for mode in _modes(_read(path))]
    return _pooling({"pooling_mode": modes}, base.name, prompted=False)


def _modules(base: BaseModel) -> list[tuple[str, str]]:
    """Kind and folder of each module of a SentenceTransformer that does something in inference, in their order. Raises ModelError."""
    folder = Path(base.location)
    listed = _read(folder / MODULES, list)
    if not all(isinstance(module, dict) for module in listed):
        raise ModelError(f"{folder / MODULES} does not list modules. Fetch the model again, or name another.")
    types = [(str(module.get("type", "")), str(module.get("path", ""))) for module in listed]
    modules = [(kind.rpartition(".")[2], path) for kind, path in types]
    if modules and modules[-1][0] == "Router" and _normalises(folder / modules[-1][1]):  # a student of this project
        modules[-1] = ("Normalize", modules[-1][1])
    known = ("Transformer", "Pooling", "Dense", "Normalize")
    if own := [kind for kind, _ in types if kind.rpartition(".")[2] in known and not kind.startswith("sentence_transformers.")]:
        raise ModelError(f"'{base.name}' is made of a module of its own ({own[0]}), whose code does not run here. Name another model.")
    return [(kind, path) for kind, path in modules if kind not in SILENT]


def _normalises(router: Path) -> bool:
    """Whether a Router does nothing to queries but bring them to unit length."""
    types = _json(router / "router_config.json").get("types")
    return isinstance(types, dict) and [str(kind).rpartition(".")[2] for kind in types.values()] == ["Normalize"]


def is_published(base: BaseModel) -> bool:
    """Whether `base` is a SentenceTransformer."""
    return (Path(base.location) / MODULES).is_file()


def asked_attention(published: bool, attention: str) -> str:
    """What a model is to be asked for when it is loaded: a SentenceTransformer for nothing, since it attends as it was trained.

    One with sliding windows in both directions, as EmbeddingGemma has them, would get other windows if it were switched again.
    """
    return "causal" if published else attention


def with_own_settings(towers: TowerConfig) -> TowerConfig:
    """`towers` with the model's own pooling, prompts, lengths and dimension in the place of all that nobody has set.

    For `training: none` alone; others are trained as the settings say. Raises ModelError as `read_published` and `resolve_base` do.
    """
    if towers.training != "none" or towers.base_model == "vectors":
        return towers
    if towers.base_model == "endpoint":  # a server puts its own words before a text, where its model wants any
        own: dict[str, Any] = {"query_prompt": "", "document_prompt": ""}
        return towers.model_copy(update={field: value for field, value in own.items() if field not in towers.model_fields_set})
    if set(OWN) <= towers.model_fields_set:
        return towers
    found = read_published(tower_base(towers, ["any text"]))
    if found is None:
        return towers
    own = {
        "pooling": found.pooling,
        "query_prompt": found.query_prompt,
        "document_prompt": found.document_prompt,
        "dimension": found.dimension,
        "max_query_length": found.longest_query,
        "max_document_length": found.longest_document,
    }
    own = {field: value for field, value in own.items() if value is not None or field == "dimension"}
    return towers.model_copy(update={field: value for field, value in own.items() if field not in towers.model_fields_set})


def head_width(towers: TowerConfig) -> int | None:
    """Dimensions that the head of a model gives that is taken as it is; None for one without a head, whose vectors are as wide as it is."""
    if towers.training != "none":
        return None
    found = read_published(tower_base(towers, ["any text"]))
    return found.head[-1].outputs if found is not None and found.head else None


def head_digest(base: BaseModel, head: tuple[Dense, ...]) -> str | None:
    """Identity of the linear maps behind the pooling: their configurations and weights; None where there are none."""
    if not head:
        return None
    files = [Path(base.location) / dense.path / "config.json" for dense in head]
    files += [_weights(Path(base.location) / dense.path, base.name) for dense in head]
    return digest_of([file_sha256(path) for path in files])


def load_head(base: BaseModel, head: tuple[Dense, ...]) -> Module | None:
    """The linear maps as one float32 module from (n, width) to (n, dimension); None where there are none. Raises ModelError."""
    import torch
    from torch import nn

    layers: list[Any] = []
    for dense in head:
        path = _weights(Path(base.location) / dense.path, base.name)
        try:
            if path.suffix == ".safetensors":
                from safetensors.torch import load_file

                tensors = load_file(path)
            else:
                tensors = torch.load(path, map_location="cpu", weights_only=True)
            if not all(value.is_floating_point() for value in tensors.values()):
                raise ValueError("they are whole numbers, as quantized weights are")
            state = {name.removeprefix("linear."): value.float() for name, value in tensors.items()}
            layer = nn.Linear(dense.inputs, dense.outputs, bias="bias" in state)
            layer.load_state_dict(state)
        except base.faults as error:
            said = why_unloadable(error).removesuffix(":")
            raise ModelError(f"'{base.name}': the weights of {dense.path} do not make a map {dense} ({said}). Fetch it again.") from None
        layers += [layer, _bend(dense.activation)()]
    return nn.Sequential(*layers).eval() if layers else None


def _read(path: Path, kind: type[dict[str, Any] | list[Any]] = dict) -> Any:
    """What a model's own file of JSON holds; raises ModelError for one that is missing, broken, or of another kind."""
    try:
        found = hub.read_own(path)
    except ModelError:
        found = None
    if not isinstance(found, kind):
        what = "an object" if kind is dict else "a list"
        raise ModelError(f"{path} is missing or is no JSON that holds {what}. Fetch the model again, or name another.")
    return found


def _json(path: Path) -> dict[str, Any]:
    return dict(_read(path)) if path.is_file() else {}


def _modes(config: dict[str, Any]) -> list[Any]:
    modes = config.get("pooling_mode")
    if modes is None:
        # Whatever counts as true in Python: the library asks no more of a flag than that.
        flags = [key.removeprefix(_FLAGS) for key, value in config.items() if key.startswith(_FLAGS) and value]
        modes = [flag if flag.endswith("len_tokens") else flag.removesuffix("_token").removesuffix("_tokens") for flag in flags] or ["mean"]
    return modes if isinstance(modes, list) else [modes]


def _pooling(config: dict[str, Any], name: str, prompted: bool) -> Pooling:
    modes = _modes(config)
    if len(modes) != 1 or not isinstance(modes[0], str) or modes[0] not in POOLINGS:
        raise ModelError(
            f"'{name}' pools by {' and '.join(map(str, modes)) or 'nothing'}; a tower or student pools by one of {', '.join(POOLINGS)}. "
            "Name another model."
        )
    if config.get("include_prompt") is False and prompted:
        raise ModelError(f"'{name}' leaves the tokens of its prompt out of the pooling, which a tower does not do.")
    return POOLINGS[modes[0]]


def _lengths(settings: dict[str, Any], name: str) -> dict[Role, int]:
    """The longest text in tokens by role, where a Transformer module sets some. Raises ModelError for settings that no tower follows."""
    try:
        strange = next(_unfollowed(settings), None)
    except (AttributeError, TypeError, ValueError):
        strange = "something that is no setting"
    if strange:
        raise ModelError(f"'{name}' has {strange} in its settings of sentence-transformers, which no tower follows. Name another model.")
    of_texts = (settings.get("processing_kwargs") or {}).get("text") or {}
    found = {role: settings.get(f"{role}_length") or of_texts.get("max_length") for role in ROLES}
    return {role: length for role, length in found.items() if isinstance(length, int) and length > 0}


def in_chat_template(base: BaseModel) -> bool:
    """Whether sentence-transformers puts the texts of a model into a chat template, as rerankers that were decoders ask for."""
    settings = next((_json(path) for file in TRANSFORMER_SETTINGS if (path := Path(base.location) / file).is_file()), {})
    ways = settings.get("modality_config")
    return isinstance(ways, dict) and "message" in ways


def default_prompt(base: BaseModel) -> str:
    """What sentence-transformers puts before the first text of a pair for a cross-encoder, unless told otherwise; empty for nothing.

    It reads prompts of cross-encoders that were saved as such alone; what else lies in a folder may be left from the encoder before.
    """
    folder = Path(base.location)
    whole = _json(folder / SETTINGS) if (folder / MODULES).is_file() else {}
    if whole.get("model_type") != "CrossEncoder":
        return ""
    prompts, name = whole.get("prompts"), whole.get("default_prompt_name")
    found = prompts.get(name) if isinstance(prompts, dict) and isinstance(name, str) else None
    return found if isinstance(found, str) else ""


def _unfollowed(settings: dict[str, Any]) -> Iterator[str]:
    """Each setting of a Transformer module of which another vector would come than a tower gives."""
    if settings.get("transformer_task") not in (None, "feature-extraction"):
        yield f"transformer_task {settings['transformer_task']}"
    ways = settings.get("modality_config")
    if ways is not None and not isinstance(ways, dict):
        yield "modality_config"
    elif ways is not None and "message" in ways:
        yield "a chat template around each text (modality_config)"
    elif ways is not None and ways.get("text") != {"method": "forward", "method_output_name": "last_hidden_state"}:
        yield "modality_config"
    if settings.get("query_expansion"):
        yield "query_expansion"
    calls = settings.get("processing_kwargs") or {}
    plain = {"padding": (True,), "truncation": (True, "longest_first")}
    for key, value in [pair for kind in ("text", "common") for pair in dict(calls.get(kind) or {}).items()]:
        if key != "max_length" and value not in plain.get(key, ()):
            yield f"processing_kwargs ({key})"
    for part in ("model", "config", "tokenizer", "processor"):
        for given in (settings.get(f"{part}_args"), settings.get(f"{part}_kwargs")):
            known = (*_HARMLESS, *_OF_TOKENIZER) if part in ("tokenizer", "processor") else _HARMLESS
            yield from (f"{part}_kwargs ({key})" for key in dict(given or {}) if key not in known)


def stated_length(settings: dict[str, Any]) -> Any:
    """The longest text that a Transformer module's settings state; what its tokenizer is told counts more than the module's own."""
    told = (settings.get(place) for place in ("tokenizer_args", "processor_kwargs", "tokenizer_kwargs"))
    lengths = (given.get("model_max_length") for given in told if isinstance(given, dict))
    return next((length for length in lengths if length is not None), settings.get("max_seq_length"))


def _longest(base: BaseModel, settings: dict[str, Any]) -> int | None:
    """The longest text in tokens, as sentence-transformers finds it: its own setting, else what tokenizer and positions allow."""
    config = load_config(base)  # first: a tokenizer reads it too, and says less of what is wrong
    try:
        tokenizer = tokenizer_of(base)
    except base.faults as error:
        raise ModelError(f"The tokenizer of '{base.name}' cannot be loaded: {why_unloadable(error)}") from None
    if tokenizer.truncation_side != "right":
        raise ModelError(f"'{base.name}' cuts long texts at their beginning (truncation_side), where a tower cuts them at their end.")
    if kinds_of_tokens(tokenizer):
        raise ModelError(f"'{base.name}' is told kinds of tokens by its tokenizer (token_type_ids), which a tower does not tell it.")
    if settings.get("do_lower_case") and tokenizer("A")["input_ids"] != tokenizer("a")["input_ids"]:
        raise ModelError(f"'{base.name}' expects texts in lower case, but neither its tokenizer nor a tower makes them so.")
    stated, positions = stated_length(settings), getattr(config, "max_position_embeddings", None)
    limits = [stated] if isinstance(stated, int) else [tokenizer.model_max_length, positions]
    # A length that its table of positions lacks would end the process on a GPU.
    known = (*limits, position_limit(model_without_memory(base, finished=True)))
    return min((limit for limit in known if isinstance(limit, int) and 0 < limit < 10**6), default=None)


def _dense(folder: Path, path: str, name: str) -> Dense:
    config = _read(folder / path / "config.json")
    other = [key for key in ("module_input_name", "module_output_name") if config.get(key) not in (None, "sentence_embedding")]
    if other or config.get("use_residual"):
        raise ModelError(f"'{name}' has a Dense module with {(other or ['use_residual'])[0]}, which a tower does not follow.")
    inputs, outputs = config.get("in_features"), config.get("out_features")
    if not isinstance(inputs, int) or not isinstance(outputs, int) or min(inputs, outputs) < 1:
        raise ModelError(f"{folder / path / 'config.json'} does not state in_features and out_features. Fetch the model again.")
    dense = Dense(path, inputs, outputs, str(config.get("activation_function", "")))
    try:
        _require_elementwise(_bend(dense.activation), outputs)
    except (AttributeError, ValueError, TypeError, RuntimeError):
        raise ModelError(f"'{name}' bends its vectors by '{dense.activation}', which is no activation of torch without weights.") from None
    return dense


def _bend(name: str) -> type[Module]:
    """The class of an activation by its full name in torch; sentence-transformers takes Tanh where none is named."""
    from torch import nn

    if name and not name.startswith("torch.nn.modules."):
        raise ValueError(name)
    found: type[Module] = getattr(nn, name.rpartition(".")[2] or "Tanh")
    return found


def _require_elementwise(kind: type[Module], width: int) -> None:
    """Raises for a module that is no activation: that has weights of its own (PReLU), or gives vectors of another width (GLU)."""
    import torch

    module = kind()
    if next(module.parameters(), None) is not None or module(torch.zeros(2, width)).shape != (2, width):
        raise ValueError(kind.__name__)


def _weights(folder: Path, name: str) -> Path:
    found = next((folder / file for file in WEIGHTS if (folder / file).is_file()), None)
    if found is None:
        raise ModelError(f"'{name}' lacks the weights of {folder.name} ({' or '.join(WEIGHTS)}). Fetch the model again.")
    return found
