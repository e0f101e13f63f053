"""Losses against values worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from components.distillation.objectives import alignment_loss, refinement_loss
from components.towers.losses import info_nce, matryoshka_info_nce

UNIT = torch.tensor([[1.0, 0.0], [0.0, 1.0]])


def test_info_nce_of_orthogonal_pairs() -> None:
    # Each query scores 1 with its document and 0 with the other: -log(e^2 / (e^2 + 1)) at temperature 0.5.
    expected = -math.log(math.exp(2) / (math.exp(2) + 1))
    assert float(info_nce(UNIT, UNIT, 0.5)) == pytest.approx(expected, abs=1e-6)


def test_info_nce_counts_extra_documents_as_negatives() -> None:
    documents = torch.cat([UNIT, UNIT[:1]])
    expected = (-math.log(math.e / (2 * math.e + 1)) - math.log(math.e / (math.e + 2))) / 2
    assert float(info_nce(UNIT, documents, 1.0)) == pytest.approx(expected, abs=1e-6)


def test_info_nce_takes_other_relevant_documents_out_of_the_negatives() -> None:
    documents = torch.cat([UNIT, UNIT[:1]])
    also = torch.tensor([[True, False, True], [False, True, False]])
    expected = (-math.log(math.e / (math.e + 1)) - math.log(math.e / (math.e + 2))) / 2
    assert float(info_nce(UNIT, documents, 1.0, blocked=also)) == pytest.approx(expected, abs=1e-6)


def test_info_nce_with_positives_in_other_columns() -> None:
    documents = torch.tensor([[0.0, 1.0], [-1.0, 0.0], [1.0, 0.0]])
    # Query 0 scores (0, -1, 1) and its document is the last; query 1 scores (1, 0, 0) and its document is the first.
    expected = (-math.log(math.e / (1 + 1 / math.e + math.e)) - math.log(math.e / (math.e + 2))) / 2
    assert float(info_nce(UNIT, documents, 1.0, torch.tensor([2, 0]))) == pytest.approx(expected, abs=1e-6)


def test_info_nce_masks_what_scores_too_far_above_the_positive() -> None:
    query = torch.tensor([[1.0, 0.0]])
    documents = unit_rows(0.5, 0.7, 0.59, 0.2)  # the positive scores 0.5, the others 0.7, 0.59 and 0.2
    e = [math.exp(score / 0.1) for score in (0.5, 0.7, 0.59, 0.2)]
    for margin, in_sum in ((0.1, (0, 2, 3)), (0.0, (0, 3)), (0.3, (0, 1, 2, 3)), (None, (0, 1, 2, 3))):
        expected = -math.log(e[0] / sum(e[i] for i in in_sum))
        assert float(info_nce(query, documents, 0.1, suspect_margin=margin)) == pytest.approx(expected, abs=1e-4)


def test_a_masked_document_gets_no_gradient_and_the_positive_is_never_masked() -> None:
    query = torch.tensor([[1.0, 0.0]], requires_grad=True)
    documents = unit_rows(0.5, 0.7, 0.2).requires_grad_()
    loss = info_nce(query, documents, 0.1, blocked=torch.tensor([[True, False, False]]), suspect_margin=0.1)
    loss.backward()
    assert documents.grad is not None
    assert float(documents.grad[1].abs().sum()) == 0
    assert float(documents.grad[0].abs().sum()) > 0
    assert float(loss.detach()) == pytest.approx(math.log(1 + math.exp(-3)), abs=1e-4)


def test_matryoshka_is_the_mean_over_prefixes_made_unit_again() -> None:
    queries = torch.tensor([[0.6, 0.0, 0.8], [0.0, 0.6, 0.8]])
    documents = torch.tensor([[0.6, 0.0, 0.8], [0.6, 0.0, -0.8]])
    # All columns: scores (1, -0.28) and (0.64, -0.64). First two columns, made unit: (1, 1) and (0, 0).
    full = (math.log(1 + math.exp(-1.28)) + math.log(1 + math.exp(1.28))) / 2
    assert float(matryoshka_info_nce(queries, documents, 1.0)) == pytest.approx(full, abs=1e-6)
    expected = (full + math.log(2)) / 2
    assert float(matryoshka_info_nce(queries, documents, 1.0, dimensions=(2,))) == pytest.approx(expected, abs=1e-6)
    assert float(matryoshka_info_nce(queries, documents, 1.0, dimensions=[2, 3])) == pytest.approx(expected, abs=1e-6)


def test_matryoshka_tells_suspects_by_all_columns() -> None:
    queries = torch.tensor([[0.6, 0.0, 0.8]])
    documents = torch.tensor([[0.0, 0.6, 0.8], [0.6, 0.0, -0.8], [0.6, 0.0, 0.8]])
    # All columns: (0.64, -0.28, 1), so only the last is suspected. First two: (0, 1, 1), where the second would be too.
    expected = (math.log(1 + math.exp(-0.92)) + math.log(1 + math.exp(1))) / 2
    found = matryoshka_info_nce(queries, documents, 1.0, suspect_margin=0.1, dimensions=(2,))
    assert float(found) == pytest.approx(expected, abs=1e-6)


def unit_rows(*cosines: float) -> torch.Tensor:
    """Unit vectors in the plane with these cosines to (1, 0)."""
    return torch.tensor([[c, math.sqrt(1 - c * c)] for c in cosines])


def test_alignment_loss_sees_length_in_mse_and_direction_in_cosine() -> None:
    teacher = torch.tensor([[1.0, 0.0]])
    assert float(alignment_loss(torch.tensor([[2.0, 0.0]]), teacher, 1.0, 1.0)) == pytest.approx(1.0, abs=1e-6)
    assert float(alignment_loss(torch.tensor([[0.0, 1.0]]), teacher, 0.0, 1.0)) == pytest.approx(1.0, abs=1e-6)
    assert float(alignment_loss(torch.tensor([[0.0, 1.0]]), teacher, 1.0, 0.0)) == pytest.approx(2.0, abs=1e-6)


def test_refinement_loss_blocks_other_relevant_documents() -> None:
    targets = torch.tensor([0])
    free = refinement_loss(UNIT[:1], UNIT, targets, 1.0)
    blocked = refinement_loss(UNIT[:1], UNIT, targets, 1.0, torch.tensor([[False, True]]))
    assert float(free) == pytest.approx(-math.log(math.e / (math.e + 1)), abs=1e-6)
    assert float(blocked) == pytest.approx(0.0, abs=1e-6)
