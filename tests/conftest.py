"""Fixtures that several folders of tests use."""

from functools import cache
from pathlib import Path
from typing import Any

import pytest

# --doctest-modules would import each folder's conftest.py under the one name `conftest`.
collect_ignore_glob = ["*conftest.py"]


def pytest_configure(config: pytest.Config) -> None:
    """Hand out files in the order of their names, so that cluster, local and serving tests come before unit tests.

    xdist would start with the files of most tests: the longest ones have few, and one worker would wait for the other.
    """
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Give each file to one worker, and all files that need the same API server to the same one.

    Each worker would start its own, for a minute of computing time. xdist's groups would do it, but the pytest of the
    lock file keeps the ids of tests where this xdist does not find them.
    """
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return _name_group(nodeid.partition("::")[0])

    return Scheduling(config, log) if config.getvalue("dist") == "loadfile" else None


@cache
def _name_group(file: str) -> str:
    if not file.startswith("tests/cluster/"):
        return file
    text = (Path(__file__).resolve().parents[1] / file).read_text(encoding="utf-8")
    # A fixture is asked for by a parameter of its name.
    return "kserve" if "kserve: " in text else "cluster"


@pytest.fixture(scope="session")
def shared_folder() -> Path:
    """The folder `shared` beside the repository: published specifications and data that are too large to commit."""
    folder = Path(__file__).resolve().parents[1].parent / "shared"
    if not folder.is_dir():
        pytest.skip(f"no folder {folder.name} beside the repository")
    return folder
