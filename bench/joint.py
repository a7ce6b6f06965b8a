"""The networks that a property declares, read from their files and run as one."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from onnx import TensorProto
from torch import Tensor, nn

from certify.declarations import ELEMENTS, Network, Variable
from certify.input_bounds import Given
from certify.joined import SideBySide, WithTerms
from certify.vnnlib import Specification
from models.errors import UserError
from models.onnx.ending import without_softmax
from models.onnx.ports import Port, Told
from models.onnx.reader import OnnxNetwork, read
from models.onnx.runtime import Runtime, check_agreement

TYPES = {
    name.lower(): number for name, number in TensorProto.DataType.items() if name.lower() in ELEMENTS
} | {"float32": TensorProto.FLOAT, "float64": TensorProto.DOUBLE}


def present(path: Path) -> Path:
    """The file, or its .gz where only that is there: benchmarks list the one and ship the other."""
    packed = path.with_name(f"{path.name}.gz")
    return packed if packed.is_file() and not path.is_file() else path


@dataclass(frozen=True)
class Joint:
    """The networks of a property in its order, each read by us and loaded by onnxruntime.

    Together they map all inputs X of the property, in one row, to all its hidden values and outputs Y.
    """

    networks: tuple[OnnxNetwork, ...]
    runtimes: tuple[Runtime, ...]
    given: Given

    @staticmethod
    def load(files: Mapping[str, Path], wanted: Specification, vnnlib: Path) -> Joint:
        """Reads the ONNX files, by the network's name or "" for the only one, and compares sizes and types.

        Raises UserError where they are not what the property declares.
        """
        paths = _paths(files, wanted.networks, vnnlib)
        networks, runtimes, values = [], [], _values(wanted)
        for network, path in zip(wanted.networks, paths, strict=True):
            found = _read(network, path, values)
            if wanted.version == 1:
                _check_numbered(found, path)
            _check_ports(network, found, path, vnnlib)
            networks.append(found)
            runtimes.append(Runtime(path, found))
        return Joint(tuple(networks), tuple(runtimes), wanted.given)

    @property
    def shape(self) -> tuple[int, ...]:
        """What the module takes: a network's own inputs, or the free ones of all in a row."""
        alone = len(self.networks) == 1 and not self.given.terms
        return self.networks[0].shape if alone else (len(self.given.names),)

    def module(self, wanted: Specification) -> nn.Module:
        """The networks in double precision, from free inputs (n, *shape) to what the clauses speak of.

        Without the softmax at the end of one whose outputs are only compared with each other.
        """
        double = [copy.deepcopy(one.network).double() for one in self.networks]
        exact: nn.Module = double[0]
        if len(double) > 1 or self.given.terms:
            exact = SideBySide(double, [one.shape for one in self.networks], self.given)
        elif not wanted.has_terms and all(one.compares_only() for one in wanted.properties):
            exact = without_softmax(exact)
        if wanted.has_terms:
            exact = WithTerms(exact, wanted.sums, wanted.products, wanted.outputs)
        return exact.eval()

    def outputs(self, x: Tensor) -> Tensor:
        """onnxruntime's own outputs Y (outputs,) at all inputs X (inputs,)."""
        return torch.cat(
            [
                runtime.outputs(part.reshape(1, *network.shape))[0]
                for part, network, runtime in zip(self._parts(x), self.networks, self.runtimes, strict=True)
            ]
        )

    def check_agreement(self, lower: Tensor, upper: Tensor) -> None:
        """Compares both readings of every network between free inputs lower and upper (free,).

        Raises UserError where they differ.
        """
        ends = torch.stack([self.given.inputs(end.flatten()) for end in (lower, upper)])
        for network, runtime, low, high in zip(
            self.networks, self.runtimes, self._parts(ends.amin(0)), self._parts(ends.amax(0)), strict=True
        ):
            check_agreement(network, runtime, low.reshape(network.shape), high.reshape(network.shape))

    def _parts(self, x: Tensor) -> tuple[Tensor, ...]:
        return x.split([sum(port.size for port in network.inputs) for network in self.networks])


def _paths(files: Mapping[str, Path], networks: Sequence[Network], vnnlib: Path) -> list[Path]:
    """The file of each network; raises UserError where one has none, or a name is unknown."""
    own = [network.name for network in networks if network.equal_to is None]
    names = ", ".join(network.name for network in networks)
    if "" in files and len(own) > 1:
        raise UserError(
            f"{vnnlib} has the networks {names}: give each its file, "
            + " ".join(f"--network {name}=FILE" for name in own)
        )
    named = {own[0]: files[""]} if "" in files else dict(files)
    if unknown := named.keys() - {network.name for network in networks}:
        raise UserError(f"{vnnlib} has no network '{min(unknown)}': it has {names or 'one without a name'}")
    found: dict[str, Path] = {}
    for network in networks:
        path = named.get(network.name)
        if network.equal_to is not None:
            if path is not None and present(path).resolve() != found[network.equal_to].resolve():
                raise UserError(
                    f"{vnnlib} says that {network.name} is equal to {network.equal_to}: "
                    f"leave out --network {network.name}=..., or give the same file"
                )
            found[network.name] = found[network.equal_to]
        elif path is None:
            raise UserError(
                f"network {network.name} of {vnnlib} has no file: give --network {network.name}=FILE"
            )
        else:
            found[network.name] = present(path)
    return [found[network.name] for network in networks]


def _values(wanted: Specification) -> Tensor:
    """The value (inputs,) of each input that has but one in all properties, NaN for the others."""
    ends = [wanted.given.inputs(end) for one in wanted.properties for end in (one.lower, one.upper)]
    if not ends:
        return torch.full((wanted.inputs,), torch.nan, dtype=torch.float64)
    return torch.where(torch.stack([end == ends[0] for end in ends]).all(0), ends[0], torch.nan)


def _read(network: Network, path: Path, values: Tensor) -> OnnxNetwork:
    names = [one.node for one in network.of("input") if one.node is not None]
    targets = [one.node for one in (*network.of("hidden"), *network.of("output"))]
    told = []
    for variable in network.of("input"):
        own = values[variable.first : variable.first + variable.size]
        told.append(Told((variable.shape,), None if bool(own.isnan().any()) else tuple(own.tolist())))
    return read(path, names, targets if network.name else (), told)


def _check_numbered(network: OnnxNetwork, path: Path) -> None:
    for kind, ports in (("inputs", network.inputs), ("outputs", network.targets)):
        if len(ports) > 1:
            names = ", ".join(port.name for port in ports)
            raise UserError(f"{path} has {len(ports)} {kind} ({names}): declare them as in VNN-LIB 2.0")


def _check_ports(network: Network, found: OnnxNetwork, path: Path, vnnlib: Path) -> None:
    """Raises UserError where the file's inputs and outputs are not those declared."""
    sides = (
        ("inputs", network.of("input"), found.inputs),
        ("outputs", (*network.of("hidden"), *network.of("output")), found.targets),
    )
    for kind, declared, ports in sides:
        if len(declared) != len(ports):
            raise UserError(
                f"{vnnlib} declares {len(declared)} {kind} of network {network.name}, "
                f"but {path} has {len(ports)}"
            )
        for variable, port in zip(declared, ports, strict=True):
            _check_port(kind, variable, port, path, vnnlib, network.name)


def _check_port(kind: str, variable: Variable, port: Port, path: Path, vnnlib: Path, name: str) -> None:
    if variable.size != port.size:
        if not name:
            raise UserError(
                f"{vnnlib} declares {variable.size} {kind}, but the network {path} has {port.size}"
            )
        raise UserError(
            f"{vnnlib} declares {variable.name} with {variable.size} elements, but '{port.name}' of {path} "
            f"has {port.size}"
        )
    wanted = TYPES.get(variable.element.lower(), port.element)
    if kind == "inputs" and wanted != port.element:
        raise UserError(
            f"{vnnlib} declares {variable.name} as {variable.element}, but '{port.name}' of {path} is of "
            f"ONNX type {TensorProto.DataType.Name(port.element)}: declare it as real"
        )
