"""`mlflywheel serve` as a user types it: the printed request, Ctrl-C, and what goes wrong."""

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from mlflywheel import Client
from mlflywheel.errors import UsageError
from mlflywheel.models.topic_fingerprints import TopicFingerprints
from mlflywheel.models.topic_fingerprints.model import FitParams
from mlflywheel.models.topic_fingerprints.preparation import COLUMNS, PrepareConfig
from mlflywheel.runs.server import ServeOptions
from mlflywheel.samples.ad_campaigns import generate_ad_campaigns

FREE = ServeOptions(http_port=0, grpc_port=0)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    raw = generate_ad_campaigns(campaigns=80)
    named = raw.select([column.name for column in COLUMNS if column.name in raw.column_names])
    prepared = TopicFingerprints.prepare(named, PrepareConfig())
    folder = tmp_path_factory.mktemp("model") / "saved"
    TopicFingerprints.fit(prepared, FitParams.parse({"num_topics": 6}, "params")).save(folder)
    return folder


def _heed_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def start(*words: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "mlflywheel", "serve", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "COLUMNS": "200"},
        preexec_fn=_heed_interrupts,
    )


def ask(url: str, data: bytes) -> dict[str, Any]:
    with urllib.request.urlopen(urllib.request.Request(url, data), timeout=30) as answer:
        found: dict[str, Any] = json.load(answer)
        return found


def lives(folder: Path) -> bool:
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if f"--model_dir={folder}".encode() in (path / "cmdline").read_bytes():
                return True
        except OSError:
            continue
    return False


@pytest.fixture
def served(model: Path) -> Iterator["subprocess.Popen[str]"]:
    child = start(str(model), "--port", "0", "--grpc-port", "0")
    yield child
    child.kill()
    child.communicate()


def test_the_printed_request_is_answered_and_ctrl_c_ends_it(served: "subprocess.Popen[str]", model: Path) -> None:
    assert served.stderr is not None
    line = next(line for line in served.stderr if line.startswith("curl "))
    _, url, option, data = shlex.split(line)
    assert option == "-d"
    answer = ask(url, data.encode())
    assert answer["predictions"][0]["topics"]
    assert answer["dictionary_hash"].startswith("sha256:")
    served.send_signal(signal.SIGINT)
    _, errors = served.communicate(timeout=30)
    assert served.returncode == 0, errors
    assert "200" in errors
    assert not lives(model)


def test_termination_ends_the_server_too(model: Path) -> None:
    child = start(str(model), "--port", "0", "--grpc-port", "0", "--json")
    assert child.stdout is not None
    told = json.loads(child.stdout.readline())
    assert ask(told["predict"], json.dumps({"instances": [told["example"]]}).encode())["predictions"]
    child.terminate()
    child.communicate(timeout=30)
    deadline = time.monotonic() + 10
    while lives(model) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not lives(model)


def test_a_taken_port_is_told_in_one_line(model: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        child = start(str(model), "--port", str(port), "--grpc-port", "0")
        _, errors = child.communicate(timeout=60)
    assert child.returncode == 2
    assert f"127.0.0.1 port {port}" in errors
    assert "Fix: " in errors
    assert "Traceback" not in errors


def test_a_notebook_serves_while_its_block_runs_and_answers_as_a_batch_does(model: Path) -> None:
    client = Client()
    terms = ["running shoes", "wedding cake"]
    with client.serve(model, FREE) as server:
        body = json.dumps({"instances": [{"campaign_id": "x", "terms": terms}]}).encode()
        answer = ask(f"{server.url}/v1/models/{server.name}:predict", body)["predictions"][0]
    table = pa.table({"campaign_id": ["x"], "terms": pa.array([terms], pa.list_(pa.string()))})
    expected = client.load_model(model).predict(table).to_pylist()[0]
    assert np.float32(answer["fingerprint"]).tolist() == expected["fingerprint"]
    assert [n["campaign_id"] for n in answer["neighbours"]] == [n["campaign_id"] for n in expected["neighbours"]]
    assert not lives(model)


def test_a_gpu_that_is_not_there_is_refused(model: Path) -> None:
    with pytest.raises(UsageError, match=r"device cuda: .*Fix: "):
        Client().serve(model, ServeOptions(http_port=0, grpc_port=0, device="cuda")).__enter__()
