"""Fixtures of all tests."""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # before transformers, as the command line does
os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: threads of several workers would wait for each other
os.environ.pop("MAKELEVEL", None)  # of `make test`: tests call make as users do
os.environ.pop("MAKEFLAGS", None)

import pytest
import tiny


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Run one worker more than cores, because many tests wait for processes that they start."""
    return (os.cpu_count() or 1) + 1


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the long tests first, so that no worker is left with them at the end."""
    items.sort(key=lambda item: "training" not in item.path.parts)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, processor, student and teacher of :func:`tiny.write_pair`. Tests do not write to this folder."""
    return tiny.write_pair(tmp_path_factory.mktemp("pair") / "data")
