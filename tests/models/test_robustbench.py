"""`robustbench:` against a small package with RobustBench 1.1's layout, its missing import included."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from models.base import Batch
from models.errors import UserError
from models.sources.opening import open_model

MODELS = """
from enum import Enum
from torch import nn

class Data(Enum):
    cifar10 = "cifar10"

class Threat(Enum):
    Linf = "Linf"

def tiny():
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 3))

model_dicts = {Data.cifar10: {Threat.Linf: {"Tiny2020": {"model": tiny, "gdrive_id": "0"}}}}
"""


def images() -> Batch:
    generator = torch.Generator().manual_seed(0)
    return Batch(torch.rand(4, 3, 2, 2, generator=generator), torch.tensor([0, 1, 2, 0]), torch.arange(4))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """RobustBench imports `autoattack`; the package it requires installs the same as `pyautoattack`."""
    for name, text in {
        "robustbench/__init__.py": "from autoattack import AutoAttack\n",
        "robustbench/model_zoo/__init__.py": "",
        "robustbench/model_zoo/models.py": MODELS,
        "pyautoattack/__init__.py": "class AutoAttack: ...\n",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name in [name for name in sys.modules if name.split(".")[0] in PACKAGES]:
        del sys.modules[name]


PACKAGES = ("robustbench", "autoattack", "pyautoattack")


def test_weights_come_from_its_own_folder_or_a_file_and_nothing_is_downloaded(folder: Path) -> None:
    with pytest.raises(
        UserError, match=r"no weights at models/cifar10/Linf/Tiny2020.pt, and nothing is downl"
    ):
        open_model("robustbench:Tiny2020", images(), 3)
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    parallel = {f"module.{name}": value for name, value in network.state_dict().items()}
    kept = folder / "models" / "cifar10" / "Linf" / "Tiny2020.pt"
    kept.parent.mkdir(parents=True)
    torch.save({"state_dict": parallel}, kept)
    for line in ("robustbench:Tiny2020", f"robustbench:Tiny2020@weights={kept}"):
        opened = open_model(line, images(), 3).classifier
        torch.testing.assert_close(opened.logits(images().x), network(images().x))


def test_an_unknown_id_names_the_nearest(folder: Path) -> None:
    with pytest.raises(UserError, match="unknown robustbench model 'Tiny2021': did you mean Tiny2020"):
        open_model("robustbench:Tiny2021", images(), 3)


def test_an_installation_that_lacks_a_package_says_which(folder: Path) -> None:
    shutil.rmtree(folder / "pyautoattack")
    with pytest.raises(UserError, match=r"robustbench cannot be imported \(No module named 'autoattack'\)"):
        open_model("robustbench:Tiny2020", images(), 3)
