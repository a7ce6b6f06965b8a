"""`certify`: VNN-COMP's convention, on networks whose answers are known."""

from __future__ import annotations

import csv
import gzip
import itertools
import re
import shutil
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

import bench.cli
import bench.verification
from tests.bench.commands import command
from tests.models.onnx_files import File, acas, columns


def absolute(path: Path) -> Path:
    """A network with Y_0 = |X_0| + |X_1| and Y_1 = 1, by four ReLUs."""
    file = File(1, 2)
    file.add("Gemm", "x", file.constant([[1.0, -1.0, 0.0, 0.0], [0.0, 0.0, 1.0, -1.0]]))
    file.add("Relu")
    file.add("Gemm", file.last, file.constant([[1.0, 0.0]] * 4), file.constant([0.0, 1.0]))
    return file.write(path)


def reach(low: float, high: float, condition: str, inputs: int = 2, outputs: int = 2) -> str:
    """A property over the box [low, high]^inputs."""
    lines = [f"(declare-const X_{i} Real)" for i in range(inputs)]
    lines += [f"(declare-const Y_{j} Real)" for j in range(outputs)]
    lines += [f"(assert (>= X_{i} {low}))\n(assert (<= X_{i} {high}))" for i in range(inputs)]
    return "\n".join([*lines, f"(assert {condition})", ""])


def inside(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    code = bench.cli.main(["certify", *map(str, arguments)])
    streams = capsys.readouterr()
    return code, streams.out, streams.err


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A network and two properties: the largest |X_0| + |X_1| over [-0.4, 0.4]^2 is 0.8."""
    absolute(tmp_path / "net.onnx")
    (tmp_path / "holds.vnnlib").write_text(reach(-0.4, 0.4, "(>= Y_0 0.81)"), encoding="utf-8")
    (tmp_path / "fails.vnnlib").write_text(
        reach(-0.4, 0.4, "(or (and (>= Y_0 0.79) (<= Y_0 Y_1)))"), encoding="utf-8"
    )
    return tmp_path


def witness_of(text: str) -> dict[str, float]:
    assert re.fullmatch(r"\((\([XY]_\d+ [-+.e\d]+\)\n)*\([XY]_\d+ [-+.e\d]+\)\)\n", text)
    return {name: float(number) for name, number in re.findall(r"\(([XY]_\d+) ([^()]+)\)", text)}


def test_the_first_line_is_the_verdict(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("--onnx", folder / "net.onnx", "--timeout", 30, "--vnnlib")
    assert inside(capsys, *arguments, folder / "holds.vnnlib") == (0, "unsat\n", "")
    code, shown, errors = inside(capsys, *arguments, folder / "fails.vnnlib")
    assert (code, errors) == (0, "")
    verdict, _, witness = shown.partition("\n")
    assert verdict == "sat"
    found = witness_of(witness)
    x = np.array([found["X_0"], found["X_1"]])
    assert (np.abs(x) <= 0.4).all()
    session = onnxruntime.InferenceSession(folder / "net.onnx")
    (theirs,) = session.run(None, {"x": x[None].astype(np.float32)})
    assert theirs[0].tolist() == [found["Y_0"], found["Y_1"]]
    assert found["Y_0"] >= 0.79


def test_a_witness_goes_to_its_file_alone_and_gzip_changes_nothing(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("net.onnx", "fails.vnnlib"):
        (folder / f"{name}.gz").write_bytes(gzip.compress((folder / name).read_bytes()))
    shown = []
    for suffix in ("", ".gz"):
        files = ("--onnx", folder / f"net.onnx{suffix}", "--vnnlib", folder / f"fails.vnnlib{suffix}")
        assert inside(capsys, *files, "--witness", folder / "w") == (0, "sat\n", "")
        shown.append((folder / "w").read_text(encoding="utf-8"))
    assert shown[0] == shown[1]
    for name in ("net.onnx", "fails.vnnlib"):
        (folder / name).unlink()
    files = ("--onnx", folder / "net.onnx", "--vnnlib", folder / "fails.vnnlib")
    assert inside(capsys, *files, "--witness", folder / "w") == (0, "sat\n", "")
    assert set(witness_of(shown[0])) == {"X_0", "X_1", "Y_0", "Y_1"}


def test_every_alternative_counts(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two input boxes: the property is broken where one of them is."""
    far, near = "(>= X_0 0.3) (<= X_0 0.4) (>= Y_0 0.75)", "(>= X_0 0) (<= X_0 0.1) (>= Y_0 0.75)"
    text = reach(-0.4, 0.4, f"(or (and {near}) (and {far}))")
    (folder / "either.vnnlib").write_text(text, encoding="utf-8")
    arguments = ("--onnx", folder / "net.onnx", "--vnnlib", folder / "either.vnnlib")
    code, shown, _ = inside(capsys, *arguments)
    assert (code, shown.splitlines()[0]) == (0, "sat")
    assert 0.3 <= witness_of(shown.partition("\n")[2])["X_0"] <= 0.4
    (folder / "either.vnnlib").write_text(text.replace("(>= Y_0 0.75)", "(>= Y_0 0.85)"), encoding="utf-8")
    assert inside(capsys, *arguments)[:2] == (0, "unsat\n")


def test_what_lies_on_the_boundary_of_a_strict_inequality_is_no_counterexample(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Y_1 = 1 everywhere, and Y_0 = 0.8 at the corners alone."""
    arguments = ("--onnx", folder / "net.onnx", "--vnnlib", folder / "p.vnnlib", "--timeout", 5)
    for condition, verdict in (
        ("(> Y_1 1.0)", "unknown"),
        ("(>= Y_1 1.0)", "sat"),
        ("(and (< X_0 0.4) (> X_0 -0.4) (< X_1 0.4) (> X_1 -0.4) (>= Y_0 0.7999))", "sat"),
        ("(and (< X_0 0.4) (> X_0 -0.4) (>= Y_0 0.8000001))", "unsat"),
        ("(< Y_0 Y_0)", "unsat"),
    ):
        (folder / "p.vnnlib").write_text(reach(-0.4, 0.4, condition), encoding="utf-8")
        code, shown, errors = inside(capsys, *arguments)
        assert (code, shown.split("\n")[0]) == (0, verdict), condition
        assert ("boundary" in errors) == (verdict == "unknown")
        if "X_0" in condition and verdict == "sat":
            found = witness_of(shown.partition("\n")[2])
            assert abs(found["X_0"]) < 0.4
            assert abs(found["X_1"]) < 0.4


@pytest.mark.parametrize(
    ("ending", "sizes"),
    [
        ("Softmax", (("(>= Y_0 0.5)", "unsat"), ("(>= Y_0 0.49)", "sat"), ("(>= (* 2.0 Y_0) Y_1)", "sat"))),
        ("LogSoftmax", (("(>= Y_0 -0.69)", "unsat"), ("(>= Y_0 -0.71)", "sat"), ("(>= Y_1 0.0)", "unsat"))),
    ],
)
def test_outputs_of_a_softmax_may_be_compared_and_measured(
    ending: str, sizes: tuple[tuple[str, str], ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Logits |X_0| + |X_1| up to 0.98 and 1 as in `absolute`: a share of Y_0 up to 0.495."""
    file = File(1, 2)
    file.add("Relu", file.add("Gemm", "x", file.constant([[1.0, -1.0, 0.0, 0.0], [0.0, 0.0, 1.0, -1.0]])))
    file.add("Gemm", file.last, file.constant([[1.0, 0.0]] * 4), file.constant([0.0, 1.0]))
    file.add(ending, axis=1)
    path = file.write(tmp_path / "net.onnx")
    for high, condition, verdict in (
        (0.49, "(>= Y_0 Y_1)", "unsat"),
        (0.51, "(and (>= Y_0 Y_1))", "sat"),
        (0.51, "(or (<= Y_1 Y_0) (<= Y_1 Y_0))", "sat"),
        (0.49, "(and (>= Y_0 Y_1) (<= X_0 Y_1))", "unsat"),
        *((0.49, condition, verdict) for condition, verdict in sizes),
    ):
        (tmp_path / "p.vnnlib").write_text(reach(-high, high, condition), encoding="utf-8")
        code, shown, _ = inside(capsys, "--onnx", path, "--vnnlib", tmp_path / "p.vnnlib", "--timeout", 20)
        assert (code, shown.split("\n")[0]) == (0, verdict), condition
        if verdict == "sat":
            found = witness_of(shown.partition("\n")[2])
            assert (found["Y_0"] >= found["Y_1"]) == (high > 0.5)
            assert np.logaddexp(found["Y_0"], found["Y_1"]) < 1.5


def test_constraints_may_join_inputs_and_outputs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Y_0 = |X_0| + |X_1| is at most 0.6 where the inputs' sum is at most -0.2 and X_1 at least 0.2."""
    arguments = ("--onnx", folder / "net.onnx", "--vnnlib", folder / "p.vnnlib", "--timeout", 20)
    cut = "(<= (+ X_0 X_1) -0.2) (>= X_1 0.2)"
    for condition, verdict in (
        (f"(and {cut} (>= Y_0 0.61))", "unsat"),
        (f"(and {cut} (>= Y_0 0.59))", "sat"),
        ("(<= Y_0 (+ X_0 X_1 -0.001))", "unsat"),
        ("(and (<= Y_0 (- X_0 X_1)) (>= X_0 0.3) (<= X_1 -0.3))", "sat"),
    ):
        (folder / "p.vnnlib").write_text(reach(-0.4, 0.4, condition), encoding="utf-8")
        code, shown, _ = inside(capsys, *arguments)
        assert (code, shown.split("\n")[0]) == (0, verdict), condition
        if verdict == "sat" and "+" in condition:
            found = witness_of(shown.partition("\n")[2])
            assert found["X_0"] + found["X_1"] <= -0.2
            assert found["X_1"] >= 0.2
            assert found["Y_0"] >= 0.59


@pytest.mark.parametrize("style", [acas, columns])
def test_random_networks_are_never_proved_where_sampling_breaks_them(
    style, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Thresholds on both sides of the largest output that 20,000 random points reach."""
    path = style().write(tmp_path / "net.onnx")
    session = onnxruntime.InferenceSession(path)
    (described,) = session.get_inputs()
    draw = np.random.default_rng(0).uniform(-1, 1, (20_000, int(np.prod(described.shape)))).astype(np.float32)
    seen = [session.run(None, {"x": row.reshape(described.shape)})[0].ravel() for row in draw]
    largest = float(np.max([row[0] for row in seen]))
    for threshold, verdict in ((largest - 0.05, "sat"), (largest + 20, "unsat")):
        text = reach(-1, 1, f"(>= Y_0 {threshold})", draw.shape[1], len(seen[0]))
        (tmp_path / "p.vnnlib").write_text(text, encoding="utf-8")
        code, shown, _ = inside(capsys, "--onnx", path, "--vnnlib", tmp_path / "p.vnnlib", "--timeout", 60)
        assert (code, shown.split("\n")[0]) == (0, verdict)


def test_of_many_boxes_each_counts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Forty boxes of inputs, each with a threshold of its own above what it reaches, but the last one's."""
    path = acas().write(tmp_path / "net.onnx")
    session = onnxruntime.InferenceSession(path)
    cases, ends = [], np.linspace(-0.5, 0.5, 41)
    for low, high in itertools.pairwise(ends):
        draw = np.random.default_rng(0).uniform(low, high, (200, 1, 1, 1, 5)).astype(np.float32)
        most = max(float(session.run(None, {"x": row})[0][0, 0]) for row in draw[:, None, 0])
        box = " ".join(f"(>= X_{i} {low}) (<= X_{i} {high})" for i in range(5))
        cases.append((f"(and {box} (>= Y_0 {{}}))", most))
    declared = "".join(f"(declare-const {letter}_{i} Real)" for letter in "XY" for i in range(5))
    for last, verdict in ((1.0, "unsat"), (-0.001, "sat")):
        more = [1.0] * 39 + [last]
        parts = [case.format(most + plus) for (case, most), plus in zip(cases, more, strict=True)]
        (tmp_path / "p.vnnlib").write_text(f"{declared}(assert (or {' '.join(parts)}))", encoding="utf-8")
        code, shown, _ = inside(capsys, "--onnx", path, "--vnnlib", tmp_path / "p.vnnlib", "--timeout", 60)
        assert (code, shown.split("\n")[0]) == (0, verdict)


def test_a_witness_that_onnxruntime_denies_is_no_counterexample(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = bench.verification.settle

    def lying(network, prop, *, seconds, seed=0):
        verdict = honest(network, prop, seconds=seconds, seed=seed)
        return type(verdict)("broken", (prop.lower + prop.upper) / 2, -1.0, 0.0, "planted")

    monkeypatch.setattr(bench.verification, "settle", lying)
    monkeypatch.setattr(bench.verification, "STEPS", 1)
    code, shown, errors = inside(capsys, "--onnx", folder / "net.onnx", "--vnnlib", folder / "fails.vnnlib")
    assert (code, shown) == (0, "unknown\n")
    assert "none in the file's own" in errors


def test_a_point_that_onnxruntime_alone_finds_unsafe_is_not_proved(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """100.3 is 100.300003 in single precision: the outputs are 200.6 and 200.600006."""
    answers = []
    for least in (200.5, 200.600003, 200.7):
        (folder / "point.vnnlib").write_text(reach(100.3, 100.3, f"(>= Y_0 {least})"), encoding="utf-8")
        arguments = ("--onnx", folder / "net.onnx", "--vnnlib", folder / "point.vnnlib", "--timeout", 30)
        _, shown, errors = inside(capsys, *arguments)
        answers.append(shown.split("\n")[0])
        assert ("own precision alone" in errors) == (answers[-1] == "unknown")
    assert answers == ["sat", "unknown", "unsat"]


@pytest.mark.parametrize("inputs", [1, 20])
def test_a_curved_network_of_few_inputs_is_settled(
    inputs: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Y = s(4 X_0) - s(4 X_0) = 0, s the sigmoid: bounds that forget the two are one need the input cut."""
    file = File(1, inputs)
    file.add("Gemm", "x", file.constant([[4.0, 4.0], *[[0.0, 0.0]] * (inputs - 1)]))
    file.add("Sigmoid")
    file.add("Gemm", file.last, file.constant([[1.0], [-1.0]]))
    path = file.write(tmp_path / "net.onnx")
    # With many inputs the ranges of both sigmoids are cut, which takes its time where they are one.
    near, seconds = ("unsat", 20) if inputs == 1 else ("timeout", 3)
    for threshold, verdict in ((1.5, "unsat"), (1e-3, near), (-1e-3, "sat")):
        asked = reach(-1, 1, f"(>= Y_0 {threshold})", inputs, 1)
        (tmp_path / "p.vnnlib").write_text(asked, encoding="utf-8")
        arguments = ("--onnx", path, "--vnnlib", tmp_path / "p.vnnlib", "--timeout", seconds)
        code, shown, _ = inside(capsys, *arguments)
        assert (code, shown.split("\n")[0]) == (0, verdict)


def test_out_of_time_and_given_up_are_told_apart(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = bench.verification.settle
    kind = type(honest(*_small(folder), seconds=5.0))
    waits = {"long": lambda seconds: seconds, "short": lambda seconds: 0.0}
    for wait, verdict in (("long", "timeout"), ("short", "unknown")):

        def idle(network, prop, *, seconds, seed=0, wait=wait):
            bench.verification.time.sleep(waits[wait](seconds))
            return kind("open", None, -1.0, seconds, "planted")

        monkeypatch.setattr(bench.verification, "settle", idle)
        arguments = ("--onnx", folder / "net.onnx", "--vnnlib", folder / "holds.vnnlib", "--timeout", 1)
        assert inside(capsys, *arguments)[:2] == (0, f"{verdict}\n")


def _small(folder: Path):
    instance = bench.verification.load(folder / "net.onnx", folder / "holds.vnnlib")
    return instance.exact, instance.properties[0]


def test_a_batch_keeps_its_rows_and_continues(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    listed = "net.onnx,holds.vnnlib,30\nnet.onnx,absent.vnnlib,30\nnet.onnx,fails.vnnlib,30\n"
    (folder / "instances.csv").write_text(listed, encoding="utf-8")
    results = folder / "out" / "results.csv"
    arguments = ("--batch", folder / "instances.csv", "--results", results, "--witness", folder / "w")
    code, shown, errors = inside(capsys, *arguments)
    assert code == 1
    assert errors.startswith(f"error: {folder / 'instances.csv'}, instance 2: no file ")
    assert errors.count("\n") == 1
    rows = list(csv.reader(results.read_text(encoding="utf-8").splitlines()))
    assert [[*row[:3], row[4]] for row in rows] == [
        [folder.name, "net.onnx", "holds.vnnlib", "unsat"],
        [folder.name, "net.onnx", "absent.vnnlib", "error"],
        [folder.name, "net.onnx", "fails.vnnlib", "sat"],
    ]
    assert all(float(row[3]) >= 0 and float(row[5]) >= 0 for row in rows)
    assert [path.name for path in (folder / "w").iterdir()] == ["net_fails.counterexample"]
    assert "1 error, 1 sat, 1 unsat" in shown
    # A row that was cut off and the failed one are run again, the finished one is not touched.
    cut = results.read_text(encoding="utf-8").rsplit(",", 1)[0]
    results.write_text(cut.replace("unsat", "timeout"), encoding="utf-8")
    (folder / "absent.vnnlib").write_text(reach(-0.4, 0.4, "(>= Y_0 0.9)"), encoding="utf-8")
    code, shown, errors = inside(capsys, *arguments)
    assert (code, errors) == (0, "")
    assert [line.split("]")[0] for line in shown.splitlines() if line.startswith("[")] == ["[2/3", "[3/3"]
    again = list(csv.reader(results.read_text(encoding="utf-8").splitlines()))
    assert [row[4] for row in again] == ["timeout", "unsat", "sat"]
    assert again[0] == [*rows[0][:4], "timeout", rows[0][5]]


def test_a_batch_takes_no_answer_from_another_folder_whose_files_are_called_alike(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = folder / "results.csv"
    for category, wanted in {"first": "holds", "second": "fails", "third": "absent"}.items():
        (folder / category).mkdir()
        shutil.copy(folder / "net.onnx", folder / category / "net.onnx")
        if wanted != "absent":
            shutil.copy(folder / f"{wanted}.vnnlib", folder / category / "p.vnnlib")
        (folder / category / "instances.csv").write_text("net.onnx,p.vnnlib,30\n", encoding="utf-8")

    def answers(category: str) -> tuple[list[list[str]], str]:
        arguments = ("--batch", folder / category / "instances.csv", "--results", results)
        _, shown, _ = inside(capsys, *arguments)
        rows = csv.reader(results.read_text(encoding="utf-8").splitlines())
        return [[row[0], row[4]] for row in rows], shown

    first, second, third = ["first", "unsat"], ["second", "sat"], ["third", "error"]
    assert answers("first")[0] == [first]
    rows, shown = answers("second")
    assert rows == [first, second]
    assert "results.csv: 1 sat\n" in shown
    assert "not run again" not in shown
    assert answers("third")[0] == [first, second, third]
    # Nothing of this batch runs again, and the others' rows stay as they are.
    rows, shown = answers("first")
    assert rows == [first, second, third]
    assert "has answers to 1 of 1 lines: they are not run again" in shown
    assert answers("third")[0] == [first, second, third]


def test_a_stopped_batch_has_the_rows_it_finished(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "instances.csv").write_text(
        "net.onnx,fails.vnnlib,9\nnet.onnx,holds.vnnlib,9\n", encoding="utf-8"
    )
    honest, calls = bench.verification.settle, []

    def stopped(network, prop, *, seconds, seed=0):
        calls.append(prop)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return honest(network, prop, seconds=seconds, seed=seed)

    monkeypatch.setattr(bench.verification, "settle", stopped)
    arguments = ("--batch", folder / "instances.csv", "--results", folder / "results.csv")
    assert inside(capsys, *arguments)[0] == 130
    assert (folder / "results.csv").read_text(encoding="utf-8").count("\n") == 1
    assert inside(capsys, *arguments)[0] == 0
    assert [row.split(",")[4] for row in (folder / "results.csv").read_text().splitlines()] == [
        "sat",
        "unsat",
    ]


def test_mistakes_are_one_line_and_exit_code_2(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    net, holds = ("--onnx", folder / "net.onnx"), ("--vnnlib", folder / "holds.vnnlib")
    (folder / "wide.vnnlib").write_text(reach(0, 1, "(>= Y_0 1)", inputs=3), encoding="utf-8")
    (folder / "many.vnnlib").write_text(reach(0, 1, "(>= Y_0 1)", outputs=5), encoding="utf-8")
    (folder / "bad.vnnlib").write_text(reach(0, 1, "(>= Y_0 one)"), encoding="utf-8")
    (folder / "instances.csv").write_text("net.onnx,holds.vnnlib\n", encoding="utf-8")
    (folder / "empty.csv").write_text("\n", encoding="utf-8")
    (folder / "latin.csv").write_bytes(b"net\xe9.onnx,holds.vnnlib,5\n")
    (folder / "binary.csv").write_bytes(b"\xff\xfe\n")
    (folder / "good.csv").write_text("net.onnx,fails.vnnlib,30\n", encoding="utf-8")
    fails, good = ("--vnnlib", folder / "fails.vnnlib"), ("--batch", folder / "good.csv")
    found = File(1, 2)
    found.add("NonZero", "x")
    found.write(folder / "found.onnx")
    cases = {
        "--timeout must be above 0 seconds, not 0": (*net, *holds, "--timeout", 0),
        "--timeout must be above 0 seconds, not -3": (*net, *holds, "--timeout", -3),
        "give --onnx NET (or --network NAME=NET for each of several) and --vnnlib PROPERTY": net,
        "leave out --onnx, --network and --vnnlib": (*net, "--batch", folder / "instances.csv"),
        "--results belongs to --batch": (*net, *holds, "--results", folder / "r.csv"),
        "line 1: write onnx,vnnlib,timeout": ("--batch", folder / "instances.csv"),
        "has no instances": ("--batch", folder / "empty.csv"),
        "is a folder: name the file": (*net, *fails, "--witness", folder),
        "latin.csv cannot be read: 'utf-8' codec": ("--batch", folder / "latin.csv"),
        "binary.csv cannot be read: 'utf-8' codec": (*good, "--results", folder / "binary.csv"),
        f"--results {folder} cannot be read: Is a directory": (*good, "--results", folder),
        "r.csv cannot be read: Not a directory": (*good, "--results", folder / "net.onnx" / "r.csv"),
        "cannot be read: No such file": ("--batch", folder / "absent.csv"),
        "declares 3 inputs, but the network": (*net, "--vnnlib", folder / "wide.vnnlib"),
        "declares 5 outputs, but the network": (*net, "--vnnlib", folder / "many.vnnlib"),
        "line 9: 'one' is neither": (*net, "--vnnlib", folder / "bad.vnnlib"),
        "ONNX operator NonZero": ("--onnx", folder / "found.onnx", *holds),
    }
    for message, arguments in cases.items():
        code, shown, errors = inside(capsys, *arguments)
        assert (code, shown) == (2, ""), message
        assert errors.startswith("error: ")
        assert errors.count("\n") == 1
        assert message in errors


def test_a_batch_may_start_with_a_byte_order_mark(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "marked.csv").write_bytes(b"\xef\xbb\xbfnet.onnx,holds.vnnlib,30\r\n")
    arguments = ("--batch", folder / "marked.csv", "--results", folder / "r.csv")
    assert inside(capsys, *arguments)[0] == 0


def test_seen_from_outside(folder: Path) -> None:
    shown = command("certify", "--onnx", folder / "net.onnx", "--vnnlib", folder / "holds.vnnlib")
    assert (shown.returncode, shown.stdout) == (0, "unsat\n")
