"""The loss that the grid attack sees over rotations and translations of an image."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from scipy import ndimage

from attacks.rotation_translation import RotationTranslation, spatial_worst_case
from attacks.rotation_translation import landscape as grid_losses
from bench.analysis.stored import Landscape, Surface
from models.base import Batch, Classifier, check_inputs
from models.poses import Poses
from models.transformation import need_images

ANGLES, SHIFTS = 31, 9
"""The grid of `rotation-translation` with twice as many shifts: every pose of its own grid is among them."""


def landscape(
    models: Sequence[Classifier],
    sample: Batch,
    poses: Poses | None = None,
    angles: int = ANGLES,
    shifts: int = SHIFTS,
) -> Landscape:
    """Every model's loss max_{j != y} z_j - z_y at each pose of the one image of `sample`.

    The losses are those of the grid attack itself, and its choice on the same grid stands beside the
    greatest: they differ only where the attack wins and stops before it has seen the worst pose.
    Raises UserError for inputs that are no images or that a model does not take.
    Source: Engstrom, Tran, Tsipras, Schmidt, Madry 2019, 1712.02779, figure 3.
    """
    poses = poses or Poses()
    need_images(sample.x, "rotations and translations")
    for model in models:
        check_inputs(sample, model)
    turn, down, right = (np.unique(axis) for axis in poses.grid(angles, shifts).T.numpy())
    h, w = sample.x.shape[2:]
    return Landscape(
        index=int(sample.index[0]),
        label=int(sample.y[0]),
        angles=(poses.rotation * turn).tolist(),
        down=(poses.translation * h * down).tolist(),
        right=(poses.translation * w * right).tolist(),
        surfaces=[_surface(model, sample, poses, angles, shifts, (turn, down, right)) for model in models],
    )


def _surface(
    model: Classifier,
    sample: Batch,
    poses: Poses,
    angles: int,
    shifts: int,
    axes: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> Surface:
    grid, losses = grid_losses(model, sample, poses, angles, shifts)
    loss = np.empty([len(axis) for axis in axes])
    loss[tuple(_places(grid, axes).T)] = losses[0].double().cpu().numpy()
    search = RotationTranslation(search="grid", angles=angles, shifts=shifts)
    attack = spatial_worst_case(model, sample, search, poses=poses)
    worst = _places(grid[losses[0].argmax()][None], axes)[0]
    chosen = _places(attack.pose, axes)[0]
    return Surface(
        model=model.name,
        loss=np.vectorize(lambda value: float(f"{value:.7g}"))(loss).tolist(),
        worst=tuple(worst.tolist()),
        chosen=tuple(chosen.tolist()),
        broken=bool(attack.success[0]),
        maxima=local_maxima(loss),
    )


def _places(poses: torch.Tensor, axes: tuple[np.ndarray, ...]) -> np.ndarray:
    """The places (k, 3) of poses (k, 3) on their axes."""
    columns = poses.double().cpu().numpy().T
    return np.stack(
        [np.abs(axis[None] - column[:, None]).argmin(1) for axis, column in zip(axes, columns, strict=True)],
        axis=1,
    )


def local_maxima(values: np.ndarray) -> int:
    """How many local maxima an array of any dimension has, diagonal neighbours included.

    Neighbours of equal value are one plateau: it counts once, and only where everything around it is lower.
    """
    around = np.ones([3] * values.ndim, dtype=bool)
    top = values == ndimage.maximum_filter(values, footprint=around, mode="constant", cval=-np.inf)
    while True:
        # A plateau with a higher neighbour anywhere is a slope everywhere.
        slope = np.where(top, -np.inf, values)
        touched = top & (
            ndimage.maximum_filter(slope, footprint=around, mode="constant", cval=-np.inf) >= values
        )
        if not touched.any():
            return int(ndimage.label(top, structure=around)[1])
        top &= ~touched
