"""One ONNX network and one VNN-LIB property in, `unsat`, `sat`, `unknown` or `timeout` out."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from bench.joint import Joint, present
from certify.exact import settle
from certify.graph import trace
from certify.many import still_open
from certify.property import Property
from certify.vnnlib import Specification, read_vnnlib
from models.errors import NotApplicable

# Ways to move a counterexample inwards where rounding to the file's precision undoes it.
STEPS = 40


@dataclass(frozen=True)
class Answer:
    """The verdict in VNN-COMP's words, with the counterexample where it is `sat`.

    inputs (d,) lie in the property's box; outputs (k,) are onnxruntime's there; witness is both as the
    property's version of VNN-LIB writes them. prepare_seconds went into reading and checking the files,
    seconds into the answer; note says what a user should know.
    """

    result: str
    inputs: Tensor | None
    outputs: Tensor | None
    prepare_seconds: float
    seconds: float
    note: str = ""
    witness: str = ""


@dataclass(frozen=True)
class Instance:
    """Networks read twice, by us and by onnxruntime, what is asked, and the properties to be settled.

    `exact` maps free inputs, in the shape of the properties' bounds, to what their clauses speak of; it
    returns the logits in place of a softmax's outputs where these are only compared with each other.
    """

    joint: Joint
    exact: nn.Module
    wanted: Specification
    properties: tuple[Property, ...]

    def broken_at(self, one: Property, x: Tensor) -> Tensor | None:
        """onnxruntime's outputs at x (of the bounds' shape) where both readings are unsafe there."""
        inputs = self.wanted.given.inputs(x.flatten())
        theirs = self.joint.outputs(inputs)
        with torch.no_grad():
            ours = self.exact(x[None])
        whole = self.wanted.columns(x.flatten(), theirs)[None]
        unsafe = float(one.excess(whole)) <= 0 and float(one.excess(ours)) <= 0
        return theirs if unsafe and self.wanted.holds(inputs, theirs) else None


def load(files: Path | Mapping[str, Path], vnnlib: Path) -> Instance:
    """Reads all files, or their .gz, and compares the networks with onnxruntime on points of the input set.

    `files` are ONNX files by the name of the network in the property, or the file of its only one. Raises
    UserError where the files do not fit each other, or for an operation without a rule.
    """
    vnnlib = present(vnnlib)
    wanted = read_vnnlib(vnnlib)
    joint = Joint.load(files if isinstance(files, Mapping) else {"": files}, wanted, vnnlib)
    exact = joint.module(wanted)
    trace(exact, like=torch.zeros(1, *joint.shape, dtype=torch.float64))
    properties = tuple(
        Property(one.lower.reshape(joint.shape), one.upper.reshape(joint.shape), one.clauses)
        for one in wanted.properties
    )
    for one in properties[:1]:
        joint.check_agreement(one.lower, one.upper)
    return Instance(joint, exact, wanted, properties)


def verify(files: Path | Mapping[str, Path], vnnlib: Path, seconds: float, seed: int = 0) -> Answer:
    """Settles a property within `seconds` of wall-clock time, reading included.

    `unsat`: no input of the set reaches an unsafe output, proved for the network in double
    precision. `sat`: a counterexample, unsafe in double precision and in onnxruntime's own.
    `timeout`: the time went by; `unknown`: the search ended before. Raises UserError for bad files.
    """
    start = time.perf_counter()
    instance = load(files, vnnlib)
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
                    took = time.perf_counter() - prepared
                    return Answer("sat", *found, prepared - start, took, "", instance.wanted.witness(*found))
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
    inputs = [instance.wanted.given.inputs(x.flatten()) for x in points]
    return any(instance.wanted.holds(x, instance.joint.outputs(x)) for x in inputs)


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
                return instance.wanted.given.inputs(inside.flatten()), outputs
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
