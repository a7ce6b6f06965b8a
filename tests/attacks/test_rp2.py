"""RP2: the mask to the bit, the printability term's closed forms, survival against PGD's in the same mask."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from PIL import Image

from attacks.eot import survival
from attacks.patch import Masked
from attacks.rp2 import RP2, non_printability, printable, read_mask, stickers
from defenses.zoo import ModelName, load
from models.data import load_data
from models.errors import UserError
from models.pixels import FreePixels, changed_pixels
from models.randomness import Randomness
from models.threat import UNIT_BOX, Box, ThreatModel
from tests.builders import Counting, images, labelled, mlp

SMALL = RP2(steps=10, draws=4)


def test_not_a_bit_changes_outside_the_mask():
    model = mlp()
    batch, mask = labelled(model, images(40)), torch.zeros(3, 4, dtype=torch.bool)
    mask[1:, :2] = True
    attack = RP2(steps=15, draws=4, mask=mask)
    for norm in ("mask", "patch"):
        result = attack.run(model, batch, FreePixels(norm, 4 / 12), Randomness(0))
        assert torch.equal(result.x_adv[:, :, ~mask], batch.x[:, :, ~mask])
        assert bool(result.legal.all())
        assert 5 < int(result.success.sum()) < 40
        assert not torch.equal(result.x_adv, batch.x)


def test_printable_colours_cost_nothing_and_others_their_product():
    colours = printable(3, UNIT_BOX, 2)
    assert {tuple(c) for c in colours.tolist()} == set(itertools.product((0.0, 1.0), repeat=3))
    x, mask = colours.T.reshape(1, 3, 2, 4).repeat(2, 1, 1, 1), torch.ones(2, 2, 4, dtype=torch.bool)
    assert non_printability(x, mask, colours, UNIT_BOX).tolist() == [0.0, 0.0]
    grey = torch.full((1, 3, 2, 4), 0.5)
    middle = non_printability(grey, mask[:1], colours, UNIT_BOX)
    assert float(middle) == pytest.approx(0.75 ** (8 / 2))
    level = torch.full((1, 1, 2, 4), 0.25)
    of_level = non_printability(level, mask[:1], printable(1, UNIT_BOX, 3), UNIT_BOX)
    assert float(of_level) == pytest.approx(0.25 * 0.25 * 0.75)
    half = mask[:1].clone()
    half[:, :, 2:] = False
    x[0, :, :, 2:] = 0.3
    assert non_printability(x[:1], half, colours, UNIT_BOX).tolist() == [0.0]
    box = Box(-3.0, 7.0)
    scaled = non_printability(10 * level - 3, mask[:1], printable(1, box, 3), box)
    assert float(scaled) == pytest.approx(float(of_level), rel=1e-4)


def test_its_colours_get_printable():
    model = mlp()
    batch, mask = labelled(model, images(30)), torch.ones(3, 4, dtype=torch.bool)
    threat, every = FreePixels("mask", 1.0), torch.ones(30, 3, 4, dtype=torch.bool)
    scores = [
        float(
            non_printability(
                RP2(steps=40, draws=2, rate=0.02, mask=mask, printability=weight, patience=41)
                .run(model, batch, threat, Randomness(0))
                .x_adv,
                every,
                printable(1, UNIT_BOX, 3),
                UNIT_BOX,
            ).mean()
        )
        for weight in (0.0, 100.0)
    ]
    assert scores[1] < 0.5 * scores[0]


def test_it_survives_held_out_views_better_than_pgd_in_the_same_mask():
    data, attack = load_data("mnist5k"), RP2(steps=40)
    model, batch = load(ModelName.parse("conv-small")), data.batch(data.panel(30))
    threat = FreePixels("mask", 0.1)
    mask = stickers(threat, 28, 28)
    ours = attack.run(model, batch, threat, Randomness(0))
    plain = Masked(mask=mask).run(model, batch, ThreatModel("linf", 1.0), Randomness(0))
    assert torch.equal(ours.x_adv[:, :, ~mask], batch.x[:, :, ~mask])
    both = ours.success & plain.success & ours.clean
    assert int(both.sum()) > 8
    held_out = [
        float(survival(model, batch, x, attack.transform, Randomness(99), 40)[both].mean())
        for x in (plain.x_adv, ours.x_adv)
    ]
    assert held_out[1] > held_out[0] + 0.1


def test_success_grows_with_the_masks_area():
    data = load_data("mnist5k")
    model, batch = load(ModelName.parse("conv-small")), data.batch(data.panel(20))
    curve = [
        float(
            RP2(steps=20, draws=2)
            .run(model, batch, FreePixels("mask", eps), Randomness(0))
            .success.double()
            .mean()
        )
        for eps in (0.01, 0.05, 0.2)
    ]
    assert curve == sorted(curve)
    assert curve[2] > curve[0] + 0.3


@pytest.mark.parametrize("eps", [0.01, 0.05, 0.3, 1.0])
@pytest.mark.parametrize("size", [(28, 28), (7, 30), (1, 12), (3, 4)])
def test_two_bars_keep_to_the_area(size, eps):
    threat = FreePixels("mask", eps)
    mask = stickers(threat, *size)
    assert int(mask.sum()) <= eps * mask.numel()
    assert int(mask.sum()) >= min(0.2 * eps * mask.numel(), 1) or eps * mask.numel() < 1


def test_a_patch_is_one_window_a_sample():
    model = mlp()
    batch = labelled(model, images(40))
    threat = FreePixels("patch", 0.4)
    result = SMALL.run(model, batch, threat, Randomness(0))
    assert bool((threat.distance(batch.x, result.x_adv) <= 0.4).all())
    touched = changed_pixels(batch.x, result.x_adv).flatten(1)
    assert len({tuple(row) for row in touched.tolist()}) > 2


def test_the_bill_is_exact_and_sure_samples_leave():
    model = mlp()
    model.network = counter = Counting(model.network)
    batch = labelled(model, images(40))
    counter.forward_samples = counter.backward_samples = 0
    result = RP2(steps=15, draws=4).run(model, batch, FreePixels("mask", 0.5), Randomness(0))
    assert counter.forward_samples == int(result.forward.sum()) + 2 * len(batch)
    assert counter.backward_samples == int(result.backward.sum())
    assert set(result.forward[~result.success].tolist()) <= {16 * 5}
    assert int(result.forward.min()) < 16 * 5


def test_a_mask_is_a_picture_file(tmp_path: Path):
    x = images(2, (1, 3, 4))
    mask = torch.tensor([[0, 1, 1, 0], [0, 0, 0, 0], [1, 0, 0, 1]], dtype=torch.bool)
    Image.fromarray((mask * 255).byte().numpy()).save(tmp_path / "mask.png")
    assert torch.equal(read_mask(str(tmp_path / "mask.png"), x), mask)
    with pytest.raises(UserError, match=r"the mask has shape \(3, 4\) but the images have \(5, 5\)"):
        read_mask(str(tmp_path / "mask.png"), images(2, (1, 5, 5)))
    with pytest.raises(UserError, match="no mask file"):
        read_mask("nowhere.png", x)
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(UserError, match="is no picture"):
        read_mask(str(tmp_path / "text.png"), x)


def test_bad_settings_are_refused():
    model = mlp()
    batch = labelled(model, images(3))
    wide = torch.ones(3, 4, dtype=torch.bool)
    with pytest.raises(UserError, match=r"needs eps >= 1 of 'mask', more than 0.5"):
        RP2(mask=wide).run(model, batch, FreePixels("mask", 0.5), Randomness(0))
    with pytest.raises(UserError, match="the mask has shape"):
        RP2(mask=wide.T).run(model, batch, FreePixels("mask", 0.5), Randomness(0))
    with pytest.raises(UserError, match="levels >= 2"):
        RP2(levels=1)
    with pytest.raises(UserError, match="has no loss"):
        RP2(loss="hinge")
