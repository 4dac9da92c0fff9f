"""Fixtures of the tests that run pipelines."""

from pathlib import Path

import pytest

from mlflywheel.samples.ad_campaigns import write_sample


@pytest.fixture(scope="session")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sample of 150 campaigns."""
    return write_sample(tmp_path_factory.mktemp("sample") / "terms.csv.gz", campaigns=150)
