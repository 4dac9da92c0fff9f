"""Fixtures of the tests of the predictor: real saved models, served by real processes."""

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from running_server import RunningServer

from mlflywheel.models.topic_fingerprints import TopicFingerprints
from mlflywheel.models.topic_fingerprints.model import FitParams
from mlflywheel.models.topic_fingerprints.preparation import COLUMNS, PrepareConfig
from mlflywheel.samples.ad_campaigns import generate_ad_campaigns


@pytest.fixture(scope="session")
def saved_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of 120 made-up campaigns, saved."""
    raw = generate_ad_campaigns(campaigns=120)
    named = raw.select([column.name for column in COLUMNS if column.name in raw.column_names])
    table = TopicFingerprints.prepare(named, PrepareConfig())
    folder = tmp_path_factory.mktemp("serving") / "model"
    TopicFingerprints.fit(table, FitParams.parse({"num_topics": 8}, "params")).save(folder)
    return folder


@pytest.fixture(scope="session")
def server(saved_model: Path) -> Iterator[RunningServer]:
    """One server for all tests that only ask."""
    running = RunningServer(saved_model, "--max_rows=200", "--max_request_bytes=1MiB", "--model_version=7")
    try:
        yield running.wait_until_ready()
    finally:
        running.stop()


@pytest.fixture
def start(saved_model: Path) -> Iterator[Callable[..., RunningServer]]:
    """Starts servers that are stopped at the end of the test."""
    started: list[RunningServer] = []

    def start_server(*options: str, folder: Path = saved_model, **others: Any) -> RunningServer:
        started.append(RunningServer(folder, *options, **others))
        return started[-1]

    yield start_server
    for running in started:
        running.stop()


@pytest.fixture(scope="session")
def grpc_messages() -> Any:
    """Kserve's messages; importing kserve reads `sys.argv`, which is pytest's here."""
    values, sys.argv = sys.argv, sys.argv[:1]
    try:
        from kserve.protocol.grpc import grpc_predict_v2_pb2
    finally:
        sys.argv = values
    return grpc_predict_v2_pb2


@pytest.fixture
def grpc_stub(server: RunningServer, grpc_messages: Any) -> Iterator[Any]:
    import grpc
    from kserve.protocol.grpc.grpc_predict_v2_pb2_grpc import GRPCInferenceServiceStub

    with grpc.insecure_channel(server.grpc_address) as channel:
        yield GRPCInferenceServiceStub(channel)


os.environ.setdefault("OMP_NUM_THREADS", "1")
