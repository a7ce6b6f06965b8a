"""Few entries, few pixels and patches: largest gains, every choice tried, windows proved one by one."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

import certify.window_split
from bench import evaluate
from certify.alpha_crown import AlphaCrown
from certify.crown import Crown
from certify.window_split import WindowSplit, windows_of
from models.base import Batch, Classifier
from models.errors import UserError
from models.pixels import FreePixels
from models.randomness import Randomness
from models.threat import Box, ThreatModel
from models.threats import threat_named
from tests.certify.builders import batch, margins_of, model

SHAPE = (2, 3, 3)


def network(seed: int = 0, *, linear: bool = False) -> Classifier:
    torch.manual_seed(seed)
    layers = [nn.Flatten(), nn.Linear(18, 3)] if linear else [
        nn.Conv2d(2, 4, 2), nn.ReLU(), nn.Flatten(), nn.Linear(16, 5), nn.ReLU(), nn.Linear(5, 3)
    ]  # fmt: skip
    return model(nn.Sequential(*layers))


def moved(x: torch.Tensor, free: torch.Tensor, corners: torch.Tensor) -> torch.Tensor:
    """x with its free entries at every corner (m, free entries) of the box."""
    points = x.flatten()[None].repeat(len(corners), 1)
    points[:, free.flatten()] = corners.to(x)
    return points.reshape(-1, *x.shape)


def corners(count: int) -> torch.Tensor:
    return torch.tensor(list(itertools.product([0.0, 1.0], repeat=count)))


def choices(norm: str, size: int) -> list[torch.Tensor]:
    """Every set of `size` entries, pixels or side of a window, as masks of the shape."""
    masks = []
    if norm == "patch":
        for top, left in itertools.product(range(4 - size), repeat=2):
            mask = torch.zeros(SHAPE, dtype=torch.bool)
            mask[:, top : top + size, left : left + size] = True
            masks.append(mask)
        return masks
    for places in itertools.combinations(range(18 if norm == "l0" else 9), size):
        mask = torch.zeros(18 if norm == "l0" else 9, dtype=torch.bool)
        mask[list(places)] = True
        masks.append(mask.reshape(SHAPE) if norm == "l0" else mask.reshape(1, 3, 3).expand(SHAPE))
    return masks


def least_over_corners(judged: Classifier, x: torch.Tensor, y: int, masks: list[torch.Tensor]):
    """The least margins (classes,) over the corners of all choices: exact for affine networks."""
    judged.network.double()
    found = []
    for mask in masks:
        points = moved(x.double(), mask, corners(int(mask.sum())).double())
        found.append(margins_of(judged.network, points, torch.full((len(points),), y)).amin(0))
    judged.network.float()
    return torch.stack(found).amin(0).detach()


THREATS = {
    "l0": [("l0", 1, 1), ("l0", 2, 2), ("l0", 3, 3)],
    "mask": [("mask", 1 / 9, 1), ("mask", 2 / 9 + 1e-3, 2), ("mask", 0.34, 3)],
    "patch": [("patch", 1 / 9, 1), ("patch", 4 / 9, 2)],
}


@pytest.mark.parametrize(("norm", "eps", "size"), THREATS["l0"] + THREATS["mask"])
@pytest.mark.parametrize("certifier", [Crown(), AlphaCrown(steps=2)], ids=lambda one: one.name)
def test_affine_margins_over_few_entries_are_those_of_the_best_choice(certifier, norm, eps, size):
    judged, data = network(linear=True), batch(3, SHAPE)
    lower = certifier.run(judged, data, threat_named(norm, eps), Randomness(0)).lower
    for i in range(3):
        exact = least_over_corners(judged, data.x[i], int(data.y[i]), choices(norm, size))
        others = torch.arange(3) != data.y[i]
        assert torch.allclose(lower[i][others], exact[others], atol=1e-9)


@pytest.mark.parametrize(("norm", "eps", "size"), [*THREATS["l0"], *THREATS["mask"], *THREATS["patch"]])
@pytest.mark.parametrize("seed", range(2))
def test_no_choice_of_entries_lies_below_a_bound(norm, eps, size, seed):
    judged, data = network(seed), batch(3, SHAPE, seed)
    certifiers = [WindowSplit(seconds=5)] if size == 1 or norm == "patch" else []
    certifiers += [Crown()] if norm != "patch" else []
    for certifier in certifiers:
        found = certifier.run(judged, data, threat_named(norm, eps), Randomness(0))
        for i in range(3):
            least = least_over_corners(judged, data.x[i], int(data.y[i]), choices(norm, size))
            others = torch.arange(3) != data.y[i]
            assert float((least - found.lower[i])[others].min()) >= -1e-9
            assert not (found.certified[i] and float(least[others].min()) < 0)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("norm", "eps", "size"), [("patch", 4 / 9, 2), ("mask", 1 / 9, 1), ("l0", 1, 1)])
def test_windows_are_settled_as_every_corner_of_every_window_says(norm, eps, size, seed):
    """No sample stays open: each is certified, and no corner breaks it, or broken by a legal point."""
    judged, data = network(seed), batch(6, SHAPE, seed)
    data = Batch.of(data.x, judged.logits(data.x).argmax(1))
    threat = threat_named(norm, eps)
    found = WindowSplit(seconds=20).run(judged, data, threat, Randomness(0))
    assert bool((found.certified ^ found.broken).all())
    for i in range(6):
        least = least_over_corners(judged, data.x[i], int(data.y[i]), choices(norm, size))
        others = torch.arange(3) != data.y[i]
        if float(least[others].min()) < 0:
            assert bool(found.broken[i])
    assert bool(threat.contains(data.x, found.witness).all())
    assert bool((judged.logits(found.witness[found.broken]).argmax(1) != data.y[found.broken]).all())


def test_every_window_and_no_other():
    found = windows_of(FreePixels("patch", 4 / 9, Box(0.0, 1.0)), torch.Size(SHAPE))
    assert {tuple(mask.flatten().tolist()) for mask in found} == {
        tuple(mask.flatten().tolist()) for mask in choices("patch", 2)
    }
    nothing = windows_of(FreePixels("patch", 0.05, Box(0.0, 1.0)), torch.Size(SHAPE))
    assert nothing.shape == (1, *SHAPE)
    assert not nothing.any()
    assert len(windows_of(ThreatModel("l0", 1), torch.Size((7,)))) == 7
    assert windows_of(FreePixels("mask", 0.2, Box(0.0, 1.0)), torch.Size((7,))).sum(1).tolist() == [1] * 7


@pytest.mark.parametrize("places", [1, 5, 9, 49, 784])
def test_a_mask_covers_as_many_pixels_as_the_threat_allows(places):
    for eps in (1e-6, 1 / places, 0.1, 1 / 3, 0.5, 1.0):
        threat = FreePixels("mask", eps, Box(0.0, 1.0))
        assert threat.count(places) == max(n for n in range(places + 1) if n / places <= eps)


def test_a_window_that_is_left_out_is_caught(monkeypatch):
    """A certificate that forgets the windows at one side certifies what breaks there."""
    layer = nn.Linear(18, 2)
    with torch.no_grad():
        layer.weight.zero_()
        layer.bias.copy_(torch.tensor([0.5, 0.0]))
        layer.weight[0, 8] = -1.0
    judged = model(nn.Sequential(nn.Flatten(), layer), classes=2)
    data, threat = Batch.of(torch.zeros(1, *SHAPE), torch.tensor([0])), threat_named("patch", 1 / 9)
    assert bool(WindowSplit(seconds=5).run(judged, data, threat, Randomness(0)).broken)
    whole = windows_of

    def forgetful(threat, shape):
        masks = whole(threat, shape)
        return masks[:-1]

    monkeypatch.setattr("certify.window_split.windows_of", forgetful)
    assert bool(WindowSplit(seconds=5).run(judged, data, threat, Randomness(0)).certified)


def test_windows_are_bounded_in_pieces_that_keep_to_the_time(monkeypatch):
    """A window takes a second of this clock: what is not reached proves nothing, and no piece is long."""
    clock, sizes, honest = [0.0], [], certify.window_split.line_margins

    def slow(graph, x, y, region, known):
        clock[0] += len(x)
        sizes.append(len(x))
        return honest(graph, x, y, region, known)

    monkeypatch.setattr(certify.window_split.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(certify.window_split, "line_margins", slow)
    monkeypatch.setattr(
        certify.window_split, "first_margins", lambda *asked: asked[1].new_full((len(asked[1]), 3), -9.0)
    )
    monkeypatch.setattr(certify.window_split._Search, "attack", lambda search: None)
    monkeypatch.setattr(certify.window_split._Search, "settle", lambda search, deadline, randomness: None)
    judged, x = network(1), torch.full((1, 2, 3, 3), 0.4)
    labelled = Batch.of(x, judged.logits(x).argmax(1))
    threat = FreePixels("patch", 1 / 9, judged.box)
    whole = WindowSplit(seconds=1e6).run(judged, labelled, threat, Randomness(0)).lower
    assert (sum(sizes), sizes[0]) == (9, 4)
    del sizes[:]
    cut = WindowSplit(seconds=6.0).run(judged, labelled, threat, Randomness(0)).lower
    assert 4 < sum(sizes) <= 7
    others = torch.arange(3) != labelled.y
    assert bool((whole[0, others] > -9).all())
    assert bool((cut[0, others] == -9).all())


def test_more_than_one_place_anywhere_is_refused_with_the_way_out():
    judged, data = network(), batch(2, SHAPE)
    with pytest.raises(
        UserError, match="3 pixels anywhere are too many choices for window-split: take crown"
    ):
        WindowSplit().run(judged, data, threat_named("mask", 0.34), Randomness(0))


@pytest.mark.parametrize(
    ("norm", "eps"), [pytest.param("l0", 2, marks=pytest.mark.slow), ("mask", 0.25), ("patch", 0.5)]
)
def test_evaluate_brackets_few_entries_by_itself(norm, eps):
    """The usual judges break what every corner of every choice breaks, and prove nothing that is broken."""
    judged, data = network(seed=3), batch(8, SHAPE, 4)
    y = judged.logits(data.x).argmax(1)
    result = evaluate(judged.network, data.x, y, norm=norm, eps=eps)
    size = {"l0": 2, "mask": 2, "patch": 2}[norm]
    broken = 0
    for i in range(8):
        least = least_over_corners(judged, data.x[i], int(y[i]), choices(norm, size))
        broken += float(least[torch.arange(3) != y[i]].min()) < 0
    assert result.certified <= result.attacked <= 1 - broken / 8
    if norm == "patch":
        assert result.gap == 0
