"""``python -m lightning_switchkd``."""

import atexit
import os
import sys

import torch.distributed as dist

from lightning_switchkd.cli.main import main


def leave() -> None:
    """Ends a rank that has done its work as multiprocessing ends its processes: Python is not torn down around threads.

    A thread of gloo lets go of its tensors a moment after the last collective returned. Where Python is being torn down
    by then, that aborts the process and the run counts as failed. The threads cannot be waited for: they end when
    nothing holds their group any more, and caches of DTensor and jsonargparse hold it.
    """
    if dist.is_available() and dist.is_initialized():
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


if __name__ == "__main__":
    main()
    leave()
