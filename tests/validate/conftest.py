"""The tiny package, opened once."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgetune.runtime.session import OpenPackage, open_package
from tests.tiny_package import tiny_package


@pytest.fixture(scope="session")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shared tiny package; not to be written to."""
    return tiny_package(tmp_path_factory)


@pytest.fixture(scope="session")
def opened(package: Path) -> OpenPackage:
    """The tiny package, opened."""
    return open_package(package, threads=1)
