"""Candidates that must not get traffic: real models that fail or are slow on some requests, as a package with them."""

import time
from typing import ClassVar

import pyarrow as pa

from mlflywheel.events import ProgressCallback, ignore_progress
from mlflywheel.models.topic_fingerprints import TopicFingerprints

SLOW_SECONDS = 0.12


def is_unlucky(table: pa.Table) -> bool:
    """Say whether a campaign has an odd number of letters: about half of the requests."""
    return any(sum(map(len, terms)) % 2 for terms in table["terms"].to_pylist())


class RaisingCampaigns(TopicFingerprints):
    """Raises for some campaigns, and for the example of the warm-up for none."""

    format_name: ClassVar[str] = "raising-campaigns"

    def predict(self, table: pa.Table, progress: ProgressCallback = ignore_progress) -> pa.Table:
        if is_unlucky(table) and not is_example(table):
            raise ZeroDivisionError("a campaign that this version cannot score")
        return super().predict(table, progress)


class SlowCampaigns(TopicFingerprints):
    """Sleeps for some campaigns."""

    format_name: ClassVar[str] = "slow-campaigns"

    def predict(self, table: pa.Table, progress: ProgressCallback = ignore_progress) -> pa.Table:
        if is_unlucky(table):
            time.sleep(SLOW_SECONDS)
        return super().predict(table, progress)


def is_example(table: pa.Table) -> bool:
    return bool(table["terms"].to_pylist()[0] == TopicFingerprints.example_request()["terms"])
