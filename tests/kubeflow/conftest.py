"""Fixtures of the tests that need a Kubeflow Pipelines backend; `backend.py` says what that is and how to build it."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# Last, so that it hides nothing: the control plane and the registry are those of the cluster tests.
sys.path.append(str(Path(__file__).resolve().parents[1] / "cluster"))

import mlflywheel

# It runs in an environment of its own, and what it imports is only there.
collect_ignore = ["metadata_server.py"]


@pytest.fixture(scope="session")
def laboratory(tmp_path_factory: pytest.TempPathFactory) -> Iterator["Laboratory"]:  # noqa: F821 (needs boto3)
    """The backend, started once, with the model registry beside it; the test's thread is in its network."""
    pytest.importorskip("boto3")
    from cluster_tools import find_tools
    from laboratory import Laboratory, what_is_missing

    missing = what_is_missing()
    if missing:
        pytest.skip(missing)
    tools = find_tools()
    assert tools is not None
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name.lower().endswith("_proxy"):
                # A proxy cannot reach into the network.
                patch.delenv(name)
        with Laboratory.start(tmp_path_factory.mktemp("kubeflow"), tools, Path(mlflywheel.__file__)) as started:
            yield started
