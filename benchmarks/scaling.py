"""Bytes that two processes exchange in a step, and bytes that each process stores.

    python -m benchmarks.scaling [--vocabulary 8192]

DDP's bytes are counted in its buckets as they are reduced. Stored bytes are counted tensor by tensor. Both run on two
CPU processes (gloo): unlike seconds, bytes are the same on every machine.
"""

import argparse
import multiprocessing
import os
import socket
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from benchmarks.pair import batch, random_pair
from benchmarks.table import header, row
from lightning_switchkd.distillation.distiller import Distiller
from lightning_switchkd.objectives import SwitchKDObjective
from lightning_switchkd.training.strategies import shard

MIB = 2**20


def pair(vocabulary: int) -> Distiller:
    """Create a random Switch-KD pair."""
    torch.manual_seed(0)
    return Distiller(*random_pair(vocabulary), SwitchKDObjective(), vocabulary).train()


def reduced_bytes(vocabulary: int) -> int:
    """Count the bytes in DDP's buckets in a step."""
    total = 0

    def count(state: Any, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
        nonlocal total
        total += bucket.buffer().nbytes
        return dist.all_reduce(bucket.buffer(), async_op=True).get_future().then(lambda done: done.value()[0] / 2)

    wrapped = DistributedDataParallel(pair(vocabulary), gradient_as_bucket_view=True)
    wrapped.register_comm_hook(None, count)
    samples = batch(vocabulary)
    wrapped(samples, samples.counts.tensor(), 0).loss.backward()
    return total


def stored_bytes(vocabulary: int, shard_teacher: bool) -> tuple[int, int]:
    """Count the bytes of student and teacher in one of two processes under FSDP2."""
    distiller = pair(vocabulary)
    shard(distiller, init_device_mesh("cpu", (2,)), shard_teacher)

    def stored(vlm: torch.nn.Module) -> int:
        return sum((p.to_local() if isinstance(p, DTensor) else p).nbytes for p in vlm.parameters())

    return stored(distiller.student), stored(distiller.frozen_teacher)


def measure(rank: int, port: int, vocabulary: int) -> None:
    """Run one of the two processes. The first prints the table."""
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=2)
    plain = pair(vocabulary)
    trainable = sum(p.nbytes for p in plain.parameters() if p.requires_grad)
    all_parameters = sum(p.nbytes for p in plain.parameters())
    reduced = reduced_bytes(vocabulary)
    rows = [
        ("DDP reduces per step", reduced, "trainable parameters", trainable),
        ("", reduced, "all parameters", all_parameters),
    ]
    both = sum(p.nbytes for p in plain.student.parameters()), sum(p.nbytes for p in plain.frozen_teacher.parameters())
    for name, shard_teacher in (("FSDP2 stores", True), ("FSDP2 with replicated teacher stores", False)):
        stored = stored_bytes(vocabulary, shard_teacher)
        rows += [
            (f"{name}: {model}", ours, "one process", single)
            for model, ours, single in zip(("student", "teacher"), stored, both, strict=True)
        ]
    if rank == 0:
        header("measured", "MiB", "compared with", "MiB", "ratio")
        for name, ours, reference, theirs in rows:
            row(name, f"{ours / MIB:.1f}", reference, f"{theirs / MIB:.1f}", f"{ours / theirs:.3f}")
    dist.destroy_process_group()


def main() -> None:
    """Start two processes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocabulary", type=int, default=8192, help="token ids of both models")
    vocabulary = parser.parse_args().vocabulary
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=measure, args=(rank, port, vocabulary)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    raise SystemExit(max(process.exitcode or 0 for process in processes))


if __name__ == "__main__":
    main()
