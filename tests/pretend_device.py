"""A second device that needs no GPU: it computes on the CPU and refuses what CUDA refuses.

Inside the block of ``pretend_device`` tensors on torch's ``meta`` device, which elsewhere hold no
numbers, are wrappers around CPU tensors that do, so an operation's result is that of the CPU.
Operations on tensors of both devices raise, with CUDA's exceptions: copies from one to the other,
CPU tensors of no dimension, and indexing by CPU indices.  So does ``numpy()``.

``torch.tensor(..., device=)`` makes a true meta tensor and is refused; use ``torch.tensor(...).to``.

What it cannot see: how CUDA rounds, which types and shapes its kernels lack, memory, speed, and
anything asynchronous.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

PRETENDED = torch.device("meta")
INDEXED = ("aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_")


class PretendTensor(Tensor):
    """A tensor on the device; ``held`` is the CPU tensor with its numbers."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> PretendTensor:
        made: PretendTensor = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=PRETENDED,
        )
        made.held = held
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl

    def tolist(self) -> Any:
        """As for CUDA, where it copies to the CPU."""
        return self.held.tolist()

    def numpy(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError("can't convert a tensor on the pretend device to numpy; use Tensor.cpu() first")

    def __repr__(self, *args: Any, **kwargs: Any) -> str:
        return f"pretend {self.held}"

    @classmethod
    def __torch_dispatch__(
        cls, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        raise RuntimeError(f"{function}: a tensor of the pretend device is used outside of its block")


class _Dispatch(TorchDispatchMode):
    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = dict(kwargs or {})
        there = _is_there(function, args, given)
        if given.get("device") is not None:
            given["device"] = torch.device("cpu")
        result = function(*tree_map(_held, args), **tree_map(_held, given))
        known = {id(_held(tensor)): tensor for tensor in _tensors((args, given))}  # of operations in place

        def named(found: Any) -> Any:
            if not isinstance(found, Tensor) or id(found) in known:
                return known.get(id(found), found)
            return PretendTensor(found) if there else found

        return tree_map(named, result)


def _is_there(function: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> bool:
    """Whether the result is on the pretend device.  Raises ``RuntimeError`` on mixed devices."""
    name = function._schema.name
    if kwargs.get("device") is not None:
        return torch.device(kwargs["device"]) == PRETENDED
    if name == "aten::copy_":
        return isinstance(args[0], PretendTensor)
    if name in INDEXED:
        indices = _devices(args[1])
        if not isinstance(args[0], PretendTensor) and True in indices:
            raise RuntimeError(f"{name}: indices should be either on CPU or on the same device as the tensor")
        found = _devices((args[0], args[2:]))
    else:
        found = _devices((args, kwargs))
    if found == {True, False}:
        raise RuntimeError(f"{name}: expected all tensors to be on the same device, but found two devices")
    return True in found


def _devices(nested: Any) -> set[bool]:
    """For each tensor with a say: whether it is on the pretend device."""
    return {isinstance(t, PretendTensor) for t in _tensors(nested) if t.dim() or isinstance(t, PretendTensor)}


def _tensors(nested: Any) -> list[Tensor]:
    found = [leaf for leaf in tree_leaves(nested) if isinstance(leaf, Tensor)]
    if any(tensor.is_meta and not isinstance(tensor, PretendTensor) for tensor in found):
        raise RuntimeError("a true meta tensor on the pretend device; make it on the CPU and move it")
    return found


def _held(leaf: Any) -> Any:
    return leaf.held if isinstance(leaf, PretendTensor) else leaf


@contextmanager
def pretend_device() -> Iterator[torch.device]:
    """The device, usable inside the block."""
    with _Dispatch():
        yield PRETENDED
