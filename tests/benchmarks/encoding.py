"""Encoding of a corpus: throughput of our shards against `SentenceTransformer.encode`.

    python -m tests.benchmarks.encoding --data FOLDER [--base decoder-1536x24] [--tower FOLDER] [--documents 600] [--rounds 3]
    python -m tests.benchmarks.encoding --data icd10cm --as-they-are --max-length 64 --documents 1000      # texts that begin alike
    python -m tests.benchmarks.encoding --data FOLDER --prompt "Instruct: ..."                             # a prompt that all begin with

Both encode the same texts with the same weights, precision, pooling, prompt and longest length, in turns in one process; what is
compared is the ratio of medians. Ours is the whole step, from the table of documents to the sealed shards on disk; theirs gives an
array, in batches of 32, as it does by default. Lengths are mixed: documents of the folder are cut or joined to numbers of words drawn
evenly on a logarithmic scale, so that as many are very short as very long; `--as-they-are` takes them uncut.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

WORDS_PER_TOKEN = 0.6  # so that the longest texts come close to the longest length in tokens


def main() -> None:
    """Measure both systems in turns and print the ratio."""
    options = _arguments()
    texts = _texts(options)
    with tempfile.TemporaryDirectory() as folder:
        encoder = _tower(options)
        theirs = _sentence_transformer(encoder, options, Path(folder) / "model")
        table = _write_table(texts, Path(folder) / "documents.parquet")
        _describe(encoder, texts, options)
        runs: dict[str, list[float]] = {"scalingnote": [], "sentence_transformers": []}
        # The first round warms up both and is not counted.
        for number in range(options.rounds + 1):
            ours = _timed(lambda n=number: _encode(encoder, table, options, Path(folder) / f"out-{n}"))  # type: ignore[misc]
            other = _timed(lambda: _encode_theirs(theirs, texts, encoder, options))
            if number == 0:
                _compare(ours[1], other[1])
                continue
            runs["scalingnote"].append(ours[0])
            runs["sentence_transformers"].append(other[0])
            print(f"round {number}: ours {ours[0]:.2f} s, sentence-transformers {other[0]:.2f} s", flush=True)
    _report(runs, len(texts))


def _timed(encode: Any) -> tuple[float, NDArray[np.float32]]:
    started = time.perf_counter()
    vectors = encode()
    return time.perf_counter() - started, vectors


def _encode(encoder: Any, table: Path, options: argparse.Namespace, folder: Path) -> NDArray[np.float32]:
    from components.index.corpus import StoredDocuments
    from components.index.encode import LoadedEncoder, ShardJob, encode_shards
    from components.index.shards import read_vectors

    folder.mkdir()
    job = ShardJob(LoadedEncoder(encoder), StoredDocuments(table, options.shard_size), options.tokens_per_batch, folder)
    return read_vectors(encode_shards(job, {})).vectors


def _encode_theirs(model: Any, texts: Sequence[str], encoder: Any, options: argparse.Namespace) -> NDArray[np.float32]:
    # The end token, whose state is pooled, is part of our contract; where the tokenizer adds none it is written behind the text.
    added = encoder.tokenizer("x")["input_ids"][-1] == encoder.tokenizer.eos_token_id
    end = encoder.tokenizer.eos_token if encoder.contract.append_eos and not added else ""
    vectors: NDArray[np.float32] = model.encode(
        [text + end for text in texts], batch_size=options.batch, prompt=encoder.contract.prompt, show_progress_bar=False
    )
    return vectors


def _texts(options: argparse.Namespace) -> list[str]:
    from components.data.config import DataConfig
    from components.data.dataset import document_text
    from components.data.sources import read_source

    frame = read_source(DataConfig(source=options.data)).documents
    # As they stand, neighbours are of one kind, as in the shards of a corpus.
    frame = frame if options.as_they_are else frame.sample(frac=1, random_state=13)
    documents = [document_text(title, text) for title, text in zip(frame["title"], frame["text"], strict=True)]
    if options.as_they_are:
        return documents[: options.documents]
    return _of_mixed_lengths(documents, options.documents, int(options.max_length * WORDS_PER_TOKEN))


def _of_mixed_lengths(documents: Sequence[str], count: int, longest: int) -> list[str]:
    """`count` texts of 4 to `longest` words, taken from the documents one after the other, over again when they are used up."""
    words = [word for text in documents for word in text.split()]
    lengths = np.exp(np.random.default_rng(13).uniform(np.log(4), np.log(longest), count)).astype(int)
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]]) % max(1, len(words) - longest)
    return [" ".join(words[start : start + length]) for start, length in zip(starts, lengths, strict=True)]


def _tower(options: argparse.Namespace) -> Any:
    """The tower of a folder, or the base decoder as an untrained document tower."""
    from components.towers.base_models import resolve_base
    from components.towers.config import TowerConfig
    from components.towers.contract import space_id_of
    from components.towers.encoder import TowerEncoder, load_tower
    from components.towers.two_towers import draft_contract, load_decoder

    if options.tower:
        return load_tower(options.tower, options.precision)
    base = resolve_base(options.base, _texts(options)[:2000])
    model, tokenizer = load_decoder(base, options.precision)
    config = TowerConfig(base_model=options.base, max_document_length=options.max_length, document_prompt=options.prompt)
    contract = draft_contract(base, tokenizer, int(model.config.get_text_config().hidden_size), config, "document")
    return TowerEncoder(model, tokenizer, contract, space_id_of(contract))


def _sentence_transformer(encoder: Any, options: argparse.Namespace, folder: Path) -> Any:
    """The encoder's own weights as a SentenceTransformer, configured as the base model comes."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

    from components.towers.device import pick_dtype

    encoder.model.config.use_cache = True
    encoder.model.save_pretrained(folder)
    encoder.model.config.use_cache = False
    encoder.tokenizer.save_pretrained(folder)
    length = encoder.contract.max_length
    transformer = Transformer(str(folder), max_seq_length=length, model_kwargs={"dtype": pick_dtype(options.precision)})
    mode = {"last": "lasttoken", "mean": "mean", "cls": "cls"}[encoder.contract.pooling]
    pooling = Pooling(transformer.get_embedding_dimension(), pooling_mode=mode)
    return SentenceTransformer(modules=[transformer, pooling, Normalize()])


def _write_table(texts: Sequence[str], path: Path) -> Path:
    import pandas as pd

    from components.data.dataset import content_hash, write_table

    rows = [(f"d{n}", "", text, "{}", content_hash(text)) for n, text in enumerate(texts)]
    write_table(pd.DataFrame(rows, columns=["doc_id", "title", "text", "metadata", "content_hash"]), path)
    return path


def _describe(encoder: Any, texts: Sequence[str], options: argparse.Namespace) -> None:
    """How long the texts are, how many tokens their batches of 32 add as padding, and what share of all goes through our encoder."""
    from components.towers.tokens import token_ids

    lengths = np.array([len(row) for row in token_ids(encoder.tokenizer, list(texts), encoder.contract)])
    order = sorted(range(len(texts)), key=lambda i: -len(texts[i]))
    padded = sum(
        lengths[order[s : s + options.batch]].max() * len(order[s : s + options.batch]) for s in range(0, len(order), options.batch)
    )
    low, middle, high = np.percentile(lengths, [10, 50, 90])
    print(
        f"{len(texts)} texts of {lengths.min()} to {lengths.max()} tokens (10 %: {low:.0f}, 50 %: {middle:.0f}, 90 %: {high:.0f}), "
        f"{next(encoder.model.parameters()).dtype}; padding in batches of {options.batch} by characters: {padded / lengths.sum() - 1:.1%}; "
        f"through our encoder go {encoder.worked_tokens(texts) / lengths.sum():.1%} of the tokens",
        flush=True,
    )


def _compare(ours: NDArray[np.float32], theirs: NDArray[np.float32]) -> None:
    """Texts that are cut differ, since only we keep the end token; in the median the vectors have to be the same."""
    cosines = (ours * np.asarray(theirs, np.float32)).sum(1)
    print(f"cosine between the two: median {np.median(cosines):.4f}, lowest {cosines.min():.4f}", flush=True)
    if np.median(cosines) < 0.99:
        raise SystemExit("The two systems do not encode alike, so their speeds cannot be compared.")


def _report(runs: dict[str, list[float]], documents: int) -> None:
    medians = {system: statistics.median(seconds) for system, seconds in runs.items()}
    for system, seconds in medians.items():
        print(f"{system:24} {documents / seconds:9.1f} documents/s")
    print(f"throughput, ours / sentence-transformers: {medians['sentence_transformers'] / medians['scalingnote']:.2f}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="BEIR-layout folder whose documents are encoded, or icd10cm: the built-in set")
    parser.add_argument("--base", default="gemma3-270m", help="decoder, default gemma3-270m; decoder-1536x24 is a random one of 0.5 B")
    parser.add_argument("--tower", type=Path, help="folder of a trained document tower, in place of the base decoder")
    parser.add_argument("--documents", type=int, default=600)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--max-length", type=int, default=256, help="tokens, of the base decoder")
    parser.add_argument("--as-they-are", action="store_true", help="take the documents uncut")
    parser.add_argument("--prompt", default="", help="stands before every text")
    parser.add_argument("--batch", type=int, default=32, help="rows in a batch of sentence-transformers")
    parser.add_argument("--tokens-per-batch", type=int, default=2048, help="tokens in a batch of ours")
    parser.add_argument("--shard-size", type=int, default=2048)
    parser.add_argument("--precision", choices=["auto", "float32", "bfloat16"], default="auto")
    return parser.parse_args()


if __name__ == "__main__":
    main()
