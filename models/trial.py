"""Tries a user's network out on a few images before anything is judged: what cannot be judged is named."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from models.base import frozen
from models.errors import UserError

FLOATS = (torch.float16, torch.bfloat16, torch.float64)


@dataclass(frozen=True)
class Trial:
    """A network that takes batches of any size and hands out logits of `classes` classes.

    stochastic: it answers differently when asked again. notes: what its user should know of it.
    """

    network: nn.Module
    classes: int
    stochastic: bool
    notes: tuple[str, ...]


class Scripted(nn.Module):
    """A network of TorchScript, which takes no hooks, as a module that does."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.network(x)
        return out


class OnCopies(nn.Module):
    """A network that writes into its input, handed a copy: 1.0 x is a new tensor with the same entries."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.network(1.0 * x)
        return out


def unwrapped(network: nn.Module) -> nn.Module:
    """What torch.compile or data parallelism stands around: the same numbers, and certificates can see in."""
    inner = getattr(network, "_orig_mod", network)
    return inner.module if isinstance(inner, nn.DataParallel) else inner


def tried(network: nn.Module, x: Tensor, name: str, *, lenient: bool = False) -> Trial:
    """The network after a few passes over images x (n, ...) float32, in eval mode; messages call it `name`.

    Raises UserError where it fails, has no floating output (n, classes), or, unless lenient, answers for an
    image by the batch it is in: an audit says so itself.
    """
    notes = []
    network = unwrapped(network)
    if any(isinstance(one, UninitializedParameter) for one in network.parameters()):
        raise UserError(f"'{name}' has a lazy layer without weights: run it on one batch first")
    if isinstance(network, torch.jit.ScriptModule):
        network = Scripted(network)
    with frozen(network), torch.no_grad():
        copy = x.clone()
        logits = _logits(network, copy, name)
        if copy._version or not torch.equal(copy, x):
            network = OnCopies(network)
            notes.append(f"'{name}' writes into its input: it is judged on copies")
            logits = _logits(network, x, name)
        stochastic = not torch.equal(logits, _logits(network, x, name)) and not bool(logits.isnan().any())
        if stochastic:
            notes.append(f"'{name}' answers differently when asked again: judged as stochastic")
        if not lenient:
            _check_alone(network, x, logits, name, stochastic)
    return Trial(network, logits.shape[1], stochastic, tuple(notes))


def _logits(network: nn.Module, x: Tensor, name: str) -> Tensor:
    try:
        logits = network(x)
    except Exception as error:
        # The user's own forward may fail in any way.
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(
            f"'{name}' fails on {len(x)} images of shape {tuple(x.shape[1:])}: {_hint(network, x) or reason}"
        ) from error
    if isinstance(logits, Tensor) and (
        logits.is_complex() or logits.dtype == torch.bool or logits.layout != torch.strided
    ):
        raise UserError(f"'{name}' returned {logits.dtype} in layout {logits.layout}: return real logits")
    if not isinstance(logits, Tensor) or logits.dim() != 2 or len(logits) != len(x) or logits.shape[1] < 2:
        raise UserError(
            f"'{name}' returned {_described(logits)} for {len(x)} images: {_remedy(logits, len(x))}"
        )
    return logits


def _described(output: object) -> str:
    if isinstance(output, Tensor):
        return f"shape {tuple(output.shape)}"
    if isinstance(output, Mapping):
        return f"{type(output).__name__} with {', '.join(map(str, output))}"
    return f"{type(output).__name__} of {len(output)}" if isinstance(output, tuple) else type(output).__name__


def _remedy(output: object, n: int) -> str:
    if not isinstance(output, Tensor):
        return "wrap it in a module whose forward returns the logits (n, classes) alone"
    if output.shape in ((n,), (n, 1)):
        return "one number z an image is no logits: return (n, 2), for instance of -z and z"
    return "return logits (n, classes), also for a batch of one"


def _hint(network: nn.Module, x: Tensor) -> str | None:
    kind = next((one.dtype for one in network.parameters() if one.dtype in FLOATS), x.dtype)
    if kind != x.dtype:
        return f"its weights are {kind}, the images {x.dtype}: hand over network.float()"
    kinds = nn.Conv2d | nn.Linear | nn.Embedding
    first = next((layer for layer in network.modules() if isinstance(layer, kinds)), None)
    if isinstance(first, nn.Embedding):
        return (
            "its first layer embeds whole numbers, around which there is no ball: judge what comes after it"
        )
    if isinstance(first, nn.Conv2d):
        if x.dim() != 4:
            return "its first layer is a convolution: images must be (n, channels, height, width)"
        if first.in_channels != x.shape[1]:
            last = x.shape[3] == first.in_channels
            turned = ": their channels come last, use images.permute(0, 3, 1, 2)" if last else ""
            return f"its first layer needs {first.in_channels} channels, the images have {x.shape[1]}{turned}"
    if isinstance(first, nn.Linear) and first.in_features not in (x.shape[-1], x[0].numel()):
        return f"its first layer needs {first.in_features} inputs, the images have {x[0].numel()}"
    return None


def _check_alone(network: nn.Module, x: Tensor, logits: Tensor, name: str, stochastic: bool) -> None:
    """A sample's logits must not depend on the batch it is in: attacks go on with those that still hold."""
    alone = _logits(network, x[:1], name)
    error = float((alone - logits[:1]).abs().max())
    if not stochastic and error > 1e-3 * max(1.0, float(logits[:1].abs().max())):
        raise UserError(
            f"'{name}' gives an image other logits alone than in a batch (by {error:.2g}): "
            "batch normalisation must use its running statistics, and samples must not mix"
        )
