"""The last bit of margin: blocks of pixels are set to a face of the linf ball, the best ones together."""

from __future__ import annotations

import torch
from torch import Tensor

from attacks.chains import Course, Search
from attacks.images import as_images
from attacks.losses import clearly_wrong, margin_loss

GRIDS = (14, 7, 4)
PREFIXES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
ROUNDS = 6
ENOUGH = 0.75
CHUNK = 2**20
# As many as one grey image has.
SHORTLIST = 522
SETTLE = Course(steps=8, first=0.1)


def cells(height: int, width: int) -> Tensor:
    """Masks (blocks, h, w) of grids of 14 x 14, 7 x 7 and 4 x 4 blocks; a row of pixels has 196, ..."""
    masks = []
    for grid in GRIDS:
        down, across = (grid, grid) if height > 1 else (1, grid * grid)
        row = torch.arange(height) * min(down, height) // height
        column = torch.arange(width) * min(across, width) // width
        cell = row[:, None] * min(across, width) + column
        masks.append(cell == torch.arange(int(cell.max()) + 1)[:, None, None])
    return torch.cat(masks)


class Flips:
    """Every block of one channel at the top or the bottom of the ball around one input x (1, ...)."""

    def __init__(self, search: Search, row: Tensor) -> None:
        self.search, self.row = search, row
        self.lower, self.upper = (as_images(bound) for bound in search.threat.bounds(search.batch.x[row]))
        self.masks = cells(*self.lower.shape[2:]).to(self.lower.device)
        self.count = 2 * self.lower.shape[1] * len(self.masks)

    def apply(self, z: Tensor, flips: Tensor) -> Tensor:
        """The images z (k, c, h, w) with flip number `flips` (k,) of each carried out."""
        mask = self.masks[flips // 2 % len(self.masks)][:, None]
        channel = flips // (2 * len(self.masks))
        mine = torch.arange(z.shape[1], device=z.device) == channel[:, None]
        face = torch.where((flips % 2 == 0)[:, None, None, None], self.upper, self.lower)
        return torch.where(mask & mine[:, :, None, None], face, z)

    def margins(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Margins of the images z (k, c, h, w), and which are clearly misclassified."""
        y = self.search.batch.y[self.row].expand(len(z))
        x = z.reshape(-1, *self.search.batch.x.shape[1:])
        logits = self.search.model.logits(x, self.row.expand(len(z)))
        return -margin_loss(logits, y), clearly_wrong(logits, y)

    def each(self, z: Tensor) -> Tensor:
        """The margin after every single flip of z (1, c, h, w) on the shortlist: (count,), else infinite."""
        size = max(1, CHUNK // z[0].numel())
        margins = torch.full((self.count,), torch.inf).to(z)
        for part in self.shortlist(z).split(size):
            margins[part] = self.margins(self.apply(z.expand(len(part), -1, -1, -1), part))[0].to(margins)
        return margins

    def shortlist(self, z: Tensor) -> Tensor:
        """All flips of z (1, c, h, w), or the SHORTLIST that promise most by the gradient there: (k,)."""
        if self.count <= SHORTLIST:
            return torch.arange(self.count, device=z.device)
        x, anyone = z.reshape(-1, *self.search.batch.x.shape[1:]), torch.full_like(self.row, -1)
        _, _, slope = self.search.look(x, self.row, anyone, None, 0.0)
        gains = as_images(slope) * torch.stack([self.upper - z, self.lower - z])[:, 0]
        promise = gains.flatten(2) @ self.masks.flatten(1).T.to(gains)
        return promise.permute(1, 2, 0).flatten().topk(SHORTLIST).indices

    def together(self, z: Tensor, order: Tensor) -> Tensor:
        """z with the first 1, 2, 3, ... flips of `order`, of two on a pixel the earlier: (k, c, h, w)."""
        last = len(order)
        rank = torch.full((self.count,), last, device=z.device).index_copy_(
            0, order, torch.arange(last, device=z.device)
        )
        rank = rank.reshape(z.shape[1], len(self.masks), 2)
        covered = torch.where(self.masks[None, :, None], rank[..., None, None], last).amin(1)
        up, down = covered[:, 0], covered[:, 1]
        face = torch.where(up < down, self.upper, self.lower)
        sizes = torch.tensor([size for size in PREFIXES if size <= last], device=z.device)
        return torch.where(torch.minimum(up, down) < sizes[:, None, None, None], face, z)


def polish(search: Search, rows: Tensor, stage: str) -> None:
    """Flips blocks at the best points of the samples `rows` (k,), as long as that lowers their margin.

    A round tries every block alone (of a colour image those that the gradient rates best), carries out the
    best 1, 2, 3, 4, 6, ... that improve together, keeps the best of these and lets it settle by 8 small
    steps. It breaks samples that no gradient restart does. A sample leaves when a round takes less than a
    quarter off its margin.
    """
    for row in rows.split(1) if len(rows) else ():
        flips = Flips(search, row)
        for _ in range(ROUNDS):
            z, margin = as_images(search.point[row]), search.margin[row]
            alone = flips.each(z)
            order = alone.argsort(stable=True)
            order = order[alone[order] < margin]
            if not len(order):
                break
            tried = flips.together(z, order)
            margins, wrong = flips.margins(tried)
            points = tried.reshape(-1, *search.batch.x.shape[1:])
            search.offer(row.expand(len(points)), points, margins, wrong, stage)
            if bool(search.broken[row]):
                break
            search.climb(row, search.point[row], torch.full_like(row, -1), SETTLE, stage)
            if bool(search.broken[row]) or not bool(search.margin[row] < ENOUGH * margin):
                break
