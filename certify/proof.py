"""Writes a certificate as a file that can be checked without the code that found it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save
from torch import Tensor, nn

from certify.backward import adaptive_slope, margins, parallel_slope, relax
from certify.base import TOLERANCE, proves
from certify.chain import Chain, array, chain, described, weights
from certify.graph import Graph
from certify.ibp import interval_margins, margin_rows
from certify.leaves import Leaves, searched_leaves
from certify.prepare import prepare
from certify.relaxation import Relaxation
from certify.rules.activation import ReLU
from certify.slopes import Climb
from models.atomic import write_atomically
from models.base import Batch, Classifier, check_inputs, frozen
from models.errors import NotApplicable, UserError
from models.threat import ThreatModel

FORMAT = "rhobust-proof-2"

# Claimed bounds are looser by this, relative to 1 + |bound|, than found in double precision, so that
# outward rounding reaches them.
SLACK = 1e-9

STEPS, RATE = 60, 0.25

METHODS = ("ibp", "crown", "alpha-crown", "branch")

# What a leaf of branch and bound has to prove, relative to the logits: far above the checker's own rounding,
# and above what single precision, in which a search's leaves are kept, takes away from other classes' slopes.
LEAF, SINGLE = 1e-6, 1e-4


@dataclass(frozen=True)
class _Found:
    """What proves one sample: bounds on each ReLU's input, the slopes that they come from, and leaves."""

    method: str
    relaxation: Relaxation
    passes: tuple[str, ...] = ()
    leaves: Leaves | None = None


def write_proof(
    path: Path, model: Classifier, sample: Batch, threat: ThreatModel, methods: Sequence[str] = METHODS,
    *, seconds: float = 30.0,
) -> str | None:  # fmt: skip
    """Writes the proof that one sample (n = 1) is certified; returns its method, None where none was found.

    Tries `methods`: ibp, crown (with polytope), alpha-crown, and for `seconds` branch, a search over ReLU
    phases under crown's bounds. What only more than that settles has no proof file.
    The file, in the safetensors format, holds the layers' weights under the names of their own file, with
    its hash, the input, label, eps and box, bounds on the input of every ReLU, sets of lower slopes in
    [0, 1] from which those bounds follow, and leaves (certify.leaves) for the margins. bench/proof_checker.py
    states what is to be checked. Raises NotApplicable, naming it, for a norm other than linf and
    for networks that are no chain of Linear, Conv2d, Flatten and ReLU.
    """
    if len(sample) != 1:
        raise UserError(f"a proof speaks of one sample, not of {len(sample)}")
    if threat.norm != "linf" or threat.eps is None:
        raise NotApplicable(f"proof files speak of linf and an eps, not of '{threat.norm}'")
    check_inputs(sample, model)
    layers = [one for one in chain(model.network) if not isinstance(one[1], nn.Flatten)]
    with frozen(model):
        graph, x = prepare(model, sample.x)
        found = _prove(graph, x, sample.y, threat, methods, seconds)
    if found is None:
        return None
    write_atomically(path, _content(found, graph, layers, model, sample, threat))
    return found.method


def _prove(
    graph: Graph, x: Tensor, y: Tensor, threat: ThreatModel, methods: Sequence[str], seconds: float
) -> _Found | None:
    """The cheapest method that certifies the sample, with looser bounds than it found."""
    classes = graph.num_classes(x)
    with torch.no_grad():
        logits = graph.values(x)[-1]

        def certified(lower: Tensor) -> bool:
            return bool(proves(lower.scatter(1, y[:, None], torch.inf), logits, TOLERANCE).all())

        if "ibp" in methods and certified(interval_margins(graph, x, y, threat)):
            return _Found("ibp", relax(graph, x, threat, slack=SLACK))
        relaxation = relax(graph, x, threat, parallel_slope, adaptive_slope, slack=SLACK)
        best = torch.maximum(margins(relaxation, y), margins(relaxation.with_alpha({}), y))
        found = _Found("crown", relaxation, ("parallel", "adaptive"))
        if "crown" in methods and certified(best):
            return found
    if not {"alpha-crown", "branch"} & set(methods):
        return None
    slopes, value = climbed_slopes(relaxation, y, classes)
    every = torch.arange(classes)
    flat = Leaves.whole({i: part[0].flatten(1) for i, part in slopes.items()}, every)
    if "alpha-crown" in methods and certified(torch.maximum(best, value)):
        return replace(found, method="alpha-crown", leaves=flat if slopes else None)
    if "branch" not in methods:
        return None
    # Classes that are proved by now keep their one leaf; the others are searched.
    size = max(1.0, float(logits.abs().amax()))
    open_ = (torch.maximum(best, value)[0] <= SINGLE * size) & (every != y)
    leaves = searched_leaves(relaxation, y, every[open_], tolerance=LEAF * size, seconds=seconds)
    if leaves is None:
        return None
    kept = Leaves.whole({i: part[~open_] for i, part in flat.slopes.items()}, every[~open_])
    return replace(found, method="branch", leaves=kept.with_leaves(leaves).single())


def climbed_slopes(relaxation: Relaxation, y: Tensor, classes: int) -> tuple[dict[int, Tensor], Tensor]:
    """The best lower slopes met by Adam for each class, (1, classes, *shape) by node, and their bounds."""
    last = len(relaxation.graph.nodes) - 1
    rows = margin_rows(y, classes, relaxation.x.dtype)
    climb = Climb.start(dict(relaxation.alpha), classes)
    best = dict(climb.alpha)
    value = torch.full((1, classes), -torch.inf, dtype=relaxation.x.dtype, device=relaxation.x.device)
    for turn in range(STEPS if climb.alpha else 0):
        leaves = {i: part.detach().requires_grad_(True) for i, part in climb.alpha.items()}
        with torch.enable_grad():
            found = relaxation.with_alpha(leaves).lower(last, rows)
            gradients = torch.autograd.grad(found.sum(), list(leaves.values()), allow_unused=True)
        better = found.detach() > value
        value = torch.where(better, found.detach(), value)
        for i, part in leaves.items():
            kept = better.reshape(1, classes, *[1] * (part.dim() - 2))
            best[i] = torch.where(kept, part.detach(), best[i])
        named = {i: g for i, g in zip(leaves, gradients, strict=True) if g is not None}
        climb.step(named, RATE * (1 - turn / STEPS))
    return best, value


def _content(
    found: _Found, graph: Graph, layers: Chain, model: Classifier, sample: Batch,
    threat: ThreatModel,
) -> bytes:  # fmt: skip
    """The file: its tensors by name, and everything else as strings."""
    relus = [i for i, node in enumerate(graph.nodes) if isinstance(node.operation, ReLU)]
    places = [place for place, (_, layer) in enumerate(layers) if isinstance(layer, nn.ReLU)]
    own = weights(layers)
    tensors = {f"weights.{name}": part for name, part in own.items()}
    tensors["x"] = array(sample.x[0])
    leaves = found.leaves
    tensors["class"] = np.zeros(0, dtype=np.int64) if leaves is None else array(leaves.classes)
    for place, node in zip(places, relus, strict=True):
        bounds = found.relaxation.bounds[graph.nodes[node].inputs[0]]
        low, high = (array(end.flatten()) for end in (bounds.lower, bounds.upper))
        tensors[f"lower.{place}"], tensors[f"upper.{place}"] = low, high
        slopes = {
            "parallel": np.clip(high / np.where(high > low, high - low, 1.0), 0, 1),
            "adaptive": (high >= -low).astype(np.float64),
        }
        tensors |= {f"slopes.{name}.{place}": slopes[name] for name in found.passes}
        none = np.zeros((0, len(low)), dtype=np.float32)
        tensors[f"slopes.leaf.{place}"] = none if leaves is None else array(leaves.slopes[node])
        tensors[f"phase.{place}"] = none if leaves is None else array(leaves.phases[node])
    notes = {
        "format": FORMAT,
        "method": found.method,
        "model": model.name,
        "index": str(int(sample.index[0])),
        "norm": threat.norm,
        "eps": repr(float(threat.radius)),
        "box": json.dumps([threat.box.lower, threat.box.upper]),
        "label": str(int(sample.y[0])),
        "layers": json.dumps([described(*one) for one in layers]),
        "passes": json.dumps(found.passes),
        "weights_sha256": hashlib.sha256(save(own)).hexdigest(),
    }
    return save(tensors, notes)
