"""Judging computes in float32 where float32 is asked for, whatever was allowed before and is again after."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, backends, nn

from bench import evaluate
from models.precision import CONVOLUTIONS, OTHERS, PRODUCTS, full_precision
from tests.builders import images

ENGINES = (*PRODUCTS, *CONVOLUTIONS, *OTHERS)
FULL = {"ieee", "none"}


def _allowed() -> tuple[str, ...]:
    return tuple(engine.fp32_precision for engine in ENGINES)


class Noting(nn.Module):
    """Keeps what its products would be computed in, each time that it is asked."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.seen, self.repeatable = nn.Linear(12, 3), set[str](), True

    def forward(self, x: Tensor) -> Tensor:
        self.seen |= set(_allowed())
        self.repeatable &= backends.cudnn.deterministic and not backends.cudnn.benchmark
        return self.layer(x.flatten(1))


def _by_the_newer_names() -> None:
    for engine in ENGINES:
        engine.fp32_precision = "tf32"


def _by_the_older_names() -> None:
    torch.set_float32_matmul_precision("medium")
    backends.cudnn.allow_tf32 = True


def _by_both() -> None:
    """After which the older names of the flags can no longer be read."""
    backends.cudnn.allow_tf32 = True
    backends.cudnn.conv.fp32_precision = "ieee"


@pytest.fixture(params=[_by_the_newer_names, _by_the_older_names, _by_both])
def before(request: pytest.FixtureRequest) -> Iterator[tuple[str, ...]]:
    request.param()
    backends.cudnn.benchmark = True
    yield _allowed()
    backends.cudnn.benchmark = False
    for engine in OTHERS:
        engine.fp32_precision = "none"
    for engine in CONVOLUTIONS:
        engine.fp32_precision = "tf32"
    backends.cudnn.allow_tf32 = True
    torch.set_float32_matmul_precision("highest")


def test_attacks_and_certificates_see_full_precision(before: tuple[str, ...]) -> None:
    network, x = Noting(), images(6)
    y = network(x).argmax(1)
    assert "tf32" in network.seen
    assert not network.repeatable
    network.seen.clear()
    network.repeatable = True
    evaluate(network, x, y, eps=0.1, attacks=["pgd"], certificates=["ibp", "crown"])
    assert network.seen
    assert network.seen <= FULL
    assert network.repeatable
    assert _allowed() == before


def test_what_was_allowed_returns_after_an_error_too(before: tuple[str, ...]) -> None:
    with pytest.raises(ZeroDivisionError), full_precision():
        raise ZeroDivisionError
    assert _allowed() == before
    assert backends.cudnn.benchmark
    assert not backends.cudnn.deterministic


def test_the_older_names_of_the_flags_can_still_be_read() -> None:
    was = backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
    with full_precision():
        assert not backends.cudnn.allow_tf32
        assert torch.get_float32_matmul_precision() == "highest"
        assert not backends.cuda.matmul.allow_tf32
    assert was == (backends.cudnn.allow_tf32, torch.get_float32_matmul_precision())
