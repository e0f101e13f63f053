"""Tiny random models of the families that people name, each with a tokenizer made as that family's are, trained on the spot."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SMALL = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
ENCODER = {key: value for key, value in SMALL.items() if key != "num_key_value_heads"}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
WINDOWS = {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"], "head_dim": 8}


@dataclass(frozen=True)
class Family:
    """One family: transformers' model type, its configuration beyond the small one, its tokenizer, and what its texts end with."""

    kind: str
    tokenizer: Callable[[Sequence[str]], Any]
    end: str
    extra: dict[str, Any] = field(default_factory=dict)
    base: dict[str, Any] = field(default_factory=lambda: SMALL)

    def write(self, texts: Sequence[str], folder: Path) -> None:
        """Write model and tokenizer into `folder`."""
        import torch
        from transformers import AutoConfig, AutoModel

        tokenizer = self.tokenizer(texts)
        special = {key: getattr(tokenizer, key) for key in ("pad_token_id", "bos_token_id", "eos_token_id")}
        torch.manual_seed(3)
        config = AutoConfig.for_model(self.kind, vocab_size=len(tokenizer), **{**self.base, **special, **self.extra})
        AutoModel.from_config(config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def _wrapped(backend: Any, template: str, names: dict[str, str], **options: Any) -> Any:
    """The trained `backend` with a post-processor and the special tokens that transformers is to know."""
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    used = [part for part in template.split() if part != "$A"]
    if used:
        backend.post_processor = TemplateProcessing(single=template, special_tokens=[(name, backend.token_to_id(name)) for name in used])
    return PreTrainedTokenizerFast(tokenizer_object=backend, **names, **options)


def _byte_level(texts: Sequence[str], special: Sequence[str]) -> Any:
    """Byte-level BPE, as GPT-2, Qwen, Llama 3, OLMo, SmolLM, GLM, RoBERTa and ModernBERT have it."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    backend = Tokenizer(models.BPE())
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=list(special), initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator(texts, trainer)
    return backend


def _metaspace(texts: Sequence[str], special: Sequence[str]) -> Any:
    """BPE over words that begin with ▁, as Llama 2, Mistral, Phi-3 and Gemma have it."""
    from tokenizers import Tokenizer, models, normalizers, trainers

    backend = Tokenizer(models.BPE(unk_token=special[-1], fuse_unk=True))
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=400, special_tokens=list(special), show_progress=False))
    return backend


def qwen(texts: Sequence[str]) -> Any:
    """No token before or after; ends turns with <|im_end|>, pads with <|endoftext|>."""
    backend = _byte_level(texts, ["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    return _wrapped(backend, "$A", {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"})


def qwen_embedding(texts: Sequence[str]) -> Any:
    """The same, but the post-processor ends every text with <|endoftext|>."""
    backend = _byte_level(texts, ["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    names = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    return _wrapped(backend, "$A <|endoftext|>", names, padding_side="left")


def llama3(texts: Sequence[str]) -> Any:
    """Begins every text with a token of its own, and knows no padding."""
    backend = _byte_level(texts, ["<|begin_of_text|>", "<|end_of_text|>"])
    return _wrapped(backend, "<|begin_of_text|> $A", {"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>"})


def gpt_neox(texts: Sequence[str]) -> Any:
    """OLMo and SmolLM: one token for everything."""
    backend = _byte_level(texts, ["<|endoftext|>"])
    return _wrapped(backend, "$A", {"eos_token": "<|endoftext|>", "bos_token": "<|endoftext|>"})


def glm(texts: Sequence[str]) -> Any:
    """Two tokens before every text."""
    backend = _byte_level(texts, ["<|endoftext|>", "[gMASK]", "<sop>"])
    return _wrapped(backend, "[gMASK] <sop> $A", {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}, padding_side="left")


def mistral(texts: Sequence[str]) -> Any:
    """<s> before every text, no padding token."""
    return _wrapped(_metaspace(texts, ["<s>", "</s>", "<unk>"]), "<s> $A", {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"})


def gemma(texts: Sequence[str]) -> Any:
    """<bos> before every text, padding on the left."""
    names = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"}
    return _wrapped(_metaspace(texts, ["<pad>", "<eos>", "<bos>", "<unk>"]), "<bos> $A", names, padding_side="left")


def bert(texts: Sequence[str]) -> Any:
    """Lower-cased word pieces between [CLS] and [SEP]."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer, backend.pre_tokenizer = normalizers.BertNormalizer(lowercase=True), pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    backend.train_from_iterator(texts, trainers.WordPieceTrainer(vocab_size=400, special_tokens=special, show_progress=False))
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
    return _wrapped(backend, "[CLS] $A [SEP]", names)


def roberta(texts: Sequence[str]) -> Any:
    """Byte-level BPE between <s> and </s>; positions count from behind the padding token."""
    backend = _byte_level(texts, ["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "cls_token": "<s>", "sep_token": "</s>", "unk_token": "<unk>"}
    return _wrapped(backend, "<s> $A </s>", names)


def xlm_roberta(texts: Sequence[str]) -> Any:
    """SentencePiece's unigram model between <s> and </s>."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    backend = Tokenizer(models.Unigram())
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trainer = trainers.UnigramTrainer(vocab_size=300, special_tokens=special, unk_token="<unk>", show_progress=False)
    backend.train_from_iterator(texts, trainer)
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "cls_token": "<s>", "sep_token": "</s>", "unk_token": "<unk>"}
    return _wrapped(backend, "<s> $A </s>", names)


def modernbert(texts: Sequence[str]) -> Any:
    """Byte-level BPE between [CLS] and [SEP]."""
    backend = _byte_level(texts, ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]"])
    names = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]"}
    return _wrapped(backend, "[CLS] $A [SEP]", names)


ROBERTA = {**ENCODER, "max_position_embeddings": 66, "type_vocab_size": 1}
DISTILBERT = {"dim": 32, "hidden_dim": 64, "n_layers": 2, "n_heads": 4, "max_position_embeddings": 64}
MODERNBERT = {"global_attn_every_n_layers": 2, "local_attention": 8, "cls_token_id": 1, "sep_token_id": 2}

GEMMA4 = {
    **WINDOWS,
    "num_hidden_layers": 3,
    "layer_types": ["sliding_attention", "full_attention", "full_attention"],
    "num_kv_shared_layers": 1,
    "global_head_dim": 16,
    "hidden_size_per_layer_input": 4,
}

TEACHERS = {
    "qwen2.5": Family("qwen2", qwen, "<|im_end|>"),
    "qwen3": Family("qwen3", qwen, "<|im_end|>", {"head_dim": 8}),
    "qwen3-embedding": Family("qwen3", qwen_embedding, "<|endoftext|>", {"head_dim": 8}),
    "llama-3.2": Family("llama", llama3, "<|end_of_text|>"),
    "smollm": Family("llama", gpt_neox, "<|endoftext|>"),
    "mistral": Family("mistral", mistral, "</s>", {"sliding_window": 8}),
    "gemma-3": Family("gemma3_text", gemma, "<eos>", WINDOWS),
    "gemma-4": Family("gemma4_text", gemma, "<eos>", GEMMA4),
    "phi-3": Family("phi3", mistral, "</s>", {"pad_token_id": 0}),
    "glm-4": Family("glm4", glm, "<|endoftext|>", {"head_dim": 8}),
    "olmo-2": Family("olmo2", gpt_neox, "<|endoftext|>"),
    "qwen3-moe": Family("qwen3_moe", qwen, "<|im_end|>", {**EXPERTS, "head_dim": 8}),
}
STUDENTS = {
    "bert": Family("bert", bert, "[SEP]", base=ENCODER),
    "roberta": Family("roberta", roberta, "</s>", base=ROBERTA),
    "xlm-roberta": Family("xlm-roberta", xlm_roberta, "</s>", base=ROBERTA),
    "distilbert": Family("distilbert", bert, "[SEP]", base=DISTILBERT),
    "modernbert": Family("modernbert", modernbert, "[SEP]", MODERNBERT, ENCODER),
}
SHARED_KEYS = ("gemma-4",)  # whose upper layers take keys and values that lower ones made
