"""Time and memory of the loss head: Switch-KD from hidden states to gradients, against other implementations.

    python -m benchmarks.loss_head [--rows 512 --vocabulary 151936 --rounds 3]

Every row of the tables is measured in its own process, in alternation with the bare matrix products that Switch-KD
needs (three heads forward, two products of the cross-entropy's backward). A busy machine slows both. Memory is the
process's peak beyond inputs and gradients, as the kernel or CUDA's allocator counts it. Liger-Kernel's fused
distillation loss is measured too if installed (pip install --no-deps liger-kernel).
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

from benchmarks.table import header, row
from lightning_switchkd.core.profiling import memory_in_use, peak_memory, reset_peak_memory, synchronized_time
from lightning_switchkd.core.types import Pathway
from lightning_switchkd.losses import logits_difference_kl
from lightning_switchkd.losses.chunked import LOGITS_GIB, chunk_size
from lightning_switchkd.losses.logits import Heads, SupervisedTokens
from lightning_switchkd.losses.select import Kneedle, Selection
from lightning_switchkd.models.head import COLUMNS, Head
from lightning_switchkd.objectives import KD, Objective, ObjectiveInputs, SwitchKDObjective

TAU = 3.0


@dataclass(frozen=True)
class Size:
    """One measurement: an implementation and its sizes.

    Attributes:
        implementation: One of `IMPLEMENTATIONS`.
        rows: Number of supervised tokens N.
        vocabulary: Size of the vocabulary V.
        student: Width of the student.
        teacher: Width of the teacher.
        window: Window of Kneedle.
        gib: Memory for logits. None uses the device's default.
        dtype: Dtype of hidden states and heads.
        device: "cpu" or "cuda".
    """

    implementation: str = "ours"
    rows: int = 512
    vocabulary: int = 151_936
    student: int = 896
    teacher: int = 2048
    window: int | None = 256
    gib: float | None = None
    dtype: str = "float32"
    device: str = "cpu"

    def select(self) -> Selection:
        """Return the selection of leading logits."""
        return Kneedle(window=self.window)


def memory(size: Size) -> float:
    """Return the memory for logits in GiB."""
    return LOGITS_GIB[size.device] if size.gib is None else size.gib


def problem(size: Size) -> tuple[SupervisedTokens, Heads]:
    """Create random hidden states whose target is likely, so that logits fall as steeply as a trained model's."""
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


# -- implementations ---------------------------------------------------------------------------------------------------


def by_objective(size: Size, tokens: SupervisedTokens, heads: Heads, objective: Objective) -> None:
    """Run an objective of this package."""
    totals = torch.tensor([size.rows] * 4, device=size.device)
    objective(ObjectiveInputs(tokens, heads), totals, 0, size.gib).loss.backward()


def ours(size: Size, tokens: SupervisedTokens, heads: Heads) -> None:
    """Compute all of Switch-KD, in chunks."""
    by_objective(size, tokens, heads, SwitchKDObjective(temperature=TAU, select=size.select()))


def ours_forward_kl(size: Size, tokens: SupervisedTokens, heads: Heads) -> None:
    """Compute forward KL over the vocabulary, in chunks."""
    by_objective(size, tokens, heads, KD(temperature=TAU))


def whole_logits(tokens: SupervisedTokens, heads: Heads) -> dict[Pathway, Tensor]:
    """Compute the logits of all tokens in float32, with autograd."""
    return {pathway: heads[pathway](states).float() for pathway, states in tokens.hidden.items()}


def enumerated(teacher: Tensor, student: Tensor, mask: Tensor) -> Tensor:
    """Compute the divergence of logits differences with every pair enumerated."""
    first, second = torch.triu_indices(mask.shape[1], mask.shape[1], 1, device=mask.device)
    pairs = mask[:, first] & mask[:, second]
    q, p = (((z[:, first] - z[:, second]) / TAU).masked_fill(~pairs, -1e9).log_softmax(-1) for z in (student, teacher))
    return (q.exp() * (q - p)).sum(-1)


def materialized(size: Size, tokens: SupervisedTokens, heads: Heads) -> None:
    """Compute Switch-KD directly: whole logits, enumerated pairs, and autograd."""
    z, select = whole_logits(tokens, heads), size.select()
    loss = F.cross_entropy(z["student"], tokens.targets, reduction="sum")
    for pathway in ("student", "switch"):
        for leader in ("teacher", pathway):
            ids, mask = select(z[leader].detach())
            loss = loss + enumerated(z["teacher"].gather(1, ids), z[pathway].gather(1, ids), mask).sum()
    (loss / size.rows).backward()


def materialized_forward_kl(size: Size, tokens: SupervisedTokens, heads: Heads) -> None:
    """Compute plain distillation: whole logits, forward KL over the vocabulary, no switch."""
    z = whole_logits(replace(tokens, hidden={s: h for s, h in tokens.hidden.items() if s != "switch"}), heads)
    loss = F.cross_entropy(z["student"], tokens.targets, reduction="sum")
    student, teacher = ((z[pathway] / TAU).log_softmax(-1) for pathway in ("student", "teacher"))
    ((loss + F.kl_div(student, teacher, log_target=True, reduction="sum")) / size.rows).backward()


def liger_forward_kl(size: Size, tokens: SupervisedTokens, heads: Heads) -> None:
    """Compute forward KL and cross-entropy by Liger-Kernel's fused head, in equal chunks. Compiled on a GPU."""
    from liger_kernel.chunked_loss.jsd_loss import LigerFusedLinearJSDLoss

    two = replace(tokens, hidden={pathway: states for pathway, states in tokens.hidden.items() if pathway != "switch"})
    chunk = min(size.rows, chunk_size(two, heads, size.gib))
    head = LigerFusedLinearJSDLoss(1.0, 1.0, 0.0, temperature=TAU, chunk_size=chunk, compiled=size.device == "cuda")
    weights = heads["student"].weight, heads["teacher"].weight
    head(tokens.hidden["student"], weights[0], tokens.hidden["teacher"], weights[1], tokens.targets).backward()


def bare(size: Size, tokens: SupervisedTokens, heads: Heads) -> None:
    """Run only the matrix products, into allocated memory: the lower bound."""
    step = min(size.rows, chunk_size(tokens, heads, size.gib))
    logits = torch.empty(step, size.vocabulary, dtype=getattr(torch, size.dtype), device=size.device)
    weight, hidden = heads["student"].weight.detach(), tokens.hidden["student"].detach()
    gradient, back = torch.empty_like(weight), torch.empty_like(hidden)
    columns = COLUMNS if size.device == "cpu" else size.vocabulary  # the faster choice
    for start in range(0, size.rows, step):
        part = slice(start, start + step)
        out = logits[: len(tokens.targets[part])]
        for pathway, states in tokens.hidden.items():
            for column in range(0, size.vocabulary, columns):
                block = slice(column, column + columns)
                torch.mm(states[part].detach(), heads[pathway].weight[block].detach().t(), out=out[:, block])
        torch.mm(out, weight, out=back[part])
        gradient.addmm_(out.t(), hidden[part], beta=float(start > 0))


IMPLEMENTATIONS: dict[str, Callable[[Size, SupervisedTokens, Heads], None]] = {
    function.__name__: function
    for function in (ours, materialized, materialized_forward_kl, ours_forward_kl, liger_forward_kl, bare)
}


# -- measuring, in a child process -------------------------------------------------------------------------------------


def seconds(device: str, work: Callable[[], None]) -> float:
    """Time one call."""
    start = synchronized_time(device)
    work()
    return synchronized_time(device) - start


def measure(size: Size, rounds: int) -> dict[str, float]:
    """Measure seconds, their ratio to the bare products, and bytes beyond inputs and gradients."""
    tokens, heads = problem(size)
    learning = [states for states in tokens.hidden.values() if states.requires_grad] + [heads["student"].weight]

    def work() -> None:
        for tensor in learning:
            tensor.grad = None
        IMPLEMENTATIONS[size.implementation](size, tokens, heads)

    small = replace(size, rows=8)
    IMPLEMENTATIONS[size.implementation](
        small, *problem(replace(small, vocabulary=4096))
    )  # warm up threads, libraries and kernels
    if size.device == "cuda":
        work()
    for tensor in learning:
        tensor.grad = None
    gc.collect()
    before = memory_in_use(size.device)
    reset_peak_memory(size.device)
    work()
    extra = peak_memory(size.device) - before
    extra -= sum(tensor.numel() * tensor.element_size() for tensor in learning if tensor.grad is not None)
    times, floors = [], []
    for _ in range(rounds):
        times.append(seconds(size.device, work))
        floors.append(seconds(size.device, lambda: bare(size, tokens, heads)))
    ratio = statistics.median(a / b for a, b in zip(times, floors, strict=True))
    return {"seconds": statistics.median(times), "ratio": ratio, "bytes": extra}


def child(size: Size, rounds: int) -> dict[str, float] | None:
    """Measure in a child process. Return None if memory is insufficient."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.loss_head", "--child", json.dumps(asdict(size)), "--rounds", str(rounds)],
        capture_output=True,
        text=True,
        env={
            **os.environ,
            "MALLOC_MMAP_THRESHOLD_": str(2**20),
        },  # freed memory returns to the system and is not counted
        check=False,
    )
    if done.returncode:
        if "out of memory" in done.stderr.lower() or "can't allocate" in done.stderr or done.returncode < 0:
            return None
        sys.exit(done.stderr)
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


# -- tables ------------------------------------------------------------------------------------------------------------


def line(name: str, size: Size, rounds: int) -> None:
    """Measure and print a row."""
    result = child(size, rounds)
    if result is None:
        row(name, "out of memory", "", "", "")
        return
    chunk = 3 * min(size.rows, int(memory(size) * 2**30 / (12 * size.vocabulary))) * size.vocabulary * 4
    gib = result["bytes"] / 2**30
    row(name, f"{result['seconds']:.3g}", f"{result['ratio']:.2f}", f"{gib:.2f}", f"{result['bytes'] / chunk:.2f}")


def head_table(size: Size, rounds: int) -> None:
    """Compare implementations, and the cost by N, V, window and chunk size."""
    print(f"\n{size.device}, {size.dtype}, V = {size.vocabulary:,}, H = {size.student} and {size.teacher}:\n")
    header("implementation", "seconds", "× bare products", "GiB beyond inputs and gradients", "× logits of a chunk")
    n = size.rows
    line(f"ours, N = {n}", size, rounds)
    line("materialized logits, pairs, autograd", replace(size, implementation="materialized"), rounds)
    line("materialized logits, forward KL only", replace(size, implementation="materialized_forward_kl"), rounds)
    line("ours, forward KL only", replace(size, implementation="ours_forward_kl"), rounds)
    if importlib.util.find_spec("liger_kernel"):
        line("Liger-Kernel, forward KL only", replace(size, implementation="liger_forward_kl"), rounds)
    line(f"ours, N = {8 * n}", replace(size, rows=8 * n), 1)
    line("ours, V / 4", replace(size, vocabulary=size.vocabulary // 4), rounds)
    for gib in (memory(size) / 4, memory(size) * 4):
        line(f"ours, logits of {gib} GiB", replace(size, gib=gib), rounds)
    line("ours, window 1,024", replace(size, window=1024), rounds)
    line("ours, no window", replace(size, window=None), 1)


def differences_table(rows: int, rounds: int, device: str) -> None:
    """Compare DBiLD on selected logits with enumerated pairs, at k up to the whole vocabulary."""
    print(f"\nDBiLD only, {rows} tokens, forward and backward, {device}:\n")
    header("k", "ours, s", "enumerated pairs, s", "ratio")
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
        times = []
        for _ in range(rounds + 1):
            times.append((seconds(device, linear), seconds(device, pairs) if both else 0.0))
        a, b = (statistics.median(column) for column in zip(*times[1:], strict=True))
        cells = (f"{b:.3g}", f"{statistics.median(y / x for x, y in times[1:]):.1f}") if both else ("", "")
        row(f"{k:,} ({n} tokens)", f"{a:.3g}", *cells)


def main() -> None:
    """Print the tables of every device, or run one measurement as a child process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--vocabulary", type=int, default=151_936)
    parser.add_argument("--rounds", type=int, default=3, help="timings, of which the median counts")
    parser.add_argument("--device", choices=["cpu", "cuda"], help="default: the CPU, and a GPU if available")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], help="default: both")
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
