"""`evaluate --proof` and `verify-proof`: one file per certified image, and exit codes that can be trusted."""

from pathlib import Path

import pytest

import bench.cli
from models.checkpoint import SHIPPED
from tests.bench.commands import command


def inside(capsys, *arguments):
    code = bench.cli.main([str(argument) for argument in arguments])
    streams = capsys.readouterr()
    return code, streams.out, streams.err


def evaluated(capsys, folder, *arguments):
    code, out, err = inside(
        capsys, "evaluate", *arguments, "--limit", 3, "--attack", "fgsm", "--proof", folder
    )
    assert (code, err) == (0, "")
    return out.splitlines()


def test_every_certified_image_has_a_file_that_is_proved(capsys, tmp_path):
    folder = tmp_path / "proofs"
    lines = evaluated(capsys, folder, "conv-small+polytope", "--eps", "0.1", "--certify", "ibp")
    assert lines[-2:] == [f"{folder}: 3 proof files (3 by ibp)", f"{folder}: 0 witness files"]
    files = sorted(folder.iterdir())
    assert [path.name for path in files] == [
        "image-0.safetensors", "image-1000.safetensors", "image-500.safetensors",
    ]  # fmt: skip
    weights = SHIPPED / "conv-small+polytope.safetensors"
    for path in files:
        code, out, err = inside(capsys, "verify-proof", path, "--weights", weights)
        assert (code, out.splitlines()[0], err) == (0, "proved", "")


def test_a_damaged_file_is_refuted_with_exit_code_one(capsys, tmp_path):
    evaluated(capsys, tmp_path, "conv-small+polytope", "--eps", "0.1", "--certify", "ibp")
    path = tmp_path / "image-0.safetensors"
    content = bytearray(path.read_bytes())
    content[-200_000] ^= 0x40
    path.write_bytes(content)
    shown = command("verify-proof", path)
    assert (shown.returncode, shown.stderr) == (1, "")
    assert shown.stdout.startswith("REFUTED: ")


def test_nothing_certified_writes_nothing(capsys, tmp_path):
    lines = evaluated(capsys, tmp_path / "p", "conv-small", "--eps", "0.3", "--certify", "ibp")
    assert lines[-2] == f"{tmp_path / 'p'}: 0 proof files"
    assert not [path for path in (tmp_path / "p").iterdir() if ".broken." not in path.name]


@pytest.mark.slow
def test_a_run_writes_the_files_of_its_certified_images(capsys, tmp_path):
    matrix, folder = tmp_path / "m.toml", tmp_path / "proofs"
    matrix.write_text(
        'data = "mnist5k"\nmodels = ["conv-small+polytope"]\nattacks = []\ncertificates = ["ibp"]\n'
        'threats = [{ norm = "linf", eps = "0.1" }, { norm = "l2", eps = "0.1" }]\n'
        "[images]\ncheap = 2\nmedium = 2\nexpensive = 2\nextreme = 2\n",
        encoding="utf-8",
    )
    for _ in range(2):
        # The second time nothing is run, and the files are written again.
        code, out, _ = inside(
            capsys, "run", "--matrix", matrix, "--out", tmp_path / "r", "--proof", folder, "--workers", 1
        )
        assert code == 0
        assert f"{folder / 'conv-small+polytope-linf-0.1'}: 2 proof files (2 by ibp)" in out
        files = sorted(path.relative_to(folder) for path in folder.rglob("*.safetensors"))
        assert [path.parts for path in files] == [
            ("conv-small+polytope-linf-0.1", "image-0.safetensors"),
            ("conv-small+polytope-linf-0.1", "image-500.safetensors"),
        ]
        assert inside(capsys, "verify-proof", folder / files[0])[0] == 0
        (folder / files[1]).unlink()


def test_a_threat_without_proof_files_is_said_so(capsys, tmp_path):
    lines = evaluated(
        capsys, tmp_path / "p", "conv-small+polytope", "--norm", "l2", "--eps", "0.1", "--certify", "ibp"
    )
    assert lines[-2] == f"{tmp_path / 'p'}: no proof files: proof files speak of linf and an eps, not of 'l2'"


def test_missing_files_are_one_line(capsys, tmp_path):
    absent = Path("nowhere.safetensors")
    assert inside(capsys, "verify-proof", absent) == (2, "", f"error: there is no file {absent}\n")
    (tmp_path / "here").write_bytes(b"")
    code, _, err = inside(capsys, "verify-proof", tmp_path / "here", "--weights", absent)
    assert (code, err) == (2, f"error: there is no file {absent}\n")
