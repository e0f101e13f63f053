"""Query prediction against values worked out by hand, and that learning lowers it."""

from __future__ import annotations

import math

import pytest
import torch

from components.errors import ModelError
from components.towers.losses import START_SCALE, build

# Token 0 is special and token 9 stands in every query, as a prompt does. 5 stands in two queries of three, 7 in one.
QUERIES = [[9, 5, 0], [9, 5, 5, 7, 0], [9, 0]]
EMBEDDINGS = torch.zeros(10, 2).index_copy(0, torch.tensor([5, 7]), torch.eye(2) * 3)


def test_the_loss_by_hand() -> None:
    prediction = build(EMBEDDINGS, QUERIES, [0])
    prediction.load_state_dict({"map": torch.eye(2), "log_scale": torch.tensor(math.log(1 / 3))})
    # The scale undoes the embeddings' length of 3; the logits of (5, 7) are (1 + log 2/3, 0 + log 1/3) for the vector (1, 0).
    chances = (math.e * 2 / 3, 1 / 3)
    only_five, both = (-math.log(p / sum(chances)) for p in chances)
    vectors = torch.tensor([[1.0, 0.0]])
    assert float(prediction.loss(vectors, [QUERIES[0]]).detach()) == pytest.approx(only_five, abs=1e-6)
    assert float(prediction.loss(vectors, [QUERIES[1]]).detach()) == pytest.approx((only_five + both) / 2, abs=1e-6)
    # The mean is over the queries with a word to predict, and the query of row 2 has none.
    three = prediction.loss(vectors.expand(3, 2), QUERIES)
    assert float(three.detach()) == pytest.approx((only_five + (only_five + both) / 2) / 2, abs=1e-6)


def test_the_map_turns_the_vector() -> None:
    prediction = build(EMBEDDINGS, QUERIES, [0])
    start = {"log_scale": torch.tensor(math.log(1 / 3))}
    prediction.load_state_dict({"map": torch.tensor([[0.0, 1.0], [1.0, 0.0]]), **start})
    turned = prediction.loss(torch.tensor([[0.0, 1.0]]), [QUERIES[0]])
    prediction.load_state_dict({"map": torch.eye(2), **start})
    assert float(turned.detach()) == pytest.approx(float(prediction.loss(torch.tensor([[1.0, 0.0]]), [QUERIES[0]]).detach()), abs=1e-6)


def test_the_start_is_the_identity_with_a_scale_for_the_embeddings_length() -> None:
    state = build(EMBEDDINGS, QUERIES, [0]).state_dict()
    torch.testing.assert_close(state["map"], torch.eye(2))
    assert float(state["log_scale"].exp()) == pytest.approx(START_SCALE / 3, abs=1e-4)


def test_a_batch_without_words_costs_nothing_and_keeps_the_graph() -> None:
    vectors = torch.tensor([[1.0, 0.0]], requires_grad=True)
    loss = build(EMBEDDINGS, QUERIES, [0]).loss(vectors, [[9, 0, 1]])
    loss.backward()
    assert float(loss.detach()) == 0
    assert vectors.grad is not None and float(vectors.grad.abs().sum()) == 0


def test_learning_lowers_the_loss_of_map_and_vectors_alike() -> None:
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.randn(40, 16, generator=generator)
    queries = [[int(t) for t in torch.randint(0, 40, (5,), generator=generator)] for _ in range(12)]
    raw = torch.randn(12, 16, generator=generator).requires_grad_()
    prediction = build(embeddings, queries, [])
    optimizer = torch.optim.Adam([*prediction.parameters(), raw], lr=0.02)
    losses = []
    for _ in range(40):
        loss = prediction.loss(torch.nn.functional.normalize(raw, dim=1), queries)
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is not None and float(p.grad.abs().sum()) > 0 for p in (*prediction.parameters(), raw))
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]
    least = sum(math.log(len(set(query))) for query in queries) / 12  # each query's words at equal chances
    assert losses[-1] > least


def test_a_checkpoint_brings_back_the_loss() -> None:
    prediction, again = build(EMBEDDINGS, QUERIES, [0]), build(EMBEDDINGS, QUERIES, [0])
    with torch.no_grad():
        prediction.parameters()[0].add_(1)
    kept = prediction.state_dict()
    again.load_state_dict(kept)
    vectors = torch.tensor([[0.6, 0.8]])
    assert float(again.loss(vectors, [[5]]).detach()) == float(prediction.loss(vectors, [[5]]).detach())
    with torch.no_grad():
        prediction.parameters()[0].add_(1)
    torch.testing.assert_close(kept["map"], torch.eye(2) + 1)  # a copy


def test_queries_without_words_are_refused() -> None:
    with pytest.raises(ModelError, match="query_prediction_weight to 0"):
        build(EMBEDDINGS, [[9, 0], [9, 0]], [0])
