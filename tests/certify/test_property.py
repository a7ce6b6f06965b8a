"""What a property calls unsafe, and what it refuses."""

import pytest
import torch

from certify.property import Clause, Property, robustness
from models.errors import UserError

ENDS = torch.zeros(2), torch.ones(2)


@pytest.mark.parametrize("dtype", [torch.int64, torch.float32, torch.float64])
def test_a_clause_is_judged_in_double_precision_whatever_its_rows(dtype):
    clause = Clause(torch.tensor([[1, -1]], dtype=dtype), torch.tensor([0], dtype=dtype))
    outputs = torch.tensor([[0.9, 0.2], [0.2, 0.2], [0.2, 0.2 + 1e-12]], dtype=torch.float64)
    assert clause.excess(outputs).tolist() == pytest.approx([0.7, 0.0, -1e-12], abs=1e-15)
    assert (clause.excess(outputs) <= 0).tolist() == [False, True, True]


def test_rows_are_joined_by_and_and_clauses_by_or():
    both = Clause(torch.eye(2), torch.zeros(2))
    one = Clause(torch.tensor([[1.0, 1.0]]), torch.tensor([5.0]))
    outputs = torch.tensor([[-1.0, -1.0], [-1.0, 1.0], [-9.0, 1.0]])
    assert both.excess(outputs).tolist() == [-1.0, 1.0, 1.0]
    assert one.excess(outputs).tolist() == [3.0, 5.0, -3.0]
    assert Property(*ENDS, (both, one)).excess(outputs).tolist() == [-1.0, 1.0, -3.0]


def test_robustness_is_the_least_margin():
    outputs = torch.randn(20, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rest = outputs[:, [0, 1, 3]].amax(1)
    assert torch.allclose(robustness(*ENDS, 2, 4).excess(outputs), outputs[:, 2] - rest)


@pytest.mark.parametrize(
    ("rows", "offsets", "match"),
    [
        (torch.eye(2), torch.zeros(3), "needs rows"),
        (torch.zeros(2), torch.zeros(2), "needs rows"),
        (torch.zeros(0, 2), torch.zeros(0), "without rows"),
        (torch.eye(2) * torch.nan, torch.zeros(2), "rows of a clause contain NaN"),
        (torch.eye(2), torch.full((2,), torch.inf), "offsets of a clause contain NaN"),
    ],
)
def test_a_clause_that_says_nothing_is_refused(rows, offsets, match):
    with pytest.raises(UserError, match=match):
        Clause(rows, offsets)


@pytest.mark.parametrize(
    ("lower", "upper", "match"),
    [
        (torch.zeros(2), torch.ones(3), "shapes"),
        (torch.zeros(2), torch.tensor([1.0, -1.0]), "empty"),
        (torch.zeros(2), torch.tensor([1.0, torch.inf]), "finite"),
        (torch.tensor([torch.nan, 0.0]), torch.ones(2), "finite"),
    ],
)
def test_bounds_that_hold_no_input_are_refused(lower, upper, match):
    with pytest.raises(UserError, match=match):
        Property(lower, upper, (Clause(torch.eye(2), torch.zeros(2)),))


def test_clauses_of_different_widths_or_none_are_refused():
    with pytest.raises(UserError, match="different numbers"):
        Property(*ENDS, tuple(Clause(torch.eye(k), torch.zeros(k)) for k in (2, 3)))
    with pytest.raises(UserError, match="without clauses"):
        Property(*ENDS, ())
