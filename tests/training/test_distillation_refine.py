"""What a query is told apart from, and the similarity loss, against values worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from components.distillation.objectives import Refinement, similarity_loss

AXES = torch.eye(4)
# Text 0 has the documents 0 and 2, text 1 the document 1, text 2 the document 3.
PAIRS = [(0, 0), (1, 1), (0, 2), (2, 3)]


def test_similarity_loss_is_the_divergence_of_two_distributions() -> None:
    student, teacher, documents = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]]), torch.eye(2)
    # Both softmaxes give one document e^2 / (e^2 + 1) and the other the rest, the wrong way round.
    high = math.exp(2) / (math.exp(2) + 1)
    expected = high * math.log(high / (1 - high)) + (1 - high) * math.log((1 - high) / high)
    assert float(similarity_loss(student, teacher, documents, 0.5)) == pytest.approx(expected, abs=1e-6)
    assert float(similarity_loss(teacher, teacher, documents, 0.5)) == pytest.approx(0, abs=1e-6)


def test_similarity_loss_is_a_mean_over_queries() -> None:
    student, teacher = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[0.0, 1.0], [0.0, 1.0]])
    both, first = similarity_loss(student, teacher, torch.eye(2), 0.5), similarity_loss(student[:1], teacher[:1], torch.eye(2), 0.5)
    assert float(both) == pytest.approx(float(first) / 2, abs=1e-6)


def test_all_documents_but_the_other_relevant_ones_are_negatives() -> None:
    found = Refinement(AXES, AXES[:3], PAIRS, None).candidates(np.array([2, 1, 0, 3]))
    assert found.targets.tolist() == [2, 1, 0, 3]
    assert found.documents.shape == (4, 4)
    assert found.blocked.tolist() == [
        [True, False, False, False],
        [False, False, False, False],
        [False, False, True, False],
        [False, False, False, False],
    ]


def test_what_the_teacher_scores_near_the_positive_is_no_negative() -> None:
    teacher = torch.tensor([[0.80, 0.77, 0.0, 0.75], [0.5, 0.4, 0.1, 0.3]])
    # Above 0.95 x 0.80 = 0.76 for text 0 lies document 1; above 0.95 x 0.4 = 0.38 for text 1 document 0.
    found = Refinement(AXES, teacher, [(0, 0), (1, 1)], 0.95).candidates(np.array([0, 1]))
    assert found.blocked.tolist() == [[False, True, False, False], [True, False, False, False]]
    assert not Refinement(AXES, teacher, [(0, 0), (1, 1)], 1.0).candidates(np.array([0])).blocked.any()


def test_the_positive_stays_even_where_the_teacher_prefers_all_others() -> None:
    teacher = torch.tensor([[0.9, 0.1, 0.8, 0.7]])
    found = Refinement(AXES, teacher, [(0, 1)], 0.95).candidates(np.array([0]))
    assert found.blocked.tolist() == [[True, False, True, True]]


def test_mined_documents_are_the_nearest_of_the_queries_of_the_batch() -> None:
    refinement = Refinement(AXES, AXES[:3], PAIRS, None)
    assert refinement.texts.tolist() == [0, 1, 2]
    # The student puts text 0 nearest to documents 3 and 2, text 1 to 0 and 1, text 2 to 1 and 0.
    refinement.mine(torch.tensor([[0.1, 0.0, 0.5, 0.8], [0.9, 0.4, 0.0, 0.0], [0.3, 0.9, 0.0, 0.0]]), 2)
    found = refinement.candidates(np.array([0]))
    assert found.documents.tolist() == AXES[[0, 2, 3]].tolist()
    assert found.targets.tolist() == [0]
    assert found.blocked.tolist() == [[False, True, False]]
    both = refinement.candidates(np.array([3, 1]))
    assert both.documents.tolist() == AXES[[0, 1, 3]].tolist()
    assert both.targets.tolist() == [2, 1]
    assert not both.blocked.any()


def test_mining_in_parts_and_deeper_than_there_are_documents(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("components.distillation.objectives.SCORES_AT_ONCE", 5)
    refinement = Refinement(AXES, AXES[:3], PAIRS, None)
    refinement.mine(AXES[:3], 100)
    assert refinement.candidates(np.array([0])).documents.tolist() == AXES.tolist()


def test_spread_negatives_come_from_the_whole_range_of_the_teachers_scores() -> None:
    rng = np.random.default_rng(1)
    documents = torch.nn.functional.normalize(torch.tensor(rng.normal(size=(400, 6)), dtype=torch.float32), dim=-1)
    teacher = torch.nn.functional.normalize(torch.tensor(rng.normal(size=(3, 6)), dtype=torch.float32), dim=-1)
    refinement = Refinement(documents, teacher, [(0, 0), (1, 1), (2, 2)], None)
    refinement.spread(8, (13, 1, 0))
    drawn = refinement._mined
    assert drawn is not None and drawn.shape == (3, 8)
    for text in range(3):
        scores = documents @ teacher[text]
        parts = ((scores[drawn[text]] - scores.min()) / (scores.max() - scores.min()) * 8).long().clamp(0, 7)
        assert sorted(parts.tolist()) == list(range(8))  # one of each eighth, the top included
    first = drawn.clone()
    refinement.spread(8, (13, 1, 0))
    assert torch.equal(first, refinement._mined)
    refinement.spread(8, (13, 1, 1))  # another epoch draws others
    assert not torch.equal(first, refinement._mined)


def test_spread_negatives_where_documents_are_few_or_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("components.distillation.objectives.SCORES_AT_ONCE", 5)
    refinement = Refinement(AXES, AXES[:3], PAIRS, None)
    refinement.spread(100, (1,))  # of four documents, which a text scores 1, 0, 0, 0: two parts hold any
    assert refinement._mined is not None and refinement._mined.shape == (3, 4)
    for text in range(3):
        assert text in refinement._mined[text] and len(set(refinement._mined[text].tolist())) == 2
    alike = Refinement(AXES[:1].repeat(5, 1), AXES[:1], [(0, 0)], None)
    alike.spread(3, (1,))
    assert alike._mined is not None and len(set(alike._mined[0].tolist())) == 1


def test_the_masks_of_a_large_batch_are_those_of_a_loop() -> None:
    rng = np.random.default_rng(3)
    documents = torch.nn.functional.normalize(torch.tensor(rng.normal(size=(50, 8)), dtype=torch.float32), dim=-1)
    teacher = torch.nn.functional.normalize(torch.tensor(rng.normal(size=(20, 8)), dtype=torch.float32), dim=-1)
    pairs = sorted({(int(t), int(d)) for t, d in zip(rng.integers(0, 20, 80), rng.integers(0, 50, 80), strict=True)})
    refinement = Refinement(documents, teacher, pairs, 0.8)
    batch = rng.permutation(len(pairs))[:30]
    found = refinement.candidates(batch)
    relevant = {text: {d for t, d in pairs if t == text} for text, _ in pairs}
    for row, pair in enumerate(batch):
        text, positive = pairs[pair]
        scores = documents @ teacher[text]
        expected = {d for d in range(50) if d in relevant[text] or scores[d] > 0.8 * scores[positive]} - {positive}
        assert set(torch.nonzero(found.blocked[row]).flatten().tolist()) == expected
