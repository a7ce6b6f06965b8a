"""Decision regions around an image, on a plane that several models share."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bench.analysis.stored import Crossing, Plane, Regions
from models.base import Batch, Classifier, check_inputs, frozen
from models.errors import UserError
from models.randomness import Randomness

SIDE = 61
"""Points along each axis; odd, so that the image itself is one of them."""
FAR, MARGIN = 0.5, 1.3
"""A walk ends at FAR times the box's diagonal; the plane reaches MARGIN times the farthest region found."""
WALK, HALVINGS, ROWS = 800, 40, 512


def regions(models: Sequence[Classifier], sample: Batch, randomness: Randomness) -> Regions:
    """What every model decides on {x + a u + b v : |a|, |b| <= reach} around the one image of `sample`.

    u is the direction of the first model's loss gradient, v a random one orthogonal to it, both of l2
    norm 1: a and b are l2 distances in input units. The reach takes in every other region found along +-u, up
    to half the box's diagonal, where walks end. Points outside the box are asked about like the others:
    cutting them off would bend the plane. Raises UserError where the gradient is zero, and for inputs that a
    model does not take.
    Source: Liu, Chen, Liu, Song 2017, 1611.02770, figure 3.
    """
    for model in models:
        check_inputs(sample, model)
    u = gradient_direction(models[0], sample)
    v = orthogonal_direction(u, randomness.normal(sample.index, sample.x.shape[1:])[0])
    far = FAR * models[0].box.width * sample.x[0].numel() ** 0.5
    ends = [
        (_crossing(model, sample.x[0], u, far), _crossing(model, sample.x[0], -u, far)) for model in models
    ]
    found = [end.distance for pair in ends for end in pair if end is not None]
    reach = min(MARGIN * max(found), far) if found else far
    return Regions(
        index=int(sample.index[0]),
        label=int(sample.y[0]),
        reach=reach,
        far=far,
        cosine=float((u * v).sum()),
        planes=[
            _plane(model, sample.x[0], torch.stack([u, v]), reach, pair)
            for model, pair in zip(models, ends, strict=True)
        ],
    )


def gradient_direction(model: Classifier, sample: Batch) -> Tensor:
    """The direction (c, h, w), float64, of the cross-entropy's gradient at the one image of `sample`.

    Cross-entropy is softplus(ln sum_{j != y} exp z_j - z_y), so its gradient is parallel to that of the
    argument, which does not vanish in rounding where the model is confident.
    """
    with frozen(model), torch.enable_grad():
        x = sample.x.detach().clone().requires_grad_(True)
        logits = model.differentiable_logits(x)
        rest = logits.scatter(1, sample.y[:, None], -torch.inf)
        loss = rest.logsumexp(1) - logits.gather(1, sample.y[:, None])[:, 0]
        (gradient,) = torch.autograd.grad(loss.sum(), x)
    length = gradient.double().norm()
    if not bool(length > 0):
        raise UserError(
            f"model '{model.name}' has no gradient at image {int(sample.index[0])}: "
            "name another model first, or choose another --index"
        )
    return gradient[0].double() / length


def orthogonal_direction(u: Tensor, draw: Tensor) -> Tensor:
    """`draw` without its part along u, of l2 norm 1, in float64."""
    v = draw.double()
    # The second pass removes what rounding left in the first.
    for _ in range(2):
        v = v - (u * v).sum() * u
        v = v / v.norm()
    return v


def _plane(
    model: Classifier,
    x: Tensor,
    axes: Tensor,
    reach: float,
    ends: tuple[Crossing | None, Crossing | None],
) -> Plane:
    steps = reach * torch.linspace(-1, 1, SIDE, dtype=torch.float64, device=x.device)
    steps[SIDE // 2] = 0
    b, a = (axis.flatten() for axis in torch.meshgrid(steps, steps, indexing="ij"))
    classes = _decisions(model, x, axes, torch.stack([a, b], 1))
    return Plane(
        model=model.name,
        predicted=int(_decisions(model, x, axes, steps.new_zeros(1, 2))[0]),
        classes=classes.reshape(SIDE, SIDE).tolist(),
        ahead=ends[0],
        behind=ends[1],
    )


def _decisions(model: Classifier, x: Tensor, directions: Tensor, places: Tensor) -> Tensor:
    """The classes at x + places @ directions, for places (k, d) and directions (d, c, h, w)."""
    found = []
    with frozen(model), torch.no_grad():
        for part in places.split(ROWS):
            points = x.double() + torch.einsum("kd,d...->k...", part, directions)
            found.append(model.logits(points.to(x.dtype)).argmax(1))
    return torch.cat(found)


def _crossing(model: Classifier, x: Tensor, direction: Tensor, end: float) -> Crossing | None:
    """The first change of decision on a walk of WALK steps along the direction, halved down to rounding."""
    walk = end * torch.arange(WALK + 1, dtype=torch.float64, device=x.device) / WALK
    ahead = _decisions(model, x, direction[None], walk[:, None])
    (changed,) = (ahead != ahead[0]).nonzero(as_tuple=True)
    if not len(changed):
        return None
    place = int(changed[0])
    near, far, entered = float(walk[place - 1]), float(walk[place]), int(ahead[place])
    for _ in range(HALVINGS):
        middle = (near + far) / 2
        found = int(_decisions(model, x, direction[None], walk.new_tensor([[middle]]))[0])
        if found == int(ahead[0]):
            near = middle
        else:
            far, entered = middle, found
    return Crossing(distance=far, entered=entered)
