"""The liars' zoo: every liar is flagged and falls to its true accuracy, and the honest are left in peace."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pytest
import torch
from torch import nn

from attacks.square import Square
from attacks.strongest import Strongest
from bench.auditor import Audit, _Auditor, audit
from defenses.zoo import ModelName, load
from models.base import Batch
from models.declared import as_declared
from models.errors import UserError
from models.probes import signs
from models.randomness import Randomness
from models.threat import ThreatModel
from tests.liars.falsifiers import falsifiers
from tests.liars.zoo import HONEST, Between, classifier, liars, panel

EPS = 0.15
# Some 5 samples must tell two attacks on the winners apart; the rest is seen on fewer, and what keeps all
# questions on few.
SAMPLES = {"k-winners-take-all": 40, "cached answers": 5}
N = 20
LIARS = liars()
# What gives each away before any attack is run; the others are caught by comparing attacks.
SIGNS = {
    "zero gradients": "zero gradient",
    "quantised input": "zero gradient",
    "random logits": "random",
    "saturated logits": "saturated",
    "temperature": "flat logits",
    "detached layer": "no gradient",
    "argmax output": "labels",
    "test-time dropout": "random",
    "batch-dependent output": "batch-dependent",
    "look-up": "jumps",
    "probabilities": "probabilities",
    "NaN gradient": "NaN gradient",
    "reversed gradient": "shattered",
    "shuffled gradient": "shattered",
    "two faces": "two faces",
    "rounded log-probabilities": "zero gradient",
    "whole numbers": "no gradient",
    "cached answers": "memory",
    "a guard": "memory",
    "ranks": "no gradient",
    "one shift a batch": "random",
    "shy of crowds": "batch-dependent",
    "a coin a batch": "random",
    "ninth power": "saturated",
    "seven times a sharp softmax": "zero gradient",
    "clipped log-probabilities": "zero gradient",
    "lists of numbers": "no gradient",
    "a function of its own": "shattered",
    "half of the gradient": "partial gradient",
    "forgotten activations": "zero gradient",
    "saturated log-probabilities": "zero gradient",
    "noise in the gradient": "shattered",
    "one towering logit": "saturated",
    "asks who looks": "two faces",
}
# Liars whose decisions are those of the honest network, so that its broken samples are theirs.
SAME = [
    "zero gradients",
    "saturated logits",
    "temperature",
    "detached layer",
    "probabilities",
    "NaN gradient",
]
SAME += ["look-up", "argmax output", "reversed gradient", "shuffled gradient", "two faces", "ranks"]
SAME += [
    "shy of crowds",
    "ninth power",
    "seven times a sharp softmax",
    "clipped log-probabilities",
    "lists of numbers",
]
SAME += ["rounded log-probabilities", *falsifiers(nn.Identity())]


@lru_cache
def audited(name: str) -> Audit:
    batch = panel(SAMPLES.get(name, N))
    model = load(ModelName.parse(name)) if name in HONEST else classifier(LIARS[name](), name)
    torch.manual_seed(0)
    return audit(model, batch.x, batch.y, eps=EPS)


@pytest.mark.parametrize("name", SIGNS)
def test_a_liar_gives_itself_away_before_any_attack(name: str) -> None:
    found = signs(classifier(LIARS[name](), name), panel(40), ThreatModel("linf", EPS))
    assert SIGNS[name] in [sign.word for sign in found]


@pytest.mark.parametrize("name", HONEST)
def test_an_honest_model_shows_no_sign(name: str) -> None:
    assert signs(load(ModelName.parse(name)), panel(40), ThreatModel("linf", EPS)) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", HONEST)
def test_an_honest_model_passes_every_rung(name: str) -> None:
    result = audited(name)
    assert result.flags == ()
    assert result.reliable


@pytest.mark.slow
@pytest.mark.parametrize("name", LIARS)
def test_every_liar_is_flagged(name: str) -> None:
    result = audited(name)
    assert result.flags
    assert result.attacked <= result.naive


@pytest.mark.slow
@pytest.mark.parametrize("name", SAME)
def test_a_liar_falls_where_its_honest_network_falls(name: str) -> None:
    honest, lying = audited("conv-small").broken, audited(name).broken
    assert int((honest & ~lying).sum()) == 0


@pytest.mark.parametrize(
    "name", sorted({*SAME, "whole numbers"} - {"argmax output", "probabilities", "shy of crowds"})
)
def test_the_worst_case_alone_sees_through_a_liar(name: str) -> None:
    """Without an audit beside it: what the honest network loses, the liar loses."""
    threat, batch = ThreatModel("linf", EPS), panel(N)
    honest, lying = (
        Strongest().run(model, batch, threat, Randomness(0))
        for model in (load(ModelName.parse("conv-small")), classifier(LIARS[name](), name))
    )
    assert int(honest.success.sum()) > N // 2
    assert int((honest.success & ~lying.success).sum()) == 0


@pytest.mark.slow
def test_labels_alone_are_followed_to_the_scores_behind_them() -> None:
    """PGD has no gradient and 2,000 labels a sample find half: what a label was chosen by has one."""
    result = audited("argmax output")
    assert result.reliable
    assert result.naive == 1.0
    assert result.attacked <= audited("conv-small").attacked + 1 / N + 1e-9


@pytest.mark.slow
@pytest.mark.parametrize("name", ["k-winners-take-all", "quantised input", "double normalisation"])
def test_no_long_random_search_beats_the_worst_case_by_a_sample(name: str) -> None:
    model, batch = classifier(LIARS[name](), name), panel(SAMPLES.get(name, N))
    searched = Square(queries=3000).run(model, batch, ThreatModel("linf", EPS), Randomness(1)).success
    assert int((searched.numpy() & ~audited(name).broken).sum()) <= 1


@pytest.mark.parametrize(
    "name", [pytest.param("cached answers", marks=pytest.mark.slow), "a guard", "a patient guard"]
)
def test_what_remembers_its_questions_cannot_be_believed(name: str) -> None:
    """A guard that waits for the attacks shows nothing before them, and other answers after them."""
    batch = panel(4)
    before = {sign.word for sign in signs(classifier(LIARS[name](), name), batch, ThreatModel("linf", EPS))}
    assert ("memory" in before) == (name != "a patient guard")
    result = audit(classifier(LIARS[name](), name), batch.x, batch.y, eps=EPS)
    assert result.flags.count("memory") == 1
    assert not result.reliable
    assert "UNRELIABLE: its answers depend on what was asked before" in result.verdict()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["random logits", "test-time dropout", "batch-dependent output", "look-up"])
def test_other_liars_remember_nothing(name: str) -> None:
    batch = panel(4)
    assert "memory" not in audit(classifier(LIARS[name](), name), batch.x, batch.y, eps=EPS).flags


@pytest.mark.slow
def test_the_verdict_says_what_was_measured() -> None:
    batch = panel(4)
    result = audit(classifier(LIARS["probabilities"](), "p"), batch.x, batch.y, eps="0.05")
    assert "probabilities" in result.flags
    assert f"n = {len(batch)}" in result.verdict()
    assert "<table" in result._repr_html_()
    assert isinstance(result.broken, np.ndarray)


@pytest.mark.slow
def test_an_audit_leaves_the_callers_model_as_it_was() -> None:
    batch, model = panel(4), classifier(LIARS["random logits"](), "random")
    assert "random" in audit(model, batch.x, batch.y, eps=0.05).flags
    assert not model.stochastic


@pytest.mark.parametrize(("more", "passed"), [(8, True), (9, False)])
def test_a_difference_of_exactly_what_is_allowed_passes(more: int, passed: bool) -> None:
    """0.7 + 0.1 is less than 0.8 in floating point: 10 points between pgd and the worst case were flagged."""
    model = classifier(torch.nn.Linear(2, 10), "any")
    batch = Batch.of(torch.zeros(10, 2), torch.zeros(10, dtype=torch.int64))
    auditor = _Auditor(model, batch, ThreatModel("linf", 0.1), Randomness(0))
    places = torch.arange(10)
    auditor._compare("rung", places < more, places < 7, 0.1, "one", "other")
    assert auditor.rungs[0].passed is passed


def test_logits_behind_a_huge_constant_are_called_coarse() -> None:
    network = load(ModelName.parse("conv-small")).network
    model = classifier(Between(network, after=lambda z: z + 1e7), "raised")
    assert "coarse logits" in [sign.word for sign in signs(model, panel(20), ThreatModel("linf", EPS))]


@pytest.mark.slow
def test_a_network_that_looks_at_its_batch_is_flagged_and_not_refused() -> None:
    batch = panel(4)
    assert "batch-dependent" in audit(LIARS["batch-dependent output"](), batch.x, batch.y, eps=0.05).flags


@pytest.mark.parametrize("size", [1e-3, pytest.param(1.0, marks=pytest.mark.slow)])
def test_honest_logits_of_any_size_pass(size: float) -> None:
    """Short descents on the cross-entropy leave up to 85 % where 50 % withstand, and nothing is masked."""
    batch, network = panel(N), load(ModelName.parse("conv-small")).network
    model = classifier(Between(network, after=lambda z: size * z), "sized")
    result = audit(model, batch.x, batch.y, eps=0.07)
    assert result.attacked < result.naive - 0.1
    assert result.flags == ()


def test_a_model_that_raises_on_what_it_turns_away_is_one_clear_line() -> None:
    batch, network = panel(4), load(ModelName.parse("conv-small")).network

    def turned_away(x: torch.Tensor) -> torch.Tensor:
        if int(((x - EPS).abs() < 1e-3).sum()) > 100:
            raise ValueError("an adversarial example")
        return x

    said = r"raises ValueError on .* \(an adversarial example\): let it return logits"
    with pytest.raises(UserError, match=said):
        audit(Between(network, before=turned_away), batch.x, batch.y, eps=EPS)


def test_a_number_without_the_worst_case_is_unreliable(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(Strongest, "propose", refuse)
    batch = panel(4)
    result = audit(load(ModelName.parse("conv-small")), batch.x, batch.y, eps=EPS)
    assert "strongest runs" in result.flags
    assert not result.reliable
    assert "UNRELIABLE: the worst case could not be run" in result.verdict()


@pytest.mark.parametrize("n", [1, 3, 4, 7, 8])
def test_what_depends_on_its_batch_is_asked_about_as_many_at_once(n: int) -> None:
    """Attacks ask about what still holds, and about many copies of it: the verdict's batch is what counts."""
    sizes: list[int] = []

    def counted(x: torch.Tensor) -> torch.Tensor:
        sizes.append(len(x))
        return x

    model = classifier(Between(torch.nn.Flatten(), before=counted), "counted")
    declared, x = as_declared(model, {"batch-dependent"}, 4), torch.rand(n, 1, 2, 5)
    assert torch.equal(declared.logits(x), x.flatten(1))
    assert sizes == [4] * -(-n // 4)


def test_luck_with_random_answers_breaks_nothing() -> None:
    """5,000 looks at a random model find a wrong answer for every image: nothing was left of this one."""
    network, batch = load(ModelName.parse("conv-small")).network, panel(N)
    torch.manual_seed(0)
    model = Between(network, after=lambda z: z + 8 * torch.randn_like(z))
    assert audit(model, batch.x, batch.y, eps=0.1).attacked >= 0.1
