"""Bounds on every input of a property, and inputs that are given by others."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from certify.syntax import ROUNDING, Linear
from models.errors import UserError

# Rounds in which bounds follow from each other; a chain longer than that keeps looser ones.
ROUNDS = 20


class InputBounds:
    """Bounds on every input, from constraints on single inputs; `names` are what messages call them."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names
        self.lower = torch.full((len(names),), -torch.inf, dtype=torch.float64)
        self.upper = torch.full((len(names),), torch.inf, dtype=torch.float64)
        self._sealed: bytes | None = None

    def copy(self) -> InputBounds:
        other = InputBounds(self.names)
        other.lower, other.upper = self.lower.clone(), self.upper.clone()
        return other

    def cut(self, constraints: Iterable[Linear]) -> None:
        """Applies the constraints on inputs, each a x + c <= 0 with one input x."""
        self._sealed = None
        below, above = self.lower.numpy(), self.upper.numpy()
        for constraint in constraints:
            if not constraint.bounds_an_input():
                continue
            ((name, factor),) = constraint.factors.items()
            place = int(name[2:])
            edge = -constraint.constant / factor
            if factor > 0:
                above[place] = min(above[place], edge)
            else:
                below[place] = max(below[place], edge)

    def follow(self, constraints: Iterable[Linear]) -> None:
        """Applies what sums of inputs leave to each of them, given the bounds of the others.

        Such bounds are rounded outwards: they take no input away.
        """
        self._sealed = None
        sums = [
            one for one in constraints if len(one.factors) > 1 and len(one.names("X")) == len(one.factors)
        ]
        for _ in range(ROUNDS if sums else 0):
            before = self.lower.clone(), self.upper.clone()
            for constraint in sums:
                self._follow(constraint)
            if torch.equal(before[0], self.lower) and torch.equal(before[1], self.upper):
                return

    def _follow(self, constraint: Linear) -> None:
        below, above = self.lower.numpy(), self.upper.numpy()
        factors = constraint.names("X")
        least = {i: factor * float(below[i] if factor > 0 else above[i]) for i, factor in factors.items()}
        for place, factor in factors.items():
            rest = [constraint.constant, *(part for i, part in least.items() if i != place)]
            total = math.fsum(rest) if all(map(math.isfinite, rest)) else -math.inf
            edge = -(total - ROUNDING * max(map(abs, rest))) / factor if math.isfinite(total) else math.inf
            if not math.isfinite(edge):
                continue
            if factor > 0:
                above[place] = min(above[place], math.nextafter(edge, math.inf))
            else:
                below[place] = max(below[place], math.nextafter(edge, -math.inf))

    def sealed(self) -> bytes:
        """What these bounds are, as a key; raises UserError where an input has none, or its bounds cross.

        Told once until they change: files may have a thousand clauses over the same many inputs.
        """
        if self._sealed is None:
            self._check()
            self._sealed = self.lower.numpy().tobytes() + self.upper.numpy().tobytes()
        return self._sealed

    def _check(self) -> None:
        for side, ends, sign in (("lower", self.lower, ">="), ("upper", self.upper, "<=")):
            open_ = (~torch.isfinite(ends)).nonzero().flatten()
            if len(open_):
                name = self.names[int(open_[0])]
                raise UserError(f"{name} has no {side} bound: add (assert ({sign} {name} NUMBER))")
        if self.empty():
            place = int((self.lower > self.upper).nonzero()[0])
            low, high = float(self.lower[place]), float(self.upper[place])
            raise UserError(f"{self.names[place]} has the lower bound {low:g} above its upper bound {high:g}")

    def empty(self) -> bool:
        """Whether no input satisfies the bounds."""
        return bool((self.lower > self.upper).any())


@dataclass(frozen=True)
class Given:
    """All inputs in terms of those that no equality gives: X = scale * free[places] + shift, each (inputs,).

    `names` are the free ones', `terms` say the same as a map from X_i, with free inputs numbered anew; none
    where all are free.
    """

    names: tuple[str, ...]
    places: Tensor
    scale: Tensor
    shift: Tensor
    terms: Mapping[str, Linear]

    @staticmethod
    def by(names: Sequence[str], constraints: Sequence[Linear]) -> Given:
        """From the constraints that hold everywhere; names[i] is what messages call X_i."""
        known = _equal(constraints)
        free = [i for i in range(len(names)) if f"X_{i}" not in known]
        places, scale = torch.arange(len(names)), torch.ones(len(names), dtype=torch.float64)
        shift = torch.zeros_like(scale)
        terms: dict[str, Linear] = {}
        if known:
            terms = {f"X_{i}": Linear({f"X_{place}": 1.0}, 0.0, 0) for place, i in enumerate(free)}
            terms.update({name: term.substituted(terms) for name, term in known.items()})
            for i in range(len(names)):
                one = terms[f"X_{i}"]
                ((places[i], scale[i]),) = one.names("X").items()
                shift[i] = one.constant
        return Given(tuple(names[i] for i in free), places, scale, shift, terms)

    def inputs(self, free: Tensor) -> Tensor:
        """All inputs (inputs,) of free ones (free,)."""
        return self.scale * free[self.places] + self.shift


def _equal(constraints: Sequence[Linear]) -> dict[str, Linear]:
    """The inputs that equalities give as a x + b of another input x, which none gives.

    An equality is two constraints, t <= 0 and -t <= 0. It is left as it stands where rounding would leave
    anything of it behind.
    """
    sums = [
        one for one in constraints if len(one.factors) == 2 and len(one.names("X")) == 2 and not one.strict
    ]
    stated = {_key(one) for one in sums}
    equalities = [one for one in sums if _key(one.times(-1.0)) in stated]
    roots: dict[str, str] = {}
    for one in equalities:
        (first, factor), (second, opposite) = one.factors.items()
        if factor == -opposite and one.constant == 0:
            low, high = sorted((_root(first, roots), _root(second, roots)), key=_number)
            if low != high:
                roots[high] = low
    known = {name: Linear({_root(name, roots): 1.0}, 0.0, 0) for name in roots}
    moved: dict[str, Linear] = {}
    kept: set[str] = set()
    for one in equalities:
        left = one.substituted(known)
        for name in sorted(left.factors, key=_number, reverse=True):
            (other,) = left.factors.keys() - {name} or {name}
            if name == other or name in kept or {name, other} & moved.keys():
                continue
            solution = left.plus(Linear({name: -left.factors[name]}, 0.0, 0)).times(-1.0 / left.factors[name])
            rest = left.substituted({name: solution})
            if not rest.factors and rest.constant == 0:
                moved[name] = solution
                kept.add(other)
                break
    return {**{name: term.substituted(moved) for name, term in known.items()}, **moved}


def _root(name: str, roots: dict[str, str]) -> str:
    while name in roots:
        above = roots[name]
        roots[name] = name = roots.get(above, above)
    return name


def _key(constraint: Linear) -> tuple[tuple[tuple[str, float], ...], float]:
    return tuple(sorted(constraint.factors.items())), constraint.constant


def _number(name: str) -> int:
    return int(name[2:])
