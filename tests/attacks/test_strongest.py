"""The worst case: closed forms on linear models, planted masks that it must see through, and its report."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional

from attacks import settle
from attacks.access import GradientAccess
from attacks.apgd import APGD
from attacks.base import AdversarialBatch
from attacks.chains import Course, Search
from attacks.noise import noisy
from attacks.pgd import PGD
from attacks.polish import Flips, cells, polish
from attacks.smoothed import SPREAD, Reach, Smoothed
from attacks.strongest import Ground, Strongest
from models.architecture import MODELS
from models.base import Batch, Classifier, frozen
from models.checkpoint import SHIPPED
from models.data import load_data
from models.discover import import_modules
from models.randomness import Randomness
from models.threat import ThreatModel
from tests.builders import WIDE, Counting, exact_distance, images, labelled, mlp, random_linear

EPS = {"linf": 0.15, "l2": 0.5, "l1": 1.0}


def attacked(model: Classifier, batch: Batch, threat: ThreatModel, **options) -> AdversarialBatch:
    return Strongest().run(model, batch, threat, Randomness(0), **options)


class Wrapped(nn.Module):
    """A network between two functions."""

    def __init__(self, network, before=lambda x: x, after=lambda z: z):
        super().__init__()
        self.network, self.before, self.after = network, before, after

    def forward(self, x):
        return self.after(self.network(self.before(x)))


class ZeroGradient(torch.autograd.Function):
    """Rounding to eighths with an explicit gradient of zero, which no interception sees."""

    @staticmethod
    def forward(ctx, x):
        return (x * 8).round() / 8

    @staticmethod
    def backward(ctx, gradient):
        return torch.zeros_like(gradient)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("classes", [2, pytest.param(3, marks=pytest.mark.slow), 10])
def test_on_linear_models_it_breaks_exactly_what_can_be_broken(norm, classes):
    model = random_linear(classes, 20, box=WIDE)
    batch = labelled(model, images(12, (20,)))
    distance = exact_distance(model, batch, norm)
    for i in range(12):
        for factor in (0.999, 1.03):
            threat = ThreatModel(norm, factor * float(distance[i]), WIDE)
            assert bool(attacked(model, batch[i : i + 1], threat).success) == (factor > 1)


class Gated(nn.Module):
    """Class 1 leads by 1.5 until the first d / 2 entries pass a gate at 0.2, which zeros do not feel."""

    def forward(self, x):
        gate = functional.relu(x[:, : x.shape[1] // 2] - 0.2).sum(1)
        return torch.stack([12 * gate - 0.05 * x[:, x.shape[1] // 2 :].sum(1), torch.full((len(x),), 1.5)], 1)


def test_it_sees_through_rectifiers_that_are_off():
    """At x = 0 the gradient knows only the entries that do harm: steepest ascent goes nowhere."""
    model = Classifier(Gated(), num_classes=2, name="gated")
    batch = Batch.of(torch.zeros(5, 40), torch.ones(5, dtype=torch.int64))
    for norm, eps in (("linf", 0.21), ("l2", 0.8), ("l1", 1.2)):
        threat = ThreatModel(norm, eps)
        assert not bool(PGD(restarts=1, loss="margin").run(model, batch, threat, Randomness(0)).success.any())
        result = attacked(model, batch, threat)
        assert bool(result.success.all())
        assert set(result.won_by) == {"smoothed"}


@pytest.mark.parametrize("scale", [1e-3, 1e3])
@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_scale_of_the_logits_hides_nothing(norm, scale):
    model = mlp(classes=5, hidden=32)
    batch, threat = labelled(model, images(60)), ThreatModel(norm, 0.6 * EPS[norm])
    scaled = Classifier(Wrapped(model.network, after=lambda z: scale * z + 3.0), num_classes=5)
    plain, other = attacked(model, batch, threat).success, attacked(scaled, batch, threat).success
    assert 0 < int(plain.sum()) < 60
    assert int((plain != other).sum()) <= 1


def test_scale_of_the_inputs_changes_nothing_but_the_unit():
    model = mlp(classes=5, hidden=32)
    batch = labelled(model, images(50))
    wide = Classifier(Wrapped(model.network, before=lambda x: x / 4 + 0.5), num_classes=5, box=WIDE)
    wide.box = type(WIDE)(-2.0, 2.0)
    moved = Batch.of(4 * (batch.x - 0.5), batch.y)
    for norm, factor in (("linf", 4), ("l2", 4), ("l1", 4)):
        plain = attacked(model, batch, ThreatModel(norm, 0.1 * EPS[norm] / 0.15)).success
        other = attacked(wide, moved, ThreatModel(norm, factor * 0.1 * EPS[norm] / 0.15, wide.box)).success
        assert int((plain != other).sum()) <= 1


class Coarse(torch.autograd.Function):
    """Rounds to quarters and says that its derivative is zero."""

    @staticmethod
    def forward(ctx, x):
        return torch.round(x * 4) / 4

    @staticmethod
    def backward(ctx, gradient):
        return torch.zeros_like(gradient)


class AnswersThroughNumpy(nn.Module):
    """Hands out what the network answers as numbers from elsewhere."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        return torch.from_numpy(self.network(torch.round(x * 8).detach() / 8).detach().numpy().copy())


class ThroughNumpy(nn.Module):
    """Computes a network of linear layers and rectifiers outside of torch."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        z = np.round(8 * x.detach().numpy()) / 8
        z = z.reshape(len(z), -1)
        for layer in self.network[1:]:
            if isinstance(layer, nn.Linear):
                z = z @ layer.weight.detach().numpy().T + layer.bias.detach().numpy()
            else:
                z = np.maximum(z, 0)
        return torch.from_numpy(z.astype(np.float32))


class Coarsened(nn.Module):
    """Calls the custom function by its class, as most code does."""

    def forward(self, x):
        return Coarse.apply(x)


def unwatched(x):
    with torch.no_grad():
        return x * 1.0


def through_numpy(x):
    return torch.from_numpy(np.round(x.detach().numpy() * 8) / 8)


def purified(x):
    """A step of descent inside the forward pass, on a leaf of its own."""
    with torch.enable_grad():
        z = x.detach().clone().requires_grad_(True)
        (z - 0.5).square().sum().backward()
    return (z - 0.01 * z.grad).detach()


MASKS = {
    "rounded inputs": lambda x: torch.round(x * 8) / 8,
    "zero gradient": ZeroGradient.apply,
    "detached": lambda x: (x * 8).round().detach() / 8,
    "data": lambda x: x.data,
    "gradients off": unwatched,
    "numpy": through_numpy,
    "purified": purified,
}
# What hands out no gradient even to an attack that reads the code: random search alone is left.
DARK = {"numpy throughout"}


@pytest.mark.parametrize(
    "mask", [*MASKS, *DARK, "numpy answers", "rounded hidden layer", "custom hidden layer"]
)
def test_masks_are_seen_through(mask):
    """PGD finds next to nothing on these; what can be found is what it finds without the mask."""
    model = mlp(classes=4, inputs=48, hidden=32)
    first, second, third, last = model.network
    if mask in MASKS:
        network = Wrapped(model.network, before=MASKS[mask])
    elif mask in DARK:
        network = ThroughNumpy(model.network)
    elif mask == "numpy answers":
        network = AnswersThroughNumpy(model.network)
    elif mask == "rounded hidden layer":
        network = nn.Sequential(first, second, third, Wrapped(last, before=lambda x: torch.round(x * 4) / 4))
    else:
        network = nn.Sequential(first, second, third, Coarsened(), last)
    masked = Classifier(network, num_classes=4, name=mask)
    batch, threat = labelled(masked, images(40, (1, 6, 8))), ThreatModel("linf", 0.2)
    bare = PGD(loss="margin").run(model, batch, threat, Randomness(0)).success & (
        model.logits(batch.x).argmax(1) == batch.y
    )
    result = attacked(masked, batch, threat)
    assert int(result.success.sum()) >= 0.9 * int(bare.sum())
    assert int(bare.sum()) > 20
    gradients = {"gradient", "smoothed", "near"} & set(result.wins)
    assert bool(gradients) == (mask not in DARK)
    assert ("square" in result.wins) == (mask in DARK)


def test_what_withholds_gradients_changes_no_value_and_leaves_no_trace():
    """The logits under attack are the network's own, and torch is as it was afterwards."""
    model, apply = mlp(classes=4, inputs=48, hidden=32), vars(torch.autograd.Function)["apply"]
    for before in MASKS.values():
        masked = Classifier(Wrapped(model.network, before=before), num_classes=4)
        view, x = GradientAccess(masked, 3), images(3, (1, 6, 8))
        logits, _ = view.smoothed_gradient(x, torch.arange(3), lambda z: z[:, 0], [torch.ones(3, 32)], 1.0)
        torch.testing.assert_close(logits, masked.logits(x))
        assert vars(torch.autograd.Function)["apply"] is apply
        assert not x.requires_grad


def test_an_honest_custom_function_keeps_its_own_derivative():
    class Doubled(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return 2 * x

        @staticmethod
        def backward(ctx, gradient):
            return 2 * gradient

    class Rows(nn.Module):
        def forward(self, x):
            return Doubled.apply(x)

    x = torch.rand(3, 4)
    for width in (1.0, 0.0):
        view = GradientAccess(Classifier(Rows(), num_classes=4), 3)
        _, gradient = view.smoothed_gradient(x, torch.arange(3), lambda z: z[:, 0], [torch.ones(3, 4)], width)
        torch.testing.assert_close(gradient, torch.tensor([2.0, 0, 0, 0]).expand(3, 4))


def test_a_declared_surrogate_gives_the_gradient_and_the_network_the_verdict():
    model = mlp(hidden=32)
    steps = Wrapped(model.network, before=lambda x: ZeroGradient.apply(x))
    counted = Counting(steps)
    declared = Classifier(counted, num_classes=4, surrogate=model.network)
    batch, threat = labelled(declared, images(40)), ThreatModel("linf", 0.2)
    counted.forward_samples = 0
    result = attacked(declared, batch, threat)
    blind = PGD(loss="margin").run(Classifier(steps, num_classes=4), batch, threat, Randomness(0))
    assert int(result.success.sum()) > int(blind.success.sum()) + 5
    assert "square" not in result.wins
    # Every look at the surrogate is followed by one at the network; measuring costs the surrogate alone.
    assert counted.forward_samples < int(result.forward.sum()) + 2 * len(batch)
    wrong = steps(result.x_adv).argmax(1) != batch.y
    assert torch.equal(result.success, wrong)


class Noisy(nn.Module):
    """Adds noise to the logits of a network, anew at each call."""

    def __init__(self, network, deviation):
        super().__init__()
        self.network, self.deviation = network, deviation

    def forward(self, x):
        z = self.network(x)
        return z + self.deviation * torch.randn(z.shape)


def test_random_models_are_averaged_and_judged_on_fresh_randomness():
    model = mlp(hidden=32)
    noisy_model = Classifier(Noisy(model.network, 0.3), num_classes=4, stochastic=True)
    batch, threat = labelled(model, images(40)), ThreatModel("linf", 0.1)
    torch.manual_seed(0)
    state = torch.get_rng_state()
    result = attacked(noisy_model, batch, threat)
    plain = attacked(model, batch, threat)
    near = plain.margin.abs() < 0.5
    assert torch.equal(result.success[~near & result.clean], plain.success[~near & result.clean])
    with torch.random.fork_rng():
        torch.set_rng_state(state)
        again = attacked(noisy_model, batch, threat)
    assert int((again.success != result.success).sum()) <= 4


def test_a_coin_flip_is_no_success():
    """Between two classes in a dead heat one draw would call half of the samples broken."""
    tie = Classifier(
        Noisy(nn.Sequential(nn.Flatten(), nn.Linear(12, 2)), 1e-3), num_classes=2, stochastic=True
    )
    with torch.no_grad():
        tie.network.network[1].weight.zero_()
        tie.network.network[1].bias.copy_(torch.tensor([3e-3, 0.0]))
    batch = Batch.of(images(200), torch.zeros(200, dtype=torch.int64))
    result = PGD(steps=5, restarts=3).run(tie, batch, ThreatModel("linf", 0.1), Randomness(0))
    assert float(result.success.float().mean()) < 0.02


class Folded(nn.Module):
    """Activations whose first dimension is twice the batch, and one more of them on every other call."""

    def __init__(self, network):
        super().__init__()
        self.network, self.calls = network, 0

    def forward(self, x):
        self.calls += 1
        folded = functional.relu(x.reshape(2 * len(x), -1)).reshape(x.shape)
        return self.network(functional.relu(folded) if self.calls % 2 else folded)


def test_networks_of_another_make_are_attacked_all_the_same():
    model = mlp(hidden=32)
    folded = Classifier(Folded(model.network), num_classes=4)
    batch, threat = labelled(model, images(40)), ThreatModel("linf", 0.1)
    plain, other = attacked(model, batch, threat).success, attacked(folded, batch, threat).success
    assert int(plain.sum()) > 5
    assert int((plain != other).sum()) <= 1


def test_gradients_that_are_no_numbers_do_not_stop_it():
    """The root's slope is infinite at zero, and NaN behind a zero."""
    model = mlp(hidden=32)
    rooted = Classifier(Wrapped(model.network, before=lambda x: (x**2).sqrt()), num_classes=4)
    batch = labelled(model, images(40) * (images(40, seed=8) > 0.3))
    threat = ThreatModel("linf", 0.2)
    plain, other = attacked(model, batch, threat).success, attacked(rooted, batch, threat).success
    assert int(plain.sum()) > 5
    assert int((plain != other).sum()) <= 1


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_no_weaker_than_long_runs_of_others(norm):
    model = mlp(classes=6, inputs=48, hidden=64)
    batch, threat = labelled(model, images(80, (1, 6, 8))), ThreatModel(norm, 0.25 * EPS[norm])
    own = attacked(model, batch, threat)
    assert 5 < int(own.success.sum()) < 75
    for other in (
        APGD(steps=60, restarts=2, loss="margin"),
        APGD(steps=40, loss="targeted"),
        PGD(steps=100, restarts=3, relative_step=0.05),
    ):
        found = other.run(model, batch, threat, Randomness(1)).success
        assert int((found & ~own.success).sum()) == 0


def test_the_report_names_a_rung_for_every_broken_sample():
    model = mlp(classes=6, inputs=48, hidden=64)
    batch = labelled(model, images(60, (1, 6, 8)))
    batch = Batch(batch.x, torch.where(batch.index < 5, (batch.y + 1) % 6, batch.y), batch.index)
    result = attacked(model, batch, ThreatModel("linf", 0.03), batch_size=16)
    assert [bool(name) for name in result.won_by] == (result.success & result.clean).tolist()
    assert sum(result.wins.values()) == int((result.success & result.clean).sum())
    assert result.wins["gradient"] > 10


@pytest.mark.parametrize("norm", ["linf", "l2", pytest.param("l1", marks=pytest.mark.slow)])
def test_batch_size_and_order_change_nothing(norm):
    model = mlp(classes=6, inputs=48, hidden=64)
    batch, threat = labelled(model, images(64, (1, 6, 8))), ThreatModel(norm, 0.4 * EPS[norm])
    whole = attacked(model, batch, threat, batch_size=64)
    turned = attacked(model, batch[torch.arange(63, -1, -1)], threat)
    assert torch.equal(whole.success, turned.success.flip(0))
    for size in (1, 7):
        assert torch.equal(whole.success, attacked(model, batch, threat, batch_size=size).success)


@pytest.mark.parametrize(
    ("network", "norm", "eps", "least"),
    [("conv-small+adversarial-pgd", "l2", 2.0, 26), ("conv-small+adversarial-pgd", "l1", 12.0, 26)],
)
def test_thresholds_of_an_adversarially_trained_network_fall(network, norm, eps, least):
    """40 steps of PGD break a few of these 30 images: the network hides behind gates, and is not robust."""
    import_modules("models")
    module = MODELS[network.split("+")[0]].build()
    module.load_state_dict(load_file(SHIPPED / f"{network}.safetensors"))
    model, data = Classifier(module, num_classes=10), load_data("mnist5k")
    batch, threat = data.batch(data.panel(30)), ThreatModel(norm, eps)
    assert int(attacked(model, batch, threat).success.sum()) >= least
    assert int(PGD(restarts=1).run(model, batch, threat, Randomness(0)).success.sum()) < 12


@pytest.mark.parametrize(
    "relu", [nn.ReLU(), nn.ReLU(inplace=True), functional.relu, torch.relu, lambda x: x.relu()]
)
def test_windows_of_a_rectifier(relu):
    """The slope of relu averaged over [s - h, s + h] is (s + h) / 2h between -h and h; values stay."""
    s = torch.tensor([[-1.5, -0.5, 0.0, 0.5, 1.5]], requires_grad=True)
    with Smoothed([torch.ones(1, 5)], 1.0):
        out = relu(s * 1.0)
    assert torch.equal(out, functional.relu(s))
    (slope,) = torch.autograd.grad(out.sum(), s)
    torch.testing.assert_close(slope, torch.tensor([[0.0, 0.25, 0.5, 0.75, 1.0]]))
    with Smoothed([torch.ones(1, 5)], 0.0):
        (slope,) = torch.autograd.grad(relu(s * 1.0).sum(), s)
    torch.testing.assert_close(slope, torch.tensor([[0.0, 0.0, 0.0, 1.0, 1.0]]))


def test_windows_of_a_rounding():
    s = torch.tensor([[0.2, 0.45]], requires_grad=True)
    with Smoothed([torch.full((1, 2), 0.1)], 1.0):
        (slope,) = torch.autograd.grad(torch.round(s).sum(), s)
    torch.testing.assert_close(slope, torch.tensor([[0.0, 5.0]]))
    with Smoothed(None, 0.0):
        (slope,) = torch.autograd.grad(torch.round(s).sum(), s)
    torch.testing.assert_close(slope, torch.ones(1, 2))


def test_reach_is_measured_per_sample_and_call():
    layer = mlp().network
    versions = images(15)
    with torch.no_grad(), Reach(5, 3) as measured:
        layer(versions)
    (reach,) = measured.reaches
    before = layer[1](versions.flatten(1)).unflatten(0, (5, 3))
    torch.testing.assert_close(reach, SPREAD * before.std(0, correction=0), rtol=1e-4, atol=1e-5)


def test_noise_is_legal_in_linf_and_the_same_in_any_batch():
    batch, threat = labelled(mlp(), images(6)), ThreatModel("linf", 0.1)
    versions = noisy(batch, threat, Randomness(0)).unflatten(0, (9, 6))
    assert torch.equal(versions[0], batch.x)
    assert all(bool(threat.contains(batch.x, version).all()) for version in versions)
    assert torch.equal(versions[:, 2:3].flatten(0, 1), noisy(batch[2:3], threat, Randomness(0)))


def search_on(model: Classifier, batch: Batch, threat: ThreatModel) -> Search:
    return Search(GradientAccess(model, len(batch)), batch, threat, 1)


def test_offers_keep_the_best_chain_of_each_sample():
    model = mlp()
    batch = labelled(model, images(3))
    search = search_on(model, batch, ThreatModel("linf", 0.1))
    points = images(5, seed=9)
    owner, margins = torch.tensor([2, 0, 2, 0, 2]), torch.tensor([0.3, 0.2, 0.1, 0.5, -0.2])
    hit = torch.tensor([False, False, False, True, False])
    search.offer(owner, points, margins, hit, "stage")
    assert search.broken.tolist() == [True, False, False]
    assert torch.equal(search.point[0], points[3])
    assert torch.equal(search.point[2], points[4])
    assert search.model.won_by() == ["stage", "", ""]
    search.offer(
        torch.tensor([0, 1]), points[:2], torch.tensor([-9.0, 0.4]), torch.tensor([True, False]), "b"
    )
    assert torch.equal(search.point[0], points[3]), "a broken sample is left alone"


def test_a_broken_samples_other_chains_stop():
    model = random_linear(3, 12)
    batch = labelled(model, images(1, (12,)))
    search = search_on(model, batch, ThreatModel("linf", 1.0))
    owner = torch.zeros(4, dtype=torch.int64)
    search.climb(owner, batch.x.expand(4, -1), torch.full((4,), -1), Course(50), "all")
    assert bool(search.broken)
    assert int(search.model.backward) < 40


def test_blocks_cover_the_image_and_polish_finds_a_flip_that_gradients_hide():
    masks = cells(28, 28)
    assert masks.shape == (196 + 49 + 16, 28, 28)
    assert bool((masks[:196].sum(0) == 1).all())
    assert cells(1, 12).shape == (36, 1, 12)

    def hidden(x):
        return torch.stack(
            [1.0 * (x[:, 0, 4:6, 4:6] > 0.55).flatten(1).all(1), torch.full((len(x),), 0.5)], 1
        )

    model = Classifier(Wrapped(nn.Identity(), after=hidden), num_classes=2)
    batch = Batch.of(torch.full((1, 1, 28, 28), 0.5), torch.ones(1, dtype=torch.int64))
    search = search_on(model, batch, ThreatModel("linf", 0.1))
    with frozen(model):
        search.margin = search.margin.clone().fill_(0.5)
        polish(search, torch.tensor([0]), "blocks")
    assert bool(search.broken)
    changed = (search.point != batch.x)[0, 0]
    assert int(changed.sum()) in (4, 16, 49)
    assert int(search.model.forward) >= Flips(search, torch.tensor([0])).count


def test_rivals_are_those_that_noise_brings_nearest():
    """A class that is far at x but near at some corner of the ball is aimed at."""
    weight = torch.zeros(5, 6)
    weight[1:4, 0] = -0.01
    weight[4] = -4.0
    model = random_linear(5, 6)
    with torch.no_grad():
        model.network.weight.copy_(weight)
        model.network.bias.copy_(torch.tensor([3.0, 1.0, 1.0, 1.0, 8.0]))
    batch = labelled(model, torch.full((1, 6), 0.5))
    assert batch.y.tolist() == [0]
    search = search_on(model, batch, ThreatModel("linf", 0.4))
    ground = Ground.measured(search, torch.tensor([0]), Randomness(0))
    assert int(ground.goals[0, 0]) == 4


def test_near_misses_go_on_towards_what_ascents_came_closest_to():
    """Of nine rivals five were tried: the two with the smallest margins are taken, the untried never."""
    model = random_linear(12, 4)
    batch = labelled(model, torch.full((2, 4), 0.5))
    search = search_on(model, batch, ThreatModel("linf", 0.01))
    rows = torch.tensor([0, 1])
    ground = Ground.measured(search, rows, Randomness(0))
    assert ground.goals.shape == (2, 9)
    towards = ground.likeliest(rows, 2, 7)
    assert towards.tolist() == [[2, 3, 4, 5, 6]] * 2
    ground.aim(search, rows, batch.x, Course(steps=2), "near", towards)
    reached = ground.lowest[:, 2:7]
    assert bool(reached.isfinite().all())
    assert not bool(ground.lowest[:, [0, 1, 7, 8]].isfinite().any())
    for row in range(2):
        first, second = ground.closest(rows)[row].tolist()
        others = [place for place in range(2, 7) if place not in (first, second)]
        assert ground.lowest[row, first] <= ground.lowest[row, second]
        assert all(ground.lowest[row, second] <= ground.lowest[row, place] for place in others)


class Valley(nn.Module):
    """Errs where sum w_i |x_i - bottom_i| < height, and there alone: no ascent sees it before it is in it."""

    def __init__(self, bottom: torch.Tensor, height: float) -> None:
        super().__init__()
        self.bottom, self.height = bottom.flatten(), height
        self.weight = torch.linspace(1, 2, bottom.numel())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gap = (self.weight * (x.flatten(1) - self.bottom).abs()).sum(1) - self.height
        return torch.stack([gap, -gap], 1)


@pytest.mark.parametrize(("norm", "inputs", "moved", "eps"), [("l2", 30, 9, 0.5), ("l1", 6, 2, 1.0)])
def test_near_misses_settle_where_ascents_swing(norm, inputs, moved, eps, monkeypatch):
    """The bottom lies in ball and box; the steps that an ascent ends with are wider than the valley."""
    settled, swung, threat = 0, 0, ThreatModel(norm, eps)
    for seed in range(10):
        x = torch.full((1, 1, 1, inputs), 0.5)
        stream = torch.Generator().manual_seed(seed)
        move = torch.zeros(inputs)
        places = torch.randperm(inputs, generator=stream)[:moved]
        move[places] = torch.rand(moved, generator=stream) - 0.5
        length = move.norm(p=2 if norm == "l2" else 1)
        bottom = threat.box.clamp(x + (0.8 * eps * move / length).reshape(x.shape))
        model, batch = Classifier(Valley(bottom, 0.01), num_classes=2), Batch.of(x, torch.zeros(1).long())
        result = attacked(model, batch, threat)
        assert bool(threat.contains(x, result.x_adv).all())
        settled += int(result.success.sum())
        with monkeypatch.context() as patch:
            patch.setattr(settle, "COURSES", ())
            swung += int(attacked(model, batch, threat).success.sum())
    assert settled >= 9
    assert swung <= 4


@pytest.mark.parametrize("answer", [torch.nan, torch.inf, -torch.inf])
def test_what_answers_with_no_numbers_where_it_sees_noise_is_broken_there(answer: float) -> None:
    """The judge counts no number as an error: the search used to look on, and left more than pgd."""
    model = mlp()
    batch = labelled(model, images(20))

    class Guard(nn.Module):
        def forward(self, x):
            away = (x.flatten(1)[:, None] - batch.x.flatten(1)[None]).abs().amax(2).amin(1)
            return torch.where((away > 1e-4)[:, None], answer, model.network(x))

    guard = Classifier(Guard(), num_classes=model.num_classes)
    assert bool(attacked(guard, batch, ThreatModel("linf", 0.01)).success.all())


def test_what_noise_alone_breaks_is_broken() -> None:
    """A network that gives itself up on rough inputs: no gradient leads there."""

    class Rough(nn.Module):
        def forward(self, x):
            rough = (x.flatten(1).diff(dim=1).abs().mean(1) > 0.05)[:, None].detach()
            return torch.where(rough, 0.0, 1.0) * torch.tensor([1.0, -1.0, 0.0]) - 0.5 * x.flatten(1)[:, :3]

    model, x = Classifier(Rough(), num_classes=3), torch.full((4, 1, 8, 8), 0.5)
    result = attacked(model, Batch.of(x, torch.zeros(4, dtype=torch.int64)), ThreatModel("linf", 0.1))
    assert bool(result.success.all())
    assert set(result.won_by) == {"noise"}
