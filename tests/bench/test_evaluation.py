"""`evaluate`: the bracket on networks whose robust accuracy is known in closed form."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from bench import evaluate
from bench.evaluation import Evaluation
from certify.base import CERTIFIERS, Certifier
from models.base import Batch, Classifier
from models.errors import UserError
from models.randomness import Randomness
from models.threat import ThreatModel


def linear(seed: int = 0, classes: int = 3) -> tuple[nn.Module, Tensor, Tensor]:
    """A linear classifier, images well inside the box, and its own predictions as labels."""
    draw = torch.Generator().manual_seed(seed)
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, classes))
    with torch.no_grad():
        network[1].weight.copy_(torch.randn(classes, 16, generator=draw))
        network[1].bias.zero_()
    images = 0.3 + 0.4 * torch.rand(60, 1, 4, 4, generator=draw)
    return network, images, network(images).argmax(1).detach()


def exact_distance(network: nn.Module, images: Tensor, labels: Tensor, dual: float) -> Tensor:
    """The distance to the nearest boundary: min_j (z_y - z_j) / ||w_y - w_j||_q."""
    weight, logits = network[1].weight.detach(), network(images).detach()  # type: ignore[index]
    gaps = logits.gather(1, labels[:, None]) - logits
    slopes = torch.linalg.vector_norm(weight[labels][:, None] - weight[None], ord=dual, dim=2)
    return (gaps / slopes).nan_to_num(nan=torch.inf).amin(1)


@pytest.mark.parametrize(("norm", "dual", "eps"), [("linf", 1, 0.05), ("l2", 2, 0.15)])
def test_the_bracket_closes_on_a_linear_network_at_its_true_accuracy(
    norm: str, dual: float, eps: float
) -> None:
    network, images, labels = linear()
    truth = float((exact_distance(network, images, labels, dual) > eps).double().mean())
    assert 0.1 < truth < 0.9
    result = evaluate(network, images, labels, norm=norm, eps=eps)
    assert result.clean == 1.0
    assert result.certified == pytest.approx(truth, abs=1e-9)
    assert result.attacked == pytest.approx(truth, abs=1e-9)
    assert result.gap == pytest.approx(0.0, abs=1e-9)


def test_arrays_and_tensors_give_the_same_outcomes_and_the_model_is_untouched() -> None:
    network, images, labels = linear()
    network.train()
    first = evaluate(network, images, labels, eps="1/20")
    second = evaluate(network, images.numpy(), labels.numpy(), eps=0.05)
    assert network.training
    assert all(parameter.requires_grad for parameter in network.parameters())
    columns = ["index", "judge", "kind", "success", "certified"]
    assert first.outcomes[columns].equals(second.outcomes[columns])
    assert "certified" in first._repr_html_()


def test_a_wrong_label_counts_against_both_ends() -> None:
    network, images, labels = linear()
    wrong = (labels + 1) % 3
    result = evaluate(network, images, wrong, eps=0.01)
    assert result.clean == result.attacked == result.certified == 0.0


def test_an_operation_without_a_rule_is_flagged_by_name_and_attacks_still_run() -> None:
    class Sorted(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.sort(x.flatten(1), dim=1).values

    images = torch.rand(5, 1, 2, 2)
    result = evaluate(Sorted(), images, torch.full((5,), 3), eps=0.5, attacks=["pgd"])
    assert result.certified == 0.0
    assert any("sort" in flag.lower() for flag in result.flags)


def test_an_unsound_certificate_is_refused_loudly(monkeypatch: pytest.MonkeyPatch) -> None:
    class Liar(Certifier):
        name = "liar"
        paper = "-"

        def bound(
            self, model: Classifier, batch: Batch, threat: ThreatModel, randomness: Randomness
        ) -> Tensor:
            return torch.ones(len(batch), model.num_classes)

    monkeypatch.setitem(CERTIFIERS._entries, "liar", Liar)
    network, images, labels = linear()
    with pytest.raises(UserError, match="certified and broken"):
        evaluate(network, images, labels, eps=0.05, certificates=["liar"])


@pytest.mark.parametrize("eps", ["-1", "nan", "x"])
def test_bad_radii_are_one_clear_line(eps: str) -> None:
    network, images, labels = linear()
    with pytest.raises(UserError, match="eps"):
        evaluate(network, images, labels, eps=eps)


def test_unknown_judges_are_refused_with_a_suggestion() -> None:
    network, images, labels = linear()
    with pytest.raises(UserError, match="pgd"):
        evaluate(network, images, labels, eps=0.1, attacks=["pgdd"])


@pytest.mark.parametrize(
    ("norm", "eps", "words"),
    [
        ("spatial", 1, "rotation <= 30"),
        ("corruption", 3, "severity <= 3"),
        ("flow", 0.05, "flow <= 0.05 px"),
        ("lighting", 0.3, "brightness within 30 %"),
    ],
)
def test_threats_that_are_no_ball(norm: str, eps: float, words: str) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    x = torch.rand(12, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    result = evaluate(network, x, network(x).argmax(1), norm=norm, eps=eps)
    assert 0 < result.attacked < 1
    assert words in str(result)
    if norm in ("corruption", "flow"):
        assert result.certified == 0.0
        assert result.flags == (f"no certificate bounds '{norm}': the lower end is 0",)
    else:
        assert result.gap == 0
        assert result.flags == ()
    with pytest.raises(UserError, match=f"has no norm '{norm}'"):
        evaluate(network, x, network(x).argmax(1), norm=norm, eps=eps, certificates=["ibp"])
    with pytest.raises(UserError, match=f"has no norm '{norm}'"):
        evaluate(network, x, network(x).argmax(1), norm=norm, eps=eps, attacks=["pgd"])


def test_a_very_long_name_stands_above_the_table_and_a_short_one_in_it() -> None:
    network, images, labels = linear()
    result = evaluate(network, images, labels, eps=0.05, attacks=["fgsm"], certificates=["ibp"])
    short = str(result).splitlines()
    long = str(replace(result, name="n" * 121)).splitlines()
    assert long[0] == "n" * 121
    assert short[1].split()[0] == result.name
    assert long[2].split() == short[1].split()[1:]
    assert max(map(len, long[1:3])) < 120


def test_torchscript_is_attacked_and_its_certificates_left_out() -> None:
    network, images, labels = linear()
    result = evaluate(torch.jit.script(network), images[:5], labels[:5], eps=0.01)
    assert result.clean == 1.0
    (said,) = [flag for flag in result.flags if "is TorchScript" in flag]
    assert said.startswith("certificates ibp, crown-ibp, polytope, crown, alpha-crown left out: ")


def test_one_image_many_times_is_no_jump_and_no_warning(recwarn: pytest.WarningsRecorder) -> None:
    network, images, labels = linear()
    for rows in ([0], [0] * 12):
        assert evaluate(network, images[rows], labels[rows], eps=0.01).flags == ()
    assert not list(recwarn)


def test_inference_mode_around_evaluate_changes_nothing() -> None:
    network, images, labels = linear()
    outside = evaluate(network, images, labels, eps=0.05)
    with torch.inference_mode():
        inside = evaluate(network, images + 0.0, labels + 0, eps=0.05)
    assert str(inside) == str(outside)


def test_an_eps_that_was_meant_for_another_box_is_said() -> None:
    network, images, labels = linear()
    judges = {"attacks": ["fgsm"], "certificates": ["ibp"]}
    small = evaluate(network, 255 * images, labels, eps="8/255", box=(0, 255), **judges)
    assert [flag for flag in small.flags if flag.startswith("units: eps = 0.0313725")]
    for eps, scale in ((8, 255.0), ("8/255", 1.0), (0, 255.0)):
        fine = evaluate(network, scale * images, labels, eps=eps, box=(0, scale), **judges)
        assert not [flag for flag in fine.flags if flag.startswith("units")]


@pytest.mark.parametrize(
    ("n", "certified", "gap"),
    [
        (10_000, "93.01 % [92.5, 93.5]", "0.11 %"),
        (1000, "93.0 % [91, 94]", "0.1 %"),
        (40, "92.5 % [80, 97]", "0.0 %"),
    ],
)
def test_the_numbers_have_so_many_digits_that_one_sample_shows(n: int, certified: str, gap: str) -> None:
    proved = round(0.9301 * n)
    left = round(0.9312 * n)
    result = Evaluation("net", "linf", 0.3, n, 0.98, proved / n, left / n, pd.DataFrame(), ())
    (row,) = result.summary().to_dict("records")
    assert (row["certified"], row["gap"]) == (certified, gap)
