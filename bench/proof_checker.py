"""Checks a proof file with numpy alone; `python proof_checker.py FILE` prints `proved` or `REFUTED: why`."""

import json
import sys
from hashlib import sha256
from pathlib import Path

import numpy as np
from numpy import inf, ndarray, nextafter
from safetensors import safe_open
from safetensors.numpy import save

# ROUNDING (n + 3) is twice gamma_(n + 3) (Higham 2002, 3.1): it covers n terms of a dot product, and that the
# error is itself computed. UNDERFLOW is more than underflow adds up to while no number is above LARGEST.
ROUNDING, UNDERFLOW, LARGEST = 2 * 2.0**-53, 1e-250, 1e30


def claim(holds: bool | np.bool_ | ndarray, reason: str) -> None:
    """Raises ValueError where a claim does not hold: of NaN, none does."""
    if not bool(np.all(holds)):
        raise ValueError(reason)


def convolution(layer: dict, weight: ndarray, bias: ndarray, shape: tuple) -> tuple:
    """The dense matrix and bias of a cross-correlation with zero padding, and its output's shape."""
    step, pad, gap = layer["stride"], layer["padding"], layer["dilation"]
    out, inputs, *kernel = weight.shape
    claim(inputs == shape[0] and min(*step, *gap) > 0 <= min(pad), "a convolution does not fit")
    size = [(shape[a + 1] + 2 * pad[a] - gap[a] * (kernel[a] - 1) - 1) // step[a] + 1 for a in (0, 1)]
    matrix = np.zeros((out, *size, *shape))
    for ky, kx, y, x in np.ndindex(*kernel, *size):
        i, j = y * step[0] - pad[0] + ky * gap[0], x * step[1] - pad[1] + kx * gap[1]
        if 0 <= i < shape[1] and 0 <= j < shape[2]:
            matrix[:, y, x, :, i, j] = weight[:, :, ky, kx]
    return matrix.reshape(out * size[0] * size[1], -1), np.repeat(bias, size[0] * size[1]), (out, *size)


def covers(signs: ndarray) -> bool:
    """Whether every choice of phases agrees with some row of signs: 1 is active, -1 inactive, 0 either."""
    if not len(signs) or not signs.any(1).all():
        return len(signs) > 0
    i = np.abs(signs).sum(0).argmax()
    return all(covers(np.where(np.arange(signs.shape[1]) == i, 0, signs[signs[:, i] != s])) for s in (1, -1))


class Proof:
    """A chain of layers, with bounds on the input of each that are proved when it is made."""

    def __init__(self, tensors: dict[str, ndarray], notes: dict[str, str]) -> None:
        for name, part in tensors.items():
            claim(np.abs(part) <= LARGEST, f"tensor '{name}' holds NaN or a number above {LARGEST:g}")
            claim("slopes" not in name or (part >= 0) & (part <= 1), f"'{name}' leaves [0, 1]")
        x, eps, box = tensors["x"].astype(float), float(notes["eps"]), json.loads(notes["box"])
        claim(0 <= eps < inf and np.all((x >= box[0]) & (x <= box[1])), f"eps is {eps}, or x leaves the box")
        lower, upper = np.clip(nextafter(x - eps, -inf), *box), np.clip(nextafter(x + eps, inf), *box)
        self.tensors, self.passes = tensors, set(json.loads(notes["passes"])) - {"leaf"}
        self.inputs, self.shape = (lower.ravel(), upper.ravel()), x.shape
        self.ends, self.matrices = [self.inputs], list[tuple | None]()
        for i, layer in enumerate(json.loads(notes["layers"])):
            self.relu(i) if layer["kind"] == "relu" else self.affine(i, layer)

    def relu(self, i: int) -> None:  # checks the bounds that are claimed of its input, and goes on with them
        lower, upper = self.ends[i]
        below, above = (self.tensors[f"{end}.{i}"].astype(float) for end in ("lower", "upper"))
        claim(below.shape == above.shape == lower.shape, f"the bounds at layer {i} have another size")
        for places, sign, said in ((below > lower, 1, below), (above < upper, -1, -above)):
            claim(said[places] <= self.best(sign * np.eye(len(lower))[places], i - 1), f"bound {i} fails")
        self.ends[i], self.matrices = (below, above), [*self.matrices, None]
        self.ends.append((np.maximum(below, 0), np.maximum(above, 0)))

    def affine(self, i: int, layer: dict) -> None:  # bounds its output by intervals
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

    def best(self, rows: ndarray, top: int) -> ndarray:
        """The best lower bounds on rows . output of layer `top`, over intervals and over sets of slopes."""
        start = max((i + 1 for i in range(top) if not self.matrices[i]), default=0)
        passes = [(start, ""), *((0, name) for name in self.passes)]
        return np.max([self.backward(rows, top, stop, name) for stop, name in passes], 0)

    def backward(self, rows: ndarray, top: int, stop: int, name: str) -> ndarray:
        """Lower bounds on rows . output of `top` over the input of `stop`: slopes below, chords above."""
        total, error = np.zeros(len(rows)), np.full(len(rows), UNDERFLOW)
        for i in range(top, stop - 1, -1):
            (lower, upper), widest = self.ends[i], np.abs(self.ends[i]).max(0)
            if matrix := self.matrices[i]:
                weight, bias = matrix
                error += ROUNDING * (len(bias) + 3) * np.abs(rows) @ (np.abs(weight) @ widest + np.abs(bias))
                total, rows = nextafter(total + rows @ bias, -inf), rows @ weight
                continue
            phase = self.tensors[f"phase.{i}"] if name == "leaf" else np.zeros(rows.shape)
            claim(phase.shape == rows.shape, f"the phases at layer {i} have another size")
            bent, passing = (lower < 0) & (upper > 0) & (phase == 0), np.where(phase, phase > 0, lower >= 0)
            chord = np.where(bent, np.minimum(upper / np.where(bent, upper - lower, 1), 1), passing)
            rise = nextafter(nextafter(1 - chord, inf) * upper, inf)
            shift = np.where(bent, np.maximum(nextafter(-chord * lower, inf), rise), 0.0)
            negative, slope = np.minimum(rows, 0), np.where(bent, self.tensors[f"slopes.{name}.{i}"], passing)
            rows, drop = np.where(rows >= 0, rows * slope, rows * chord), (negative * shift).sum(1)
            error += ROUNDING * (len(lower) + 3) * ((np.abs(rows) + np.abs(phase)) @ widest - drop)
            total, rows = nextafter(total + drop, -inf), rows - phase
        lower, upper = self.ends[stop] if stop else self.inputs
        error += ROUNDING * (2 * len(lower) + 3) * (np.abs(rows) @ np.abs((lower, upper)).max(0))
        least = np.maximum(rows, 0) @ lower + np.minimum(rows, 0) @ upper
        return nextafter(nextafter(total + least, -inf) - error * (1 + 1e-9), -inf)

    def margins(self, label: int) -> ndarray:
        """Proved lower bounds on z_label - z_j for every class j; infinite in the label's own place."""
        top, relus = len(self.matrices) - 1, [i for i, pair in enumerate(self.matrices) if pair is None]
        one, of = np.eye(len(self.ends[-1][0])), self.tensors["class"].astype(int)
        claim(top not in relus and 0 <= label < len(one), f"the last layer has no class {label}")
        found, least = self.best(rows := one[label] - one, top), self.backward(rows[of], top, 0, "leaf")
        for j in np.unique(of):
            phases = np.hstack([self.tensors[f"phase.{i}"] for i in relus])[of == j]
            claim(covers(np.sign(phases)), f"the leaves of class {j} leave out some phases")
            found[j] = max(found[j], least[of == j].min())
        return np.where(rows.any(1), found, inf)


def check(path: Path, weights: Path | None = None) -> tuple[bool, str]:
    """Whether the file proves its claim, and what to print; `weights` is the file that it must speak of."""
    try:
        with safe_open(path, "np") as file:
            notes, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        digest = sha256(save({n[8:]: part for n, part in tensors.items() if n[:8] == "weights."})).hexdigest()
        claim((notes["format"], notes["norm"]) == ("rhobust-proof-2", "linf"), "the format is another")
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
    sys.exit(print(text) or not proved)
