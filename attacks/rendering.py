"""Pictures of a textured mesh from any side: a small rasteriser, differentiable in the texture.

The camera sits on the z axis at `distance` and looks at the origin: what lies at z = 0 within [-1, 1]
fills the picture. What hides what is decided without gradients; colours are read bilinearly.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from attacks.images import as_images
from attacks.mesh import Mesh, mesh_named
from models.randomness import Randomness
from models.threat import Box, per_sample

ENTRIES = 2**20
INSIDE = -1e-5


@dataclass(frozen=True)
class Fragments:
    """What each pixel of k pictures shows: face (k, h, w), -1 for none, and its corners' weight (k, h, w, 3).

    The weights sum to 1 and are those in space, not on the screen.
    """

    face: Tensor
    weight: Tensor


def rasterise(points: Tensor, faces: Tensor, size: tuple[int, int], distance: float) -> Fragments:
    """The nearest face at the centre of each pixel, for the vertices `points` (k, v, 3) of k views.

    Faces with a corner behind the camera are left out.
    """
    per_view = 3 * max(len(faces), 1) * size[0] * size[1]
    parts = [_rasterise(part, faces, size, distance) for part in points.split(max(ENTRIES // per_view, 1))]
    return Fragments(torch.cat([part.face for part in parts]), torch.cat([part.weight for part in parts]))


def _rasterise(points: Tensor, faces: Tensor, size: tuple[int, int], distance: float) -> Fragments:
    (h, w), k = size, len(points)
    depth = (distance - points[:, :, 2]).double()
    screen = distance * points[:, :, :2].double() / depth.clamp(min=1e-9)[:, :, None]
    corner, depth = screen[:, faces], depth[:, faces]
    x, y = corner.unbind(3)
    x1, x2, y1, y2 = x.roll(-1, 2), x.roll(-2, 2), y.roll(-1, 2), y.roll(-2, 2)
    area = (x[:, :, 1] - x[:, :, 0]) * (y[:, :, 2] - y[:, :, 0])
    area = area - (x[:, :, 2] - x[:, :, 0]) * (y[:, :, 1] - y[:, :, 0])
    usable = (area.abs() > 1e-12) & (depth > 1e-6).all(2)
    # Each corner's weight on the screen is an affine function of the place: 1 there and 0 at the other two.
    plane = torch.stack([y1 - y2, x2 - x1, x1 * y2 - x2 * y1], 3)
    plane = plane / torch.where(usable, area, torch.ones_like(area))[:, :, None, None]
    right = (2 * torch.arange(w, device=points.device).double() + 1) / w - 1
    up = 1 - (2 * torch.arange(h, device=points.device).double() + 1) / h
    place = torch.stack([right.expand(h, w), up[:, None].expand(h, w), torch.ones_like(right).expand(h, w)])
    place = place.float()
    weight = torch.einsum("kfci,ihw->kfchw", plane.float(), place)
    # The inverse depth is affine on the screen as well, and the greatest is in front.
    nearness = torch.einsum("kfi,ihw->kfhw", (plane / depth[..., None]).sum(2).float(), place)
    seen = (weight.amin(2) >= INSIDE) & usable[:, :, None, None]
    nearest, face = torch.where(seen, nearness, 0.0).max(1)
    chosen = plane.flatten(2).gather(1, face.flatten(1)[:, :, None].expand(-1, -1, 9))
    exact = torch.einsum("kpci,ip->kpc", chosen.unflatten(2, (3, 3)), place.flatten(1).double()).clamp(min=0)
    exact = exact / depth.gather(1, face.flatten(1)[:, :, None].expand(-1, -1, 3))
    exact = exact / exact.sum(2, keepdim=True).clamp(min=1e-30)
    return Fragments(torch.where(nearest > 0, face, -1), exact.reshape(k, h, w, 3))


def render(
    mesh: Mesh, texture: Tensor, points: Tensor, background: Tensor, shade: Tensor, distance: float
) -> Tensor:
    """Pictures as large as `texture` (k, c, h, w), one of each view.

    points (k, v, 3): the mesh's vertices there; background as the texture; shade (k, f): what each face's
    colour is multiplied by. Differentiable in the texture, which is repeated to its edge outside [0, 1].
    """
    with torch.no_grad():
        seen = rasterise(points, mesh.faces, (texture.shape[2], texture.shape[3]), distance)
        hit, face = seen.face >= 0, seen.face.clamp(min=0)
        uv = (mesh.uv.to(seen.weight)[face] * seen.weight[..., None]).sum(3)
        light = shade.gather(1, face.flatten(1)).reshape(face.shape)[:, None].to(texture)
    colour = functional.grid_sample(
        texture, (2 * uv - 1).to(texture), padding_mode="border", align_corners=False
    )
    return torch.where(hit[:, None], colour * light, background)


def turned(points: Tensor, yaw: Tensor, pitch: Tensor, roll: Tensor) -> Tensor:
    """The points (v, 3) turned by angles (k,) in degrees about y, then x, then z: (k, v, 3)."""
    yaw, pitch, roll = (torch.deg2rad(angle.double()) for angle in (yaw, pitch, roll))
    matrix = torch.eye(3, dtype=torch.float64, device=yaw.device).expand(len(yaw), 3, 3)
    for angle, (a, b) in ((yaw, (2, 0)), (pitch, (1, 2)), (roll, (0, 1))):
        step = torch.eye(3, dtype=torch.float64, device=yaw.device).repeat(len(yaw), 1, 1)
        step[:, a, a] = step[:, b, b] = torch.cos(angle)
        step[:, a, b], step[:, b, a] = -torch.sin(angle), torch.sin(angle)
        matrix = step @ matrix
    return torch.einsum("kij,vj->kvi", matrix, points.to(matrix))


@dataclass(frozen=True)
class Scene:
    """Random views of a mesh whose texture is the image: a transform as in `attacks.transforms`.

    Up to `turn` degrees about each of the x and y axes and `roll` in the picture, 1 +- `scale` times as
    large, moved by up to the part `shift` of the picture's side; a grey background of up to `background` box
    widths above black; light from the camera's side whose directed part is up to `light`.
    """

    mesh: str = "shell"
    turn: float = 30.0
    roll: float = 15.0
    scale: float = 0.1
    shift: float = 0.05
    background: float = 0.1
    light: float = 0.3
    distance: float = 4.0

    def __call__(self, x: Tensor, keys: Tensor, randomness: Randomness, box: Box) -> Tensor:
        mesh, texture = mesh_named(self.mesh), as_images(x)
        draws = 2 * randomness.child("view").uniform(keys, (10,)).double() - 1
        angles = (self.turn * draws[:, 0], self.turn * draws[:, 1], self.roll * draws[:, 2])
        points = turned(mesh.vertices.to(x.device), *angles)
        points = points * (1 + self.scale * draws[:, 3])[:, None, None]
        points[:, :, :2] += 2 * self.shift * draws[:, None, 4:6]
        level = self.background * box.width * (draws[:, 6] + 1) / 2
        background = per_sample(level.to(texture), texture).expand_as(texture)
        shade = self._shade(mesh, points, draws)
        seen = render(mesh, texture - box.lower, points, background, shade, self.distance)
        return box.clamp(seen + box.lower).reshape(x.shape)

    def _shade(self, mesh: Mesh, points: Tensor, draws: Tensor) -> Tensor:
        """Lambert's law for each face (k, f): 1 where it looks into the light, either side alike."""
        corner = points[:, mesh.faces.to(points.device)]
        normal = torch.linalg.cross(corner[:, :, 1] - corner[:, :, 0], corner[:, :, 2] - corner[:, :, 0])
        normal = functional.normalize(normal, dim=2)
        source = functional.normalize(torch.cat([draws[:, 7:9], torch.ones_like(draws[:, :1])], 1), dim=1)
        facing = (normal * source[:, None]).sum(2).abs()
        directed = (self.light * (draws[:, 9] + 1) / 2)[:, None]
        return 1 - directed + directed * facing
