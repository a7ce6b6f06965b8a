"""The training loop and the defences' losses: seeded, resumable, and equal to their formulas."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import islice
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from defenses import distillation, ensemble_adversarial, vae_augmentation
from defenses.adversarial_fgsm import AdversarialFGSM
from defenses.adversarial_pgd import AdversarialPGD
from defenses.base import DEFENSES, Defense
from defenses.interval import IntervalTraining, linear_rise
from defenses.none import NoDefense
from defenses.polytope import PolytopeTraining
from defenses.small_boxes import SmallBoxes
from defenses.training import accuracy, new_network, train
from models.architecture import MODELS
from models.base import Batch
from models.data import Dataset
from models.discover import import_modules
from models.errors import UserError
from models.randomness import Randomness
from models.recipe import Recipe

import_modules("models")
import_modules("defenses")

ROOT = Path(__file__).resolve().parent.parent.parent
RECIPE = Recipe(epochs=2, batch_size=32, learning_rate=1e-2)
STEPS = 2 * 7
# Registered defences as they are, but for those whose defaults would not do anything on the toy.
DEFENCES: dict[str, Defense] = {name: DEFENSES[name]() for name in DEFENSES} | {
    "adversarial-fgsm": AdversarialFGSM(eps=0.1),
    "adversarial-pgd": AdversarialPGD(eps=0.1, steps=2),
    "polytope": PolytopeTraining(eps=0.02, warm=0.5),
    "interval": IntervalTraining(eps=0.02),
    "small-boxes": SmallBoxes(eps=0.02),
}


@pytest.fixture(autouse=True)
def static_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks that take part in training others judge digits: here one for the toy stands in for each."""
    for user in (distillation, ensemble_adversarial, vae_augmentation):
        monkeypatch.setattr(user, "static_network", lambda name, device: network(len(name)))


def toy(n: int = 200) -> Dataset:
    """n images of 6x6 whose brighter half tells their class."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(n) % 3
    pixels = torch.randint(0, 120, (n, 1, 6, 6), generator=generator)
    for label in range(3):
        pixels[labels == label, :, 2 * label : 2 * label + 2] += 120
    return Dataset("toy", pixels.to(torch.uint8), labels, 3)


def network(seed: int = 0) -> nn.Module:
    """A small convolutional network for `toy`, with weights of its own seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 4, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(36, 3)
        )


def trained(
    defense: Defense, *, seed: int = 0, resume: Path | None = None, stop: int | None = None
) -> nn.Module:
    net = network()
    steps = list(islice(train(net, defense, RECIPE, toy(), seed=seed, resume=resume), stop))
    if stop is None:
        assert not net.training
    assert all(torch.isfinite(torch.tensor(step.loss)) for step in steps)
    return net


def number(value: Tensor) -> float:
    return float(value.detach())


def same(one: nn.Module, other: nn.Module) -> bool:
    states = one.state_dict(), other.state_dict()
    return all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.mark.parametrize("name", DEFENCES)
def test_the_same_seed_gives_the_same_weights_bit_for_bit(name: str) -> None:
    one = trained(DEFENCES[name])
    torch.manual_seed(12345)
    assert same(one, trained(DEFENCES[name]))
    assert not same(one, trained(DEFENCES[name], seed=1))
    assert not same(one, network())


@pytest.mark.parametrize("name", DEFENCES)
@pytest.mark.parametrize("stop", [3, 7, 10])
def test_an_interrupted_training_ends_in_the_same_weights(name: str, stop: int, tmp_path: Path) -> None:
    """Stopped within the first epoch, exactly after it, and within the second."""
    place = tmp_path / "toy.checkpoint"
    trained(DEFENCES[name], resume=place, stop=stop)
    net = network()
    steps = list(train(net, DEFENCES[name], RECIPE, toy(), seed=0, resume=place))
    assert same(net, trained(DEFENCES[name]))
    # After 7 steps the generator is suspended before it stores the epoch, as a kill there would find it.
    assert len(steps) == (STEPS if stop <= 7 else 7)
    assert steps[-1].step == steps[-1].steps == STEPS


def test_a_checkpoint_of_another_training_is_not_continued(tmp_path: Path) -> None:
    place = tmp_path / "toy.checkpoint"
    trained(DEFENCES["none"], resume=place, stop=10)
    net = network()
    steps = list(train(net, DEFENCES["none"], RECIPE, toy(), seed=1, resume=place))
    assert len(steps) == STEPS
    assert same(net, trained(DEFENCES["none"], seed=1))


@pytest.mark.parametrize("content", [b"", b"garbage"])
def test_a_damaged_checkpoint_is_one_clear_line(content: bytes, tmp_path: Path) -> None:
    place = tmp_path / "toy.checkpoint"
    place.write_bytes(content)
    with pytest.raises(UserError, match="damaged: delete it") as refusal:
        trained(DEFENCES["none"], resume=place)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("name", DEFENCES)
def test_the_global_generator_is_untouched(name: str) -> None:
    torch.manual_seed(7)
    before = torch.get_rng_state()
    trained(DEFENCES[name])
    new_network(MODELS["conv-small"], 3)
    assert torch.equal(torch.get_rng_state(), before)


def test_initial_weights_depend_on_the_seed_alone() -> None:
    one = new_network(MODELS["conv-small"], 3)
    torch.manual_seed(99)
    assert same(one, new_network(MODELS["conv-small"], 3))
    assert not same(one, new_network(MODELS["conv-small"], 4))


def test_training_learns_and_every_image_is_seen_once_an_epoch() -> None:
    class Watching(NoDefense):
        """Notes which images each step is given."""

        def loss(self, network: nn.Module, batch: Batch, progress: float, randomness: Randomness) -> Tensor:
            seen.append(batch.index)
            rates.append(progress)
            return super().loss(network, batch, progress, randomness)

    seen: list[Tensor] = []
    rates: list[float] = []
    net = trained(Watching())
    first, second = torch.cat(seen[:7]), torch.cat(seen[7:])
    assert torch.equal(first.sort().values, torch.arange(200))
    assert torch.equal(second.sort().values, torch.arange(200))
    assert not torch.equal(first, second)
    assert rates == [step / STEPS for step in range(STEPS)]
    assert accuracy(net, toy()) > 0.95 > accuracy(network(), toy())


def test_the_learning_rate_rises_and_falls() -> None:
    recipe = Recipe(learning_rate=0.5, warmup=0.2)
    assert [recipe.rate(progress) for progress in (0, 0.1, 0.2, 0.6)] == pytest.approx([0, 0.25, 0.5, 0.25])
    assert recipe.rate(1.0) == pytest.approx(0, abs=1e-12)


def test_the_learning_rate_drops_to_a_fifth() -> None:
    recipe = Recipe(learning_rate=0.5, warmup=0.2, drops=(0.6, 0.8))
    rates = [recipe.rate(progress) for progress in (0.1, 0.2, 0.59, 0.6, 0.8, 1.0)]
    assert rates == pytest.approx([0.25, 0.5, 0.5, 0.1, 0.02, 0.02])


def test_the_weights_kept_are_the_running_mean_of_the_trained_ones(tmp_path: Path) -> None:
    """Replayed from the weights seen after every step; and the mean survives an interruption."""
    net, recipe = network(), RECIPE.model_copy(update={"average": 0.75})
    mean: list[Tensor] = []
    for _ in train(net, NoDefense(), recipe, toy(), seed=0):
        now = [parameter.detach().clone() for parameter in net.parameters()]
        mean = [0.75 * old + 0.25 * new for old, new in zip(mean, now, strict=True)] if mean else now
    for kept, expected in zip(net.parameters(), mean, strict=True):
        torch.testing.assert_close(kept, expected)
    resumed, place = network(), tmp_path / "toy.checkpoint"
    list(islice(train(network(), NoDefense(), recipe, toy(), seed=0, resume=place), 10))
    list(train(resumed, NoDefense(), recipe, toy(), seed=0, resume=place))
    assert same(net, resumed)


def test_seconds_count_what_was_spent_before_an_interruption(tmp_path: Path) -> None:
    place = tmp_path / "toy.checkpoint"
    list(islice(train(network(), NoDefense(), RECIPE, toy(), seed=0, resume=place), 10))
    state = torch.load(place, weights_only=True)
    torch.save(state | {"seconds": 1000.0}, place)
    last = list(train(network(), NoDefense(), RECIPE, toy(), seed=0, resume=place))[-1]
    assert 1000 < last.seconds < 1100


def batch(n: int = 12, dtype: torch.dtype = torch.float32) -> Batch:
    some = toy().batch(torch.arange(n))
    return Batch(some.x.to(dtype), some.y, some.index)


def test_pgd_training_without_a_radius_is_plain_training() -> None:
    net, some = network(), batch()
    plain = number(functional.cross_entropy(net(some.x), some.y))
    for progress in (0.0, 0.5, 1.0):
        assert number(AdversarialPGD(eps=0.0).loss(net, some, progress, Randomness(0))) == plain
    # At the start of the ramp the radius is 0 whatever eps is.
    assert number(AdversarialPGD(eps=0.3).loss(net, some, 0.0, Randomness(0))) == plain


def test_averaged_pgd_training_keeps_the_mean_of_weights_whose_steps_shrink() -> None:
    plain, averaged = (AdversarialPGD(averaged=flag).recipe(MODELS["lenet"]) for flag in (False, True))
    assert (plain.average, plain.drops) == (0.0, ())
    assert averaged.average == 0.999
    assert averaged.rate(0.95) == pytest.approx(1e-3 / 25)
    same = {"average", "drops"}
    assert averaged.model_dump(exclude=same) == plain.model_dump(exclude=same)


def test_pgd_training_is_harder_than_plain_training_and_within_the_worst_case() -> None:
    """On a linear network the inner maximum of two classes is the dual-norm closed form."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(36, 2))
    some = batch()
    some = Batch(some.x * 0.2 + 0.4, some.y % 2, some.index)
    weight = net[1].weight.detach()
    z = net(some.x).detach()
    sign = torch.where(some.y == 0, 1.0, -1.0)
    margin = sign * (z[:, 0] - z[:, 1]) - 0.1 * (weight[0] - weight[1]).abs().sum()
    worst = float(functional.softplus(-margin).mean())
    found = number(AdversarialPGD(eps=0.1, steps=40, step_size=0.02).loss(net, some, 1.0, Randomness(0)))
    assert found == pytest.approx(worst, rel=1e-3)
    assert found <= worst * (1 + 1e-5)
    assert found > float(functional.cross_entropy(z, some.y)) * 1.1


def fgsm_by_hand(net: nn.Sequential, some: Batch, against: Tensor, eps: float, alpha: float) -> float:
    """The loss on a linear network, whose gradient in x is W^T (softmax(z) - e_against)."""
    layer = net[1]
    z = net(some.x).detach()
    residual = z.softmax(1) - functional.one_hot(against, 3)
    step = eps * (residual @ layer.weight.detach()).sign().reshape(some.x.shape)
    moved = (some.x + step).clamp(0, 1)
    clean, adversarial = (functional.cross_entropy(value, some.y) for value in (z, net(moved)))
    return number(alpha * clean + (1 - alpha) * adversarial)


def test_fgsm_training_steps_against_the_predicted_label() -> None:
    """The labels here are wrong on purpose, so that a leak of the true one shows."""
    net, some = nn.Sequential(nn.Flatten(), nn.Linear(36, 3)), batch()
    predicted = net(some.x).argmax(1)
    some = Batch(some.x, (predicted + 1) % 3, some.index)
    for alpha in (0.0, 0.5, 0.8):
        loss = number(AdversarialFGSM(eps=0.1, alpha=alpha).loss(net, some, 0.5, Randomness(0)))
        assert loss == pytest.approx(fgsm_by_hand(net, some, predicted, 0.1, alpha), rel=1e-5)
        assert loss != pytest.approx(fgsm_by_hand(net, some, some.y, 0.1, alpha), rel=1e-2)
    plain = number(functional.cross_entropy(net(some.x), some.y))
    assert number(AdversarialFGSM(eps=0.1, alpha=1.0).loss(net, some, 0.5, Randomness(0))) == pytest.approx(
        plain
    )


@pytest.mark.parametrize("progress", [0.3, 0.6, 0.95])
def test_the_polytope_loss_is_differentiated_correctly(progress: float) -> None:
    """Central differences in float64, through interval bounds on the ramp, at full radius, and the dual."""
    net, some = network().double(), batch(dtype=torch.float64)
    defense = PolytopeTraining(eps=0.03)
    assert (progress < defense.warm) == (progress < 0.9)

    def loss() -> Tensor:
        return defense.loss(net, some, progress, Randomness(0))

    gradients = torch.autograd.grad(loss(), list(net.parameters()))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter, gradient in zip(net.parameters(), gradients, strict=True):
            direction = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            ends = []
            for step in (1e-6, -2e-6):
                parameter += step * direction
                ends.append(number(loss()))
            parameter += 1e-6 * direction
            slope = (ends[0] - ends[1]) / 2e-6
            assert slope == pytest.approx(float((gradient * direction).sum()), rel=1e-4, abs=1e-7)


@pytest.mark.parametrize("progress", [0.6, 0.95])
def test_the_polytope_loss_bounds_every_adversary(progress: float) -> None:
    net, some = network(), batch()
    eps = 0.03
    bound = number(
        PolytopeTraining(eps=eps, overshoot=1.0, clean_weight=0.0).loss(net, some, progress, Randomness(0))
    )
    generator = torch.Generator().manual_seed(0)
    worst = 0.0
    for _ in range(200):
        corner = torch.where(torch.rand(some.x.shape, generator=generator) < 0.5, -eps, eps)
        worst = max(worst, number(functional.cross_entropy(net((some.x + corner).clamp(0, 1)), some.y)))
    for steps in (1, 20):
        found = AdversarialPGD(eps=eps, steps=steps, step_size=eps / 4).loss(net, some, 1.0, Randomness(1))
        worst = max(worst, number(found))
    clean = number(functional.cross_entropy(net(some.x), some.y))
    assert clean < worst <= bound * (1 + 1e-5)


def test_the_interval_loss_bounds_every_corner_and_is_clean_before_the_ramp() -> None:
    net, some, eps = network(), batch(), 0.03
    defense = IntervalTraining(eps=eps, overshoot=1.0)
    bound = number(defense.loss(net, some, 1.0, Randomness(0)))
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        corner = torch.where(torch.rand(some.x.shape, generator=generator) < 0.5, -eps, eps)
        assert number(functional.cross_entropy(net((some.x + corner).clamp(0, 1)), some.y)) <= bound
    clean = number(functional.cross_entropy(net(some.x), some.y))
    assert number(defense.loss(net, some, 0.0, Randomness(0))) == pytest.approx(clean, rel=1e-6)


def test_the_interval_radius_rises_on_a_line_between_its_ends() -> None:
    rises = [linear_rise(place, 0.1, 0.6) for place in (0.0, 0.1, 0.35, 0.6, 1.0)]
    assert rises == pytest.approx([0, 0, 0.5, 1, 1])
    assert [linear_rise(place, 0.5, 0.5) for place in (0.4, 0.5)] == [0, 1]


def test_the_polytope_loss_without_a_radius_is_plain_training() -> None:
    net, some = network(), batch()
    plain = number(functional.cross_entropy(net(some.x), some.y))
    for progress in (0.0, 0.6, 0.95):
        loss = number(PolytopeTraining(eps=0.0).loss(net, some, progress, Randomness(0)))
        assert loss == pytest.approx(plain, rel=1e-5)


WAITING = """
import sys, time
from pathlib import Path
import torch
from torch import nn
from defenses import zoo
from models.architecture import MODELS, Architecture
from models.data import Dataset
from models.recipe import Recipe

folder = Path(sys.argv[1])
data = Dataset("toy", torch.arange(64, dtype=torch.uint8).reshape(16, 1, 2, 2), torch.arange(16) % 2, 2)
build = lambda: nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
MODELS.add("toy", Architecture("toy", build, (1, 2, 2), 2, "-", Recipe(epochs=1, batch_size=8)))
zoo.training_data = lambda *_: data
zoo.load_data = lambda *_: data
train = zoo.train

def slow(*arguments, **named):
    with open(folder / "trainings", "a") as file:
        file.write("once\\n")
    time.sleep(1.0)
    yield from train(*arguments, **named)

zoo.train = slow
(folder / f"waiting-{sys.argv[2]}").touch()
while len(list(folder.glob("waiting-*"))) < 2:
    time.sleep(0.01)
model = zoo.load(zoo.ModelName("toy"), folder=folder / "weights")
print(torch.cat([value.flatten() for value in model.state_dict().values()]).tolist())
"""


@pytest.mark.slow
def test_absent_weights_are_trained_once_by_two_processes_that_want_them(tmp_path: Path) -> None:
    both = [
        subprocess.Popen(
            [sys.executable, "-c", WAITING, str(tmp_path), str(number)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]
    shown = [process.communicate(timeout=180) for process in both]
    assert [process.returncode for process in both] == [0, 0], shown
    assert (tmp_path / "trainings").read_text() == "once\n"
    assert json.loads(shown[0][0]) == json.loads(shown[1][0])
