"""Witness files: true ones are accepted at exact distances and margins, every planted lie is refuted."""

import ast
import hashlib
import json
import subprocess
import sys
from fractions import Fraction
from math import nextafter
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import save, save_file
from torch import nn
from torch.nn.utils.prune import l1_unstructured

from bench import witness_checker
from bench.witness_checker import check, margins
from bench.witnesses import write_witness
from certify.chain import chain, described, weights
from defenses.zoo import ModelName, load
from models.base import Batch, Classifier
from models.checkpoint import SHIPPED
from models.data import load_data
from models.errors import NotApplicable
from models.threat import Box, ThreatModel
from tests.certify.builders import batch, mlp, model

CONV_SMALL = SHIPPED / "conv-small.safetensors"


def opened(path):
    with safe_open(path, "np") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118


def saved(path, tensors, notes):
    save_file({name: np.ascontiguousarray(part) for name, part in tensors.items()}, path, notes)
    return path


def hashed(tensors, notes):
    own = {name[8:]: part for name, part in tensors.items() if name.startswith("weights.")}
    notes["weights_sha256"] = hashlib.sha256(save(own)).hexdigest()


def linear(rows, bias=None):
    """A classifier of one matrix in double precision."""
    network = nn.Linear(len(rows[0]), len(rows), bias=bias is not None).double()
    network.weight.data = torch.tensor(rows, dtype=torch.float64)
    if bias is not None:
        network.bias.data = torch.tensor(bias, dtype=torch.float64)
    return Classifier(network, num_classes=len(rows), box=Box(-4.0, 4.0))


def sample(x, label):
    return Batch.of(torch.tensor([x], dtype=torch.float64), torch.tensor([label]))


def written(path, judged, x, point, label, norm="linf", eps=1.0):
    threat = ThreatModel(norm, eps, judged.box)
    write_witness(path, judged, sample(x, label), torch.tensor([point], dtype=torch.float64), threat)
    return path


@pytest.fixture(scope="module")
def honest(tmp_path_factory):
    """The witness of a shipped network's first image on which half a step along the gradient's sign errs."""
    judged, data = load(ModelName.parse("conv-small")), load_data("mnist5k", None, False)
    images = data.batch(data.panel(None)[:8])
    x = images.x.clone().requires_grad_(True)
    nn.functional.cross_entropy(judged.logits(x), images.y, reduction="sum").backward()
    # An ulp outside both ball and box, as far as single precision can tell.
    point = images.x + 0.3000001 * x.grad.sign()
    with torch.no_grad():
        wrong = judged.logits(point.clamp(0, 1)).argmax(1) != images.y
    i = int(wrong.nonzero()[0, 0])
    path = tmp_path_factory.mktemp("witness") / "honest"
    one, threat = images[i : i + 1], ThreatModel("linf", 0.3)
    write_witness(path, judged, one, point[i : i + 1].clamp(0, 1), threat, "fgsm")
    return path


def test_a_true_witness_is_accepted_inside_ball_and_box(honest):
    true, text = check(honest, CONV_SMALL)
    assert true, text
    tensors, notes = opened(honest)
    lines, label = text.splitlines(), int(notes["label"])
    distance = np.abs(tensors["point"] - tensors["x"]).max()
    assert lines[1].startswith(f"label {label}, linf distance <= ")
    assert 0.2999 < distance <= float(lines[1].split()[5].rstrip(",")) <= 0.3
    judged = load(ModelName.parse("conv-small")).double()
    with torch.no_grad():
        z = judged.logits(torch.from_numpy(tensors["point"])[None])[0]
    assert lines[0] == f"broken: class {int(z.argmax())} wins"
    for line in lines[4:]:
        j, bound = int(line.split()[0][2:]), float(line.split(" >= ")[1])
        assert bound <= float(z[j] - z[label]) + 1e-12
        assert bound == pytest.approx(float(z[j] - z[label]), abs=1e-8)
    assert len(lines) - 4 == int((z > z[label]).sum())


def test_the_hash_is_that_of_the_model_card(honest):
    card = json.loads(CONV_SMALL.with_suffix(".json").read_text(encoding="utf-8"))
    assert opened(honest)[1]["weights_sha256"] == card["weights_sha256"]
    other = SHIPPED / "conv-small+polytope.safetensors"
    assert check(honest, other) == (False, f"REFUTED: not about {other}")


def another_weight(tensors, notes):
    tensors["weights.2.weight"][0, 0, 0, 0] += 1e-3


def another_byte_of_the_weights(tensors, notes):
    tensors["weights.0.bias"].view(np.uint8)[0] ^= 1


def bias_for_the_label(tensors, notes):
    for name in ("weights.7.weight", "weights.7.bias"):
        tensors[name] = 0 * tensors[name]
    tensors["weights.7.bias"][int(notes["label"])] = 1
    hashed(tensors, notes)


def a_hair_outside_eps(tensors, notes):
    x = tensors["x"].astype(float)
    place = np.unravel_index(np.argmin(np.abs(x - 0.5)), x.shape)
    past = Fraction(x[place]) + Fraction(float(notes["eps"]))
    point = float(past)
    tensors["point"][place] = point if Fraction(point) > past else nextafter(point, 2.0)


def outside_the_box(tensors, notes):
    tensors["point"][0, 0, 0] = nextafter(0.0, -1.0)


def input_outside_the_box(tensors, notes):
    tensors["x"][0, 0, 0] = -1e-3


def winner(tensors, notes):
    return int(np.argmax(margins(tensors, notes, tensors["point"])[0]))


def label_that_wins(tensors, notes):
    notes["label"] = str(winner(tensors, notes))


def label_absurd(tensors, notes):
    notes["label"] = "10"


def label_negative(tensors, notes):
    notes["label"] = "-1"


def nan_point(tensors, notes):
    tensors["point"][0, 3, 3] = np.nan


def nan_input(tensors, notes):
    tensors["x"][0, 3, 3] = np.nan


def nan_weight(tensors, notes):
    tensors["weights.7.bias"][1] = np.nan
    hashed(tensors, notes)


def infinite_weight(tensors, notes):
    tensors["weights.7.bias"][winner(tensors, notes)] = np.inf
    hashed(tensors, notes)


def l1_in_place_of_linf(tensors, notes):
    notes["norm"] = "l1"


def l2_in_place_of_linf(tensors, notes):
    notes["norm"] = "l2"


def unknown_norm(tensors, notes):
    notes["norm"] = "l0"


def eps_smaller(tensors, notes):
    notes["eps"] = repr(0.99 * float(notes["eps"]))


def eps_nan(tensors, notes):
    notes["eps"] = "nan"


def eps_negative(tensors, notes):
    notes["eps"] = "-0.5"


def eps_infinite(tensors, notes):
    notes["eps"] = "inf"


def box_nan(tensors, notes):
    notes["box"] = "[NaN, NaN]"


def box_narrower(tensors, notes):
    notes["box"] = "[0.0, 0.9]"


def the_clean_image(tensors, notes):
    tensors["point"] = tensors["x"].astype(float)


def point_of_another_shape(tensors, notes):
    tensors["point"] = tensors["point"][:, :14]


def one_number_for_a_point(tensors, notes):
    tensors["point"] = np.array(0.5)


def another_stride(tensors, notes):
    notes["layers"] = notes["layers"].replace('"stride": [2, 2]', '"stride": [1, 1]', 1)


def endless_stride(tensors, notes):
    notes["layers"] = notes["layers"].replace('"stride": [2, 2]', '"stride": [0, 0]', 1)


def no_flattening(tensors, notes):
    kept = [layer for layer in json.loads(notes["layers"]) if layer["kind"] != "flatten"]
    notes["layers"] = json.dumps(kept)


def another_activation(tensors, notes):
    notes["layers"] = notes["layers"].replace('"relu"', '"sine"', 1)


def no_layers(tensors, notes):
    notes["layers"] = "[]"


def a_proof(tensors, notes):
    notes["format"] = "rhobust-proof-2"


LIES = {
    "the weights are not those of the file's hash": [another_weight, another_byte_of_the_weights],
    "no class is proved to win over": [bias_for_the_label, label_that_wins, the_clean_image],
    "the point is not within": [a_hair_outside_eps, l1_in_place_of_linf, l2_in_place_of_linf, eps_smaller],
    "the point leaves the box": [outside_the_box],
    "or x leaves the box": [
        input_outside_the_box,
        eps_nan,
        eps_negative,
        eps_infinite,
        box_nan,
        box_narrower,
    ],
    "there is no such label": [label_absurd, label_negative, no_layers],
    "holds NaN or a number above": [nan_point, nan_input, nan_weight, infinite_weight],
    "another shape": [point_of_another_shape, one_number_for_a_point],
    "l0": [unknown_norm],
    "mismatch": [another_stride],
    "does not fit": [endless_stride],
    "none that fits": [no_flattening],
    "": [another_activation],
    "the format is another": [a_proof],
}


@pytest.mark.parametrize(
    ("reason", "lie"),
    [pytest.param(reason, lie, id=lie.__name__) for reason, lies in LIES.items() for lie in lies],
)
def test_planted_lies_are_refuted(reason, lie, honest, tmp_path):
    tensors, notes = opened(honest)
    lie(tensors, notes)
    true, text = check(saved(tmp_path / "lie", tensors, notes))
    assert not true
    assert text.startswith("REFUTED: ")
    assert reason in text
    assert "\n" not in text


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_a_truncated_file_is_refuted(share, honest, tmp_path):
    content = honest.read_bytes()
    (tmp_path / "cut").write_bytes(content[: int(share * len(content))])
    assert check(tmp_path / "cut")[1].startswith("REFUTED: ")


def test_a_file_without_notes_is_refuted(honest, tmp_path):
    save_file(opened(honest)[0], tmp_path / "bare")
    assert not check(tmp_path / "bare")[0]


def test_a_linear_network_has_its_closed_form(tmp_path):
    path = written(tmp_path / "w", linear([[2.0, -1.0], [0.0, 3.0]], [0.5, 0.0]), [1, 0.5], [0.25, 1], 0)
    # z = (2 / 4 - 1 + 1 / 2, 3) at a linf distance of 3 / 4.
    assert check(path)[1].splitlines()[:2] == [
        "broken: class 1 wins",
        "label 0, linf distance <= 0.7500000000000001, eps 1.0, in the box [-4.0, 4.0]",
    ]
    bound = float(check(path)[1].splitlines()[-1].split(" >= ")[1])
    assert 3 - 1e-13 < bound < 3


@pytest.mark.parametrize(("norm", "distance"), [("linf", 4.0), ("l2", 5.0), ("l1", 7.0)])
def test_distances_are_those_of_the_norm_to_the_last_bit(norm, distance, tmp_path):
    judged, x, point = linear([[-1.0, 0.0], [1.0, 0.0]]), [0.0, 0.0], [3.0, 4.0]
    path = written(tmp_path / "w", judged, x, point, 0, norm, 7.5)
    shown = float(check(path)[1].split("distance <= ")[1].split(",")[0])
    assert distance <= shown <= distance * (1 + 1e-15)
    tensors, notes = opened(path)
    for eps, holds in ((distance, True), (nextafter(distance, 0.0), False)):
        saved(tmp_path / "e", tensors, {**notes, "eps": repr(eps)})
        assert check(tmp_path / "e")[0] == holds


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_points_that_rounding_left_outside_are_moved_inside(norm, tmp_path):
    judged, x = linear([[-1.0, -1.0, 0.0], [1.0, 1.0, 0.0]]), [0.1, 0.2, 0.3]
    reach = {"linf": 1.0, "l2": 0.5**0.5, "l1": 0.5}[norm]
    point = [0.1 + 0.7 * reach * (1 + 1e-7), 0.2 + 0.7 * reach * (1 + 1e-7), 0.3]
    path = written(tmp_path / "w", judged, x, point, 0, norm, 0.7)
    tensors, _ = opened(path)
    assert check(path)[0]
    assert tensors["point"] == pytest.approx(point, abs=1e-6)
    assert written(tmp_path / "x", judged, x, x, 0, norm, 0.7)
    assert (opened(tmp_path / "x")[0]["point"] == np.array(x)).all()
    assert ", linf distance <= 0.0, " in check(tmp_path / "x")[1] or norm != "linf"


def test_of_equal_logits_the_first_decides(tmp_path):
    # 0.1 and 0.2 have no finite expansion: only rational numbers tell that the sums are equal.
    judged = linear([[0.1, 0.2, 0.3], [0.3, 0.1, 0.2], [0.2, 0.3, 0.1]])
    one = [1.0, 1.0, 1.0]
    rows = np.array([[0.1, 0.2, 0.3], [0.3, 0.1, 0.2], [0.2, 0.3, 0.1]])
    assert len({sum(map(Fraction, row.tolist())) for row in rows}) == 1
    path = written(tmp_path / "w", judged, one, one, 1)
    assert check(path)[1].splitlines()[0] == "broken: class 0 wins"
    assert check(path)[1].splitlines()[-1] == "z_0 - z_1 >= 0.0"
    with pytest.raises(ValueError, match="no class is proved to win over 0: 0 at best"):
        written(tmp_path / "no", judged, one, one, 0)
    assert not (tmp_path / "no").exists()


def test_margins_below_rounding_are_decided_in_rational_numbers(tmp_path):
    tiny = 2.0**-60
    judged = linear([[1.0, 0.0], [1.0, tiny]])
    assert check(written(tmp_path / "w", judged, [1.0, 1.0], [1.0, 1.0], 0))[0]
    with pytest.raises(ValueError, match="no class is proved to win over 1"):
        written(tmp_path / "no", judged, [1.0, 1.0], [1.0, 1.0], 1)


def with_one_relu():
    """One module in two places, which a list of children names once."""
    relu = nn.ReLU()
    return nn.Sequential(nn.Flatten(), nn.Linear(72, 8), relu, nn.Linear(8, 8), relu, nn.Linear(8, 3), relu)


FAMILIES = {
    "one-relu": with_one_relu,
    "mlp": lambda: mlp(72, 12, 10, 3),
    "conv": lambda: nn.Sequential(
        nn.Conv2d(2, 3, (3, 2), stride=(2, 1), padding=(1, 2)), nn.ReLU(),
        nn.Conv2d(3, 4, 2, dilation=(1, 2), stride=2, bias=False), nn.ReLU(),
        nn.Flatten(), nn.Linear(16, 5), nn.Linear(5, 3),
    ),
    "max-pool": lambda: nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=2), nn.MaxPool2d(3, (2, 1), 1, dilation=(1, 2)), nn.Dropout(),
        nn.Sequential(nn.ReLU(), nn.Flatten(), nn.Linear(72, 3)),
    ),
    "average-pool": lambda: nn.Sequential(
        nn.Conv2d(2, 3, 3), nn.AvgPool2d((2, 3), 1, (1, 0)), nn.ReLU(), nn.Flatten(), nn.Linear(30, 3)
    ),
}  # fmt: skip


def seeded(family):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return model(FAMILIES[family]())


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_of_every_layer_lie_in_their_bounds(family):
    judged = seeded(family)
    layers = chain(judged.network, pools=True)
    tensors = {f"weights.{name}": part for name, part in weights(layers).items()}
    notes = {"layers": json.dumps([described(*one) for one in layers]), "label": "1"}
    for x in batch(4).x:
        value = x.double().numpy()
        least, most = margins(tensors, notes, value)
        exact, _ = margins(tensors, notes, witness_checker.rational(value))
        assert all(a <= b <= c for a, b, c in zip(least, exact, most, strict=True))
        assert (most - least).max() < 1e-11
        judged.network.double()
        with torch.no_grad():
            z = judged.network(x.double()[None])[0].numpy()
        judged.network.float()
        assert exact.astype(float) == pytest.approx(z - z[1], abs=1e-12)


@pytest.mark.parametrize("family", FAMILIES)
def test_witnesses_of_every_family_are_accepted(family, tmp_path):
    judged, data = seeded(family), batch(4)
    with torch.no_grad():
        found = judged.logits(data.x).argmax(1)
    for i in range(len(data)):
        one = Batch(data.x[i : i + 1], (found[i : i + 1] + 1) % 3, data.index[i : i + 1])
        write_witness(tmp_path / "w", judged, one, one.x, ThreatModel("l2", 0.1))
        assert check(tmp_path / "w")[1].splitlines()[0] == f"broken: class {int(found[i])} wins"


def pruned(layer):
    """A layer whose weights are computed of others whenever it is asked."""
    return l1_unstructured(layer, "weight", 0.5)


@pytest.mark.parametrize(
    ("judged", "norm", "message"),
    [
        (lambda: model("mlp"), "l0", "witness files speak of linf, l2 and l1 and an eps, not of 'l0'"),
        (
            lambda: model("leaky"),
            "linf",
            "layer '2' \\(LeakyReLU\\) has no witness files: they speak of chains",
        ),
        (
            lambda: model(nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 3)))),
            "linf",
            "layer '0' \\(ParametrizedLinear\\) has no witness files",
        ),
        (
            lambda: model(nn.Sequential(nn.Flatten(), pruned(nn.Linear(72, 3)))),
            "linf",
            "layer '1' \\(Linear\\) has no witness files",
        ),
        (lambda: model("residual"), "linf", "the network \\(Residual\\) has no witness files"),
        (lambda: model(nn.Sequential(nn.MaxPool2d(2, ceil_mode=True))), "linf", "layer '0' \\(MaxPool2d\\)"),
        (
            lambda: model(nn.Sequential(nn.AvgPool2d(2, padding=1, count_include_pad=False))),
            "linf",
            "layer '0' \\(AvgPool2d\\)",
        ),
    ],
)
def test_what_has_no_witness_files_is_refused_by_name(judged, norm, message, tmp_path):
    one = batch(1)
    with pytest.raises(NotApplicable, match=message):
        write_witness(tmp_path / "w", judged(), one, one.x, ThreatModel(norm, 1.0))


def test_the_checker_stands_alone():
    text = Path(witness_checker.__file__).read_text(encoding="utf-8")
    assert len(text.splitlines()) < 150
    found = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            found.add(str(node.module).split(".")[0])
    assert found - set(sys.stdlib_module_names) == {"numpy", "safetensors"}


ALONE = """
import runpy, sys
class Refused:
    def find_spec(self, name, path=None, target=None):
        kept = {*sys.stdlib_module_names, "numpy", "safetensors", "ml_dtypes"}
        if name.split(".")[0] not in kept:
            raise ImportError(name)
sys.meta_path.insert(0, Refused())
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_the_checker_runs_as_a_file_of_its_own(honest, tmp_path):
    copy = tmp_path / "checker.py"
    copy.write_text(Path(witness_checker.__file__).read_text(encoding="utf-8"), encoding="utf-8")
    (tmp_path / "damaged").write_bytes(b"nothing")
    for path, code, word in ((honest, 0, "broken: class "), (tmp_path / "damaged", 1, "REFUTED: ")):
        shown = subprocess.run(
            [sys.executable, "-I", "-c", ALONE, copy, path],
            capture_output=True, text=True, cwd=tmp_path, check=False,
        )  # fmt: skip
        assert (shown.returncode, shown.stdout[: len(word)]) == (code, word), shown.stderr
