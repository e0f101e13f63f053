"""Queries written by a decoder for documents: wordings that neither logs nor titles have.

The decoder sees a few documents of the data set with their train queries and continues with the query of the next document (few-shot,
as InPars, Bonifacio et al. 2022), so any decoder will do and the queries take the style of the data. Greedy: the same documents give
the same queries. Finished batches are kept in a file, and a killed run continues after them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from components.artifacts import Artifact, DatasetArtifact, Scalar, seal, write_atomic
from components.data.dataset import load_dataset
from components.distillation.config import DistillationConfig
from components.errors import DataError, ModelError
from components.progress import progress_bar
from components.towers.base_models import BaseModel, load_config, resolve_base, why_unloadable
from components.towers.device import pick_device, pick_dtype
from components.towers.transformer import measured_attention, position_limit, require_plain_weights

if TYPE_CHECKING:
    from torch import Tensor

    from components.data.dataset import Dataset

GENERATED = "generated_queries.jsonl"
EXAMPLES = 3  # documents with their queries before the one in question
DOCUMENT_WORDS = 60  # words of a document in the prompt
DOCUMENT_CHARACTERS = 600  # and characters, for texts without spaces between words
NEW_TOKENS = 32
BATCH = 16


def generate_for(dataset: DatasetArtifact, config: DistillationConfig, folder: Path) -> Artifact:
    """The step generate_queries: `generate_queries` for the documents of a data set. Raises as that does."""
    return generate_queries(load_dataset(dataset.path), config, {"dataset": dataset.digest}, folder)


def generate_queries(dataset: Dataset, config: DistillationConfig, parents: Mapping[str, str], folder: Path) -> Artifact:
    """One query for each of `config.generated` documents (fewer when there are fewer), as JSON lines of doc_id and query.

    Raises ModelError when the generator cannot write, DataError when there is no train query to take as an example.
    """
    ids, prompts = _prompts(dataset, config)
    path = folder / GENERATED
    finished = _keep_finished(path, ids)
    texts = [*dataset.document_texts(), *dataset.queries["text"]]
    base = resolve_base(config.generator, texts, config.generator_revision)
    generator = _Generator(base, config) if finished < len(ids) else None
    bar = progress_bar(len(ids), "generate queries", "query", initial=finished)
    with path.open("a", encoding="utf-8") as lines, bar:
        for start in range(finished, len(ids), BATCH):
            answers = generator.continue_all(prompts[start : start + BATCH])  # type: ignore[union-attr]
            lines.write("".join(_line(i, query) for i, query in zip(ids[start : start + BATCH], answers, strict=True)))
            lines.flush()
            bar.update(len(answers))
    if not (queries := read_generated(folder)):
        raise ModelError(f"The generator '{config.generator}' wrote no query for any of {len(ids)} documents. Name another decoder.")
    attributes: dict[str, Scalar] = {
        "generator": config.generator,
        "generator_digest": base.digest,
        **({"generator_revision": base.revision} if base.revision else {}),
        "seed": config.seed,
    }
    return seal(folder, "queries", counts={"queries": len(queries)}, parents=parents, attributes=attributes)


def read_generated(folder: Path) -> list[str]:
    """The different queries that are not empty, in the order of their documents."""
    return list(dict.fromkeys(row["query"] for row in _rows(folder / GENERATED) if row["query"]))


def _prompts(dataset: Dataset, config: DistillationConfig) -> tuple[list[str], list[str]]:
    """Ids of the sampled documents and the prompt of each."""
    rng = np.random.default_rng([config.seed, 2])
    documents = dict(zip(dataset.documents["doc_id"], (_shortened(text) for text in dataset.document_texts()), strict=True))
    judged = dataset.judgements("train")
    judged = judged[judged["score"] > 0].merge(dataset.judged_queries("train"), on="query_id")
    if judged.empty:
        raise DataError("The data has no relevant train judgements; generated queries need a few as examples. Add qrels/train.tsv.")
    shown = judged.iloc[rng.permutation(len(judged))[:EXAMPLES]]
    examples = "".join(_example(documents[i], text) + "\n\n" for i, text in zip(shown["doc_id"], shown["text"], strict=True))
    ids = [str(i) for i in rng.permutation(np.array(list(documents), dtype=object))[: config.generated]]
    return ids, [examples + _example(documents[i], "").rstrip() for i in ids]


def _example(document: str, query: str) -> str:
    return f"Document: {document}\nSearch query: {query}"


def _shortened(text: str) -> str:
    return " ".join(text.split()[:DOCUMENT_WORDS])[:DOCUMENT_CHARACTERS]


def _keep_finished(path: Path, ids: Sequence[str]) -> int:
    """Cut the file to the whole batches that belong to the first of `ids`; returns their number of lines.

    Whole batches, since the padding of a batch can change the last digit of a score, and with it a word.
    """
    rows = _rows(path) if path.is_file() else []
    same = next((n for n, row in enumerate(rows) if n == len(ids) or row["doc_id"] != ids[n]), len(rows))
    kept = same if same == len(ids) else same - same % BATCH
    write_atomic(path, "".join(_line(row["doc_id"], row["query"]) for row in rows[:kept]).encode())
    return kept


def _line(doc_id: str, query: str) -> str:
    return json.dumps({"doc_id": doc_id, "query": query}, ensure_ascii=False) + "\n"


def _rows(path: Path) -> list[dict[str, str]]:
    """The lines of the file; a last one that a kill has torn is left out."""
    rows = []
    for line in path.read_text(encoding="utf-8").split("\n"):
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows


class _Generator:
    """A decoder that continues prompts by one line."""

    def __init__(self, base: BaseModel, config: DistillationConfig) -> None:
        self._name = base.name
        self._model, self._tokenizer = _load(base, config.precision)
        self._device = pick_device()
        self._model.to(self._device)

    def continue_all(self, prompts: Sequence[str]) -> list[str]:
        """The line that follows each prompt, without quotes and superfluous spaces; empty when the decoder has nothing to say.

        Raises ModelError for a decoder whose positions do not hold prompt and query.
        """
        import torch
        from transformers import StoppingCriteriaList

        # Documents and examples are texts: what looks like a control token in them is none.
        rows = self._tokenizer(list(prompts), split_special_tokens=True)["input_ids"]
        # Some tokenizers close a text with the end token; a text that is to go on must not have one.
        open_ended = [row[:-1] if row[-1] == self._tokenizer.eos_token_id else row for row in rows]
        longest, limit = max(map(len, open_ended)), position_limit(self._model)
        if limit is not None and longest + NEW_TOKENS > limit:
            raise ModelError(
                f"The generator '{self._name}' has positions for {limit} tokens, but {EXAMPLES} examples and a document take {longest}, "
                f"and a query up to {NEW_TOKENS}. Name another decoder."
            )
        batch = self._tokenizer.pad({"input_ids": open_ended}, return_tensors="pt").to(self._device)
        start = batch["input_ids"].shape[1]

        def line_is_over(ids: Tensor, scores: Any, **_: Any) -> Tensor:
            return torch.tensor(["\n" in text.lstrip() for text in self._texts(ids[:, start:])], device=ids.device)

        with torch.inference_mode():
            ids = self._model.generate(
                input_ids=batch["input_ids"],
                attention_mask=batch["attention_mask"],
                max_new_tokens=NEW_TOKENS,
                do_sample=False,
                pad_token_id=self._tokenizer.pad_token_id,
                stopping_criteria=StoppingCriteriaList([line_is_over]),
            )
        return [_first_line(text) for text in self._texts(ids[:, start:])]

    def _texts(self, ids: Tensor) -> list[str]:
        texts: list[str] = self._tokenizer.batch_decode(ids, skip_special_tokens=True)
        return texts


def _first_line(text: str) -> str:
    line = text.strip().split("\n", 1)[0]
    return " ".join(line.split()).strip("\"' ")


def _load(base: BaseModel, precision: str) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    load_config(base)
    if base.layers is not None:
        raise ModelError(f"The generator '{base.name}' would write with a part of its layers. Leave out what stands behind the @.")
    try:
        options = {"dtype": pick_dtype(precision), "trust_remote_code": False}
        model, report = AutoModelForCausalLM.from_pretrained(base.location, output_loading_info=True, **options)
        tokenizer = AutoTokenizer.from_pretrained(base.location, padding_side="left", trust_remote_code=False)
        attention = measured_attention(model.base_model)
    except base.faults as error:
        raise ModelError(f"The generator '{base.name}' cannot be loaded: {why_unloadable(error)}") from None
    require_plain_weights(report["unexpected_keys"], base.name, base.location)
    if report["missing_keys"]:
        missing = sorted(report["missing_keys"])[0]
        raise ModelError(f"The generator '{base.name}' cannot write: it was saved without {missing}. Name one with its language head.")
    if attention != "causal":
        raise ModelError(f"The generator '{base.name}' is an encoder, whose tokens see those after them, and cannot write. Name a decoder.")
    if tokenizer.pad_token_id is None:  # behind the mask any token will do
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)
    return model.eval(), tokenizer
