"""`torchvision:`, `timm:` and `robustbench:`: published architectures with weights that are here already."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

from models.errors import UserError
from models.registry import suggest
from models.sources.base import SOURCES, Place, load_state
from models.torchvision_operators import import_torchvision


def _package(name: str, module: str = "") -> Any:
    """A package of an extra, or a module of it; both of ours need torchvision."""
    if importlib.util.find_spec(name) is None:
        raise UserError(f"'{name}:' needs the package {name}: pip install 'rhobust[{name}]'")
    import_torchvision("torchvision.models")
    try:
        return importlib.import_module(module or name)
    except Exception as error:
        # A package of this size may lack anything.
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"{name} cannot be imported ({reason}): pip install 'rhobust[{name}]'") from None


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
    """An architecture of timm with weights from @weights=FILE or the hub's cache."""
    timm = _package("timm")
    known = timm.list_models()
    if place.text.split(".")[0] not in known:
        raise suggest("timm model", place.text, known)
    try:
        network = timm.create_model(place.text, pretrained=False, **place.arguments)
    except (RuntimeError, TypeError, ValueError) as error:
        raise UserError(f"timm:{place.text}: {str(error).splitlines()[0]}") from None
    weights = place.weights or _cached(getattr(network, "pretrained_cfg", None) or {})
    if weights is None:
        raise UserError(
            f"timm:{place.text} has no weights in the hub's cache, and nothing is downloaded: "
            "add @weights=FILE"
        )
    return load_state(network, weights, f"timm:{place.text}")


def _cached(described: dict[str, Any]) -> Path | None:
    """The weights that timm's own download would have left, in either hub's cache."""
    home = Path(os.environ.get("HF_HOME") or "~/.cache/huggingface").expanduser()
    cache = Path(os.environ.get("HF_HUB_CACHE") or home / "hub")
    folder = f"models--{str(described.get('hf_hub_id')).replace('/', '--')}"
    checkpoint = str(described.get("url") or "").rpartition("/")[2] or "none"
    places = [
        *sorted(cache.glob(f"{folder}/snapshots/*/model.safetensors")),
        *sorted(cache.glob(f"{folder}/snapshots/*/pytorch_model.bin")),
        Path(torch.hub.get_dir()) / "checkpoints" / checkpoint,
    ]
    return next((place for place in places if place.is_file()), None)


def _robustbench(place: Place) -> nn.Module:
    """A model of RobustBench with weights from @weights=FILE or robustbench's folder `models`."""
    # RobustBench 1.1 imports `autoattack`; the package that it requires calls itself `pyautoattack`.
    if not importlib.util.find_spec("autoattack") and importlib.util.find_spec("pyautoattack"):
        sys.modules["autoattack"] = importlib.import_module("pyautoattack")
    architectures = _package("robustbench", "robustbench.model_zoo.models").model_dicts
    known: set[str] = set()
    for data, sets in architectures.items():
        for threat, models in sets.items():
            known |= set(models)
            if place.text not in models:
                continue
            kept = Path("models") / data.value / threat.value / f"{place.text}.pt"
            weights = place.weights or (kept if kept.is_file() else None)
            if weights is None:
                raise UserError(
                    f"robustbench:{place.text} has no weights at {kept}, and nothing is downloaded: "
                    "add @weights=FILE"
                )
            return load_state(models[place.text]["model"](), weights, f"robustbench:{place.text}")
    raise suggest("robustbench model", place.text, sorted(known))


SOURCES.add("torchvision", _torchvision)
SOURCES.add("timm", _timm)
SOURCES.add("robustbench", _robustbench)
