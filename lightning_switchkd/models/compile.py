"""Compiled blocks for less time, recomputed blocks for less memory; the numbers stay the same but for rounding.

Both replace the ``forward`` of a block and nothing else: parameter names, hooks and export stay as they are.
Hugging Face's ``gradient_checkpointing_enable`` is not used: it does nothing in eval mode, where a teacher always is.
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
"""A forward that is not bound yet: its first argument is the block."""


def compile_blocks(blocks: Iterable[nn.Module], where: str) -> None:
    """Has ``torch.compile`` compile each block's forward; blocks of one class share what is compiled.

    It happens at the first batch. Calls with a key-value cache, whose shape changes with every token, are not compiled.

    Args:
        blocks: modules of one part.
        where: the setting that asked for it, for the error: a block that cannot be compiled raises a UserError.
    """
    compiled = cache(lambda forward: _compiled(forward, where))
    for block in blocks:
        _replace_forward(block, compiled)


def recompute_blocks(blocks: Iterable[nn.Module]) -> None:
    """Keeps only the inputs of each block for the backward pass, which computes the rest again.

    Args:
        blocks: modules of one part; those to be compiled are compiled before.
    """
    for block in blocks:
        _replace_forward(block, _recomputed)


def _replace_forward(block: nn.Module, change: Callable[[Forward], Forward]) -> None:
    assert isinstance(block.forward, MethodType)
    block.forward = MethodType(change(block.forward.__func__), block)  # as a method, it is rebound in a deep copy


def _with_cache(arguments: Iterable[Any]) -> bool:
    return any(isinstance(argument, Cache) for argument in arguments)


def _compiled(forward: Forward, where: str) -> Forward:
    # Isolated: else the blocks of both models together would share one limit of 8 graphs, and run eager beyond it.
    fast = torch.compile(forward, isolate_recompiles=True)  # type: ignore[call-overload]

    def compiled(block: nn.Module, *args: Any, **kwargs: Any) -> Any:
        from torch._inductor.exc import InductorError  # a slow import, made by torch.compile anyway

        if _with_cache((*args, *kwargs.values())):
            return forward(block, *args, **kwargs)
        try:
            return fast(block, *args, **kwargs)
        except InductorError as error:
            reason = str(error).strip().splitlines()[0]
            raise UserError(
                f"{where}: torch.compile could not compile a {type(block).__name__} ({reason}). On a CPU it needs a "
                "C++ compiler (g++, or what the variable CXX names), on a GPU Triton and a C compiler. Install what is "
                f"missing, or leave compiling out: --{where}=[]."
            ) from error

    return compiled


def _recomputed(forward: Forward) -> Forward:
    def recomputed(block: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled() or _with_cache((*args, *kwargs.values())):
            return forward(block, *args, **kwargs)
        return checkpoint(forward, block, *args, use_reentrant=False, **kwargs)

    return recomputed
