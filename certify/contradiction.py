"""Tighter bounds under the assumption that a target fails: either a contradiction, or a smaller network."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from certify.dual import Branches, Dual, climb
from certify.folded import Folded, Targets

# Bounds of a neuron that cross by less may have crossed by rounding alone: no contradiction yet.
CROSSING = 1e-9


@dataclass(frozen=True)
class Assumed:
    """What is left of a folded network where one group's function is at most `slack`.

    refuted says that no input is left: the function is above `slack` everywhere. Otherwise folded
    and targets (that group alone) hold wherever the assumption does, and only there.
    """

    folded: Folded
    targets: Targets
    refuted: bool


def assume_broken(
    folded: Folded,
    targets: Targets,
    group: int,
    *,
    slack: float,
    deadline: float,
    rounds: int = 4,
    steps: int = 40,
) -> Assumed:
    """Bounds every neuron from both sides over the inputs where the group's one function is <= slack.

    By Lagrange, z >= min (z + c (function - slack)) there for any c >= 0: c is ascended together with
    the lower lines, for all neurons at once. Neurons that become stable are folded away, and
    the rest is bounded again, up to `rounds` times.
    Source: Kotha et al. 2023, 2302.01404 (INVPROP), section 3.
    """
    mine = targets.select(torch.tensor([group]))
    for _ in range(rounds):
        root, _, _ = climb(
            Dual(folded, mine), Branches.roots(folded, mine), steps=steps, rate=0.25, stop=slack
        )
        if float(root[0]) > slack or not folded.neurons:
            return Assumed(folded, mine, float(root[0]) > slack)
        sides = _neurons_with(folded, mine, slack, float(root[0]))
        value, _, _ = climb(
            Dual(folded, sides),
            Branches.roots(folded, sides),
            steps=steps,
            rate=0.25,
            stop=0.0,
            deadline=deadline,
        )
        lower = torch.maximum(folded.lower, value[: folded.neurons])
        upper = torch.minimum(folded.upper, -value[folded.neurons :])
        if bool((lower - upper > CROSSING * torch.maximum(lower.abs(), upper.abs()).clamp(min=1.0)).any()):
            return Assumed(folded, mine, True)
        lower, upper = torch.minimum(lower, upper), torch.maximum(lower, upper)
        before = folded.neurons
        folded, mine = folded.tightened(lower, upper, mine)
        if folded.neurons > 0.98 * before:
            break
    return Assumed(folded, mine, False)


def _neurons_with(folded: Folded, mine: Targets, slack: float, root: float) -> Targets:
    """z and -z of every neuron, each with the group's function as a second one, scaled alike."""
    rows = [torch.cat([part, -part]) for part in (folded.input_rows, folded.neuron_rows, folded.constant)]
    width = (folded.upper - folded.lower).repeat(2) / max(abs(root), 1e-6)

    def beside(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        scaled = width.reshape(-1, *[1] * second.dim()) * second
        return torch.stack([first, scaled], dim=1)

    return Targets(
        beside(rows[0], mine.input_rows[0, 0]),
        beside(rows[1], mine.neuron_rows[0, 0]),
        beside(rows[2], mine.constant[0, 0] - slack),
        torch.ones(len(width), 2, dtype=torch.bool),
        anchored=True,
    )
