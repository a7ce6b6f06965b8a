"""Traced networks: they compute what the network computes, and refuse what they do not understand."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations

from certify.graph import trace
from certify.ibp import IntervalBounds
from models.base import Classifier
from models.errors import UserError
from models.randomness import Randomness
from models.threat import ThreatModel
from tests.certify.builders import FAMILIES, batch, mlp, model


def bound(network, **options):
    judged = Classifier(network, num_classes=3, **options)
    return IntervalBounds().run(judged, batch(), ThreatModel("linf", 0.01), Randomness(0)).lower


@pytest.mark.parametrize("family", FAMILIES)
def test_a_graph_computes_what_the_network_computes(family):
    judged, data = model(family), batch(5)
    values = trace(judged, like=data.x).values(data.x)
    assert torch.allclose(values[-1], judged.logits(data.x), atol=1e-5)


def test_a_graph_follows_the_networks_training():
    network = mlp(72, 3)
    graph = trace(network)
    with torch.no_grad():
        network[1].weight.zero_()
        network[1].bias.fill_(2.0)
    assert torch.equal(graph.values(batch().x)[-1], torch.full((3, 3), 2.0))


class Forward(nn.Module):
    """A network from a function of x and a linear layer."""

    def __init__(self, function):
        super().__init__()
        self.function = function
        self.layer = nn.Linear(72, 3)

    def forward(self, x):
        return self.function(x, self.layer)


def in_place(x, layer):
    y = layer(x.flatten(1))
    z = F.relu(y, inplace=True)
    return y + z


REFUSED = {
    "fractions": (lambda x, layer: layer(x.flatten(1)).frac(), "frac"),
    "softmax over samples": (lambda x, layer: layer(x.flatten(1)).softmax(0), "softmax"),
    "truncation": (lambda x, layer: layer(x.flatten(1)).trunc(), "trunc"),
    "a power that varies": (lambda x, layer: x**x, "pow"),
    "a power that is no whole number": (lambda x, layer: x**1.7, "pow"),
    "attention with a mask": (
        lambda x, layer: F.scaled_dot_product_attention(x, x, x, is_causal=True),
        "attention",
    ),
    "instance norm by running statistics": (
        lambda x, layer: F.instance_norm(x, torch.zeros(2), torch.ones(2)),
        "instance_norm",
    ),
    "variance over samples": (lambda x, layer: layer(x.flatten(1)).var(0, keepdim=True), "var"),
    "chunks that stay together": (lambda x, layer: layer(x.flatten(1).chunk(2, 1)), "pick one first"),
    "a slice of chunks": (lambda x, layer: layer(torch.cat(x.flatten(1).chunk(2, 1)[::-1], 1)), "pick one"),
    "chunks joined as they are": (lambda x, layer: layer(torch.cat(x.flatten(1).chunk(2, 1), 1)), "pick one"),
    "values stacked before the samples": (lambda x, layer: torch.stack([layer(x.flatten(1))] * 2), "stack"),
    "samples moved and not back": (lambda x, layer: layer(x.permute(1, 0, 2, 3)), "pick one first"),
    "a size without an input": (lambda x, layer: layer(x.reshape(-1, x.shape[1] * 36)), "size"),
    "a size by unpacking": (lambda x, layer: layer(x.flatten(x.dim() - 3)), "size"),
    "data dependent flow": (lambda x, layer: layer(x.flatten(1)) if x.sum() > 0 else layer(x), "trace"),
    "random numbers": (lambda x, layer: layer(x.flatten(1)) + torch.rand(3), "rand"),
    "mixed samples": (lambda x, layer: layer(x.flatten()), "flatten"),
    "reshaped samples": (lambda x, layer: layer(x.reshape(1, -1)), "reshape"),
    "permuted samples": (lambda x, layer: layer(x.permute(1, 2, 0, 3).flatten(1)), "permute"),
    "exchanged samples": (lambda x, layer: layer(x.flatten(1)).transpose(0, 1), "transpose"),
    "picked samples": (lambda x, layer: layer(x[1:].flatten(1)), "getitem"),
    "a dimension before the samples": (lambda x, layer: layer(x.flatten(1)).unsqueeze(0), "unsqueeze"),
    "reflected padding": (lambda x, layer: layer(F.pad(x, (1, 1), mode="reflect").flatten(1)), "pad"),
    "largest over samples": (lambda x, layer: layer(x.flatten(1)).amax(0, keepdim=True), "amax"),
    "largest of all": (lambda x, layer: layer(x.flatten(1)).max(), "max"),
    "places of the largest": (lambda x, layer: layer(x.flatten(1)) + x.max(1).indices, "add"),
    "both of the largest": (lambda x, layer: layer(x.flatten(1)) + layer(x.flatten(1)).max(1), "add"),
    "unflattened samples": (lambda x, layer: layer(x.flatten(1)).unflatten(0, (1, -1)), "unflatten"),
    "in place with another use": (in_place, "relu"),
    "functional dropout": (lambda x, layer: F.dropout(layer(x.flatten(1)), 0.5, True), "dropout"),
    "mean over samples": (lambda x, layer: layer(x.flatten(1)).mean(0, keepdim=True), "mean"),
    "mean over all": (lambda x, layer: layer(x.flatten(1)).sum(), "sum"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_understood_is_refused_by_name(case):
    function, name = REFUSED[case]
    with pytest.raises(UserError, match=name) as error:
        trace(Forward(function))
    assert "\n" not in str(error.value)


def test_layers_are_refused_by_their_place_and_class():
    with pytest.raises(UserError, match=r"layer '1' \(LPPool1d\)"):
        trace(nn.Sequential(nn.Linear(72, 3), nn.LPPool1d(2, 3)))


def test_subclasses_and_hooks_are_not_mistaken_for_what_they_extend():
    class Doubled(nn.Linear):
        def forward(self, x):
            return 2 * F.linear(x, self.weight, self.bias)

    network = nn.Sequential(nn.Flatten(), Doubled(72, 3))
    assert torch.allclose(trace(network).values(batch().x)[-1], network(batch().x), atol=1e-5)
    hooked = mlp(72, 3)
    hooked[1].register_forward_hook(lambda module, inputs, output: 2 * output)
    with pytest.raises(UserError, match="hooks"):
        trace(hooked)


def test_a_parametrized_layer_is_its_parametrized_weight():
    network = nn.Sequential(nn.Flatten(), parametrizations.spectral_norm(nn.Linear(72, 3))).eval()
    assert torch.allclose(trace(network).values(batch().x)[-1], network(batch().x), atol=1e-6)


@pytest.mark.parametrize("layer", [nn.BatchNorm2d(2), nn.Dropout()])
def test_train_mode_is_refused(layer):
    graph = trace(nn.Sequential(layer, nn.Flatten(), nn.Linear(72, 3)).train())
    with pytest.raises(UserError, match="train mode"):
        graph.values(batch().x)


def test_hidden_state_is_found_by_comparison():
    class Hidden(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(72, 3)

        def forward(self, x):
            y = self.layer(x.flatten(1))
            z = y
            y += 1
            return y + z

    with pytest.raises(UserError, match="something else"):
        bound(Hidden())


def test_tracing_leaves_the_network_and_the_random_state_as_they_were():
    network = Forward(lambda x, layer: layer(x.flatten(1)) + torch.arange(3.0))
    random = Forward(REFUSED["random numbers"][0])
    attributes, state = dict(vars(network)), torch.get_rng_state()
    graph = trace(network)
    assert dict(vars(network)) == attributes
    assert torch.allclose(graph.values(batch().x)[-1], network(batch().x))
    with pytest.raises(UserError):
        trace(random)
    assert torch.equal(torch.get_rng_state(), state)


def test_buffers_are_read_at_each_use():
    judged = model("normalised")
    graph = trace(judged)
    judged.network.mean.fill_(0.9)
    assert torch.allclose(graph.values(batch().x)[-1], judged.network(batch().x), atol=1e-5)


def test_a_stochastic_model_is_refused():
    with pytest.raises(UserError, match="stochastic"):
        bound(mlp(72, 3), stochastic=True)
