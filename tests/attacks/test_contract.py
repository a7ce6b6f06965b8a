"""The contract of every registered attack, and liars that the base class must see through."""

from __future__ import annotations

from dataclasses import dataclass, fields

import pytest
import torch
from torch import nn

import attacks
from attacks.access import GradientAccess
from attacks.apgd import APGD
from attacks.base import ATTACKS, Attack
from attacks.cascade import Cascade
from attacks.cw import CarliniWagner
from attacks.ensemble_transfer import EnsembleTransfer
from attacks.jsma import JSMA
from attacks.lbfgs import BoxConstrainedLBFGS
from attacks.pgd import PGD
from attacks.square import Square
from attacks.substitute import Substitute
from attacks.transfer import Transfer
from models.base import Batch, Classifier
from models.discover import import_modules
from models.errors import UserError
from models.norms import BALLS
from models.randomness import Randomness
from models.registry import Registry
from models.threat import ThreatModel
from models.threats import threat_named
from models.transformation import Transformation
from tests.builders import Counting, images, labelled, mlp, random_linear

import_modules(attacks.__name__)

EPS = {"linf": 0.15, "l2": 0.5, "l1": 1.0, "l0": 4}
EPS |= {"spatial": 3, "rotation": 90, "translation": 0.5, "corruption": 5, "patch": 0.4, "mask": 0.4}
EPS |= {"flow": 2, "lighting": 0.4, "brightness": 0.4, "contrast": 0.9}
NAMES = ATTACKS.names()
CASES = [(name, norm) for name in NAMES for norm in ATTACKS[name].norms]
LONG = ("minimum-norm", "lbfgs", "brendel-bethge", "boundary", "fab", "variance-tuned", "salt-and-pepper")
REPEATED = [pytest.param(*case, marks=pytest.mark.slow if case[0] in LONG else ()) for case in CASES]
MINIMAL = [(name, norm) for name, norm in CASES if ATTACKS[name].minimal]


def attack(name: str) -> Attack:
    """The attack `name` with small settings, and a source where it needs one."""
    if name == "substitute":
        return Substitute(seeds=20, rounds=2, queries=70, hidden=16, updates=20)
    if name == "transfer":
        return Transfer(source=mlp(seed=9))
    if name == "ensemble-transfer":
        return EnsembleTransfer(sources=(mlp(seed=9), mlp(seed=10)))
    if name == "pgd":
        return PGD(steps=10, restarts=2, relative_step=0.2)
    if name == "cw":
        return CarliniWagner(rounds=3, steps=20)
    if name == "jsma":
        return JSMA(gamma=1.0)
    if name == "apgd":
        return APGD(steps=15)
    if name == "square":
        return Square(queries=150)
    if name == "cascade":
        return Cascade(attacks=("fgsm", PGD(steps=10, restarts=1), APGD(steps=10)))
    if name == "lbfgs":
        return BoxConstrainedLBFGS(rounds=3, steps=10)
    small = {"nes": {"queries": 1020}, "spsa": {"queries": 1290}, "hopskipjump": {"queries": 1000}}
    small["geoda"] = {"queries": 500}
    small["pointwise"] = {"queries": 400}
    small["zoo"] = {"queries": 600}
    small["boundary"] = {"queries": 400}
    small["sign-opt"] = {"queries": 600}
    small["simba"] = {"queries": 150}
    small["rays"] = {"queries": 400}
    small["salt-and-pepper"] = {"queries": 150}
    small |= {"acg": {"steps": 15}, "genattack": {"queries": 200}, "pixle": {"queries": 150}}
    small["turtle"] = {"steps": 10, "draws": 2}
    small["rp2"] = {"steps": 10, "draws": 4}
    small |= {"sparse-rs": {"queries": 150}, "one-pixel": {"queries": 150, "population": 20}}
    return ATTACKS[name](**small.get(name, {"steps": 10, "draws": 4} if name == "eot" else {}))


def run(name, norm, batch, *, seed=0, batch_size=256, model=None, eps=True):
    threat = threat_named(norm, EPS[norm] if eps else None)
    model = model or mlp()
    aside = labelled(mlp(), images(40, seed=7))
    return attack(name).run(model, batch, threat, Randomness(seed), aside, batch_size=batch_size)


def test_number_of_cases():
    assert {"fgsm", "ifgsm", "pgd", "deepfool", "cw", "universal", "substitute", "transfer"} <= set(NAMES)
    assert len(CASES) >= 21
    assert len(MINIMAL) >= 4


@pytest.mark.parametrize(("name", "norm"), CASES)
def test_points_are_legal_and_the_verdict_is_the_models(name, norm):
    model = mlp()
    x = torch.cat([images(20), (images(20, seed=3) > 0.5).float()])
    batch = labelled(model, x)
    result = run(name, norm, batch, model=model)
    threat = threat_named(norm, EPS[norm])
    if isinstance(threat, Transformation):
        away = threat.size(result.move)
        assert torch.equal(threat.carry_out(batch.x, result.move, batch.index), result.x_adv)
        assert bool((away <= EPS[norm]).all())
    else:
        away = threat.distance(batch.x, result.x_adv)
        assert bool(threat.contains(batch.x, result.x_adv).all())
    assert bool(result.legal.all())
    wrong = model.logits(result.x_adv).argmax(1) != batch.y
    assert torch.equal(result.success, wrong)
    assert torch.equal(result.distance.isnan(), ~result.success)
    reached = result.success
    torch.testing.assert_close(result.distance[reached], away[reached])


@pytest.mark.parametrize(("name", "norm"), MINIMAL)
def test_minimal_attacks_need_no_radius(name, norm):
    batch = labelled(mlp(), images(20))
    result = run(name, norm, batch, eps=False)
    assert float(result.success.float().mean()) > 0.9
    assert bool(ThreatModel(norm, None).box.contains(result.x_adv).all())
    assert bool((result.distance[result.success] > 0).all())


@pytest.mark.parametrize("name", [name for name in NAMES if not ATTACKS[name].minimal])
def test_the_others_refuse_to_go_without(name):
    with pytest.raises(UserError, match="needs an eps"):
        run(name, ATTACKS[name].norms[0], labelled(mlp(), images(3)), eps=False)


@pytest.mark.parametrize(("name", "norm"), REPEATED)
def test_same_seed_same_points(name, norm):
    batch = labelled(mlp(), images(15))
    first, second = (run(name, norm, batch) for _ in range(2))
    assert torch.equal(first.x_adv, second.x_adv)
    assert torch.equal(first.forward, second.forward)


@pytest.mark.parametrize(("name", "norm"), REPEATED)
def test_batch_size_changes_nothing(name, norm):
    batch = labelled(mlp(), images(14))
    whole = run(name, norm, batch, batch_size=64)
    for size in (1, 7):
        parts = run(name, norm, batch, batch_size=size)
        assert torch.equal(whole.success, parts.success)
        torch.testing.assert_close(whole.distance, parts.distance, equal_nan=True, atol=1e-4, rtol=0)


@pytest.mark.parametrize(("name", "norm"), REPEATED)
def test_order_of_samples_changes_nothing(name, norm):
    batch = labelled(mlp(), images(20))
    order = torch.arange(19, -1, -1)
    whole, turned = run(name, norm, batch), run(name, norm, batch[order])
    assert torch.equal(whole.success[order], turned.success)
    torch.testing.assert_close(whole.distance[order], turned.distance, equal_nan=True, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", NAMES)
def test_unknown_norm_is_refused(name):
    with pytest.raises(UserError, match="unknown norm 'l7'"):
        ThreatModel("l7", 0.1)
    for norm in {"linf", "l2", "l1", "l0"} - set(ATTACKS[name].norms):
        with pytest.raises(UserError, match=f"has no norm '{norm}'"):
            run(name, norm, labelled(mlp(), images(3)))


def state(model: Classifier) -> tuple:
    return (
        [module.training for module in model.modules()],
        [parameter.requires_grad for parameter in model.parameters()],
        [parameter.grad is None for parameter in model.parameters()],
        [tensor.clone() for tensor in model.state_dict().values()],
    )


@pytest.mark.parametrize(("name", "norm"), CASES)
def test_model_and_global_generator_are_left_alone(name, norm):
    model = mlp()
    norm_layer = torch.nn.BatchNorm1d(12)
    model.network.insert(1, norm_layer)
    model.train()
    model.network[2].eval()
    next(model.parameters()).requires_grad_(False)
    batch = Batch.of(images(15), torch.arange(15) % 4)
    before, generator = state(model), torch.get_rng_state()
    run(name, norm, batch, model=model)
    after = state(model)
    assert before[:3] == after[:3]
    assert all(torch.equal(a, b) for a, b in zip(before[3], after[3], strict=True))
    assert torch.equal(generator, torch.get_rng_state())


@pytest.mark.parametrize(("name", "norm"), CASES)
def test_queries_are_counted_exactly(name, norm):
    """Against a module that counts by itself; clean check and verdict are not the attack's."""
    model = mlp()
    # Beside max pooling a Jacobian is pulled back one functional at a time: the hook sees each of them.
    counter = Counting(nn.Sequential(nn.MaxPool2d(1), model.network))
    model.network = counter
    batch = labelled(model, images(30))
    aside = labelled(model, images(40, seed=7))
    counter.forward_samples = counter.backward_samples = 0
    threat = threat_named(norm, EPS[norm])
    result = attack(name).run(model, batch, threat, Randomness(0), aside, batch_size=16)
    booked = int(result.forward.sum()) + result.shared_forward
    assert counter.forward_samples == booked + 2 * len(batch)
    assert counter.backward_samples == int(result.backward.sum()) + result.shared_backward


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("name", [name for name in NAMES if not ATTACKS[name].models])
def test_two_and_three_classes(name, classes):
    norm = ATTACKS[name].norms[0]
    of_images = name in ("eot", "turtle") or isinstance(threat_named(norm, EPS[norm]), Transformation)
    model, shape = (mlp(classes), (1, 3, 4)) if of_images else (random_linear(classes, 12), (12,))
    batch = labelled(model, images(30, shape))
    threat = threat_named(norm, (1 if norm not in BALLS else 4) * EPS[norm])
    result = attack(name).run(model, batch, threat, Randomness(0), labelled(model, images(40, shape, seed=7)))
    assert bool(result.success.any())


@pytest.mark.parametrize("name", NAMES)
def test_parameters_are_plain_and_complete(name):
    values = attack(name).parameters()
    assert set(values) == {field.name for field in fields(attack(name))}
    assert all(isinstance(value, (int, float, str, bool, dict)) for value in values.values())


def test_misclassified_inputs_cost_nothing_and_count_as_broken():
    model = mlp()
    right = labelled(model, images(10))
    batch = Batch(right.x, (right.y + 1) % 4, right.index)
    result = PGD().run(model, batch, ThreatModel("linf", 0.1), Randomness(0))
    assert bool(result.success.all())
    assert not bool(result.clean.any())
    assert bool((result.distance == 0).all())
    assert int(result.forward.sum()) == int(result.backward.sum()) == 0


@dataclass(frozen=True, kw_only=True)
class Liar(Attack):
    """Proposes what `lie` names, whatever the model says."""

    paper = "none"
    norms = ("linf", "l2", "l1")
    lie: str

    def propose(self, model, batch, threat, randomness, fitted):
        far = threat.box.clamp(batch.x + 0.9 * (0.5 - batch.x).sign())
        return {
            "nothing": batch.x,
            "not a number": torch.full_like(batch.x, torch.nan),
            "infinite": torch.full_like(batch.x, torch.inf),
            "outside the ball": far,
            "a little outside the ball": batch.x + (far - batch.x) * 1.001 * threat.eps / 0.01,
            "outside the box": batch.x - 5.0,
        }[self.lie]


Liar.name = "liar"


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize(
    ("lie", "legal"),
    [
        ("nothing", True),
        ("not a number", False),
        ("infinite", False),
        ("outside the ball", False),
        ("a little outside the ball", False),
        ("outside the box", False),
    ],
)
def test_liars_are_seen_through(norm, lie, legal):
    model = mlp()
    batch = labelled(model, images(25))
    threat = ThreatModel(norm, 0.01)
    result = Liar(lie=lie).run(model, batch, threat, Randomness(0))
    assert not bool(result.success.any())
    assert bool(result.distance.isnan().all())
    assert bool((result.legal == legal).all())
    assert torch.equal(result.x_adv, batch.x)


@dataclass(frozen=True, kw_only=True)
class LabelBlind(PGD):
    """Runs PGD against the wrong label, and so pulls the sample towards it."""

    def propose(self, model: GradientAccess, batch, threat, randomness, fitted):
        wrong = Batch(batch.x, (batch.y + 1) % model.num_classes, batch.index)
        return super().propose(model, wrong, threat, randomness, fitted)


@dataclass(frozen=True, kw_only=True)
class FarMover(Attack):
    """Proposes moves that its threat does not allow, where `far`, and none elsewhere."""

    paper = "none"
    norms = ("rotation", "corruption")
    far: float

    def propose(self, model, batch, threat, randomness, fitted):
        return torch.full((len(batch), threat.parameters(batch.x)), self.far, dtype=torch.float64)


FarMover.name = "far mover"


@pytest.mark.parametrize(
    ("norm", "eps", "far"),
    [
        ("rotation", 10.0, 10.0 + 1e-9),
        ("rotation", 10.0, torch.nan),
        ("corruption", 3, 4.0),
        ("corruption", 3, 1.5),
        ("corruption", 3, -1.0),
    ],
)
def test_moves_out_of_range_are_not_carried_out(norm, eps, far):
    model = mlp()
    batch = labelled(model, images(10))
    result = FarMover(far=far).run(model, batch, threat_named(norm, eps), Randomness(0))
    assert not bool(result.legal.any())
    assert not bool(result.success.any())
    assert torch.equal(result.x_adv, batch.x)
    assert bool((result.move == 0).all())


def test_a_move_of_another_length_is_refused():
    with pytest.raises(UserError, match="row of 2 numbers"):
        threat_named("corruption", 3).settled(images(2), torch.zeros(2, 3), torch.arange(2))


def test_ignoring_the_label_is_weaker_than_the_attack_it_apes():
    model = mlp()
    batch = labelled(model, images(60))
    threat = ThreatModel("linf", 0.15)
    honest = PGD().run(model, batch, threat, Randomness(0))
    blind = LabelBlind().run(model, batch, threat, Randomness(0))
    assert int(blind.success.sum()) < 0.5 * int(honest.success.sum())


def test_an_attack_cannot_be_registered_twice():
    registry: Registry[type] = Registry("attack")
    registry.add("pgd", PGD)
    with pytest.raises(ValueError, match="registered twice"):
        registry.add("pgd", PGD)
    with pytest.raises(UserError, match="did you mean pgd"):
        registry["pdg"]


@pytest.mark.parametrize(("name", "norm"), [(name, norm) for name, norm in CASES if norm in BALLS])
def test_a_network_in_double_precision_is_attacked_in_it(name, norm):
    """The verdict is the network's own, and nothing is rounded to single precision on the way."""
    model, aside = mlp(), labelled(mlp(), images(40, seed=7))
    model.double()
    batch = labelled(model, images(6).double())
    search = attack(name)
    for field in search.models:
        for source in [getattr(search, field)] if field == "source" else getattr(search, field):
            source.double()
    aside = Batch(aside.x.double(), aside.y, aside.index)
    result = search.run(model, batch, ThreatModel(norm, EPS[norm]), Randomness(0), aside)
    assert result.x_adv.dtype == torch.float64
    assert bool(result.legal.all())
    assert torch.equal(result.success, model.logits(result.x_adv).argmax(1) != batch.y)
