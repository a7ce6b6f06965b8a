"""First layers that map each input by itself are folded into the input set."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from certify.folded import Folded, Targets
from certify.input_set import InputSet

Lift = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class _Stage:
    """Neurons that became inputs: the places (k,) among the old inputs of what they read, and how.

    z = slope x + constant and a = max(z, leak z), for each; `first` is the place of the first new input.
    """

    places: Tensor
    slope: Tensor
    constant: Tensor
    leak: Tensor
    first: int

    def lift(self, points: Tensor) -> Tensor:
        """Points (b, d + k) of the new inputs as points (b, d) of the old ones that give the same outputs."""
        outputs = points[:, self.first :]
        z = torch.where(outputs > 0, outputs, outputs / self.leak.masked_fill(self.leak == 0, torch.inf))
        points = points[:, : self.first].clone()
        points[:, self.places] = (z - self.constant) / self.slope
        return points


def separated(folded: Folded, targets: Targets) -> tuple[Folded, Targets, Lift]:
    """The same question without the neurons that are the only readers of a single input, and a way back.

    Such a neuron's output takes every value of an interval, whatever the other inputs are, so that it may
    be an input itself: no bound has to be relaxed, nor a phase to be split, for it. So it is with
    networks that first clamp or rescale each pixel. Only in linf, where inputs are independent; the way
    back takes points (b, d') of the new inputs to points (b, d) of the old ones with the same values.
    """
    inputs, stages = folded.inputs, list[_Stage]()
    if inputs.norm == "linf" and targets.assumed is None:
        while len(places := _alone(folded, targets)):
            folded, targets, stage = _folded_in(folded, targets, places)
            stages.append(stage)

    def lift(points: Tensor) -> Tensor:
        for stage in reversed(stages):
            points = stage.lift(points)
        return inputs.project(points) if stages else points

    return folded, targets, lift


def _alone(folded: Folded, targets: Targets) -> Tensor:
    """The neurons (k,) that read one input alone, which nothing else reads."""
    reads = folded.input_rows != 0
    readers = reads.sum(0) + (targets.input_rows != 0).flatten(0, 1).sum(0)
    single = (reads.sum(1) == 1) & ~(folded.neuron_rows != 0).any(1)
    return (single & (reads & (readers == 1)).any(1)).nonzero()[:, 0]


def _folded_in(folded: Folded, targets: Targets, neurons: Tensor) -> tuple[Folded, Targets, _Stage]:
    inputs = folded.inputs
    places = (folded.input_rows[neurons] != 0).to(torch.int8).argmax(1)
    slope, constant, leak = folded.input_rows[neurons, places], folded.constant[neurons], folded.leak[neurons]
    z = torch.stack([inputs.lower, inputs.upper, inputs.centre])[:, places] * slope + constant
    ends = torch.where(z > 0, z, leak * z)
    lower, upper = ends[:2].amin(0), ends[:2].amax(0)
    new = InputSet(
        torch.cat([inputs.lower, lower]),
        torch.cat([inputs.upper, upper]),
        torch.cat([inputs.centre, ends[2]]),
    )
    gone = torch.zeros(folded.neurons, dtype=torch.bool, device=neurons.device)
    gone[neurons] = True
    kept = (~gone).nonzero()[:, 0]
    smaller = Folded(
        new, folded.layers_without(gone),
        torch.cat([folded.input_rows, folded.neuron_rows[:, neurons]], 1)[kept],
        folded.neuron_rows[kept][:, kept], folded.constant[kept], folded.leak[kept], folded.lower[kept],
        folded.upper[kept],
    )  # fmt: skip
    moved = replace(
        targets,
        input_rows=torch.cat([targets.input_rows, targets.neuron_rows[..., neurons]], 2),
        neuron_rows=targets.neuron_rows[..., kept],
    )
    return smaller, moved, _Stage(places, slope, constant, leak, len(inputs.lower))
