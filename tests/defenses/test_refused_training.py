"""What cannot be trained, or not on these images, is refused in one line and leaves no weights behind."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from defenses.base import DEFENSES, Defense
from defenses.gaussian_noise import GaussianNoise
from defenses.inputs import INPUT_DEFENSES, InputDefense
from defenses.none import NoDefense
from defenses.static import misfit
from defenses.training import train
from defenses.zoo import ModelName, load
from models.architecture import MODELS, Architecture
from models.base import Batch
from models.data import Dataset
from models.discover import import_modules
from models.errors import UserError
from models.randomness import Randomness
from models.recipe import Recipe
from models.threat import Box
from tests.defenses.test_training import network, same, toy

import_modules("defenses")

RECIPE = Recipe(epochs=2, batch_size=64)
ALL: dict[str, type[Defense | InputDefense]] = {
    **{name: DEFENSES[name] for name in DEFENSES},
    **{name: INPUT_DEFENSES[name] for name in INPUT_DEFENSES},
}
NUMBERS = [
    (name, field.name, type(getattr(cls(), field.name)))
    for name, cls in ALL.items()
    for field in fields(cls)
    if type(getattr(cls(), field.name)) in (int, float)
]


def changed(change: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], box: Box | None = None) -> Dataset:
    """The toy images (n, 1, 6, 6) as floats in [0, 1], after `change` of pixels and labels."""
    pixels, labels = change(toy().pixels.float() / 255, toy().labels.clone())
    return Dataset("toy", pixels, labels, 3, box or Box(0, 1))


def with_nan(pixels: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    return pixels.index_fill(0, torch.tensor(3), torch.nan), labels


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (changed(with_nan), r"outside \[0, 1\]"),
        (changed(lambda x, y: (255 * x, y)), r"outside \[0, 1\]"),
        (changed(lambda x, y: (255 * x, y), Box(0, 255)), r"outside \[0, 1\]"),
        (changed(lambda x, y: ((255 * x).long(), y)), r"outside \[0, 1\]"),
        (changed(lambda x, y: (2 * x - 1, y), Box(-1, 1)), r"outside \[0, 1\]"),
        (changed(lambda x, y: (x, y + 1)), r"labels that span 1\.\.3"),
        (changed(lambda x, y: (x, y - 1)), r"labels that span -1\.\.1"),
        (changed(lambda x, y: (x, y.float())), r"labels of type torch\.float32"),
        (changed(lambda x, y: (x, y.int())), r"labels of type torch\.int32"),
        (changed(lambda x, y: (x, y[:50])), "200 images but 50 labels"),
        (changed(lambda x, y: (x[:50], y)), "50 images but 200 labels"),
        (changed(lambda x, y: (x[:0], y[:0])), "no images"),
    ],
)
def test_images_and_labels_that_mislead_training_are_refused(data: Dataset, said: str) -> None:
    net = network()
    with pytest.raises(UserError, match=said) as refusal:
        list(train(net, NoDefense(), RECIPE, data, seed=0))
    assert "\n" not in str(refusal.value)
    assert same(net, network())


def test_one_image_that_is_no_number_is_refused_before_any_step() -> None:
    steps = train(network(), NoDefense(), RECIPE, changed(with_nan), seed=0)
    with pytest.raises(UserError, match=r"outside \[0, 1\], or NaN"):
        next(steps)


def test_a_radius_beyond_the_box_is_told_by_what_was_written() -> None:
    for name in ("interval", "polytope", "small-boxes"):
        most = 1 / DEFENSES[name]().parameters()["overshoot"]
        with pytest.raises(UserError, match=rf"eps=0.99 times overshoot=.*: give eps up to {most:.3g}"):
            DEFENSES[name](eps=0.99)
        assert DEFENSES[name](eps=0.999 * most)


def test_a_loss_that_is_no_number_ends_training_before_it_spoils_the_weights(tmp_path: Path) -> None:
    class Diverging(NoDefense):
        """Is infinite from the middle of the second epoch on."""

        def loss(self, network: nn.Module, batch: Batch, progress: float, randomness: Randomness) -> Tensor:
            return super().loss(network, batch, progress, randomness) / (progress < 0.75)

    net, place = network(), tmp_path / "toy.checkpoint"
    with pytest.raises(UserError, match="the loss is inf in epoch 2 of 2"):
        list(train(net, Diverging(), RECIPE, toy(), seed=0, resume=place))
    assert all(bool(torch.isfinite(value).all()) for value in net.state_dict().values())


@pytest.mark.parametrize("name", ["none", "noise-blind", "interval", "trades"])
def test_one_image_left_over_joins_the_batch_before_it(name: str) -> None:
    """Batch normalisation and deviations over a batch have nothing to say of one image."""
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(36, 8), nn.BatchNorm1d(8)
    )
    net = nn.Sequential(*net, nn.ReLU(), nn.Linear(8, 3))
    steps = list(train(net, DEFENSES[name](), RECIPE, toy(193), seed=0))
    assert [step.step for step in steps] == list(range(1, 7))
    assert {step.steps for step in steps} == {6}
    assert all(math.isfinite(step.loss) for step in steps)


@pytest.mark.parametrize("name", ["trades", "none"])
def test_no_epoch_is_no_training(name: str) -> None:
    for epochs in (0, -1):
        recipe = RECIPE.model_copy(update={"epochs": epochs})
        with pytest.raises(UserError, match="1 epoch"):
            list(train(network(), DEFENSES[name](), recipe, toy(), seed=0))


@pytest.mark.parametrize(("name", "key", "kind"), NUMBERS)
def test_numbers_that_are_none_are_refused(name: str, key: str, kind: type) -> None:
    wrong = {float: (math.nan, math.inf, -math.inf, -1.0, "8/255", None), int: (-5, 1.5, "3", None)}
    for value in wrong[kind]:
        with pytest.raises(UserError, match=rf"\b{key}\b|{name}") as refusal:
            ALL[name](**{key: value})
        assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("key", ["epochs", "steps"])
def test_what_is_done_no_time_is_refused(key: str) -> None:
    mine = [name for name, found, _ in NUMBERS if found == key]
    assert len(mine) > 3
    for name in mine:
        with pytest.raises(UserError, match=f"{name}.*{key}"):
            ALL[name](**{key: 0})


def test_a_whole_number_may_stand_for_a_fraction() -> None:
    assert GaussianNoise(sigma=1).sigma == 1


@pytest.mark.parametrize("content", [{"network": 1}, {"identity": None}, [1, 2]])
def test_another_file_in_the_place_of_a_checkpoint_is_one_clear_line(content: object, tmp_path: Path) -> None:
    place = tmp_path / "toy.checkpoint"
    torch.save(content, place)
    with pytest.raises(UserError, match="damaged: delete it"):
        list(train(network(), NoDefense(), RECIPE, toy(), seed=0, resume=place))


def architecture(*layers: nn.Module) -> Architecture:
    def build() -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(36, 8), *layers, nn.Linear(8, 3))

    return Architecture("mine", build, (1, 6, 6), 3, "-", RECIPE)


@pytest.mark.parametrize("name", ["interval", "small-boxes", "polytope", "spectral"])
def test_no_bound_is_trained_on_where_dropout_is_random(name: str) -> None:
    reason = DEFENSES[name]().refuses(architecture(nn.ReLU(), nn.Dropout(0.5)))
    assert reason is not None
    assert "dropout" in reason
    assert DEFENSES[name]().refuses(architecture(nn.ReLU(), nn.Dropout(0.0))) is None
    assert DEFENSES[name]().refuses(architecture(nn.ReLU())) is None


def test_every_registered_network_is_trained_or_refused_beforehand() -> None:
    """By the defences whose loss reads the network operator by operator, one step each."""
    for name in MODELS:
        of = MODELS[name]
        images = torch.rand(4, *of.input_shape, generator=torch.Generator().manual_seed(0))
        some = Batch.of(images, torch.arange(4) % of.num_classes)
        for defense in (DEFENSES[one]() for one in ("interval", "polytope", "spectral")):
            if defense.refuses(of) is None and name != "conv-ramp-wide":
                net = of.build().train()
                assert math.isfinite(float(defense.loss(net, some, 0.5, Randomness(0)).detach())), name
                defense.after_step(net)


def test_polytope_trains_through_batch_normalisation() -> None:
    of = architecture(nn.BatchNorm1d(8), nn.ReLU())
    defense = DEFENSES["polytope"](eps=0.02, warm=0.5)
    assert defense.refuses(of) is None
    net = of.build()
    steps = list(train(net, defense, RECIPE, toy(), seed=0))
    assert all(math.isfinite(step.loss) for step in steps)
    assert int(net[2].num_batches_tracked) == len(steps)


def test_a_source_for_other_images_is_told_by_shape_and_classes() -> None:
    said = misfit("conv-small", architecture(nn.ReLU()))
    assert said == "'conv-small' takes (1, 28, 28) and has 10 classes, mine takes (1, 6, 6) and has 3"


def test_a_model_that_would_be_trained_no_epoch_cannot_be_named() -> None:
    with pytest.raises(UserError, match="epochs"):
        ModelName.parse("lenet+adversarial-pgd(epochs=0)").parts()


def test_of_ones_own_parameters_no_more_is_asked_than_their_defaults_say():
    @dataclass(frozen=True, kw_only=True)
    class Own(NoDefense):
        name = "own"
        shift: float = -0.5
        sizes: tuple[int, ...] = (1, 2)
        mask: Tensor | None = None

    assert Own(shift=-2.0, sizes=(3,), mask=torch.zeros(1)).shift == -2.0
    for wrong in (math.nan, "1", True):
        with pytest.raises(UserError, match="own needs shift to be a number, not"):
            Own(shift=wrong)


def test_a_model_whose_weights_are_absent_is_why_training_images_are_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RHOBUST_DATA", raising=False)
    said = (
        r"fc500-150-10\+l1-sparse has no weights, and to train it: data set 'mnist-train' needs --data-root"
    )
    with pytest.raises(UserError, match=said):
        load(ModelName.parse("fc500-150-10+l1-sparse+median"), folder=tmp_path)


def test_absent_weights_name_those_that_ship_with_other_parameters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trained anew for an hour, or asked for as it ships: its user should know of the second."""
    monkeypatch.delenv("RHOBUST_DATA", raising=False)
    said = (
        r"conv-small\+temperature has no weights \(there are those of conv-small\+temperature\(epochs=15\)\)"
    )
    with pytest.raises(UserError, match=said):
        load(ModelName.parse("conv-small+temperature"), folder=tmp_path)
