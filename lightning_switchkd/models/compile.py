"""Compilation (less time) and activation checkpointing (less memory) of a model's blocks.

Results stay equal up to rounding. Both replace only the ``forward`` of a block: parameter names, hooks and export stay
the same. Hugging Face's ``gradient_checkpointing_enable`` does nothing in eval mode, and a teacher is always in eval
mode.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache
from types import MethodType
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import Cache

from lightning_switchkd.core.errors import UserError

Forward = Callable[..., Any]
"""An unbound forward: its first argument is the block."""


def compile_blocks(blocks: Iterable[nn.Module], where: str) -> None:
    """Compile each block's forward with ``torch.compile``. Blocks of one class share the compiled code.

    Compilation happens at the first batch. Calls with a key-value cache run uncompiled, because the cache changes its
    shape with every token.

    Args:
        blocks: Modules of one part.
        where: Name of the setting, for the UserError that a failed compilation raises.
    """
    compiled = cache(lambda forward: _compiled(forward, where))
    for block in blocks:
        _replace_forward(block, compiled)


def recompute_blocks(blocks: Iterable[nn.Module]) -> None:
    """Keep only the inputs of each block for the backward pass, which recomputes the activations.

    Args:
        blocks: Modules of one part. Compile them first, if at all.
    """
    for block in blocks:
        _replace_forward(block, _recomputed)


def _replace_forward(block: nn.Module, wrap: Callable[[Forward], Forward]) -> None:
    assert isinstance(block.forward, MethodType)
    block.forward = MethodType(wrap(block.forward.__func__), block)  # deepcopy rebinds a method to the copy


def _with_cache(arguments: Iterable[Any]) -> bool:
    return any(isinstance(argument, Cache) for argument in arguments)


def _compiled(forward: Forward, where: str) -> Forward:
    # Without isolation, the blocks of both models share one limit of 8 graphs and run uncompiled beyond it.
    fast = torch.compile(forward, isolate_recompiles=True)  # type: ignore[call-overload]

    def compiled(block: nn.Module, *args: Any, **kwargs: Any) -> Any:
        from torch._inductor.exc import InductorError  # a slow import that torch.compile needs anyway

        if _with_cache((*args, *kwargs.values())):
            return forward(block, *args, **kwargs)
        try:
            return fast(block, *args, **kwargs)
        except InductorError as error:
            reason = str(error).strip().splitlines()[0]
            raise UserError(
                f"{where}: torch.compile could not compile a {type(block).__name__} ({reason}). On a CPU it needs a "
                "C++ compiler (g++, or the one in the variable CXX), on a GPU Triton and a C compiler. Install the "
                f"compiler, or disable compilation with --{where}=[]."
            ) from error

    return compiled


def _recomputed(forward: Forward) -> Forward:
    def recomputed(block: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled() or _with_cache((*args, *kwargs.values())):
            return forward(block, *args, **kwargs)
        return checkpoint(forward, block, *args, use_reentrant=False, **kwargs)

    return recomputed
