"""What a user can get wrong: one clear line each, or a flag where the answer may mislead."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from attacks.base import ATTACKS, COUNTS
from attacks.deepfool import DeepFool
from attacks.fgsm import FGSM
from attacks.patch import Masked
from attacks.pgd import PGD
from attacks.square import Square
from models.base import Batch
from models.discover import import_modules
from models.errors import NotApplicable, UserError
from models.randomness import Randomness
from models.threat import Box, ThreatModel
from models.threats import threat_named
from tests.builders import images, labelled, mlp, random_linear

import_modules("attacks")

THREAT = ThreatModel("linf", 0.1)


class Detached(nn.Module):
    """A network whose output hangs on its input by no torch operation."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x):
        return self.network(x.detach())


class Steps(nn.Module):
    """Rounds its inputs, those of even samples alone: there the gradient is zero throughout."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x):
        dark = x.flatten(1)[:, 0] < 0.5
        return self.network(torch.where(dark[:, None, None, None], x.round(), x))


@pytest.mark.parametrize("search", [FGSM(), PGD(), DeepFool()], ids=lambda search: search.name)
def test_no_gradient_is_one_clear_line(search):
    model = mlp()
    model.network = Detached(model.network)
    batch = labelled(model, images(5))
    with pytest.raises(NotApplicable, match="model 'mlp' hands out no gradient: declare a surrogate"):
        search.run(model, batch, THREAT, Randomness(0))
    assert ATTACKS["strongest"]().run(model, batch, ThreatModel("linf", 0.3), Randomness(0)).success.any()


@pytest.mark.parametrize("search", [FGSM(), PGD(), DeepFool()], ids=lambda search: search.name)
def test_a_zero_gradient_is_a_flag_on_its_rows(search):
    model = mlp()
    model.network = Steps(model.network)
    batch = labelled(model, images(40))
    dark = batch.x.flatten(1)[:, 0] < 0.5
    right = torch.arange(40) % 4 != 0
    y = torch.where(right, batch.y, (batch.y + 1) % 4)
    batch = Batch(batch.x, y, batch.index)
    for size in (7, 64):
        result = search.run(model, batch, ThreatModel("linf", 0.01), Randomness(0), batch_size=size)
        assert torch.equal(result.zero_gradient, dark & right)
    assert not bool(search.run(mlp(), labelled(mlp(), images(9)), THREAT, Randomness(0)).zero_gradient.any())
    assert not bool(Square(queries=5).run(model, batch, THREAT, Randomness(0)).zero_gradient.any())


class Gone(nn.Module):
    """Answers NaN next to `x`, and there alone what the network says."""

    def __init__(self, network: nn.Module, x: torch.Tensor) -> None:
        super().__init__()
        self.network, self.x = network, x

    def forward(self, x):
        far = (x - self.x).flatten(1).abs().amax(1) > 1e-3
        return torch.where(far[:, None], torch.nan, self.network(x))


def test_an_answer_that_is_no_number_is_an_error_of_the_model():
    model = mlp()
    batch = labelled(model, images(5))
    model.network = Gone(model.network, batch.x)
    assert FGSM().run(model, batch, ThreatModel("linf", 0.01), Randomness(0)).success.all()


@pytest.mark.parametrize("value", [torch.inf, -torch.inf])
def test_infinite_logits_are_refused(value):
    model = mlp()
    batch = labelled(model, images(5))
    model.network = nn.Sequential(model.network, nn.Threshold(torch.inf, value))
    with pytest.raises(UserError, match="model 'mlp' returned infinity"):
        FGSM().run(model, batch, THREAT, Randomness(0))


def test_a_vector_cannot_be_rotated():
    model = random_linear(3, 12)
    batch = labelled(model, images(4, (12,)))
    with pytest.raises(UserError, match="rotations and translations need images"):
        ATTACKS["rotation-translation"]().run(model, batch, threat_named("spatial", 0.1), Randomness(0))
    with pytest.raises(UserError, match=r"flows need images \(n, c, h, w\), not inputs of shape \(4, 12\)"):
        ATTACKS["flow"]().run(model, batch, threat_named("flow", 0.1), Randomness(0))


@pytest.mark.parametrize("name", ["eot", "turtle"])
@pytest.mark.parametrize("shape", [(12,), (3, 4)])
def test_what_is_no_image_has_no_views(name, shape):
    model = random_linear(3, 12)
    model.network = nn.Sequential(nn.Flatten(), model.network)
    batch = labelled(model, images(4, shape))
    with pytest.raises(NotApplicable, match=rf"{name} needs images \(n, c, h, w\), not inputs of shape"):
        ATTACKS[name]().run(model, batch, THREAT, Randomness(0))


@pytest.mark.parametrize("name", [name for name in ATTACKS if "loss" in ATTACKS[name].__dataclass_fields__])
def test_a_loss_that_nobody_knows_is_named(name):
    with pytest.raises(UserError, match=f"{name} has no loss 'margins'"):
        ATTACKS[name](loss="margins")


COUNTED = [
    (name, field)
    for name in ATTACKS
    for field in COUNTS
    if not ATTACKS[name].models and field in ATTACKS[name].__dataclass_fields__
]


def outcome(name, field):
    model, search = mlp(), ATTACKS[name](**{field: -1})
    aside = labelled(model, images(4, seed=2)) if search.fitted else None
    threat = threat_named(search.norms[0], 0.1)
    return search.run(model, labelled(model, images(4)), threat, Randomness(0), aside)


@pytest.mark.parametrize(("name", "field"), COUNTED)
def test_no_attack_takes_fewer_steps_than_none(name, field):
    with pytest.raises(UserError, match=field):
        outcome(name, field)


@pytest.mark.parametrize(
    ("norm", "most", "box"),
    [("linf", 1.0, Box()), ("linf", 10.0, Box(-3, 7)), ("l2", 12**0.5, Box()), ("l1", 12.0, Box())],
)
def test_a_radius_beyond_the_box_is_refused(norm, most, box):
    model = random_linear(3, 12, box=box)
    batch = labelled(model, images(4, (12,), box=box))
    PGD(steps=1).run(model, batch, ThreatModel(norm, most, box), Randomness(0))
    with pytest.raises(UserError, match=r"reaches beyond the box .* like 8/255"):
        PGD(steps=1).run(model, batch, ThreatModel(norm, 1.01 * most, box), Randomness(0))


def test_a_target_that_is_the_label_is_refused():
    model = mlp()
    batch = Batch.of(images(4), torch.tensor([0, 1, 2, 3]))
    batch = Batch(batch.x, model.logits(batch.x).argmax(1), batch.index)
    label = int(batch.y[0])
    with pytest.raises(UserError, match=f"target {label} is the label of"):
        PGD(target=str(label)).run(model, batch, THREAT, Randomness(0))


def test_a_mask_of_the_wrong_shape_is_refused():
    model = mlp()
    with pytest.raises(UserError, match=r"the mask has shape \(5, 5\) but an input has \(1, 3, 4\)"):
        Masked(mask=torch.ones(5, 5)).run(model, labelled(model, images(2)), THREAT, Randomness(0))


def test_a_box_that_is_not_the_models_is_refused():
    """Inputs outside the threat's box have no legal move; in a wider box moves leave the model's."""
    model = mlp()
    batch = labelled(model, images(5))
    for box, line in ((Box(0.0, 0.5), "but the threat's box is"), (Box(-1.0, 1.0), "beyond the model's")):
        with pytest.raises(UserError, match=line):
            PGD().run(model, batch, ThreatModel("linf", 0.1, box), Randomness(0))
    narrow = Batch.of(0.5 * batch.x, batch.y)
    result = PGD().run(model, narrow, ThreatModel("linf", 0.1, Box(0.0, 0.5)), Randomness(0))
    assert float(result.x_adv.max()) <= 0.5


@pytest.mark.parametrize(
    ("batch", "line"),
    [
        (labelled(mlp(), images(0)), "give at least one of each"),
        (Batch(images(3), torch.zeros(3).int(), torch.arange(3)), r"pass floating-point ones and int64"),
        (Batch(images(3).byte(), torch.zeros(3).long(), torch.arange(3)), "inputs of torch.uint8"),
        (Batch(images(3), torch.zeros(3).long(), torch.arange(2)), "3 inputs but 2 indices"),
    ],
)
def test_a_batch_that_is_none_is_one_clear_line(batch, line):
    with pytest.raises(UserError, match=line):
        PGD().run(mlp(), batch, THREAT, Randomness(0))


def test_no_images_to_fit_on_and_no_batch_size_are_refused():
    batch, none = labelled(mlp(), images(3)), labelled(mlp(), images(0))
    with pytest.raises(UserError, match="pass them as `aside`"):
        ATTACKS["universal"]().run(mlp(), batch, THREAT, Randomness(0), none)
    with pytest.raises(UserError, match="3 inputs in batches of 0"):
        PGD().run(mlp(), batch, THREAT, Randomness(0), batch_size=0)
