"""Values, and constants of the network, joined along a dimension."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from certify.bounds import Interval, dot
from certify.rules.operation import Affine, after_samples
from certify.rules.shape import Reshape
from certify.rules.table import Call, Constant, Plan, Several, Step, like, rule
from models.errors import NotApplicable


@dataclass(frozen=True)
class Concatenate(Affine):
    """Values joined along `dim`, never the samples'."""

    dim: int
    copies = True

    def forward(self, *values: Tensor) -> Tensor:
        return torch.cat(values, after_samples(self.dim, values[0].dim()))

    def interval(self, *inputs: Interval) -> Interval:
        lower = self.forward(*(value.lower for value in inputs))
        return Interval(lower, self.forward(*(value.upper for value in inputs)))

    def lipschitz(self, norm: str, constants: Sequence[Tensor], shapes: Sequence[torch.Size]) -> Tensor:
        together = torch.stack(list(constants))
        return together.amax() if norm == "linf" else together.norm()

    def transpose(self, rows: Tensor, *shapes: torch.Size) -> tuple[Tensor, ...]:
        place = after_samples(self.dim, len(shapes[0]) + 1)
        return rows.split([shape[place - 1] for shape in shapes], place + 1)

    def constant(self, rows: Tensor) -> Tensor | float:
        return 0.0


@dataclass(frozen=True)
class Extended(Affine):
    """A value with a constant of one sample (1, ...) before or behind it along `dim`, never the samples'."""

    dim: int
    read: Callable[[], Any]
    before: bool
    copies = True

    def _joined(self, values: Tensor, constant: Tensor) -> Tensor:
        if constant.dim() != values.dim() or constant.shape[0] != 1:
            raise NotApplicable(
                f"a constant of shape {tuple(constant.shape)} is joined to values of shape "
                f"{tuple(values.shape[1:])}: the certificates need one that is the same for all samples"
            )
        constant = constant.expand(len(values), *constant.shape[1:])
        place = after_samples(self.dim, values.dim())
        return torch.cat([constant, values] if self.before else [values, constant], place)

    def forward(self, *values: Tensor) -> Tensor:
        return self._joined(values[0], like(self.read(), values[0]))

    def interval(self, *inputs: Interval) -> Interval:
        return Interval(self.forward(inputs[0].lower), self.forward(inputs[0].upper))

    def lipschitz(self, norm: str, constants: Sequence[Tensor], shapes: Sequence[torch.Size]) -> Tensor:
        return constants[0]

    def _apart(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Rows on the constant and on the value."""
        place = after_samples(self.dim, rows.dim() - 1)
        own = self.read().shape[place]
        rest = rows.shape[place + 1] - own
        first, second = rows.split([own, rest] if self.before else [rest, own], place + 1)
        return (first, second) if self.before else (second, first)

    def transpose(self, rows: Tensor, *shapes: torch.Size) -> tuple[Tensor, ...]:
        return (self._apart(rows)[1],)

    def constant(self, rows: Tensor) -> Tensor | float:
        own, constant = self._apart(rows)[0], like(self.read(), rows)
        return dot(own, constant.expand(len(rows), *constant.shape[1:]))


@rule(torch.cat, torch.concat)
def concatenate(call: Call) -> Step | list[Step]:
    """torch.cat of values and constants along a dimension after the samples'."""
    given = call.bind("tensors", dim=0)
    parts, dim = given["tensors"], given["dim"]
    if isinstance(parts, Several):
        call.value(parts)
    if not isinstance(dim, int) or dim == 0:
        call.refuse("must join along a dimension after the samples': name one >= 1")
    if not any(isinstance(part, Constant) for part in parts):
        return Concatenate(dim), tuple(call.value(part) for part in parts)
    first = next((place for place, part in enumerate(parts) if not isinstance(part, Constant)), 0)
    steps: list[Step] = [(Concatenate(dim), (call.value(parts[first]),))]
    for part in parts[first + 1 :]:
        if isinstance(part, Constant):
            steps.append((Extended(dim, part.read, False), (-1,)))
        else:
            steps.append((Concatenate(dim), (-1, call.value(part))))
    return [*steps, *((Extended(dim, part.read, True), (-1,)) for part in reversed(parts[:first]))]


@rule(torch.stack)
def stack(call: Call) -> list[Step]:
    """torch.stack of values along a new dimension after the samples'."""
    given, plan = call.bind("tensors", dim=0), Plan()
    parts, dim = given["tensors"], given["dim"]
    if not isinstance(dim, int) or dim == 0:
        call.refuse("must join along a dimension after the samples': name one >= 1")
    sources = [call.value(part) for part in ([parts] if isinstance(parts, Several) else parts)]
    apart = Reshape(lambda values: values.unsqueeze(after_samples(dim, values.dim() + 1)))
    plan.add(Concatenate(dim), *[plan.add(apart, source) for source in sources])
    return plan.steps
