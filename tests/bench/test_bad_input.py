"""The same mistakes from the command line: exit code 2 and one line, or a flag under the bracket."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch
from torch import nn

from bench import evaluate
from bench.cli import main

MISTAKES = {
    "a norm that the attack does not have": (
        ("--attack", "jsma", "--eps", "0.1"),
        "attack 'jsma' has no norm 'linf': it has l0",
    ),
    "a norm that nobody has": (("--norm", "l7"), "unknown norm 'l7': known are linf, l2"),
    "a certificate of a threat that is no ball": (
        ("--norm", "rotation", "--eps", "5", "--certify", "ibp"),
        "certificate 'ibp' has no norm 'rotation'",
    ),
    "eps beyond the box": (
        ("--eps", "8"),
        "reaches beyond the box [0, 1]: write it in the units of the inputs",
    ),
    "a severity that is none": (("--norm", "corruption", "--eps", "9"), "severity, 1 to 5, not 9"),
    "a share of more than the picture": (("--norm", "mask", "--eps", "2"), "in (0, 1], not 2"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_one_line_and_exit_code_2(case: str, capsys: pytest.CaptureFixture[str]) -> None:
    options, message = MISTAKES[case]
    assert main(["evaluate", "fc500-150-10", "--limit", "3", *options]) == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert error.startswith("error: ")
    assert "\n" not in error


class Rounded(nn.Module):
    """Linear on rounded inputs: the gradient is zero."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(16, 3)
        nn.init.normal_(self.layer.weight, generator=torch.Generator().manual_seed(0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x.round())


class Detached(Rounded):
    """The same without a gradient at all."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x.detach())


def test_a_zero_gradient_and_none_are_flags_under_the_bracket() -> None:
    x = torch.rand(12, 16, generator=torch.Generator().manual_seed(1))
    rounded, detached = Rounded(), Detached()
    zero = evaluate(rounded, x, rounded(x).argmax(1), eps=0.1, certificates=[], attacks=["pgd"])
    assert zero.flags[0].startswith("zero gradient: gradients of 100 %")
    assert zero.flags[-1] == "attack pgd saw a zero gradient and nothing else on 12 of 12 samples"
    none = evaluate(detached, x, detached(x).argmax(1), eps=0.3, certificates=[])
    assert none.flags[0].startswith("no gradient: outputs do not depend on the inputs")
    assert none.flags[1].startswith("attack fgsm left out: model 'Detached' hands out no gradient")
    assert none.attacked < 1


def test_a_model_of_another_family_says_why_nothing_runs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--model", "nin", "--dry-run"]) == 2
    assert "is trained for cifar10-jpeg, not for mnist5k" in capsys.readouterr().err


def test_a_full_disk_says_which_file_and_that_room_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(tmp_path / "run.json"))

    monkeypatch.setattr("bench.commands.table.execute", full)
    assert main(["table", "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err == (
        f"error: {tmp_path / 'run.json'}: No space left on device: make room, the same command continues\n"
    )


@pytest.mark.parametrize(
    ("arguments", "kept"),
    [
        (("evaluate", "lenet"), "nothing is kept"),
        (("audit", "lenet"), "nothing is kept"),
        (("train", "lenet"), "finished epochs are kept, the same command continues"),
        (("certify",), "a batch keeps its finished rows, the same command continues"),
        (("check",), "finished cells are kept where --out names a folder, the same command continues"),
    ],
)
def test_a_command_that_is_stopped_says_what_it_leaves(
    arguments: tuple[str, ...],
    kept: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def stopped(*_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(f"bench.commands.{arguments[0]}.execute", stopped)
    assert main([*arguments]) == 130
    assert capsys.readouterr().err == f"stopped: {kept}\n"


PLACES = {
    "smallest": ("smallest", "fc500-150-10", "--limit", "1", "--out", "file/x/y.csv"),
    "detect": ("detect", "fc500-150-10", "--detector", "pca-tail", "--limit", "2", "--roc", "file/x/y.csv"),
    "evaluate": ("evaluate", "fc500-150-10", "--eps", "0.01", "--limit", "2", "--proof", "file/x"),
    "audit": ("audit", "fc500-150-10", "--limit", "2", "--out", "file/x"),
    "analyse": ("analyse", "sparsity", "fc500-150-10", "--limit", "2", "--out", "file/x"),
    "run": ("run", "--model", "fc500-150-10", "--limit", "2", "--proof", "file/x"),
    "certify": ("certify", "--batch", "instances.csv", "--witness", "file/x"),
}


@pytest.mark.parametrize("command", PLACES)
def test_a_place_that_cannot_be_written_is_said_before_anything_is_computed(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    (tmp_path / "instances.csv").write_text("a.onnx,a.vnnlib,9\n", encoding="utf-8")
    assert main([*PLACES[command]]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("error: cannot write into file/x (")
    assert shown.err.count("\n") == 1


def test_certifying_a_model_is_pointed_to_evaluate(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["conv-small"], ["--eps", "0.1"], ["conv-small", "--eps", "0.1"]):
        assert main(["certify", *words]) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        assert "evaluate MODEL --eps EPS --certify exact" in said


class Listing(Rounded):
    """Layer by layer over a list of its inputs' rows, which no tracer follows."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stack([self.layer(row) for row in x])


class Measuring(Rounded):
    """Asks how many inputs there are, of which the tracer's refusal goes on with advice."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x) * bool(len(x))


@pytest.mark.parametrize(
    ("network", "reason"),
    [
        (Listing, "Proxy object cannot be iterated"),
        (Measuring, "'len' is not supported in symbolic tracing by default"),
    ],
)
def test_what_no_certificate_can_trace_is_said_once_and_in_few_words(network, reason) -> None:
    x = torch.rand(4, 16, generator=torch.Generator().manual_seed(1))
    model = network()
    found = evaluate(model, x, model(x).argmax(1), eps=1e-4, attacks=["fgsm"])
    (said,) = [flag for flag in found.flags if "left out" in flag]
    assert said.startswith("certificates ibp, ")
    assert said.endswith(f"cannot trace '{network.__name__}': {reason}")
