"""The user's own model and images, from the command line: one line in, the bracket out."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from pandas import read_csv
from torch import nn

import bench.cli
from bench.plan import Filters, make_plan, with_own
from bench.spec import read_matrix
from bench.weights import own_hash, with_hash
from tests.bench.builders import catalog
from tests.bench.commands import command, times

CODE = """
import torch
from torch import nn

def make(scale=1.0):
    layers = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    torch.nn.init.normal_(layers[1].weight, generator=torch.Generator().manual_seed(0))
    layers[1].bias.data.zero_()
    layers[1].weight.data *= scale
    return layers
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A linear network, and 40 images with the network's own labels, well inside the box."""
    (tmp_path / "net.py").write_text(CODE, encoding="utf-8")
    generator = torch.Generator().manual_seed(1)
    images = 0.3 + 0.4 * torch.rand(40, 1, 4, 4, generator=generator)
    weight = torch.randn(3, 16, generator=torch.Generator().manual_seed(0))
    labels = (images.flatten(1) @ weight.T).argmax(1)
    np.savez(tmp_path / "images.npz", images=images.numpy(), labels=labels.numpy())
    return tmp_path


def exact(folder: Path, eps: float) -> float:
    """The robust accuracy of the linear network at linf eps."""
    arrays = np.load(folder / "images.npz")
    weight = torch.randn(3, 16, generator=torch.Generator().manual_seed(0)).numpy()
    logits = arrays["images"].reshape(40, 16) @ weight.T
    right = logits[np.arange(40), arrays["labels"]][:, None] - logits
    reach = eps * np.abs(weight[arrays["labels"]][:, None] - weight[None]).sum(2)
    return float(np.all((right > reach) | (right == 0), axis=1).mean())


def inside(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    code = bench.cli.main(list(map(str, arguments)))
    streams = capsys.readouterr()
    return code, streams.out, streams.err


def test_evaluate_prints_the_bracket_of_a_linear_network(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = (f"file:{folder}/net.py:make", "--data", f"npz:{folder}/images.npz")
    truth = exact(folder, 0.05)
    assert 0.1 < truth < 0.9
    code, shown, errors = inside(capsys, "evaluate", *own, "--eps", "0.05", "--limit", "40")
    assert (code, errors) == (0, "")
    assert shown.splitlines()[0] == "clean: 100.0 % of 40 images"
    percent = re.findall(r"([\d.]+) %", shown.splitlines()[2])
    assert [float(part) for part in percent] == pytest.approx([100, 100 * truth, 100 * truth, 0], abs=0.06)


def test_evaluate_takes_zoo_names_and_refuses_other_shapes(
    capsys: pytest.CaptureFixture[str], folder: Path
) -> None:
    options = ("--limit", "5", "--attack", "fgsm", "--certify", "ibp", "--eps", "0.01")
    code, shown, _ = inside(capsys, "evaluate", "fc500-150-10", *options)
    assert (code, shown.splitlines()[0]) == (0, "clean: 100.0 % of 5 images")
    code, shown, errors = inside(capsys, "evaluate", "lenet", "--data", f"npz:{folder}/images.npz", *options)
    assert (code, shown) == (2, "")
    assert "judges inputs of shape (1, 28, 28)" in errors
    assert errors.count("\n") == 1


def test_what_looks_wrong_with_a_model_is_said_before_the_bracket(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own, options = f"file:{folder}/net.py:make", ("--eps", "0.01", "--limit", "40", "--attack", "fgsm")
    images = f"npz:{folder}/images.npz"
    code, shown, errors = inside(capsys, "evaluate", f"{own}@mean=0.5@std=0.01", "--data", images, *options)
    assert (code, shown.splitlines()[0][:6], errors.count("\n")) == (0, "clean:", 1)
    assert errors.startswith("note: scaling: the first layer sees values from -20 to 20")
    arrays = dict(np.load(folder / "images.npz"))
    np.savez(folder / "turned.npz", images=arrays["images"], labels=(arrays["labels"] + 1) % 3)
    code, _, errors = inside(capsys, "evaluate", own, "--data", f"npz:{folder}/turned.npz", *options)
    assert code == 0
    assert errors == (
        "note: class order: 0 % of 40 images are right, but 100 % with labels renamed: bring them into the "
        "order of the logits\n"
    )


def test_weights_and_a_time_limit_are_options(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own, images = f"file:{folder}/net.py:make", f"npz:{folder}/images.npz"
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    weight = torch.randn(3, 16, generator=torch.Generator().manual_seed(0))
    network.load_state_dict({"1.weight": -weight, "1.bias": torch.zeros(3)})
    torch.save(network.state_dict(), folder / "other.pth")
    options = ("--data", images, "--eps", "0.01", "--limit", "40", "--attack", "fgsm", "--certify", "ibp")
    code, shown, _ = inside(capsys, "evaluate", own, *options, "--weights", folder / "other.pth")
    assert (code, shown.splitlines()[0]) == (0, "clean: 0.0 % of 40 images")
    code, shown, errors = inside(capsys, "evaluate", own, *options, "--seconds", "100")
    assert (code, errors, " 40 " in shown.splitlines()[2]) == (0, "", True)
    code, _, errors = inside(capsys, "evaluate", own, *options, "--seconds", "0.0000001")
    assert (code, errors.count("\n")) == (2, 1)
    assert "no image is judged after 1e-07 seconds: give more" in errors


MISTAKES = {
    "model": (("lenett",), "unknown model 'lenett'"),
    "source": (("fil:net.py:make",), "unknown model source 'fil'"),
    "data": (("lenet", "--data", "minst"), "unknown data set 'minst'"),
    "eps": (("lenet", "--eps", "many"), "eps"),
    "norm": (("lenet", "--norm", "l7", "--limit", "3"), "l7"),
    "limit": (("lenet", "--limit", "0"), "--limit must be at least 1, not 0"),
    "weights of the zoo": (("lenet", "--weights", "a.pt"), "--weights goes with a model of your own"),
    "a file": (("net.py",), "write file:net.py:FUNCTION"),
    "parameter": (("lenet", "--attack", "pgd(step=3)"), "unknown parameter of attack pgd 'step'"),
    "seconds": (("lenet", "--seconds", "0", "--limit", "3"), "seconds must be a number above 0, not 0"),
    "imagenet": (("lenet", "--data", "imagenet", "--data-root", "absent"), "it cannot be downloaded: put"),
    "attack": (("lenet", "--attack", "pgdd", "--limit", "3"), "unknown attack 'pgdd'"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_one_line_and_exit_code_2(case: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments, message = MISTAKES[case]
    code, _, errors = inside(capsys, "evaluate", *arguments)
    assert code == 2
    assert errors.startswith("error: ")
    assert errors.count("\n") == 1
    assert message in errors


def test_a_plan_knows_own_names_and_their_content(folder: Path) -> None:
    model, data = f"file:{folder}/net+.py:make", f"npz:{folder}/images.npz"
    shutil.copy(folder / "net.py", folder / "net+.py")
    spec = read_matrix("quick").model_copy(
        update={
            "data": with_hash(data), "attacks": ("step",), "certificates": ("boxes",), "sources": (),
            "defenses": ("none",), "parameters": {},
        }
    )  # fmt: skip
    known = with_own(catalog(), (model,), spec.data)
    plan = make_plan(spec, known, own_hash, Filters(models=(model,)))
    assert {cell.defended for cell in plan.cells} == {model}
    assert {cell.weights for cell in plan.cells} == {own_hash(model)}
    assert {cell.data for cell in plan.cells} == {spec.data}
    assert re.fullmatch(r"npz:.*images\.npz@[0-9a-f]{16}", spec.data)


def test_a_defence_that_is_named_for_ones_own_model_is_a_skip_with_its_reason(folder: Path) -> None:
    model = f"file:{folder}/net.py:make"
    asked = read_matrix("quick").model_copy(
        update={"attacks": ("step",), "certificates": (), "parameters": {}, "sources": ()}
    )
    cases = [
        (("none", "hull"), (model,), Filters(), [f"{model}+hull"]),
        (("none", "hull"), ("dense",), Filters(models=(model,)), []),
        (("none",), ("dense",), Filters(models=(model,), defenses=("hull",)), [f"{model}+hull"]),
        (("*",), (model,), Filters(), []),
    ]
    for defenses, models, filters, left_out in cases:
        spec = asked.model_copy(update={"defenses": defenses, "models": models})
        plan = make_plan(spec, with_own(catalog(), (model,), spec.data), own_hash, filters)
        assert {cell.defended for cell in plan.cells} == {model}
        assert [skip.what for skip in plan.skips if "put the defence into" in skip.reason] == left_out


@pytest.mark.slow
def test_run_keeps_records_until_weights_or_images_change(folder: Path) -> None:
    def again() -> tuple[int, int]:
        arguments = ("--model", f"file:{folder}/net.py:make", "--data", f"npz:{folder}/images.npz")
        options = ("--attack", "fgsm", "--certify", "ibp", "--limit", "10", "--workers", "1")
        shown = command("run", *arguments, *options, "--out", folder / "out")
        assert shown.returncode == 0, shown.stderr
        ran = sum(line.startswith("[") for line in shown.stdout.splitlines())
        return ran, len(times(folder / "out"))

    first, records = again()
    assert first == records > 0
    assert again() == (0, records)
    code = (folder / "net.py").read_text(encoding="utf-8").replace("scale=1.0", "scale=2.0")
    (folder / "net.py").write_text(code, encoding="utf-8")
    assert again() == (first, 2 * records)
    arrays = dict(np.load(folder / "images.npz"))
    arrays["images"] = arrays["images"] * 0.99
    np.savez(folder / "images.npz", **arrays)
    assert again() == (first, 3 * records)


@pytest.mark.slow
def test_the_images_of_a_matrix_of_ones_own_are_followed_by_content(folder: Path) -> None:
    """A data set that the matrix names, and not the command line, is other data once its file is another."""
    (folder / "my.toml").write_text(
        f"""
models = ["file:{folder}/net.py:make"]
data = "npz:{folder}/images.npz"
attacks = ["fgsm"]
certificates = []
sources = []
threats = [{{ norm = "linf", eps = 0.01 }}]
images = {{ cheap = 40, medium = 0, expensive = 0, extreme = 0 }}
""",
        encoding="utf-8",
    )

    def clean() -> float:
        shown = command("run", "--matrix", folder / "my.toml", "--workers", "1", "--out", folder / "out")
        assert shown.returncode == 0, shown.stderr
        return float(read_csv(folder / "out" / "leaderboards" / "linf-0.01.csv")["clean"].iloc[0])

    assert clean() == 1.0
    arrays = dict(np.load(folder / "images.npz"))
    np.savez(folder / "images.npz", images=arrays["images"], labels=(arrays["labels"] + 1) % 3)
    assert clean() == 0.0
