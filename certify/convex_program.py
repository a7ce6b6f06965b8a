"""The triangle relaxation of a folded network written for cvxpy: the reference for the warm program."""

from __future__ import annotations

import cvxpy as cp
import torch
from torch import Tensor

from certify.folded import Folded, Targets
from certify.warm_program import Multipliers
from certify.witness import overlap_from_multipliers, slopes_from_multipliers


class ConvexProgram:
    """min target(x, a) over the triangle relaxation: a fresh problem for every target.

    Variables: the input x in its box and the output a of each undecided neuron. Constraints, with
    z affine in x and in earlier a: a >= leak z, a >= z, and a below the chord from (l, leak l) to
    (u, u). Source: Wong & Kolter 2018, 1711.00851, equation 4.
    """

    def __init__(self, folded: Folded, targets: Targets) -> None:
        self.folded, self.targets = folded, targets

    def solve(self, group: int, alpha: Tensor, seconds: float) -> list[Multipliers]:
        """As WarmProgram.minimum: the multipliers where the group's (one) function is least, or none."""
        folded, targets = self.folded, self.targets
        x = cp.Variable(
            folded.input_rows.shape[1], bounds=[folded.inputs.lower.numpy(), folded.inputs.upper.numpy()]
        )
        a = cp.Variable(folded.neurons)
        leak, low, high = folded.leak.numpy(), folded.lower.numpy(), folded.upper.numpy()
        chord = (high - leak * low) / (high - low)
        z = folded.input_rows.numpy() @ x + folded.neuron_rows.numpy() @ a + folded.constant.numpy()
        constraints = [
            a >= cp.multiply(leak, z), a >= z, a <= cp.multiply(chord, z) + (1 - chord) * high
        ]  # fmt: skip
        cost = targets.input_rows[group, 0].numpy() @ x + targets.neuron_rows[group, 0].numpy() @ a
        problem = cp.Problem(cp.Minimize(cost), constraints)
        try:
            problem.solve(solver=cp.HIGHS, time_limit=seconds)
        except (cp.SolverError, ValueError, ArithmeticError):
            return []
        if any(constraint.dual_value is None for constraint in constraints):
            return []
        zero, line, below = (torch.as_tensor(part.dual_value, dtype=alpha.dtype) for part in constraints)
        values = torch.as_tensor(z.value, dtype=alpha.dtype)
        own = torch.where(values > 0, values, folded.leak * values)
        return [
            Multipliers(
                slopes_from_multipliers(zero, line, alpha),
                torch.zeros_like(alpha),
                torch.as_tensor(x.value, dtype=alpha.dtype),
                (torch.as_tensor(a.value, dtype=alpha.dtype) - own).abs(),
                overlap_from_multipliers(zero, line, below),
            )
        ]
