"""What splits won is learned per neuron, in the network's own units, and by layer where nothing is known."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from certify.branching import BranchAndBound
from certify.dual import Branches, Dual
from certify.folded import Folded, Targets
from certify.input_set import InputSet
from certify.pseudo_costs import BETTER_CHILD, EARLIER, FIRST_GUESS, PseudoCosts


def network(scale: float = 1.0) -> tuple[Folded, Targets]:
    """relu(x_1), relu(x_2) over [-1, 1]^2, then relu of the difference; the target is 1 - their sum."""
    box = torch.ones(2, dtype=torch.float64)
    rows = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]], dtype=torch.float64)
    inner = torch.zeros(3, 3, dtype=torch.float64)
    inner[2, :2] = torch.tensor([1.0, -1.0])
    zero, end = torch.zeros(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
    folded = Folded(
        InputSet(-box, box, 0 * box), (slice(0, 2), slice(2, 3)), rows, inner, zero, zero, -end, end
    )
    target = Targets(
        torch.zeros(1, 1, 2, dtype=torch.float64),
        -scale * torch.ones(1, 1, 3, dtype=torch.float64),
        torch.ones(1, 1, dtype=torch.float64),
        torch.ones(1, 1, dtype=torch.bool),
    )
    return folded, target


def worth(costs: PseudoCosts, q: Tensor, missing: float = 1.0) -> Tensor:
    parents = Branches.roots(*network())
    return costs.worth(parents, q[None].double(), torch.tensor([missing], dtype=torch.float64))[0]


def learned(
    costs: PseudoCosts, place: int, rises: tuple[float, float], times: int, scale: float = 1.0
) -> None:
    """`times` splits of one neuron of slope -scale, whose gap is scale / 2, that won `rises`."""
    parents = Branches.roots(*network())
    unit, won = torch.tensor([scale], dtype=torch.float64), torch.tensor(rises, dtype=torch.float64)
    for _ in range(times):
        costs.learn(parents, torch.tensor([place]), -unit, unit, scale * won[:, None])


def test_before_any_split_the_last_layer_comes_first_and_gaps_decide_within_it() -> None:
    """A chord over [-1, 1] lies 1/2 above relu at 0: gaps 1/2 and 1, by the guess of each layer."""
    costs = PseudoCosts(Dual(*network()))
    guess = FIRST_GUESS * (1 + BETTER_CHILD) * torch.tensor([0.5 * EARLIER, EARLIER, 0.5])
    assert torch.allclose(worth(costs, torch.tensor([-1.0, -2.0, -1.0])), guess.double())


def test_what_a_neuron_won_is_what_it_promises_after_many_splits() -> None:
    """Rises 0.1 and 0.4 of a gap of 1/2: worth 0.1 + BETTER_CHILD 0.4, and twice that at twice the gap."""
    costs = PseudoCosts(Dual(*network()))
    learned(costs, 0, (0.4, 0.1), 5000)
    one = 0.1 + BETTER_CHILD * 0.4
    assert float(worth(costs, torch.tensor([-1.0, -1.0, -1.0]))[0]) == pytest.approx(one, rel=1e-2)
    assert float(worth(costs, torch.tensor([-2.0, -1.0, -1.0]))[0]) == pytest.approx(2 * one, rel=1e-2)


def test_a_neuron_nobody_split_promises_what_its_layer_won() -> None:
    costs = PseudoCosts(Dual(*network()))
    learned(costs, 0, (0.3, 0.3), 5000)
    first, second, last = worth(costs, torch.tensor([-1.0, -1.0, -1.0])).tolist()
    assert second == pytest.approx(first, rel=1e-2)
    assert last == pytest.approx(0.5 * FIRST_GUESS * (1 + BETTER_CHILD))


def test_outputs_in_other_units_teach_the_same() -> None:
    found = []
    for scale in (1.0, 1e6):
        costs = PseudoCosts(Dual(*network(scale)))
        learned(costs, 2, (0.2, 0.05), 20, scale)
        found.append(worth(costs, -scale * torch.ones(3), scale) / scale)
    assert torch.allclose(found[0], found[1], rtol=1e-9)


def test_a_gap_of_nothing_does_not_make_a_neuron_endlessly_worthy() -> None:
    costs = PseudoCosts(Dual(*network()))
    parents = Branches.roots(*network())
    one = torch.ones(1, dtype=torch.float64)
    costs.learn(parents, torch.tensor([0]), 0 * one, one, one.repeat(2, 1))
    assert float(worth(costs, torch.tensor([0.0, -1.0, -1.0]))[0]) < 10
    assert bool(worth(costs, torch.zeros(3)).isfinite().all())


def test_a_tree_learns_from_its_own_splits() -> None:
    """Each of a tree's splits is noted once, on the neuron that both children impose."""
    folded, target = network(0.49)
    tree = BranchAndBound(folded, target, lambda point: None, tolerance=1e-9)
    tree.run(float("inf"))
    assert not tree.open
    assert tree.looked_at > 1
    assert 2 * float(tree.costs.seen[0].sum()) + 1 == tree.looked_at
    assert torch.equal(tree.costs.seen[0], tree.costs.seen[1])
    assert bool((tree.costs.won >= 0).all())


def test_networks_side_by_side_are_equally_near_the_targets() -> None:
    """Two copies of the network one after the other in the list of layers: the same guess for both."""
    folded, target = network()
    box = torch.ones(4, dtype=torch.float64)
    twice = Folded(
        InputSet(-box, box, 0 * box), (slice(0, 2), slice(2, 3), slice(3, 5), slice(5, 6)),
        torch.block_diag(folded.input_rows, folded.input_rows),
        torch.block_diag(folded.neuron_rows, folded.neuron_rows),
        *(torch.cat([part, part]) for part in (folded.constant, folded.leak, folded.lower, folded.upper)),
    )  # fmt: skip
    targets = Targets(
        torch.cat([target.input_rows] * 2, 2),
        torch.cat([target.neuron_rows] * 2, 2),
        target.constant,
        target.real,
    )
    costs = PseudoCosts(Dual(twice, targets))
    q = -torch.ones(1, 6, dtype=torch.float64)
    found = costs.worth(Branches.roots(twice, targets), q, torch.ones(1, dtype=torch.float64))[0]
    assert torch.equal(found[:3], found[3:])
    assert bool((found[:2] < found[2]).all())
