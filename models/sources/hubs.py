"""`torchvision:`, `timm:` and `robustbench:`: published architectures with weights that are here already."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from typing import Any

import torch
from torch import nn

from models.errors import UserError
from models.registry import suggest
from models.sources.base import SOURCES, Place, load_state
from models.torchvision_operators import import_torchvision


def _package(name: str) -> Any:
    if importlib.util.find_spec(name) is None:
        raise UserError(f"'{name}:' needs the package {name}: pip install 'rhobust[{name}]'")
    return importlib.import_module(name)


def _torchvision(place: Place) -> nn.Module:
    """An architecture of torchvision.models with weights from @weights=FILE or the hub's cache."""
    hub = import_torchvision("torchvision.models")
    known = hub.list_models()
    if place.text not in known:
        raise suggest("torchvision model", place.text, known)
    network = hub.get_model(place.text, weights=None, **place.arguments)
    if place.weights is not None:
        return load_state(network, place.weights, f"torchvision:{place.text}")
    for weights in hub.get_model_weights(place.text):
        cached = Path(torch.hub.get_dir()) / "checkpoints" / weights.url.rpartition("/")[2]
        if cached.is_file():
            return load_state(network, cached, f"torchvision:{place.text}")
    raise UserError(
        f"torchvision:{place.text} has no weights in the hub's cache, and nothing is downloaded: "
        "add @weights=FILE"
    )


def _timm(place: Place) -> nn.Module:
    """An architecture of timm with weights from @weights=FILE."""
    timm = _package("timm")
    if place.weights is None:
        raise UserError(f"timm:{place.text} needs @weights=FILE (nothing is downloaded)")
    try:
        network = timm.create_model(place.text, pretrained=False, **place.arguments)
    except RuntimeError as error:
        raise UserError(f"timm:{place.text}: {str(error).splitlines()[0]}") from None
    return load_state(network, place.weights, f"timm:{place.text}")


def _robustbench(place: Place) -> nn.Module:
    """A model of RobustBench with weights from @weights=FILE."""
    _package("robustbench")
    architectures = importlib.import_module("robustbench.model_zoo.models").model_dicts
    for sets in architectures.values():
        for models in sets.values():
            if place.text in models:
                if place.weights is None:
                    raise UserError(f"robustbench:{place.text} needs @weights=FILE (nothing is downloaded)")
                return load_state(models[place.text]["model"](), place.weights, f"robustbench:{place.text}")
    raise UserError(f"robustbench knows no model '{place.text}'")


SOURCES.add("torchvision", _torchvision)
SOURCES.add("timm", _timm)
SOURCES.add("robustbench", _robustbench)
