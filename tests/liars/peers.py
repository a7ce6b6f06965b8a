"""Who is fooled: `python -m tests.liars.peers` asks other libraries for each liar's robust accuracy.

Foolbox's and ART's PGD and torchattacks' AutoAttack at their defaults, where they can be imported, beside
`pgd` and the audit of this suite, on the same images. None of the others has a verdict on whether to believe
its number.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from bench.auditor import audit
from defenses.zoo import ModelName, load
from models.base import Batch
from tests.liars.zoo import HONEST, classifier, liars, panel

EPS, N = 0.15, 20
Judge = Callable[[nn.Module, Batch], Tensor]


def foolbox_pgd(model: nn.Module, batch: Batch) -> Tensor:
    """Which samples (n,) Foolbox's linf PGD breaks."""
    foolbox = importlib.import_module("foolbox")
    wrapped = foolbox.PyTorchModel(model.eval(), bounds=(0, 1))
    attack = foolbox.attacks.LinfPGD()
    return attack(wrapped, batch.x, batch.y, epsilons=EPS)[2]


def torchattacks_autoattack(model: nn.Module, batch: Batch) -> Tensor:
    """Which samples (n,) torchattacks' standard AutoAttack breaks."""
    torchattacks = importlib.import_module("torchattacks")
    attack = torchattacks.AutoAttack(model.eval(), norm="Linf", eps=EPS, version="standard", n_classes=10)
    moved = attack(batch.x, batch.y)
    return model(moved).argmax(1) != batch.y


def art_pgd(model: nn.Module, batch: Batch) -> Tensor:
    """Which samples (n,) ART's linf PGD breaks."""
    evasion = importlib.import_module("art.attacks.evasion")
    estimators = importlib.import_module("art.estimators.classification")
    wrapped = estimators.PyTorchClassifier(
        model.eval(), loss=nn.CrossEntropyLoss(), input_shape=tuple(batch.x.shape[1:]), nb_classes=10,
        clip_values=(0.0, 1.0), device_type="cpu",
    )  # fmt: skip
    attack = evasion.ProjectedGradientDescent(wrapped, eps=EPS, verbose=False)
    moved = torch.from_numpy(attack.generate(batch.x.numpy(), y=batch.y.numpy()))
    return model(moved).argmax(1) != batch.y


PEERS: dict[str, Judge] = {
    "foolbox": foolbox_pgd, "art": art_pgd, "torchattacks": torchattacks_autoattack,
}  # fmt: skip


def accuracy(judge: Judge, model: nn.Module, batch: Batch) -> str:
    """The robust accuracy that a library would report, or why it reports none."""
    torch.manual_seed(0)
    try:
        broken = judge(model, batch)
    except Exception as error:
        return type(error).__name__
    return f"{100 * float((~broken).double().mean()):.0f} %"


def main() -> None:
    """Prints one row a model."""
    present = {name: judge for name, judge in PEERS.items() if importlib.util.find_spec(name)}
    table = Table("model", *present, "pgd", "everything", "flags")
    batch = panel(N)
    models = {name: load(ModelName.parse(name)) for name in HONEST}
    models |= {name: classifier(build(), name) for name, build in liars().items()}
    for name, model in models.items():
        theirs = [accuracy(judge, model, batch) for judge in present.values()]
        torch.manual_seed(0)
        found = audit(model, batch.x, batch.y, eps=EPS)
        ours = [f"{100 * found.naive:.0f} %", f"{100 * found.attacked:.0f} %"]
        table.add_row(name, *theirs, *ours, ", ".join(found.flags) or "-")
    Console(width=160).print(table)


if __name__ == "__main__":
    main()
