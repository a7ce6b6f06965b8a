"""Checks a witness file with numpy alone; `python witness_checker.py FILE` prints `broken` or `REFUTED`."""

import json
import sys
from fractions import Fraction
from hashlib import sha256
from math import inf, nextafter, sqrt
from pathlib import Path

import numpy as np
from numpy import ndarray
from safetensors import safe_open
from safetensors.numpy import save

FORMAT = "rhobust-witness-1"

# ROUNDING (n + 3) is twice gamma_(n + 3) (Higham 2002, 3.1): it covers n terms of a dot product, and that the
# error is itself computed. UNDERFLOW is more than underflow adds up to while no number is above LARGEST.
ROUNDING, UNDERFLOW, LARGEST = 2 * 2.0**-53, 1e-250, 1e30

# As many multiplications in one layer are repeated in rational numbers, where rounding hides a tie.
RATIONAL = 2e6

rational = np.vectorize(Fraction, otypes=[object])


def claim(holds: bool | np.bool_ | ndarray, reason: str) -> None:
    """Raises ValueError where a claim does not hold: of NaN, none does."""
    if not bool(np.all(holds)):
        raise ValueError(reason)


def affine(weight: ndarray, bias: ndarray, value: ndarray, error: ndarray) -> tuple[ndarray, ndarray]:
    """weight @ value + bias, and a bound on how far that is from the truth: none in rational numbers."""
    if value.dtype == object:
        claim(weight.size * value.shape[1] <= RATIONAL, "a tie within rounding, in too large a network")
        return rational(weight) @ value + rational(bias)[:, None], np.zeros((len(weight), value.shape[1]))
    share = ROUNDING * (weight.shape[1] + 3)
    size = np.abs(weight) @ (error + share * np.abs(value)) + share * np.abs(bias)[:, None]
    return weight @ value + bias[:, None], size * (1 + share) + UNDERFLOW


def windows(part: ndarray, layer: dict, kernel: tuple[int, ...], fill: float) -> ndarray:
    """What each place of a window sees: (channels, places in the window, height, width)."""
    step, pad, gap = layer["stride"], layer["padding"], layer["dilation"]
    claim(part.ndim == 3 and min(*step, *gap) > 0 <= min(pad), "a window does not fit")
    part = np.pad(part, ((0, 0), *((one, one) for one in pad)), constant_values=fill)
    reach = [gap[a] * (kernel[a] - 1) + 1 for a in (0, 1)]
    seen = np.lib.stride_tricks.sliding_window_view(part, reach, (1, 2))
    seen = seen[:, :: step[0], :: step[1], :: gap[0], :: gap[1]].transpose(0, 3, 4, 1, 2)
    return seen.reshape(len(part), -1, *seen.shape[3:])


def passed(layer: dict, tensors: dict[str, ndarray], value: ndarray, error: ndarray) -> tuple[ndarray, ...]:
    """The output of one layer and how far it may be from the truth, from those of its input."""
    kind = layer["kind"]
    if kind == "flatten":
        return value.ravel(), error.ravel()
    if kind == "relu":
        return np.maximum(value, 0), error
    if kind == "max-pool":
        seen, off = (windows(p, layer, layer["kernel"], fill) for p, fill in ((value, -inf), (error, 0.0)))
        return seen.max(1), off.max(1)
    if kind == "average-pool":
        seen, off = (windows(part, layer, layer["kernel"], 0.0) for part in (value, error))
        share = ROUNDING * ((count := seen.shape[1]) + 3)
        return seen.sum(1) / count, (off + share * np.abs(seen)).sum(1) / count * (1 + share) + UNDERFLOW
    weight = tensors[f"weights.{layer['name']}weight"].astype(float)
    bias = tensors.get(f"weights.{layer['name']}bias", np.zeros(len(weight))).astype(float)
    fits = value.ndim == 1 if kind == "linear" else kind == "conv" and weight.shape[1] == len(value)
    claim(fits and bias.shape == (len(weight),), f"a layer '{kind}' is none that fits")
    if kind == "linear":
        return tuple(part[:, 0] for part in affine(weight, bias, value[:, None], error[:, None]))
    seen, off = (windows(part, layer, weight.shape[2:], 0.0) for part in (value, error))
    columns = (part.reshape(weight[0].size, -1) for part in (seen, off))
    found = affine(weight.reshape(len(weight), -1), bias, *columns)
    return tuple(part.reshape(len(weight), *seen.shape[2:]) for part in found)


def margins(tensors: dict[str, ndarray], notes: dict, value: ndarray) -> tuple[ndarray, ndarray]:
    """z_j - z_label of every class j at a point, from below and from above; the same in rational numbers."""
    error = np.zeros(value.shape)
    for layer in json.loads(notes["layers"]):
        value, error = passed(layer, tensors, value, error)
        claim((np.abs(value) <= LARGEST) & (error <= LARGEST), f"{layer['kind']} ends beyond {LARGEST:g}")
    claim(value.ndim == 1 and 0 <= (label := int(notes["label"])) < len(value), "there is no such label")
    apart = value - value[label]
    if value.dtype == object:
        return apart, apart
    off = 2 * (error + error[label] + ROUNDING * np.abs(apart))
    return apart - off, apart + off


def witnessed(tensors: dict[str, ndarray], notes: dict[str, str]) -> list[str]:
    """What a true witness proves, in lines; raises ValueError for others."""
    for name, part in tensors.items():
        claim(np.abs(part) <= LARGEST, f"tensor '{name}' holds NaN or a number above {LARGEST:g}")
    x, point, eps = tensors["x"].astype(float), tensors["point"].astype(float), float(notes["eps"])
    low, high = json.loads(notes["box"])
    claim((0 <= eps < inf) & (x >= low) & (x <= high), f"eps is {eps}, or x leaves the box")
    claim((point >= low) & (point <= high), "the point leaves the box")
    claim(x.shape == point.shape, "the point has another shape than the input")
    power = {"linf": 1, "l2": 2, "l1": 1}[norm := notes["norm"]]
    moved = np.abs(rational(x) - rational(point)) ** power
    away = moved.max() if norm == "linf" else moved.sum()
    claim(away <= Fraction(eps) ** power, f"the point is not within {norm} eps {eps!r} of x")
    label, (least, most) = int(notes["label"]), margins(tensors, notes, point)
    rivals = np.arange(len(least)) != label
    if least[rivals].max() <= 0 <= most[rivals].max():
        least = margins(tensors, notes, rational(point))[0]
    # Of equal logits the first decides.
    wins = rivals & ((least > 0) | ((least >= 0) & (np.arange(len(least)) < label)))
    claim(wins.any(), f"no class is proved to win over {label}: {float(least[rivals].max()):.9g} at best")
    winner = max(np.flatnonzero(wins), key=lambda j: least[j])
    reach = nextafter(sqrt(nextafter(away, inf)) if power == 2 else away, inf) if away else 0.0
    threat = f"label {label}, {norm} distance <= {reach!r}, eps {eps!r}, in the box {notes['box']}"
    proved = {j: nextafter(least[j], -inf) if least[j] else 0.0 for j in np.flatnonzero(wins)}
    shown = [f"z_{j} - z_{label} >= {margin!r}" for j, margin in proved.items()]
    return [f"broken: class {winner} wins", threat, notes["layers"], *shown]


def check(path: Path, weights: Path | None = None) -> tuple[bool, str]:
    """Whether the file holds a true witness, and what to print; `weights` is the file it must speak of."""
    try:
        with safe_open(path, "np") as file:
            notes, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        digest = sha256(save({n[8:]: part for n, part in tensors.items() if n[:8] == "weights."})).hexdigest()
        claim(notes["format"] == FORMAT, "the format is another")
        claim(digest == notes["weights_sha256"], "the weights are not those of the file's hash")
        claim(not weights or sha256(weights.read_bytes()).hexdigest() == digest, f"not about {weights}")
        first, threat, *rest = witnessed(tensors, notes)
    except Exception as error:
        return False, f"REFUTED: {type(error).__name__}: {error}".replace("ValueError: ", "")
    return True, "\n".join([first, threat, f"weights sha256 {digest}", *rest])


if __name__ == "__main__":
    true, text = check(Path(sys.argv[1]))
    sys.exit(print(text) or not true)
