"""Arrays as people hold them: the same samples from each, and one line for what is no batch of images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from bench.inputs import read_box, read_inputs
from models.errors import UserError
from models.threat import UNIT_BOX, Box

BYTES = torch.randint(0, 256, (9, 1, 4, 4), generator=torch.Generator().manual_seed(0)).byte()
X, Y = BYTES.float() / 255, torch.arange(9) % 3
NETWORK = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))

SAME: dict[str, tuple[Any, Any]] = {
    "arrays": (X.numpy(), Y.numpy()),
    "float64": (X.double().numpy(), Y.numpy().astype(np.float64)),
    "labels in a list": (X, Y.tolist()),
    "lists of tensors": (list(X), list(Y)),
    "lists of arrays": ([image.numpy() for image in X], tuple(Y.tolist())),
    "bytes": (BYTES, Y),
    "bytes in an array": (BYTES.numpy(), Y.int()),
    "other strides": (X.transpose(2, 3).contiguous().transpose(2, 3), Y),
    "another byte order": (X.numpy().astype(">f4"), Y.numpy().astype(">i4")),
    "with a gradient": (X.clone().requires_grad_(True), Y),
}


@pytest.mark.parametrize("case", SAME)
def test_the_same_samples_in_every_shape(case: str) -> None:
    model, batch = read_inputs(NETWORK, *SAME[case], UNIT_BOX)
    assert torch.allclose(batch.x, X, atol=1e-7)
    assert batch.x.is_contiguous()
    assert not batch.x.requires_grad
    assert batch.y.tolist() == Y.tolist()
    assert batch.index.tolist() == list(range(9))
    assert model.num_classes == 3


def test_bytes_in_their_own_box_and_bytes_that_are_zero_or_one_stay() -> None:
    assert float(read_inputs(NETWORK, BYTES, Y, Box(0, 255))[1].x.max()) == float(BYTES.max())
    ones = (BYTES > 99).byte()
    assert torch.equal(read_inputs(NETWORK, ones, Y, UNIT_BOX)[1].x, ones.float())


MISTAKES: dict[str, tuple[Callable[[], object], str]] = {
    "model": (lambda: read_inputs("lenet", X, Y, UNIT_BOX), "the model is a str: pass a torch.nn.Module"),  # type: ignore[arg-type]
    "function": (lambda: read_inputs(torch.relu, X, Y, UNIT_BOX), "pass a torch.nn.Module"),  # type: ignore[arg-type]
    "one hot": (lambda: read_inputs(NETWORK, X, np.eye(3)[Y], UNIT_BOX), "an image, labels.argmax(1)"),
    "column": (lambda: read_inputs(NETWORK, X, Y[:, None], UNIT_BOX), "an image, labels.reshape(-1)"),
    "text": (lambda: read_inputs(NETWORK, X, ["a"] * 9, UNIT_BOX), "the labels are no numbers"),
    "halves": (lambda: read_inputs(NETWORK, X, Y + 0.5, UNIT_BOX), "labels must be whole numbers"),
    "lengths": (lambda: read_inputs(NETWORK, X, Y[:4], UNIT_BOX), "9 inputs but 4 labels"),
    "range": (lambda: read_inputs(NETWORK, X, Y + 1, UNIT_BOX), "labels span 1..3 but the model has 3"),
    "negative": (lambda: read_inputs(NETWORK, X, Y - 1, UNIT_BOX), "labels span -1..1"),
    "none": (lambda: read_inputs(NETWORK, X[:0], Y[:0], UNIT_BOX), "no images to evaluate"),
    "an empty list": (lambda: read_inputs(NETWORK, [], [], UNIT_BOX), "no images to evaluate"),
    "infinite": (lambda: read_inputs(NETWORK, X, Y + float("inf"), UNIT_BOX), "labels must be whole numbers"),
    "huge": (lambda: read_inputs(NETWORK, X, Y + 1e30, UNIT_BOX), "labels reach 1e+30"),
    "complex": (lambda: read_inputs(NETWORK, X + 0j, Y, UNIT_BOX), "pass a dense tensor of real numbers"),
    "complex labels": (lambda: read_inputs(NETWORK, X, Y + 0j, UNIT_BOX), "the labels are torch.complex64"),
    "sparse": (lambda: read_inputs(NETWORK, X.to_sparse(), Y, UNIT_BOX), "pass a dense tensor"),
    "meta": (lambda: read_inputs(NETWORK, X.to("meta"), Y, UNIT_BOX), "the images are on the meta device"),
    "one image": (lambda: read_inputs(NETWORK, X[0, 0, 0], Y[:1], UNIT_BOX), "one image as x[None]"),
    "ragged": (lambda: read_inputs(NETWORK, [X[0], X[0, :, 1:]], Y[:2], UNIT_BOX), "no common shape"),
    "NaN": (lambda: read_inputs(NETWORK, X / X * 0 / 0, Y, UNIT_BOX), "NaN or infinity"),
    "outside": (lambda: read_inputs(NETWORK, X * 255, Y, UNIT_BOX), "the box is [0, 1]: rescale"),
    "size": (lambda: read_inputs(NETWORK, X[:, :, 1:], Y, UNIT_BOX), "needs 16 inputs, the images have 12"),
    "box": (lambda: read_box(None), "box is two numbers, like (0, 1), not None"),
    "three ends": (lambda: read_box((0, 1, 2)), "box is two numbers"),
    "box of words": (lambda: read_box(("a", "b")), "box is two numbers"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_one_line(case: str) -> None:
    make, message = MISTAKES[case]
    with pytest.raises(UserError) as mistake:
        make()
    assert message in str(mistake.value)
    assert "\n" not in str(mistake.value)
