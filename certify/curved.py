"""First layers whose neurons read one input each, but for crumbs, become curves that inputs move along."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from certify.curves import Curves
from certify.folded import Folded, Targets

# What a neuron reads beside its one input may move it by such a part of what that input does.
CRUMBS = 3e-2

# The part of the neurons that read the inputs alone which have to be of this kind.
MOST = 0.5


def along_curves(folded: Folded, targets: Targets) -> tuple[Folded, Targets] | None:
    """The same question, or a slightly harder one, over the curves of inputs and single-input neurons.

    Networks trained against linf attacks often begin by thresholds: each neuron of their first layer reads
    one pixel. The pixel and what the neurons make of it are then points of a curve, curves of different
    pixels are independent, and the neurons behind read the "inputs" alone, so that nothing is relaxed or
    split before them and their envelopes are over curves. The weights beside a neuron's largest one are left
    out where they hardly move it: the most that they may change in a neuron behind is a new input of that
    one. The few neurons that read several inputs become inputs too, anywhere between their lines. So a
    proof there is one here, and a witness is near one. The set's first d coordinates are the inputs. None
    where few neurons are of this kind; linf only.
    """
    inputs = folded.inputs
    if inputs.norm != "linf" or inputs.curved or targets.assumed is not None:
        return None
    alone = folded.alone
    middle, radius = inputs.middle_and_radius()
    moves = folded.input_rows[alone].abs() * radius
    if not moves.numel():
        return None
    most, places = moves.max(1)
    crumbs = moves.sum(1) - most
    single = crumbs <= CRUMBS * most
    if int(single.sum()) < MOST * len(alone):
        return None
    neurons, places, crumbs = alone[single], places[single], crumbs[single]
    slope = folded.input_rows[neurons, places]
    constant = folded.constant[neurons] + folded.input_rows[neurons] @ middle - slope * middle[places]
    folded, targets = _loosened(folded, targets, alone[~single])
    crumbs = crumbs * folded.leak[neurons].abs().clamp(min=1.0)
    folded = _with_crumbs(folded, folded.neuron_rows[:, neurons].abs() @ crumbs)
    said = targets.neuron_rows[..., neurons]
    targets = replace(
        targets,
        input_rows=torch.cat(
            [pad(targets.input_rows, (0, len(folded.inputs.lower) - targets.input_rows.shape[2])), said], 2
        ),
        constant=targets.constant - said.abs() @ crumbs,
    )
    curves = Curves.over(folded.inputs, places, slope, constant, folded.leak[neurons])
    return _without(folded, targets, alone, neurons, curves)


def _with_crumbs(folded: Folded, moves: Tensor) -> Folded:
    """The same with an input for each neuron that moves its z by `moves` (m,) at most, where that is any."""
    moved = moves.nonzero()[:, 0]
    own = torch.zeros_like(folded.neuron_rows[:, moved])
    own[moved, torch.arange(len(moved), device=moved.device)] = 1.0
    inputs = folded.inputs.beside(-moves[moved], moves[moved])
    return replace(folded, inputs=inputs, input_rows=torch.cat([folded.input_rows, own], 1))


def _loosened(folded: Folded, targets: Targets, neurons: Tensor) -> tuple[Folded, Targets]:
    """The same where the outputs of neurons (k,) are their chords less new inputs, up to the chords' gaps.

    That is what relaxes them already, but for the choice of lower lines; it stands wherever they were read.
    """
    chord = folded.upper / (folded.upper - folded.lower)
    chord = (folded.leak + (1 - folded.leak) * chord)[neurons]
    gap = (folded.leak[neurons] - chord) * folded.lower[neurons]
    through, constant = chord[:, None] * folded.input_rows[neurons], chord * folded.constant[neurons] + gap
    read, said = folded.neuron_rows[:, neurons], targets.neuron_rows[..., neurons]
    loose = replace(
        folded,
        inputs=folded.inputs.beside(-gap, 0 * gap),
        input_rows=torch.cat([folded.input_rows + read @ through, read], 1),
        constant=folded.constant + read @ constant,
    )
    return loose, replace(
        targets,
        input_rows=torch.cat([targets.input_rows + said @ through, said], 2),
        constant=targets.constant + said @ constant,
    )


def _without(
    folded: Folded, targets: Targets, gone: Tensor, neurons: Tensor, curves: Curves
) -> tuple[Folded, Targets]:
    """The network over the curves without the neurons `gone`; of these `neurons` are coordinates now."""
    gone = torch.zeros_like(folded.leak, dtype=torch.bool).index_fill(0, gone, True)
    kept = (~gone).nonzero()[:, 0]
    rows = torch.cat([folded.input_rows, folded.neuron_rows[:, neurons]], 1)[kept]
    moved = Folded(
        curves, folded.layers_without(gone), rows, folded.neuron_rows[kept][:, kept], folded.constant[kept],
        folded.leak[kept], folded.lower[kept], folded.upper[kept],
    )  # fmt: skip
    first = moved.alone
    lower, upper = moved.lower.clone(), moved.upper.clone()
    lower[first] = curves.least(rows[first])[0] + moved.constant[first]
    upper[first] = moved.constant[first] - curves.least(-rows[first])[0]
    return moved.tightened(lower, upper, replace(targets, neuron_rows=targets.neuron_rows[..., kept]))
