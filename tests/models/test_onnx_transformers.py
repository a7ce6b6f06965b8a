"""Attention, rotated positions and sampled images from ONNX: their numbers, bounds, named refusals."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx.reference import ReferenceEvaluator

from certify.crown import Crown
from models.errors import UserError
from models.onnx.reader import convert
from models.randomness import Randomness
from models.threat import ThreatModel
from tests.certify.builders import batch, model
from tests.models.onnx_cases import BOUNDED, one
from tests.models.onnx_files import File
from tests.models.onnx_transformer_cases import CASES, GRID, HEADS, OTHERS, PLANE, attention, rotated
from tests.models.test_onnx_operators import check_bounds, compare, points


@pytest.mark.parametrize("case", CASES)
def test_an_operator_is_onnxruntimes_and_bounded_or_refused_by_name(case: str, tmp_path: Path) -> None:
    file, opset, refusal = CASES[case]
    network = compare(file.write(tmp_path / "net.onnx", opset))
    if refusal is BOUNDED:
        check_bounds(network)
        return
    judged = model(network.network, classes=network.outputs)
    data = batch(2, network.shape, classes=network.outputs)
    with pytest.raises(UserError, match=rf"operation '{refusal}'"):
        Crown().run(judged, data, ThreatModel("linf", 0.1), Randomness(0))


@pytest.mark.parametrize("case", OTHERS)
def test_what_onnxruntime_does_not_run_is_that_of_onnxs_own_evaluator_and_bounded(case: str) -> None:
    file, opset = OTHERS[case]
    if opset > onnx.defs.onnx_opset_version():
        pytest.skip(f"this ONNX ends at opset {onnx.defs.onnx_opset_version()}")
    content = file.model(opset)
    network, judge = convert(content), ReferenceEvaluator(content)
    x = points(5, *network.shape).float()
    theirs = [judge.run(None, {"x": sample[None].numpy()})[0].reshape(-1) for sample in x]
    with torch.no_grad():
        assert torch.allclose(network.network(x), torch.from_numpy(np.stack(theirs)), atol=1e-6)
    check_bounds(network)


def cached() -> onnx.ModelProto:
    """Attention that goes on from keys and values of before."""
    file = File(1, 2, 3, 4)
    past = file.constant(np.zeros((1, 2, 1, 4)))
    file.add("Attention", "x", "x", "x", "", past, past)
    return file.model(23)


def masked_by_a_value() -> onnx.ModelProto:
    file = File(1, 2, 3, 3)
    file.add("Attention", "x", "x", "x", "x")
    return file.model(23)


REFUSED = {
    "a cache": (cached(), "Attention .*past keys.*without a cache"),
    "a mask that is a value": (masked_by_a_value(), "Attention .*no constant as input 3"),
    "a mask of fewer keys": (
        attention(2, 3, 5, mask=np.zeros((3, 2))).model(23), r"Attention .*shape \(3, 2\) for 3 keys",
    ),
    "all keys masked": (
        attention(2, 3, 5, mask=np.array([[True] * 3, [False] * 3, [True] * 3])).model(23),
        "Attention .*all keys of a query",
    ),
    "heads that do not divide": (
        attention(3, 5, q_num_heads=3, kv_num_heads=3).model(23), "Attention .*q_num_heads' by which 4",
    ),
    "no heads": (attention(3, 5).model(23), "Attention .*no 'q_num_heads'"),
    "uneven sharing": (
        attention(3, 5, widths=(6, 4, 4), q_num_heads=3, kv_num_heads=2).model(23),
        "Attention .*3 heads of queries on 2",
    ),
    "angles of other tokens": (rotated(2, 3, 4, pairs=2, tokens=5).model(23), "RotaryEmbedding .*3 tokens"),
    "no heads to rotate": (rotated(3, 8, pairs=2, tokens=3).model(23), "RotaryEmbedding .*num_heads"),
    "more pairs than there are": (
        rotated(2, 3, 4, pairs=3, tokens=3).model(23), "RotaryEmbedding .*malformed",
    ),
    "sampled by splines": (
        one("GridSample", GRID, shape=PLANE, mode="spline").model(20), "GridSample .*mode 'spline'",
    ),
    "sampled beyond a wrap": (
        one("GridSample", GRID, shape=PLANE, padding_mode="wrap").model(20), "GridSample .*padding 'wrap'",
    ),
    "a norm of order 0": (one("LpPool", shape=PLANE, kernel_shape=[2, 2], p=0).model(18), "LpPool .*order 0"),
    "a dilated norm": (
        one("LpPool", shape=PLANE, kernel_shape=[2, 2], dilations=[2, 1]).model(18), "LpPool .*dilation",
    ),
    "samples padded": (one("CenterCropPad", [2], shape=PLANE, axes=[0]).model(18), "CenterCropPad .*samples"),
    "lengths that are values": (
        one("ReverseSequence", shape=(1, 3)).model(10), "ReverseSequence .*malformed|no constant as input 1",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_understood_is_refused_by_name(case: str) -> None:
    content, message = REFUSED[case]
    with pytest.raises(UserError, match=message) as refusal:
        convert(content)
    assert "\n" not in str(refusal.value)


def test_heads_are_those_of_the_attribute() -> None:
    """The same products by one head and by two differ: the reader does not lose the number."""
    one_head = convert(attention(3, 5, q_num_heads=1, kv_num_heads=1).model(23)).network
    two = convert(attention(3, 5, **HEADS).model(23)).network
    x = points(4, 3, 5).float()
    assert not torch.allclose(one_head(x), two(x), atol=1e-3)
