"""Transformers: what torch computes, bounds that close as eps goes to zero, sizes that a network asks for."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from certify.base import CERTIFIERS
from certify.graph import trace
from models.discover import import_modules
from models.errors import UserError
from models.randomness import Randomness
from models.threat import ThreatModel
from models.torchvision_operators import import_torchvision
from tests.certify.builders import Attentive, batch, margins_of, model, smallest_margins

import_modules("certify")
DOUBLE = torch.float64


class Spelled(nn.Module):
    """Attention as most implementations write it: sizes by unpacking, the samples put second."""

    def __init__(self, heads: int = 2, width: int = 8) -> None:
        super().__init__()
        self.heads, self.mixed, self.last = heads, nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        n, count, width = x.shape
        torch._assert(width % self.heads == 0, "heads must share the width")
        parts = self.mixed(x).reshape(n, count, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        query, key, value = parts.unbind(0)
        scores = query @ key.transpose(-2, -1) * (width // self.heads) ** -0.5
        return self.last((scores.softmax(dim=-1) @ value).transpose(1, 2).reshape(n, count, width))


class Heads(nn.Module):
    """nn.MultiheadAttention with three different inputs, and its weights left alone."""

    def __init__(self, **settings: bool) -> None:
        super().__init__()
        self.mixed = nn.MultiheadAttention(8, 2, batch_first=True, **settings)

    def forward(self, x: Tensor) -> Tensor:
        mixed, _ = self.mixed(x, torch.sin(x), x.abs())
        return mixed + self.mixed(x, x, x, need_weights=False)[0][:, :1]


def agrees(network: nn.Module, *shape: int) -> None:
    network = network.double().eval()
    x = torch.randn(4, *shape, generator=torch.Generator().manual_seed(0), dtype=DOUBLE)
    assert torch.allclose(trace(network, like=x).values(x)[-1], network(x), atol=1e-12)


def test_numbers_drawn_by_a_size_are_no_constants() -> None:
    class Noisy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.rand(x.shape[1])

    with pytest.raises(UserError, match="rand"):
        trace(Noisy(), like=torch.zeros(1, 4))


@pytest.mark.parametrize("heads", [1, 2, 4])
def test_attention_spelled_out_is_torchs(heads: int) -> None:
    agrees(Spelled(heads), 5, 8)


@pytest.mark.parametrize("bias", [True, False])
def test_multihead_attention_is_torchs(bias: bool) -> None:
    agrees(Heads(bias=bias), 3, 8)


def test_keys_and_values_of_other_sizes() -> None:
    class Crossed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mixed = nn.MultiheadAttention(8, 2, kdim=4, vdim=3, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.mixed(x, x[:, :, :4], x[:, :, 1:4], need_weights=False)[0]

    agrees(Crossed(), 5, 8)


def test_a_vision_transformer_of_torchvision_is_bounded() -> None:
    import_torchvision("torchvision.models")
    from torchvision.models import VisionTransformer

    torch.manual_seed(0)
    network = VisionTransformer(
        image_size=6, patch_size=3, num_layers=2, num_heads=2, hidden_dim=8, mlp_dim=12, num_classes=3
    )
    network.conv_proj = nn.Conv2d(2, 8, 3, 3)
    for parameter in (network.heads.head.weight, network.encoder.pos_embedding, network.class_token):
        nn.init.normal_(parameter)
    judged, data, threat = model(network), batch(2), ThreatModel("linf", 0.003)
    least, count = smallest_margins(judged, data, threat)
    assert count > 100
    lower = CERTIFIERS["crown"]().run(judged, data, threat, Randomness(0)).lower
    others = torch.arange(3) != data.y[:, None]
    assert (lower <= least + 1e-9)[others].all()
    assert (lower >= least - 0.02)[others].all()


def test_bounds_of_a_transformer_close_with_eps() -> None:
    """Errors of first order are none: the distance to the margins found falls faster than eps."""
    judged, data = model(Attentive()), batch(3)
    others = torch.arange(3) != data.y[:, None]
    gaps = []
    for eps in (4e-3, 1e-3, 2.5e-4):
        threat = ThreatModel("linf", eps)
        least, _ = smallest_margins(judged, data, threat, steps=20)
        lower = CERTIFIERS["crown"]().run(judged, data, threat, Randomness(0)).lower
        gaps.append(float((least - lower)[others].amax()))
    assert gaps[1] <= gaps[0] / 6
    assert gaps[2] <= gaps[1] / 6


def test_a_class_token_is_not_mixed_up_between_samples() -> None:
    judged, data = model(Attentive()), batch(5)
    graph = trace(judged, like=data.x[:1])
    assert torch.allclose(graph.values(data.x)[-1], judged.logits(data.x), atol=1e-5)
    together = CERTIFIERS["crown"]().run(judged, data, ThreatModel("linf", 0.01), Randomness(0)).lower
    alone = CERTIFIERS["crown"]().run(judged, data[3:4], ThreatModel("linf", 0.01), Randomness(0)).lower
    assert torch.allclose(together[3:4], alone, atol=1e-9)


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_encoders_of_torch_are_what_they_compute(first: bool, activation: str) -> None:
    torch.manual_seed(1)
    layer = nn.TransformerEncoderLayer(
        8, 2, 12, dropout=0.3, activation=activation, batch_first=True, norm_first=first
    )
    agrees(nn.Sequential(layer), 5, 8)
    agrees(layer, 5, 8)
    whole = nn.TransformerEncoder(layer, 2, norm=nn.LayerNorm(8), enable_nested_tensor=False)
    agrees(nn.Sequential(nn.Linear(6, 8), whole), 5, 6)


def test_an_encoder_with_a_mask_is_refused() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x, src_mask=torch.zeros(5, 5))

    with pytest.raises(UserError, match="encoder with a mask"):
        trace(Masked().eval())


@pytest.mark.parametrize(("count", "fits"), [(40, True), (70, False)])
def test_attention_over_too_many_tokens_is_refused_before_memory_runs_out(count: int, fits: bool) -> None:
    x = torch.zeros(1, count, 8)
    graph = trace(nn.Sequential(Spelled(2)), like=x)
    if fits:
        assert graph.values(x)[-1].shape == x.shape
    else:
        with pytest.raises(UserError, match="dozens of tokens"):
            graph.values(x)


def test_a_wide_softmax_at_the_end_of_many_classes_fits() -> None:
    graph = trace(nn.Sequential(nn.Softmax(1), nn.Linear(500, 2)))
    assert graph.values(torch.zeros(2, 500))[-1].shape == (2, 2)


class Weights(nn.Module):
    def __init__(self, **settings: object) -> None:
        super().__init__()
        self.settings = settings
        self.mixed = nn.MultiheadAttention(8, 2, batch_first=not settings.pop("sequence_first", False))

    def forward(self, x: Tensor) -> Tensor:
        mixed, weights = self.mixed(x, x, x, **self.settings)
        return mixed if self.settings else weights


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (Weights(), "need_weights=False"),
        (Weights(sequence_first=True, need_weights=False), "batch_first=True"),
        (Weights(attn_mask=torch.zeros(5, 5)), "mask"),
    ],
)
def test_what_is_not_understood_of_attention_says_why(network: nn.Module, message: str) -> None:
    with pytest.raises(UserError, match=message):
        trace(network.eval())


def test_dropout_in_train_mode_is_refused() -> None:
    network = nn.MultiheadAttention(8, 2, dropout=0.5, batch_first=True).train()

    class Around(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mixed = network

        def forward(self, x: Tensor) -> Tensor:
            return self.mixed(x, x, x, need_weights=False)[0]

    with pytest.raises(UserError, match=r"call model\.eval"):
        trace(Around())


def test_margins_of_a_point_are_its_own() -> None:
    judged, data = model(Attentive()), batch(3)
    with torch.no_grad():
        own = margins_of(judged.network.double(), data.x.double(), data.y)
    judged.network.float()
    others = torch.arange(3) != data.y[:, None]
    for name in ("ibp", "crown", "alpha-crown"):
        lower = CERTIFIERS[name]().run(judged, data, ThreatModel("linf", 0.0), Randomness(0)).lower
        assert torch.allclose(lower[others], own[others], atol=1e-6)
