"""Counter-based draws: the right distributions, and no trace of batch or order."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import chisquare, kstest, pearsonr

from models.randomness import Randomness

INDEX = torch.arange(400)


@pytest.mark.parametrize("seed", [0, 1, 2**63, 2**64 - 1])
def test_uniform_is_uniform_along_and_across_samples(seed):
    draws = Randomness(seed).uniform(INDEX, (200,)).double().numpy()
    assert draws.min() >= 0
    assert draws.max() < 1
    assert kstest(draws.ravel()[:50000], "uniform").pvalue > 1e-3
    assert kstest(draws[:, 0], "uniform").pvalue > 1e-3
    assert kstest(draws[0], "uniform").pvalue > 1e-3
    counts, _ = np.histogram(draws, bins=64, range=(0, 1))
    assert chisquare(counts).pvalue > 1e-3


def test_normal_is_normal():
    draws = Randomness(3).normal(INDEX, (100,)).double().numpy()
    assert np.isfinite(draws).all()
    assert kstest(draws.ravel(), "norm").pvalue > 1e-3
    assert kstest(draws[:, 0], "norm").pvalue > 1e-3


def test_signs_are_fair():
    draws = Randomness(3).sign(INDEX, (100,))
    assert set(draws.unique().tolist()) == {-1.0, 1.0}
    assert abs(float(draws.mean())) < 4 / draws.numel() ** 0.5


@pytest.mark.parametrize("method", ["uniform", "normal", "sign"])
def test_draws_depend_on_the_index_alone(method):
    draw = getattr(Randomness(7), method)
    whole = draw(INDEX, (2, 5))
    for size in (1, 7, 64):
        assert torch.equal(whole, torch.cat([draw(rows, (2, 5)) for rows in INDEX.split(size)]))
    order = torch.randperm(400, generator=torch.Generator().manual_seed(0))
    assert torch.equal(whole[order], draw(INDEX[order], (2, 5)))


def test_streams_are_uncorrelated():
    base = Randomness(0)
    first = base.uniform(INDEX, (100,)).numpy().ravel()
    others = {
        "child": base.child("restart", 1).uniform(INDEX, (100,)),
        "next seed": Randomness(1).uniform(INDEX, (100,)),
        "next sample": base.uniform(INDEX + 1, (100,)),
        "next entry": base.uniform(INDEX, (101,))[:, 1:],
    }
    for name, values in others.items():
        assert pearsonr(first, values.numpy().ravel()).pvalue > 1e-4, name


def test_seeds_samples_and_children_differ():
    base = Randomness(0)
    assert len({base.child("a"), base.child("b"), base.child("a", 1), base.child("a", 2), base}) == 5
    assert base.child("a", 1) == Randomness(0).child("a", 1)
    rows = base.uniform(torch.arange(1000), (4,))
    assert len(rows.unique(dim=0)) == 1000


def test_the_global_generator_is_untouched():
    state = torch.get_rng_state()
    Randomness(0).uniform(INDEX, (3,))
    Randomness(0).normal(INDEX, (3,))
    Randomness(2**64 - 1).generator()
    assert torch.equal(state, torch.get_rng_state())


def test_generator_is_seeded():
    a, b = (torch.rand(3, generator=Randomness(4).generator()) for _ in range(2))
    assert torch.equal(a, b)
