"""Builds the catalog from the registries: the one place that turns components into plain data."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

import torch
from torch import nn

from attacks.base import ATTACKS
from bench.catalog import Catalog, Entry, plain
from certify.base import CERTIFIERS
from certify.rules.table import RULES, Rule
from defenses.base import DEFENSES, Defense
from defenses.inputs import INPUT_DEFENSES, InputDefense
from models.architecture import MODELS, Architecture
from models.data import DATA
from models.discover import import_modules

for room in ("models", "attacks", "certify", "defenses"):
    import_modules(room)


# Python's names of operators that change a value in place.
IN_PLACE = {"iadd", "imul", "isub", "itruediv"}


def first_line(thing: Any) -> str:
    """The claim that a docstring opens with."""
    return (inspect.getdoc(thing) or "").split("\n", maxsplit=1)[0]


def _defaults(cls: type, without: tuple[str, ...] = ()) -> dict[str, Any]:
    fields = [field for field in dataclasses.fields(cls) if field.name not in without]
    found = {}
    for field in fields:
        if field.default is not dataclasses.MISSING:
            found[field.name] = plain(field.default)
        elif field.default_factory is not dataclasses.MISSING:
            found[field.name] = plain(field.default_factory())
    return found


def catalog() -> Catalog:
    """Every registered component as plain data."""
    return Catalog(
        models={name: _model(name) for name in MODELS},
        defenses={name: _defense(name) for name in sorted({*DEFENSES, *INPUT_DEFENSES})},
        attacks={name: _attack(name) for name in ATTACKS},
        certificates={name: _certificate(name) for name in CERTIFIERS},
        data={name: Entry(name=name, summary=first_line(DATA[name]), paper="") for name in DATA},
        operations=_operations(),
    )


def _operations() -> dict[str, Entry]:
    """The layers, functions and methods that certificates understand, those of one rule together."""
    names: dict[Rule, list[str]] = {}
    for target, build in RULES.items():
        own = target if isinstance(target, str) else target.__name__
        name = f"nn.{own}" if isinstance(target, type) and issubclass(target, nn.Module) else own
        if not own.startswith("_") and not own.endswith("_") and own not in IN_PLACE:
            names.setdefault(build, []).append(name)
    entries = [
        Entry(name=", ".join(sorted(set(found))), summary=first_line(build), paper="")
        for build, found in names.items()
    ]
    return {entry.name: entry for entry in sorted(entries, key=lambda entry: entry.name.lower())}


def _model(name: str) -> Entry:
    architecture = MODELS[name]
    return Entry(
        name=name,
        summary=first_line(architecture.build),
        paper=architecture.paper,
        neurons=_neurons(architecture),
        family=architecture.data,
    )


def _neurons(architecture: Architecture) -> int:
    """How many outputs linear and convolutional layers have, and products and shares attention."""
    counts: list[int] = []
    network = architecture.build().eval()

    def count(module: nn.Module, _inputs: Any, output: Any) -> None:
        if isinstance(module, nn.MultiheadAttention):
            tokens = output[0].shape[1]
            counts.append(module.num_heads * tokens**2 * (2 * module.head_dim + tokens))
        else:
            counts.append(output[0].numel())

    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear | nn.MultiheadAttention):
            module.register_forward_hook(count)
    with torch.no_grad():
        network(torch.zeros(1, *architecture.input_shape))
    return sum(counts)


def _defense(name: str) -> Entry:
    at_input = name in INPUT_DEFENSES
    cls: type[Defense | InputDefense] = INPUT_DEFENSES[name] if at_input else DEFENSES[name]
    reasons = {model: cls().refuses(MODELS[model]) for model in MODELS}
    return Entry(
        name=name,
        summary=first_line(cls),
        paper=cls.paper,
        at_input=at_input,
        defaults=_defaults(cls),
        refuses={model: reason for model, reason in reasons.items() if reason},
    )


def _attack(name: str) -> Entry:
    cls = ATTACKS[name]
    return Entry(
        name=name,
        summary=first_line(cls),
        paper=cls.paper,
        norms=cls.norms,
        minimal=cls.minimal,
        access=cls.access,
        cost=cls.cost,
        models=cls.models,
        ensemble=cls.ensemble,
        fitted=cls.fitted,
        sweeps=cls.sweeps,
        defaults=_defaults(cls, cls.models),
    )


def _certificate(name: str) -> Entry:
    cls = CERTIFIERS[name]
    return Entry(
        name=name,
        summary=first_line(cls),
        paper=cls.paper,
        norms=cls.norms,
        cost=cls.cost,
        wide_cost=cls.wide_cost,
        defaults=_defaults(cls),
    )
