"""Square: the published schedule, the shape of its proposals, and its bill of queries."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from attacks.images import as_images
from attacks.losses import margin_loss
from attacks.square import Proposals, Square, pyramid, search, share
from models.errors import UserError
from models.randomness import Randomness
from models.threat import ThreatModel, vector_norm
from tests.builders import WIDE, Counting, exact_distance, images, labelled, mlp, random_linear

ROWS = torch.arange(6)


def proposals(norm: str, eps: float, shape=(1, 9, 9), box=None) -> Proposals:
    x = 0.3 + 0.4 * images(6, shape)
    threat = ThreatModel(norm, eps) if box is None else ThreatModel(norm, eps, box)
    return Proposals(x, ROWS, threat, Randomness(0))


def test_the_schedule_is_the_papers():
    """p = 0.8 halves after 10, 50, 200, 500, 1000, 2000, 4000, 6000 and 8000 of 10,000 queries."""
    found = [
        share(query, 10_000, 0.8) for query in (1, 10, 11, 50, 51, 201, 501, 1001, 2001, 4001, 6001, 9999)
    ]
    assert found == [0.8 / 2**k for k in (0, 0, 1, 1, 2, 3, 4, 5, 6, 7, 8, 9)]
    assert share(101, 1000, 0.8) == share(1010, 10_000, 0.8)


def test_linf_starts_with_stripes_at_the_faces():
    some = proposals("linf", 0.1, (3, 9, 9))
    delta = some.first() - some.x
    torch.testing.assert_close(delta.abs(), torch.full_like(delta, 0.1))
    assert torch.equal(delta.sign(), delta.sign()[:, :, :1].expand_as(delta))
    assert len({tuple(row.tolist()) for row in delta[:, :, 0].flatten(1).sign()}) == 6, (
        "each sample has its own"
    )


@pytest.mark.parametrize(("part", "side"), [(0.8, 8), (0.1, 3), (0.01, 1)])
def test_linf_changes_one_square_and_always_something(part, side):
    some = proposals("linf", 0.1, (3, 9, 9))
    z = some.first()
    for query in range(1, 40):
        moved = some.next(z, query, part)
        changed = (moved != z).any(1)
        assert bool(changed.flatten(1).any(1).all())
        for mask in changed:
            rows, columns = mask.nonzero().amin(0), mask.nonzero().amax(0)
            assert bool((columns - rows < side).all())
        torch.testing.assert_close((moved - some.x).abs(), torch.full_like(z, 0.1))
        z = moved


def test_l2_keeps_the_radius():
    some = proposals("l2", 0.7, (3, 9, 9), WIDE)
    z = some.first()
    for query in range(1, 30):
        torch.testing.assert_close(vector_norm(z - some.x, "l2"), torch.full((6,), 0.7), rtol=1e-3, atol=0)
        moved = some.next(z, query, 0.2)
        assert bool((moved != z).flatten(1).any(1).all())
        z = moved


def test_the_pattern_has_two_halves_and_norm_one():
    for side in (3, 4, 7):
        pattern = pyramid(side)
        assert float(pattern.norm()) == pytest.approx(1.0)
        assert bool((pattern[: side // 2] >= 0).all())
        assert bool((pattern[side // 2 :] <= 0).all())


@pytest.mark.parametrize("shape", [(12,), (2, 6), (1, 3, 4), (3, 5, 7)])
def test_any_shape_is_an_image(shape):
    x = images(4, shape)
    assert as_images(x).dim() == 4
    assert as_images(x).numel() == x.numel()
    for norm in ("linf", "l2"):
        threat = ThreatModel(norm, 0.2)
        some = Proposals(x, torch.arange(4), threat, Randomness(0))
        assert bool(threat.contains(x, some.next(some.first(), 3, 0.3)).all())


def test_it_finds_the_corner_of_a_linear_model_and_nothing_beyond():
    """On linear models linf success is known: inside the exact distance never, 20 % outside always."""
    model = random_linear(3, 16, box=WIDE)
    batch = labelled(model, images(40, (1, 4, 4)).flatten(1))
    distance = exact_distance(model, batch, "linf")
    for factor in (0.98, 1.2):
        for i in range(12):
            threat = ThreatModel("linf", factor * float(distance[i]), WIDE)
            result = Square(queries=400).run(model, batch[i : i + 1], threat, Randomness(0))
            assert bool(result.success.all()) == (factor > 1)


def test_the_bill_is_exact_and_is_the_curve():
    model = mlp()
    counter = Counting(model.network)
    model.network = counter
    batch = labelled(model, images(60))
    counter.forward_samples = 0
    result = Square(queries=80).run(model, batch, ThreatModel("linf", 0.15), Randomness(0))
    assert counter.forward_samples == int(result.forward.sum()) + 2 * len(batch)
    assert counter.backward_samples == 0
    assert 5 < int(result.success.sum()) < 55
    assert set(result.forward[~result.success].tolist()) == {80}
    assert int(result.forward[result.success].min()) == 1
    assert int(result.forward[result.success].max()) > 5


def test_bad_settings_are_refused():
    for bad in ({"queries": 0}, {"area": 0.0}, {"area": 1.5}):
        with pytest.raises(UserError, match="queries >= 1"):
            Square(**bad)


def test_of_several_tries_at_once_the_best_is_kept_and_each_is_paid_for():
    """The first step's point is the lowest of the 8 that were asked about, and each of them counts."""
    model = mlp(10, 784)
    batch = labelled(model, images(4, (1, 28, 28)))
    threat, asked = ThreatModel("linf", 0.01), []

    def logits(x: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        asked.append((x, rows))
        return model(x)

    everyone = torch.arange(4)
    oracle = SimpleNamespace(logits=logits)
    settings = {"queries": 16, "first": 0.1, "tries": 8}
    _, broken, low = search(oracle, batch, everyone, threat, Randomness(0), **settings)
    assert [len(x) for x, _ in asked] == [4, 32, 32]
    assert not broken.any()
    assert torch.equal(asked[1][1], everyone.repeat_interleave(8))
    margins = [-margin_loss(model(x), batch.y[rows]) for x, rows in asked]
    seen = torch.cat([part.unflatten(0, (4, -1)) for part in margins], 1)
    torch.testing.assert_close(low, seen.amin(1))
    assert len({tuple(row.tolist()) for row in asked[1][0][:8].flatten(1)}) > 4, "the tries differ"
    best = (
        asked[1][0][:8][margins[1][:8].argmin()] if margins[1][:8].min() < margins[0][0] else asked[0][0][0]
    )
    moved = (asked[2][0][:8] != best).flatten(1).float().mean(1)
    assert bool((moved < 0.2).all()), "the second round starts from the best point so far"
