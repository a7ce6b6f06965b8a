"""What is kept of an attack's course: worked out by hand, and in agreement with the verdict."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from attacks.deepfool import DeepFool
from attacks.fgsm import FGSM
from attacks.hopskipjump import HopSkipJump
from attacks.pgd import PGD
from attacks.square import Square
from bench.convergence import STEPS, convergence
from bench.record import Convergence, Header
from models.base import Batch
from models.randomness import Randomness
from models.threat import ThreatModel
from tests.bench.builders import cell
from tests.builders import images, labelled, linear, mlp

NAN = torch.nan


def run(attack, eps: float | None = 0.1, wrong: int = 3):
    """An attack on thirty samples, the first of which are misclassified, with its losses."""
    model = mlp()
    batch = labelled(model, images(30))
    y = torch.where(torch.arange(30) < wrong, (batch.y + 1) % 4, batch.y)
    batch = Batch(batch.x, y, batch.index)
    return attack.run(model, batch, ThreatModel("linf", eps), Randomness(0), history=True)


def test_three_samples_by_hand() -> None:
    result = dataclasses.replace(
        run(PGD(restarts=1)),
        clean=torch.tensor([True, True, False, True]),
        success=torch.tensor([True, False, True, True]),
        # The first is broken at its second look, the last by the point returned, which is no look.
        history=torch.tensor([[-2.0, 1.0, NAN], [-4.0, -3.0, -5.0], [NAN] * 3, [-6.0, -2.0, NAN]]).double(),
        margin=torch.tensor([-1.0, 4.0, 0.0, -0.5]).double(),
    )
    found = convergence(result)
    assert found is not None
    assert (found.n, found.looks) == (3, (1, 2, 3, 4))
    assert found.loss == pytest.approx((-4.0, -4 / 3, (1 - 3 + 0.5) / 3, (1 - 3 + 0.5) / 3), rel=1e-5)
    assert found.success == pytest.approx((0.0, 1 / 3, 2 / 3, 2 / 3), abs=1e-5)


@pytest.mark.parametrize(
    "attack", [PGD(restarts=2), FGSM(), Square(queries=60), DeepFool()], ids=lambda a: a.name
)
def test_it_ends_where_the_verdict_does_and_never_falls(attack) -> None:
    result = run(attack, None if attack.minimal else 0.1)
    found = convergence(result)
    assert found is not None
    right = result.clean
    assert found.n == int(right.sum()) == 27
    assert found.success[-1] == pytest.approx(float(result.success[right].double().mean()), abs=1e-5)
    assert found.success[-1] > 0.0
    assert found.looks[-1] == result.history.shape[1] + 1
    assert len(found.looks) <= STEPS
    for curve in (found.looks, found.loss, found.success):
        assert list(curve) == sorted(curve)


def test_one_step_on_a_linear_net_is_its_two_losses() -> None:
    """z_1 - z_0 = 2 w.x moves by 2 eps |w|_1 exactly, where the box does not bind."""
    w = torch.tensor([0.5, -1.0, 0.25])
    model = linear(torch.stack([-w, w]), torch.zeros(2))
    x = torch.full((1, 3), 0.5)
    batch = Batch(x, torch.tensor([0]), torch.tensor([5]))
    found = convergence(FGSM().run(model, batch, ThreatModel("linf", 0.01), Randomness(0), history=True))
    assert found is not None
    start = 2 * float(x[0] @ w)
    assert found.looks == (1, 2)
    assert found.loss == pytest.approx((start, start + 2 * 0.01 * float(w.abs().sum())), rel=1e-5)


def test_nothing_is_kept_of_labels_alone_of_unmeasured_runs_and_where_all_are_wrong() -> None:
    assert convergence(run(HopSkipJump(queries=100), None)) is None
    assert convergence(dataclasses.replace(run(PGD(restarts=1)), history=None)) is None
    assert convergence(run(PGD(restarts=1), wrong=30)) is None


def test_a_loss_that_is_not_finite_is_left_out() -> None:
    result = run(PGD(restarts=1))
    history = result.history.clone()
    history[5, 0] = torch.inf
    assert convergence(dataclasses.replace(result, history=history)) is None


def test_it_is_the_same_in_batches_of_any_size() -> None:
    model = mlp()
    batch, threat = labelled(model, images(30)), ThreatModel("linf", 0.1)
    kept = [
        convergence(PGD(restarts=1).run(model, batch, threat, Randomness(0), history=True, batch_size=size))
        for size in (1, 7, 64)
    ]
    assert kept[0] is not None
    assert kept[1] is not None
    assert kept[2] is not None
    # A product of matrices is rounded in another order for another number of rows.
    for other in kept[:2]:
        assert other is not None
        assert other.model_copy(update={"loss": kept[2].loss}) == kept[2]
        assert other.loss == pytest.approx(kept[2].loss, rel=1e-4)


def test_a_header_reads_back_with_and_without_it() -> None:
    course = Convergence(n=2, looks=(1, 4), loss=(-1.5, 0.25), success=(0.0, 0.5))
    header = Header(cell=cell("pgd"), status="done", convergence=course)
    assert Header.model_validate_json(header.model_dump_json()) == header
    older = header.model_dump(mode="json")
    del older["convergence"], older["signs"]
    assert Header.model_validate(older).convergence is None
