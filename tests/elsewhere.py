"""A device beside the CPU on machines that have none: tensors that say they are on it and refuse to be mixed.

Arithmetic is the CPU's own, so that results are those of the CPU; what an accelerator would refuse is
refused here too: tensors of two devices in one operation, a CPU generator, numpy on its memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend


class Backend:
    """What torch asks of a device's module: there is one while it is `present`; nothing on it is random."""

    present = False

    def is_initialized(self) -> bool:
        return True

    def is_available(self) -> bool:
        return self.present

    def current_device(self) -> int:
        return 0

    def device_count(self) -> int:
        return int(self.present)

    def _is_in_bad_fork(self) -> bool:
        return False

    def manual_seed_all(self, seed: int) -> None:
        """Nothing to seed."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]

    def get_rng_state(self, device: object = None) -> Tensor:
        return torch.empty(0, dtype=torch.uint8)

    def set_rng_state(self, state: Tensor, device: object = None) -> None:
        """Nothing to set."""


BACKEND = Backend()
_setup_privateuseone_for_python_backend("elsewhere", BACKEND)
# Without kernels of its own, reduced precision is the device's ordinary one.
AUTOCAST = torch.library.Library("_", "IMPL", "AutocastPrivateUse1")
AUTOCAST.fallback(torch.library.fallthrough_kernel)
ELSEWHERE = torch.device("elsewhere", 0)
aten = torch.ops.aten

# Operations that read from one device and write to another.
COPIES = {aten._to_copy.default, aten.copy_.default, aten._copy_from.default}
# Operations whose index tensors may stay on the CPU.
INDEXED = {
    aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default,
    aten._unsafe_index.Tensor,
}  # fmt: skip


class Elsewhere(Tensor):
    """A tensor whose numbers lie in `inner`, on the CPU, and whose device is ELSEWHERE."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> Elsewhere:
        made = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, inner.shape, strides=inner.stride(), storage_offset=inner.storage_offset(),
            dtype=inner.dtype, layout=inner.layout, device=ELSEWHERE, requires_grad=False,
        )  # fmt: skip
        made.inner = inner
        return made

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return f"Elsewhere({self.inner!r})"

    def tolist(self) -> Any:
        return self.inner.tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _carried_out(func, args, kwargs or {})


class Dispatch(TorchDispatchMode):
    """Carries out what asks for ELSEWHERE by name too."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _carried_out(func, args, kwargs or {})


def _carried_out(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    asked = kwargs.get("device")
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    there = [leaf for leaf in tensors if isinstance(leaf, Elsewhere)]
    if func not in COPIES:
        _check(func, args, tensors, there)
    if asked is not None:
        moved = torch.device(asked).type == ELSEWHERE.type
        kwargs = {**kwargs, "device": torch.device("cpu")}
    else:
        moved = bool(there) if func is not aten.copy_.default else isinstance(args[0], Elsewhere)
    generator = kwargs.get("generator")
    if generator is not None and moved:
        raise RuntimeError(f"{func}: expected an 'elsewhere' generator but found one of the cpu")
    plain_args, plain_kwargs = tree_map(_inner, (args, kwargs))
    if kwargs.get("pin_memory"):
        plain_kwargs["pin_memory"] = False
    out = func(*plain_args, **plain_kwargs)
    if not moved:
        return out
    out = tree_map(lambda part: Elsewhere(part) if type(part) is Tensor else part, out)
    return return_and_correct_aliasing(func, args, kwargs, out)


def _inner(part: Any) -> Any:
    return part.inner if isinstance(part, Elsewhere) else part


def _check(func: Any, args: Any, tensors: list[Tensor], there: list[Elsewhere]) -> None:
    """Raises RuntimeError where tensors of both devices meet; a CPU tensor of no dimensions is a number."""
    if not there:
        return
    if func in INDEXED:
        # Indices may lie on the CPU, but only those of a tensor elsewhere; values may not.
        if not isinstance(args[0], Elsewhere):
            raise RuntimeError(f"{func}: indices should be on the indexed tensor's device (cpu)")
        tensors = [part for part in tree_leaves((args[0], args[2:])) if isinstance(part, Tensor)]
    mixed = [part for part in tensors if not isinstance(part, Elsewhere)]
    strict = func in (aten.cat.default, aten.stack.default)
    if any(part.dim() or strict for part in mixed):
        raise RuntimeError(f"{func}: expected all tensors to be on the same device, found elsewhere and cpu")
    if mixed and "_." in str(func) and not isinstance(args[0], Elsewhere):
        raise RuntimeError(f"{func}: writes to a number on the CPU what lies on elsewhere")


@contextmanager
def another_device() -> Iterator[None]:
    """Within it, ELSEWHERE is there, and `.to(ELSEWHERE)` moves a tensor or a module to it."""
    lifted, overwritten = (
        torch._C._only_lift_cpu_tensors(),
        torch.__future__.get_overwrite_module_params_on_conversion(),
    )
    # A module's .double() makes new parameters: the old one's `inner` would keep its precision.
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    BACKEND.present = True
    # What torch.tensor(..., device=) makes is made on the CPU and then moved, in sight of Dispatch.
    torch._C._set_only_lift_cpu_tensors(True)
    try:
        with Dispatch():
            yield
    finally:
        BACKEND.present = False
        torch._C._set_only_lift_cpu_tensors(lifted)
        torch.__future__.set_overwrite_module_params_on_conversion(overwritten)
