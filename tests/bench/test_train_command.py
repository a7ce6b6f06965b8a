"""The command `train`: mistakes before any compute, a root of a few images, and a run that is killed."""

from __future__ import annotations

import re
import struct
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

from bench.cli import main
from models.checkpoint import places, training_lock
from tests.bench.commands import COMMAND, ROOT, environment

MISTAKES = {
    "a defence that cannot bound the network": ("lenet+polytope", "polytope cannot train lenet: max pooling"),
    "a norm that is scaled again": ("resnet-small+spectral", "cannot train resnet-small: its batch norm"),
    "no hidden layer": ("linear-3-7+noise-blind", "cannot train linear-3-7: it has no hidden features"),
    "sources of other data": ("linear-3-7+ensemble-adversarial", "judges mnist, linear-3-7 is for mnist-3-7"),
    "a ramp beyond the box": (
        "conv-small+interval(eps=0.95,overshoot=1.2)",
        "cannot train at radius 1.14: images lie in",
    ),
    "a dual beyond the box": ("conv-small+polytope(eps=0.9)", "cannot train at radius 1.08: images lie in"),
    "examples beyond the box": ("conv-small+adversarial-pgd(eps=2)", "cannot train at radius 2: images lie"),
    "steps beyond the box": ("conv-small+adversarial-fgsm(eps=77)", "cannot train at radius 77: images lie"),
    "a negative radius": ("conv-small+trades(eps=-0.1)", "is a number from 0 up, not '-0.1'"),
    "a share of more than all": ("conv-small+adversarial-pgd(ramp=3)", "needs ramp between 0 and 1, not 3"),
    "one source": ("conv-small+ensemble-adversarial(sources=lenet)", "needs two trained networks or more"),
    "a teacher nobody trained": (
        "conv-small+distillation(teacher=lenet+temperature(temperature=7.5))",
        "needs the trained network 'lenet+temperature(temperature=7.5)', which has no weights",
    ),
    "a generator nobody wrote": ("conv-small+vae-augmentation(generator=gan)", "unknown generator 'gan'"),
    "what stands at the input": ("conv-small+jpeg", "jpeg is not trained: train conv-small"),
    "training behind the input": ("conv-small+jpeg+trades", "defences that train come first"),
    "nothing to go on from": ("conv-small+none+trades", "none trains on from nothing: leave it out"),
    "a first training beyond the box": (
        "conv-small+interval(eps=0.95,overshoot=1.2)+trades",
        "cannot train at radius 1.14: images lie in",
    ),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_one_line_before_anything_is_read(
    case: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("defenses.zoo.load_data", lambda *_: pytest.fail("data was read"))
    name, message = MISTAKES[case]
    assert main(["train", name, "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert error.startswith("error: ")
    assert "\n" not in error
    assert list(tmp_path.iterdir()) == []


def root_of(folder: Path, labels: list[int]) -> Path:
    """A data root whose MNIST has one random image for each of `labels`, to train and to test on."""
    raw = folder / "MNIST" / "raw"
    raw.mkdir(parents=True)
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (len(labels), 28, 28), dtype=np.uint8)
    for part in ("train", "t10k"):
        head = struct.pack(">IIII", 0x803, len(labels), 28, 28)
        (raw / f"{part}-images-idx3-ubyte").write_bytes(head + pixels.tobytes())
        content = struct.pack(">II", 0x801, len(labels)) + bytes(labels)
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(content)
    return folder


def test_a_training_set_without_a_class_is_refused_by_its_name(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    root = root_of(tmp_path / "root", [label for label in range(10) if label != 7] * 3)
    monkeypatch.setattr("defenses.zoo.train", lambda *_, **__: pytest.fail("training began"))
    line = ["train", "conv-small", "--data-root", str(root), "--out", str(tmp_path / "out")]
    assert main(line) == 2
    assert "mnist-train has no image of class 7: complete it before training" in capsys.readouterr().err


def test_test_images_of_another_shape_are_refused_before_training(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """They were found out by a traceback after the last epoch."""
    root = root_of(tmp_path / "root", list(range(10)) * 3)
    monkeypatch.setattr("defenses.zoo.train", lambda *_, **__: pytest.fail("training began"))
    images = root / "MNIST" / "raw" / "t10k-images-idx3-ubyte"
    line = ["train", "conv-small", "--data-root", str(root), "--out", str(tmp_path / "out")]
    images.write_bytes(struct.pack(">IIII", 0x803, 30, 20, 20) + bytes(30 * 400))
    assert main(line) == 2
    assert "conv-small takes (1, 28, 28), mnist has (1, 20, 20)" in capsys.readouterr().err
    images.write_bytes(b"rubbish")
    assert main(line) == 2
    assert "MNIST under" in (error := capsys.readouterr().err)
    assert "cannot be read" in error


@pytest.mark.parametrize("name", ["conv-small", "conv-small+trades+interval"])
def test_a_folder_that_takes_no_weights_is_named_before_anything_is_read(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("defenses.zoo.load_data", lambda *_: pytest.fail("data was read"))
    (tmp_path / "file").touch()
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        assert main(["train", name, "--out", str(place), "--force"]) == 2
        assert f"cannot write into {place}" in (error := capsys.readouterr().err)
        assert "name another folder" in error


@pytest.mark.slow
def test_two_do_not_train_one_network_in_one_folder(tmp_path: Path) -> None:
    root, name = root_of(tmp_path / "root", list(range(10)) * 3), "conv-small+l1-sparse(epochs=1)"
    line = ["train", name, "--data-root", str(root), "--out", str(tmp_path)]
    options = {"cwd": ROOT, "env": environment(), "text": True, "capture_output": True, "timeout": 300}
    with training_lock(name, tmp_path):
        second = subprocess.run([*COMMAND, *line], check=False, **options)
    assert second.returncode == 2
    assert f"{name} is being trained in {tmp_path} by another process: wait" in second.stderr
    assert not places(name, tmp_path)[0].exists()
    assert main(line) == 0


@pytest.mark.slow
def test_a_run_that_is_killed_goes_on_from_its_last_epoch(tmp_path: Path) -> None:
    """The weights are those of a run that nobody stopped, byte for byte."""
    root, name = root_of(tmp_path / "root", list(range(10)) * 60), "conv-small+l1-sparse(epochs=30)"

    def line(out: str) -> list[str]:
        return [*COMMAND, "train", name, "--data-root", str(root), "--out", str(tmp_path / out)]

    options = {"cwd": ROOT, "env": environment(), "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    whole = subprocess.Popen(line("whole"), text=True, **options)
    killed = subprocess.Popen(line("killed"), **options)
    checkpoint = tmp_path / "killed" / ".training" / f"{name}.checkpoint"
    while not checkpoint.exists():
        assert killed.poll() is None
        time.sleep(0.01)
    killed.kill()
    killed.communicate(timeout=60)
    assert not places(name, tmp_path / "killed")[0].exists()
    resumed = subprocess.run(line("killed"), text=True, timeout=300, check=True, **options)
    assert first_epoch(resumed.stdout) > 1
    shown, _ = whole.communicate(timeout=300)
    assert whole.returncode == 0, shown
    assert first_epoch(shown) == 1
    weights = [places(name, tmp_path / out)[0].read_bytes() for out in ("whole", "killed")]
    assert weights[0] == weights[1]
    assert not checkpoint.exists()


def first_epoch(shown: str) -> int:
    """The epoch that the run began with."""
    return int(re.findall(r"epoch (\d+)/30", shown)[0])


def test_what_a_training_goes_on_from_is_trained_before_it_and_shown(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    root, out = root_of(tmp_path / "root", list(range(10)) * 3), tmp_path / "out"
    name = "conv-small+l1-sparse(epochs=1)+l1-sparse(epochs=2)"
    line = ["train", name, "--data-root", str(root), "--out", str(out)]
    assert main(line) == 0
    shown = [text for text in capsys.readouterr().out.splitlines() if " epoch " in text]
    assert [text.split(" loss ")[0] for text in shown] == [
        "conv-small+l1-sparse(epochs=1) epoch 1/1",
        f"{name} epoch 1/2",
        f"{name} epoch 2/2",
    ]
    assert places("conv-small+l1-sparse(epochs=1)", out)[0].exists()
    assert main(line) == 0
    assert "is trained already" in capsys.readouterr().out
