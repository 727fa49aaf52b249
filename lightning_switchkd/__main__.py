"""Run the command line: ``switchkd`` or ``python -m lightning_switchkd``."""

import atexit
import os
import sys

from lightning_switchkd.cli.main import main


def exit_rank() -> None:
    """End a finished rank without tearing Python down, as multiprocessing ends its processes.

    A gloo thread releases its tensors a moment after the last collective has returned. If Python is being torn down
    by then, the process aborts and the run counts as failed. Joining the threads is impossible: they end when nothing
    refers to their process group, and caches of DTensor and jsonargparse refer to it.
    """
    dist = sys.modules.get("torch.distributed")
    if dist is not None and dist.is_available() and dist.is_initialized():
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def run() -> None:
    """Run one command, with the arguments of this process."""
    main()
    exit_rank()


if __name__ == "__main__":
    run()
