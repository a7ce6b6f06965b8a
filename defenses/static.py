"""Networks of the zoo that take part in training another one: trained before, and not changed any more."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import nn

from defenses.base import DEFENSES
from models.architecture import MODELS, Architecture
from models.checkpoint import load_weights, read_card
from models.errors import UserError
from models.naming import read_terms
from models.registry import suggest


def architecture_of(name: str) -> Architecture:
    """The architecture of the network `name`; raises UserError for one that cannot be read or is unknown."""
    first = read_terms(name)[0].name
    if first not in MODELS:
        raise suggest("model", first, MODELS.names())
    return MODELS[first]


def stored_as(name: str) -> str:
    """The name that the trained network's weights are stored by: parameters in order, without defaults.

    Raises UserError for a defence, a parameter or a value that does not exist.
    """
    first, *rest = read_terms(name)
    terms = []
    for term in rest:
        if term.name not in DEFENSES:
            raise suggest("defense that trains", term.name, DEFENSES.names())
        if term.name != "none":
            terms.append(str(term.settled("defense", DEFENSES[term.name]().parameters())))
    return "+".join((first.name, *terms))


def misfit(name: str, architecture: Architecture) -> str | None:
    """Why the trained network `name` has nothing to say about `architecture`'s images, or None.

    Raises UserError for a name that cannot be read, or an unknown network.
    """
    other = architecture_of(name)
    if other.data != architecture.data:
        return f"'{name}' judges {other.data}, {architecture.name} is for {architecture.data}"
    theirs, ours = ((one.input_shape, one.num_classes) for one in (other, architecture))
    if theirs != ours:
        return (
            f"'{name}' takes {theirs[0]} and has {theirs[1]} classes, "
            f"{architecture.name} takes {ours[0]} and has {ours[1]}"
        )
    return None


def need_weights(asking: str, names: tuple[str, ...]) -> None:
    """Raises UserError where a network that `asking` trains with has no weights yet."""
    for name in map(stored_as, names):
        if read_card(name) is None:
            raise UserError(
                f"{asking} needs the trained network '{name}', which has no weights: "
                f"make them first with: python -m bench train '{name}'"
            )


@lru_cache(maxsize=8)
def static_network(name: str, device: torch.device) -> nn.Module:
    """The trained network `name`, frozen on `device`; raises UserError where it has no weights."""
    need_weights("training", (name,))
    network = architecture_of(name).build()
    network.load_state_dict(load_weights(stored_as(name)))
    return network.eval().requires_grad_(False).to(device)
