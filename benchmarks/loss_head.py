"""Time and memory of the loss head: all of Switch-KD from hidden rows to gradients, against other ways to the same.

    python -m benchmarks.loss_head [--rows 512 --vocabulary 151936 --rounds 3]

Every row of the tables is a process of its own; in it the way is timed in turn with the bare matrix products that it
needs (three heads forward; two of cross-entropy's backward), so that a busy machine slows both. Memory is the process's
peak beyond inputs and gradients, as the kernel (or CUDA's allocator) counts it. Liger-Kernel's fused distillation loss
is measured too where it is installed (pip install --no-deps liger-kernel).
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.measuring import row
from lightning_switchkd.core.profiling import memory_in_use, peak_memory, reset_peak_memory, synchronized_time
from lightning_switchkd.core.types import Pathway
from lightning_switchkd.losses import logits_difference_kl
from lightning_switchkd.losses.chunked import LOGITS_GIB, chunk_size
from lightning_switchkd.losses.logits import COLUMNS, Heads, SupervisedTokens
from lightning_switchkd.losses.select import Kneedle, Selection
from lightning_switchkd.models.head import Head
from lightning_switchkd.objectives import KD, Objective, ObjectiveInputs, SwitchKDObjective

TAU = 3.0


@dataclass(frozen=True)
class Size:
    """What is computed, and on what.

    Attributes:
        way: one of `WAYS`.
        rows: supervised rows N.
        vocabulary: V.
        student: width of the student.
        teacher: width of the teacher.
        window: of Kneedle.
        gib: memory for logits; None is the device's default.
        dtype: of hidden rows and heads.
        device: "cpu" or "cuda".
    """

    way: str = "ours"
    rows: int = 512
    vocabulary: int = 151_936
    student: int = 896
    teacher: int = 2048
    window: int | None = 256
    gib: float | None = None
    dtype: str = "float32"
    device: str = "cpu"

    def select(self) -> Selection:
        """The leading sets."""
        return Kneedle(window=self.window)


def memory(size: Size) -> float:
    """For logits, in GiB."""
    return LOGITS_GIB[size.device] if size.gib is None else size.gib


def problem(size: Size) -> tuple[SupervisedTokens, Heads]:
    """Random rows, whose right token is likely: a logits curve as steep as a trained model's."""
    generator = torch.Generator(size.device).manual_seed(0)
    settings: dict[str, Any] = {"generator": generator, "device": size.device}
    dtype = getattr(torch, size.dtype)

    def head(width: int) -> Tensor:
        return (torch.randn(size.vocabulary, width, **settings) / width**0.5).to(dtype)

    targets = torch.randint(size.vocabulary, (size.rows,), **settings)
    student, teacher = head(size.student), head(size.teacher)

    def hidden(weight: Tensor) -> Tensor:
        noise = torch.randn(size.rows, weight.shape[1], **settings)
        return (10 * weight[targets].float() + 2.5 * noise).to(dtype)

    states: dict[Pathway, Tensor] = {"student": hidden(student), "teacher": hidden(teacher), "switch": hidden(teacher)}
    for pathway in ("student", "switch"):
        states[pathway].requires_grad_()
    of_teacher = Head(teacher)
    visual = torch.ones(size.rows, dtype=torch.bool, device=size.device)
    heads: Heads = {"student": Head(student.requires_grad_()), "teacher": of_teacher, "switch": of_teacher}
    return SupervisedTokens(states, targets, visual, size.vocabulary), heads


# -- ways --------------------------------------------------------------------------------------------------------------


def by_objective(size: Size, rows: SupervisedTokens, heads: Heads, objective: Objective) -> None:
    """Ours."""
    totals = torch.tensor([size.rows] * 4, device=size.device)
    objective(ObjectiveInputs(rows, heads), totals, 0, size.gib).loss.backward()


def ours(size: Size, rows: SupervisedTokens, heads: Heads) -> None:
    """All of Switch-KD, in chunks."""
    by_objective(size, rows, heads, SwitchKDObjective(temperature=TAU, select=size.select()))


def ours_forward_kl(size: Size, rows: SupervisedTokens, heads: Heads) -> None:
    """Forward KL over the vocabulary, in chunks."""
    by_objective(size, rows, heads, KD(temperature=TAU))


def whole_logits(rows: SupervisedTokens, heads: Heads) -> dict[Pathway, Tensor]:
    """Logits of all rows, float32, on autograd's tape."""
    return {pathway: heads[pathway](states).float() for pathway, states in rows.hidden.items()}


def enumerated(teacher: Tensor, student: Tensor, mask: Tensor) -> Tensor:
    """The divergence of logits differences with every pair written out."""
    first, second = torch.triu_indices(mask.shape[1], mask.shape[1], 1, device=mask.device)
    pairs = mask[:, first] & mask[:, second]
    q, p = (((z[:, first] - z[:, second]) / TAU).masked_fill(~pairs, -1e9).log_softmax(-1) for z in (student, teacher))
    return (q.exp() * (q - p)).sum(-1)


def materialised(size: Size, rows: SupervisedTokens, heads: Heads) -> None:
    """The obvious implementation: whole logits, pairs written out, and autograd."""
    z, select = whole_logits(rows, heads), size.select()
    loss = F.cross_entropy(z["student"], rows.targets, reduction="sum")
    for pathway in ("student", "switch"):
        for leader in ("teacher", pathway):
            ids, mask = select(z[leader].detach())
            loss = loss + enumerated(z["teacher"].gather(1, ids), z[pathway].gather(1, ids), mask).sum()
    (loss / size.rows).backward()


def materialised_forward_kl(size: Size, rows: SupervisedTokens, heads: Heads) -> None:
    """Plain distillation: whole logits, forward KL over the vocabulary, no switch."""
    z = whole_logits(replace(rows, hidden={s: h for s, h in rows.hidden.items() if s != "switch"}), heads)
    loss = F.cross_entropy(z["student"], rows.targets, reduction="sum")
    student, teacher = ((z[pathway] / TAU).log_softmax(-1) for pathway in ("student", "teacher"))
    ((loss + F.kl_div(student, teacher, log_target=True, reduction="sum")) / size.rows).backward()


def liger_forward_kl(size: Size, rows: SupervisedTokens, heads: Heads) -> None:
    """Forward KL and cross-entropy by Liger-Kernel's fused head, in chunks of as many rows; compiled on a GPU."""
    from liger_kernel.chunked_loss.jsd_loss import LigerFusedLinearJSDLoss

    two = replace(rows, hidden={pathway: states for pathway, states in rows.hidden.items() if pathway != "switch"})
    chunk = min(size.rows, chunk_size(two, heads, size.gib))
    head = LigerFusedLinearJSDLoss(1.0, 1.0, 0.0, temperature=TAU, chunk_size=chunk, compiled=size.device == "cuda")
    weights = heads["student"].weight, heads["teacher"].weight
    head(rows.hidden["student"], weights[0], rows.hidden["teacher"], weights[1], rows.targets).backward()


def bare(size: Size, rows: SupervisedTokens, heads: Heads) -> None:
    """The matrix products alone, into memory that is there already: what is left when all else costs nothing."""
    step = min(size.rows, chunk_size(rows, heads, size.gib))
    logits = torch.empty(step, size.vocabulary, dtype=getattr(torch, size.dtype), device=size.device)
    weight, made = heads["student"].weight.detach(), rows.hidden["student"].detach()
    gradient, back = torch.empty_like(weight), torch.empty_like(made)
    columns = COLUMNS if size.device == "cpu" else size.vocabulary  # whichever way is faster
    for start in range(0, size.rows, step):
        part = slice(start, start + step)
        out = logits[: len(rows.targets[part])]
        for pathway, states in rows.hidden.items():
            for column in range(0, size.vocabulary, columns):
                some = slice(column, column + columns)
                torch.mm(states[part].detach(), heads[pathway].weight[some].detach().t(), out=out[:, some])
        torch.mm(out, weight, out=back[part])
        gradient.addmm_(out.t(), made[part], beta=float(start > 0))


WAYS: dict[str, Callable[[Size, SupervisedTokens, Heads], None]] = {
    way.__name__: way for way in (ours, materialised, materialised_forward_kl, ours_forward_kl, liger_forward_kl, bare)
}


# -- measuring, in a child process -------------------------------------------------------------------------------------


def seconds(device: str, work: Callable[[], None]) -> float:
    """Of one call."""
    begun = synchronized_time(device)
    work()
    return synchronized_time(device) - begun


def measure(size: Size, rounds: int) -> dict[str, float]:
    """Seconds, their ratio to the bare products, and bytes beyond inputs and gradients."""
    rows, heads = problem(size)
    learning = [states for states in rows.hidden.values() if states.requires_grad] + [heads["student"].weight]

    def work() -> None:
        for tensor in learning:
            tensor.grad = None
        WAYS[size.way](size, rows, heads)

    small = replace(size, rows=8)
    WAYS[size.way](small, *problem(replace(small, vocabulary=4096)))  # threads, libraries, kernels
    if size.device == "cuda":
        work()
    for tensor in learning:
        tensor.grad = None
    gc.collect()
    before = memory_in_use(size.device)
    reset_peak_memory(size.device)
    work()
    most = peak_memory(size.device) - before
    most -= sum(tensor.numel() * tensor.element_size() for tensor in learning if tensor.grad is not None)
    times, floors = [], []
    for _ in range(rounds):
        times.append(seconds(size.device, work))
        floors.append(seconds(size.device, lambda: bare(size, rows, heads)))
    ratio = statistics.median(a / b for a, b in zip(times, floors, strict=True))
    return {"seconds": statistics.median(times), "ratio": ratio, "bytes": most}


def child(size: Size, rounds: int) -> dict[str, float] | None:
    """The same in a process of its own; None where memory does not suffice."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.loss_head", "--child", json.dumps(asdict(size)), "--rounds", str(rounds)],
        capture_output=True,
        text=True,
        env={**os.environ, "MALLOC_MMAP_THRESHOLD_": str(2**20)},  # what is freed goes back, and is not counted
        check=False,
    )
    if done.returncode:
        if "out of memory" in done.stderr.lower() or "can't allocate" in done.stderr or done.returncode < 0:
            return None
        sys.exit(done.stderr)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


# -- tables ------------------------------------------------------------------------------------------------------------


def line(what: str, size: Size, rounds: int) -> None:
    """Measures and prints."""
    found = child(size, rounds)
    if found is None:
        row(what, "does not fit into memory", "", "", "")
        return
    chunk = 3 * min(size.rows, int(memory(size) * 2**30 / (12 * size.vocabulary))) * size.vocabulary * 4
    gib = found["bytes"] / 2**30
    row(what, f"{found['seconds']:.3g}", f"{found['ratio']:.2f}", f"{gib:.2f}", f"{found['bytes'] / chunk:.2f}")


def head_table(size: Size, rounds: int) -> None:
    """Ways, and the cost against N, V, the window and the chunk."""
    print(f"\n{size.device}, {size.dtype}, V = {size.vocabulary:,}, H = {size.student} and {size.teacher}:\n")
    row("way", "seconds", "by the bare products", "GiB beyond inputs and gradients", "by the logits of a chunk")
    row(*["---"] * 5)
    n = size.rows
    line(f"ours, N = {n}", size, rounds)
    line("materialised logits, pairs, autograd", replace(size, way="materialised"), rounds)
    line("materialised logits, forward KL alone", replace(size, way="materialised_forward_kl"), rounds)
    line("ours, forward KL alone", replace(size, way="ours_forward_kl"), rounds)
    if importlib.util.find_spec("liger_kernel"):
        line("Liger-Kernel, forward KL alone", replace(size, way="liger_forward_kl"), rounds)
    line(f"ours, N = {8 * n}", replace(size, rows=8 * n), 1)
    line("ours, V / 4", replace(size, vocabulary=size.vocabulary // 4), rounds)
    for gib in (memory(size) / 4, memory(size) * 4):
        line(f"ours, logits of {gib} GiB", replace(size, gib=gib), rounds)
    line("ours, window 1,024", replace(size, window=1024), rounds)
    line("ours, window of all", replace(size, window=None), 1)


def differences_table(rows: int, rounds: int, device: str) -> None:
    """DBiLD alone, on selected logits: against pairs written out, and at k up to the whole vocabulary."""
    print(f"\nDBiLD alone, {rows} rows, forward and backward, {device}:\n")
    row("k", "ours, s", "pairs written out, s", "pairs by ours")
    row(*["---"] * 4)
    for k in (16, 64, 256, 1024, 8192, 65536):
        n = rows if k <= 1024 else rows // 8
        teacher, student = (torch.randn(n, k, device=device).sort(descending=True).values.mul(3) for _ in range(2))
        student.requires_grad_()
        mask = torch.ones(n, k, dtype=torch.bool, device=device)

        def linear(t: Tensor = teacher, s: Tensor = student, m: Tensor = mask) -> None:
            logits_difference_kl(teacher=t, student=s, mask=m, temperature=TAU).sum().backward()

        def pairs(t: Tensor = teacher, s: Tensor = student, m: Tensor = mask) -> None:
            enumerated(t, s, m).sum().backward()

        both = k <= 256
        found = []
        for _ in range(rounds + 1):
            found.append((seconds(device, linear), seconds(device, pairs) if both else 0.0))
        a, b = (statistics.median(pathway) for pathway in zip(*found[1:], strict=True))
        told = (f"{b:.3g}", f"{statistics.median(y / x for x, y in found[1:]):.1f}") if both else ("", "")
        row(f"{k:,} ({n} rows)", f"{a:.3g}", *told)


def main() -> None:
    """The tables of every device there is; or one measurement, as a child."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--vocabulary", type=int, default=151_936)
    parser.add_argument("--rounds", type=int, default=3, help="timings; the median counts")
    parser.add_argument("--device", choices=["cpu", "cuda"], help="by default the CPU, and a GPU where there is one")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], help="by default both")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(measure(Size(**json.loads(arguments.child)), arguments.rounds)))
        return
    both = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
    for device in (arguments.device,) if arguments.device else both:
        print(f"\n## {torch.cuda.get_device_name() if device == 'cuda' else f'CPU, {torch.get_num_threads()} threads'}")
        differences_table(arguments.rows, arguments.rounds, device)
        for dtype in (arguments.dtype,) if arguments.dtype else ("float32", "bfloat16"):
            size = Size(rows=arguments.rows, vocabulary=arguments.vocabulary, dtype=dtype, device=device)
            head_table(size, arguments.rounds)


if __name__ == "__main__":
    main()
