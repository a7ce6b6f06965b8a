"""The proven smallest perturbation: closed forms, brute force, and intervals that never lie."""

import itertools
import math

import pytest
import torch
from torch import nn

from certify import smallest as module
from certify.base import Certificate
from certify.exact import Exact
from certify.property import Clause
from certify.smallest import smallest_perturbations
from models.base import Batch, Classifier
from models.errors import UserError
from models.randomness import Randomness
from models.threat import Box, ThreatModel
from tests.builders import WIDE, exact_distance, images, labelled, linear, random_linear
from tests.certify.planes import least_excess, small_network


def bracket(model, batch, norm, **options):
    return smallest_perturbations(
        model, batch, ThreatModel(norm, None, model.box), Randomness(0), **{"seconds": 20, **options}
    )


def same(first, second):
    parts = ("lower", "upper", "witness", "closed")
    return all(torch.equal(getattr(first, name), getattr(second, name)) for name in parts)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_a_linear_network_has_its_closed_form(norm):
    model = random_linear(4, 6, box=WIDE)
    batch = labelled(model, images(4, (6,)))
    found = bracket(model, batch, norm)
    truth = exact_distance(model, batch, norm)
    assert found.closed.all()
    assert (found.lower <= truth * (1 + 1e-6)).all()
    assert (truth <= found.upper * (1 + 1e-6)).all()
    assert (found.upper <= found.lower * (1 + 1.01e-3)).all()


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_witnesses_are_misclassified_in_the_box_and_as_far_as_is_said(norm):
    model = random_linear(3, 5, seed=3)
    batch = labelled(model, images(6, (5,)))
    found = bracket(model, batch, norm)
    known = torch.isfinite(found.upper)
    assert known.any()
    assert model.box.contains(found.witness).all()
    assert (model.logits(found.witness).argmax(1) != batch.y)[known].all()
    threat = ThreatModel(norm, None, model.box)
    assert torch.equal(threat.distance(batch.x, found.witness)[known], found.upper[known])


def least_radius(network, x, label, box):
    """The linf distance of the decision regions of a network on the plane, by polygons and bisection."""
    low, high = 0.0, 4.0
    identity = torch.eye(3)
    rows = [identity[label] - identity[j] for j in range(3) if j != label]
    for _ in range(40):
        middle = (low + high) / 2
        ends = [max(v - middle, box.lower) for v in x], [min(v + middle, box.upper) for v in x]
        excess = min(least_excess(network, *ends, Clause(row[None], torch.zeros(1))) for row in rows)
        low, high = (middle, high) if excess > 0 else (low, middle)
    return high


@pytest.mark.parametrize("seed", range(12))
def test_a_relu_network_on_the_plane_is_what_its_polygons_say(seed):
    network = small_network(*[(2, 8, 3), (2, 5, 5, 3)][seed % 2], seed=seed)
    model = Classifier(network, num_classes=3, box=Box(-2.0, 2.0))
    batch = labelled(model, images(1, (2,), seed=seed))
    truth = least_radius(network, batch.x[0].double().tolist(), int(batch.y), model.box)
    found = bracket(model, batch, "linf")
    if truth > 3.9:
        assert math.isinf(found.upper)
        return
    assert float(found.lower) <= truth + 1e-6
    assert truth <= float(found.upper) + 1e-6
    assert found.closed.all()
    assert float(found.upper - found.lower) <= 1e-3 * float(found.upper)


@pytest.mark.slow
def test_the_norms_are_ordered_as_the_norms_are():
    network = small_network(2, 8, 3, seed=4)
    model = Classifier(network, num_classes=3, box=Box(-2.0, 2.0))
    batch = labelled(model, images(2, (2,), seed=5))
    linf, l2, l1 = (bracket(model, batch, norm, tolerance=1e-2) for norm in ("linf", "l2", "l1"))
    assert torch.isfinite(linf.upper).all()
    assert (linf.lower <= l2.upper * (1 + 1e-6)).all()
    assert (l2.lower <= l1.upper * (1 + 1e-6)).all()
    assert (l2.lower <= math.sqrt(2) * linf.upper * (1 + 1e-6)).all()


def test_a_start_bounds_from_above_and_no_start_comes_below_the_proof():
    model = random_linear(3, 5, seed=2, box=WIDE)
    batch = labelled(model, images(3, (5,)))
    blind = bracket(model, batch, "linf")
    far = batch.x + 1.5 * (blind.witness - batch.x)
    helped = bracket(model, batch, "linf", start=far)
    assert helped.closed.all()
    for found in (blind, helped):
        assert (found.lower <= torch.minimum(blind.upper, helped.upper)).all()
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        inside = batch.x + (2 * torch.rand(batch.x.shape, generator=generator) - 1) * blind.lower[:, None]
        assert torch.equal(model.logits(inside.to(batch.x)).argmax(1), batch.y)


def test_a_start_that_fools_nobody_or_leaves_the_box_is_passed_over():
    model = random_linear(3, 5, seed=2)
    batch = labelled(model, images(2, (5,)))
    outside = batch.x - 50 * model.network.weight[batch.y].detach()
    without = bracket(model, batch, "linf")
    assert same(bracket(model, batch, "linf", start=batch.x), without)
    assert same(bracket(model, batch, "linf", start=outside), without)


def test_results_do_not_depend_on_the_batch():
    model = random_linear(4, 6, seed=1)
    batch = labelled(model, images(4, (6,)))
    whole = bracket(model, batch, "linf")
    for i in range(4):
        alone = bracket(model, batch[slice(i, i + 1)], "linf")
        assert float(alone.lower) == float(whole.lower[i])
        assert float(alone.upper) == float(whole.upper[i])


def test_a_scaled_input_space_scales_the_interval():
    weight = torch.tensor([[1.0, -2.0, 0.5], [0.5, 1.0, -1.0], [-1.0, 0.25, 2.0]])
    bias = torch.tensor([0.2, 0.0, -0.1])
    small, large = linear(weight, bias), linear(weight / 256, bias + 5, Box(0.0, 256.0))
    x = images(3, (3,))
    first = bracket(small, labelled(small, x), "linf")
    second = bracket(large, labelled(large, 256 * x), "linf")
    known = torch.isfinite(first.upper)
    assert torch.equal(known, torch.isfinite(second.upper))
    assert torch.allclose(second.upper[known], 256 * first.upper[known], rtol=2e-3)
    assert torch.allclose(second.lower, 256 * first.lower, rtol=2e-3)


def test_a_clean_error_is_at_distance_zero():
    model = random_linear(3, 5)
    batch = labelled(model, images(2, (5,)))
    wrong = Batch(batch.x, (batch.y + 1) % 3, batch.index)
    found = bracket(model, wrong, "l2")
    assert found.lower.tolist() == found.upper.tolist() == [0.0, 0.0]
    assert found.closed.all()


def test_a_constant_classifier_is_robust_in_the_whole_box():
    model = linear(torch.zeros(3, 4), torch.tensor([2.0, 0.0, 0.0]))
    batch = labelled(model, images(2, (4,)))
    found = bracket(model, batch, "linf")
    assert torch.isinf(found.upper).all()
    assert torch.equal(found.lower, torch.maximum(batch.x, 1 - batch.x).amax(1).double())
    assert found.closed.all()


def deep_network():
    generator = torch.Generator().manual_seed(0)
    widths, layers = (12, 40, 40, 40, 3), []
    for before, after in itertools.pairwise(widths):
        layer = nn.utils.skip_init(nn.Linear, before, after)
        nn.init.normal_(layer.weight, std=(2 / before) ** 0.5, generator=generator)
        nn.init.normal_(layer.bias, std=0.3, generator=generator)
        layers += [layer, nn.ReLU()]
    return Classifier(nn.Sequential(*layers[:-1]), num_classes=3)


def test_time_that_runs_out_leaves_a_valid_interval(monkeypatch):
    model = deep_network()
    batch = labelled(model, images(1, (12,)))
    truth = bracket(model, batch, "linf", tolerance=1e-2)
    assert truth.closed.all()
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])

    def unsettled(self, model, batch, threat, randomness):
        now[0] += self.seconds
        one = torch.full((1, 3), -1.0, dtype=torch.float64)
        return Certificate(one, torch.tensor([False]), 1.0, torch.tensor([False]), batch.x)

    monkeypatch.setattr(Exact, "run", unsettled)
    short = bracket(model, batch, "linf", tolerance=1e-2, seconds=5, start=truth.witness)
    assert not short.closed.any()
    assert (short.lower > 0).all()
    assert (short.lower <= truth.upper).all()
    assert torch.equal(short.upper, truth.upper)
    assert (short.seconds <= 2 * 5 + 1e-9).all()


def test_what_time_left_open_at_one_radius_is_asked_beside_it(monkeypatch):
    asked = []

    def answer(self, model, batch, threat, randomness):
        """The truth is 0.5, and nothing within 0.05 of it can be settled."""
        asked.append(threat.eps)
        away = threat.eps - 0.5
        witness = batch.x + threat.eps
        flags = (torch.tensor([away < -0.05]), torch.tensor([away > 0.05]))
        return Certificate(torch.zeros(1, 2), flags[0], 1.0, flags[1], witness)

    monkeypatch.setattr(Exact, "run", answer)
    monkeypatch.setattr(module, "_raise_cheaply", lambda *rest: None)
    model = linear(torch.tensor([[-1.0], [1.0]]), torch.tensor([1.0, 0.0]), Box(0.0, 8.0))
    batch = labelled(model, torch.zeros(1, 1))
    found = bracket(model, batch, "linf", start=torch.full((1, 1), 3.0))
    assert 0.44 < float(found.lower) <= 0.45
    assert 0.55 <= float(found.upper) < 0.56
    assert not found.closed
    assert len(asked) < 200


@pytest.mark.parametrize(
    ("norm", "options", "message"),
    [
        ("l0", {}, "no smallest perturbation is proved in 'l0': choose linf, l2, l1"),
        ("linf", {"seconds": 0.0}, "a time limit of 0 s"),
        ("linf", {"seconds": math.nan}, "a time limit of nan s"),
        ("linf", {"tolerance": 0.0}, "a tolerance of 0"),
        ("linf", {"tolerance": 1.5}, "a tolerance of 1.5"),
        ("linf", {"start": torch.zeros(3, 5)}, "starts of shape \\(3, 5\\) for inputs of shape \\(2, 5\\)"),
    ],
)
def test_mistakes_are_one_clear_line(norm, options, message):
    model = random_linear(3, 5)
    batch = labelled(model, images(2, (5,)))
    with pytest.raises(UserError, match=message) as caught:
        bracket(model, batch, norm, **options)
    assert "\n" not in str(caught.value)
