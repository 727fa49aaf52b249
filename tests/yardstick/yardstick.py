"""Measure what a refactoring must not change: hashes of every method's runs and exports, scores, and data findings.

    python tests/yardstick/yardstick.py --output FILE.json                        compute everything
    python tests/yardstick/yardstick.py --compare tests/yardstick/expected.json   compare, exit status 1 on differences
    python tests/yardstick/yardstick.py --write-artifacts tests/yardstick/artifacts_0_1_0

Hashes of runs depend on the CPU. On another CPU, compare two commits: --output of the one, --compare of the other.

Renamed settings, metrics, files and fields belong in names.json. The expected values keep the old names.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

SINGLE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PYTHONHASHSEED": "0", "MPLBACKEND": "Agg"}
OFFLINE = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "CUDA_VISIBLE_DEVICES": ""}
os.environ.update(SINGLE_THREAD | OFFLINE)

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import inputs  # noqa: E402
import runs  # noqa: E402
import torch  # noqa: E402

torch.set_num_threads(1)

METHODS = (
    "align_kd", "bild", "dbild", "kd_fkl", "kd_jsd", "kd_rkl", "llava_kd", "llava_kd-pretrain", "llava_kd-sft", "sft",
    "switch_kd", "vsd",
)  # fmt: skip
ABLATIONS = (
    "fixed_k", "forward", "image_rows", "lambda_3", "lambda_vsd_3", "leader_detached", "mass", "min_k_16",
    "probabilities", "switch_fkl", "symmetric", "tau_1", "tau_6", "tau_squared", "warmup", "whole_vocabulary",
)  # fmt: skip
METHOD_FLAGS = {"align_kd": ("--model.objective.init_args.focus_tokens=2",)}  # an image has four tokens here
PACKED = tuple(f"--model.{name}.attn_implementation={runs.PACKABLE}" for name in ("student", "teacher"))
RANKS = ("--trainer.accelerator=cpu", "--trainer.devices=2", "--trainer.precision=32-true", "--data.batch_size=4")
DDP = ("trainer/ddp", *RANKS, "--trainer.strategy.process_group_backend=gloo")
FSDP2 = ("trainer/fsdp2", *RANKS)

VARIANTS: dict[str, tuple[str, ...]] = {
    "base": (),
    "packed": ("--data.packing=true", *PACKED),
    "packing_refused": ("--data.packing=true",),
    "cache_filling": ("--model.teacher_cache.folder=cache/{method}",),
    "resumed": (),
}
"""Of every method: what is changed relative to the base run."""

MORE_VARIANTS: dict[str, tuple[str, ...]] = {
    "accumulated": ("--data.batch_size=4", "--trainer.accumulate_grad_batches=2"),
    "lora": ("--model.student.lora.rank=2", "--model.student.lora.alpha=4"),
    "recomputed": ("--model.student.activation_checkpointing=[vision,lm]",),
    "teacher_recomputed": ("--model.teacher.activation_checkpointing=[lm]",),
    "gradients_by_term": ("with/gradient_split", "--gradients.split_every_n_steps=2"),
    "tinyllava_prompts": ("--data.prompt_style=tinyllava_v1", "--data.system=Be brief."),
    "square_pad": ("--data.square_pad=true", "--data.group_window=4"),
    "plain_prompts": ("--data.prompt_style=plain", "--data.max_length=40"),
    "weighted_mixture": (
        f"--data.train=[{runs.dataset('inputs/records.json', 0.5)}, {runs.dataset('inputs/records.json')}]",
    ),
    "learning_rates": ("--model.lr_vision=1e-4", "--model.lr_projector=3e-3", "--model.weight_decay=0.1"),
    "small_chunks": ("--model.logits_gib=1e-6",),
    "excluded_samples": (f"--data.train={runs.dataset('defects/train.jsonl')}", "--data.probe=0"),
}
FEW_METHODS = ("sft", "switch_kd")


def fit_arguments(method: str, folder: Path | str, *more: str) -> list[str]:
    """Return the arguments of a run of 20 steps on the inputs below the current folder."""
    return [
        *("base", "data/digits", "model/digits", "trainer/cpu", f"experiment/{method}"),
        *(argument for argument in more if not argument.startswith("--")),
        "--data.processor=inputs/processor",
        *(f"--data.{split}.annotations=inputs/records.json" for split in ("train", "val", "test")),
        *(f"--data.{split}.image_root=inputs/images" for split in ("train", "val", "test")),
        "--model.student.checkpoint=inputs/student",
        "--model.teacher.checkpoint=inputs/teacher",
        f"--trainer.default_root_dir={folder}",
        *("--trainer.max_steps=20", "--trainer.val_check_interval=5", "--trainer.limit_val_batches=2"),
        *("--trainer.log_every_n_steps=1", "--checkpoint.every_n_train_steps=10"),
        *("--panel.records=0", "--greedy.records=6", "--greedy.max_new_tokens=3"),
        *("--data.batch_size=8", "--data.val_batch_size=8", "--data.num_workers=0", "--data.max_length=128"),
        *METHOD_FLAGS.get(method, ()),
        *(argument for argument in more if argument.startswith("--")),
    ]


def run(method: str, variant: str, changes: tuple[str, ...]) -> dict[str, Any]:
    """Train, and return the hashes of the run, or the refusal."""
    folder = Path("runs") / method / variant
    arguments = fit_arguments(method, folder, *(change.replace("{method}", method) for change in changes))
    try:
        if variant == "resumed":
            return stopped_and_resumed(arguments, folder)
        runs.call("fit", *arguments)
        found: dict[str, Any] = runs.of_run(folder) if os.environ.get("LOCAL_RANK", "0") == "0" else {}
        if variant == "cache_filling":
            runs.call("fit", *arguments, "--trainer.default_root_dir=" + str(folder / "second"))
            found["cache"] = runs.of_cache(Path("cache") / method)
            found |= {f"second/{name}": value for name, value in runs.of_run(folder / "second").items()}
        if variant in ("base", "lora"):
            checkpoint = folder / runs.output("checkpoints") / runs.output("last.ckpt")
            runs.call("export", f"--ckpt={checkpoint}", f"--output={folder / 'exported'}")
            found["export"] = runs.of_export(folder / "exported")
            found["export by fit"] = runs.of_export(folder / runs.output("student"))
        return found
    except runs.Refused as refusal:
        return {"refused": runs.old_name("exceptions", str(refusal))}


def stopped_and_resumed(arguments: list[str], folder: Path) -> dict[str, Any]:
    """Stop a run after 10 steps by SIGTERM, and resume it to its end."""
    stop = ("--trainer.callbacks+=runs.StopAt", "--trainer.callbacks.init_args.step=10")
    try:
        runs.call("fit", *arguments, *stop)
    except SystemExit as stopped:
        if stopped.code != 128 + 15:
            raise
    else:
        raise RuntimeError("the run was not stopped")
    runs.call("fit", *arguments, "--ckpt_path=last")
    return runs.of_run(folder)


def score(benchmark: str) -> dict[str, Any]:
    """Score the answers to a benchmark in each of its layouts by each protocol's rules."""
    found: dict[str, Any] = {}
    answers = next(Path("benchmarks/answers").glob(f"{benchmark}.*"))
    for layout in ("llava", "hub"):
        root, result = Path("benchmarks") / layout / benchmark, Path("scores") / layout / f"{benchmark}.json"
        for protocol in ("llava", "lmms", "vlmevalkit"):
            try:
                values = runs.scores(benchmark, root, answers, protocol, result)
            except runs.Refused as refusal:
                found[f"{layout}/{protocol}"] = {"refused": runs.old_name("exceptions", str(refusal))}
                continue
            ids = values.pop("ids")
            found[f"{layout}/{protocol}"] = values
            others = Path("scores") / f"{benchmark}-{layout}.json"
            texts = ("Yes.", "B", "no, it is not", "2", "The answer is (A).", "a T-shirt", "", "dog")
            others.write_text(json.dumps({key: texts[i % len(texts)] for i, key in enumerate(ids)}), encoding="utf-8")
            try:
                values = runs.scores(benchmark, root, others, protocol, result)
            except runs.Refused as refusal:
                values = {"refused": runs.old_name("exceptions", str(refusal)), "ids": ids}
            values.pop("ids")
            found[f"{layout}/{protocol}/other answers"] = values
    return found


def validate_data() -> dict[str, Any]:
    """Validate the data set with defects."""
    data = [f"--data.train={runs.dataset('defects/train.jsonl')}", f"--data.val={runs.dataset('defects/val.json')}"]
    arguments = [a for a in fit_arguments("sft", "unused") if not a.startswith(("--data.t", "--data.val."))]
    try:
        runs.call("validate-data", *arguments, *data, "--data.test=null", "--output=report", "--workers=0")
    except SystemExit as failed:
        return {"exit": failed.code, **runs.findings(Path("report"))}
    raise RuntimeError("validate-data found no defects")


# -- jobs --------------------------------------------------------------------------------------------------------------

Job = tuple[str, Callable[..., dict[str, Any]], tuple[Any, ...]]
"""Its name, a function and its arguments."""


def all_jobs() -> Iterator[Job]:
    """Yield the jobs of one process each."""
    for method in METHODS:
        for variant, changes in VARIANTS.items():
            yield f"runs/{method}/{variant}", run, (method, variant, changes)
    for method in FEW_METHODS:
        for variant, changes in MORE_VARIANTS.items():
            yield f"runs/{method}/{variant}", run, (method, variant, changes)
    for ablation in ABLATIONS:
        yield f"runs/switch_kd/ablation-{ablation}", run, ("switch_kd", ablation, (f"ablation/{ablation}",))
    for benchmark in ("gqa", "mmbench", "mmbench_cn", "mme", "mmmu", "pope", "scienceqa", "textvqa", "vizwiz", "vqav2"):
        yield f"scores/{benchmark}", score, (benchmark,)
    yield "validate-data", validate_data, ()


def rank_jobs() -> Iterator[Job]:
    """Yield the jobs of two processes each."""
    for method in METHODS:
        yield f"runs/{method}/two_processes", run, (method, "two_processes", DDP)
    for method in FEW_METHODS:
        yield f"runs/{method}/fsdp2", run, (method, "fsdp2", FSDP2)
    accumulated = (*DDP, "--data.batch_size=2", "--trainer.accumulate_grad_batches=2")
    yield "runs/switch_kd/two_processes_accumulated", run, ("switch_kd", "two_processes_accumulated", accumulated)


def work(job: Job) -> tuple[str, dict[str, Any]]:
    """Do one job. An unexpected exception is a result as well."""
    name, function, arguments = job
    started = time.monotonic()
    try:
        found = function(*arguments)
    except Exception as error:
        traceback.print_exc()
        found = {"failed": f"{type(error).__name__}: {error}"[:200]}
    return name, found | {"seconds": time.monotonic() - started}


def enter(folder: Path) -> None:
    """Make this process work below a folder, and write what it prints to a file there."""
    os.chdir(folder)
    log = os.open(f"log-{os.getpid()}.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(log, stream)


def as_rank(rank: int, port: int, folder: Path, only: str) -> None:
    """Do the jobs of two processes as one of them; the first one writes the results."""
    enter(folder)
    world = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": 2, "NODE_RANK": 0, "LOCAL_RANK": rank}
    os.environ.update({name: str(value) for name, value in world.items()})
    found = dict(work(job) for job in rank_jobs() if only in job[0])
    if rank == 0:
        Path("ranks.json").write_text(json.dumps(found), encoding="utf-8")
    os._exit(0)  # threads of gloo may abort a process that tears Python down


def on_two_ranks(folder: Path, only: str) -> dict[str, Any]:
    """Do the jobs of two processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    context = multiprocessing.get_context("spawn")
    ranks = [context.Process(target=as_rank, args=(rank, port, folder, only)) for rank in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(600)
        process.kill()  # has no effect on one that has ended
    if any(process.exitcode for process in ranks):
        raise RuntimeError(f"the processes of two-process runs failed: see {folder}/log-*.txt")
    results: dict[str, Any] = json.loads((folder / "ranks.json").read_text(encoding="utf-8"))
    return results


def compute(folder: Path, jobs: int, only: str) -> dict[str, Any]:
    """Do all jobs whose name contains a text; return their results by name."""
    inputs.write_inputs(folder / "inputs")
    inputs.write_defects(folder / "defects")
    inputs.write_benchmarks(folder / "benchmarks")
    chosen = [job for job in all_jobs() if only in job[0]]
    results: dict[str, Any] = {}
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, context, initializer=enter, initargs=(folder,)) as pool:
        for future in as_completed([pool.submit(work, job) for job in chosen]):
            name, found = future.result()
            print(f"{len(results) + 1}/{len(chosen)} {name}: {found['seconds']:.1f} s", file=sys.stderr)
            results[name] = found
    if any(only in name for name, *_ in rank_jobs()):
        results |= on_two_ranks(folder, only)
    for found in results.values():
        found.pop("seconds")
    return dict(sorted(results.items()))


def flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every single value with its path."""
    if isinstance(value, dict):
        for key, entry in value.items():
            yield from flat(entry, f"{name}/{key}" if name else key)
    else:
        yield name, value


def differences(found: dict[str, Any], expected: dict[str, Any]) -> list[str]:
    """Describe every difference in one line."""
    ours, theirs = dict(flat(found)), dict(flat(expected))
    return [
        f"{name}: expected {theirs.get(name, 'no such value')!r}, got {ours.get(name, 'no such value')!r}"
        for name in sorted(ours.keys() | theirs.keys())
        if ours.get(name, ...) != theirs.get(name, ...)
    ]


def broken_equalities(found: dict[str, Any]) -> list[str]:
    """Check that a resumed run equals the base run, and that both exports are equal."""
    wrong = []
    for method in METHODS:
        base, resumed = (dict(found.get(f"runs/{method}/{variant}", {})) for variant in ("base", "resumed"))
        if base.pop("export", None) != base.pop("export by fit", None):
            wrong.append(f"runs/{method}/base: `export` and `fit` export different students")
        if base and resumed:
            wrong += [f"runs/{method}/resumed is not the base run: {line}" for line in differences(resumed, base)]
    return wrong


def write_artifacts(folder: Path) -> None:
    """Write the artifacts of a run stopped in the middle. Its config.yaml names files relative to the folder."""
    shutil.rmtree(folder, ignore_errors=True)
    inputs.write_inputs(folder / "inputs", samples=16)
    enter_folder, before = folder.resolve(), Path.cwd()
    os.chdir(enter_folder)
    flags = ("--model.teacher_cache.folder=teacher_cache", "--data.batch_size=4")
    stop = ("--trainer.callbacks+=runs.StopAt", "--trainer.callbacks.init_args.step=10")
    try:
        runs.call("fit", *fit_arguments("switch_kd", "run", *flags, *stop))
    except SystemExit as stopped:
        if stopped.code != 128 + 15:
            raise
    checkpoints = Path("run") / "checkpoints"
    runs.call("export", f"--ckpt={checkpoints / 'last.ckpt'}", "--output=student")
    for file in [*checkpoints.glob("step*.ckpt"), *Path("run").glob("events.*"), *Path("run").glob("*.patch")]:
        file.unlink()
    os.chdir(before)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="write the results to this JSON file")
    parser.add_argument("--compare", type=Path, help="compare the results with this JSON file")
    parser.add_argument("--only", default="", help="do only the jobs whose name contains this text")
    parser.add_argument("--jobs", type=int, default=2, help="number of processes")
    parser.add_argument("--keep", type=Path, help="work in this new folder and keep it")
    parser.add_argument("--write-artifacts", type=Path, metavar="DIR", help="write old artifacts, and do nothing else")
    arguments = parser.parse_args()
    if arguments.write_artifacts:
        write_artifacts(arguments.write_artifacts)
        return
    with TemporaryDirectory(prefix="yardstick-") as temporary:
        found = compute((arguments.keep or Path(temporary)).resolve(), arguments.jobs, arguments.only)
    problems = broken_equalities(found)
    problems += [f"{name}: failed: {of['failed']}" for name, of in found.items() if "failed" in of]
    if arguments.output:
        lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(of, ensure_ascii=False)}" for name, of in found.items())
        arguments.output.write_text(f"{{\n{lines}\n}}\n", encoding="utf-8")
    if arguments.compare:
        expected = json.loads(arguments.compare.read_text(encoding="utf-8"))
        expected = {name: of for name, of in expected.items() if arguments.only in name}
        found = json.loads(json.dumps(found))
        problems += differences(found, expected)
        print(f"{len(found)} jobs, {sum(1 for _ in flat(expected))} expected values, {len(problems)} differences")
    print("\n".join(problems))
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
