"""Diverse inputs: the transform against torch's own, steps by hand, passes, and momentum where it is off."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from attacks.diverse_inputs import Diverse, DiverseInputs, resizing
from attacks.momentum import Momentum
from models.base import Batch
from models.errors import UserError
from models.randomness import Randomness
from models.threat import ThreatModel
from tests.attacks.directions import FULL, by_hand, cubic, iterate, passes, proposal, same_in_other_units
from tests.builders import images, labelled, mlp


@pytest.mark.parametrize(("side", "size", "offset"), [(28, 25, 2), (28, 28, 0), (7, 3, 4), (5, 1, 2)])
def test_lines_are_shrunk_and_padded_as_torch_does_it(side, size, offset):
    image = images(3, (2, side, side)).double()
    one = resizing(side, torch.tensor([size]), torch.tensor([offset]), image)
    shrunk = functional.interpolate(image, size=(size, size), mode="bilinear", align_corners=False)
    rest = side - size - offset
    expected = functional.pad(shrunk, (offset, rest, offset, rest))
    torch.testing.assert_close(one @ image @ one.mT, expected, atol=1e-12, rtol=0)


def matrices(shape: tuple[int, ...], n: int, rate: float, seed: int = 0) -> list[torch.Tensor]:
    made = Diverse(Randomness(seed), 1.0, rate)._matrices(images(n, shape), torch.arange(n), Randomness(seed))
    return [matrix[:, 0] for matrix in made]


def test_sizes_and_places_are_uniform():
    """25 to 28 of 28 pixels, the image kept square, and every place of a size equally likely."""
    down, across = matrices((1, 28, 28), 4000, 0.9)
    filled = [(matrix.sum(2) > 0).float() for matrix in (down, across)]
    size, width = (rows.sum(1).long() for rows in filled)
    assert torch.equal(size, width)
    assert size.unique().tolist() == [25, 26, 27, 28]
    assert bool(((size[:, None] == torch.arange(25, 29)).float().mean(0) - 0.25).abs().max() < 0.03)
    for rows in filled:
        offset = rows.argmax(1)[size == 25]
        assert offset.unique().tolist() == [0, 1, 2, 3]
        assert float((offset.bincount() / len(offset) - 0.25).abs().max()) < 0.05
    offsets = torch.stack([rows.argmax(1)[size == 25].float() for rows in filled])
    assert abs(float(torch.corrcoef(offsets)[0, 1])) < 0.1


def test_two_steps_by_hand():
    """Each step's gradient is W' f'(W x W'') W'' with the matrices that the step draws, samples apart."""
    model = cubic((1, 6, 6))
    batch = Batch.of(images(8, (1, 6, 6)).double(), torch.zeros(8, dtype=torch.int64))
    threat, attack = ThreatModel("linf", 0.2), DiverseInputs(steps=2, decay=0.7, loss="margin", **FULL)
    turned = []

    def slope(step, z, velocity):
        stream = Randomness(0).child("step", step)
        moved = stream.child("moved").uniform(batch.index, ()) < 0.5
        turned.append(moved)
        found = []
        for i in range(8):
            down, across = Diverse(Randomness(0), 0.5, 0.9)._matrices(
                z[i : i + 1], batch.index[i, None], stream
            )
            if not moved[i]:
                down = across = torch.eye(6, dtype=torch.float64)[None, None]
            with torch.enable_grad():
                leaf = z[i : i + 1].clone().requires_grad_(True)
                seen = torch.einsum("npij,ncjk,nplk->ncil", down, leaf, across)
                value = model.logits(seen)[:, 1].sum()
                found.append(torch.autograd.grad(value, leaf)[0])
        return torch.cat(found)

    trace = by_hand(batch.x, threat, 2, 0.7, slope)
    values = torch.stack([model.logits(z)[:, 1] for z in trace])
    expected = torch.stack(trace)[values.argmax(0), torch.arange(8)]
    torch.testing.assert_close(proposal(attack, model, batch, threat), expected, atol=1e-9, rtol=0)
    assert bool((turned[0] != turned[1]).any())
    assert not bool(turned[0].all())


def test_padding_is_black_wherever_the_box_begins():
    for norm in ("linf", "l2"):
        same_in_other_units(DiverseInputs(**FULL, resize_rate=0.5), norm, origin=-3.0)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("early_stop", [True, False])
def test_never_transformed_it_is_momentum(norm, early_stop):
    model, threat = mlp(), ThreatModel(norm, 0.15)
    batch = labelled(model, images(30))
    ours, plain = DiverseInputs(probability=0.0, early_stop=early_stop), Momentum(early_stop=early_stop)
    assert torch.equal(proposal(ours, model, batch, threat), proposal(plain, model, batch, threat))
    assert [t.tolist() for t in passes(ours)] == [t.tolist() for t in passes(plain)]
    whole = DiverseInputs(resize_rate=1.0, early_stop=early_stop)
    expected = proposal(plain, model, batch, threat)
    torch.testing.assert_close(proposal(whole, model, batch, threat), expected, atol=1e-6, rtol=0)


def test_the_share_of_transformed_samples():
    model, batch = cubic((1, 4, 4)), Batch.of(images(2000, (1, 4, 4)).double(), torch.zeros(2000).long())
    at = iterate(model, batch, batch.x, torch.zeros_like(batch.x))
    for probability in (0.2, 0.5):
        found = Diverse(Randomness(1), probability, 0.5)(at)
        same = (found == at.gradient).flatten(1).all(1).double().mean()
        # A third of the transforms, those to the full size, change nothing either.
        assert abs(float(same) - (1 - probability * 2 / 3)) < 0.04


def test_each_step_costs_two_looks_and_one_gradient():
    forward, backward = passes(DiverseInputs(steps=4, **FULL))
    assert forward.tolist() == [2 * 4 + 1] * 12
    assert backward.tolist() == [4] * 12


def test_vectors_are_rows_of_pixels():
    flat, model = mlp(), mlp()
    flat.network[0] = torch.nn.Identity()
    x = images(20, (1, 1, 12))
    batch = labelled(model, x)
    as_vectors = Batch(x.flatten(1), batch.y, batch.index)
    a = proposal(DiverseInputs(**FULL), model, batch, ThreatModel("linf", 0.1))
    b = proposal(DiverseInputs(**FULL), flat, as_vectors, ThreatModel("linf", 0.1))
    torch.testing.assert_close(a.flatten(1), b, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    "bad", [{"probability": 1.1}, {"probability": -0.1}, {"resize_rate": 0.0}, {"resize_rate": 1.2}]
)
def test_bad_settings_are_users_errors(bad):
    with pytest.raises(UserError, match="diverse-inputs needs 0 <= probability <= 1 and 0 < resize_rate"):
        DiverseInputs(**bad)
    with pytest.raises(UserError, match="diverse-inputs needs decay >= 0 and steps >= 1"):
        DiverseInputs(steps=0)
