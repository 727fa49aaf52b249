"""Time and memory of each precision and speed option, as a ratio to the plain run.

    python -m benchmarks.switches [--steps 4]

Every option runs in its own process: Switch-KD steps (forward, backward, SGD) of a random pair. The table shows the
time of the fastest step (processor time on a CPU, where other processes disturb the clock) and the additional memory of
the steps: peak resident memory on a CPU, PyTorch's allocations on a GPU (measured too if available). The first step,
which compiles, is timed separately by the clock. On a CPU, the memory of a compiled run includes the compiler's.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from contextlib import nullcontext
from typing import Any

import torch

from benchmarks.pair import SAMPLES, TOKENS, batch, random_pair
from benchmarks.table import header, row
from lightning_switchkd.core.profiling import memory_in_use, peak_memory
from lightning_switchkd.distillation.distiller import Distiller
from lightning_switchkd.objectives import SwitchKDObjective

VOCABULARY = 2048
BOTH = ("compile", "activation_checkpointing")
OPTIONS: dict[str, dict[str, Any]] = {
    "plain (float32, sdpa)": {},
    "attn_implementation eager": {"attention": "eager"},
    "teacher dtype bfloat16": {"teacher_dtype": "bfloat16"},
    "bf16-mixed": {"precision": "bf16-mixed"},
    "bf16-true, teacher bfloat16": {"precision": "bf16-true", "teacher_dtype": "bfloat16"},
    "checkpointing: student vision, lm": {"student": BOTH[1:]},
    "checkpointing: teacher lm": {"teacher": BOTH[1:]},
    "checkpointing: both": {"student": BOTH[1:], "teacher": BOTH[1:]},
    "compile: both": {"student": BOTH[:1], "teacher": BOTH[:1]},
    "compile and checkpointing: both": {"student": BOTH, "teacher": BOTH},
}


def measure(name: str, device: str, steps: int) -> dict[str, float]:
    """Return seconds of the first step and of later steps, and MiB, with one option enabled."""
    option = {"precision": "32-true", "attention": "sdpa", "student": (), "teacher": (), "teacher_dtype": "float32"}
    option |= OPTIONS[name]
    torch.manual_seed(0)
    attention = {"attn_implementation": str(option["attention"])}
    student, teacher = random_pair(
        VOCABULARY,
        student={**attention, **{key: ["vision", "lm"] for key in option["student"]}},
        teacher={**attention, "dtype": option["teacher_dtype"], **{key: ["lm"] for key in option["teacher"]}},
    )
    if option["precision"] == "bf16-true":
        student = student.to(torch.bfloat16)
    model = Distiller(student, teacher, SwitchKDObjective(), VOCABULARY).to(device).train()
    optimizer = torch.optim.SGD([p for p in student.parameters() if p.requires_grad], lr=1e-3)
    data, before = batch(VOCABULARY).to(device), memory_in_use(device)
    clock = time.perf_counter if device == "cuda" else time.process_time
    started, first, seconds = time.perf_counter(), 0.0, []
    amp = torch.autocast(device, torch.bfloat16) if option["precision"] == "bf16-mixed" else nullcontext()
    for _ in range(1 + steps):
        start = clock()
        with amp:
            loss = model(data, data.counts.tensor(device), 0).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(clock() - start)
        first = first or time.perf_counter() - started
    return {"first": first, "step": min(seconds[1:]), "memory": (peak_memory(device) - before) / 2**20}


def table(device: str, steps: int) -> None:
    """Measure every option on a device and print ratios to the plain run."""
    print(f"\n{device}, {SAMPLES} samples of {TOKENS} tokens, {torch.get_num_threads()} thread(s)\n")
    header("option", "time of a step", "memory of a step", "first step")
    plain: dict[str, float] = {}
    for name in OPTIONS:
        child = [sys.executable, "-m", "benchmarks.switches", "--one", name, "--device", device, "--steps", str(steps)]
        done = subprocess.run(child, capture_output=True, text=True, check=True)
        result = json.loads(done.stdout.strip().splitlines()[-1])
        plain = plain or result
        time_, memory = (f"{result[key] / plain[key]:.2f}" for key in ("step", "memory"))
        if result is plain:
            time_, memory = f"{time_} ({result['step']:.2f} s)", f"{memory} ({result['memory']:.0f} MiB)"
        row(name, time_, memory, f"{result['first']:.1f} s")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=4, help="timed steps for each option")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--device", default="cpu", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(arguments.one, arguments.device, arguments.steps)))
    else:
        for device in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
            table(device, arguments.steps)
