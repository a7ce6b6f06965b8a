"""Checks a proof file with numpy alone; `python proof_checker.py FILE` prints `proved` or `REFUTED: why`.

It knows nothing of how the bounds were found, and rounds outwards: a dot product of n terms in float64 is
off by at most gamma_n = n u / (1 - n u) times that of the absolute values (Higham 2002, section 3.1).
"""

import json
import sys
from hashlib import sha256
from math import inf
from pathlib import Path

import numpy as np
from numpy import ndarray, nextafter
from safetensors import safe_open
from safetensors.numpy import save

# ROUNDING (n + 3) is twice gamma_(n + 3): it covers n terms, and that the error is itself computed. UNDERFLOW
# is more than underflow adds up to, as long as no number in the file is above LARGEST.
ROUNDING, UNDERFLOW, LARGEST = 2 * 2.0**-53, 1e-250, 1e30


def claim(holds: bool | np.bool_ | ndarray, reason: str) -> None:
    """Raises ValueError where a claim does not hold: of NaN, none does."""
    if not bool(np.all(holds)):
        raise ValueError(reason)


def convolution(layer: dict, weight: ndarray, bias: ndarray, shape: tuple) -> tuple:
    """The dense matrix and bias of a cross-correlation with zero padding, and its output's shape."""
    stride, pad, dilation = layer["stride"], layer["padding"], layer["dilation"]
    out, inputs, *kernel = weight.shape
    claim(inputs == shape[0] and min(*stride, *dilation) > 0 <= min(pad), "a convolution does not fit")
    size = [
        (shape[a + 1] + 2 * pad[a] - dilation[a] * (kernel[a] - 1) - 1) // stride[a] + 1 for a in range(2)
    ]
    matrix = np.zeros((out, *size, *shape))
    for ky, kx, y, x in np.ndindex(*kernel, *size):
        i, j = y * stride[0] - pad[0] + ky * dilation[0], x * stride[1] - pad[1] + kx * dilation[1]
        if 0 <= i < shape[1] and 0 <= j < shape[2]:
            matrix[:, y, x, :, i, j] = weight[:, :, ky, kx]
    return matrix.reshape(out * size[0] * size[1], -1), np.repeat(bias, size[0] * size[1]), (out, *size)


class Proof:
    """A chain of layers, with bounds on the input of each that are proved when it is made."""

    def __init__(self, tensors: dict[str, ndarray], notes: dict[str, str]) -> None:
        for name, part in tensors.items():
            claim(np.abs(part) <= LARGEST, f"tensor '{name}' holds NaN or a number above {LARGEST:g}")
            claim("slopes" not in name or np.all((part >= 0) & (part <= 1)), f"'{name}' leaves [0, 1]")
        x, eps, box = tensors["x"].astype(float), float(notes["eps"]), json.loads(notes["box"])
        claim(0 <= eps < inf, f"eps is {eps}")
        claim(box[0] < box[1] and np.all((x >= box[0]) & (x <= box[1])), "the input leaves the box")
        lower, upper = np.clip(nextafter(x - eps, -inf), *box), np.clip(nextafter(x + eps, inf), *box)
        self.tensors, self.passes = tensors, json.loads(notes["passes"])
        self.inputs, self.shape = (lower.ravel(), upper.ravel()), x.shape
        self.ends, self.matrices = [self.inputs], list[tuple | None]()
        for i, layer in enumerate(json.loads(notes["layers"])):
            self.relu(i) if layer["kind"] == "relu" else self.affine(i, layer)

    def relu(self, i: int) -> None:
        """Checks the bounds that are claimed of layer i's input, and goes on with them."""
        lower, upper = self.ends[i]
        below, above = (self.tensors[f"{end}.{i}"].astype(float) for end in ("lower", "upper"))
        claim(below.shape == above.shape == lower.shape, f"the bounds at layer {i} have another size")
        for places, sign, said in ((below > lower, 1, below), (above < upper, -1, -above)):
            proved = self.best(sign * np.eye(len(lower))[places], i - 1, self.passes)
            claim(said[places] <= proved, f"a bound at layer {i} is not proved")
        self.ends[i], self.matrices = (below, above), [*self.matrices, None]
        self.ends.append((np.maximum(below, 0), np.maximum(above, 0)))

    def affine(self, i: int, layer: dict) -> None:
        """Bounds the output of layer i by intervals."""
        weight = self.tensors[f"weights.{layer['name']}weight"].astype(float)
        bias = self.tensors.get(f"weights.{layer['name']}bias", np.zeros(len(weight))).astype(float)
        claim(layer["kind"] in ("conv", "linear"), f"layer {i} is a '{layer['kind']}'")
        shape = bias.shape
        if layer["kind"] == "conv":
            weight, bias, shape = convolution(layer, weight, bias, self.shape)
        (lower, upper), widest = self.ends[i], np.abs(self.ends[i]).max(0)
        plus, minus = np.maximum(weight, 0), np.minimum(weight, 0)
        error = ROUNDING * (2 * len(lower) + 3) * (np.abs(weight) @ widest + np.abs(bias)) + UNDERFLOW
        self.matrices, self.shape = [*self.matrices, (weight, bias)], shape
        ends = plus @ lower + minus @ upper + bias - error, plus @ upper + minus @ lower + bias + error
        self.ends.append((nextafter(ends[0], -inf), nextafter(ends[1], inf)))

    def best(self, rows: ndarray, top: int, passes: list[str]) -> ndarray:
        """The best lower bounds on rows . output of layer `top` over sets of slopes; -inf without any."""
        return np.max([np.full(len(rows), -inf), *(self.backward(rows, top, 0, p) for p in passes)], 0)

    def backward(self, rows: ndarray, top: int, stop: int, name: str) -> ndarray:
        """Lower bounds on rows . output of `top` over the input of `stop`: slopes below, chords above."""
        total, error = np.zeros(len(rows)), np.full(len(rows), UNDERFLOW)
        for i in range(top, stop - 1, -1):
            (lower, upper), widest = self.ends[i], np.abs(self.ends[i]).max(0)
            if matrix := self.matrices[i]:
                weight, bias = matrix
                size = np.abs(weight) @ widest + np.abs(bias)
                error += ROUNDING * (len(bias) + 3) * (np.abs(rows) @ size)
                total, rows = nextafter(total + rows @ bias, -inf), rows @ weight
                continue
            bent, passing = (lower < 0) & (upper > 0), (lower >= 0).astype(float)
            chord = np.where(bent, np.minimum(upper / np.where(bent, upper - lower, 1), 1), passing)
            rise = nextafter(nextafter(1 - chord, inf) * upper, inf)
            shift = np.where(bent, np.maximum(nextafter(-chord * lower, inf), rise), 0.0)
            negative, slope = np.minimum(rows, 0), np.where(bent, self.tensors[f"slopes.{name}.{i}"], passing)
            rows = np.where(rows >= 0, rows * slope, rows * chord)
            error += ROUNDING * (len(lower) + 3) * (np.abs(rows) @ widest + np.abs(negative) @ shift)
            total = nextafter(total + negative @ shift, -inf)
        lower, upper = self.ends[stop] if stop else self.inputs
        error += ROUNDING * (2 * len(lower) + 3) * (np.abs(rows) @ np.abs((lower, upper)).max(0))
        least = np.maximum(rows, 0) @ lower + np.minimum(rows, 0) @ upper
        return nextafter(nextafter(total + least, -inf) - error * (1 + 1e-9), -inf)

    def margins(self, label: int) -> ndarray:
        """Proved lower bounds on z_label - z_j for every class j; infinite in the label's own place."""
        top, relus = len(self.matrices) - 1, [i for i, pair in enumerate(self.matrices) if pair is None]
        claim(top not in relus, "the last layer must be affine")
        identity = np.eye(len(self.ends[-1][0]))
        claim(0 <= label < len(identity), f"label {label} is no class")
        rows, final = identity[label] - identity, ["final"] * any("slopes.final" in n for n in self.tensors)
        intervals = self.backward(rows, top, max(relus, default=-1) + 1, "")
        return np.where(rows.any(1), np.maximum(intervals, self.best(rows, top, self.passes + final)), inf)


def check(path: Path, weights: Path | None = None) -> tuple[bool, str]:
    """Whether the file proves its claim, and what to print; `weights` is the file that it must speak of."""
    try:
        with safe_open(path, "np") as file:
            notes, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        own = {name[8:]: part for name, part in tensors.items() if name.startswith("weights.")}
        digest = sha256(save(own)).hexdigest()
        claim((notes["format"], notes["norm"]) == ("rhobust-proof-1", "linf"), "the format is another")
        claim(digest == notes["weights_sha256"], "the weights are not those of the file's hash")
        claim(not weights or sha256(weights.read_bytes()).hexdigest() == digest, f"not about {weights}")
        margins = Proof(tensors, notes).margins(label := int(notes["label"]))
        claim(margins > 0, f"class {np.argmin(margins)} is not excluded: its margin is {np.min(margins):.9g}")
    except Exception as error:
        return False, f"REFUTED: {type(error).__name__}: {error}".replace("ValueError: ", "")
    shown = [f"z_{label} - z_{j} >= {margin:.9g}" for j, margin in enumerate(margins) if j != label]
    threat = f"label {label} within linf eps {notes['eps']} of the input, in the box {notes['box']}"
    return True, "\n".join(["proved", threat, f"weights sha256 {digest}", notes["layers"], *shown])


if __name__ == "__main__":
    proved, text = check(Path(sys.argv[1]))
    print(text)
    sys.exit(not proved)
