"""`certify` on VNN-LIB 2.0: several networks, several inputs and outputs, hidden values, products."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper

from models.base import Batch
from models.errors import UserError
from models.sources.opening import open_model
from tests.bench.test_certify import absolute, inside
from tests.models.onnx_files import File


def affine(path: Path, weight: list[list[float]], bias: list[float]) -> Path:
    """relu(weight x + bias + 50) - 50, which is weight x + bias near 0: inputs (1, d)."""
    file = File(1, len(weight[0]))
    lifted = (np.array(bias) + 50.0).tolist()
    file.add("Gemm", "x", file.constant(np.array(weight, dtype=float).T), file.constant(lifted))
    file.add("Relu")
    file.add("Sub", file.last, file.constant(50.0))
    return file.write(path)


def declared(name: str, letters: str, inputs: int, outputs: int, more: str = "") -> str:
    return (
        f"(declare-network {name} {more} (declare-input {letters[0]} float32 [1,{inputs}]) "
        f"(declare-output {letters[1]} float32 [1,{outputs}]))\n"
    )


def box(letter: str, inputs: int, low: float = 0.0, high: float = 1.0) -> str:
    return "".join(
        f"(assert (and (>= {letter}[0,{i}] {low}) (<= {letter}[0,{i}] {high})))\n" for i in range(inputs)
    )


def same(first: str, second: str, inputs: int) -> str:
    return "".join(f"(assert (== {first}[0,{i}] {second}[0,{i}]))\n" for i in range(inputs))


def tensors(text: str) -> dict[str, np.ndarray]:
    """A counterexample of VNN-LIB 2.0, read by its standard's rules."""
    found: dict[str, np.ndarray] = {}
    lines = iter(text.splitlines())
    for line in lines:
        name, kind, sizes = line.split()
        shape = [int(size) for size in sizes.strip("[]").split(",") if size]
        assert kind in ("float32", "real")
        values = [float(next(lines)) for _ in range(int(np.prod(shape)))]
        found[name] = np.array(values).reshape(shape)
    return found


def settled(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[str, dict[str, np.ndarray]]:
    code, shown, errors = inside(capsys, "--timeout", "60", *arguments)
    assert (code, errors) == (0, "")
    verdict, _, witness = shown.partition("\n")
    assert (verdict == "sat") == bool(witness)
    return verdict, tensors(witness)


@pytest.fixture
def pair(tmp_path: Path) -> tuple[str, ...]:
    """f = (x_0 - x_1, x_0), g = (2 x_0 - x_1 + 0.1, x_1): g - f is at most 1.1 and 1 apart on [0, 1]^2."""
    first = affine(tmp_path / "f.onnx", [[1.0, -1.0], [1.0, 0.0]], [0.0, 0.0])
    second = affine(tmp_path / "g.onnx", [[2.0, -1.0], [0.0, 1.0]], [0.1, 0.0])
    return "--network", f"f={first}", "--network", f"g={second}"


@pytest.mark.parametrize(("bound", "verdict"), [(1.101, "unsat"), (1.099, "sat")])
def test_two_networks_on_equal_inputs_differ_by_what_they_do(bound, verdict, pair, tmp_path, capsys):
    query = tmp_path / "differ.vnnlib"
    query.write_text(
        "(vnnlib-version <2.0>)\n"
        + declared("f", "AP", 2, 2)
        + declared("g", "BQ", 2, 2, "(isomorphic-to f)")
        + box("A", 2)
        + same("A", "B", 2)
        + f"(assert (or (> Q[0,0] (+ P[0,0] {bound})) (< Q[0,0] (- P[0,0] {bound}))))",
        encoding="utf-8",
    )
    found, witness = settled(capsys, *pair, "--vnnlib", query)
    assert found == verdict
    if verdict == "sat":
        assert list(witness) == ["A", "P", "B", "Q"]
        assert witness["A"].tolist() == witness["B"].tolist()
        assert witness["Q"][0, 0] - witness["P"][0, 0] > bound
        for letter, output, file in (("A", "P", "f"), ("B", "Q", "g")):
            session = onnxruntime.InferenceSession(tmp_path / f"{file}.onnx")
            (theirs,) = session.run(None, {"x": witness[letter].astype(np.float32)})
            assert theirs.tolist() == witness[output].tolist()


@pytest.mark.parametrize(("margin", "verdict"), [(0.01, "unsat"), (-0.05, "sat")])
def test_one_network_twice_is_monotone(margin, verdict, tmp_path, capsys):
    """f_0 = x_0 - x_1 grows with x_0: f(B) >= f(A) + margin needs B_0 >= A_0 + margin."""
    net = affine(tmp_path / "f.onnx", [[1.0, -1.0]], [0.0])
    query = tmp_path / "monotone.vnnlib"
    query.write_text(
        declared("f", "AP", 2, 1)
        + declared("g", "BQ", 2, 1, "(equal-to f)")
        + box("A", 2)
        + "(assert (<= B[0,0] A[0,0]))(assert (>= B[0,0] 0.0))(assert (== B[0,1] A[0,1]))\n"
        + f"(assert (> Q[0,0] (+ P[0,0] {margin})))",
        encoding="utf-8",
    )
    for arguments in (
        ("--onnx", net),
        ("--network", f"f={net}"),
        ("--network", f"f={net}", "--network", f"g={net}"),
    ):
        assert settled(capsys, *arguments, "--vnnlib", query)[0] == verdict


@pytest.mark.parametrize(("radius", "verdict"), [(0.35, "unsat"), (0.36, "sat")])
def test_a_ball_in_l2_by_products(radius, verdict, tmp_path, capsys):
    """|x_0| + |x_1| reaches 0.5 at distance 0.5 / sqrt 2 = 0.3536 from 0."""
    query = tmp_path / "ball.vnnlib"
    query.write_text(
        "(declare-network f (declare-input X real [2]) (declare-output Y real [2]))"
        + "".join(f"(assert (and (>= X[{i}] -1) (<= X[{i}] 1)))" for i in range(2))
        + f"(assert (<= (+ (* X[0] X[0]) (* X[1] X[1])) {radius**2}))(assert (>= Y[0] 0.5))",
        encoding="utf-8",
    )
    found, witness = settled(capsys, "--onnx", absolute(tmp_path / "net.onnx"), "--vnnlib", query)
    assert found == verdict
    if verdict == "sat":
        assert np.square(witness["X"]).sum() <= radius**2 * (1 + 1e-12)
        assert np.abs(witness["X"]).sum() >= 0.5 - 1e-6


def two_ports(path: Path) -> Path:
    """(left (1, 2), right (3)) to sum = left_0 + right_2 (1, 1), largest = relu(left - 0.5) (1, 2)."""
    file = File(1, 2)
    first = file.add("MatMul", "left", file.constant([[1.0], [0.0]]))
    last = file.add("MatMul", "right", file.constant([[0.0], [0.0], [1.0]]))
    total = file.add("Add", first, last)
    moved = file.add("Sub", "left", file.constant(0.5))
    largest = file.add("Relu", moved)
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        file.nodes,
        "two",
        [value("left", TensorProto.FLOAT, [1, 2]), value("right", TensorProto.FLOAT, [3])],
        [value(total, TensorProto.FLOAT, None), value(largest, TensorProto.FLOAT, None)],
        file.constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.save(model, path)
    return path


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize(("bound", "verdict"), [(1.51, "unsat"), (1.49, "sat")])
def test_several_inputs_outputs_and_hidden_values(named, bound, verdict, tmp_path, capsys):
    """left_0 + right_2 <= 2, at most 1.5 where left_0 - 0.5, a hidden value, is at most 0."""
    net = two_ports(tmp_path / "two.onnx")
    names = [node.output[0] for node in onnx.load(net).graph.node]
    left = f"(declare-input L float32 [1,2]{' ' * named}{chr(34) + 'left' + chr(34) if named else ''})"
    right = f"(declare-input R float32 [3]{' ' * named}{chr(34) + 'right' + chr(34) if named else ''})"
    total = f"(declare-output T real [1]{f' {chr(34)}{names[2]}{chr(34)}' if named else ''})"
    largest = f"(declare-output M real [1,2]{f' {chr(34)}{names[4]}{chr(34)}' if named else ''})"
    inputs, outputs = ([right, left], [largest, total]) if named else ([left, right], [total, largest])
    query = tmp_path / "two.vnnlib"
    query.write_text(
        f'(declare-network n {" ".join(inputs)} (declare-hidden H real [1,2] "{names[3]}")'
        f" {' '.join(outputs)})"
        + box("L", 2)
        + "".join(f"(assert (and (>= R[{i}] 0) (<= R[{i}] 1)))" for i in range(3))
        + f"(assert (<= H[0,0] 0.0))(assert (<= M[0,0] 0.25))(assert (>= T[0] {bound}))",
        encoding="utf-8",
    )
    found, witness = settled(capsys, "--onnx", net, "--vnnlib", query)
    assert found == verdict
    if verdict == "sat":
        assert list(witness) == (["R", "L", "H", "M", "T"] if named else ["L", "R", "H", "T", "M"])
        assert witness["H"][0, 0] == pytest.approx(witness["L"][0, 0] - 0.5, abs=1e-6)
        assert witness["T"][0] == pytest.approx(witness["L"][0, 0] + witness["R"][2], abs=1e-6)
        assert witness["H"][0, 0] <= 0
        assert witness["T"][0] >= bound


def test_a_batch_takes_lists_of_networks(pair, tmp_path, capsys):
    text = declared("f", "AP", 2, 2) + declared("g", "BQ", 2, 2) + box("A", 2) + same("A", "B", 2)
    (tmp_path / "no.vnnlib").write_text(text + "(assert (> Q[0,0] (+ P[0,0] 1.2)))", encoding="utf-8")
    (tmp_path / "yes.vnnlib").write_text(text + "(assert (> Q[0,0] (+ P[0,0] 1.0)))", encoding="utf-8")
    both = "[('f', 'f.onnx'), ('g', 'g.onnx')]"
    (tmp_path / "instances.csv").write_text(
        f'{both},no.vnnlib,60\n"{both}",yes.vnnlib,60\n', encoding="utf-8"
    )
    arguments = (
        "--batch",
        tmp_path / "instances.csv",
        "--results",
        tmp_path / "r.csv",
        "--witness",
        tmp_path / "w",
    )
    assert inside(capsys, *arguments)[0] == 0
    rows = list(csv.reader((tmp_path / "r.csv").read_text(encoding="utf-8").splitlines()))
    assert [(row[1], row[2], row[4]) for row in rows] == [
        (both, "no.vnnlib", "unsat"),
        (both, "yes.vnnlib", "sat"),
    ]
    (witness,) = (tmp_path / "w").iterdir()
    assert witness.name == "f_g_yes.counterexample"
    assert tensors(witness.read_text(encoding="utf-8"))["Q"].shape == (1, 2)
    code, shown, _ = inside(capsys, *arguments)
    assert code == 0
    assert "2 of 2 lines: they are not run again" in shown
    affine(tmp_path / "g.onnx", [[1.0, -1.0], [0.0, 1.0]], [0.0, 0.0])
    _, shown, _ = inside(capsys, *arguments)
    assert "the files of 2 answers" in shown
    assert [row[4] for row in csv.reader((tmp_path / "r.csv").read_text().splitlines())] == ["unsat", "unsat"]


def test_mistakes_are_one_line_and_exit_code_2(pair, tmp_path, capsys):
    first, second = pair[1].removeprefix("f="), pair[3].removeprefix("g=")
    rest = box("A", 2) + same("A", "B", 2) + "(assert (> Q[0,0] P[0,0]))"
    two = tmp_path / "two.vnnlib"
    two.write_text(declared("f", "AP", 2, 2) + declared("g", "BQ", 2, 2) + rest, encoding="utf-8")
    same_net = tmp_path / "same.vnnlib"
    same_net.write_text(
        declared("f", "AP", 2, 2) + declared("g", "BQ", 2, 2, "(equal-to f)") + rest, encoding="utf-8"
    )
    wide = tmp_path / "wide.vnnlib"
    wide.write_text(declared("f", "AP", 3, 2) + box("A", 3) + "(assert (> P[0,0] 0))", encoding="utf-8")
    double = tmp_path / "double.vnnlib"
    double.write_text(
        wide.read_text()
        .replace("[1,3]", "[1,2]")
        .replace("input A float32", "input A float64")
        .replace("(assert (and (>= A[0,2] 0.0) (<= A[0,2] 1.0)))", ""),
        encoding="utf-8",
    )
    many = tmp_path / "many.vnnlib"
    many.write_text(
        declared("f", "AP", 2, 2).replace("(declare-output", "(declare-input Z real [1]) (declare-output")
        + box("A", 2)
        + "(assert (== Z[0] 0))(assert (> P[0,0] 0))",
        encoding="utf-8",
    )
    old = tmp_path / "old.vnnlib"
    old.write_text(
        "".join(f"(declare-const X_{i} Real)(assert (>= X_{i} 0))(assert (<= X_{i} 1))" for i in range(5))
        + "(declare-const Y_0 Real)(assert (>= Y_0 0))",
        encoding="utf-8",
    )
    (tmp_path / "bad.csv").write_text("[('f', 'f.onnx'), ('f', 'g.onnx')],two.vnnlib,60\n", encoding="utf-8")
    cases = {
        "has the networks f, g: give each its file, --network f=FILE --network g=FILE": (
            "--onnx",
            first,
            "--vnnlib",
            two,
        ),
        "network g of": ("--network", f"f={first}", "--vnnlib", two),
        "has no network 'h': it has f, g": (*pair, "--network", f"h={first}", "--vnnlib", two),
        "says that g is equal to f": (*pair, "--vnnlib", same_net),
        "--network takes NAME=FILE, not 'f'": ("--network", "f", "--vnnlib", two),
        "--network f is given twice": (
            "--network",
            f"f={first}",
            "--network",
            f"f={second}",
            "--vnnlib",
            two,
        ),
        "declares A with 3 elements, but 'x' of": ("--onnx", first, "--vnnlib", wide),
        "declares A as float64, but 'x' of": ("--onnx", first, "--vnnlib", double),
        "declares 2 inputs of network f": ("--onnx", first, "--vnnlib", many),
        "has 2 inputs (left, right): declare them as in VNN-LIB 2.0": (
            "--onnx",
            two_ports(tmp_path / "p.onnx"),
            "--vnnlib",
            old,
        ),
        "line 1: write onnx,vnnlib,timeout": ("--batch", tmp_path / "bad.csv"),
        "give --onnx NET (or --network": ("--onnx", first, *pair, "--vnnlib", two),
    }
    for message, arguments in cases.items():
        code, shown, errors = inside(capsys, *arguments)
        assert (code, shown) == (2, ""), message
        assert errors.count("\n") == 1, errors
        assert message in errors


def test_a_classifier_has_one_input_and_one_output(tmp_path):
    net = two_ports(tmp_path / "two.onnx")
    batch = Batch.of(torch.rand(4, 2), torch.zeros(4, dtype=torch.int64))
    with pytest.raises(UserError, match=r"has 2 inputs \(left, right\): a classifier has one"):
        open_model(f"onnx:{net}", batch, 2)


def sized_and_chosen(path: Path) -> Path:
    """The largest entry of x (1, sizes) plus column `which` of it, and `which` itself."""
    file = File(1, "width")
    file.add("ReduceMax", "x", axes=[1], keepdims=1)
    file.add("Add", file.last, file.add("Gather", "x", "which", axis=1))
    model = file.model()
    model.graph.input.append(helper.make_tensor_value_info("which", TensorProto.INT64, [1]))
    model.graph.output.append(helper.make_tensor_value_info("which", TensorProto.INT64, [1]))
    onnx.save(model, str(path))
    return path


@pytest.mark.parametrize(("bound", "verdict"), [(1.501, "unsat"), (1.499, "sat")])
@pytest.mark.parametrize("kind", ["int64", "real"])
def test_open_sizes_and_integers_are_what_the_property_says(kind, bound, verdict, tmp_path, capsys):
    """max(x) + x_2 for x_0, x_1, x_3 <= 1 and x_2 <= 1/2."""
    net = sized_and_chosen(tmp_path / "net.onnx")
    query = tmp_path / "query.vnnlib"
    head = (
        f"(vnnlib-version <2.0>)(declare-network f (declare-input X float32 [1,4]) "
        f"(declare-input K {kind} [1]) (declare-output Y float32 [1,1]) (declare-output Z {kind} [1]))\n"
    )
    fixed = "(assert (== K[0] 2))\n(assert (<= X[0,2] 0.5))\n"
    query.write_text(head + box("X", 4) + fixed + f"(assert (>= Y[0,0] {bound}))\n")
    code, shown, errors = inside(capsys, "--onnx", net, "--vnnlib", query, "--timeout", "60")
    assert (code, errors) == (0, "")
    assert shown.splitlines()[0] == verdict
    if verdict == "sat":
        assert f"K {kind} [1]\n2" in shown
        assert f"Z {kind} [1]\n2" in shown


def test_an_integer_that_may_vary_is_refused_in_one_line(tmp_path, capsys):
    net = sized_and_chosen(tmp_path / "net.onnx")
    query = tmp_path / "query.vnnlib"
    query.write_text(
        "(vnnlib-version <2.0>)(declare-network f (declare-input X float32 [1,4]) "
        "(declare-input K int64 [1]) (declare-output Y float32 [1,1]) (declare-output Z int64 [1]))\n"
        + box("X", 4) + "(assert (<= K[0] 2))(assert (>= K[0] 1))(assert (>= Y[0,0] 1))\n"
    )  # fmt: skip
    code, _, errors = inside(capsys, "--onnx", net, "--vnnlib", query, "--timeout", "60")
    assert code == 2
    assert "'which' is of type INT64: only a property that fixes its value can be read" in errors
    assert errors.count("\n") == 1
