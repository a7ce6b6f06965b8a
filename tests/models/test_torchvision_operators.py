"""torchvision beside any torch: importable again and again, with nothing declared where that is needless."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
PROBE = """
import importlib, json, sys, types
import torch
from models import torchvision_operators as ours
{before}
first = ours.import_torchvision("torchvision.datasets")
declared = len(ours._LIBRARIES)
second = ours.import_torchvision("torchvision.datasets")
transforms = ours.import_torchvision("torchvision.transforms")
print(json.dumps(dict(
    same=first is second, mnist=hasattr(first, "MNIST"), compose=hasattr(transforms, "Compose"),
    declared=declared, later=len(ours._LIBRARIES),
    operators=[hasattr(torch.ops.torchvision, name) for name in ("nms", "qnms")],
)))
"""
STUB = """
stub = types.ModuleType("torchvision.datasets")
stub.MNIST = object
package = types.ModuleType("torchvision")
package.datasets = stub
transforms = types.ModuleType("torchvision.transforms")
transforms.Compose = object
sys.modules |= {
    "torchvision": package, "torchvision.datasets": stub, "torchvision.transforms": transforms
}
"""
OTHER = """
import models.torchvision_operators as ours
def broken(module):
    raise RuntimeError("planted: something else")
ours.importlib.import_module = broken
try:
    ours.import_torchvision()
except RuntimeError as error:
    print(error, len(ours._LIBRARIES))
"""


def output(code: str) -> str:
    shown = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert shown.returncode == 0, shown.stderr
    return shown.stdout


@pytest.mark.slow
def test_data_sets_and_transforms_import_twice() -> None:
    found = json.loads(output(PROBE.format(before="")))
    assert found["same"]
    assert found["mnist"]
    assert found["compose"]
    # Both operators exist afterwards, whether torchvision brought them or they were declared once.
    assert found["operators"] == [True, True]
    assert found["declared"] in (0, 1)
    assert found["later"] == found["declared"]


def test_nothing_is_declared_where_torchvision_imports_by_itself() -> None:
    found = json.loads(output(PROBE.format(before=STUB)))
    assert (found["declared"], found["later"]) == (0, 0)
    assert found["operators"] == [False, False]


def test_any_other_failure_is_passed_on() -> None:
    assert output(OTHER) == "planted: something else 0\n"
