"""A network around one input with its stable neurons folded away: only undecided ones stay variables."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from certify.bounds import Interval, entries
from certify.relaxation import Relaxation
from certify.rules.activation import ReLU
from certify.rules.operation import Affine, Operation, Relaxed
from certify.rules.selection import Largest
from models.errors import NotApplicable

# Rows that are folded between two looks at the clock.
ROWS = 128


@dataclass(frozen=True)
class Undecided:
    """The undecided neurons of relaxed node `node`: flat places (m,), bounds lower < 0 < upper (m,)."""

    node: int
    leak: float
    places: Tensor
    lower: Tensor
    upper: Tensor


@dataclass(frozen=True)
class Affines:
    """k values as affine functions of the input and the undecided neurons' outputs.

    value = inputs . x + sum over nodes of neurons[node] . a[node] + constant: inputs (k, d),
    neurons[node] (k, m of that node), constant (k,).
    """

    inputs: Tensor
    neurons: dict[int, Tensor]
    constant: Tensor


def undecided_neurons(relaxation: Relaxation) -> list[Undecided]:
    """The undecided neurons of a relaxation of one sample, in evaluation order.

    Raises UserError, naming the operation, where one is neither affine nor of the ReLU family.
    """
    found = []
    for i, node in enumerate(relaxation.graph.nodes):
        operation = node.operation
        if operation is None or isinstance(operation, Affine):
            continue
        bounds = relaxation.bounds[node.inputs[0]]
        if isinstance(operation, Largest) and not bool(operation.undecided(bounds).any()):
            continue
        if not isinstance(operation, ReLU):
            raise _no_program(operation)
        places = operation.undecided(bounds).flatten().nonzero()[:, 0]
        ends = Interval(bounds.lower.flatten()[places], bounds.upper.flatten()[places])
        found.append(Undecided(i, operation.leak, places, ends.lower, ends.upper))
    return found


def undecided_counts(relaxation: Relaxation) -> Tensor:
    """How many inputs of rectifiers and of maxima are undecided in each sample (n,).

    Raises UserError, naming the operation, where one is neither affine nor of the ReLU family.
    """
    counts = torch.zeros(len(relaxation.x), dtype=torch.int64, device=relaxation.x.device)
    for node in relaxation.graph.nodes:
        operation = node.operation
        if operation is None or isinstance(operation, Affine):
            continue
        if not isinstance(operation, ReLU | Largest):
            raise _no_program(operation)
        counts += operation.undecided(relaxation.bounds[node.inputs[0]]).flatten(1).sum(1)
    return counts


def _no_program(operation: Operation) -> NotApplicable:
    return NotApplicable(
        f"{type(operation).__name__} with an undecided input has no exact linear program here: "
        "use crown or polytope"
    )


def fold(relaxation: Relaxation, node: int, rows: Tensor, undecided: list[Undecided]) -> Affines:
    """rows . value(node) with every stable neuron substituted: rows (k, *shape of node).

    Exact over the threat set: dead neurons vanish, active ones pass, undecided ones are kept.
    """
    graph = relaxation.graph
    shapes = graph.shapes(relaxation.x)
    kept = {neurons.node: neurons for neurons in undecided}
    pending = {node: rows.unsqueeze(0)}
    constant = rows.new_zeros(1, len(rows))
    neurons = {i: rows.new_zeros(len(rows), len(group.places)) for i, group in kept.items()}
    for i in range(node, 0, -1):
        if i not in pending:
            continue
        here = pending.pop(i)
        operation, inputs = graph.nodes[i].operation, graph.nodes[i].inputs
        if isinstance(operation, Affine):
            constant = constant + operation.constant(here)
            parts = operation.transpose(here, *(shapes[j] for j in inputs))
        else:
            assert isinstance(operation, Relaxed)
            if i in kept:
                flat = entries(here, 2).clone()
                neurons[i] = flat[0, :, kept[i].places]
                flat[:, :, kept[i].places] = 0.0
                here = flat.reshape(here.shape)
            pulled = operation.pull(here, relaxation.bounds[inputs[0]], relaxation.alpha.get(i))
            constant, parts = constant + pulled.constant, (pulled.rows,)
        for j, part in zip(inputs, parts, strict=True):
            pending[j] = pending[j] + part if j in pending else part
    size = relaxation.x[0].numel()
    inputs_rows = pending[0].flatten(2)[0] if 0 in pending else rows.new_zeros(len(rows), size)
    return Affines(inputs_rows, neurons, constant[0])


def group_rows(relaxation: Relaxation, group: Undecided, groups: list[Undecided], deadline: float) -> Affines:
    """The inputs of a group's neurons over the network's input and the neurons of all groups.

    Raises NotApplicable when time.monotonic() passes `deadline` over more than ROWS neurons.
    """
    node = relaxation.graph.nodes[group.node].inputs[0]
    shape = relaxation.graph.shapes(relaxation.x)[node]
    pieces: list[Affines] = []
    for places in group.places.split(ROWS):
        if pieces and time.monotonic() > deadline:
            raise NotApplicable("the network takes too long to be folded")
        rows = relaxation.x.new_zeros(len(places), shape.numel())
        rows[torch.arange(len(places)), places] = 1.0
        pieces.append(fold(relaxation, node, rows.reshape(-1, *shape), groups))
    return Affines(
        torch.cat([piece.inputs for piece in pieces]),
        {i: torch.cat([piece.neurons[i] for piece in pieces]) for i in pieces[0].neurons},
        torch.cat([piece.constant for piece in pieces]),
    )
