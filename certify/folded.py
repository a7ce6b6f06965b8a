"""One sample's network with every stable neuron folded away: rows over the input and the unstable ones."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from certify.bounds import entries
from certify.folding import Affines, Undecided, fold, group_rows, undecided_neurons
from certify.input_set import InputSet
from certify.relaxation import Relaxation

Activation = Callable[[slice, Tensor], Tensor]


@dataclass(frozen=True)
class Assumption:
    """Functions that are taken to be <= 0: input_rows (s, d), neuron_rows (s, m), constant (s,)."""

    input_rows: Tensor
    neuron_rows: Tensor
    constant: Tensor


@dataclass(frozen=True)
class Targets:
    """Affine functions of a folded network in groups.

    input_rows (c, k, d), neuron_rows (c, k, m), constant (c, k). Group c is one clause: an unsafe
    point makes all its k functions <= 0. `real` (c, k) is False for padding. What is said of the groups is
    said of the inputs where all functions of `assumed` are <= 0.
    """

    input_rows: Tensor
    neuron_rows: Tensor
    constant: Tensor
    real: Tensor
    assumed: Assumption | None = None

    def __len__(self) -> int:
        return len(self.constant)

    def select(self, groups: Tensor) -> Targets:
        """Some of the groups."""
        inputs, neurons = self.input_rows[groups], self.neuron_rows[groups]
        return Targets(inputs, neurons, self.constant[groups], self.real[groups], self.assumed)

    def single(self, inputs: InputSet) -> Targets:
        """The same in single precision, over the box of `inputs` moved to [-1, 1]."""
        middle, radius = inputs.middle_and_radius()
        constant = self.constant + self.input_rows @ middle
        assumed = self.assumed
        if assumed is not None:
            shifted = assumed.constant + assumed.input_rows @ middle
            assumed = Assumption(
                (assumed.input_rows * radius).float(), assumed.neuron_rows.float(), shifted.float()
            )
        rows = (self.input_rows * radius).float()
        return Targets(rows, self.neuron_rows.float(), constant.float(), self.real, assumed)

    def of_inputs(self, seen: Tensor) -> Targets:
        """The same as functions of some inputs, where they read no others."""
        assumed = self.assumed
        if assumed is not None:
            assumed = replace(assumed, input_rows=assumed.input_rows[:, seen])
        return replace(self, input_rows=self.input_rows[..., seen], assumed=assumed)

    def mixed(self, group: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mixtures of each group's functions and the assumed ones: rows (b, d), (b, m), constants (b,)."""
        parts = []
        for name in ("input_rows", "neuron_rows", "constant"):
            own = getattr(self, name)[group]
            k = own.shape[1]
            flat = entries(own, 2)
            part = weight[:, :1] * flat[:, 0] if k == 1 else (weight[:, None, :k] @ flat)[:, 0]
            if self.assumed is not None:
                extra = getattr(self.assumed, name)
                part = part + weight[:, k:] @ (extra if extra.dim() > 1 else extra[:, None])
            parts.append(part if own.dim() > 2 else part[:, 0])
        return parts[0], parts[1], parts[2]

    def values(self, x: Tensor, outputs: Tensor) -> Tensor:
        """Every function (b, c, k) at inputs x (b, d) and neuron outputs (b, m); -inf in the padding."""
        shape = self.constant.shape
        value = x @ self.input_rows.flatten(0, 1).T + outputs @ self.neuron_rows.flatten(0, 1).T
        return (value.unflatten(1, shape) + self.constant).masked_fill(~self.real, -torch.inf)


@dataclass(frozen=True)
class Folded:
    """z = input_rows x + neuron_rows a + constant and a = max(z, leak z), for m unstable neurons.

    input_rows (m, d); neuron_rows (m, m), non-zero only towards earlier layers; constant, leak,
    lower, upper (m,) with lower < 0 < upper bounding z over the input set; `layers` are the
    slices of neurons that do not feed each other. Equal to the network on the whole input set.
    """

    inputs: InputSet
    layers: tuple[slice, ...]
    input_rows: Tensor
    neuron_rows: Tensor
    constant: Tensor
    leak: Tensor
    lower: Tensor
    upper: Tensor

    @property
    def neurons(self) -> int:
        """The number of unstable neurons, m."""
        return len(self.constant)

    @cached_property
    def earlier(self) -> list[tuple[slice, Tensor]]:
        """The earlier neurons that each layer reads, first to last, and its neuron_rows over them."""
        found = []
        for layer in self.layers:
            rows = self.neuron_rows[layer, : layer.start]
            read = (rows != 0).any(0).nonzero()[:, 0].tolist()
            seen = slice(read[0], read[-1] + 1) if read else slice(0, 0)
            found.append((seen, rows[:, seen].contiguous()))
        return found

    @cached_property
    def alone(self) -> Tensor:
        """The places (k,) of the neurons that read the inputs alone."""
        return (~(self.neuron_rows != 0).any(1)).nonzero()[:, 0]

    def of_inputs(self, seen: Tensor) -> Folded:
        """The same as a function of some inputs, where it reads no others."""
        return replace(self, inputs=self.inputs.only(seen), input_rows=self.input_rows[:, seen])

    def single(self) -> Folded:
        """The same in single precision with the inputs' ends moved to -1 and 1; linf only."""
        middle, radius = self.inputs.middle_and_radius()
        rest = (
            part.float()
            for part in (
                self.input_rows * radius, self.neuron_rows, self.constant + self.input_rows @ middle,
                self.leak, self.lower, self.upper,
            )
        )  # fmt: skip
        return Folded(self.inputs.standard(), self.layers, *rest)

    def forward(self, x: Tensor, activation: Activation) -> tuple[Tensor, Tensor]:
        """Values z and outputs a (b, m) at x (b, d), where activation(layer, z) gives a layer's outputs."""
        z = x @ self.input_rows.T + self.constant
        a = torch.zeros_like(z)
        for layer, (seen, rows) in zip(self.layers, self.earlier, strict=True):
            if rows.numel():
                z[:, layer] += a[:, seen] @ rows.T
            a[:, layer] = activation(layer, z[:, layer])
        return z, a

    def backward(self, q: Tensor, activation: Activation) -> tuple[Tensor, Tensor]:
        """Coefficients on a (b, m), with those through later layers added, and on z (b, m).

        q (b, m) are the coefficients on a of some functions; activation(layer, q) gives those on
        the layer's z.
        """
        q, t = q.clone(), torch.zeros_like(q)
        for layer, (seen, rows) in zip(reversed(self.layers), reversed(self.earlier), strict=True):
            t[:, layer] = activation(layer, q[:, layer])
            if rows.numel():
                q[:, seen] += t[:, layer] @ rows
        return q, t

    def outputs(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The network's own z and a (b, m) at inputs x (b, d) of the set."""
        return self.forward(x, lambda layer, z: torch.where(z > 0, z, self.leak[layer] * z))

    def layer_targets(self, layer: slice) -> Targets:
        """z and -z of a layer's neurons, as 2 k groups of one function each."""
        sides = (
            torch.cat([part[layer], -part[layer]])
            for part in (self.input_rows, self.neuron_rows, self.constant)
        )
        inputs, neurons, constant = (side.unsqueeze(1) for side in sides)
        return Targets(inputs, neurons, constant, torch.ones_like(constant, dtype=torch.bool))

    def layers_without(self, gone: Tensor) -> tuple[slice, ...]:
        """The layers of what stays when the neurons `gone` (m,) leave; those left empty are left out."""
        layers, start = [], 0
        for layer in self.layers:
            count = int((~gone[layer]).sum())
            if count:
                layers.append(slice(start, start + count))
            start += count
        return tuple(layers)

    def tightened(self, lower: Tensor, upper: Tensor, targets: Targets) -> tuple[Folded, Targets]:
        """The same network under tighter bounds (m,), with the neurons that these decide folded away."""
        lower, upper = torch.maximum(lower, self.lower), torch.minimum(upper, self.upper)
        dead, active = upper <= 0, lower >= 0
        gone = dead | active
        if not bool(gone.any()):
            return replace(self, lower=lower, upper=upper), targets
        slope = torch.where(active, 1.0, self.leak).to(self.constant)
        # A decided neuron's output is slope z: rows over decided neurons become rows over kept ones.
        inputs, neurons, constant = self.input_rows.clone(), self.neuron_rows.clone(), self.constant.clone()
        for layer in self.layers:
            _substitute(layer, gone, slope, inputs, neurons, constant)
        keep = (~gone).nonzero()[:, 0]
        inside = targets.neuron_rows * (gone * slope)
        moved = Targets(
            targets.input_rows + inside @ inputs,
            (targets.neuron_rows * ~gone + inside @ neurons)[..., keep],
            targets.constant + inside @ constant,
            targets.real,
        )
        folded = Folded(
            self.inputs, self.layers_without(gone), inputs[keep], neurons[keep][:, keep], constant[keep],
            self.leak[keep], lower[keep], upper[keep],
        )  # fmt: skip
        return folded, moved


def _substitute(
    layer: slice, gone: Tensor, slope: Tensor, inputs: Tensor, neurons: Tensor, constant: Tensor
) -> None:
    """Rewrites a layer's rows in place so that they read no decided neuron of the earlier layers."""
    earlier = slice(0, layer.start)
    weight = neurons[layer, earlier] * (gone[earlier] * slope[earlier])
    neurons[layer, earlier] *= ~gone[earlier]
    inputs[layer] += weight @ inputs[earlier]
    neurons[layer, earlier] += weight @ neurons[earlier, earlier]
    constant[layer] += weight @ constant[earlier]


def folded_network(
    relaxation: Relaxation, rows: list[Tensor], offsets: list[Tensor], *, deadline: float = math.inf
) -> tuple[Folded, Targets]:
    """A relaxation of one sample, and clauses rows[c] . logits + offsets[c], in folded form.

    rows[c] (k, classes), offsets[c] (k,). Raises UserError, naming it, for an undecided operation
    that is not of the ReLU family, and NotApplicable as `group_rows`.
    """
    groups = [group for group in undecided_neurons(relaxation) if len(group.places)]
    layers, start = [], 0
    for group in groups:
        layers.append(slice(start, start + len(group.places)))
        start = layers[-1].stop
    dense = [_dense(group_rows(relaxation, group, groups, deadline), groups) for group in groups]
    x = relaxation.x
    folded = Folded(
        InputSet.of(x, relaxation.threat),
        tuple(layers),
        torch.cat([x.new_zeros(0, x[0].numel()), *(part[0] for part in dense)]),
        torch.cat([x.new_zeros(0, start), *(part[1] for part in dense)]),
        torch.cat([x.new_zeros(0), *(part[2] for part in dense)]),
        torch.cat([x.new_zeros(0), *(torch.full_like(group.lower, group.leak) for group in groups)]),
        torch.cat([x.new_zeros(0), *(group.lower for group in groups)]),
        torch.cat([x.new_zeros(0), *(group.upper for group in groups)]),
    )
    return folded, _targets(relaxation, rows, offsets, groups)


def _dense(part: Affines, groups: list[Undecided]) -> tuple[Tensor, Tensor, Tensor]:
    none = part.inputs.new_zeros(len(part.constant), 0)
    return part.inputs, torch.cat([none, *(part.neurons[group.node] for group in groups)], 1), part.constant


def _targets(
    relaxation: Relaxation, rows: list[Tensor], offsets: list[Tensor], groups: list[Undecided]
) -> Targets:
    last = len(relaxation.graph.nodes) - 1
    sizes = [len(clause) for clause in rows]
    stacked = fold(relaxation, last, torch.cat(rows).to(relaxation.x), groups)
    inputs, neurons, constant = _dense(stacked, groups)
    real = torch.arange(max(sizes)) < torch.tensor(sizes)[:, None]

    def padded(part: Tensor) -> Tensor:
        whole = part.new_zeros(*real.shape, *part.shape[1:])
        whole[real] = part
        return whole

    moved = constant + torch.cat(offsets).to(constant)
    return Targets(padded(inputs), padded(neurons), padded(moved), real)
