"""The attacks of four libraries behind one call, for the conformance table."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from attacks.base import ATTACKS
from models.base import Batch, Classifier
from models.discover import import_modules
from models.randomness import Randomness
from models.threat import Box, ThreatModel

import_modules("attacks")

ORDER = {"linf": float("inf"), "l2": 2, "l1": 1}
Run = Callable[[nn.Module, Batch, Box, float | None], Tensor]
"""(network, images (n, 1, 3, 4) with labels, box, eps or None for the smallest perturbation) -> points."""


@dataclass(frozen=True)
class Kind:
    """An attack that several libraries have: its name, norm, and how far above the optimum it may stay."""

    name: str
    norm: str
    minimal: bool
    slack: float = 1.0

    @property
    def classes(self) -> int:
        return 4 if self.minimal else 2

    @property
    def title(self) -> str:
        return f"{self.name} {self.norm}"


def rhobust(kind: Kind) -> Run | None:
    """This suite's attack, with its defaults."""
    attack = ATTACKS[kind.name]()

    def run(net: nn.Module, batch: Batch, box: Box, eps: float | None) -> Tensor:
        model = Classifier(net, num_classes=net[1].out_features, box=box)
        return attack.run(model, batch, ThreatModel(kind.norm, eps, box), Randomness(0)).x_adv

    return run


def foolbox(kind: Kind) -> Run | None:
    """Foolbox's attack: 40 steps (PGD), 9 rounds of 200 (CW, EAD), or its defaults."""
    library = importlib.import_module("foolbox").attacks
    makers: dict[str, Callable[[], Any]] = {
        "pgd linf": lambda: library.LinfPGD(steps=40, rel_stepsize=0.1, random_start=False),
        "pgd l2": lambda: library.L2PGD(steps=40, rel_stepsize=0.1, random_start=False),
        "pgd l1": lambda: library.L1PGD(steps=40, rel_stepsize=0.1, random_start=False),
        "deepfool l2": library.L2DeepFoolAttack,
        "deepfool linf": library.LinfDeepFoolAttack,
        "cw l2": lambda: library.L2CarliniWagnerAttack(steps=200),
        "ead l1": lambda: library.EADAttack(steps=200, decision_rule="L1"),
        "ddn l2": library.DDNAttack,
        "fmn l2": library.L2FMNAttack,
        "fmn linf": library.LInfFMNAttack,
        "fmn l1": library.L1FMNAttack,
    }
    if kind.title not in makers:
        return None
    attack = makers[kind.title]()

    def run(net: nn.Module, batch: Batch, box: Box, eps: float | None) -> Tensor:
        torch.manual_seed(0)
        peer = importlib.import_module("foolbox").PyTorchModel(
            net, bounds=(box.lower, box.upper), device="cpu"
        )
        return attack(peer, batch.x, batch.y, epsilons=eps)[1]

    return run


def torchattacks(kind: Kind) -> Run | None:
    """torchattacks' attack: 40 steps (PGD), 200 (CW, c = 1), 100 (APGD, FAB), or its defaults."""
    library = importlib.import_module("torchattacks")
    names = {"linf": "Linf", "l2": "L2", "l1": "L1"}

    def fab(net: Any, eps: float | None) -> Any:
        classes = net[1].out_features
        return library.FAB(net, names[kind.norm], eps=10.0, steps=100, n_classes=classes)

    makers: dict[str, Callable[[Any, Any], Any]] = {
        "pgd linf": lambda net, eps: library.PGD(net, eps, eps / 10, 40, random_start=False),
        "pgd l2": lambda net, eps: library.PGDL2(net, eps, eps / 10, 40, random_start=False),
        "apgd linf": lambda net, eps: library.APGD(net, "Linf", eps, steps=100),
        "apgd l2": lambda net, eps: library.APGD(net, "L2", eps, steps=100),
        "deepfool l2": lambda net, eps: library.DeepFool(net),
        "cw l2": lambda net, eps: library.CW(net, c=1, steps=200),
        "ead l1": lambda net, eps: library.EADL1(net, max_iterations=200),
        "fab l2": fab,
        "fab linf": fab,
        "fab l1": fab,
        "sparsefool l1": lambda net, eps: library.SparseFool(net),
    }
    maker = makers.get(kind.title)
    if maker is None:
        return None

    def run(net: nn.Module, batch: Batch, box: Box, eps: float | None) -> Tensor:
        torch.manual_seed(0)
        return maker(net, eps)(batch.x, batch.y).detach()

    return run


def art(kind: Kind) -> Run | None:
    """ART's attack: 40 steps (PGD), 100 (APGD), 9 rounds of 200 (EAD), 10 of 100 (CW), or its defaults."""
    evasion = importlib.import_module("art.attacks.evasion")
    estimators = importlib.import_module("art.estimators.classification")
    order = ORDER[kind.norm]

    makers: dict[str, Callable[[Any, Any], Any]] = {
        "pgd": lambda model, eps: evasion.ProjectedGradientDescent(
            model, norm=order, eps=eps, eps_step=eps / 10, max_iter=40, verbose=False, batch_size=64
        ),
        "apgd": lambda model, eps: evasion.AutoProjectedGradientDescent(
            model, norm=order, eps=eps, eps_step=eps / 5, max_iter=100, nb_random_init=1, verbose=False
        ),
        "deepfool l2": lambda model, eps: evasion.DeepFool(model, max_iter=50, epsilon=0.02, verbose=False),
        "cw l2": lambda model, eps: evasion.CarliniL2Method(
            model, max_iter=100, binary_search_steps=10, batch_size=64, verbose=False
        ),
        "acg": lambda model, eps: evasion.AutoConjugateGradient(
            model, norm=order, eps=eps, eps_step=eps / 5, max_iter=100, nb_random_init=1, verbose=False
        ),
        "ead l1": lambda model, eps: evasion.ElasticNet(
            model, max_iter=200, decision_rule="L1", batch_size=64, verbose=False
        ),
    }
    maker = makers.get(kind.title, makers.get(kind.name))
    if maker is None:
        return None

    def run(net: nn.Module, batch: Batch, box: Box, eps: float | None) -> Tensor:
        torch.manual_seed(0)
        model = estimators.PyTorchClassifier(
            net,
            loss=nn.CrossEntropyLoss(),
            input_shape=tuple(batch.x.shape[1:]),
            nb_classes=net[1].out_features,
            clip_values=(box.lower, box.upper),
            device_type="cpu",
        )
        points = maker(model, eps).generate(batch.x.numpy(), batch.y.numpy())
        return torch.from_numpy(points).to(batch.x)

    return run


LIBRARIES: dict[str, tuple[str, Callable[[Kind], Run | None]]] = {
    "Rhobust": ("rhobust", rhobust),
    "Foolbox": ("foolbox", foolbox),
    "torchattacks": ("torchattacks", torchattacks),
    "ART": ("adversarial-robustness-toolbox", art),
}


def importable(name: str) -> bool:
    """Whether a library is there."""
    try:
        importlib.import_module({"Rhobust": "attacks", "ART": "art"}.get(name, name.lower()))
    except ImportError:
        return False
    return True
