"""FSDP2 for Lightning: blocks sharded over all processes, and checkpoints like those of one process."""

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

    The blocks of both models are gathered one after the other as they run. What lies outside of them, embeddings and
    heads above all, is gathered once a step for the student, so that its head is a plain weight to the losses, and is
    whole in every process for the teacher. A checkpoint is one file with plain tensors: any strategy resumes it.

    Args:
        shard_teacher: shard the frozen teacher's blocks as well; else every process holds all of it, and gathers less.
        process_group_backend: by default NCCL on GPUs, gloo on CPUs.
    """

    def __init__(self, shard_teacher: bool = True, process_group_backend: str | None = None) -> None:
        super().__init__(
            tensor_parallel_size=1, save_distributed_checkpoint=False, process_group_backend=process_group_backend
        )
        self.shard_teacher = shard_teacher

    def setup_environment(self) -> None:
        """One mesh of all processes."""
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    def shard(self, distiller: Distiller) -> None:
        """Shards a pair in place; its weights are loaded, its blocks compiled or recomputed by now."""
        shard(distiller, self.device_mesh["data_parallel"], self.shard_teacher)

    # -- checkpoints: plain tensors in one file ------------------------------------------------------------------------

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """The module's whole state on rank 0; nothing elsewhere."""
        assert self.lightning_module is not None
        return self._whole(self.lightning_module.state_dict())

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """The optimizer's whole state on rank 0, as its own ``state_dict`` names it; nothing elsewhere."""
        plain = optimizer.optimizer if isinstance(optimizer, LightningOptimizer) else optimizer
        return self._whole(plain.state_dict())

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        """Reads the file; what is in it is loaded by the two methods below, after the module has looked at it."""
        return super(ModelParallelStrategy, self).load_checkpoint(checkpoint_path, weights_only)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Each process takes its shards."""
        assert self.lightning_module is not None
        own = self.lightning_module.state_dict()
        state = {name: _like(own.get(name), tensor) for name, tensor in checkpoint["state_dict"].items()}
        self.lightning_module.load_state_dict(state, strict=strict)

    @property
    def lightning_restore_optimizer(self) -> bool:
        """Lightning calls the method below."""
        return True

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Each process takes its shards."""
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            ids = (i for group in state["param_groups"] for i in group["params"])
            parameters = (p for group in optimizer.param_groups for p in group["params"])
            by_id = dict(zip(ids, parameters, strict=True))
            sharded = {
                i: {name: _like(by_id[i], value) for name, value in values.items()}
                for i, values in state["state"].items()
            }
            optimizer.load_state_dict({**state, "state": sharded})

    def _whole(self, state: dict[str, Any]) -> dict[str, Any]:
        """Gathers every sharded tensor, one after the other."""
        gathered = _gathered(state, keep=self.is_global_zero)
        assert isinstance(gathered, dict)
        return gathered if self.is_global_zero else {}


def shard(distiller: Distiller, mesh: DeviceMesh, shard_teacher: bool) -> None:
    """Shards a pair in place, bottom-up, around one root: the blocks of both models, and what else the student has.

    Weights are gathered in the dtype they are kept in: autocast then computes as it does in one process.
    """
    teacher = None if distiller.teacher is None else distiller.teacher.vlm
    for vlm in (distiller.student, teacher if shard_teacher else None):
        if vlm is not None:
            for block in (block for part in PARTS for block in vlm.blocks(part)):
                fully_shard(block, mesh=mesh, reshard_after_forward=True)
    whole = {p for p in (teacher.parameters() if teacher else ()) if not isinstance(p, DTensor)}
    fully_shard(distiller, mesh=mesh, ignored_params=whole, reshard_after_forward=False)
    register_fsdp_forward_method(distiller, "run")


def _gathered(value: Any, keep: bool) -> Any:
    if isinstance(value, dict):
        return {key: _gathered(entry, keep) for key, entry in value.items()}
    if isinstance(value, DTensor):
        whole = value.full_tensor()
        return whole.cpu() if keep else None
    return value


def _like(own: Any, value: Any) -> Any:
    """A tensor of a checkpoint, laid out as the sharded one that it belongs to."""
    if isinstance(own, DTensor) and isinstance(value, Tensor) and value.shape == own.shape:
        value = value.to(own.device)
        return distribute_tensor(value, own.device_mesh, own.placements, src_data_rank=None)
    return value
