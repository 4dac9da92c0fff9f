"""Fixtures that several folders of tests use."""

from pathlib import Path

import pytest

# --doctest-modules would import each folder's conftest.py under the one name `conftest`.
collect_ignore_glob = ["*conftest.py"]


@pytest.fixture(scope="session")
def shared_folder() -> Path:
    """The folder `shared` beside the repository: published specifications and data that are too large to commit."""
    folder = Path(__file__).resolve().parents[1].parent / "shared"
    if not folder.is_dir():
        pytest.skip(f"no folder {folder.name} beside the repository")
    return folder
