"""A time limit for judges: after it the model is asked no more."""

from __future__ import annotations

import math
import time
from contextlib import nullcontext
from typing import Any

from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

from models.errors import UserError

# Pieces are as large as a quarter of what is left of the time allows, and no larger than this.
PIECE = 64


class TimeIsUp(Exception):
    """The model is asked after the time given for judging it."""


class Clock:
    """Stops a model from being asked after its time; None is no limit.

    Raises UserError for a time that is no number above 0.
    """

    def __init__(self, seconds: float | None) -> None:
        try:
            positive = seconds is None or 0 < float(seconds) < math.inf
        except (TypeError, ValueError):
            positive = False
        if not positive:
            raise UserError(f"seconds must be a number above 0, not {seconds}")
        self.started = time.perf_counter()
        self.seconds = math.inf if seconds is None else float(seconds)

    def piece(self, done: int, total: int) -> int:
        """How many samples to take up next."""
        if self.seconds == math.inf:
            return total
        spent = time.perf_counter() - self.started
        if not done or spent <= 0:
            return 1
        return min(PIECE, max(1, int((self.seconds - spent) / 4 * done / spent)))

    def watching(self, network: nn.Module) -> Any:
        """A handle, for `with`, that lets `network` be asked in time only."""
        if self.seconds == math.inf:
            return nullcontext()

        def check(module: nn.Module, _: Any) -> None:
            if module is network and time.perf_counter() - self.started > self.seconds:
                raise TimeIsUp

        # One for all modules: certificates refuse a network of one layer that has a hook of its own.
        return register_module_forward_pre_hook(check)
