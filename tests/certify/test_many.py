"""Many properties at once: what is taken out is safe by brute force, and what is left is what it was."""

from __future__ import annotations

import time

import pytest
import torch
from torch import nn

from certify import many
from certify.many import still_open
from certify.property import Clause, Property
from models.errors import NotApplicable, UserError
from tests.certify.planes import least_excess, small_network


def some_properties(count: int, seed: int) -> list[Property]:
    """Small rectangles with one to three clauses of one to three rows each."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    found = []
    for place in range(count):
        low = random(2)
        clauses = tuple(
            Clause(random(1 + (place + i) % 3, 3), 0.5 + random(1 + (place + i) % 3))
            for i in range(1 + place % 3)
        )
        found.append(Property(low, low + 0.02 + 0.3 * random(2).abs(), clauses))
    return found


def truth(network: nn.Sequential, one: Property) -> float:
    ends = one.lower.tolist(), one.upper.tolist()
    return min(least_excess(network, *ends, clause) for clause in one.clauses)


@pytest.mark.parametrize("entries", [1, 2**22])
def test_what_is_taken_out_is_safe(entries: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 120 properties no unsafe one is taken out, and most of the safe ones are; parts change nothing."""
    monkeypatch.setattr(many, "ENTRIES", entries)
    out, safe = 0, 0
    for seed in range(4):
        network = small_network(2, 8, 6, 3, seed=seed)
        asked = some_properties(30, seed)
        left = still_open(network, asked)
        assert [one for one in asked if any(one is other for other in left)] == left
        for one in asked:
            taken = all(one is not other for other in left)
            least = truth(network, one)
            assert least > 0 or not taken
            out, safe = out + taken, safe + (least > 0)
    assert 20 < 0.5 * safe < out < 110


def test_few_and_late_properties_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    network, asked = small_network(2, 8, 3, seed=0), some_properties(many.MANY, 0)
    assert len(still_open(network, asked)) < len(asked)
    assert still_open(network, asked, time.monotonic() - 1) == asked
    assert still_open(network, asked[:-1]) == asked[:-1]

    def refuse(*given: object, **settings: object) -> None:
        raise NotApplicable("no lines")

    monkeypatch.setattr(many, "relax", refuse)
    assert still_open(network, asked) == asked


def test_a_tie_stays_open_and_weights_that_are_nan_are_named() -> None:
    """y = x over boxes that end at their threshold, or a little before it."""
    network = nn.Linear(1, 1, bias=False).double()
    network.weight.data.fill_(1.0)
    one = torch.ones(1, dtype=torch.float64)
    reaches = Clause(-torch.ones(1, 1), torch.ones(1))
    ends = [1.0 if place % 2 else 1 - 1e-6 for place in range(10)]
    asked = [Property(0 * one, end * one, (reaches,)) for end in ends]
    assert still_open(network, asked) == asked[1::2]
    network.weight.data.fill_(torch.nan)
    with pytest.raises(UserError, match="'weight' of the network is NaN"):
        still_open(network, asked)
