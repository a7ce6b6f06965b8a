"""`certify` and its files: rows follow the content of a batch's files, and no witness is lost."""

from __future__ import annotations

import errno
import gzip
import os
import re
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import bench.commands.certify
from tests.bench.test_certify import absolute, inside, reach, witness_of

HOLDS, FAILS = "(>= Y_0 0.81)", "(and (>= Y_0 0.79) (<= Y_0 Y_1))"


class Batch:
    """A network, two properties that hold of it, and a batch that asks both."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self.capsys, self.results = folder, capsys, folder / "results.csv"
        absolute(folder / "net.onnx")
        for name in ("p", "q"):
            self.write(name, HOLDS)
        (folder / "instances.csv").write_text("net.onnx,p.vnnlib,30\nnet.onnx,q.vnnlib,30\n")

    def write(self, name: str, condition: str) -> None:
        (self.folder / f"{name}.vnnlib").write_text(reach(-0.4, 0.4, condition))

    def run(self, *options: str | Path) -> tuple[list[str], list[str], str]:
        """Which lines ran, all answers, and what was said of rows that are not run or run again."""
        batch = ("--batch", self.folder / "instances.csv", "--results", self.results)
        code, shown, errors = inside(self.capsys, *batch, *options)
        assert (code, errors) == (0, "")
        ran = re.findall(r"^\[(\d)/2\]", shown, re.MULTILINE)
        rows = [row.split(",") for row in self.results.read_text().splitlines()]
        assert all(len(row) == 6 for row in rows)
        said = [line for line in shown.splitlines() if "again" in line]
        return ran, [row[4] for row in sorted(rows, key=lambda row: row[2])], "\n".join(said)


@pytest.fixture
def batch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Batch:
    return Batch(tmp_path, capsys)


def test_a_changed_property_is_asked_again_and_the_others_are_not(batch: Batch) -> None:
    assert batch.run() == (["1", "2"], ["unsat", "unsat"], "")
    batch.write("q", FAILS)
    ran, answers, said = batch.run()
    assert (ran, answers) == (["2"], ["unsat", "sat"])
    assert f"the files of 1 answers in {batch.results} have changed since: they are run again" in said
    assert batch.run()[:2] == ([], ["unsat", "sat"])
    batch.write("q", HOLDS)
    assert batch.run()[:2] == (["2"], ["unsat", "unsat"])


def test_a_changed_network_answers_nothing(batch: Batch) -> None:
    batch.run()
    model = onnx.load(batch.folder / "net.onnx")
    bias = next(one for one in model.graph.initializer if list(one.dims) == [2])
    bias.CopyFrom(numpy_helper.from_array(np.array([0.5, 1.0], np.float32), bias.name))
    onnx.save(model, batch.folder / "net.onnx")
    assert batch.run()[:2] == (["1", "2"], ["sat", "sat"])


def test_weights_outside_the_file_belong_to_it(batch: Batch) -> None:
    path = batch.folder / "net.onnx"
    model = onnx.load(path)
    onnx.save(model, path, save_as_external_data=True, location="net.weights", size_threshold=0)
    assert batch.run()[:2] == (["1", "2"], ["unsat", "unsat"])
    before, weights = path.read_bytes(), batch.folder / "net.weights"
    doubled = onnx.load(path)
    for one in doubled.graph.initializer:
        one.CopyFrom(numpy_helper.from_array(1.5 * numpy_helper.to_array(one), one.name))
    weights.unlink()
    onnx.save(doubled, path, save_as_external_data=True, location="net.weights", size_threshold=0)
    assert path.read_bytes() == before
    assert batch.run()[:2] == (["1", "2"], ["sat", "sat"])


def test_time_packing_and_absence_are_no_change(batch: Batch) -> None:
    batch.run()
    for name in ("net.onnx", "p.vnnlib"):
        os.utime(batch.folder / name, (1, 1))
    assert batch.run()[0] == []
    packed = batch.folder / "net.onnx.gz"
    packed.write_bytes(gzip.compress((batch.folder / "net.onnx").read_bytes()))
    (batch.folder / "net.onnx").unlink()
    assert batch.run()[0] == []
    (batch.folder / "p.vnnlib").unlink()
    assert batch.run()[0] == []


def test_rows_of_before_contents_were_kept_still_count(batch: Batch) -> None:
    batch.run()
    (batch.folder / "results.csv.sha256").unlink()
    assert batch.run()[0] == []


def test_a_folder_that_is_called_alike_has_other_content(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("one", "two"):
        (tmp_path / name / "same").mkdir(parents=True)
    one, two = (Batch(tmp_path / name / "same", capsys) for name in ("one", "two"))
    two.results = one.results
    two.write("p", FAILS)
    one.run()
    assert two.run()[:2] == (["1"], ["sat", "unsat"])


def test_a_witness_that_cannot_be_written_is_said_before_the_work(
    batch: Batch, capsys: pytest.CaptureFixture[str]
) -> None:
    batch.write("q", FAILS)
    files = ("--onnx", batch.folder / "net.onnx", "--vnnlib", batch.folder / "q.vnnlib")
    code, shown, errors = inside(capsys, *files, "--witness", batch.folder / "net.onnx" / "w")
    assert (code, shown) == (2, "")
    assert re.fullmatch(r"error: cannot write into .*net\.onnx .*\n", errors)
    assert inside(capsys, *files, "--witness", batch.folder / "new" / "w") == (0, "sat\n", "")
    assert set(witness_of((batch.folder / "new" / "w").read_text())) == {"X_0", "X_1", "Y_0", "Y_1"}


def test_a_witness_that_is_refused_later_is_printed(
    batch: Batch, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    batch.write("p", FAILS)
    honest = bench.commands.certify.write_atomically

    def full(path: Path, content: bytes) -> None:
        if "w" in path.parts:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        honest(path, content)

    monkeypatch.setattr(bench.commands.certify, "write_atomically", full)
    files = ("--onnx", batch.folder / "net.onnx", "--vnnlib", batch.folder / "p.vnnlib")
    code, shown, errors = inside(capsys, *files, "--witness", batch.folder / "w" / "one")
    assert (code, shown) == (2, "sat\n")
    witness, _, line = errors.partition("error: ")
    assert set(witness_of(witness)) == {"X_0", "X_1", "Y_0", "Y_1"}
    assert "one cannot be written: No space left on device" in line
    listed = ("--batch", batch.folder / "instances.csv", "--results", batch.results)
    code, shown, errors = inside(capsys, *listed, "--witness", batch.folder / "w")
    assert code == 1
    assert "[2/2] net.onnx q.vnnlib: unsat" in shown
    assert [row.split(",")[4] for row in batch.results.read_text().splitlines()] == ["sat", "unsat"]
    witness, _, line = errors.partition("error: ")
    assert set(witness_of(witness)) == {"X_0", "X_1", "Y_0", "Y_1"}
    assert "instance 1: " in line
    assert "cannot be written: No space left on device" in line


def test_what_stands_beside_the_results_is_a_table_of_its_own(batch: Batch) -> None:
    batch.run()
    beside = (batch.folder / "results.csv.sha256").read_text().splitlines()
    assert [line.rsplit(",", 1)[0] for line in beside] == [
        f"{batch.folder.name},net.onnx,{name}.vnnlib" for name in ("p", "q")
    ]
    assert all(re.fullmatch(r"[0-9a-f]{64}", line.rsplit(",", 1)[1]) for line in beside)
    shutil.copy(batch.results, batch.folder / "other.csv")
    batch.results = batch.folder / "other.csv"
    assert batch.run()[0] == []
