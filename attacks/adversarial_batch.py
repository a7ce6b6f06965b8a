"""What an attack hands back, as judged by the base class."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class AdversarialBatch:
    """What an attack achieved on n samples, as judged by the base class.

    x_adv (n, ...) is legal for every sample; success (n,) says where the model errs on it;
    distance (n,) float64 is its perturbation's norm, NaN where the attack failed and 0 where the
    clean input is already misclassified (clean (n,) is False there); margin (n,) float64 is
    z_y - max_{j != y} z_j at x_adv; legal (n,) is False where the proposal left ball or box;
    forward and backward (n,) count passes, shared_* those that no sample owns; zero_gradient (n,) says
    that every gradient the attack asked for was zero throughout, so that it saw nothing; artifacts are
    what the attack fitted (a universal perturbation). won_by names the stage that broke each
    sample, "" where none did or the attack is of one piece. move (n, parameters) is what was carried out
    under a threat that is a transformation, whose size is then the distance. history (n, looks) float64,
    where it was asked for, is max_{j != y} z_j - z_y at every point whose logits the attack saw, in order,
    NaN after the last: its loss by step, or by query. Labels alone leave none.
    """

    x_adv: Tensor
    success: Tensor
    distance: Tensor
    margin: Tensor
    clean: Tensor
    legal: Tensor
    forward: Tensor
    backward: Tensor
    zero_gradient: Tensor
    shared_forward: int = 0
    shared_backward: int = 0
    artifacts: dict[str, Tensor] = field(default_factory=dict)
    won_by: tuple[str, ...] = ()
    move: Tensor | None = None
    history: Tensor | None = None

    @property
    def wins(self) -> dict[str, int]:
        """How many samples each stage broke, the most first."""
        return dict(Counter(name for name in self.won_by if name).most_common())


def side_by_side(tables: list[Tensor]) -> Tensor:
    """Tables (n_i, m_i) one below the other, filled up with NaN."""
    width = max((table.shape[1] for table in tables), default=0)
    return torch.cat([functional.pad(t, (0, width - t.shape[1]), value=torch.nan) for t in tables])
