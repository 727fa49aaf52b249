"""A teacher that never changes."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from lightning_switchkd.models.adapter import VLMAdapter


class FrozenTeacher(nn.Module):
    """A teacher that never changes: always in eval mode, without gradients, in the dtype it was loaded in.

    The teacher moves between devices, but ignores changes of dtype. Lightning's ``bf16-true`` casts whole modules.
    """

    def __init__(self, vlm: VLMAdapter) -> None:
        super().__init__()
        self.vlm = vlm
        self.requires_grad_(False)
        self.train(False)

    def train(self, mode: bool = True) -> FrozenTeacher:
        """Stay in eval mode."""
        return super().train(False)

    def _apply(self, fn, recurse=True):  # type: ignore[no-untyped-def]
        return super()._apply(keep_dtype(fn), recurse)


def keep_dtype(fn: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Wrap a function for ``nn.Module._apply`` so that it moves tensors but does not cast them."""

    def move(tensor: Tensor) -> Tensor:
        moved = fn(tensor)
        return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

    return move
