"""Triangle meshes with texture coordinates: built in, or read from a Wavefront OBJ file."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from models.errors import UserError


@dataclass(frozen=True)
class Mesh:
    """vertices (v, 3): x right, y up, z towards the camera; faces (f, 3) int64 into them; uv (f, 3, 2).

    uv are places in the texture of each face's corners, right and down from its upper left, in [0, 1].
    """

    vertices: Tensor
    faces: Tensor
    uv: Tensor

    def fitted(self) -> Mesh:
        """The mesh about the origin, its largest extent along x or y from -1 to 1."""
        low, high = self.vertices.amin(0), self.vertices.amax(0)
        half = (high - low)[:2].max() / 2
        return Mesh((self.vertices - (low + high) / 2) / half.clamp(min=1e-12), self.faces, self.uv)


def square() -> Mesh:
    """The square [-1, 1] x [-1, 1] at z = 0: seen from the front it is its texture."""
    corners = torch.tensor([[-1.0, 1, 0], [1, 1, 0], [1, -1, 0], [-1, -1, 0]])
    faces = torch.tensor([[0, 2, 1], [0, 3, 2]])
    places = torch.tensor([[0.0, 0], [1, 0], [1, 1], [0, 1]])
    return Mesh(corners, faces, places[faces])


def shell(rings: int = 4, sides: int = 12, height: float = 0.5) -> Mesh:
    """A turtle's shell: half an ellipsoid towards the camera over a closed floor, textured from the front.

    Its outline is a circle about the origin, large enough that the whole texture lies on it.
    """
    outline = math.sqrt(2)
    points = [[0.0, 0.0, height]]
    for ring in range(1, rings + 1):
        tilt = math.pi / 2 * ring / rings
        for side in range(sides):
            turn = 2 * math.pi * side / sides
            radius = outline * math.sin(tilt)
            points.append([radius * math.cos(turn), radius * math.sin(turn), height * math.cos(tilt)])
    faces = [[0, 1 + side, 1 + (side + 1) % sides] for side in range(sides)]
    for ring in range(rings - 1):
        inner, outer = 1 + ring * sides, 1 + (ring + 1) * sides
        for side in range(sides):
            after = (side + 1) % sides
            faces.append([inner + side, outer + side, outer + after])
            faces.append([inner + side, outer + after, inner + after])
    points.append([0.0, 0.0, 0.0])
    rim = 1 + (rings - 1) * sides
    faces += [[len(points) - 1, rim + (side + 1) % sides, rim + side] for side in range(sides)]
    vertices, corners = torch.tensor(points), torch.tensor(faces)
    places = torch.stack([(vertices[:, 0] + 1) / 2, (1 - vertices[:, 1]) / 2], 1)
    return Mesh(vertices, corners, places[corners])


def read_obj(path: Path) -> Mesh:
    """The mesh of an OBJ file's v, vt and f lines, fitted; polygons are cut into fans of triangles.

    Raises UserError for a file that is absent or no OBJ, or whose faces name no texture coordinates.
    """
    if not path.is_file():
        raise UserError(f"no mesh file {path}")
    points: list[list[float]] = []
    places: list[list[float]] = []
    faces: list[list[int]] = []
    corners: list[list[int]] = []
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
        kind, *words = line.split("#")[0].split() or [""]
        try:
            if kind == "v":
                points.append([float(word) for word in words[:3]])
            elif kind == "vt":
                places.append([float(words[0]), 1 - float(words[1])])
            elif kind == "f":
                named = [(int(word.split("/")[0]), int(word.split("/")[1])) for word in words]
                at = [_place(vertex, len(points)) for vertex, _ in named]
                of = [_place(corner, len(places)) for _, corner in named]
                for last in range(2, len(named)):
                    faces.append([at[0], at[last - 1], at[last]])
                    corners.append([of[0], of[last - 1], of[last]])
        except (ValueError, IndexError):
            wrong = f"{path}, line {number}: '{line.strip()}' is no v, vt or f with vertex/texture"
            raise UserError(wrong) from None
    if not faces or any(len(point) < 3 for point in points):
        raise UserError(f"mesh file {path} has no faces: give it v, vt and f lines")
    uv = torch.tensor(places)[torch.tensor(corners)]
    return Mesh(torch.tensor(points), torch.tensor(faces), uv).fitted()


def _place(number: int, count: int) -> int:
    """A line's number in Python's count: from 1, or from the end where it is negative."""
    place = number - 1 if number > 0 else count + number
    if not 0 <= place < count:
        raise IndexError(number)
    return place


@lru_cache(maxsize=8)
def mesh_named(name: str) -> Mesh:
    """ "shell", "square", or the OBJ file of that name."""
    builders = {"shell": shell, "square": square}
    if name in builders:
        return builders[name]()
    if not name.endswith(".obj"):
        raise UserError(f"no mesh '{name}': choose shell, square or a FILE.obj")
    return read_obj(Path(name))
