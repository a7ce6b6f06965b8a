"""A user's model from one line of text: `SOURCE:PLACE[,ARGUMENT=VALUE...][@SETTING=VALUE...]`.

`file:net.py:make,width=32@mean=0.13@std=0.31` calls make(width=32) of net.py and normalises its
inputs. Images come in [0, 1]; `@box=0,255` says that the network wants them in [0, 255]; `@mean` and
`@std`, one number or one a channel, normalise after that; `@size=224` resizes images that are not
224 x 224, inside the model; `@classes=10` confirms the class count. `@weights=FILE` is the state
dictionary to load. The same settings may stand in a TOML file beside the network's (net.toml beside
net.py); the line wins.
"""

from __future__ import annotations

import ast
import hashlib
import pickle
import re
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file as safetensors_file
from torch import Tensor, nn

from models.errors import UserError
from models.registry import Registry, suggest

SETTINGS = ("mean", "std", "size", "box", "classes", "weights")
# Where training scripts put the weights of a network in a checkpoint.
STATES = ("state_dict", "model_state_dict", "model", "net", "network", "weights")
SETTING = re.compile(rf"@({'|'.join(SETTINGS)})=")


@dataclass(frozen=True)
class Place:
    """Where a source finds a network: its text, the arguments for a function, and a weights file.

    images is the shape (c, h, w) of what the network will be handed, () where that is not known.
    """

    text: str
    arguments: dict[str, Any] = field(default_factory=dict)
    weights: Path | None = None
    images: tuple[int, ...] = ()

    @property
    def path(self) -> Path:
        """The place as a file that must exist."""
        path = Path(self.text).expanduser()
        if not path.is_file():
            raise UserError(f"no file {path}")
        return path


Source = Callable[[Place], nn.Module]
SOURCES: Registry[Source] = Registry("model source")

# Of sources whose files hold all of a network, though it may only be built for images of a known size.
CONTENTS: dict[str, Callable[[Place], bytes]] = {}


@dataclass(frozen=True)
class ModelLine:
    """A parsed line: the source's name, its place, and what is declared of the network's inputs."""

    text: str
    source: str
    place: Place
    settings: dict[str, Any]

    @staticmethod
    def parse(text: str) -> ModelLine:
        """Reads a line; raises UserError for an unknown source or setting."""
        source, _, rest = text.partition(":")
        if source not in SOURCES:
            raise suggest("model source", source, SOURCES.names())
        where, *pairs = SETTING.split(rest)
        given = dict(zip(pairs[::2], pairs[1::2], strict=True))
        where, *arguments = _split(where)
        if not where:
            raise UserError(f"'{text}' names no place after '{source}:'")
        settings = _beside(where) | {name: _value(value) for name, value in given.items()}
        weights = settings.get("weights")
        place = Place(where, dict(_argument(text, one) for one in arguments), _weights(text, weights))
        return ModelLine(text, source, place, settings)

    def build(self, shape: tuple[int, ...] = ()) -> nn.Module:
        """The network in eval mode, with what is declared of its inputs in front of it.

        `shape` (c, h, w) of the images, where it is known, decides whether they must be resized.
        """
        resized = (shape[0], *self.size) if self.size and len(shape) == 3 else shape
        network = SOURCES[self.source](replace(self.place, images=resized)).eval()
        return Prepared.around(network, self.settings, self.text, shape).eval()

    @property
    def size(self) -> tuple[int, int] | None:
        """Height and width that the network wants, where they are declared."""
        return _size(self.settings, self.text)

    def fingerprint(self) -> str:
        """16 hexadecimal digits of the weights, the settings, and the file that the network is made by."""
        content = CONTENTS.get(self.source)
        network = nn.Identity() if content else self.build()
        digest = hashlib.sha256(repr(sorted(self.settings.items())).encode())
        digest.update(f"{self.text}\n{network}".encode())
        if content:
            digest.update(content(self.place))
        for name, tensor in sorted(network.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        for path in _files(self.place, network):
            digest.update(path.read_bytes())
        return digest.hexdigest()[:16]


def is_source(name: str) -> bool:
    """Whether a model's name is a line of this kind; zoo names have no colon."""
    return ":" in name


def _files(place: Place, network: nn.Module) -> list[Path]:
    """The file that the place names, and those that the network's own classes are written in."""
    named = [Path(place.text).expanduser(), Path(place.text.rpartition(":")[0]).expanduser()]
    forwards = {getattr(type(module).forward, "__code__", None) for module in network.modules()}
    written = {Path(code.co_filename) for code in forwards if code is not None}
    own = sorted(path for path in written if not path.is_relative_to(Path(torch.__file__).parent))
    return [path for path in dict.fromkeys([*named, *own]) if path.is_file()]


def _split(text: str) -> list[str]:
    """Parts between the commas that are outside brackets and quotes."""
    return re.findall(r"""(?:[^,(\[{'"]|\([^)]*\)|\[[^\]]*\]|\{[^}]*\}|'[^']*'|"[^"]*")+""", text) or [""]


def _argument(text: str, part: str) -> tuple[str, Any]:
    name, equals, value = part.partition("=")
    if not equals or not name.isidentifier():
        raise UserError(f"'{part}' in '{text}' is no argument: write NAME=VALUE after the function's name")
    return name, _value(value)


def _value(text: str) -> Any:
    """A Python literal, or the text itself."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _beside(where: str) -> dict[str, Any]:
    """The settings in the TOML file beside the one that a place names."""
    for path in (Path(where), Path(where.rpartition(":")[0])):
        described = path.with_suffix(".toml") if path.name else path
        if path.is_file() and described.is_file():
            try:
                settings = tomllib.loads(described.read_text(encoding="utf-8"))
            except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
                raise UserError(f"{described}: not valid TOML: {error}") from None
            for name in settings:
                if name not in SETTINGS:
                    raise UserError(f"{described}: {suggest('setting', name, list(SETTINGS))}")
            if isinstance(settings.get("weights"), str):
                settings["weights"] = str(described.parent / settings["weights"])
            return settings
    return {}


def _weights(text: str, weights: Any) -> Path | None:
    if weights is None:
        return None
    path = Path(str(weights)).expanduser()
    if not path.is_file():
        raise UserError(f"'{text}': no weights file {path}")
    return path


class Resized(nn.Module):
    """A network behind a bilinear resize of its images (n, c, h, w) to `size`."""

    def __init__(self, network: nn.Module, size: tuple[int, int]) -> None:
        super().__init__()
        self.network, self.size = network, size

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.network(F.interpolate(x, self.size, mode="bilinear", align_corners=False))
        return out


class Prepared(nn.Module):
    """A network behind an affine map of its inputs: from [0, 1] to its box, then normalised."""

    scale: Tensor
    shift: Tensor

    def __init__(self, network: nn.Module, scale: Tensor, shift: Tensor) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("scale", scale)
        self.register_buffer("shift", shift)

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x * self.scale + self.shift)

    @staticmethod
    def around(
        network: nn.Module, settings: dict[str, Any], text: str, shape: tuple[int, ...] = ()
    ) -> nn.Module:
        """The network itself where nothing is declared; raises UserError for settings that make no sense."""
        size = _size(settings, text)
        if size and len(shape) == 3 and shape[1:] != size:
            network = Resized(network, size)
        low, high = _numbers(settings.get("box", (0.0, 1.0)), "box", text, 2)
        mean = _numbers(settings.get("mean", 0.0), "mean", text)
        std = _numbers(settings.get("std", 1.0), "std", text)
        if not low < high:
            raise UserError(f"'{text}': box needs a lower and a higher end, not {low:g},{high:g}")
        if min(std) <= 0:
            raise UserError(f"'{text}': std must be above 0")
        if (low, high) == (0.0, 1.0) and set(mean) == {0.0} and set(std) == {1.0}:
            return network
        deviation = torch.tensor(std)
        scale = (high - low) / deviation
        shift = (low - torch.tensor(mean)) / deviation
        scale, shift = torch.broadcast_tensors(scale, shift)
        # One number fits inputs of any shape, several are one a channel of (n, c, h, w).
        shape = () if scale.numel() == 1 else (-1, 1, 1)
        return Prepared(network, scale.reshape(shape).clone(), shift.reshape(shape).clone())


def _size(settings: dict[str, Any], text: str) -> tuple[int, int] | None:
    if "size" not in settings:
        return None
    value = settings["size"]
    parts = tuple(value) if isinstance(value, list | tuple) else (value, value)
    if len(parts) != 2 or not all(type(part) is int and part > 0 for part in parts):
        raise UserError(f"'{text}': size needs one whole number or height,width, not {value!r}")
    return parts[0], parts[1]


def _numbers(value: Any, name: str, text: str, count: int | None = None) -> tuple[float, ...]:
    parts = value if isinstance(value, list | tuple) else (value,)
    try:
        numbers = tuple(float(part) for part in parts)
    except (TypeError, ValueError):
        raise UserError(f"'{text}': {name} needs numbers, not {value!r}") from None
    if not numbers or (count is not None and len(numbers) != count):
        raise UserError(f"'{text}': {name} needs {count or 'some'} numbers, not {value!r}")
    return numbers


def load_state(network: nn.Module, weights: Path | None, text: str) -> nn.Module:
    """The network with a state dictionary from a .pt, .pth or .safetensors file, where one is given."""
    if weights is None:
        return network
    try:
        network.load_state_dict(_unprefixed(_read_state(weights), set(network.state_dict())))
    except pickle.UnpicklingError:
        raise UserError(
            f"weights {weights} hold more than tensors: save the network's state_dict(), and name that file"
        ) from None
    except (RuntimeError, OSError, ValueError, TypeError, KeyError, EOFError) as error:
        reason = " ".join((str(error) or type(error).__name__).split())[:200]
        raise UserError(
            f"weights {weights} do not fit '{text}', build it as it was trained: {reason}"
        ) from None
    return network


def _read_state(weights: Path) -> dict[str, Tensor]:
    """The tensors by name, from under whatever key training scripts put them."""
    if weights.suffix == ".safetensors":
        return dict(safetensors_file(weights))
    state = torch.load(weights, map_location="cpu", weights_only=True)
    while isinstance(state, dict) and not any(isinstance(value, Tensor) for value in state.values()):
        inner = {key: value for key, value in state.items() if isinstance(value, dict) and value}
        named = [key for key in STATES if key in inner] or [key for key in inner if len(inner) == 1]
        if not named:
            raise ValueError(f"no state dictionary among {', '.join(map(str, state)) or 'nothing'}")
        state = inner[named[0]]
    if not isinstance(state, dict):
        raise ValueError(f"it holds a {type(state).__name__}, no state dictionary")
    return {str(name): tensor for name, tensor in state.items()}


def _unprefixed(state: dict[str, Tensor], wanted: set[str]) -> dict[str, Tensor]:
    """The tensors without what parallel training and wrappers put before every name."""
    for prefix in ("module.", "model."):
        if not any(name.startswith(prefix) for name in wanted):
            state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return state
