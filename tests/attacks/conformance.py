"""Closed-form cases that every attack library can be held to, and the table of who passes which.

`python -m tests.attacks.conformance` writes docs/conformance.md with the libraries that can be imported:
Foolbox, torchattacks and ART beside this suite. Networks are linear, so that the truth is known: the distance
to the nearest boundary, or which samples a radius reaches.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models.base import Batch
from models.threat import UNIT_BOX, Box, vector_norm
from tests.attacks.libraries import LIBRARIES, Kind, Run, importable

PAGE = Path(__file__).resolve().parents[2] / "docs" / "conformance.md"
INPUTS = 12
DUAL = {"linf": 1, "l2": 2, "l1": torch.inf}
Case = Callable[[Any, Run], str]
"""(kind, run) -> "" where it passes, else what is wrong."""


KINDS = (
    Kind("pgd", "linf", False),
    Kind("pgd", "l2", False),
    Kind("pgd", "l1", False),
    Kind("apgd", "linf", False),
    Kind("apgd", "l2", False),
    Kind("apgd", "l1", False),
    Kind("deepfool", "l2", True, 1.03),
    Kind("deepfool", "linf", True, 1.03),
    Kind("deepfool", "l1", True, 1.03),
    Kind("cw", "l2", True, 1.05),
    Kind("ead", "l1", True, 1.05),
    Kind("ddn", "l2", True, 1.25),
    Kind("fmn", "l2", True, 1.05),
    Kind("fmn", "linf", True, 1.05),
    Kind("fmn", "l1", True, 1.05),
    Kind("fab", "l2", True, 1.05),
    Kind("fab", "linf", True, 1.05),
    Kind("fab", "l1", True, 1.05),
    Kind("acg", "linf", False),
    Kind("acg", "l2", False),
    Kind("sparsefool", "l1", True, 1.25),
)


def network(classes: int = 4, box: Box = UNIT_BOX, shift: float = 0.0) -> nn.Sequential:
    """A linear network, the same function of the place in the box for any box, plus `shift` on all logits."""
    generator = torch.Generator().manual_seed(classes)
    weight = torch.randn(classes, INPUTS, generator=generator)
    bias = 0.1 * torch.randn(classes, generator=generator) - weight.sum(1) / 2
    layer = nn.Linear(INPUTS, classes)
    with torch.no_grad():
        layer.weight.copy_(weight / box.width)
        layer.bias.copy_(bias - weight.sum(1) * box.lower / box.width + shift)
    return nn.Sequential(nn.Flatten(), layer).eval()


def inputs(n: int, box: Box = UNIT_BOX) -> Tensor:
    """Images near the box's middle, so that no bound stops a smallest perturbation."""
    x = 0.35 + 0.3 * torch.rand(n, 1, 3, 4, generator=torch.Generator().manual_seed(7))
    return box.lower + box.width * x


def labels(net: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return net(x).argmax(1)


def exact(net: nn.Sequential, x: Tensor, norm: str) -> Tensor:
    """The distance of each x to the nearest boundary in float64."""
    weight, bias = net[1].weight.detach().double(), net[1].bias.detach().double()
    z = x.double().flatten(1) @ weight.T + bias
    own = z.argmax(1)
    gap = z.gather(1, own[:, None]) - z
    slope = (weight[own][:, None] - weight).norm(p=DUAL[norm], dim=2)
    return (gap / slope.clamp(min=1e-30)).scatter(1, own[:, None], torch.inf).amin(1)


def away(x: Tensor, points: Tensor, norm: str) -> Tensor:
    return vector_norm(points.double() - x.double(), norm)


def fooled(net: nn.Module, points: Tensor, y: Tensor) -> Tensor:
    with torch.no_grad():
        return net(points).argmax(1) != y


def eps_for(kind: Kind, distance: Tensor) -> float | None:
    """A radius that half of the samples reach: in the widest gap near the median distance."""
    if kind.minimal:
        return None
    middle = distance.sort().values[len(distance) // 3 : 2 * len(distance) // 3]
    place = int(middle.diff().argmax())
    return float(middle[place] + middle[place + 1]) / 2


def right(kind: Kind, run: Run, net: nn.Sequential, x: Tensor, box: Box = UNIT_BOX) -> str:
    """ "" where the answer is the closed form's, else what is wrong with it."""
    y, truth = labels(net, x), exact(net, x, kind.norm)
    eps = eps_for(kind, truth)
    points = run(net, Batch.of(x, y), box, eps).detach()
    hit, distance = fooled(net, points, y), away(x, points, kind.norm)
    if not bool(((points >= box.lower - 1e-6 * box.width) & (points <= box.upper + 1e-6 * box.width)).all()):
        return "leaves the box"
    if eps is None:
        if not bool(hit.all()):
            return f"{int((~hit).sum())} of {len(x)} not fooled"
        ratio = float(distance.sum() / truth.sum())
        return "" if ratio <= kind.slack else f"{ratio:.2f} x the exact distance"
    if bool((distance > eps * (1 + 1e-4)).any()):
        return "leaves the ball"
    wrong = int((hit != (truth < eps)).sum())
    return f"{wrong} of {len(x)} within reach missed" if wrong else ""


def exact_distances(kind: Kind, run: Run) -> str:
    """Finds the closed form's distance (4 classes), or all samples that a radius reaches and no other (2)."""
    return right(kind, run, network(kind.classes), inputs(30))


def two_classes(kind: Kind, run: Run) -> str:
    """The same with two classes."""
    return right(kind, run, network(2), inputs(30))


def rescaled_box(kind: Kind, run: Run) -> str:
    """The same in the box [-3, 7]: the input space times 10."""
    box = Box(-3.0, 7.0)
    return right(kind, run, network(kind.classes, box), inputs(30, box), box)


def shifted_logits(kind: Kind, run: Run) -> str:
    """The same with 20 added to every logit."""
    return right(kind, run, network(kind.classes, shift=20.0), inputs(30))


def black_and_white(kind: Kind, run: Run) -> str:
    """Images of zeros and ones alone: every sample that a large enough radius or none stops is fooled."""
    net, x = network(), (torch.rand(20, 1, 3, 4, generator=torch.Generator().manual_seed(5)) > 0.5).float()
    y = labels(net, x)
    eps = None if kind.minimal else {"linf": 1.0, "l2": 3.4, "l1": 12.0}[kind.norm]
    points = run(net, Batch.of(x, y), UNIT_BOX, eps)
    if not bool(UNIT_BOX.contains(points).all()):
        return "leaves the box"
    missed = int((~fooled(net, points, y)).sum())
    return f"{missed} of 20 not fooled" if missed else ""


def batch_independence(kind: Kind, run: Run) -> str:
    """Batches of 1 and of 7 give what one batch of 21 gives, to a thousandth of the box."""
    net, x = network(), inputs(21)
    y = labels(net, x)
    eps = eps_for(kind, exact(net, x, kind.norm))
    batch = Batch.of(x, y)
    whole = run(net, batch, UNIT_BOX, eps)
    for part in (slice(0, 1), slice(1, 2), slice(2, 3), slice(7, 14)):
        moved = float((run(net, batch[part], UNIT_BOX, eps) - whole[part]).abs().max())
        if moved > 1e-3:
            return f"a batch of {part.stop - part.start} differs by {moved:.2g}"
    return ""


CASES: tuple[Case, ...] = (
    exact_distances,
    two_classes,
    rescaled_box,
    shifted_logits,
    black_and_white,
    batch_independence,
)


def verdict(library: str, kind: Kind, case: Case) -> str:
    """ "yes", "-" for an attack that the library does not have, or why not."""
    run = LIBRARIES[library][1](kind)
    if run is None:
        return "-"
    try:
        return case(kind, run) or "yes"
    except Exception as error:
        return f"{type(error).__name__}"


def page() -> str:
    """The table of all libraries that are there."""
    names = [name for name in LIBRARIES if importable(name)]
    head = [f"{name} {_version(LIBRARIES[name][0])}" for name in names]
    slack: dict[str, list[str]] = {}
    for kind in KINDS:
        if kind.minimal:
            slack.setdefault(f"{100 * (kind.slack - 1):.0f} %", []).append(kind.title)
    lines = [
        "# Conformance",
        "",
        "Which library's attack passes which closed-form case: linear networks of 12 inputs, 20 to",
        "30 samples each. Made by `python -m tests.attacks.conformance`; cases stand there, the settings of",
        "the attacks in `tests/attacks/libraries.py`. Libraries that cannot be imported are left out. An",
        f"entry is how many of the {len(CASES)} cases pass, and what is wrong in the others, or - for an",
        "attack that the library does not have. A fixed radius must fool exactly those samples that it",
        "reaches; a smallest perturbation may be longer than the exact distance, in the mean, by "
        + "; ".join(f"{percent} ({', '.join(titles)})" for percent, titles in slack.items())
        + ".",
        "",
    ]
    lines += [f"- {case.__name__.replace('_', ' ')}: {(case.__doc__ or '').strip()}" for case in CASES]
    lines += ["", f"| attack | {' | '.join(head)} |", f"|---|{'---|' * len(names)}"]
    found = {name: {kind.title: answers(name, kind) for kind in KINDS} for name in names}
    for kind in KINDS:
        lines.append(f"| {kind.title} | {' | '.join(entry(found[name][kind.title]) for name in names)} |")
    totals = [[answer for each in found[name].values() for answer in each.values()] for name in names]
    counts = [(answers.count("yes"), len(answers) - answers.count("-")) for answers in totals]
    lines.append(f"| all that it has | {' | '.join(f'{passed} of {had}' for passed, had in counts)} |")
    return "\n".join(lines) + "\n"


def answers(library: str, kind: Kind) -> dict[str, str]:
    """The verdict of every case, by its name."""
    return {case.__name__.replace("_", " "): verdict(library, kind, case) for case in CASES}


def entry(found: dict[str, str]) -> str:
    """What the table says of an attack's cases."""
    if set(found.values()) == {"-"}:
        return "-"
    wrong = [f"{case}: {answer}" for case, answer in found.items() if answer != "yes"]
    passed = f"{len(found) - len(wrong)} of {len(found)}"
    return f"{passed} ({'; '.join(wrong)})" if wrong else passed


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(PAGE.read_text(encoding="utf-8"))
