"""`onnx:`, `torchscript:` and `exported:`: networks that files hold whole."""

from __future__ import annotations

import logging
import math
import warnings
from dataclasses import replace

import torch
from torch import Tensor, nn

from models.errors import UserError
from models.onnx.ending import read_classifier
from models.onnx.reader import OnnxNetwork, load_model
from models.onnx.runtime import Runtime, check_agreement
from models.sources.base import CONTENTS, SOURCES, Place

# Copies of exported programs, which certificates make before they trace one, warn of torch's own code.
warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)` is deprecated", FutureWarning)


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


def _alone(place: Place, what: str) -> None:
    """Raises UserError where a line gives weights or arguments to a file that holds its own."""
    if place.weights is not None or place.arguments:
        given = "weights" if place.weights is not None else ", ".join(place.arguments)
        raise UserError(f"{place.text} is {what}, which holds its own weights: leave out {given}")


def _brief(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0].split(". ")[0][:150]


class Rearranged(nn.Module):
    """A network behind its own arrangement of an image's entries: `order` of the axes, then `shape`."""

    def __init__(self, network: nn.Module, order: tuple[int, ...], shape: tuple[int, ...]) -> None:
        super().__init__()
        self.network, self.order, self.shape = network, order, shape

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.network(x.permute(self.order).reshape(-1, *self.shape))
        return out


def _for_images(network: OnnxNetwork, place: Place) -> nn.Module:
    """The network for images (n, c, h, w), which it may take flat, channels last, or with other unit axes.

    Raises UserError where it takes something else.
    """
    images, shape = place.images, network.shape
    if not images or images == shape:
        return network.network
    if shape == (math.prod(images),):
        return nn.Sequential(nn.Flatten(), network.network)
    order = tuple(range(len(images) + 1))
    rest, wanted = ([size for size in sizes if size != 1] for sizes in (images, shape))
    if wanted == rest or wanted == [math.prod(images)]:
        return Rearranged(network.network, order, shape)
    if len(images) == 3 and shape == (*images[1:], images[0]):
        return Rearranged(network.network, (0, 2, 3, 1), shape)
    mend = "give it images of that shape"
    if shape[1:] == images:
        mend = "export it for a batch of one"
    elif len(shape) == len(images) == 3 and shape[0] == images[0]:
        mend = f"add @size={shape[1]}" + (f",{shape[2]}" if shape[1] != shape[2] else "")
    raise UserError(f"{place.text} takes inputs of shape {shape}, but the images are {images}: {mend}")


def _arrangements(images: tuple[int, ...]) -> list[tuple[int, ...]]:
    """How a file of open sizes may take one image (c, h, w): as it is, channels last, or flat."""
    if len(images) != 3:
        return [(1, *images)] if images else []
    channels, height, width = images
    return [(1, *images), (1, height, width, channels), (1, math.prod(images))]


def _onnx(place: Place) -> nn.Module:
    """An ONNX file, in single precision, compared with onnxruntime on random inputs."""
    output = place.arguments.get("output")
    _alone(
        replace(place, arguments={k: v for k, v in place.arguments.items() if k != "output"}), "an ONNX file"
    )
    network = read_classifier(
        place.path, _arrangements(place.images), None if output is None else str(output)
    )
    for kind, ports in (("inputs", network.inputs), ("outputs", network.targets)):
        if len(ports) > 1:
            names = ", ".join(port.name for port in ports)
            mend = f": name it, onnx:{place.text},output={ports[0].name}" if kind == "outputs" else ""
            raise UserError(f"{place.text} has {len(ports)} {kind} ({names}): a classifier has one{mend}")
    low, high = torch.zeros(network.shape), torch.ones(network.shape)
    check_agreement(network, Runtime(place.path, network), low, high)
    return _for_images(network, place).float()


def _torchscript(place: Place) -> nn.Module:
    """A file of torch.jit.save."""
    _alone(place, "TorchScript")
    try:
        return torch.jit.load(str(place.path), map_location="cpu").eval()
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"{place.path} cannot be read as TorchScript ({_brief(error)}): write it by torch.jit.save, or "
            "name a state dictionary as the weights of file:PATH.py:FUNCTION"
        ) from None


def _exported(place: Place) -> nn.Module:
    """A file of torch.export.save, exported in eval mode, with an open batch size or a batch of one."""
    _alone(place, "an exported program")
    path, level = place.path, logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        program = torch.export.load(str(path))
    except Exception as error:
        # torch.export raises whatever its archive reader meets.
        raise UserError(
            f"{path} cannot be read as an exported program ({_brief(error)}): write it by torch.export.save "
            "as a .pt2 file"
        ) from None
    finally:
        logging.disable(level)
    network = program.module()
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    shapes = [
        node.meta["val"].shape for node in program.graph.nodes if node.op == "placeholder" and node.users
    ]
    fixed = shapes[-1][0] if shapes and isinstance(shapes[-1][0], int) else None
    if fixed not in (None, 1):
        raise UserError(
            f"{path} was exported for batches of {fixed} alone: export it with one image, or with an open "
            "batch size (dynamic_shapes)"
        )
    return OneByOne(network, single=fixed == 1)


SOURCES.add("onnx", _onnx)
CONTENTS["onnx"] = lambda place: load_model(place.path).SerializeToString(deterministic=True)
SOURCES.add("torchscript", _torchscript)
SOURCES.add("exported", _exported)
