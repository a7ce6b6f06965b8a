"""Makes torchvision importable beside a CPU build of torch.

torchvision's ordinary wheel registers its operators from a library linked to CUDA. Beside a
CPU torch that library does not load, and the import stops at the Python registrations that
refer to `torchvision::nms` and `torchvision::qnms`. Declaring these two schemas lets
datasets, transforms and models work; calling the two operators still fails, as it must.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType

import torch

_SCHEMAS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}
_LIBRARIES: list[torch.library.Library] = []


def import_torchvision(module: str = "torchvision") -> ModuleType:
    """Imports `module` of torchvision, declaring its missing operators only where the import fails."""
    try:
        return importlib.import_module(module)
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[name]
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name, schema in _SCHEMAS.items():
        if not hasattr(torch.ops.torchvision, name):
            library.define(schema)
    _LIBRARIES.append(library)
    return importlib.import_module(module)
