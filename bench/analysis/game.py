"""The attack x defence matrix as a zero-sum game: its value and both sides' mixed strategies."""

from __future__ import annotations

from dataclasses import dataclass

import cvxpy
import numpy as np

from models.errors import UserError

GAP = 1e-6


@dataclass(frozen=True)
class Game:
    """The solution of a game whose row player loses, and whose column player gains, payoff[row, column].

    attacker (rows,) and defender (columns,) are mixed strategies: non-negative, of sum 1. value is what
    the defender gains when both play them. lower = max_column min_row payoff and upper = min_row
    max_column payoff are what the pure strategies guarantee; they agree where the game has a saddle point.
    """

    attacker: np.ndarray
    defender: np.ndarray
    value: float
    gap: float
    lower: float
    upper: float


def solve(payoff: np.ndarray) -> Game:
    """Solves the game by two linear programmes, one a side (von Neumann 1928; Dantzig 1951).

    max v with payoff @ defender >= v, and min w with attacker @ payoff <= w, each strategy on its simplex.
    Each side's guarantee is evaluated again from the matrix, not taken from the solver: gap = what the
    attacker concedes at most, minus what the defender secures at least, which is >= 0 and 0 at the solution.

    payoff (rows, columns) must be finite and not empty. Raises UserError otherwise, and where the two
    guarantees differ by more than 1e-6 of the payoffs' spread.
    """
    matrix = np.asarray(payoff, dtype=float)
    if matrix.ndim != 2 or not matrix.size or not np.isfinite(matrix).all():
        raise UserError("a game needs a matrix of finite payoffs with a row and a column")
    spread = float(matrix.max() - matrix.min()) or 1.0
    scaled = (matrix - matrix.min()) / spread
    defender = _strategy(scaled)
    # The attacker defends against the game turned around.
    attacker = _strategy(1.0 - scaled.T)
    secured, conceded = float((matrix @ defender).min()), float((attacker @ matrix).max())
    gap = conceded - secured
    if gap > GAP * spread:
        raise UserError(f"the game was not solved: its two sides differ by {gap:.3g}")
    return Game(
        attacker,
        defender,
        (secured + conceded) / 2,
        gap,
        float(matrix.min(axis=0).max()),
        float(matrix.max(axis=1).min()),
    )


def _strategy(payoff: np.ndarray) -> np.ndarray:
    """The column player's mix that secures most against every row of payoffs in [0, 1]."""
    mix, value = cvxpy.Variable(payoff.shape[1], nonneg=True), cvxpy.Variable()
    problem = cvxpy.Problem(cvxpy.Maximize(value), [payoff @ mix >= value, cvxpy.sum(mix) == 1])
    problem.solve(solver=cvxpy.HIGHS)
    if mix.value is None:
        raise UserError(f"the game was not solved: {problem.status}")
    found = np.clip(mix.value, 0.0, None)
    found[found < 1e-9] = 0.0
    return np.asarray(found / found.sum())
