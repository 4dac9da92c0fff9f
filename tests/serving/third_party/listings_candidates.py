"""Candidates that are worse than `Listings` for some requests: for prices below 0.25."""

import time

import pyarrow as pa
from listings_model import Listings

from mlflywheel.events import ProgressCallback, ignore_progress

WORSE_BELOW_PRICE = 0.25
SLOW_SECONDS = 0.4


class FailingListings(Listings):
    def predict(self, table: pa.Table, progress: ProgressCallback = ignore_progress) -> pa.Table:
        if min(table["price"].to_pylist()) < WORSE_BELOW_PRICE:
            raise ZeroDivisionError
        return super().predict(table, progress)


class SlowListings(Listings):
    def predict(self, table: pa.Table, progress: ProgressCallback = ignore_progress) -> pa.Table:
        if min(table["price"].to_pylist()) < WORSE_BELOW_PRICE:
            time.sleep(SLOW_SECONDS)
        return super().predict(table, progress)
