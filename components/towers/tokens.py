"""From texts to padded batches: prompt, truncation, end token, length-sorted batches bounded by tokens.

A text is its user's and a prompt its maker's: the name of a control token, such as `<eos>`, `[SEP]` or `<start_of_turn>`, is ordinary text
in a text, and the token itself in a prompt. Control tokens are those that the tokenizer declares special; other tokens that were added to
a vocabulary, such as Gemma's line breaks and HTML tags, are words of it.
"""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Sequence
from inspect import signature
from itertools import chain
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np

from components.errors import ModelError
from components.towers.contract import EncodingContract

if TYPE_CHECKING:
    import torch

    from components.towers.config import TowerConfig

NO_CHARACTER = "\ufdd0"
# What the tokens of an even batch are a multiple of: up to `LARGE_BATCH` tokens, and above. Of every multiple oneDNN keeps something;
# with the larger one alone small chunks were up to a half padding.
EVEN_TOKENS, EVEN_TOKENS_OF_LARGE, LARGE_BATCH = 64, 256, 4096
_AT_ONCE = 1000  # texts: what the compiled tokenizer says of a token takes several times the memory of its number
_ONE_USE = threading.RLock()  # lengths and control tokens are settings of a tokenizer that encoders share, in a server across threads
_PLAIN: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()  # made once for a tokenizer, and only if a text asks for it


def token_ids(tokenizer: Any, texts: Sequence[str], contract: EncodingContract) -> list[list[int]]:
    """Token ids of each text under the contract, at most `max_length` of them, the end token kept when text is cut.

    A text without any token gets one that stands for the beginning, the end or the unknown; its row is empty only where the tokenizer has
    none of these.
    """
    rows = rows_of(tokenizer, texts, contract)
    if contract.append_eos:
        eos = tokenizer.eos_token_id
        # Gemma's tokenizer adds no end token and others do; pooling the last token needs exactly one.
        return [[*(row[:-1] if row and row[-1] == eos else row[: contract.max_length - 1]), eos] for row in rows]
    return rows if all(rows) else [row or _stand_in(tokenizer) for row in rows]


def rows_of(tokenizer: Any, texts: Sequence[str], contract: EncodingContract, add_special_tokens: bool = True) -> list[list[int]]:
    """Token ids of prompt and text as the tokenizer gives them, with its own first and last tokens if `add_special_tokens`.

    Straight from the compiled tokenizer where there is one: twice as fast as through its wrapper, with the same ids.
    """
    if not texts:
        return []
    length, backend = contract.max_length, getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        prompted = [contract.prompt + text for text in texts]
        options = {"add_special_tokens": add_special_tokens, "split_special_tokens": contract.split_special_tokens}
        return [row[:length] for row in tokenizer(prompted, truncation=True, max_length=length, **options)["input_ids"]]
    with _ONE_USE:
        backend.no_padding()
        backend.enable_truncation(length)
        controlled = contract.split_special_tokens and contract.prompt != "" and has_control_token(tokenizer, contract.prompt)
        backend.encode_special_tokens = contract.split_special_tokens and not controlled
        rows: list[list[int]] = []
        for start in range(0, len(texts), _AT_ONCE):
            prompted = [contract.prompt + text for text in texts[start : start + _AT_ONCE]]
            found = backend.encode_batch_fast(prompted, add_special_tokens=add_special_tokens)
            # A tokenizer does not cut at all where its own tokens alone are more than the longest row.
            rows += [encoding.ids[:length] for encoding in found]
        if controlled or (contract.split_special_tokens and _is_unigram(backend)):
            for number in (n for n, text in enumerate(texts) if has_control_token(tokenizer, text)):
                rows[number] = _encoded_apart(tokenizer, contract, texts[number], add_special_tokens)
    return rows


def has_control_token(tokenizer: Any, text: str) -> bool:
    """Whether the compiled tokenizer takes a part of `text` for a control token if nobody stops it."""
    backend = tokenizer.backend_tokenizer
    if _is_unigram(backend):
        # It looks for its words in what the normalizer makes of a text: wide letters (\uff1c/s\uff1e) are plain ones there.
        read = backend.normalizer.normalize_str(text) if backend.normalizer is not None else text
        return any(token.content in text or token.content in read for token in backend.get_added_tokens_decoder().values() if token.special)
    found = []
    for split in (True, False):  # Gemma has thousands of control tokens: two encodings are quicker than a look for each
        backend.encode_special_tokens = split
        found.append(backend.encode(text, add_special_tokens=False).ids)
    return bool(found[0] != found[1])


def words_only(state: dict[str, Any]) -> dict[str, Any]:
    """The JSON of a compiled tokenizer in which control tokens keep their ids but are plain words that no text turns into.

    Most tokenizers split the characters of such a word before they look words up. A unigram model looks for words everywhere in a text,
    so there the word gets a name that no text contains.
    """
    names = {token["content"]: token["id"] for token in state["added_tokens"] if token["special"]}
    words = state["model"]["vocab"]
    if isinstance(words, dict):
        words = {**words, **names}
    else:
        words = [[NO_CHARACTER + word if word in names else word, score] for word, score in words]
    plain = [token for token in state["added_tokens"] if not token["special"]]
    return {**state, "added_tokens": plain, "post_processor": None, "model": {**state["model"], "vocab": words}}


def _is_unigram(backend: Any) -> bool:
    """Whether the names of control tokens are found by the model itself, so that `encode_special_tokens` does not help."""
    return type(backend.model).__name__ == "Unigram"


def _encoded_apart(tokenizer: Any, contract: EncodingContract, text: str, add_special_tokens: bool) -> list[int]:
    """The row of a text that holds names of control tokens, behind a prompt that may hold such tokens: the two are encoded apart.

    What stands behind the prompt's last control token goes with the text: a control token parts a text anyway, but not its words.
    """
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.encode_special_tokens = False
    control = {number for number, token in backend.get_added_tokens_decoder().items() if token.special}
    prompt = backend.encode(contract.prompt, add_special_tokens=False)
    border = max((end for token, (_, end) in zip(prompt.ids, prompt.offsets, strict=True) if token in control), default=0)
    head = backend.encode(contract.prompt[:border], add_special_tokens=False).ids
    frame = backend.encode("a", add_special_tokens=add_special_tokens)
    inside = [place for place, own in enumerate(frame.special_tokens_mask) if not own]
    rest = _plain(tokenizer).encode(contract.prompt[border:] + text, add_special_tokens=False).ids
    opened, closing = [*frame.ids[: inside[0]], *head, *rest], frame.ids[inside[-1] + 1 :]
    return [*opened[: max(0, contract.max_length - len(closing))], *closing][: contract.max_length]


def _plain(tokenizer: Any) -> Any:
    """A compiled tokenizer to which the names of control tokens are text."""
    from tokenizers import Tokenizer

    backend = tokenizer.backend_tokenizer
    if not _is_unigram(backend):
        backend.encode_special_tokens = True
        return backend
    if tokenizer not in _PLAIN:
        _PLAIN[tokenizer] = Tokenizer.from_str(json.dumps(words_only(json.loads(backend.to_str()))))
    return _PLAIN[tokenizer]


def _stand_in(tokenizer: Any) -> list[int]:
    """The token of a text that has none; never the one that fills up batches."""
    names = ("bos_token_id", "cls_token_id", "eos_token_id", "sep_token_id", "unk_token_id")
    return [number for name in names if (number := getattr(tokenizer, name)) is not None and number != tokenizer.pad_token_id][:1]


def ends_by_itself(tokenizer: Any) -> bool:
    """Whether the tokenizer itself ends every text with a special token, as those of embedding models do."""
    added = tokenizer("a", return_special_tokens_mask=True)["special_tokens_mask"]
    return bool(added) and added[-1] == 1


def needs_end_token(tokenizer: Any) -> bool:
    """Whether the end token is to be appended: not where the tokenizer ends texts with a token of another name.

    Qwen3-Embedding's ends with <|endoftext|> while its `eos_token` is <|im_end|>: the model was trained to be pooled at the former.
    """
    if tokenizer.eos_token_id is None:
        return False
    return not ends_by_itself(tokenizer) or tokenizer("a")["input_ids"][-1] == tokenizer.eos_token_id


def with_switches(tokenizer: Any) -> Any:
    """The tokenizer, whose `save_pretrained` writes all switches of its class from now on: Llama's forgets `legacy`.

    Without it what is loaded again is another tokenizer, which splits what stands behind a control token otherwise.
    """
    for name, parameter in signature(type(tokenizer).__init__).parameters.items():
        value, usual = getattr(tokenizer, name, None), parameter.default
        if isinstance(value, bool) and isinstance(usual, bool) and value != usual:
            tokenizer.init_kwargs.setdefault(name, value)
    return tokenizer


def kinds_of_tokens(tokenizer: Any) -> bool:
    """Whether the tokenizer says of a text's tokens that they are of several kinds (XLNet, Funnel), as others do of pairs alone."""
    return "token_type_ids" in tokenizer.model_input_names and any(tokenizer("a")["token_type_ids"])


def require_words(tokenizer: Any, name: str, prompt: str, longest: int, settings: tuple[str, str], append_eos: bool = False) -> None:
    """Raise ModelError where a prompt leaves no place for a word of a text of `longest` tokens: all texts would have one vector.

    `name`: of the tokenizer's model; `settings`: those of the prompt and of the longest text; `append_eos`: as in a contract.
    """
    # Without the space at its end, which is a token of its own to many tokenizers, but a part of the word where one follows.
    row = tokenizer(prompt.rstrip(" "))["input_ids"]
    longest -= append_eos and row[-1:] != [tokenizer.eos_token_id]
    if len(row) >= longest:
        raise ModelError(
            f"{settings[0]} takes {len(row)} tokens of '{name}', and {settings[1]} leaves {longest}: no word of a text has a place. "
            f"Raise {settings[1]}, or shorten the prompt."
        )


def even_length(length: int) -> int:
    """The length to which texts of `length` tokens are padded where shapes are to be few: a multiple of 8, of 16 or of 32 by size."""
    step = 8 if length <= 32 else 16 if length <= 64 else 32
    return -(-length // step) * step


def tokens_of(longest: int, rows: int, even: bool = False) -> int:
    """Tokens, padding included, of a batch as `pad_batch` makes it."""
    if not even:
        return longest * rows
    longest = even_length(longest)
    return longest * _even_rows(rows, longest)


def _even_rows(rows: int, longest: int) -> int:
    """`rows`, or the next larger number with which a batch of that length is even."""
    multiple = EVEN_TOKENS if rows * longest <= LARGE_BATCH else EVEN_TOKENS_OF_LARGE
    step = multiple // math.gcd(multiple, longest)
    return -(-rows // step) * step


def pad_batch(rows: Sequence[Sequence[int]], pad_id: int, even: bool = False) -> dict[str, torch.Tensor]:
    """Right-padded int64 `input_ids` and `attention_mask`, both (len(rows), longest row, at least 1).

    Right padding whatever the tokenizer prefers: positions start at 0 and a causal model's real tokens never see the padding. `even`: the
    length is an `even_length`, and rows of one token, for nobody, make the whole a multiple of EVEN_TOKENS, or of that of large batches.
    """
    import torch

    lengths = np.fromiter(map(len, rows), dtype=np.int64, count=len(rows))
    longest = max(1, lengths.max())
    if even:
        longest = even_length(int(longest))
        rows = [*rows, *([[pad_id]] * (_even_rows(len(rows), longest) - len(rows)))]
        lengths = np.fromiter(map(len, rows), dtype=np.int64, count=len(rows))
    real = np.arange(longest) < lengths[:, None]
    ids = np.full(real.shape, pad_id, dtype=np.int64)
    ids[real] = np.fromiter(chain.from_iterable(rows), dtype=np.int64, count=int(lengths.sum()))
    return {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(real.astype(np.int64))}


def longest_text(towers: TowerConfig) -> int:
    """Tokens of the longest text of either role, as `pad_batch` pads it: a batch of `chunk_size` texts of any kind is one chunk.

    Bounded by documents alone, or by what is real of them, a batch of longer queries would be two chunks, and each step a quarter slower.
    """
    return even_length(max(towers.max_document_length, towers.max_query_length))


def batches_by_tokens(lengths: Sequence[int], tokens_per_batch: int, rows_per_batch: int | None = None) -> list[list[int]]:
    """Row numbers grouped by similar length so that rows x longest <= tokens_per_batch (always at least one row)."""
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    batches: list[list[int]] = []
    for i in order:
        batch = batches[-1] if batches else None
        full = batch is None or lengths[batch[0]] * (len(batch) + 1) > tokens_per_batch
        if full or (rows_per_batch is not None and batch is not None and len(batch) >= rows_per_batch):
            batches.append([i])
        else:
            batches[-1].append(i)
    return batches
