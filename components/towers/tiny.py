"""Small random models for tests, the smoke preset and scaling studies: real architectures, a vocabulary from the data, no download."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

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
