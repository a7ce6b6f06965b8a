"""VNN-LIB 2.0: networks, tensors, equal inputs and products mean what an evaluator of its own says."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from torch import nn

from certify.crown import Crown
from certify.graph import trace
from certify.input_bounds import Given
from certify.joined import SideBySide, WithTerms
from certify.property import robustness
from certify.syntax import Linear
from certify.vnnlib import parse_vnnlib
from certify.vnnlib_text import format_vnnlib
from models.base import Batch, Classifier
from models.errors import UserError
from models.randomness import Randomness
from models.threat import Box, ThreatModel
from tests.certify.test_vnnlib import equal, parsed, read_unless_trivial, value

PAIR = """(vnnlib-version <2.0>) ; two networks
(declare-network f (declare-input A real [2, 1]) (declare-output P real [1,2]))
(declare-network g (isomorphic-to f) (declare-input B real [2,1]) (declare-output Q real [1 ,2]))
"""
BOX = "".join(f"(assert (and (>= A[{i},0] 0.0) (<= A [{i}, 0] 1.0)))\n" for i in range(2))
LINKS = (
    "(assert (== A[0,0] B[0,0]))(assert (== B[1,0] A[1,0]))\n",
    "(assert (== B[0,0] (+ A[0,0] 0.5)))(assert (== A[1,0] B[1,0]))\n",
    "(assert (== (* 2.0 B[0,0]) (- 1.0 A[1,0])))(assert (== A[1,0] B[1,0]))\n",
    "(assert (<= B[0,0] A[0,0]))(assert (>= B[0,0] 0.0))(assert (== B[1,0] A[0,0]))\n",
    "(assert (<= (+ B[0,0] B[1,0]) 1.5))(assert (>= B[0,0] -0.5))(assert (>= B[1,0] 0.0))\n",
)
NAMES = ["A[0,0]", "A[1,0]", "B[0,0]", "B[1,0]", "P[0,0]", "P[0,1]", "Q[0,0]", "Q[0,1]"]


class Author:
    """Writes random formulas over both networks, on a grid of halves."""

    def __init__(self, seed: int) -> None:
        self.random = np.random.default_rng(seed)

    def term(self, depth: int) -> str:
        kind = self.random.integers(4) if depth else self.random.integers(2)
        if kind == 0:
            return repr(int(self.random.integers(-4, 5)) / 2)
        if kind == 1:
            return str(self.random.choice(NAMES))
        word = "*" if kind == 2 else str(self.random.choice(["+", "-"]))
        return f"({word} {self.term(depth - 1)} {self.term(depth - 1)})"

    def formula(self, depth: int) -> str:
        if depth and self.random.integers(2):
            word = self.random.choice(["and", "or"])
            return f"({word} {self.formula(depth - 1)} {self.formula(depth - 1)})"
        word = self.random.choice(["<=", ">=", "<", ">", "==", "!="])
        return f"({word} {self.term(2)} {self.random.choice(NAMES[4:])})"


def truth(text: str, point: dict[str, float]) -> bool:
    """Whether all assertions hold, by the evaluator of the tests of VNN-LIB 1.0."""
    return all(value(part, point) for part in parsed(re.sub(r"\s*\[\s*(\d),\s*(\d)\s*\]", r"[\1,\2]", text)))


@pytest.mark.parametrize("link", range(len(LINKS)))
def test_random_queries_mean_what_their_text_says(link: int) -> None:
    held, compared, points = 0, 0, 0
    for seed in range(60):
        author = Author(1000 * link + seed)
        assertions = BOX + LINKS[link] + f"(assert {author.formula(2)})"
        specification = read_unless_trivial(PAIR + assertions)
        if specification is None:
            continue
        compared += 1
        given = specification.given
        for row in author.random.integers(-1, 4, (40, 8)) / 2:
            free, y = torch.tensor(row[: len(given.names)]), torch.tensor(row[4:])
            x = given.inputs(free)
            point = dict(zip(NAMES, [*x.tolist(), *y.tolist()], strict=True))
            expected = truth(assertions, point)
            assert specification.holds(x, y) == expected, assertions
            columns = specification.columns(free, y)[None]
            closed = any(
                bool(((free >= one.lower) & (free <= one.upper)).all()) and float(one.excess(columns)) <= 0
                for one in specification.properties
            )
            assert closed >= expected, assertions
            assert closed == expected or specification.strict, assertions
            held, points = held + expected, points + 1
    assert compared > 45
    assert 0.01 < held / points < 0.9


def test_equal_inputs_become_one_and_bounds_follow() -> None:
    unsafe = "(assert (<= P[0,0] Q[0,0]))"
    first, second, third, fourth, _ = (parse_vnnlib(PAIR + BOX + link + unsafe) for link in LINKS)
    assert first.given.names == ("A[0,0]", "A[1,0]")
    assert first.given.inputs(torch.tensor([0.25, 0.5]).double()).tolist() == [0.25, 0.5, 0.25, 0.5]
    assert not first.has_terms
    assert second.given.inputs(torch.tensor([0.25, 0.5]).double()).tolist() == [0.25, 0.5, 0.75, 0.5]
    assert third.given.inputs(torch.tensor([0.25, 0.5]).double()).tolist() == [0.25, 0.5, 0.25, 0.5]
    assert fourth.given.names == ("A[0,0]", "A[1,0]", "B[0,0]")
    (one,) = fourth.properties
    assert one.upper.tolist() == pytest.approx([1.0, 1.0, 1.0], abs=1e-12)
    assert bool((one.upper >= 1).all())


def test_an_equality_that_rounding_would_bend_is_kept_as_it_stands() -> None:
    text = (
        PAIR
        + BOX
        + "(assert (>= B[0,0] -99))(assert (<= B[0,0] 99))(assert (>= B[1,0] 0))(assert (<= B[1,0] 9))"
    )
    found = [
        parse_vnnlib(
            text + f"(assert (== (* {a!r} A[0,0]) (+ (* {b!r} B[0,0]) {c!r})))(assert (<= P[0,0] 0))"
        )
        for a, b, c in np.random.default_rng(0).uniform(0.1, 3, (200, 3)).tolist()
    ]
    kept = [one for one in found if len(one.given.names) == 4]
    assert 0 < len(kept) < len(found)
    for one in found:
        ends = [(low.item(), high.item()) for low, high in zip(*_ends(one), strict=True)]
        assert all(high - low > 0.01 for low, high in ends)


def _ends(specification):
    return specification.properties[0].lower, specification.properties[0].upper


def test_both_versions_say_the_same_of_one_network() -> None:
    generator = torch.Generator().manual_seed(0)
    low = torch.rand(12, generator=generator, dtype=torch.float64)
    text = format_vnnlib([robustness(low, low + 0.1, 2, 4)])
    declared = "(declare-network net (declare-input X float32 [1,3,2,2]) (declare-output Y float32 [1,4]))\n"
    places = [f"X[0,{i // 4},{i % 4 // 2},{i % 2}]" for i in range(12)]
    renamed = re.sub(r"X_(\d+)", lambda match: places[int(match[1])], text)
    renamed = re.sub(r"Y_(\d+)", r"Y[0,\1]", renamed)
    again = declared + "\n".join(line for line in renamed.splitlines() if "declare-const" not in line)
    (one,), (other,) = parse_vnnlib(text).properties, parse_vnnlib(again).properties
    assert equal(one, other)


def test_counterexamples_are_written_tensor_by_tensor_as_declared() -> None:
    text = """(declare-network f (declare-input A float32 [2]) (declare-hidden H Real [1] "relu") \
(declare-output P Real []))(declare-network g (equal-to f) (declare-input B float32 [2]) \
(declare-hidden G Real [1] "relu") (declare-output Q Real [1,1]))"""
    box = "".join(f"(assert (and (>= {n}[{i}] 0) (<= {n}[{i}] 1)))" for n in "AB" for i in range(2))
    specification = parse_vnnlib(text + box + "(assert (> P Q[0,0]))(assert (<= H[0] G[0]))")
    witness = specification.witness(torch.tensor([0.5, 1, 0.25, 0]), torch.tensor([3.0, 4, 5, 6]))
    assert witness == (
        "A float32 [2]\n0.5\n1.0\nH Real [1]\n3.0\nP Real []\n4.0\n"
        "B float32 [2]\n0.25\n0.0\nG Real [1]\n5.0\nQ Real [1,1]\n6.0\n"
    )
    assert [one.node for one in specification.networks[0].variables] == [None, "relu", None]


def test_the_joined_module_computes_what_is_declared_and_is_bounded() -> None:
    torch.manual_seed(0)
    nets = [nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 2)).double() for _ in range(2)]
    places, scale = torch.tensor([0, 1, 2, 2, 0, 1]), torch.tensor([1.0, 1, 1, -1, 1, 2]).double()
    given = Given(("a", "b", "c"), places, scale, torch.tensor([0.0, 0, 0, 0.5, 0, 0]).double(), {})
    pair = SideBySide(nets, [(3,), (3,)], given)
    sums = torch.tensor([[1.0, -1.0, 0.0]]).double()
    products = ((0, 0), (4, 4), (0, 3), (1, 5), (0, 0, 4), (0, 0, 4, 4))
    module = WithTerms(pair, sums, products, 4).eval()
    x = torch.rand(500, 3, dtype=torch.float64)
    full = torch.stack([x[:, 0], x[:, 1], x[:, 2], 0.5 - x[:, 2], x[:, 0], 2 * x[:, 1]], 1)
    y = torch.cat([nets[0](full[:, :3]), nets[1](full[:, 3:])], 1)
    every = torch.cat([x, y], 1)
    by_hand = [every[:, list(one)].prod(1, keepdim=True) for one in products]
    expected = torch.cat([y, x @ sums.T, *by_hand], 1)
    torch.testing.assert_close(module(x), expected, rtol=1e-12, atol=1e-12)
    trace(module, like=x[:1])
    centre = torch.full((1, 3), 0.5, dtype=torch.float64)
    model = Classifier(module, num_classes=expected.shape[1], box=Box(-10.0, 10.0))
    threat = ThreatModel("linf", 0.5, Box(-10.0, 10.0))
    for label in range(expected.shape[1]):
        batch = Batch.of(centre, torch.tensor([label]))
        lower = Crown().run(model, batch, threat, Randomness(0)).lower
        rivals = torch.arange(expected.shape[1]) != label
        margins = expected[:, label : label + 1] - expected
        assert bool((margins >= lower - 1e-9)[:, rivals].all())
        assert bool((lower[:, rivals] > -20).all())


NET = "(declare-network f (declare-input X real [2]) (declare-output Y real [2]))\n"
WHOLE = NET + "(assert (and (>= X[0] 0) (<= X[0] 1) (>= X[1] 0) (<= X[1] 1)))\n"
MISTAKES = {
    "no output": (
        "(declare-network f (declare-input X real [2]))",
        "line 1: '(declare-network ...' declares no output",
    ),
    "empty": ("\n(declare-network f)", "line 2: '(declare-network ...' is no network: write"),
    "twice": (
        NET + "(declare-network g (declare-input X real [2]) (declare-output Z real [2]))",
        "line 2: 'X' is declared twice",
    ),
    "unknown equal": (
        NET + "(declare-network g (equal-to h) (declare-input Z real [2]))",
        "line 2: 'h' is no network declared before",
    ),
    "element type": (
        "(declare-network f (declare-input X complex64 [2]) (declare-output Y real [2]))",
        "line 1: 'complex64' is not understood as a type: use real",
    ),
    "no shape": (
        "(declare-network f (declare-input X real 2) (declare-output Y real [2]))",
        "line 1: '2' is no shape",
    ),
    "no elements": (
        "(declare-network f (declare-input X real [0]) (declare-output Y real [2]))",
        "holds no elements",
    ),
    "hidden node": (
        "(declare-network f (declare-input X real [1]) (declare-hidden Z real [1]))",
        "has 3 arguments: write (declare-hidden",
    ),
    "some nodes": (
        '(declare-network f (declare-input X real [1] "x") (declare-input Z real [1])'
        " (declare-output Y real [1]))",
        "names the ONNX node of some inputs only",
    ),
    "name": (
        "(declare-network 1f (declare-input X real [1]) (declare-output Y real [1]))",
        "'1f' is no name",
    ),
    "word": (
        "(declare-network f (declare-thing X real [1]) (declare-output Y real [1]))",
        "'declare-thing' is not understood in a network",
    ),
    "index": (WHOLE + "(assert (<= Y[2] 1))", "line 3: 'Y[2]' is neither a number nor a declared name"),
    "partial": (WHOLE + "(assert (<= Y 1))", "line 3: 'Y' is neither"),
    "both versions": (NET + "(declare-const X_0 Real)", "the file has declare-const and declare-network"),
    "unbounded": (
        NET + "(assert (<= X[0] 1))(assert (<= Y[0] 1))",
        "X[0] has no lower bound: add (assert (>= X[0] NUMBER))",
    ),
    "apart": (WHOLE + "(assert (!= Y[0] 1 2))", "line 3: '(!= ...' has 3 arguments: write (!= TERM TERM)"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_names_line_and_token(case: str) -> None:
    text, message = MISTAKES[case]
    with pytest.raises(UserError) as mistake:
        parse_vnnlib(text)
    assert message in str(mistake.value)
    assert "\n" not in str(mistake.value)


def test_products_are_multiplied_out() -> None:
    one = Linear({"X_0": 2.0, "Y_1": -1.0}, 3.0, 1)
    square = one.multiplied(one)
    assert square.factors == {"*X_0*X_0": 4.0, "*X_0*Y_1": -4.0, "*Y_1*Y_1": 1.0, "X_0": 12.0, "Y_1": -6.0}
    assert square.constant == 9.0
    assert square.substituted({"Y_1": Linear({"X_0": 2.0}, 3.0, 1)}).factors == {}
