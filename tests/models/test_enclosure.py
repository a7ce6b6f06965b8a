"""Sets around every image of a range of moves: sampled densely, tight to second order, and liars caught."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from models.enclosure import Enclosure
from models.errors import NotApplicable, UserError
from models.threat import Box
from models.threats import threat_named
from models.transformation import Transformation

CASES = [
    ("rotation", 40.0), ("rotation", 180.0), ("spatial", 1.0), ("translation", 0.2),
    ("lighting", 0.4), ("brightness", 1.0), ("contrast", 1.0),
]  # fmt: skip
WIDTHS = (1.0, 0.3, 0.1, 0.03, 0.01, 0.001)
BOXES = (Box(0, 1), Box(-1, 3))
CELLS, DRAWS = 12, 30


def cells(threat: Transformation, width: float) -> tuple[Tensor, Tensor]:
    """Cells of this share of the range in random places."""
    limits = threat.limits()
    share = torch.rand(CELLS, len(limits), generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    centre = (2 * share - 1) * limits * (1 - width)
    return centre - width * limits, centre + width * limits


def picture(box: Box) -> Tensor:
    x = torch.rand(1, 2, 7, 9, generator=torch.Generator().manual_seed(2))
    x[:, :, :2] = 0.0
    x[:, :, -1] = x[:, :, -1].round()
    return (box.lower + box.width * x).expand(CELLS, -1, -1, -1)


def excess(threat: Transformation, x: Tensor, low: Tensor, high: Tensor, found: Enclosure) -> float:
    """How far an image carried out lies beyond its enclosure, at corners and random moves of each cell."""
    generator, worst = torch.Generator().manual_seed(3), -torch.inf
    shares = 2 * torch.rand(DRAWS, *low.shape, generator=generator, dtype=torch.float64) - 1
    shares[: DRAWS // 3] = shares[: DRAWS // 3].sign()
    lower, upper = found.bounds(x.double())
    for share in shares:
        move = (low + high) / 2 + share * (high - low) / 2
        along = found.centre + (found.generators * share[:, :, None, None, None]).sum(1)
        ends = [along - found.slack, along + found.slack, lower, upper]
        if threat.clips:
            ends = [threat.box.clamp(end) for end in ends]
        for dtype in (torch.float32, torch.float64):
            image = threat.carry_out(x.to(dtype), move, torch.arange(CELLS)).double()
            beyond = [ends[0] - image, image - ends[1], ends[2] - image, image - ends[3]]
            worst = max(worst, *(float(part.amax()) for part in beyond))
    return worst


@pytest.mark.parametrize("box", BOXES)
@pytest.mark.parametrize(("norm", "eps"), CASES)
def test_no_image_leaves_its_enclosure(norm, eps, box):
    threat, x = threat_named(norm, eps, box), picture(box)
    for width in WIDTHS:
        low, high = cells(threat, width)
        assert excess(threat, x, low, high, threat.enclose(x, low, high)) <= 0


@pytest.mark.parametrize(("norm", "eps"), CASES)
def test_what_is_not_affine_falls_with_the_square_of_the_cell(norm, eps):
    threat, x = threat_named(norm, eps), picture(Box())
    wide, narrow = (threat.enclose(x, *cells(threat, width)) for width in (0.01, 0.001))
    moved = float(wide.generators.abs().sum(1).mean() / narrow.generators.abs().sum(1).mean())
    assert 7 < moved < 13
    if threat.clips:
        assert float(wide.slack.amax()) < 1e-5
    else:
        # In the limit a tenth of the cell has a hundredth of the slack; kinks and rounding keep some.
        assert float(narrow.slack.mean()) < float(wide.slack.mean()) / 20 + 2e-5


@pytest.mark.parametrize(("norm", "eps"), CASES[:4])
def test_an_enclosure_without_its_slack_or_its_slopes_is_caught(norm, eps):
    threat, x = threat_named(norm, eps), picture(Box())
    low, high = cells(threat, 0.1)
    found = threat.enclose(x, low, high)
    tight = dataclasses.replace(found, slack=0.2 * found.slack)
    flat = dataclasses.replace(found, generators=0.5 * found.generators)
    assert excess(threat, x, low, high, tight) > 1e-4
    assert excess(threat, x, low, high, flat) > 1e-4


def test_rows_reach_what_the_corners_reach():
    generator = torch.Generator().manual_seed(0)
    draw = [torch.randn(2, *shape, generator=generator).double() for shape in ((4,), (2, 4), (4,), (3, 4))]
    found, rows = Enclosure(centre=draw[0], generators=draw[1], slack=draw[2].abs()), draw[3]
    corners = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0], dtype=torch.float64)] * 6)
    points = (
        draw[0][:, None] + corners[:, :2] @ draw[1] + corners[:, None, 2:].squeeze(1) * draw[2].abs()[:, None]
    )
    values = rows @ points.transpose(1, 2)
    middle, away = found.reach(rows)
    torch.testing.assert_close(middle + away, values.amax(2))
    torch.testing.assert_close(middle - away, values.amin(2))
    torch.testing.assert_close(found.bounds(draw[0])[1], points.amax(1))
    part = found.select(slice(1, 2))
    assert torch.equal(part.reach(rows[1:])[1], away[1:])


def test_what_cannot_be_enclosed_says_so():
    corruption, x = threat_named("corruption", 3), torch.zeros(1, 1, 4, 4)
    with pytest.raises(NotApplicable, match="no box of numbers"):
        corruption.limits()
    with pytest.raises(NotApplicable, match="between one move"):
        corruption.enclose(x, torch.zeros(1, 2), torch.ones(1, 2))
    with pytest.raises(UserError, match="need images"):
        threat_named("rotation", 3).enclose(x.flatten(1), torch.zeros(1, 3), torch.ones(1, 3))
    with pytest.raises(UserError, match="slack"):
        Enclosure(centre=torch.zeros(1, 2), generators=torch.zeros(1, 1, 2), slack=-torch.ones(1, 2))
    with pytest.raises(UserError, match="do not fit"):
        Enclosure(centre=torch.zeros(1, 2), generators=torch.zeros(1, 1, 3), slack=torch.ones(1, 2))
