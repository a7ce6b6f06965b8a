"""Translation invariance: the kernel, the sum over shifted images that it stands for, steps by hand."""

from __future__ import annotations

import math

import pytest
import torch

from attacks.momentum import Momentum
from attacks.translation_invariant import Blurred, TranslationInvariant, gaussian, relative
from models.base import Batch
from models.errors import UserError
from models.threat import ThreatModel
from tests.attacks.directions import FULL, by_hand, cubic, iterate, passes, proposal, same_in_other_units
from tests.builders import images, labelled, mlp, random_linear


def weights(reach: int) -> torch.Tensor:
    """The paper's kernel, entry by entry."""
    spread = reach / math.sqrt(3)
    span = range(-reach, reach + 1)
    table = [[math.exp(-(i * i + j * j) / (2 * spread**2)) for j in span] for i in span]
    kernel = torch.tensor(table, dtype=torch.float64)
    return kernel / kernel.sum()


def shifted(x: torch.Tensor, i: int, j: int) -> torch.Tensor:
    """Images (n, c, h, w) moved by i rows and j columns; zero moves in."""
    h, w = x.shape[2:]
    out = torch.zeros_like(x)
    out[:, :, max(0, i) : h + min(0, i), max(0, j) : w + min(0, j)] = x[
        :, :, max(0, -i) : h + min(0, -i), max(0, -j) : w + min(0, -j)
    ]
    return out


@pytest.mark.parametrize("reach", [1, 2, 7])
def test_the_kernel_is_the_published_one(reach):
    taps = gaussian(2 * reach + 1, torch.zeros(1, dtype=torch.float64))
    torch.testing.assert_close(taps[:, None] * taps, weights(reach), atol=1e-12, rtol=0)


@pytest.mark.parametrize("size", [3, 5, 9])
def test_the_gradient_is_that_of_the_loss_summed_over_shifts(size):
    """On a loss linear in x, where the paper's approximation is exact; kernels reach past edges."""
    model = random_linear(2, 2 * 5 * 4).double()
    model.network = torch.nn.Sequential(torch.nn.Flatten(), model.network)
    x = images(6, (2, 5, 4)).double()
    batch = Batch.of(x, torch.zeros(6, dtype=torch.int64))
    found = Blurred(size)(iterate(model, batch, x, torch.zeros_like(x)))
    reach, kernel = size // 2, weights(size // 2)
    leaf, total = x.clone().requires_grad_(True), 0.0
    for i in range(-reach, reach + 1):
        for j in range(-reach, reach + 1):
            if abs(i) < 5 and abs(j) < 4:
                z = model.logits(shifted(leaf, i, j))
                total = total + kernel[i + reach, j + reach] * (z[:, 1] - z[:, 0]).sum()
    (expected,) = torch.autograd.grad(total, leaf)
    torch.testing.assert_close(found, expected, atol=1e-9, rtol=0)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_two_steps_by_hand(norm):
    model = cubic((1, 6, 7))
    batch = Batch.of(images(8, (1, 6, 7)).double(), torch.zeros(8, dtype=torch.int64))
    threat = ThreatModel(norm, 0.2)
    attack = TranslationInvariant(steps=2, decay=0.7, loss="margin", kernel=3, **FULL)

    def slope(step, z, velocity):
        kernel, plain = weights(1), model.network.slope(z)
        parts = [kernel[i + 1, j + 1] * shifted(plain, i, j) for i in (-1, 0, 1) for j in (-1, 0, 1)]
        return torch.stack(parts).sum(0)

    trace = by_hand(batch.x, threat, 2, 0.7, slope)
    values = torch.stack([model.logits(z)[:, 1] for z in trace])
    expected = torch.stack(trace)[values.argmax(0), torch.arange(8)]
    torch.testing.assert_close(proposal(attack, model, batch, threat), expected, atol=1e-9, rtol=0)


def test_kernels_that_fit_the_image():
    sides = {299: 15, 224: 11, 96: 5, 32: 5, 28: 5, 5: 5, 4: 3, 3: 3, 2: 1, 1: 1}
    assert {side: relative(side) for side in sides} == sides


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("early_stop", [True, False])
def test_a_kernel_of_one_pixel_is_momentum(norm, early_stop):
    model, threat = mlp(), ThreatModel(norm, 0.15)
    batch = labelled(model, images(30))
    ours, plain = TranslationInvariant(kernel=1, early_stop=early_stop), Momentum(early_stop=early_stop)
    assert torch.equal(proposal(ours, model, batch, threat), proposal(plain, model, batch, threat))
    wide = TranslationInvariant(kernel=3, early_stop=early_stop)
    assert not torch.equal(proposal(wide, model, batch, threat), proposal(plain, model, batch, threat))
    vectors = random_linear(4, 12)
    flat = labelled(vectors, images(20, (12,)))
    fitted = TranslationInvariant(early_stop=early_stop)
    assert torch.equal(proposal(fitted, vectors, flat, threat), proposal(plain, vectors, flat, threat))


def test_the_blur_costs_nothing():
    settings = {"steps": 4, **FULL}
    ours, plain = passes(TranslationInvariant(**settings)), passes(Momentum(**settings))
    assert ours[0].tolist() == plain[0].tolist() == [5] * 12
    assert ours[1].tolist() == plain[1].tolist() == [4] * 12


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_units_do_not_matter(norm):
    same_in_other_units(TranslationInvariant(kernel=3, **FULL), norm, origin=-3.0)


@pytest.mark.parametrize("kernel", [-1, 2, 4])
def test_bad_settings_are_users_errors(kernel):
    with pytest.raises(UserError, match="translation-invariant needs an odd kernel"):
        TranslationInvariant(kernel=kernel)
    with pytest.raises(UserError, match="translation-invariant has no loss 'mse'"):
        TranslationInvariant(loss="mse")
