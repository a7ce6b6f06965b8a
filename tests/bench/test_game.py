"""Zero-sum games against known equilibria, duality and every pure strategy."""

from __future__ import annotations

import numpy as np
import pytest

from bench.analysis.game import solve
from models.errors import UserError

ROCK_PAPER_SCISSORS = np.array([[0.0, 1.0, -1.0], [-1.0, 0.0, 1.0], [1.0, -1.0, 0.0]])


def test_matching_pennies() -> None:
    game = solve(np.array([[1.0, -1.0], [-1.0, 1.0]]))
    assert game.value == pytest.approx(0.0, abs=1e-9)
    assert game.attacker == pytest.approx([0.5, 0.5])
    assert game.defender == pytest.approx([0.5, 0.5])
    assert (game.lower, game.upper) == (-1.0, 1.0)


def test_rock_paper_scissors() -> None:
    game = solve(ROCK_PAPER_SCISSORS)
    assert game.value == pytest.approx(0.0, abs=1e-9)
    assert game.attacker == pytest.approx([1 / 3] * 3)
    assert game.defender == pytest.approx([1 / 3] * 3)


def test_two_by_two_in_closed_form() -> None:
    """Without a saddle point the value of [[a, b], [c, d]] is (ad - bc) / (a + d - b - c)."""
    a, b, c, d = 0.9, 0.3, 0.2, 0.7
    game = solve(np.array([[a, b], [c, d]]))
    assert game.value == pytest.approx((a * d - b * c) / (a + d - b - c))
    assert game.defender[0] == pytest.approx((d - b) / (a + d - b - c))


def test_a_saddle_point_is_played_purely() -> None:
    game = solve(np.array([[0.6, 0.2], [0.9, 0.8]]))
    assert game.lower == game.upper == game.value == 0.6
    assert list(game.attacker) == [1.0, 0.0]
    assert list(game.defender) == [1.0, 0.0]


@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (5, 1), (3, 8), (12, 7), (25, 25)])
def test_duality_and_the_bounds_of_pure_strategies(shape: tuple[int, int]) -> None:
    payoff = np.random.default_rng(shape[0]).random(shape)
    game = solve(payoff)
    # Primal equals dual: what the defender secures is what the attacker concedes.
    secured, conceded = (payoff @ game.defender).min(), (game.attacker @ payoff).max()
    assert abs(secured - conceded) <= 1e-6
    assert 0 <= game.gap <= 1e-6
    assert game.lower - 1e-9 <= game.value <= game.upper + 1e-9
    for mix in (game.attacker, game.defender):
        assert mix.min() >= 0
        assert mix.sum() == pytest.approx(1.0)


def test_moving_and_scaling_payoffs_moves_and_scales_the_value() -> None:
    payoff = np.random.default_rng(1).random((4, 6))
    game, other = solve(payoff), solve(50 * payoff - 7)
    assert other.value == pytest.approx(50 * game.value - 7)
    turned = solve(-payoff.T)
    assert turned.value == pytest.approx(-game.value)


def test_a_copy_or_a_dominated_choice_changes_nothing() -> None:
    payoff = np.random.default_rng(2).random((4, 3))
    worse = np.vstack([payoff, payoff[0] + 0.1])
    assert solve(worse).value == pytest.approx(solve(payoff).value)
    assert solve(worse).attacker[-1] == 0.0
    assert solve(np.hstack([payoff, payoff[:, :1]])).value == pytest.approx(solve(payoff).value)


@pytest.mark.parametrize("payoff", [np.zeros((0, 3)), np.zeros(3), np.array([[np.nan, 1.0]]), [[np.inf]]])
def test_what_is_no_game_is_refused(payoff: np.ndarray) -> None:
    with pytest.raises(UserError, match="finite payoffs"):
        solve(payoff)
