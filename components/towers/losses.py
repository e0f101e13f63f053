"""Losses of stage 1 as functions of tensors, gradients cached over chunks, query prediction and a judge's opinion as auxiliary losses.

Source: Gao et al. 2021, "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup". First every chunk is embedded without
a graph, then the loss gives the gradient of each embedding, then every chunk is embedded again with a graph and that gradient is pushed
through it. Our own code, since sentence-transformers' cached loss embeds each role with modules of its own (Router) and here both
adapters are on one model, of which one is active at a time.

Query prediction: the paper of ScalingNote names the task and does not describe it; this is what was chosen. The document's unit vector v
goes through a learned d x d map M, identity at the start, and is compared with the frozen input embeddings E of the base model, so for a
model that ties input and output embeddings the start is its own language head. The logits are s (M v) E^T + log p, with a learned scale s
and the frequency p of each token among the training queries, and the loss is the cross-entropy against the uniform distribution over the
distinct tokens of the query. Without log p the frequent tokens would pull all documents in one direction. Only tokens of the training
queries compete, and those that stand in every query, such as the prompt's, are left out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from components.errors import ModelError
from components.towers import hub
from components.towers.base_models import BaseModel, require_embeddings, tokenizer_of, why_unloadable
from components.towers.config import TowerConfig
from components.towers.contract import save_contract, space_id_of
from components.towers.device import pick_device
from components.towers.encoder import TowerEncoder, load_tower
from components.towers.tokens import require_words
from components.towers.trained.published import default_prompt, in_chat_template, read_published, with_own_settings
from components.towers.transformer import position_limit, require_plain_weights
from components.towers.two_towers import published_contracts

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Parameter


def info_nce(
    queries: Tensor,
    documents: Tensor,
    temperature: float,
    targets: Tensor | None = None,
    blocked: Tensor | None = None,
    suspect_margin: float | None = None,
) -> Tensor:
    """Mean InfoNCE of each query's positive against the other documents, over unit rows. Source: van den Oord et al. 2018.

    `queries` (n, d), `documents` (m, d); `targets` int64 (n,): the column of each query's positive, by default its own row number.
    `blocked` bool (n, m) marks known false negatives (see negatives.known_false_negatives): they are left out of the sum, since a
    relevant document must not be pushed away. With `suspect_margin` so are documents whose cosine exceeds the positive's by more.
    """
    import torch

    targets = torch.arange(len(queries), device=queries.device) if targets is None else targets
    scores = queries @ documents.T
    left_out = _left_out(scores.detach(), targets, blocked, suspect_margin)
    return torch.nn.functional.cross_entropy(scores.masked_fill(left_out, float("-inf")) / temperature, targets)


def matryoshka_info_nce(
    queries: Tensor,
    documents: Tensor,
    temperature: float,
    targets: Tensor | None = None,
    blocked: Tensor | None = None,
    suspect_margin: float | None = None,
    dimensions: Sequence[int] = (),
) -> Tensor:
    """Mean of `info_nce` over the first k columns, made unit again, for each k of `dimensions`, and over all columns.

    Suspects are told by all columns, once: the scores of a short prefix are the least reliable. Source: Kusupati et al. 2022.
    """
    import torch

    width = queries.shape[1]
    if suspect_margin is not None and dimensions:
        rows = torch.arange(len(queries), device=queries.device) if targets is None else targets
        blocked = _left_out((queries @ documents.T).detach(), rows, blocked, suspect_margin)
        suspect_margin = None
    losses = [
        info_nce(_prefix(queries, k), _prefix(documents, k), temperature, targets, blocked, suspect_margin)
        for k in sorted({*dimensions, width})
    ]
    return torch.stack(losses).mean()


def listwise(queries: Tensor, documents: Tensor, temperature: float, chosen: Tensor, judged: Tensor) -> Tensor:
    """Mean over the queries of KL(judged || softmax of the cosines of the chosen documents), over unit rows.

    `queries` (n, d), `documents` (m, d); `chosen` int64 (n, k): columns of documents; `judged` float32 (n, k): what share of the relevance
    a judge gives to each, rows sum to 1. Source: Ren et al., RocketQAv2, 2021; the judge is as it is and learns nothing here.
    """
    import torch

    scores = (queries.float() @ documents.float().T).gather(1, chosen) / temperature
    return torch.nn.functional.kl_div(torch.log_softmax(scores, dim=1), judged, reduction="batchmean")


def matryoshka_listwise(
    queries: Tensor, documents: Tensor, temperature: float, chosen: Tensor, judged: Tensor, dimensions: Sequence[int] = ()
) -> Tensor:
    """Mean of `listwise` over the prefixes that `matryoshka_info_nce` trains, and over all columns."""
    import torch

    widths = sorted({*dimensions, queries.shape[1]})
    return torch.stack([listwise(_prefix(queries, k), _prefix(documents, k), temperature, chosen, judged) for k in widths]).mean()


def _prefix(vectors: Tensor, size: int) -> Tensor:
    """The first columns as unit rows; all columns are unit already."""
    import torch

    return vectors if size == vectors.shape[1] else torch.nn.functional.normalize(vectors[:, :size], dim=1)


def _left_out(scores: Tensor, targets: Tensor, blocked: Tensor | None, suspect_margin: float | None) -> Tensor:
    """bool (n, m): what is no negative of a row, known or suspected; never the row's own positive."""
    import torch

    found = torch.zeros_like(scores, dtype=torch.bool) if blocked is None else blocked.clone()
    own = targets[:, None]
    if suspect_margin is not None:
        found |= scores > scores.gather(1, own) + suspect_margin
    return found.scatter(1, own, False)


# --- Gradient caching: a contrastive batch larger than memory, with the gradient of the whole batch.


Embed = Callable[[Any, str], "Tensor"]
Loss = Callable[["Tensor", "Tensor"], "Tensor"]


def cached_backward(embed: Embed, queries: Sequence[Any], documents: Sequence[Any], loss: Loss) -> float:
    """Accumulate the gradient of `loss` over chunks of queries and documents; returns the loss.

    `embed(chunk, role)` gives (n, d) vectors for the roles "query" and "document". The first chunk of documents is embedded last and
    keeps its graph through the loss, so it is embedded once; with one chunk a role, so are the queries.
    """
    import torch

    if len(queries) == 1 and len(documents) == 1:
        value = loss(embed(queries[0], "query"), embed(documents[0], "document"))
        value.backward()
        return float(value.detach())
    with torch.no_grad():
        cached_queries = torch.cat([embed(chunk, "query") for chunk in queries]).requires_grad_()
        cached = [embed(chunk, "document").requires_grad_() for chunk in documents[1:]]
    value = loss(cached_queries, torch.cat([embed(documents[0], "document"), *cached]))
    value.backward()
    _push(embed, queries, "query", cached_queries.grad)
    for chunk, vectors in zip(documents[1:], cached, strict=True):
        _push(embed, [chunk], "document", vectors.grad)
    return float(value.detach())


def _push(embed: Embed, chunks: Sequence[Any], role: str, gradient: Any) -> None:
    start = 0
    for chunk in chunks:
        vectors = embed(chunk, role)
        (vectors * gradient[start : start + len(vectors)]).sum().backward()
        start += len(vectors)


# --- Title-specific query prediction: an auxiliary loss that has the document's vector foretell the words of its query.


# Inverse temperature at the start, for embeddings of mean length 1.
START_SCALE = 20.0


class QueryPrediction:
    """The learned map and scale, beside the frozen embeddings of the `vocabulary` (token id -> row)."""

    def __init__(self, embeddings: Tensor, vocabulary: Mapping[int, int], log_frequency: Tensor) -> None:
        """`embeddings` float32 (words, d); `log_frequency` float32 (words,), both on the device of the training."""
        import torch

        self._embeddings, self._vocabulary, self._log_frequency = embeddings, vocabulary, log_frequency
        scale = torch.log(START_SCALE / embeddings.norm(dim=1).mean())
        self._learned = torch.nn.ParameterDict({"map": torch.eye(embeddings.shape[1], device=embeddings.device), "log_scale": scale})

    def parameters(self) -> list[Parameter]:
        """The trainable parameters, in a fixed order."""
        return [self._learned["map"], self._learned["log_scale"]]

    def state_dict(self) -> dict[str, Tensor]:
        """Copies of the trainable parameters by name, for a checkpoint."""
        return {name: value.detach().clone() for name, value in self._learned.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Put back what `state_dict` gave."""
        self._learned.load_state_dict(state)

    def loss(self, document_vectors: Tensor, query_token_rows: Sequence[Sequence[int]]) -> Tensor:
        """Mean cross-entropy over the rows; `document_vectors` unit (n, d), `query_token_rows` the token ids of each one's query.

        A query without a word of the vocabulary does not count; with no other the loss is 0.
        """
        import torch

        words = [sorted({self._vocabulary[token] for token in row if token in self._vocabulary}) for row in query_token_rows]
        cells = [(row, word, 1 / len(found)) for row, found in enumerate(words) for word in found]
        if not cells:
            # Also with no word the learned values get a gradient: the processes send theirs in one message of equal length.
            return (document_vectors.sum() + sum(value.sum() for value in self.parameters())) * 0
        rows, columns, weights = zip(*cells, strict=True)
        device = document_vectors.device
        chances = torch.log_softmax(self._logits(document_vectors), dim=1)
        picked = chances[torch.tensor(rows, device=device), torch.tensor(columns, device=device)]
        return -(picked * torch.tensor(weights, device=device)).sum() / len(set(rows))

    def with_words(self, query_token_rows: Sequence[Sequence[int]]) -> int:
        """How many of the rows have a word of the vocabulary, so that they count in the loss."""
        return sum(any(token in self._vocabulary for token in row) for row in query_token_rows)

    def _logits(self, vectors: Tensor) -> Tensor:
        mapped = vectors.float() @ self._learned["map"].T
        return self._learned["log_scale"].exp() * (mapped @ self._embeddings.T) + self._log_frequency


def build(embedding_weight: Tensor, query_tokens: Sequence[Sequence[int]], special_ids: Collection[int]) -> QueryPrediction:
    """The prediction for training queries given as token ids; `embedding_weight` (V, d) are the base model's input embeddings.

    Raises ModelError when the queries have no tokens to predict.
    """
    import torch

    counts = Counter(token for row in query_tokens for token in set(row))
    words = sorted(token for token, count in counts.items() if token not in special_ids and count < len(query_tokens))
    if not words:
        raise ModelError("The training queries have no tokens to predict; set towers.query_prediction_weight to 0.")
    device = embedding_weight.device
    frequency = torch.tensor([counts[word] for word in words], dtype=torch.float32, device=device)
    embeddings = embedding_weight.detach()[torch.tensor(words, device=device)].float()
    return QueryPrediction(embeddings, {word: row for row, word in enumerate(words)}, torch.log(frequency / frequency.sum()))


# --- A judge: a model that is larger, or reads query and document together, and tells the towers which documents are how relevant.


Scores = Callable[[Sequence[str], Sequence[Sequence[str]]], NDArray[np.float64]]  # queries, k documents of each -> (n, k)


class Judge:
    """A cross-encoder or a SentenceTransformer as it is. It scores each batch anew, so a continued training repeats a straight one."""

    def __init__(self, base: BaseModel, config: TowerConfig) -> None:
        """`config`: of the towers that it judges. Raises ModelError for a model that scores no texts."""
        from transformers.utils import logging

        logging.set_verbosity_error()
        logging.disable_progress_bar()
        if base.layers is not None:
            raise ModelError(f"'{base.name}' keeps a part of its layers, which a judge does not. Leave out what stands behind the @.")
        self.base, self._documents = base, config.judge.documents
        kinds = getattr(judge_config(base), "architectures", None) or ["without a named architecture"]
        together = kinds[0].endswith("ForSequenceClassification")
        if together and in_chat_template(base):
            raise ModelError(f"'{base.name}' wants a chat template around each pair, which a judge does not write. Name another.")
        if together and (prompt := default_prompt(base)):
            raise ModelError(f"'{base.name}' puts the prompt {prompt!r:.60} before each pair, which a judge does not do. Name another.")
        if not together and read_published(base) is None:
            raise ModelError(
                f"'{base.name}' ({kinds[0]}) is no judge. Expected a cross-encoder, whose config.json names ...ForSequenceClassification, "
                "or a SentenceTransformer, which has a modules.json."
            )
        own, longest = config.judge, judge_length(config)
        self._scores = _of_pairs(base, longest, own.batch_size) if together else _of_vectors(base, longest)
        self._temperature = own.temperature or (1.0 if together else config.temperature)
        self._try()

    def _try(self) -> None:
        """One score now, so that what the model fails on is said before anything is trained; and of a pair alone what it is in company."""
        texts = ["a", "a much longer text than the one before, of many more words than that"]
        try:
            both, alone = self._scores(["which"], [texts]), self._scores(["which"], [texts[:1]])
        except self.base.faults as error:
            raise ModelError(f"The judge '{self.base.name}' cannot score texts: {why_unloadable(error)}") from None
        if np.isfinite(both).all() and not np.allclose(both[0, 0], alone[0, 0], atol=1e-3, rtol=1e-3):
            raise ModelError(
                f"The judge '{self.base.name}' scores a text otherwise beside a longer one ({alone[0, 0]:.3f} and {both[0, 0]:.3f}), so it "
                "reads its padding. Set towers.judge.batch_size to 1, or name another."
            )

    def candidates(
        self, scores: Tensor, columns: Sequence[int], targets: Sequence[int], own: Sequence[int | None] | None = None
    ) -> NDArray[np.int64]:
        """int64 (n, k): for each query the column of its positive, and those of the other documents with the highest `scores` (n, m).

        `columns`: the document of every column, -1 for none; one that stands in several columns counts once, and the positive never again.
        `own`: the document that each query is itself, which is no answer to it.
        """
        first = {document: column for column, document in reversed([*enumerate(columns)]) if document >= 0}
        distinct = np.array(sorted(first.values()), np.int64)
        found = scores.detach().float().cpu().numpy()[:, distinct]
        documents = np.array(columns)[distinct][None, :]
        left_out = documents == np.array([columns[target] for target in targets])[:, None]
        if own is not None:
            left_out |= documents == np.array([-1 if document is None else document for document in own])[:, None]
        found[left_out] = -np.inf
        count = min(self._documents, len(distinct) - int(left_out.sum(1).max()))
        near = np.argpartition(-found, max(0, count - 1), axis=1)[:, :count]
        order = np.argsort(-np.take_along_axis(found, near, 1), axis=1, kind="stable")
        return np.concatenate([np.array(targets, np.int64)[:, None], distinct[np.take_along_axis(near, order, 1)]], axis=1)

    def distribution(self, queries: Sequence[str], documents: Sequence[Sequence[str]]) -> NDArray[np.float32]:
        """float32 (n, k), rows sum to 1: what share of the relevance each of a query's k documents has. Raises ModelError."""
        scores = self._scores(queries, documents) / self._temperature
        if not np.isfinite(scores).all():
            raise ModelError(f"The judge '{self.base.name}' gives scores that are no numbers. Fetch it again, or name another.")
        shares = np.exp(scores - scores.max(1, keepdims=True))
        return (shares / shares.sum(1, keepdims=True)).astype(np.float32)


def judge_config(base: BaseModel) -> Any:
    """The configuration of a judge, whose code never runs here; raises ModelError for one that cannot be read."""
    from transformers import AutoConfig

    folder = Path(base.location)
    if (folder / hub.ADAPTER).is_file():
        raise ModelError(hub.AN_ADAPTER.format(base.name))
    if not hub.has_tokenizer(folder):  # transformers would make one that knows no word
        raise ModelError(f"'{base.name}' has no tokenizer ({', '.join(hub.TOKENIZERS)}). Save the model's own tokenizer into its folder.")
    try:
        return AutoConfig.from_pretrained(base.location, trust_remote_code=False)
    except base.faults as error:
        raise ModelError(f"The judge '{base.name}' cannot be loaded: {why_unloadable(error)}") from None


def judge_length(towers: TowerConfig) -> int:
    """Tokens that a judge reads at most: what is set, else twice what the towers read of query and document, in their own tokens."""
    return towers.judge.max_length or 2 * (towers.max_query_length + towers.max_document_length)


def _of_pairs(base: BaseModel, longest: int, batch_size: int) -> Scores:
    """The logits of a cross-encoder, which reads at most `longest` tokens of both; raises ModelError for another classifier."""
    import torch
    from transformers import AutoModelForSequenceClassification

    options: dict[str, Any] = {"dtype": torch.float32, "output_loading_info": True, "trust_remote_code": False}
    try:
        model, report = AutoModelForSequenceClassification.from_pretrained(base.location, **options)
        tokenizer = tokenizer_of(base)
    except base.faults as error:
        raise ModelError(f"The judge '{base.name}' cannot be loaded: {why_unloadable(error)}") from None
    if model.config.num_labels != 1:
        raise ModelError(f"'{base.name}' tells {model.config.num_labels} classes apart; a judge gives one score. Name a cross-encoder.")
    require_plain_weights(report["unexpected_keys"], base.name, base.location)
    if missing := sorted(report["missing_keys"]):  # transformers has drawn them at random
        raise ModelError(f"'{base.name}' was saved without {missing[0]}, so it would score by chance. Name another, or save it whole.")
    require_embeddings(base, model, tokenizer)
    pad = getattr(model.config.get_text_config(), "pad_token_id", None)
    if batch_size > 1 and (pad is None or pad != tokenizer.pad_token_id):
        raise ModelError(f"'{base.name}' names no padding token, so it scores no two texts at once. Set towers.judge.batch_size to 1.")
    model.config.get_text_config().use_cache = False  # a decoder would keep all keys and values for a next word
    longest = min(limit for limit in (position_limit(model), tokenizer.model_max_length, longest) if limit)
    if (frame := tokenizer.num_special_tokens_to_add(pair=True)) + 2 > longest:
        raise ModelError(
            f"'{base.name}' puts {frame} tokens of its own around a pair, and towers.judge.max_length leaves {longest}: no word of them "
            "has a place. Raise towers.judge.max_length, or name another."
        )
    model = model.to(pick_device()).eval()

    def scores(queries: Sequence[str], documents: Sequence[Sequence[str]]) -> NDArray[np.float64]:
        pairs = [(query, document) for query, found in zip(queries, documents, strict=True) for document in found]
        order = sorted(range(len(pairs)), key=lambda i: sum(map(len, pairs[i])))  # alike in length, so little padding
        given = np.empty(len(pairs))
        options = {"truncation": True, "max_length": longest, "return_tensors": "pt", "split_special_tokens": True}
        for start in range(0, len(pairs), batch_size):
            rows = order[start : start + batch_size]
            read = tokenizer(*([pairs[i][side] for i in rows] for side in (0, 1)), padding=batch_size > 1, **options)
            with torch.inference_mode():
                given[rows] = model(**read.to(model.device)).logits[:, 0].double().cpu().numpy()
        return given.reshape(len(queries), -1)

    return scores


def _of_vectors(base: BaseModel, longest: int) -> Scores:
    """The cosines of a published embedding model, with its own prompts, pooling and lengths, the latter at most `longest`."""
    read = {"max_query_length": longest, "max_document_length": longest}
    own = with_own_settings(TowerConfig(base_model=base.name, revision=base.revision, training="none"))
    cut = {field: min(getattr(own, field), most) if field in own.model_fields_set else most for field, most in read.items()}
    contracts = published_contracts(base, own.model_copy(update=cut))
    for role, contract in contracts.items():
        told = f"The judge's prompt for a {role}", "towers.judge.max_length"
        require_words(tokenizer_of(base), base.name, contract.prompt, contract.max_length, told, contract.append_eos)
    with TemporaryDirectory() as folder:  # a tower is loaded from one
        save_contract(Path(folder), contracts["document"], space_id_of(contracts["document"]))
        reader = load_tower(Path(folder), "float32")
    asker = TowerEncoder(reader.model, reader.tokenizer, contracts["query"], reader.space_id, reader.head)

    def scores(queries: Sequence[str], documents: Sequence[Sequence[str]]) -> NDArray[np.float64]:
        texts = sorted({document for found in documents for document in found})
        place = {text: row for row, text in enumerate(texts)}
        vectors = reader.encode(texts)[[[place[text] for text in found] for found in documents]]
        return np.einsum("nd,nkd->nk", asker.encode(queries), vectors, dtype=np.float64)

    return scores
