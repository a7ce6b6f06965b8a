"""Judges on a batch: piece by piece they say the same, and a time limit leaves out, never counts in."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from torch import Tensor, nn

import bench.bracket
import bench.clock
import bench.judges
from attacks.pgd import PGD
from bench import evaluate
from bench.bracket import COLUMNS, judge_all
from bench.judges import Judges
from certify.effort import backward_multiplications, margin_multiplications
from models.base import Batch, Classifier
from models.errors import UserError
from models.norms import NORMS
from models.randomness import Randomness
from models.threat import ThreatModel

CHEAP = {"eps": 0.05, "attacks": ["fgsm", "pgd(steps=5)"], "certificates": ["ibp", "crown"]}


class Counted(nn.Module):
    """A small network that counts how often it is asked."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 3))
        self.asked = 0

    def forward(self, x: Tensor) -> Tensor:
        self.asked += 1
        out: Tensor = self.layers(x)
        return out


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> Counted:
    """A network on whose clock each question takes a second."""
    counted = Counted()
    clock = SimpleNamespace(perf_counter=lambda: float(counted.asked))
    monkeypatch.setattr(bench.bracket, "time", clock)
    monkeypatch.setattr(bench.clock, "time", clock)
    return counted


def data(network: nn.Module, n: int = 40) -> tuple[Tensor, Tensor]:
    x = torch.rand(n, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        y = network(x).argmax(1)
    return x, torch.where(torch.arange(n) % 10 == 7, (y + 1) % 3, y)


def settled(outcomes: pd.DataFrame) -> pd.DataFrame:
    """What does not depend on the clock, in a fixed order."""
    return outcomes.drop(columns="seconds").sort_values(["judge", "index"]).reset_index(drop=True)


def test_the_columns_are_those_that_are_promised() -> None:
    network = Counted()
    x, y = data(network)
    outcomes = evaluate(network, x, y, **CHEAP).outcomes
    assert list(outcomes.columns) == COLUMNS
    assert COLUMNS == ["index", "judge", "kind", "success", "distance", "lower", "certified", "seconds"]
    assert set(outcomes["judge"]) == {"fgsm", "pgd(steps=5)", "ibp", "crown"}
    assert set(outcomes["kind"]) == {"attack", "certificate"}
    assert not outcomes.duplicated(["index", "judge"]).any()
    assert list(evaluate(network, x, y, eps=0.1, attacks=[], certificates=[]).outcomes.columns) == COLUMNS


def test_enough_time_changes_nothing() -> None:
    network = Counted()
    x, y = data(network)
    whole, pieces = (evaluate(network, x, y, seconds=seconds, **CHEAP) for seconds in (None, 1000.0))
    assert (whole.n, whole.unjudged) == (pieces.n, pieces.unjudged) == (40, 0)
    assert (whole.clean, whole.certified, whole.attacked) == (pieces.clean, pieces.certified, pieces.attacked)
    assert whole.flags == pieces.flags
    pd.testing.assert_frame_equal(settled(whole.outcomes), settled(pieces.outcomes), rtol=1e-5)


def test_what_is_not_reached_in_time_is_in_no_number(network: Counted) -> None:
    x, y = data(network, 200)
    cut = evaluate(network, x, y, seconds=150.0, **CHEAP)
    assert 0 < cut.n < 200
    assert cut.n + cut.unjudged == 200
    assert cut.flags[-1] == (
        f"time is up after 150 s: {cut.unjudged} of 200 images are not judged, "
        f"the bracket is that of the first {cut.n}"
    )
    assert cut.flags[-1] in str(cut)
    assert cut.flags[-1] in cut._repr_html_()
    assert set(cut.outcomes["index"]) <= set(range(cut.n))
    first = evaluate(network, x[: cut.n], y[: cut.n], **CHEAP)
    assert (first.clean, first.certified, first.attacked) == (cut.clean, cut.certified, cut.attacked)
    pd.testing.assert_frame_equal(settled(first.outcomes), settled(cut.outcomes), rtol=1e-5)


def test_judges_stop_at_the_first_question_after_their_time(network: Counted) -> None:
    x, y = data(network, 200)
    judges = Judges.named(CHEAP["attacks"], CHEAP["certificates"], "linf")
    model, batch = Classifier(network, num_classes=3), Batch.of(x, y)
    network.asked = 0
    found = judge_all(model, batch, ThreatModel("linf", 0.05), judges, Randomness(0), seconds=150.0)
    assert 0 < found.judged < 200
    # One question before the clock starts, those within 150 seconds, and the one that takes longer.
    assert network.asked == 1 + 150 + 1
    assert not network._forward_pre_hooks


@pytest.mark.parametrize("seconds", [None, 1000.0])
def test_a_network_of_one_layer_is_certified_with_and_without_a_time_limit(seconds: float | None) -> None:
    torch.manual_seed(0)
    network = nn.Linear(6, 2)
    x = torch.rand(8, 6, generator=torch.Generator().manual_seed(1))
    result = evaluate(network, x, network(x).argmax(1).detach(), eps=1e-4, seconds=seconds)
    assert result.certified == 1.0
    assert result.flags == ()


def test_no_time_at_all_gives_no_number(network: Counted) -> None:
    x, y = data(network)
    with pytest.raises(UserError, match=r"no image is judged after 0.5 seconds: give more"):
        evaluate(network, x, y, seconds=0.5, **CHEAP)
    assert not network._forward_pre_hooks


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf"), "soon"])
def test_a_time_limit_is_a_number_above_zero(seconds: float) -> None:
    network = Counted()
    x, y = data(network, 3)
    with pytest.raises(UserError, match="seconds must be a number above 0"):
        evaluate(network, x, y, seconds=seconds, **CHEAP)


def test_usual_certificates_that_take_minutes_are_left_out_by_name_they_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    network = Counted()
    x, y = data(network)
    batch = Batch.of(x, y)
    # 12 neurons, each behind the 16 x 12 multiplications of the first layer.
    assert backward_multiplications(Classifier(network, num_classes=3), batch) == 12 * (16 * 12)
    usual = evaluate(network, x, y, eps=0.05, attacks=["fgsm"])
    assert set(usual.outcomes["judge"]) >= {"fgsm", "ibp", "crown", "polytope"}
    assert not usual.flags
    monkeypatch.setattr(bench.judges, "AFFORDABLE", 2000)
    cheap = evaluate(network, x, y, eps=0.05, attacks=["fgsm"])
    assert set(cheap.outcomes["judge"]) == {"fgsm", "ibp", "crown-ibp"}
    left_out = "certificates polytope, crown, alpha-crown left out at 2e+03 multiplications an image"
    assert [flag for flag in cheap.flags if left_out in flag]
    assert usual.attacked == cheap.attacked
    # One pass for 3 classes through 16 x 12 and 12 x 3 multiplications.
    assert margin_multiplications(Classifier(network, num_classes=3), batch) == 3 * (16 * 12 + 12 * 3)
    monkeypatch.setattr(bench.judges, "AFFORDABLE", 600)
    least = evaluate(network, x, y, eps=0.05, attacks=["fgsm"])
    assert set(least.outcomes["judge"]) == {"fgsm", "ibp"}
    alone = "certificate crown-ibp left out at 7e+02 multiplications an image: name it to run"
    assert [flag for flag in least.flags if flag == alone]
    named = evaluate(network, x, y, eps=0.05, attacks=["fgsm"], certificates=["crown"])
    assert set(named.outcomes["judge"]) == {"fgsm", "crown"}


def test_certificates_after_the_first_see_what_is_open_alone() -> None:
    network = Counted()
    x, y = data(network)
    result = evaluate(network, x, y, eps=0.1, attacks=["pgd"], certificates=["ibp", "crown"])
    rows = {name: frame.set_index("index") for name, frame in result.outcomes.groupby("judge")}
    broken = set(rows["pgd"].index[rows["pgd"]["success"]])
    proved = set(rows["ibp"].index[rows["ibp"]["certified"]])
    clean = set(range(40)) - {i for i in range(40) if i % 10 == 7}
    assert broken
    assert proved
    assert set(rows["ibp"].index) == clean
    assert set(rows["crown"].index) == clean - broken - proved


@pytest.mark.parametrize("norm", NORMS)
def test_every_threat_has_an_attack_that_searches_in_it(norm: str) -> None:
    """A bracket whose upper end nobody has tried to lower says 100 % of any network."""
    usual = Judges.named(None, None, norm).attacks.values()
    assert any(norm in attack.norms and attack.name != "fgsm" for attack in usual)


MISTAKES: dict[str, tuple[Callable[[], Judges], str]] = {
    "attack": (lambda: Judges.named(["pdg"], [], "linf"), "unknown attack 'pdg': did you mean pgd"),
    "parameter": (lambda: Judges.named(["pgd(step=3)"], [], "linf"), "unknown parameter of attack pgd"),
    "value": (lambda: Judges.named(["pgd(steps=many)"], [], "linf"), "is a whole number, not 'many'"),
    "no text": (lambda: Judges.named([PGD()], [], "linf"), "an attack is a name like 'pgd(steps=100)'"),  # type: ignore[list-item]
    "number": (lambda: Judges.named([], 3, "linf"), "certificate is a name like 'exact(seconds=5)', not 3"),  # type: ignore[arg-type]
    "space": (lambda: Judges.named(["pgd steps=3"], [], "linf"), "write NAME, or NAME(KEY=VALUE,...)"),
    "capitals": (lambda: Judges.named(["PGD"], [], "linf"), "unknown attack 'PGD': did you mean pgd"),
    "nothing near": (
        lambda: Judges.named(["strongest(q=1)"], [], "linf"),
        "attack strongest 'q': known: none",
    ),
    "two": (lambda: Judges.named(["pgd+fgsm"], [], "linf"), "give each attack by itself"),
    "certificate": (lambda: Judges.named([], ["corwn"], "linf"), "unknown certificate 'corwn'"),
    "models": (lambda: Judges.named(["transfer"], [], "linf"), "'transfer' needs other models: python -m"),
    "aside": (lambda: Judges.named(["universal"], [], "linf"), "'universal' needs images of its own"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_wrong_name_is_one_line(case: str) -> None:
    make, message = MISTAKES[case]
    with pytest.raises(UserError) as mistake:
        make()
    assert message in str(mistake.value)
    assert "\n" not in str(mistake.value)


def test_one_name_may_stand_for_a_list() -> None:
    assert list(Judges.named("pgd", "ibp", "linf").attacks) == ["pgd"]  # type: ignore[arg-type]
