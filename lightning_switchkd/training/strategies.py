"""FSDP2 for Lightning: blocks sharded over all processes, and the checkpoints of a single process."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from lightning_switchkd.core.types import PARTS
from lightning_switchkd.distillation.distiller import Distiller


class FSDP2(ModelParallelStrategy):
    """``fully_shard`` over all processes of a run.

    The blocks of both models are gathered one after the other as they run. The student's other weights, above all
    embeddings and head, are gathered once a step, so that the losses see its head as a plain tensor. The teacher's
    other weights are whole in every process.

    A checkpoint is one file with plain tensors, which any strategy resumes. Model weights are collected by
    ``torch.distributed.checkpoint.state_dict`` (in the base class); docs/decisions/one-file-checkpoints.md tells why
    the optimizer's state is not.

    Args:
        shard_teacher: Shard the frozen teacher's blocks as well. False keeps the whole teacher in every process, which
            saves communication.
        process_group_backend: None uses NCCL on GPUs and gloo on CPUs.
    """

    def __init__(self, shard_teacher: bool = True, process_group_backend: str | None = None) -> None:
        super().__init__(
            tensor_parallel_size=1, save_distributed_checkpoint=False, process_group_backend=process_group_backend
        )
        self.shard_teacher = shard_teacher

    def setup_environment(self) -> None:
        """Create one device mesh of all processes."""
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    def shard(self, distiller: Distiller) -> None:
        """Shard a pair in place, after weights are loaded and blocks are compiled or checkpointed."""
        shard(distiller, self.device_mesh["data_parallel"], self.shard_teacher)

    # -- checkpoints: plain tensors in one file ------------------------------------------------------------------------

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """Return the full optimizer state on rank 0, keyed as by ``Optimizer.state_dict``, and {} elsewhere."""
        plain = optimizer.optimizer if isinstance(optimizer, LightningOptimizer) else optimizer
        state = _gather(plain.state_dict(), keep=self.is_global_zero)
        assert isinstance(state, dict)
        return state if self.is_global_zero else {}

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        """Read the file. The module checks its content before the two methods below load it."""
        return super(ModelParallelStrategy, self).load_checkpoint(checkpoint_path, weights_only)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Load this process's shards of the model."""
        assert self.lightning_module is not None
        own = self.lightning_module.state_dict()
        state = {name: _shard_like(own.get(name), tensor) for name, tensor in checkpoint["state_dict"].items()}
        self.lightning_module.load_state_dict(state, strict=strict)

    @property
    def lightning_restore_optimizer(self) -> bool:
        """Make Lightning call :meth:`load_optimizer_state_dict`."""
        return True

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Load this process's shards of the optimizer states."""
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            ids = (i for group in state["param_groups"] for i in group["params"])
            parameters = (p for group in optimizer.param_groups for p in group["params"])
            by_id = dict(zip(ids, parameters, strict=True))
            sharded = {
                i: {name: _shard_like(by_id[i], value) for name, value in values.items()}
                for i, values in state["state"].items()
            }
            optimizer.load_state_dict({**state, "state": sharded})


def shard(distiller: Distiller, mesh: DeviceMesh, shard_teacher: bool) -> None:
    """Shard a pair in place, bottom-up: the blocks of both models, then the rest of the student as the root.

    Weights are gathered in the dtype they are stored in. Autocast then computes as in a single process.
    """
    teacher = None if distiller.teacher is None else distiller.teacher.vlm
    for vlm in (distiller.student, teacher if shard_teacher else None):
        if vlm is not None:
            for block in (block for part in PARTS for block in vlm.blocks(part)):
                fully_shard(block, mesh=mesh, reshard_after_forward=True)
    unsharded = {p for p in (teacher.parameters() if teacher else ()) if not isinstance(p, DTensor)}
    fully_shard(distiller, mesh=mesh, ignored_params=unsharded, reshard_after_forward=False)
    register_fsdp_forward_method(distiller, "run")


def _gather(value: Any, keep: bool) -> Any:
    """Replace every sharded tensor by the full tensor on the CPU, one at a time; by None if not ``keep``."""
    if isinstance(value, dict):
        return {key: _gather(entry, keep) for key, entry in value.items()}
    if isinstance(value, DTensor):
        full = value.full_tensor()
        return full.cpu() if keep else None
    return value


def _shard_like(own: Any, value: Any) -> Any:
    """Shard a checkpoint's tensor like the parameter that it belongs to."""
    if isinstance(own, DTensor) and isinstance(value, Tensor) and value.shape == own.shape:
        value = value.to(own.device)
        return distribute_tensor(value, own.device_mesh, own.placements, src_data_rank=None)
    return value
