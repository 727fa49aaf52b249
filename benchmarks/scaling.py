"""What two processes send each other in a step, and what each of them holds.

    python -m benchmarks.scaling [--vocabulary 8192]

DDP's bytes are counted in its buckets, as they are reduced; what a process holds is counted tensor by tensor. Both on
two CPU processes (gloo): bytes, unlike seconds, are the same on any machine.
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
from lightning_switchkd.distillation.distiller import Distiller
from lightning_switchkd.objectives import SwitchKDObjective
from lightning_switchkd.training.strategies import shard

MIB = 2**20


def pair(vocabulary: int) -> Distiller:
    """A random Switch-KD pair."""
    torch.manual_seed(0)
    return Distiller(*random_pair(vocabulary), SwitchKDObjective(), vocabulary).train()


def reduced_bytes(vocabulary: int) -> int:
    """Bytes that DDP's buckets hold in a step."""
    sent = [0]

    def counted(state: Any, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
        sent[0] += bucket.buffer().nbytes
        return dist.all_reduce(bucket.buffer(), async_op=True).get_future().then(lambda done: done.value()[0] / 2)

    wrapped = DistributedDataParallel(pair(vocabulary), gradient_as_bucket_view=True)
    wrapped.register_comm_hook(None, counted)
    records = batch(vocabulary)
    wrapped(records, records.counts.tensor(), 0).loss.backward()
    return sent[0]


def held_bytes(vocabulary: int, shard_teacher: bool) -> tuple[int, int]:
    """Bytes of student and teacher in one of two processes, under FSDP2's plan."""
    distiller = pair(vocabulary)
    shard(distiller, init_device_mesh("cpu", (2,)), shard_teacher)

    def held(vlm: torch.nn.Module) -> int:
        return sum((p.to_local() if isinstance(p, DTensor) else p).nbytes for p in vlm.parameters())

    return held(distiller.student), held(distiller.frozen_teacher)


def measure(rank: int, port: int, vocabulary: int) -> None:
    """One of the two processes; the first prints the table."""
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=2)
    plain = pair(vocabulary)
    trained = sum(p.nbytes for p in plain.parameters() if p.requires_grad)
    whole = sum(p.nbytes for p in plain.parameters())
    sent = reduced_bytes(vocabulary)
    rows = [("DDP reduces, a step", sent, "trainable parameters", trained), ("", sent, "all parameters", whole)]
    both = sum(p.nbytes for p in plain.student.parameters()), sum(p.nbytes for p in plain.frozen_teacher.parameters())
    for name, shard_teacher in (("FSDP2 holds", True), ("FSDP2, teacher whole, holds", False)):
        held = held_bytes(vocabulary, shard_teacher)
        rows += [
            (f"{name}: {model}", mine, "one process", alone)
            for model, mine, alone in zip(("student", "teacher"), held, both, strict=True)
        ]
    if rank == 0:
        print("| what | MiB | beside it | MiB | ratio |\n|---|---|---|---|---|")
        for what, ours, beside, theirs in rows:
            print(f"| {what} | {ours / MIB:.1f} | {beside} | {theirs / MIB:.1f} | {ours / theirs:.3f} |")
    dist.destroy_process_group()


def main() -> None:
    """The command line."""
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
