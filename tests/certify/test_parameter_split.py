"""Certificates over parameters: closed forms, another search, dense grids, and a liar they catch."""

from __future__ import annotations

import dataclasses
import itertools
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from attacks.lighting import LightingGrid
from attacks.rotation_translation import RotationTranslation
from certify.exact import settle
from certify.parameter_split import ParameterSplit
from certify.property import robustness
from defenses.zoo import ModelName, load
from models.base import Batch, Classifier, margin
from models.data import load_data
from models.enclosure import Enclosure
from models.errors import NotApplicable, UserError
from models.norms import LIGHTS
from models.poses import Spatial
from models.randomness import Randomness
from models.threat import Box
from models.threats import threat_named
from tests.builders import images, labelled, mlp

SPLIT = ParameterSplit(seconds=300)


def run(model, batch, norm, eps, box=None, split=SPLIT):
    return split.run(model, batch, threat_named(norm, eps, box or model.box), Randomness(0))


def moves(threat, count: int) -> Tensor:
    """A grid of `count` values of each parameter that is free."""
    line = torch.linspace(-1, 1, count, dtype=torch.float64)
    return torch.cartesian_prod(*(limit * line if limit else line[:1] * 0 for limit in threat.limits()))


def least_on_grid(model, sample: Batch, threat, count: int) -> float:
    """The smallest margin of one sample at a grid of moves."""
    grid = moves(threat, count)
    rows = torch.zeros(len(grid), dtype=torch.int64)
    found = [
        margin(model.logits(threat.carry_out(sample.x[part], grid[at], part)), sample.y[part])
        for at, part in zip(torch.arange(len(grid)).split(500), rows.split(500), strict=True)
    ]
    return float(torch.cat(found).detach().min())


def wide_mlp(seed: int = 0) -> Classifier:
    """A small network on images of 5 x 5."""
    return mlp(inputs=25, hidden=20, seed=seed)


def pictures(model: Classifier, n: int = 8) -> Batch:
    return labelled(model, images(n, (1, 5, 5), seed=3))


def vote(weight: Tensor, bias: float) -> Classifier:
    """Two scores, linear in the image."""
    layer = nn.Linear(weight.shape[1], 2)
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.bias.copy_(torch.tensor([bias, 0.0]))
    return Classifier(nn.Sequential(nn.Flatten(), layer), num_classes=2)


@pytest.mark.parametrize("norm", LIGHTS)
@pytest.mark.parametrize("seed", range(4))
def test_on_a_linear_network_the_threshold_is_the_closed_form(norm, seed):
    # Inside the box nothing is clipped: the margin is m0 + c (w . x) + b sum(w), least in a corner.
    generator = torch.Generator().manual_seed(seed)
    x = 0.4 + 0.2 * torch.rand(1, 1, 3, 4, generator=generator)
    weight = torch.randn(2, 12, generator=generator)
    row = (weight[0] - weight[1]).double()
    light, sums, (bright, contrast) = float(row @ x.flatten().double()), float(row.sum()), LIGHTS[norm]
    critical = 0.15
    model = vote(weight, critical * (contrast * abs(light) + bright * abs(sums)) - light)
    batch = Batch.of(x, torch.tensor([0]))
    assert bool(run(model, batch, norm, critical * 0.99).certified.all())
    beyond = run(model, batch, norm, critical * 1.01)
    assert bool(beyond.broken.all())
    assert float(beyond.distance) <= critical * 1.01


class Lit(nn.Module):
    """A network as a function of (brightness, contrast) alone, for one image."""

    def __init__(self, network: nn.Module, x: Tensor) -> None:
        super().__init__()
        self.head = network
        self.light = nn.Linear(2, x.numel())
        self.shape = tuple(x.shape[1:])
        with torch.no_grad():
            self.light.weight.copy_(torch.stack([torch.ones(x.numel()), x.flatten()], 1))
            self.light.bias.copy_(x.flatten())

    def forward(self, move: Tensor) -> Tensor:
        return self.head(self.light(move).clamp(0, 1).reshape(-1, *self.shape))


@pytest.mark.parametrize("eps", [0.05, 0.2, 0.6])
def test_an_exact_search_over_two_inputs_says_the_same(eps):
    model = wide_mlp()
    batch = pictures(model)
    found = run(model, batch, "lighting", eps)
    for i in range(len(batch)):
        ends = torch.full((2,), eps, dtype=torch.float64)
        prop = robustness(-ends, ends, int(batch.y[i]), 4)
        verdict = settle(Lit(model.network, batch.x[i : i + 1]), prop, seconds=60).status
        assert (bool(found.certified[i]), bool(found.broken[i])) == (
            verdict == "certified",
            verdict == "broken",
        )
    assert int(found.certified.sum()) > 0 or eps == 0.6


@pytest.mark.parametrize(
    ("norm", "eps"), [("rotation", 30.0), ("translation", 0.3), ("spatial", 0.6), ("lighting", 0.3)]
)
def test_no_point_of_a_dense_grid_breaks_what_is_certified(norm, eps):
    model = wide_mlp()
    batch, threat = pictures(model), threat_named(norm, eps)
    found = run(model, batch, norm, eps)
    attack = LightingGrid() if norm == "lighting" else RotationTranslation()
    broken = attack.run(model, batch, threat, Randomness(0)).success
    assert not bool((found.certified & broken).any())
    assert not bool((broken & ~found.broken).any())
    assert bool((found.certified | found.broken).all())
    assert 0 < int(found.certified.sum()) < len(batch)
    for i in found.certified.nonzero()[:, 0].tolist():
        dense = least_on_grid(model, batch[i : i + 1], threat, 22 if norm == "spatial" else 101)
        assert dense >= float(found.margin[i]) - 1e-5


@pytest.mark.parametrize(("norm", "eps"), [("rotation", 12.0), ("lighting", 0.15)])
def test_the_sandwich_holds_on_shipped_networks(norm, eps):
    model, data = load(ModelName.parse("conv-small+polytope")), load_data("mnist5k")
    batch, threat = data.batch(data.panel(4)), threat_named(norm, eps)
    found = run(model, batch, norm, eps)
    attack = LightingGrid() if norm == "lighting" else RotationTranslation()
    assert not bool((found.certified & attack.run(model, batch, threat, Randomness(0)).success).any())
    assert int(found.certified.sum()) >= 3
    for i in found.certified.nonzero()[:, 0].tolist():
        assert least_on_grid(model, batch[i : i + 1], threat, 310 if norm == "rotation" else 31) > 0


@dataclass(frozen=True)
class Thin(Spatial):
    """A liar: cells without the slack that holds what lies between their centres."""

    def enclose(self, x: Tensor, low: Tensor, high: Tensor) -> Enclosure:
        found = super().enclose(x, low, high)
        none = torch.zeros_like(found.slack)
        return dataclasses.replace(found, slack=none, generators=torch.zeros_like(found.generators))


def test_cells_without_padding_certify_what_a_grid_breaks():
    # The only bright pixel, at the top, lands on the one that the rival looks at by a turn of 34 degrees.
    x = torch.zeros(1, 1, 15, 15)
    x[0, 0, 0, 7] = 1.0
    weight = torch.zeros(2, 225)
    weight[1, 1 * 15 + 3] = 1.0
    model, batch, eps = vote(weight, 0.6), Batch.of(x, torch.tensor([0])), 100.0
    honest = run(model, batch, "rotation", eps)
    liar = SPLIT.run(model, batch, Thin("rotation", eps), Randomness(0))
    attack = RotationTranslation(angles=201).run(model, batch, threat_named("rotation", eps), Randomness(0))
    assert bool(attack.success)
    assert bool(liar.certified)
    assert bool(honest.broken)
    assert not bool(honest.certified)
    assert bool(run(model, batch, "rotation", 25.0).certified)


@pytest.mark.parametrize(("norm", "limit"), [("rotation", 60.0), ("lighting", 0.8), ("translation", 0.5)])
def test_certified_falls_and_broken_rises_with_eps(norm, limit):
    model = wide_mlp()
    batch = pictures(model, 6)
    found = [run(model, batch, norm, share * limit) for share in (0.0, 0.1, 0.4, 1.0)]
    for small, large in itertools.pairwise(found):
        assert bool((small.certified >= large.certified).all())
        assert bool((small.broken <= large.broken).all())
    assert bool(found[0].certified.all())
    logits = model.logits(batch.x).double()
    torch.testing.assert_close(found[0].margin, margin(logits, batch.y), atol=1e-3, rtol=0)
    assert bool(found[-1].broken.any())


def test_a_counterexample_is_carried_out_and_measured():
    model = wide_mlp()
    batch = pictures(model)
    for norm, eps in (("rotation", 60.0), ("contrast", 0.9)):
        found = run(model, batch, norm, eps)
        broken = found.broken
        assert bool(broken.any())
        assert bool((model.logits(found.witness).argmax(1) != batch.y)[broken].all())
        assert bool((found.distance[broken] <= eps).all())
        assert bool(found.distance[~broken].isnan().all())
        assert bool((found.witness[~broken] == batch.x[~broken]).all())


def test_neither_the_batch_nor_a_rescaled_box_nor_shifted_logits_matter():
    model = wide_mlp()
    batch = pictures(model, 5)
    flatten, first, act, last = model.network
    scaled = nn.Linear(25, 20)
    shifted = nn.Linear(20, 4)
    with torch.no_grad():
        scaled.weight.copy_(first.weight / 8)
        scaled.bias.copy_(first.bias)
        shifted.weight.copy_(last.weight)
        shifted.bias.copy_(last.bias + 3)
    other = Classifier(nn.Sequential(flatten, scaled, act, shifted), num_classes=4, box=Box(0, 8))
    for norm, eps in (("rotation", 20.0), ("lighting", 0.3)):
        whole = run(model, batch, norm, eps)
        parts = [run(model, batch[i : i + 1], norm, eps) for i in range(5)]
        assert torch.equal(whole.certified, torch.cat([part.certified for part in parts]))
        torch.testing.assert_close(whole.lower, torch.cat([part.lower for part in parts]))
        moved = run(other, Batch.of(8 * batch.x, batch.y), norm, eps)
        assert torch.equal(whole.certified, moved.certified)
        assert torch.equal(whole.broken, moved.broken)
        known = whole.certified
        torch.testing.assert_close(whole.margin[known], moved.margin[known], atol=1e-3, rtol=0)


def test_limits_leave_a_sample_open_and_claim_nothing():
    model = wide_mlp()
    batch = pictures(model, 4)
    hard = run(model, batch, "spatial", 0.5, split=ParameterSplit(cells=2))
    full = run(model, batch, "spatial", 0.5)
    assert "open" in hard.settled_by
    assert bool((hard.certified <= full.certified).all())
    with pytest.raises(UserError, match="positive"):
        ParameterSplit(seconds=0)
    with pytest.raises(UserError, match="at least 1"):
        ParameterSplit(cells=0)


def test_what_it_cannot_judge_is_refused():
    model = wide_mlp()
    flat = Batch.of(images(2, (25,)), torch.zeros(2, dtype=torch.int64))
    with pytest.raises(UserError, match="need images"):
        run(model, flat, "rotation", 3.0)
    with pytest.raises(UserError, match="has no norm 'linf'"):
        run(model, flat, "linf", 0.1)
    noisy = Classifier(model.network, num_classes=4, stochastic=True)
    with pytest.raises(NotApplicable, match="stochastic"):
        run(noisy, pictures(model, 2), "rotation", 3.0)
