"""The folded network as a mixed-integer program: is there a point of the input set that is unsafe?"""

from __future__ import annotations

from dataclasses import dataclass

import highspy
import numpy as np
import torch
from scipy.sparse import block_array, csr_matrix, diags_array, eye_array

from certify.folded import Folded, Targets


@dataclass(frozen=True)
class Answer:
    """The solver's word: a point x (d,) where it found one, and whether it says that there is none.

    Neither is believed: the point is replayed on the network, and only a dual bound is a proof.
    """

    point: np.ndarray | None
    infeasible: bool


def feasible_point(folded: Folded, targets: Targets, group: int, seconds: float) -> Answer:
    """Asks HiGHS for an input that makes every function of one group <= 0, within `seconds`; linf only.

    Variables: input x, neurons z and a, phases p in {0, 1}. Constraints: z affine in x and a,
    a >= leak z, a >= z, a <= z - (1 - leak) l (1 - p), a <= leak z + (1 - leak) u p. The question is one
    of feasibility, far easier than the least margin. Source: Tjeng et al. 2019, 1711.07356, section 4.1.
    """
    solver = highspy.Highs()
    solver.setOptionValue("output_flag", False)
    solver.setOptionValue("time_limit", float(seconds))
    solver.passModel(_program(folded, targets, group))
    solver.run()
    status = solver.getModelStatus()
    if solver.getInfo().primal_solution_status != highspy.SolutionStatus.kSolutionStatusFeasible:
        return Answer(None, status == highspy.HighsModelStatus.kInfeasible)
    values = np.asarray(solver.getSolution().col_value, dtype=np.float64)
    return Answer(values[: folded.input_rows.shape[1]], False)


def _program(folded: Folded, targets: Targets, group: int) -> highspy.HighsLp:
    d, m = folded.input_rows.shape[1], folded.neurons
    lower, upper, leak, constant = (
        part.numpy() for part in (folded.lower, folded.upper, folded.leak, folded.constant)
    )
    x, a = csr_matrix(folded.input_rows.numpy()), csr_matrix(folded.neuron_rows.numpy())
    one, slope = eye_array(m, format="csr"), diags_array(leak, shape=(m, m))
    low, high = (1 - leak) * lower, (1 - leak) * upper
    real = targets.real[group]
    inputs, neurons = targets.input_rows[group][real].numpy(), targets.neuron_rows[group][real].numpy()
    matrix = block_array(
        [
            [-x, one, -a, None],
            [None, -slope, one, None],
            [None, -one, one, None],
            [None, -one, one, diags_array(-low, shape=(m, m))],
            [None, -slope, one, diags_array(-high, shape=(m, m))],
            [csr_matrix(inputs), None, csr_matrix(neurons), None],
        ],
        format="csr",
    )
    least = np.full(m, -highspy.kHighsInf)
    most = np.full(m, highspy.kHighsInf)
    none, limit = np.zeros(m), -targets.constant[group][real].numpy()
    program = highspy.HighsLp()
    program.num_col_, program.num_row_ = d + 3 * m, matrix.shape[0]
    program.col_cost_ = np.zeros(d + 3 * m)
    ends = [torch.where(end > 0, end, folded.leak * end).numpy() for end in (folded.lower, folded.upper)]
    program.col_lower_ = np.concatenate([folded.inputs.lower.numpy(), lower, ends[0], none])
    program.col_upper_ = np.concatenate([folded.inputs.upper.numpy(), upper, ends[1], none + 1])
    program.row_lower_ = np.concatenate(
        [constant, none, none, least, least, np.full(len(limit), -highspy.kHighsInf)]
    )
    program.row_upper_ = np.concatenate([constant, most, most, -low, none, limit])
    program.a_matrix_.format_ = highspy.MatrixFormat.kRowwise
    program.a_matrix_.start_, program.a_matrix_.index_ = matrix.indptr, matrix.indices
    program.a_matrix_.value_ = matrix.data
    kinds = [highspy.HighsVarType.kContinuous] * (d + 2 * m) + [highspy.HighsVarType.kInteger] * m
    program.integrality_ = kinds
    return program
