"""The fuzzer of tests/fuzz, for a few seconds."""

import sys
import tracemalloc
from pathlib import Path

import pytest
from running_server import RunningServer

from mlflywheel.models.topic_fingerprints.model import CampaignRequest
from mlflywheel.serving.refusals import BadRequestError
from mlflywheel.serving.requests import check_instances

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "fuzz"))

from predictor import KINDS, Target, fuzz, make_attempt


def test_malformed_requests_leave_the_server_well(server: RunningServer) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    grpc_port = int(server.grpc_address.rpartition(":")[2])
    known = len(server.events("defect"))
    target = Target(
        (host, int(port)), (host, grpc_port), server.process.pid, lambda: len(server.events("defect")) - known
    )
    summary = fuzz(target, 2000)
    assert summary.failures == []
    assert set(summary.kinds) == set(KINDS)
    assert summary.checks == 4
    # Nothing that a client sent became a line of the log.
    assert server.other_lines == []


def test_seed_and_number_decide_a_request() -> None:
    for number in range(300):
        assert make_attempt(5, number) == make_attempt(5, number)


def test_a_list_of_wrong_items_costs_no_more_than_its_first() -> None:
    wrong = {"terms": [1] * 150_000}
    check = (CampaignRequest, {"terms": ["plumber"]}, "instances[{}]".format)
    tracemalloc.start()
    try:
        with pytest.raises(BadRequestError, match=r"instances\[0\]\.terms\[0\]: the number 1"):
            check_instances([wrong], *check)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 1_000_000
