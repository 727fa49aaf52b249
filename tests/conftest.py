"""Fixtures of all tests."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, processor, student and teacher of :func:`tiny.write_pair`. Tests do not write to this folder."""
    return tiny.write_pair(tmp_path_factory.mktemp("pair") / "data")
