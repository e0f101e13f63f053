"""Published embedding models of the forms that people name, tiny and random, written by sentence-transformers itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.families import ENCODER, STUDENTS, TEACHERS, WINDOWS, Family, gemma, qwen_embedding

INSTRUCTION = "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery:"
BIDIRECTIONAL = {**WINDOWS, "use_bidirectional_attention": True}
LONG_QWEN = Family("qwen3", qwen_embedding, "<|endoftext|>", {"head_dim": 8, "max_position_embeddings": 128})  # for the instruction
XLM_BASE = STUDENTS["xlm-roberta"]


@dataclass(frozen=True)
class Form:
    """One form: its transformer, pooling, widths of its Dense modules, prompts, and the longest text in tokens."""

    family: Family
    pooling: str
    dense: tuple[int, ...] = ()
    prompts: dict[str, str] = field(default_factory=dict)
    longest: int | None = 48
    normalise: bool = True
    settings: dict[str, Any] = field(default_factory=dict)

    def write(self, texts: Sequence[str], folder: Path) -> Path:
        """Write the model into `folder` as sentence-transformers saves it."""
        import torch
        from sentence_transformers import SentenceTransformer
        from sentence_transformers.models import Dense, Normalize, Pooling, Transformer

        bare = folder.with_name(f"{folder.name}-transformer")
        self.family.write(texts, bare)
        torch.manual_seed(7)
        transformer = Transformer(str(bare), max_seq_length=self.longest)
        width = transformer.get_embedding_dimension()
        modules: list[Any] = [transformer, Pooling(width, pooling_mode=self.pooling)]
        for outputs in self.dense:
            modules.append(Dense(width, outputs, bias=False, activation_function=torch.nn.Identity()))
            width = outputs
        model = SentenceTransformer(modules=[*modules, *([Normalize()] if self.normalise else [])], prompts=self.prompts, **self.settings)
        model.save(str(folder))
        return folder


FORMS = {
    "qwen3-embedding": Form(LONG_QWEN, "lasttoken", prompts={"query": INSTRUCTION, "document": ""}, longest=120),
    "embeddinggemma": Form(
        Family("gemma3_text", gemma, "<eos>", BIDIRECTIONAL),
        "mean",
        dense=(96, 32),
        prompts={"query": "task: search result | query: ", "document": "title: none | text: "},
    ),
    "e5": Form(XLM_BASE, "mean", prompts={"query": "query: ", "document": "passage: "}),
    "bge": Form(STUDENTS["bert"], "cls", prompts={"query": "Represent this sentence for searching relevant passages: "}),
    "gte": Form(Family("bert", STUDENTS["bert"].tokenizer, "[SEP]", base=ENCODER), "mean", normalise=False, longest=None),
    "harrier": Form(TEACHERS["gemma-3"], "lasttoken", prompts={"query": "Instruct: Retrieve passages\nQuery: "}),
}
