"""What is refused at the start, with one line and before anything runs, and when a server says that it is ready."""

import json
import os
import pickle
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from running_server import RunningServer

from mlflywheel.models.contract import _hash_files, _sha256

Start = Callable[..., RunningServer]


class Executed:
    """A pickle of this creates a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


@pytest.fixture
def copy(saved_model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved_model, tmp_path / "model"))


def rewrite_manifest(folder: Path, **changes: object) -> None:
    """Make the manifest fit the files again, as somebody would who tampers with a model and knows the format."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    files = (file for file in sorted(folder.rglob("*")) if file.is_file() and file != path)
    manifest["files"] = {file.relative_to(folder).as_posix(): _sha256(file) for file in files}
    manifest["hash"] = _hash_files(manifest["files"])
    path.write_text(json.dumps({**manifest, **changes}))


def refuse(start: Start, folder: Path, *options: str, code: int = 1) -> str:
    """Return the one line that a server ends with."""
    running = start(*options, folder=folder)
    assert running.process.wait(60) == code
    running.stop()
    assert len(running.other_lines) == 1, running.other_lines
    assert not running.events("ready")
    return running.other_lines[0]


def test_a_changed_file_is_refused(start: Start, copy: Path) -> None:
    with (copy / "model.json").open("a") as file:
        file.write(" ")
    assert "model.json: changed since it was saved" in refuse(start, copy)


def test_a_truncated_file_is_refused(start: Start, copy: Path) -> None:
    with (copy / "fingerprints.npy").open("r+b") as file:
        file.truncate(200)
    assert "fingerprints.npy: changed since it was saved" in refuse(start, copy)


def test_a_truncated_file_with_a_fitting_manifest_is_refused(start: Start, copy: Path) -> None:
    with (copy / "catalogue.parquet").open("r+b") as file:
        file.truncate(100)
    rewrite_manifest(copy)
    assert "files as TopicFingerprints 1 writes them are needed" in refuse(start, copy)


def test_a_missing_file_is_refused(start: Start, copy: Path) -> None:
    (copy / "known.npy").unlink()
    assert "known.npy: missing" in refuse(start, copy)


def test_another_format_version_is_refused(start: Start, copy: Path) -> None:
    rewrite_manifest(copy, format={"name": "mlflywheel-topic-fingerprints", "version": "2"})
    assert "format mlflywheel-topic-fingerprints 2" in refuse(start, copy)


def test_a_manifest_cannot_choose_what_is_imported(start: Start, copy: Path) -> None:
    rewrite_manifest(copy, model="os:system")
    assert "saved by os:system" in refuse(start, copy)


def test_a_missing_folder_is_refused(start: Start, tmp_path: Path) -> None:
    line = refuse(start, tmp_path / "nothing")
    assert "no such folder" in line
    assert "Fix: check --model_dir" in line


def test_an_empty_folder_is_refused(start: Start, tmp_path: Path) -> None:
    assert "manifest.json: missing or unreadable" in refuse(start, tmp_path)


def test_a_gpu_that_the_model_cannot_use_is_refused(start: Start, saved_model: Path) -> None:
    assert "device cuda: " in refuse(start, saved_model, "--device=cuda", code=2)


@pytest.mark.parametrize("known", [False, True])
def test_a_pickle_is_refused_and_never_executed(start: Start, copy: Path, tmp_path: Path, known: bool) -> None:
    trap = tmp_path / "executed"
    payload = pickle.dumps(Executed(trap))
    for name in ("model.pkl", "extra.joblib"):
        (copy / name).write_bytes(payload)
    if known:
        # The worst case: a manifest that lists it, under a name that the model reads.
        for name in ("model.pkl", "extra.joblib"):
            (copy / name).unlink()
        np.save(copy / "center.npy", np.array([Executed(trap)], dtype=object), allow_pickle=True)
        rewrite_manifest(copy)
    line = refuse(start, copy)
    assert ("allow_pickle=False" in line) if known else ("not in the manifest" in line)
    assert not trap.exists()
    assert pickle.loads(payload) is None
    assert trap.exists(), "the trap works"


def test_a_model_one_folder_below_is_found(start: Start, copy: Path) -> None:
    running = start("--enable_grpc=false", folder=copy.parent).wait_until_ready()
    assert running.get("/v2/models/campaigns").json()["versions"][0] == running.events("ready")[0]["version"]
    assert running.events("listening")[0]["grpc_port"] is None


def test_liveness_comes_before_readiness_and_readiness_after_the_warm_up(start: Start, copy: Path) -> None:
    # A pipe blocks its reader until somebody writes, so loading takes as long as this test wants.
    manifest, pipe = copy / "manifest.json", copy.parent / "pipe"
    whole = manifest.rename(copy.parent / "whole.json")
    os.mkfifo(pipe)
    os.link(pipe, manifest)
    running = start(folder=copy)
    running.wait_for(lambda: running.events("loading"))
    for path in ("/", "/v2/health/live"):
        assert running.get(path).status_code == 200, path
    for path in ("/v2/health/ready", "/v2/models/campaigns/ready", "/v1/models/campaigns", "/try", "/docs"):
        assert running.get(path).status_code == 503, path
    assert running.predict([{"terms": []}]).status_code == 503
    text = whole.read_text()
    whole.replace(manifest)
    pipe.write_text(text)
    running.wait_until_ready()
    for path in ("/v2/health/ready", "/v2/models/campaigns/ready", "/v1/models/campaigns", "/try", "/docs"):
        assert running.get(path).status_code == 200, path


@pytest.mark.parametrize(
    ("options", "code", "text"),
    [
        (["--model_name=m"], 2, "model_dir"),
        (["--model_name=m", "--model_dir=x", "--max_row=5"], 2, "Fix: write --max_rows"),
        (["--model_name=m", "--model_dir=x", "--worker=5"], 2, "Fix: write --workers"),
        (["--model_name=m", "--model_dir=x", "--workers=abc"], 2, "--workers: 'abc' is not a whole number"),
        (["--model_name=m", "--model_dir=x", "--workers", "0"], 2, "from 1 to 64"),
        (["--model_name=m", "--model_dir=x", "--max_request_bytes=8MB"], 2, "such as 8MiB"),
        (["--model_name=a/b", "--model_dir=x"], 2, "not a name"),
        (["--model_name=m", "--model_dir=x", "extra"], 2, "extra: not an argument"),
        (["--help"], 0, "example:"),
    ],
)
def test_the_command_line_says_what_is_wrong(options: list[str], code: int, text: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "mlflywheel.serving", *options], capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == code
    assert text in ended.stdout + ended.stderr
    assert code == 0 or len(ended.stderr.splitlines()) == 1


def test_kubernetes_client_is_imported_by_those_who_ask_for_it() -> None:
    code = (
        "import sys; from mlflywheel.serving import server; server._import_kserve()\n"
        "import kserve; assert 'kubernetes' not in sys.modules; assert not hasattr(kserve, 'NoSuchName')\n"
        "server._import_kserve(); assert 'kubernetes' not in sys.modules\n"
        "from kserve import KServeClient; assert KServeClient.__module__ == 'kserve.api.kserve_client'\n"
        "assert 'kubernetes' in sys.modules; assert kserve.KServeClient is KServeClient"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_port_that_is_taken_is_named(start: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        running = start(f"--http_port={taken.getsockname()[1]}")
        assert running.process.wait(60) == 2
        running.stop()
        assert "port" in running.other_lines[0]
        running = start(f"--grpc_port={taken.getsockname()[1]}")
        assert running.process.wait(60) == 2
        running.stop()
        assert "gRPC cannot listen there" in running.other_lines[-1]


def test_a_signal_while_loading_ends_the_process_at_once(start: Start) -> None:
    running = start()
    running.wait_for(lambda: running.events("listening"))
    assert running.stop(signal.SIGINT) == 0
