"""Fixtures that several folders of tests use."""

from pathlib import Path

import pytest

# --doctest-modules would import each folder's conftest.py under the one name `conftest`.
collect_ignore_glob = ["*conftest.py"]


def pytest_configure(config: pytest.Config) -> None:
    """Hand out files in the order of their names, so that cluster, local and serving tests come before unit tests.

    xdist would start with the files of most tests: the longest ones have few, and one worker would wait for the other.
    """
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let the files that need an API server share one: each worker would start its own, for a minute of computing time.

    `--dist loadgroup` hands out groups; a file of its own is one, since its runs of a pipeline are shared by its tests.
    """
    needs: dict[Path, set[str]] = {}
    for item in items:
        needs.setdefault(item.path, set()).update(getattr(item, "fixturenames", ()))
    for item in items:
        names = needs[item.path]
        file = str(item.path.relative_to(item.config.rootpath))
        group = "kserve" if "kserve" in names else "cluster" if "cluster" in names else file
        item.add_marker(pytest.mark.xdist_group(group))


@pytest.fixture(scope="session")
def shared_folder() -> Path:
    """The folder `shared` beside the repository: published specifications and data that are too large to commit."""
    folder = Path(__file__).resolve().parents[1].parent / "shared"
    if not folder.is_dir():
        pytest.skip(f"no folder {folder.name} beside the repository")
    return folder
