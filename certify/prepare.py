"""A classifier made ready for proof: a double precision copy, traced and checked against the original."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from certify.graph import Graph, trace
from models.base import Classifier
from models.errors import NotApplicable, UserError

AGREEMENT = 1e-3
# Logits this much larger than what a log-softmax leaves of them lose digits that no tolerance counts.
LOST = 10.0


def prepare(model: Classifier, x: Tensor) -> tuple[Graph, Tensor]:
    """The graph of a float64 copy of `model` and x in float64.

    The user's model is not touched, and of its outputs only the margins are the graph's: a log-softmax at the
    end is left out. Raises UserError for a stochastic model, for weights that are not finite, and where the
    graph does not reproduce the model's own logits on x.
    """
    if model.stochastic:
        raise NotApplicable(f"model '{model.name}' is stochastic: only certificates by smoothing apply to it")
    name = f"model '{model.name}'"
    check_finite(model.network, name)
    if any(isinstance(module, torch.jit.ScriptModule) for module in model.network.modules()):
        raise NotApplicable(
            f"{name} is TorchScript, which nothing can trace: hand over what it was made from"
        )
    network = copy.deepcopy(model.network).double().requires_grad_(False)
    graph = trace(network, margins=True, like=x.double())
    exact = x.double()
    with torch.no_grad():
        ours, theirs = graph.values(exact)[-1], model.logits(x).double()
    if graph.shifted and ours.shape == theirs.shape:
        if bool((ours.abs().amax(1) > LOST * theirs.abs().amax(1).clamp(min=1.0)).any()):
            raise NotApplicable(f"{name} loses digits of its logits in its log-softmax: leave that out")
        ours = ours.log_softmax(1)
    check_agreement(ours, theirs, name)
    return graph, exact


def check_finite(network: nn.Module, name: str) -> None:
    """Raises UserError, naming it, for a weight that is NaN or infinite."""
    for key, tensor in [*network.named_parameters(), *network.named_buffers()]:
        # A sum that is finite has finite terms, and is had for one look at each.
        if not tensor.is_floating_point() or bool(torch.isfinite(tensor.sum())):
            continue
        if not bool(torch.isfinite(tensor).all()):
            raise UserError(f"weight '{key}' of {name} is NaN or infinite: train it again")


def check_agreement(traced: Tensor, own: Tensor, name: str) -> None:
    """Raises UserError where the traced operations' outputs are not the network's own (n, classes)."""
    error = (traced - own).abs().amax() if traced.shape == own.shape else torch.tensor(torch.inf)
    if not float(error) <= AGREEMENT * max(1.0, float(own.abs().amax())):
        raise UserError(
            f"{name} computes something else than its traced operations (difference {float(error):.2g}): "
            "write its forward without hidden state or in-place changes"
        )
