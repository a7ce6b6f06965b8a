"""One ONNX network and one VNN-LIB property in, `unsat`, `sat`, `unknown` or `timeout` out."""

from __future__ import annotations

import copy
import math
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from certify.exact import settle
from certify.graph import trace
from certify.many import still_open
from certify.property import Property
from certify.vnnlib import Specification, read_vnnlib
from models.errors import NotApplicable, UserError
from models.onnx.ending import without_softmax
from models.onnx.reader import OnnxNetwork, read
from models.onnx.runtime import Runtime, check_agreement

# Ways to move a counterexample inwards where rounding to the file's precision undoes it.
STEPS = 40


@dataclass(frozen=True)
class Answer:
    """The verdict in VNN-COMP's words, with the counterexample where it is `sat`.

    inputs (d,) lie in the property's box; outputs (k,) are onnxruntime's there. prepare_seconds went
    into reading and checking the files, seconds into the answer; note says what a user should know.
    """

    result: str
    inputs: Tensor | None
    outputs: Tensor | None
    prepare_seconds: float
    seconds: float
    note: str = ""

    def witness(self) -> str:
        """The counterexample in the competition's format."""
        assert self.inputs is not None
        assert self.outputs is not None
        values = [f"(X_{i} {value!r})" for i, value in enumerate(self.inputs.tolist())]
        values += [f"(Y_{j} {value!r})" for j, value in enumerate(self.outputs.tolist())]
        return "(" + "\n".join(values) + ")\n"


@dataclass(frozen=True)
class Instance:
    """A network read twice, by us and by onnxruntime, what is asked, and the properties to be settled.

    `exact` returns the outputs and, behind them, the sums of inputs that the properties speak of; it returns
    the logits in place of a softmax's outputs where these are only compared with each other.
    """

    read: OnnxNetwork
    exact: nn.Module
    runtime: Runtime
    wanted: Specification
    properties: tuple[Property, ...]

    def broken_at(self, one: Property, x: Tensor) -> Tensor | None:
        """onnxruntime's outputs at x (of the input's shape) where both readings are unsafe there."""
        theirs = self.runtime.outputs(x[None])[0]
        with torch.no_grad():
            ours = self.exact(x[None])
        whole = torch.cat([theirs, self.wanted.sums @ x.flatten()])[None]
        unsafe = float(one.excess(whole)) <= 0 and float(one.excess(ours)) <= 0
        return theirs if unsafe and self.wanted.holds(x.flatten(), theirs) else None


class WithSums(nn.Module):
    """A network's outputs with sums of its inputs behind them: (n, outputs + m); rows (m, inputs)."""

    def __init__(self, network: nn.Module, rows: Tensor) -> None:
        super().__init__()
        self.network = network
        self.sums = nn.utils.skip_init(nn.Linear, rows.shape[1], rows.shape[0], bias=False, dtype=rows.dtype)
        self.sums.weight.data = rows

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.network(x), self.sums(x.flatten(1))], 1)


def load(onnx: Path, vnnlib: Path) -> Instance:
    """Reads both files, or their .gz, and compares the network with onnxruntime on points of the input set.

    Raises UserError where the two files do not fit each other, or for an operation without a rule.
    """
    onnx, vnnlib = present(onnx), present(vnnlib)
    network, wanted = read(onnx), read_vnnlib(vnnlib)
    _check_sizes(onnx, network, vnnlib, wanted)
    exact: nn.Module = copy.deepcopy(network.network).double()
    if not len(wanted.sums) and all(one.compares_only() for one in wanted.properties):
        exact = without_softmax(exact)
    if len(wanted.sums):
        exact = WithSums(exact, wanted.sums).eval()
    trace(exact, like=torch.zeros(1, *network.shape, dtype=torch.float64))
    properties = tuple(
        Property(one.lower.reshape(network.shape), one.upper.reshape(network.shape), one.clauses)
        for one in wanted.properties
    )
    runtime = Runtime(onnx, network)
    for one in properties[:1]:
        check_agreement(network, runtime, one.lower, one.upper)
    return Instance(network, exact, runtime, wanted, properties)


def present(path: Path) -> Path:
    """The file, or its .gz where only that is there: benchmarks list the one and ship the other."""
    packed = path.with_name(f"{path.name}.gz")
    return packed if packed.is_file() and not path.is_file() else path


def _check_sizes(onnx: Path, network: OnnxNetwork, vnnlib: Path, wanted: Specification) -> None:
    for kind, theirs, ours in (
        ("inputs", wanted.inputs, math.prod(network.shape)),
        ("outputs", wanted.outputs, network.outputs),
    ):
        if theirs != ours:
            raise UserError(f"{vnnlib} declares {theirs} {kind}, but the network {onnx} has {ours}")


def verify(onnx: Path, vnnlib: Path, seconds: float, seed: int = 0) -> Answer:
    """Settles a property within `seconds` of wall-clock time, reading included.

    `unsat`: no input of the set reaches an unsafe output, proved for the network in double
    precision. `sat`: a counterexample, unsafe in double precision and in onnxruntime's own.
    `timeout`: the time went by; `unknown`: the search ended before. Raises UserError for bad files.
    """
    start = time.perf_counter()
    instance = load(onnx, vnnlib)
    prepared = time.perf_counter()
    deadline = start + seconds
    note, denied = "", False
    waiting = still_open(instance.exact, instance.properties, time.monotonic() + 0.3 * seconds)
    for _ in range(2):
        # The second time round, what some left over goes to those still open.
        undecided = []
        for place, one in enumerate(waiting):
            left = deadline - time.perf_counter()
            if left <= 0:
                undecided.append(one)
                continue
            try:
                verdict = settle(instance.exact, one, seconds=left / (len(waiting) - place), seed=seed)
            except NotApplicable as refusal:
                # The operations are understood, but no exact search goes through all of them.
                undecided, note = [*undecided, one], str(refusal)
                continue
            if verdict.status == "broken" and verdict.witness is not None:
                found = confirmed(instance, one, verdict.witness)
                if found is not None:
                    return Answer("sat", *found, prepared - start, time.perf_counter() - prepared)
                denied, note = True, "a counterexample in double precision is none in the file's own"
                if instance.wanted.strict:
                    note += ", or lies on the boundary of a strict inequality"
            elif verdict.status != "certified":
                undecided.append(one)
        waiting = undecided
    if not waiting and not denied and disputed(instance):
        denied, note = True, "an input that is given as a point is unsafe in the file's own precision alone"
    late = time.perf_counter() >= deadline - 0.02 * seconds
    result = ("timeout" if late else "unknown") if waiting else "unknown" if denied else "unsat"
    return Answer(result, None, None, prepared - start, time.perf_counter() - prepared, note)


def disputed(instance: Instance) -> bool:
    """Whether onnxruntime's own outputs are unsafe at the one input that some property has."""
    points = [one.lower for one in instance.properties if bool((one.lower == one.upper).all())]
    return any(instance.wanted.holds(x.flatten(), instance.runtime.outputs(x[None])[0]) for x in points)


def confirmed(instance: Instance, one: Property, witness: Tensor) -> tuple[Tensor, Tensor] | None:
    """A counterexample that holds in both precisions, at the witness or nearby, and its outputs.

    Prefers inputs that single precision holds exactly; all lie inside the property's bounds, away from
    them where some inequality is strict.
    """
    x = witness.detach().double().reshape(one.lower.shape)
    width = one.upper - one.lower
    for step in range(STEPS):
        for point in (_single(x, one), x):
            inside = point.clamp(one.lower, one.upper)
            outputs = instance.broken_at(one, inside)
            if outputs is not None:
                return inside.flatten(), outputs
        moving = x.clone().requires_grad_(True)
        (slope,) = torch.autograd.grad(one.excess(instance.exact(moving[None])).sum(), moving)
        size = 1e-6 * 1.5**step
        x = (x - size * width * slope.sign()).clamp(one.lower, one.upper)
        if instance.wanted.strict:
            x = x + min(size, 1.0) * ((one.lower + one.upper) / 2 - x)
    return None


def _single(x: Tensor, one: Property) -> Tensor:
    """The nearest single precision numbers inside the bounds, where there are any."""
    near = x.float()
    away = torch.where(near.double() > one.upper, -torch.inf, torch.inf)
    outside = (near.double() > one.upper) | (near.double() < one.lower)
    return torch.where(outside, torch.nextafter(near, away.float()), near).double()
