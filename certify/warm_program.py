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

# The solver's names for its two methods, and what the first may take of the time.
DUAL, PRIMAL = 1, 4
FIRST = 0.5
LOST = (
    highspy.HighsModelStatus.kUnknown,
    highspy.HighsModelStatus.kSolveError,
    highspy.HighsModelStatus.kTimeLimit,
)

RAYS = (1.0, 30.0, 1e3, 3e4)


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
    """One HiGHS model: variables x, z, a; a change of target or of a phase keeps the last basis.

    Rows: z affine in x and a; a - leak z >= 0; a - z >= 0; a below the chord. A fixed phase turns
    one of the middle two into an equality, drops the other two and bounds z by 0. What follows from
    other rows, such as l <= z <= u, stays out so that no multiplier hides there.
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
        self.solver.passModel(self._program())
        self.sign = np.zeros(self.m, dtype=np.int8)
        self.early = False

    def _program(self) -> highspy.HighsLp:
        folded, m = self.folded, self.m
        leak, constant = folded.leak.numpy(), folded.constant.numpy()
        chord = (self.upper - leak * self.lower) / (self.upper - self.lower)
        slope, line = diags_array(leak, shape=(m, m)), diags_array(chord, shape=(m, m))
        one = eye_array(m, format="csr")
        x, a = csr_matrix(folded.input_rows.numpy()), csr_matrix(folded.neuron_rows.numpy())
        matrix = block_array(
            [[-x, one, -a], [None, -slope, one], [None, -one, one], [None, -line, one]], format="csr"
        )
        none, most = np.zeros(m), np.full(m, highspy.kHighsInf)
        self.matrix = matrix
        program = highspy.HighsLp()
        program.num_col_, program.num_row_ = self.d + 2 * m, 4 * m
        program.col_cost_ = np.zeros(self.d + 2 * m)
        program.col_lower_ = np.concatenate([folded.inputs.lower.numpy(), -most, -most])
        program.col_upper_ = np.concatenate([folded.inputs.upper.numpy(), most, most])
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
        wanted = sign[changed]
        infinity = highspy.kHighsInf
        columns = changed + self.d
        low = np.where(wanted > 0, 0.0, -infinity)
        high = np.where(wanted < 0, 0.0, infinity)
        self.solver.changeColsBounds(len(changed), columns, low, high)
        for neuron, value in zip(changed.tolist(), wanted.tolist(), strict=True):
            for block, phase in ((1, -1), (2, 1)):
                ends = (0.0, 0.0) if value == phase else (0.0 if not value else -infinity, infinity)
                self.solver.changeRowBounds(block * self.m + neuron, *ends)
            chord = self.chord_end[neuron] if not value else infinity
            self.solver.changeRowBounds(3 * self.m + neuron, -infinity, chord)
        self.sign = sign.copy()

    def solve(
        self, group: int, sign: Tensor, alpha: Tensor, seconds: float, enough: float = np.inf
    ) -> list[Multipliers]:
        """The multipliers where the group's (one) function is least under the phases; none on failure.

        The solver may stop where it has seen that the least is above `enough`; `early` says whether it did.

        Phases that no input satisfies give several: the solver's ray of infeasibility at growing
        scales, along which the bound rises for ever. `alpha` (m,) stands wherever the program leaves a
        slope open. Nothing here is believed: the caller evaluates what the multipliers prove.
        """
        self._impose(sign.numpy())
        cost = np.concatenate([
            self.targets.input_rows[group, 0].numpy(), np.zeros(self.m),
            self.targets.neuron_rows[group, 0].numpy(),
        ])  # fmt: skip
        self.solver.changeColsCost(len(cost), np.arange(len(cost), dtype=np.int32), cost)
        constant = float(self.targets.constant[group, 0])
        self.solver.setOptionValue("objective_bound", enough + BEYOND * (1 + abs(constant)) - constant)
        self._run(seconds)
        status, m = self.solver.getModelStatus(), self.m
        self.early = status == highspy.HighsModelStatus.kObjectiveBound
        if status == highspy.HighsModelStatus.kInfeasible:
            return self._ray(sign, alpha)
        if status != highspy.HighsModelStatus.kOptimal and not self.early:
            return []
        solution = self.solver.getSolution()
        rows = torch.from_numpy(np.array(solution.row_dual, dtype=np.float64))
        reduced = torch.from_numpy(np.array(solution.col_dual, dtype=np.float64))[self.d : self.d + m]
        beta = torch.nan_to_num(reduced * sign, 0.0, 0.0, 0.0).clamp(min=0)
        zero, line, chord = rows[m:].split(m)
        slopes, overlap = (
            slopes_from_multipliers(zero, line, alpha),
            overlap_from_multipliers(zero, line, -chord),
        )
        x, z, a = torch.from_numpy(np.array(solution.col_value, dtype=np.float64)).split([self.d, m, m])
        violation = (a - torch.where(z > 0, z, self.folded.leak * z)).abs()
        return [Multipliers(slopes, beta, x, violation, overlap)]

    def _run(self, seconds: float) -> None:
        """Runs the dual simplex from the last basis; where that gets lost the primal one, from none."""
        for strategy, share in ((DUAL, FIRST), (PRIMAL, 1.0)):
            self.solver.setOptionValue("simplex_strategy", strategy)
            self.solver.setOptionValue("time_limit", self.solver.getRunTime() + share * seconds)
            self.solver.run()
            if self.solver.getModelStatus() not in LOST:
                return
            self.solver.clearSolver()

    def minimum(self, group: int, alpha: Tensor, seconds: float) -> list[Multipliers]:
        """The multipliers where the group's function is least with every phase free."""
        return self.solve(group, torch.zeros(self.m, dtype=torch.int8), alpha, seconds)

    def _ray(self, sign: Tensor, alpha: Tensor) -> list[Multipliers]:
        found = self.solver.getDualRay()  # type: ignore[attr-defined]
        ray = torch.from_numpy(np.array(found[-1], dtype=np.float64))
        if len(ray) != 4 * self.m or not bool(torch.isfinite(ray).all()):
            return []
        m, inputs = self.m, (self.folded.inputs.lower + self.folded.inputs.upper) / 2
        slopes = slopes_from_multipliers(ray[m : 2 * m], ray[2 * m : 3 * m], alpha)
        columns = torch.from_numpy(self.matrix.T @ ray.numpy())[self.d : self.d + m]
        beta = (-columns * sign).clamp(min=0)
        beta = beta / beta.amax().clamp(min=1e-12)
        return [Multipliers(slopes, beta * scale, inputs, torch.zeros_like(beta)) for scale in RAYS]
