"""`evaluate --proof` and `verify-proof`: one witness file per broken image, whatever broke it."""

import pytest
import torch
from torch import nn

import bench.cli
from bench.evaluation import bracket
from bench.judges import Judges
from bench.outcomes import gather, verdicts
from bench.store import Store
from bench.witnesses import write_witnesses
from models.base import Batch, Classifier
from models.checkpoint import SHIPPED
from models.threat import ThreatModel
from tests.bench.commands import command

CHEAP = ("--attack", "pgd(steps=20, restarts=1)", "--certify", "ibp")


def inside(capsys, *arguments):
    code = bench.cli.main([str(argument) for argument in arguments])
    streams = capsys.readouterr()
    return code, streams.out, streams.err


def evaluated(capsys, folder, *arguments):
    code, out, err = inside(capsys, "evaluate", *arguments, "--proof", folder)
    assert (code, err) == (0, "")
    return out.splitlines()


def test_every_broken_image_has_a_file_that_holds(capsys, tmp_path):
    lines = evaluated(capsys, tmp_path, "conv-small", "--eps", "0.1", "--limit", 5, *CHEAP)
    assert lines[-1] == f"{tmp_path}: 3 witness files (3 by pgd(restarts=1,steps=20))"
    files = sorted(tmp_path.iterdir())
    assert [path.name for path in files] == [
        f"image-{index}.broken.safetensors" for index in (1000, 2000, 500)
    ]
    for path in files:
        code, out, err = inside(capsys, "verify-proof", path, "--weights", SHIPPED / "conv-small.safetensors")
        assert (code, out.splitlines()[0][:14], err) == (0, "broken: class ", "")
    content = bytearray(files[0].read_bytes())
    content[-200_000] ^= 0x40
    files[0].write_bytes(content)
    shown = command("verify-proof", files[0])
    assert (shown.returncode, shown.stderr) == (1, "")
    assert shown.stdout == "REFUTED: the weights are not those of the file's hash\n"


class Shifted(nn.Module):
    """Not a chain: it adds to its input."""

    def forward(self, x):
        return x + 1


def threshold():
    """Class 1 from 1/2 on, of one number; labels say 0 for the first three samples, and 1 for the last."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(1, 2))
    network[1].weight.data = torch.tensor([[0.0], [1.0]])
    network[1].bias.data = torch.tensor([0.5, 0.0])
    return Classifier(network, num_classes=2, name="threshold"), torch.tensor([[0.4], [0.9], [0.1], [0.6]])


def judged(model, x, y, attacks=("pgd",), certificates=("ibp",), norm="linf"):
    judges = Judges.named(attacks, certificates, norm)
    return judges, bracket(model, Batch.of(x, y), ThreatModel(norm, 0.2), judges)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_every_norm_has_files(norm, capsys, tmp_path):
    model, x = threshold()
    y = (x[:, 0] >= 0.5).long()
    judges, result = judged(model, x, y, norm=norm)
    write_witnesses(tmp_path, model, Batch.of(x, y), result, judges, 0)
    assert capsys.readouterr().out == f"{tmp_path}: 2 witness files (2 by pgd)\n"
    for path in tmp_path.iterdir():
        code, out, _ = inside(capsys, "verify-proof", path)
        assert code == 0
        assert f", {norm} distance <= " in out


def test_counterexamples_of_a_certificate_are_witnesses(capsys, tmp_path):
    model, x = threshold()
    y = (x[:, 0] >= 0.5).long()
    judges, result = judged(model, x, y, (), ("exact",))
    write_witnesses(tmp_path, model, Batch.of(x, y), result, judges, 0)
    assert capsys.readouterr().out == f"{tmp_path}: 2 witness files (2 by exact)\n"
    assert [inside(capsys, "verify-proof", path)[0] for path in tmp_path.iterdir()] == [0, 0]


def test_what_errs_already_is_a_witness_at_distance_zero(capsys, tmp_path):
    model, x = threshold()
    y = torch.tensor([0, 0, 0, 1])
    judges, result = judged(model, x, y)
    named = Batch(x, y, torch.tensor([11, 22, 33, 44]))
    write_witnesses(tmp_path, model, named, result, judges, 0)
    assert capsys.readouterr().out == f"{tmp_path}: 3 witness files (2 by pgd, 1 clean)\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"image-{index}.broken.safetensors" for index in (11, 22, 44)
    ]
    out = inside(capsys, "verify-proof", tmp_path / "image-22.broken.safetensors")[1]
    assert out.splitlines()[:2] == [
        "broken: class 1 wins",
        "label 0, linf distance <= 0.0, eps 0.2, in the box [0.0, 1.0]",
    ]


def test_broken_images_without_a_file_are_named_with_the_reason(capsys, tmp_path, monkeypatch):
    model, x = threshold()
    y = torch.tensor([0, 0, 0, 1])
    judges, result = judged(model, x, y)
    monkeypatch.setattr("bench.witnesses.found_again", lambda judge, model, batch, *_: batch.x)
    write_witnesses(tmp_path / "w", model, Batch.of(x, y), result, judges, 0)
    assert capsys.readouterr().out.splitlines() == [
        f"{tmp_path / 'w'}: 1 witness files (1 clean)",
        "2 broken images have no witness file: "
        "0 (no class is proved to win over 0: -0.099999994 at best), "
        "3 (no class is proved to win over 1: -0.100000024 at best)",
    ]


def test_what_is_no_chain_is_said_so_and_not_attacked_again(capsys, tmp_path, monkeypatch):
    model, x = threshold()
    model.network = nn.Sequential(Shifted(), model.network)
    y = torch.ones(4, dtype=torch.int64)
    judges, result = judged(model, x, y, ())
    monkeypatch.setattr("bench.witnesses.found_again", None)
    write_witnesses(tmp_path / "w", model, Batch.of(x, y), result, judges, 0)
    assert capsys.readouterr().out == (
        f"{tmp_path / 'w'}: no witness files: layer '0' (Shifted) has no witness files: they speak of chains "
        "of Linear, Conv2d (zero padding, one group), Flatten and ReLU, max and average pooling\n"
    )


def test_a_run_writes_the_files_of_its_broken_images(capsys, tmp_path):
    matrix, folder = tmp_path / "m.toml", tmp_path / "proofs"
    # deepfool has no eps of its own: what it finds near enough counts.
    matrix.write_text(
        'data = "mnist5k"\nmodels = ["conv-small+mixup"]\nattacks = ["fgsm", "deepfool"]\ncertificates = []\n'
        'threats = [{ norm = "linf", eps = "0.05" }]\n'
        "[images]\ncheap = 5\nmedium = 5\nexpensive = 5\nextreme = 5\n",
        encoding="utf-8",
    )
    place, arguments = folder / "conv-small+mixup-linf-0.05", ("--out", tmp_path / "r", "--proof", folder)
    for _ in range(2):
        # The second time nothing is run but what broke the images, and the files are written again.
        code, out, _ = inside(capsys, "run", "--matrix", matrix, *arguments, "--workers", 1)
        outcomes = gather(Store(tmp_path / "r").many(path.stem for path in (tmp_path / "r").rglob("c1-*")))
        broken = verdicts(outcomes, "linf", 0.05).query("attacked")["index"].tolist()
        assert code == 0
        assert len(broken) > 1
        assert f"{place}: {len(broken)} witness files (" in out
        files = [place / f"image-{index}.broken.safetensors" for index in broken]
        assert sorted(place.iterdir()) == sorted(files)
        assert [inside(capsys, "verify-proof", path)[0] for path in files] == [0] * len(files)
        files[0].unlink()


def test_a_threat_without_witness_files_is_said_so(capsys, tmp_path):
    lines = evaluated(
        capsys, tmp_path / "p", "conv-small", "--norm", "brightness", "--eps", "0.1", "--limit", 2,
        "--attack", "lighting",
    )  # fmt: skip
    assert lines[-1] == (
        f"{tmp_path / 'p'}: no witness files: witness files speak of linf, l2 and l1 and an eps, "
        "not of 'brightness'"
    )
