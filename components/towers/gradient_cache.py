"""Gradient caching: a contrastive batch larger than memory, with the gradient of the whole batch.

Source: Gao et al. 2021, "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup". First every chunk is embedded
without a graph, then the loss gives the gradient of each embedding, then every chunk is embedded again with a graph and that
gradient is pushed through it. Our own code, since sentence-transformers' cached loss embeds each role with modules of its own (Router)
and here both adapters are on one model, of which one is active at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

Embed = Callable[[Any, str], "Tensor"]
Loss = Callable[["Tensor", "Tensor"], "Tensor"]


def backward(embed: Embed, queries: Sequence[Any], documents: Sequence[Any], loss: Loss) -> float:
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
