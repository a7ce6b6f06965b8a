"""`onnx:`, `torchscript:` and `exported:`: networks that files hold whole."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.errors import UserError
from models.onnx.reader import read
from models.onnx.runtime import Runtime, check_agreement
from models.sources.base import SOURCES, Place


class OneByOne(nn.Module):
    """A network that was saved for a batch of one, applied to each sample; in eval mode for good.

    The network is no submodule: exported programs refuse train() and eval().
    """

    def __init__(self, network: nn.Module, single: bool) -> None:
        super().__init__()
        self._held = (network,)
        self._single = single

    def forward(self, x: Tensor) -> Tensor:
        (network,) = self._held
        if self._single:
            return torch.cat([network(part) for part in x.split(1)])
        return torch.as_tensor(network(x))


def _onnx(place: Place) -> nn.Module:
    """An ONNX file, in single precision, compared with onnxruntime on random inputs."""
    network = read(place.path)
    low, high = torch.zeros(network.shape), torch.ones(network.shape)
    check_agreement(network, Runtime(place.path, network), low, high)
    return network.network.float()


def _torchscript(place: Place) -> nn.Module:
    """A file of torch.jit.save."""
    try:
        return torch.jit.load(str(place.path), map_location="cpu").eval()
    except (RuntimeError, ValueError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"{place.path} cannot be read as TorchScript: {reason}") from None


def _exported(place: Place) -> nn.Module:
    """A file of torch.export.save, exported in eval mode, with an open batch size or a batch of one."""
    try:
        program = torch.export.load(str(place.path))
    except Exception as error:
        # torch.export raises whatever its archive reader meets.
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"{place.path} cannot be read as an exported program: {reason}") from None
    network = program.module()
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    shapes = [
        node.meta["val"].shape for node in program.graph.nodes if node.op == "placeholder" and node.users
    ]
    return OneByOne(network, single=bool(shapes) and isinstance(shapes[-1][0], int) and shapes[-1][0] == 1)


SOURCES.add("onnx", _onnx)
SOURCES.add("torchscript", _torchscript)
SOURCES.add("exported", _exported)
