"""Proof files: honest ones are accepted at the certificate's own margins, every planted lie is refuted."""

import ast
import hashlib
import itertools
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import save, save_file
from torch import nn

from bench import proof_checker
from bench.proof_checker import ROUNDING, check, covers
from certify.alpha_crown import AlphaCrown
from certify.backward import adaptive_slope, margins, parallel_slope, relax
from certify.crown import Crown
from certify.exact import Exact
from certify.ibp import IntervalBounds
from certify.polytope import Polytope
from certify.prepare import prepare
from certify.proof import write_proof
from defenses.zoo import ModelName, load
from models.base import Batch, Classifier
from models.checkpoint import SHIPPED
from models.data import load_data
from models.errors import NotApplicable, UserError
from models.randomness import Randomness
from models.sources.opening import open_model
from models.threat import ThreatModel
from tests.certify.builders import batch, mlp, model, smallest_margins
from tests.models.onnx_files import File

CONV_SMALL = SHIPPED / "conv-small+polytope.safetensors"


def linf(eps):
    return ThreatModel("linf", eps)


def proved_margins(path):
    """The margins of an accepted file, +inf for the label."""
    proved, text = check(path)
    assert proved, text
    assert text.splitlines()[0] == "proved"
    return [float(line.split(" >= ")[1]) for line in text.splitlines() if " >= " in line]


def opened(path):
    with safe_open(path, "np") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118


def labels(judged, data):
    with torch.no_grad():
        return Batch(data.x, judged.logits(data.x).argmax(1), data.index)


@pytest.fixture(scope="module")
def shipped():
    judged, data = load(ModelName.parse("conv-small+polytope")), load_data("mnist5k", None, False)
    return judged, data.batch(data.panel(None)[:2])


@pytest.fixture(scope="module")
def honest(shipped, tmp_path_factory):
    """Proofs of the first image by each method, by name."""
    judged, data = shipped
    folder = tmp_path_factory.mktemp("proofs")
    for method in ("ibp", "crown", "alpha-crown"):
        assert write_proof(folder / method, judged, data[:1], linf(0.1), (method,)) == method
    return folder


@pytest.mark.slow
def test_honest_proofs_of_the_shipped_network_are_accepted_at_their_certificates_margins(shipped, tmp_path):
    judged, data = shipped
    graph, x = prepare(judged, data.x)
    threat = linf(0.1)
    both = relax(graph, x, threat, parallel_slope, adaptive_slope)
    crown = torch.maximum(margins(both, data.y), margins(both.with_alpha({}), data.y))
    bounds = {"ibp": IntervalBounds().run(judged, data, threat, Randomness(0)).lower, "crown": crown}
    for i in range(len(data)):
        for method, lower in bounds.items():
            path = tmp_path / f"{i}-{method}"
            assert write_proof(path, judged, data[slice(i, i + 1)], threat, (method,)) == method
            assert check(path, CONV_SMALL)[0]
            least = [float(lower[i, j]) for j in range(10) if j != data.y[i]]
            found = proved_margins(path)
            assert all(a >= b - 1e-6 for a, b in zip(found, least, strict=True))
            if method == "ibp":
                assert found == pytest.approx(least, abs=1e-6)


def test_a_proof_reaches_what_crown_polytope_and_alpha_crown_certify(shipped, honest):
    judged, data = shipped
    for certifier in (Crown(), Polytope(), AlphaCrown()):
        margin = float(certifier.run(judged, data[:1], linf(0.1), Randomness(0)).margin)
        assert min(proved_margins(honest / "alpha-crown")) >= margin - 1e-5
    assert min(proved_margins(honest / "crown")) <= min(proved_margins(honest / "alpha-crown"))


def test_the_hash_is_that_of_the_model_card(honest):
    card = json.loads(CONV_SMALL.with_suffix(".json").read_text(encoding="utf-8"))
    assert opened(honest / "ibp")[1]["weights_sha256"] == card["weights_sha256"]
    other = SHIPPED / "conv-small.safetensors"
    assert check(honest / "ibp", other) == (False, f"REFUTED: not about {other}")


FAMILIES = {
    "mlp": lambda: mlp(72, 12, 10, 3),
    "conv": lambda: nn.Sequential(
        nn.Conv2d(2, 3, (3, 2), stride=(2, 1), padding=(1, 2)), nn.ReLU(),
        nn.Conv2d(3, 4, 2, dilation=(1, 2), stride=2, bias=False), nn.ReLU(),
        nn.Flatten(), nn.Linear(16, 5), nn.Linear(5, 3),
    ),
    "nested": lambda: nn.Sequential(nn.ReLU(), nn.Dropout(), nn.Sequential(mlp(72, 9, 3))),
    "linear": lambda: nn.Sequential(nn.Flatten(), nn.Linear(72, 3)),
}  # fmt: skip


def seeded(family):
    """The same network whatever was drawn before."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return model(FAMILIES[family]())


@pytest.mark.parametrize("family", FAMILIES)
def test_other_chains_are_proved_below_every_margin_that_can_be_found(family, tmp_path):
    judged = seeded(family)
    data = labels(judged, batch(6))
    threat, written = linf(0.01), 0
    least, _ = smallest_margins(judged, data, threat, samples=20, steps=6)
    for i in range(len(data)):
        for method in ("ibp", "crown", "alpha-crown"):
            path = tmp_path / f"{i}-{method}"
            if write_proof(path, judged, data[slice(i, i + 1)], threat, (method,)) is None:
                assert not path.exists()
                continue
            written += 1
            others = [float(least[i, j]) for j in range(3) if j != data.y[i]]
            assert all(a <= b + 1e-6 for a, b in zip(proved_margins(path), others, strict=True))
    assert written > 6


def test_a_linear_network_has_its_closed_form(tmp_path):
    judged = seeded("linear")
    data = labels(judged, batch(1))
    rows = judged.network[1].weight.detach().double()
    with torch.no_grad():
        z = judged.network.double()(data.x.double())[0]
    judged.network.float()
    low, high = (data.x.double() - 0.01).clamp(0, 1).flatten(), (data.x.double() + 0.01).clamp(0, 1).flatten()
    label = int(data.y)
    others = [j for j in range(3) if j != label]
    x = data.x.double().flatten()
    expected = [
        float(z[label] - z[j] + torch.minimum(row * (low - x), row * (high - x)).sum())
        for j in others
        for row in [rows[label] - rows[j]]
    ]
    assert write_proof(tmp_path / "p", judged, data, linf(0.01)) == "ibp"
    assert proved_margins(tmp_path / "p") == pytest.approx(expected, abs=1e-9)


def test_a_chain_from_an_onnx_file_is_proved(tmp_path):
    file = File(1, 36)
    file.add("Relu", file.add("Add", file.add("MatMul", "x", file.weights(36, 6)), file.weights(6)))
    file.add("MatMul", file.last, file.weights(6, 3))
    source = file.write(tmp_path / "net.onnx")
    data = batch(3, (1, 6, 6), classes=3)
    judged = open_model(f"onnx:{source}", data, 3).classifier
    data = labels(judged, data)
    for i in range(3):
        path = tmp_path / str(i)
        assert write_proof(path, judged, data[slice(i, i + 1)], linf(1e-4), ("ibp",)) == "ibp"
        assert min(proved_margins(path)) > 0


def test_a_module_in_two_places_is_two_layers(tmp_path):
    relu = nn.ReLU()
    judged = model(
        nn.Sequential(nn.Flatten(), nn.Linear(72, 8), relu, nn.Linear(8, 8), relu, nn.Linear(8, 3))
    )
    data = labels(judged, batch(1))
    assert write_proof(tmp_path / "p", judged, data, linf(1e-6)) == "ibp"
    assert min(proved_margins(tmp_path / "p")) > 0
    assert [layer["kind"] for layer in json.loads(opened(tmp_path / "p")[1]["layers"])].count("relu") == 2


def test_what_is_broken_has_no_file(shipped, tmp_path):
    judged, data = shipped
    wrong = Batch(data.x[:1], (data.y[:1] + 1) % 10, data.index[:1])
    assert write_proof(tmp_path / "p", judged, wrong, linf(0.1), ("branch",), seconds=5) is None
    assert not (tmp_path / "p").exists()


def searched():
    """A small network, an image and an eps at which only branch and bound proves it."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = mlp(8, 16, 16, 3)
        for parameter in network.parameters():
            parameter.data.mul_(2.0)
    judged, eps = model(network), 0.15
    data = labels(judged, batch(60, (8,), seed=4))
    slopes = AlphaCrown(steps=60).run(judged, data, linf(eps), Randomness(0)).certified
    exact = Exact(seconds=5).run(judged, data, linf(eps), Randomness(0))
    rows = (exact.certified & ~slopes & (exact.margin > 1e-4)).nonzero()[:, 0].tolist()
    assert rows
    return judged, data[rows[0] : rows[0] + 1], eps


@pytest.fixture(scope="module")
def branched(tmp_path_factory):
    """The proof of such a sample, by branch and bound."""
    judged, one, eps = searched()
    path = tmp_path_factory.mktemp("branched") / "proof"
    assert write_proof(path, judged, one, linf(eps)) == "branch"
    return judged, one, eps, path


def test_leaves_prove_what_slopes_alone_do_not(branched):
    judged, one, eps, path = branched
    tensors, notes = opened(path)
    counts = np.bincount(tensors["class"], minlength=3)
    assert counts.max() > 1
    assert notes["method"] == "branch"
    found = proved_margins(path)
    least, points = smallest_margins(judged, one, linf(eps), samples=60, steps=20)
    assert points > 50
    others = [float(least[0, j]) for j in range(3) if j != int(one.y)]
    assert all(0 < a <= b + 1e-9 for a, b in zip(found, others, strict=True))


def leaf_removed(tensors, notes):
    split = np.flatnonzero(tensors["class"] == np.bincount(tensors["class"]).argmax())
    for name in [name for name in tensors if name == "class" or "leaf" in name or "phase" in name]:
        tensors[name] = np.delete(tensors[name], split[-1], 0)


def phase_turned(tensors, notes):
    place = max((name for name in tensors if "phase" in name), key=lambda name: np.abs(tensors[name]).sum())
    tensors[place][np.unravel_index(np.abs(tensors[place]).argmax(), tensors[place].shape)] *= -1


def phase_imposed(tensors, notes):
    for name in [name for name in tensors if "phase" in name]:
        tensors[name] = np.where(tensors[name] == 0, np.float32(1e-12), tensors[name])


def multiplier_enlarged(tensors, notes):
    for name in [name for name in tensors if "phase" in name]:
        tensors[name] += 1e3 * np.sign(tensors[name])


def multiplier_nan(tensors, notes):
    tensors["phase.1"][0, 0] = np.nan


def slopes_of_a_leaf_flipped(tensors, notes):
    for name in [name for name in tensors if "slopes.leaf" in name]:
        tensors[name] = 1 - tensors[name]


def leaf_of_another_class(tensors, notes):
    other = np.bincount(tensors["class"]).argmax()
    tensors["class"][np.flatnonzero(tensors["class"] == other)[0]] = (other + 1) % 3


def leaves_as_a_pass(tensors, notes):
    """Phases that prove an intermediate bound: the last layer's bounds shrink under an imposed phase."""
    notes["passes"] = json.dumps(["leaf"])
    for place in (1, 3):
        for end in ("lower", "upper"):
            tensors[f"{end}.{place}"] *= 0.9


def phases_for_one_neuron(tensors, notes):
    for name in [name for name in tensors if "phase" in name]:
        tensors[name] = tensors[name][:, :1]


def branched_weight_changed(tensors, notes):
    tensors["weights.1.weight"][0, 0] += 1e-3


def branched_weight_and_hash_changed(tensors, notes):
    tensors["weights.3.weight"][:] *= -1
    own = {name[8:]: part for name, part in tensors.items() if name.startswith("weights.")}
    notes["weights_sha256"] = hashlib.sha256(save(own)).hexdigest()


TREE_LIES = [
    leaf_removed, phase_turned, phase_imposed, multiplier_enlarged, multiplier_nan, slopes_of_a_leaf_flipped,
    leaf_of_another_class, leaves_as_a_pass, phases_for_one_neuron, branched_weight_changed,
    branched_weight_and_hash_changed,
]  # fmt: skip


@pytest.mark.parametrize("lie", TREE_LIES, ids=lambda lie: lie.__name__)
def test_lies_about_a_search_are_refuted(lie, branched, tmp_path):
    tensors, notes = opened(branched[-1])
    lie(tensors, notes)
    save_file({name: np.ascontiguousarray(part) for name, part in tensors.items()}, tmp_path / "lie", notes)
    proved, text = check(tmp_path / "lie")
    assert not proved
    assert text.startswith("REFUTED: ")


def test_every_leaf_of_the_tree_is_needed(branched, tmp_path):
    tensors, notes = opened(branched[-1])
    split = np.flatnonzero(tensors["class"] == np.bincount(tensors["class"]).argmax())
    for row in split:
        cut = {
            name: np.delete(part, row, 0) if name == "class" or "leaf" in name or "phase" in name else part
            for name, part in tensors.items()
        }
        save_file({name: np.ascontiguousarray(part) for name, part in cut.items()}, tmp_path / "cut", notes)
        assert check(tmp_path / "cut") == (
            False, f"REFUTED: the leaves of class {tensors['class'][row]} leave out some phases",
        )  # fmt: skip


@pytest.mark.parametrize("seed", range(20))
def test_coverage_is_that_of_all_choices(seed):
    generator = np.random.default_rng(seed)
    for count in (1, 4, 12, 30):
        signs = generator.choice([-1, 0, 0, 1], size=(count, 4))
        choices = itertools.product((-1, 1), repeat=4)
        agree = all(bool(((signs * np.array(one)) >= 0).all(1).any()) for one in choices)
        assert covers(signs) == agree
    assert not covers(np.zeros((0, 4)))
    assert covers(np.zeros((1, 4)))


def weights_changed(tensors, notes):
    tensors["weights.2.weight"][0, 0, 0, 0] += 1e-3


def weights_and_hash_changed(tensors, notes):
    tensors["weights.5.weight"][:] *= -1
    own = {name[8:]: part for name, part in tensors.items() if name.startswith("weights.")}
    notes["weights_sha256"] = hashlib.sha256(save(own)).hexdigest()


def slope_flipped(tensors, notes):
    tensors["slopes.adaptive.3"][7] = -1.0


def slope_too_steep(tensors, notes):
    tensors["slopes.leaf.5"][3, 5] = 1.0 + 1e-9


def lower_bound_tightened(tensors, notes):
    place = np.argmax(tensors["upper.3"] - tensors["lower.3"])
    tensors["lower.3"][place] += 1e-3


def upper_bound_tightened(tensors, notes):
    tensors["upper.5"] -= 1e-3


def first_bounds_tightened(tensors, notes):
    tensors["upper.1"] -= 1e-4


def bounds_cut_to_nothing(tensors, notes):
    for place in (1, 3, 5):
        middle = (tensors[f"lower.{place}"] + tensors[f"upper.{place}"]) / 2
        tensors[f"lower.{place}"], tensors[f"upper.{place}"] = middle, middle


def bounds_crossed(tensors, notes):
    tensors["lower.3"], tensors["upper.3"] = tensors["upper.3"], tensors["lower.3"]


def label_changed(tensors, notes):
    notes["label"] = str((int(notes["label"]) + 1) % 10)


def label_absurd(tensors, notes):
    notes["label"] = "10"


def label_negative(tensors, notes):
    notes["label"] = "-1"


def eps_larger(tensors, notes):
    notes["eps"] = "0.101"


def eps_nan(tensors, notes):
    notes["eps"] = "nan"


def eps_infinite(tensors, notes):
    notes["eps"] = "inf"


def box_wider(tensors, notes):
    notes["box"] = "[-1.0, 1.0]"


def box_nan(tensors, notes):
    notes["box"] = "[NaN, NaN]"


def another_image(tensors, notes):
    tensors["x"] = 1 - tensors["x"]


def image_outside_the_box(tensors, notes):
    tensors["x"][0, 0, 0] = 7.0


def nan_weight(tensors, notes):
    tensors["weights.0.bias"][3] = np.nan
    own = {name[8:]: part for name, part in tensors.items() if name.startswith("weights.")}
    notes["weights_sha256"] = hashlib.sha256(save(own)).hexdigest()


def nan_bound(tensors, notes):
    tensors["lower.5"][0] = np.nan


def nan_slope(tensors, notes):
    tensors["slopes.parallel.1"][0] = np.nan


def infinite_bound(tensors, notes):
    tensors["upper.1"][0] = np.inf


def another_stride(tensors, notes):
    notes["layers"] = notes["layers"].replace('"stride": [2, 2]', '"stride": [1, 1]', 1)


def endless_stride(tensors, notes):
    notes["layers"] = notes["layers"].replace('"stride": [2, 2]', '"stride": [0, 0]', 1)


def last_layer_left_out(tensors, notes):
    notes["layers"] = json.dumps(json.loads(notes["layers"])[:-1])


def another_activation(tensors, notes):
    notes["layers"] = notes["layers"].replace('"relu"', '"sine"', 1)


def a_pass_missing(tensors, notes):
    del tensors["slopes.parallel.3"]


def bounds_of_one_neuron(tensors, notes):
    tensors["lower.5"], tensors["upper.5"] = tensors["lower.5"][:1], tensors["upper.5"][:1]


def another_norm(tensors, notes):
    notes["norm"] = "l2"


def another_format(tensors, notes):
    notes["format"] = "rhobust-proof-9"


def no_layers(tensors, notes):
    notes["layers"] = "[]"


LIES = [
    weights_changed, weights_and_hash_changed, slope_flipped, slope_too_steep, lower_bound_tightened,
    upper_bound_tightened, first_bounds_tightened, bounds_cut_to_nothing, bounds_crossed, label_changed,
    label_absurd, label_negative, eps_larger, eps_nan, eps_infinite, box_wider, box_nan, another_image,
    image_outside_the_box, nan_weight, nan_bound, nan_slope, infinite_bound, another_stride, endless_stride,
    last_layer_left_out, another_activation, a_pass_missing, bounds_of_one_neuron,
    another_norm, another_format, no_layers,
]  # fmt: skip


@pytest.mark.parametrize("lie", LIES, ids=lambda lie: lie.__name__)
def test_planted_lies_are_refuted(lie, honest, tmp_path):
    tensors, notes = opened(honest / "alpha-crown")
    lie(tensors, notes)
    tensors = {name: np.ascontiguousarray(part) for name, part in tensors.items()}
    save_file(tensors, tmp_path / "lie", notes)
    proved, text = check(tmp_path / "lie")
    assert not proved
    assert text.startswith("REFUTED: ")
    assert "\n" not in text


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_a_truncated_file_is_refuted(share, honest, tmp_path):
    content = (honest / "ibp").read_bytes()
    (tmp_path / "cut").write_bytes(content[: int(share * len(content))])
    proved, text = check(tmp_path / "cut")
    assert not proved
    assert text.startswith("REFUTED: ")


def test_a_file_without_notes_is_refuted(honest, tmp_path):
    save_file(opened(honest / "ibp")[0], tmp_path / "bare")
    assert not check(tmp_path / "bare")[0]


def test_what_is_proved_is_printed(honest):
    text = check(honest / "ibp")[1]
    notes = opened(honest / "ibp")[1]
    assert "label 0 within linf eps 0.1 of the input, in the box [0.0, 1.0]" in text
    assert notes["layers"] in text
    assert [layer["kind"] for layer in json.loads(notes["layers"])] == [
        "conv", "relu", "conv", "relu", "linear", "relu", "linear",
    ]  # fmt: skip


def test_worse_slopes_prove_less_but_are_no_lie(honest, tmp_path):
    tensors, notes = opened(honest / "alpha-crown")
    for place in (1, 3, 5):
        shape = tensors[f"slopes.leaf.{place}"].shape
        tensors[f"slopes.leaf.{place}"] = np.random.default_rng(0).random(shape)
    save_file(tensors, tmp_path / "worse", notes)
    assert min(proved_margins(tmp_path / "worse")) <= min(proved_margins(honest / "alpha-crown"))


def test_the_rounding_constant_covers_dot_products_in_exact_arithmetic():
    generator = np.random.default_rng(0)
    for n in (3, 50, 400):
        a, b = generator.standard_normal((2, 30, n)) * 10.0 ** generator.integers(-9, 9, (2, 30, n))
        for first, second, found in zip(a, b, (a * b).sum(1), strict=True):
            exact = sum(
                x.as_integer_ratio()[0] * y.as_integer_ratio()[0] * 2**300
                // (x.as_integer_ratio()[1] * y.as_integer_ratio()[1])
                for x, y in zip(first.tolist(), second.tolist(), strict=True)
            ) / 2**300  # fmt: skip
            assert abs(found - exact) <= ROUNDING * (n + 3) * (np.abs(first) @ np.abs(second))


def test_the_checker_stands_alone():
    path = Path(proof_checker.__file__)
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) < 150
    found = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            found.add(str(node.module).split(".")[0])
    assert found - set(sys.stdlib_module_names) == {"numpy", "safetensors"}


def test_the_checker_runs_as_a_file_of_its_own(honest, tmp_path):
    copy = tmp_path / "checker.py"
    copy.write_text(Path(proof_checker.__file__).read_text(encoding="utf-8"), encoding="utf-8")
    (tmp_path / "broken").write_bytes(b"nothing")
    for path, code, word in ((honest / "ibp", 0, "proved"), (tmp_path / "broken", 1, "REFUTED")):
        shown = subprocess.run(
            [sys.executable, "-I", copy, path], capture_output=True, text=True, cwd=tmp_path, check=False
        )
        assert (shown.returncode, shown.stdout[: len(word)]) == (code, word), shown.stderr


@pytest.mark.parametrize(
    ("judged", "threat", "message"),
    [
        (lambda: model("mlp"), ThreatModel("l2", 0.1), "proof files speak of linf and an eps, not of 'l2'"),
        (lambda: model("max-pool"), linf(0.1), "layer '1' \\(MaxPool2d\\) has no proof files"),
        (lambda: model("leaky"), linf(0.1), "layer '2' \\(LeakyReLU\\) has no proof files"),
        (lambda: model("residual"), linf(0.1), "the network \\(Residual\\) has no proof files"),
    ],
)
def test_what_has_no_proof_files_is_refused_by_name(judged, threat, message, tmp_path):
    with pytest.raises(NotApplicable, match=message):
        write_proof(tmp_path / "p", judged(), batch(1), threat)


def test_a_proof_speaks_of_one_sample(tmp_path):
    with pytest.raises(UserError, match="a proof speaks of one sample, not of 3"):
        write_proof(tmp_path / "p", Classifier(mlp(72, 3), num_classes=3), batch(3), linf(0.1))
