"""The folded networks of many samples side by side, and the ascent of all their dual bounds at once."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from certify.dual import Adam
from certify.folded import Folded, Targets

# The first round of an ascent: its steps, and how far a slope moves in the first of them.
FIRST_STEPS = 100
FIRST_RATE = 0.25

TENSORS = (
    "middle", "radius", "input_rows", "neuron_rows", "constant", "leak", "chord", "intercept",
    "target_inputs", "target_neurons", "target_constant",
)  # fmt: skip


@dataclass(frozen=True)
class Stack:
    """n folded networks on boxes of inputs, with k targets each, padded to the same m neurons.

    middle, radius (n, 1, d) are the boxes; input_rows (n, m, d), neuron_rows (n, m, m), constant,
    leak, chord, intercept (n, 1, m) the neurons and their upper lines; target_* (n, k, d), (n, k, m),
    (n, k) the functions to bound. `layers` are the slices that do not feed each other; a sample's own
    neurons lie at `places`, and what pads the rest is zero.
    """

    layers: tuple[slice, ...]
    places: tuple[Tensor, ...]
    middle: Tensor
    radius: Tensor
    input_rows: Tensor
    neuron_rows: Tensor
    constant: Tensor
    leak: Tensor
    chord: Tensor
    intercept: Tensor
    target_inputs: Tensor
    target_neurons: Tensor
    target_constant: Tensor

    @staticmethod
    def of(samples: list[tuple[Folded, Targets]], dtype: torch.dtype) -> Stack:
        """The stack of samples with the same number of targets, of one function each; linf only."""
        depth = max(len(folded.layers) for folded, _ in samples)
        widths = [max(_width(folded, j) for folded, _ in samples) for j in range(depth)]
        starts = [sum(widths[:j]) for j in range(depth + 1)]
        layers = tuple(slice(a, b) for a, b in itertools.pairwise(starts))
        places = tuple(
            torch.cat([torch.arange(starts[j], starts[j] + _width(folded, j)) for j in range(depth)])
            for folded, _ in samples
        )
        parts = [
            _padded(folded, targets, place, starts[-1])
            for (folded, targets), place in zip(samples, places, strict=True)
        ]
        stacked = [torch.stack(part).to(dtype) for part in zip(*parts, strict=True)]
        return Stack(layers, places, *stacked)

    def select(self, samples: Tensor) -> Stack:
        """Some of the samples."""
        places = tuple(self.places[i] for i in samples.tolist())
        return Stack(self.layers, places, *(getattr(self, name)[samples] for name in TENSORS))

    def backward(self, alpha: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The bounds (n, k) of slopes alpha (n, k, m) in [0, 1], with the coefficients on a and on x."""
        q, t = self.target_neurons.clone(), torch.zeros_like(self.target_neurons)
        for layer in reversed(self.layers):
            below = self.leak[..., layer] + (1 - self.leak[..., layer]) * alpha[..., layer]
            part = q[..., layer]
            t[..., layer] = torch.where(part > 0, part * below, part * self.chord[..., layer])
            if layer.start:
                q[..., : layer.start] += t[..., layer] @ self.neuron_rows[:, layer, : layer.start]
        rows = self.target_inputs + t @ self.input_rows
        value = (rows * self.middle).sum(2) - (rows.abs() * self.radius).sum(2) + self.target_constant
        value = value + (t * self.constant).sum(2) + (q.clamp(max=0) * self.intercept).sum(2)
        return value, q, rows

    def minimiser(self, alpha: Tensor, q: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The point where the relaxation with lower slopes alpha is least: x (n, k, d), z and a (n, k, m)."""
        x = self.middle - self.radius * rows.sign()

        def line(layer: slice, z: Tensor) -> Tensor:
            below = self.leak[..., layer] + (1 - self.leak[..., layer]) * alpha[..., layer]
            above = self.chord[..., layer] * z + self.intercept[..., layer]
            return torch.where(q[..., layer] > 0, below * z, above)

        return x, *self._forward(x, line)

    def value_at(self, x: Tensor, a: Tensor) -> Tensor:
        """The targets (n, k) at x once a is moved between each neuron's lines: at least their minima.

        Infinite where z leaves its bounds, so that no a lies between the lines.
        """
        outside = torch.zeros_like(self.target_constant, dtype=torch.bool)

        def between(layer: slice, z: Tensor) -> Tensor:
            nonlocal outside
            below = torch.maximum(z, self.leak[..., layer] * z)
            above = self.chord[..., layer] * z + self.intercept[..., layer]
            outside = outside | (above - below < -1e-5).any(2)
            return torch.minimum(torch.maximum(a[..., layer], below), above)

        _, moved = self._forward(x, between)
        value = (self.target_inputs * x).sum(2) + (self.target_neurons * moved).sum(2) + self.target_constant
        return value.masked_fill(outside, torch.inf)

    def _forward(self, x: Tensor, activation: Callable[[slice, Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        z = x @ self.input_rows.mT + self.constant
        a = torch.zeros_like(z)
        for layer in self.layers:
            if layer.start:
                z[..., layer] += a[..., : layer.start] @ self.neuron_rows[:, layer, : layer.start].mT
            a[..., layer] = activation(layer, z[..., layer])
        return z, a


def _width(folded: Folded, j: int) -> int:
    return folded.layers[j].stop - folded.layers[j].start if j < len(folded.layers) else 0


def _padded(folded: Folded, targets: Targets, places: Tensor, m: int) -> list[Tensor]:
    """One sample's tensors, in the order of TENSORS."""

    def spread(part: Tensor) -> Tensor:
        whole = part.new_zeros(*part.shape[:-1], m)
        whole[..., places] = part
        return whole

    share = folded.upper / (folded.upper - folded.lower)
    ends = folded.inputs
    return [
        ((ends.upper + ends.lower) / 2)[None],
        ((ends.upper - ends.lower) / 2)[None],
        spread(folded.input_rows.mT).mT,
        spread(spread(folded.neuron_rows).mT).mT,
        spread(folded.constant)[None],
        spread(folded.leak)[None],
        spread(folded.leak + (1 - folded.leak) * share)[None],
        spread(-(1 - folded.leak) * share * folded.lower)[None],
        targets.input_rows[:, 0],
        spread(targets.neuron_rows[:, 0]),
        targets.constant[:, 0],
    ]


def climbed_slopes(stack: Stack, start: Tensor, *, rounds: int, goal: float, stop: float) -> Tensor:
    """Lower slopes (n, k, m) whose bounds are within goal max(1, |maximum|) of the greatest, from `start`.

    max over alpha in [0, 1]^m of the bound, each pair of sample and target by itself. With intermediate
    bounds that the relaxation implies, the maximum is the linear program's optimum (Salman et al. 2019,
    1902.08722, Theorem 4.2), and the averaged minimisers give a feasible point of that program: what it lacks
    of the bound is what is left to gain. Rounds double in length; a sample leaves after the one in
    which each of its bounds comes within the goal or above `stop`, and all leave after `rounds`.
    """
    best, live = start.clone(), torch.arange(len(start), device=start.device)
    for turn in range(rounds):
        steps, rate = FIRST_STEPS * 2**turn, FIRST_RATE * 0.7**turn
        best[live], value, above = _round(stack, best[live], steps, rate)
        left = above - value > goal * value.abs().clamp(min=1.0)
        keep = (left & (value <= stop)).any(1).nonzero()[:, 0]
        if not len(keep):
            break
        if len(keep) < len(live):
            live, stack = live[keep], stack.select(keep)
    return best


def _round(stack: Stack, alpha: Tensor, steps: int, rate: float) -> tuple[Tensor, Tensor, Tensor]:
    """The best slopes met, their bounds, and the least feasible value: Adam's steps shrink a hundredfold."""
    best, adam = alpha, Adam.like(alpha)
    value = alpha.new_full(alpha.shape[:2], -torch.inf)
    x, a = torch.zeros_like(stack.target_inputs), torch.zeros_like(alpha)
    for step in range(steps + 1):
        found, q, rows = stack.backward(alpha)
        best = torch.where((found > value)[..., None], alpha, best)
        value = torch.maximum(value, found)
        point, z, outputs = stack.minimiser(alpha, q, rows)
        count = step - steps // 2
        if count > 0:
            x, a = x + (point - x) / count, a + (outputs - a) / count
        up = (1 - stack.leak) * q.clamp(min=0) * z
        up = up.masked_fill(((alpha >= 1) & (up > 0)) | ((alpha <= 0) & (up < 0)), 0.0)
        alpha = (alpha + rate * 0.01 ** (step / steps) * adam.direction(up)).clamp(0, 1)
    return best, value, stack.value_at(x, a)
