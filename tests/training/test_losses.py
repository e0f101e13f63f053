"""Losses against values worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from components.distillation.losses import alignment_loss, refinement_loss
from components.towers.losses import info_nce

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
