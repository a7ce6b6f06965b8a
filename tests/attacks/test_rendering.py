"""The renderer against closed forms: exact squares, perspective, what hides what, and its gradient."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from attacks.mesh import Mesh, mesh_named, read_obj, shell, square
from attacks.rendering import Scene, rasterise, render, turned
from models.errors import UserError
from models.randomness import Randomness
from models.threat import UNIT_BOX, Box
from tests.builders import images

DISTANCE = 4.0


def picture(mesh: Mesh, texture: torch.Tensor, points: torch.Tensor | None = None, shade: float = 1.0):
    """One view of each texture (k, c, h, w), on black."""
    k = len(texture)
    points = mesh.vertices.expand(k, -1, -1) if points is None else points
    lit = torch.full((k, len(mesh.faces)), shade)
    return render(mesh, texture, points, torch.zeros_like(texture), lit, DISTANCE)


@pytest.mark.parametrize("shape", [(1, 7, 7), (3, 8, 8), (2, 5, 9)])
def test_a_square_that_faces_the_camera_is_its_texture(shape):
    x = images(4, shape)
    torch.testing.assert_close(picture(square(), x), x, atol=1e-5, rtol=0)
    torch.testing.assert_close(picture(square(), x, shade=0.25), 0.25 * x, atol=1e-5, rtol=0)


def test_half_as_near_is_twice_as_far():
    """At depth 2 DISTANCE the square is half as large: a quarter of the pixels, the rest background."""
    x = torch.ones(1, 1, 16, 16)
    away = square().vertices.clone()
    away[:, 2] = -DISTANCE
    seen = picture(square(), x, away[None])
    expected = torch.zeros(16, 16)
    expected[4:12, 4:12] = 1.0
    assert torch.equal(seen[0, 0], expected)


def test_turns_are_rotations():
    points, zero = square().vertices, torch.zeros(1)
    quarter = turned(points, zero, zero, torch.tensor([90.0]))[0]
    torch.testing.assert_close(quarter[:, 0], -points[:, 1].double(), atol=1e-9, rtol=0)
    torch.testing.assert_close(quarter[:, 1], points[:, 0].double(), atol=1e-9, rtol=0)
    x = images(1, (1, 8, 8))
    torch.testing.assert_close(
        picture(square(), x, quarter[None].float()), torch.rot90(x, 1, (2, 3)), atol=1e-5, rtol=0
    )
    angles = (torch.tensor([20.0]), torch.tensor([-35.0]), torch.tensor([50.0]))
    moved = turned(points, *angles)[0]
    torch.testing.assert_close(torch.cdist(moved, moved), torch.cdist(points, points).double())


def test_perspective_puts_the_texture_where_the_ray_meets_the_plane():
    """A square turned about y: the ray through each pixel, cut with the plane by hand."""
    size, angle = 32, torch.tensor(40.0)
    ramp = torch.linspace(0, 1, 512).expand(1, 1, 512, 512).contiguous()
    points = turned(square().vertices, angle[None], torch.zeros(1), torch.zeros(1))
    fragments = rasterise(points, square().faces, (size, size), DISTANCE)
    uv = (square().uv[fragments.face.clamp(min=0)] * fragments.weight[..., None]).sum(3)[0]
    radians = torch.deg2rad(angle.double())
    right = (2 * torch.arange(size).double() + 1) / size - 1
    # Points of the plane are s (cos, -sin) in (x, z); the ray is (right t, DISTANCE (1 - t)).
    along = right * DISTANCE / (DISTANCE * torch.cos(radians) - right * torch.sin(radians))
    inside = along.abs() < 1
    row = size // 2
    assert torch.equal(fragments.face[0, row] >= 0, inside)
    torch.testing.assert_close(uv[row, inside, 0], (along[inside] + 1) / 2, atol=1e-6, rtol=0)
    assert ramp.shape[-1] == 512


def test_the_nearer_face_hides_the_farther_whatever_their_order():
    near, far = square().vertices.clone(), square().vertices.clone()
    near[:, 2], far[:, 2] = 0.5, -0.5
    near[:, :2] *= 0.5
    for order in (0, 1):
        parts = [near, far] if order == 0 else [far, near]
        places = [torch.full((2, 3, 2), 0.9 if part is near else 0.1) for part in parts]
        mesh = Mesh(torch.cat(parts), torch.cat([square().faces, square().faces + 4]), torch.cat(places))
        texture = torch.linspace(0, 1, 10).expand(1, 1, 10, 10).contiguous()
        seen = picture(mesh, texture)[0, 0]
        assert float(seen[5, 5]) == pytest.approx(0.9444, abs=1e-3)
        assert float(seen[1, 1]) == pytest.approx(0.0556, abs=1e-3)


def test_faces_that_cross_are_told_apart_pixel_by_pixel():
    left, right = square().vertices.clone(), square().vertices.clone()
    left[:, 2], right[:, 2] = left[:, 0], -right[:, 0]
    mesh = Mesh(
        torch.cat([left, right]), torch.cat([square().faces, square().faces + 4]), square().uv.repeat(2, 1, 1)
    )
    fragments = rasterise(mesh.vertices[None], mesh.faces, (9, 9), DISTANCE)
    first = fragments.face[0] < 2
    assert not bool(first[4, 1])
    assert bool(first[4, 7])


def test_what_is_behind_the_camera_is_not_seen():
    behind = square().vertices.clone()
    behind[:, 2] = DISTANCE + 1
    assert not bool(picture(square(), torch.ones(1, 1, 6, 6), behind[None]).any())


def test_the_gradient_is_that_of_finite_differences():
    x = images(1, (1, 6, 6)).double()
    points = turned(shell().vertices, torch.tensor([25.0]), torch.tensor([-10.0]), torch.tensor([5.0]))
    weight = torch.rand(1, 1, 6, 6, generator=torch.Generator().manual_seed(0)).double()

    def value(texture: torch.Tensor) -> torch.Tensor:
        return (weight * picture(shell(), texture, points).square()).sum()

    leaf = x.clone().requires_grad_(True)
    (slope,) = torch.autograd.grad(value(leaf), leaf)
    assert float(slope.abs().sum()) > 1
    for entry in range(36):
        step = torch.zeros(36).double()
        step[entry] = 1e-6
        change = value(x + step.reshape(x.shape)) - value(x - step.reshape(x.shape))
        assert float(slope.flatten()[entry]) == pytest.approx(float(change) / 2e-6, abs=1e-6)


def test_the_shell_is_closed_and_bears_the_whole_texture():
    mesh = shell()
    edges = torch.cat([mesh.faces[:, [a, b]] for a, b in ((0, 1), (1, 2), (2, 0))]).sort(1).values
    _, counts = edges.unique(dim=0, return_counts=True)
    assert bool((counts == 2).all())
    fragments = rasterise(mesh.vertices[None], mesh.faces, (20, 20), DISTANCE)
    assert bool((fragments.face >= 0).all())
    uv = (mesh.uv[fragments.face] * fragments.weight[..., None]).sum(3)
    assert float(uv.min()) < 0.1
    assert float(uv.max()) > 0.9


def test_a_view_depends_on_its_key_alone_and_the_box_is_a_unit():
    x, keys = images(6, (1, 12, 12)), torch.arange(6)
    whole = Scene()(x, keys, Randomness(3), UNIT_BOX)
    alone = torch.cat([Scene()(x[i : i + 1], keys[i : i + 1], Randomness(3), UNIT_BOX) for i in range(6)])
    torch.testing.assert_close(whole, alone)
    assert not torch.equal(whole[0], Scene()(x[:1], keys[1:2], Randomness(3), UNIT_BOX)[0])
    box = Box(-3.0, 7.0)
    torch.testing.assert_close(
        Scene()(10 * x - 3, keys, Randomness(3), box), 10 * whole - 3, atol=1e-4, rtol=0
    )
    flat = Scene("square", 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)(x, keys, Randomness(3), UNIT_BOX)
    torch.testing.assert_close(flat, x, atol=1e-5, rtol=0)


CUBE = """# a cube's front and top
v -2 -2 2
v 2 -2 2
v 2 2 2
v -2 2 2
v 2 2 -2
v -2 2 -2
vt 0 0
vt 1 0
vt 1 1
vt 0 1
f 1/1 2/2 3/3 4/4
f -3/1 -4/2/9 5/3 6/4
"""


def test_an_obj_file_is_read_and_fitted(tmp_path: Path):
    file = tmp_path / "cube.obj"
    file.write_text(CUBE)
    mesh = mesh_named(str(file))
    assert mesh.faces.tolist() == [[0, 1, 2], [0, 2, 3], [3, 2, 4], [3, 4, 5]]
    assert mesh.vertices.abs().max() == 1.0
    x = images(1, (1, 6, 6))
    front = Mesh(mesh.vertices * torch.tensor([1.0, 1.0, 0.0]), mesh.faces[:2], mesh.uv[:2])
    torch.testing.assert_close(picture(front, x), x, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("v 0 0\nf 1/1 2/1 3/1", "line 2"),
        ("v 0 0 zero", "line 1"),
        ("v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 3", "line 4: 'f 1 2 3' is no v, vt or f with vertex/texture"),
        ("v 0 0 0", "has no faces"),
        ("v 0 0 0\nvt 0 0\nf 1/1 1/1 9/1", "line 3"),
    ],
)
def test_a_bad_obj_file_is_one_clear_line(text: str, message: str, tmp_path: Path):
    file = tmp_path / "bad.obj"
    file.write_text(text)
    with pytest.raises(UserError, match=message):
        read_obj(file)


def test_unknown_meshes_are_refused():
    with pytest.raises(UserError, match=r"choose shell, square or a FILE.obj"):
        mesh_named("turtle")
    with pytest.raises(UserError, match=r"no mesh file nowhere.obj"):
        mesh_named("nowhere.obj")
