"""The triangle relaxation of a folded network as one linear program that is solved again and again, warm."""

from __future__ import annotations

from dataclasses import dataclass

import highspy
import numpy as np
import torch
from scipy.sparse import block_array, csr_matrix, diags_array, eye_array
from torch import Tensor

from certify.folded import Folded, Targets
from certify.witness import overlap_from_multipliers, slopes_from_multipliers

# So far above what is enough the multipliers that have been found still prove it.
BEYOND = 1e-3

# The solver's names for its two methods, and what the first may take of the time where both are tried.
DUAL, PRIMAL = 1, 4
WARM = 0.3
LOST = (
    highspy.HighsModelStatus.kUnknown,
    highspy.HighsModelStatus.kSolveError,
    highspy.HighsModelStatus.kTimeLimit,
)

# The price of a phase that is not kept, in units of the target's largest coefficient.
PRICE = 1e3


@dataclass(frozen=True)
class Multipliers:
    """Lower slopes alpha (m,) and phase multipliers beta (m,) read off a solved program.

    x (d,) is the program's input, and violation (m,) how far its a is from the neuron's own output at its z.
    overlap (m,) is the weight on both lines of a free neuron at once, None where nobody asked.
    """

    alpha: Tensor
    beta: Tensor
    x: Tensor
    violation: Tensor
    overlap: Tensor | None = None


class WarmProgram:
    """One HiGHS model: variables x, z, a, e; a change of target or of a phase keeps the last basis.

    Rows: z affine in x and a; a - leak z >= -e; a - z >= -e'; a below the chord. A fixed phase turns one of
    the middle two into an equality and drops the last: then the other one bounds z by 0. Phases that no
    input satisfies make a program no harder, since e, 0 where neurons are free, may be bought there at
    `price`, the largest multiplier of a phase. What follows from other rows, such as l <= z <= u, stays
    out so that no multiplier hides there.
    """

    def __init__(self, folded: Folded, targets: Targets) -> None:
        self.folded, self.targets = folded, targets
        self.d, self.m = folded.input_rows.shape[1], folded.neurons
        self.solver = highspy.Highs()
        # HiGHS' own scaling doubles the pivots here: rows and columns are alike already.
        for option, value in (
            ("output_flag", False), ("presolve", "off"), ("threads", 1), ("simplex_scale_strategy", 0)
        ):  # fmt: skip
            self.solver.setOptionValue(option, value)
        self.lower, self.upper = folded.lower.numpy(), folded.upper.numpy()
        self.price = PRICE * max(1.0, float(targets.neuron_rows.abs().max()) if self.m else 0.0)
        self.solver.passModel(self._program())
        self.sign = np.zeros(self.m, dtype=np.int8)
        self.early = self.based = False

    def _program(self) -> highspy.HighsLp:
        folded, m = self.folded, self.m
        leak, constant = folded.leak.numpy(), folded.constant.numpy()
        chord = (self.upper - leak * self.lower) / (self.upper - self.lower)
        slope, line = diags_array(leak, shape=(m, m)), diags_array(chord, shape=(m, m))
        one = eye_array(m, format="csr")
        x, a = csr_matrix(folded.input_rows.numpy()), csr_matrix(folded.neuron_rows.numpy())
        matrix = block_array(
            [
                [-x, one, -a, None, None],
                [None, -slope, one, one, None],
                [None, -one, one, None, one],
                [None, -line, one, None, None],
            ],
            format="csr",
        )
        none, most = np.zeros(m), np.full(m, highspy.kHighsInf)
        program = highspy.HighsLp()
        program.num_col_, program.num_row_ = self.d + 4 * m, 4 * m
        program.col_cost_ = np.zeros(self.d + 4 * m)
        program.col_lower_ = np.concatenate([folded.inputs.lower.numpy(), -most, -most, none, none])
        program.col_upper_ = np.concatenate([folded.inputs.upper.numpy(), most, most, none, none])
        program.row_lower_ = np.concatenate([constant, none, none, -most])
        self.chord_end = (1 - chord) * self.upper
        program.row_upper_ = np.concatenate([constant, most, most, self.chord_end])
        program.a_matrix_.format_ = highspy.MatrixFormat.kRowwise
        program.a_matrix_.start_, program.a_matrix_.index_ = matrix.indptr, matrix.indices
        program.a_matrix_.value_ = matrix.data
        return program

    def _impose(self, sign: np.ndarray) -> None:
        """Bounds and rows of the phases that differ from the last call's."""
        changed = np.flatnonzero(sign != self.sign).astype(np.int32)
        if not len(changed):
            return
        wanted, infinity = sign[changed], highspy.kHighsInf
        bought = changed + self.d + 2 * self.m
        for columns, phase in ((bought, 1), (bought + self.m, -1)):
            none = np.zeros(len(changed))
            self.solver.changeColsBounds(
                len(changed), columns, none, np.where(wanted == phase, infinity, 0.0)
            )
        for neuron, value in zip(changed.tolist(), wanted.tolist(), strict=True):
            for block, phase in ((1, -1), (2, 1)):
                end = 0.0 if value == phase else infinity
                self.solver.changeRowBounds(block * self.m + neuron, 0.0, end)
            chord = self.chord_end[neuron] if not value else infinity
            self.solver.changeRowBounds(3 * self.m + neuron, -infinity, chord)
        self.sign = sign.copy()

    def solve(
        self, group: int, sign: Tensor, alpha: Tensor, seconds: float, enough: float = np.inf
    ) -> list[Multipliers]:
        """The multipliers where the group's (one) function is least under the phases; none on failure.

        The solver may stop where it has seen that the least is above `enough`; `early` says whether it did.
        `alpha` (m,) stands wherever the program leaves a slope open. Nothing here is believed: the caller
        evaluates what the multipliers prove.
        """
        self._impose(sign.numpy())
        cost = np.concatenate([
            self.targets.input_rows[group, 0].numpy(), np.zeros(self.m),
            self.targets.neuron_rows[group, 0].numpy(), np.full(2 * self.m, self.price),
        ])  # fmt: skip
        self.solver.changeColsCost(len(cost), np.arange(len(cost), dtype=np.int32), cost)
        constant = float(self.targets.constant[group, 0])
        self.solver.setOptionValue("objective_bound", enough + BEYOND * (1 + abs(constant)) - constant)
        self._run(seconds)
        status, m = self.solver.getModelStatus(), self.m
        self.early = status == highspy.HighsModelStatus.kObjectiveBound
        if status != highspy.HighsModelStatus.kOptimal and not self.early:
            return []
        solution = self.solver.getSolution()
        rows = torch.from_numpy(np.array(solution.row_dual, dtype=np.float64))
        zero, line, chord = rows[m:].split(m)
        held = torch.where(sign > 0, zero, line) * (sign != 0) * (1 - self.folded.leak)
        beta = torch.nan_to_num(held, 0.0, 0.0, 0.0).clamp(min=0)
        slopes, overlap = (
            slopes_from_multipliers(zero, line, alpha),
            overlap_from_multipliers(zero, line, -chord),
        )
        x, z, a, _ = torch.from_numpy(np.array(solution.col_value, dtype=np.float64)).split(
            [self.d, m, m, 2 * m]
        )
        violation = (a - torch.where(z > 0, z, self.folded.leak * z)).abs()
        return [Multipliers(slopes, beta, x, violation, overlap)]

    def _run(self, seconds: float) -> None:
        """Runs the dual simplex from the last basis; where that gets lost the primal one, from none.

        Without a basis to start from the primal one is the faster where phases are imposed.
        """
        imposed = bool(self.sign.any())
        methods = (
            [(PRIMAL, 1.0)]
            if imposed and not self.based
            else [(DUAL, WARM if imposed else 1.0), (PRIMAL, 1.0)]
        )
        until = self.solver.getRunTime() + seconds
        for method, share in methods:
            left = until - self.solver.getRunTime()
            if left <= 0:
                return
            self.solver.setOptionValue("simplex_strategy", method)
            self.solver.setOptionValue("time_limit", self.solver.getRunTime() + share * left)
            self.solver.run()
            self.based = self.solver.getModelStatus() not in LOST
            if self.based:
                return
            self.solver.clearSolver()

    def minimum(self, group: int, alpha: Tensor, seconds: float) -> list[Multipliers]:
        """The multipliers where the group's function is least with every phase free."""
        return self.solve(group, torch.zeros(self.m, dtype=torch.int8), alpha, seconds)
