"""The batched ascent: the linear program's optimum within 1e-4, and never above it."""

import pytest
import torch

from certify.backward import adaptive_slope, parallel_slope, relax
from certify.crown import Crown
from certify.folded import folded_network
from certify.folding import undecided_counts
from certify.ibp import margin_rows
from certify.lp import LinearProgram
from certify.lp_fast import MEMORY, FastLinearProgram, chunks
from certify.polytope import Polytope
from certify.prepare import prepare
from certify.stacked import Stack
from defenses.zoo import ModelName, load
from models.base import Classifier
from models.data import load_data
from models.errors import UserError
from models.randomness import Randomness
from models.threat import ThreatModel
from tests.certify.builders import batch, model, smallest_margins
from tests.certify.planes import small_network

THREAT = ThreatModel("linf", 0.1)
WIDTHS = [(6, 8, 3), (5, 10, 8, 3), (4, 8, 8, 8, 3), (8, 12, 12, 4)]


def run(certifier, judged, data, threat=THREAT):
    return certifier.run(judged, data, threat, Randomness(0)).lower


def shortfall(optimum, found):
    """How far `found` is below the optimum, relative to max(1, |optimum|), where there is one."""
    finite = torch.isfinite(optimum)
    return ((optimum - found) / optimum.abs().clamp(min=1))[finite]


def tiny(seed):
    widths = WIDTHS[seed % 4]
    network = small_network(*widths, seed=seed, leak=0.2 * (seed // 4 % 2))
    judged = Classifier(network, num_classes=widths[-1]).eval()
    return judged, batch(6, shape=(widths[0],), seed=seed, classes=widths[-1])


@pytest.mark.parametrize("seed", range(8))
def test_it_reaches_the_linear_program_on_tiny_networks(seed):
    judged, data = tiny(seed)
    threat = ThreatModel("linf", 0.1 if seed % 3 == 2 else 0.4)
    optimum = run(LinearProgram(only_open=False), judged, data, threat)
    gap = shortfall(optimum, run(FastLinearProgram(), judged, data, threat))
    assert gap.min() >= -1e-6
    assert gap.max() <= 1e-4


@pytest.mark.parametrize(("name", "eps"), [("conv-small+polytope", 0.1), ("conv-small+adversarial-pgd", 0.1)])
def test_it_reaches_the_linear_program_on_convolutions(name, eps):
    judged, data = load(ModelName.parse(name)), load_data("mnist5k")
    images = data.batch(data.panel(2))
    threat = ThreatModel("linf", eps)
    optimum = run(LinearProgram(only_open=False), judged, images, threat)
    gap = shortfall(optimum, run(FastLinearProgram(rounds=3), judged, images, threat))
    assert gap.min() >= -1e-6
    assert gap.max() <= 1e-4


@pytest.mark.parametrize("family", ["mlp", "leaky", "conv", "residual", "batch-norm", "average-pool"])
def test_more_rounds_only_rise_from_the_bound_at_the_start_to_the_optimum(family):
    judged, data = model(family), batch(3)
    optimum = run(LinearProgram(only_open=False), judged, data)
    lower = run(FastLinearProgram(neurons=0), judged, data)
    for rounds in (0, 1, 2):
        found = run(FastLinearProgram(rounds=rounds), judged, data)
        assert shortfall(found, lower).min() >= -1e-7
        lower = found
    least, _ = smallest_margins(judged, data, THREAT)
    other = torch.isfinite(lower)
    assert shortfall(optimum, lower).min() >= -1e-6
    assert (least - lower)[other].min() >= -1e-9


def test_a_lying_ascent_proves_nothing_false(monkeypatch):
    judged, data = tiny(1)
    least, _ = smallest_margins(judged, data, THREAT)
    known = torch.maximum(run(Crown(), judged, data), run(Polytope(), judged, data))
    for lie in (7.0, -3.0, torch.nan, torch.inf):
        monkeypatch.setattr(
            "certify.lp_fast.climbed_slopes", lambda stack, start, lie=lie, **_: torch.full_like(start, lie)
        )
        lower = run(FastLinearProgram(), judged, data)
        other = torch.isfinite(lower)
        assert (least - lower)[other].min() >= -1e-9
        assert (lower - known)[other].min() >= -1e-9


def test_proved_samples_leave_only_when_asked():
    judged, data = tiny(3)
    threat = ThreatModel("linf", 0.05)
    full, early = (run(FastLinearProgram(only_open=flag), judged, data, threat) for flag in (False, True))
    assert ((full > 0) == (early > 0)).all()
    assert shortfall(full, early).max() > 1e-4
    assert (early <= full + 1e-5).all()


def test_wide_samples_keep_what_is_known():
    judged, data = tiny(2)
    known = torch.maximum(run(Crown(), judged, data), run(Polytope(), judged, data))
    lower = run(FastLinearProgram(neurons=0), judged, data)
    other = torch.isfinite(lower)
    assert (lower - known)[other].min() >= -1e-9
    assert (lower - known)[other].max() < 0.05


def test_the_stacks_bound_is_the_networks_own_and_its_point_is_feasible():
    judged, data = tiny(2)
    graph, x = prepare(judged, data.x)
    relaxation = relax(graph, x, ThreatModel("linf", 0.4), parallel_slope, adaptive_slope)
    rows = margin_rows(data.y, 3, x.dtype)
    samples, sizes = [], set()
    for i in range(len(x)):
        sample = relaxation.select(slice(i, i + 1))
        sizes |= set(undecided_counts(sample).tolist())
        samples.append(folded_network(sample, list(rows[i].unsqueeze(1)), [rows.new_zeros(1)] * 3))
    assert len(sizes) > 2
    stack = Stack.of(samples, torch.float64)
    for alpha in (0.0, 0.3, 1.0):
        slopes = torch.full_like(stack.target_neurons, alpha)
        value, q, coefficients = stack.backward(slopes)
        fixed = relaxation.with_alpha(
            {i: torch.full_like(part, alpha) for i, part in relaxation.alpha.items()}
        )
        own = fixed.lower(len(graph.nodes) - 1, rows)
        assert torch.allclose(value, own, atol=1e-9)
        point, _, outputs = stack.minimiser(slopes, q, coefficients)
        assert (stack.value_at(point, outputs) >= value - 1e-9).all()


def test_chunks_cover_every_sample_within_the_budget():
    sizes = [10, 4000, 20, 3000, 3000, 5]
    found = chunks(sizes, 784, 10)
    assert [i for part in found for i in range(part.start, part.stop)] == list(range(6))
    for part in found:
        count, widest = part.stop - part.start, max(sizes[part])
        assert count == 1 or 4 * count * (widest + 80) * (widest + 784) <= MEMORY
    assert chunks([], 784, 10) == []


def test_other_norms_and_operations_are_refused():
    with pytest.raises(UserError, match="no norm"):
        run(FastLinearProgram(), model("mlp"), batch(), ThreatModel("l2", 0.1))
    with pytest.raises(UserError, match="Sigmoidal"):
        run(FastLinearProgram(), model("sigmoid"), batch())
