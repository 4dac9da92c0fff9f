"""A committed pipeline with its data, artifacts and model in an object store that checks every signature.

The steps run as Kubeflow's launcher runs them (`launcher.py`). One run serves all tests.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from command_line import LEAN_PLAN, NO_RULES
from faulty_store import Store, make_client, run_store
from launcher import Launcher, StepFailedError
from typer.testing import CliRunner

from mlflywheel import Client, storage
from mlflywheel.cli import app
from mlflywheel.models.contract import load_model
from mlflywheel.pipelines.catalog import find_pipeline
from mlflywheel.registry.locations import to_readable_uri

ROOT = "minio://mlpipeline/v2/artifacts"
DATA = "s3://data/terms.csv.gz"
COMPILED = find_pipeline("ad-campaigns").compiled
GATES = '{"schema": 1, "gates": [{"metric": "coherence_c_npmi", "at_least": -1}]}'
ARGUMENTS = {
    "data": DATA,
    "gates": GATES,
    "expectations": NO_RULES,
    "plan": LEAN_PLAN,
    "approve": True,
    "params": '{"num_topics": 6}',
}


@dataclass(frozen=True)
class Finished:
    """A run that ended, and what its steps were given."""

    launcher: Launcher
    store: Store
    registry: Path
    environment: dict[str, str]

    def objects(self) -> dict[str, bytes]:
        listed = self.launcher.store.list_objects_v2(Bucket="mlpipeline")["Contents"]
        return {
            one["Key"]: self.launcher.store.get_object(Bucket="mlpipeline", Key=one["Key"])["Body"].read()
            for one in listed
        }

    def call(self, *words: str) -> Any:
        return CliRunner().invoke(app, [*words, "--registry", str(self.registry)], env=dict(self.environment))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, sample: Path) -> Iterator[Finished]:
    folder = tmp_path_factory.mktemp("launcher")
    with run_store("data", "mlpipeline") as store:
        store.client().upload_file(str(sample), "data", "terms.csv.gz")
        keys = store.create_user("pipeline", "s3:*")
        environment = {
            **keys,
            "AWS_ENDPOINT_URL": store.endpoint,
            "MINIO_ENDPOINT": store.endpoint,
            "AWS_EC2_METADATA_DISABLED": "true",
            "OMP_NUM_THREADS": "1",
        }
        with store.checked():
            client = make_client(store.endpoint, keys)
            launcher = Launcher(folder / "pods", client, ROOT, environment)
            registry = folder / "registry.sqlite"
            launcher.run(COMPILED, {**ARGUMENTS, "registry": str(registry)})
            yield Finished(launcher, store, registry, environment)


@pytest.fixture
def here(finished: Finished, monkeypatch: pytest.MonkeyPatch) -> Finished:
    """The run, with its keys and addresses in this process's environment too."""
    for name in os.environ:
        if name.startswith(("AWS_", "MINIO_")) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    for name, value in finished.environment.items():
        monkeypatch.setenv(name, value)
    return finished


def test_every_step_ran_and_left_its_artifacts_in_the_bucket(finished: Finished) -> None:
    assert finished.launcher.finished == [
        "ingest-data",
        "prepare-table",
        "validate-data",
        "split-table",
        "tune-model",
        "train-model",
        "evaluate-model",
        "extend-model",
        "register-model",
        "score-table",
        "deploy-model",
    ]
    found = finished.objects()
    # Metrics are metadata; their artifact has no file.
    wanted = [
        one["uri"].removeprefix("minio://mlpipeline/")
        for outputs in finished.launcher.artifacts.values()
        for one in outputs.values()
        if one["type"]["schemaTitle"] not in ("system.Metrics", "system.ClassificationMetrics")
    ]
    missing = [key for key in wanted if not any(name == key or name.startswith(f"{key}/") for name in found)]
    assert missing == []
    assert finished.launcher.artifacts["ingest-data"]["rows"]["metadata"]["source"] == DATA
    assert finished.launcher.artifacts["train-model"]["metrics"]["metadata"]["num_topics"] > 0
    assert finished.launcher.artifacts["extend-model"]["extended"]["metadata"]["hash"].startswith("sha256:")


def test_the_version_is_registered_as_kserve_reads_it(here: Finished) -> None:
    shown = json.loads(here.call("models", "show", "ad-campaigns@1", "--json").stdout)
    written = here.launcher.artifacts["extend-model"]["extended"]["uri"]
    assert written.startswith("minio://mlpipeline/")
    assert shown["uri"] == written.replace("minio://", "s3://")
    assert (shown["endpoint"], shown["secret"]) == (here.store.endpoint, "mlpipeline-minio-artifact")
    assert shown["state"] == "approved"
    assert shown["lineage"]["data_uri"] == DATA
    assert shown["lineage"]["dossier"].startswith("s3://mlpipeline/")
    assert shown["hash"] == here.launcher.artifacts["extend-model"]["extended"]["metadata"]["hash"]


def test_scores_from_the_store_are_those_of_the_run(here: Finished, tmp_path: Path) -> None:
    result = here.call("score", "ad-campaigns@1", "--data", DATA, "--output", str(tmp_path / "scores.parquet"))
    assert result.exit_code == 0, result.output
    with storage.open_binary(here.launcher.artifacts["score-table"]["scores"]["uri"]) as file:
        assert pq.read_table(file).equals(pq.read_table(tmp_path / "scores.parquet"))


def test_the_model_is_read_by_each_of_its_two_names(
    here: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = Client(registry=here.registry).model("ad-campaigns@1")
    for keep, scheme in (("AWS_ENDPOINT_URL", "s3"), ("MINIO_ENDPOINT", "minio")):
        monkeypatch.delenv("AWS_ENDPOINT_URL")
        monkeypatch.delenv("MINIO_ENDPOINT")
        monkeypatch.setenv(keep, here.store.endpoint)
        address = to_readable_uri(version.uri, version.endpoint)
        assert address.partition("://")[0] == scheme
        storage.download_folder(address, tmp_path / scheme)
        model = load_model(tmp_path / scheme)
        assert model.predict(model.to_table([model.Request.model_validate(model.example_request())])).num_rows == 1
        monkeypatch.setenv("AWS_ENDPOINT_URL", here.store.endpoint)
        monkeypatch.setenv("MINIO_ENDPOINT", here.store.endpoint)


def test_no_artifact_holds_a_key(finished: Finished) -> None:
    secret = finished.environment["AWS_SECRET_ACCESS_KEY"].encode()
    named = finished.environment["AWS_ACCESS_KEY_ID"].encode()
    assert [name for name, data in finished.objects().items() if secret in data or named in data] == []
    assert secret not in finished.registry.read_bytes()


def test_a_step_with_wrong_keys_fails_and_says_which_variable(finished: Finished, tmp_path: Path) -> None:
    wrong = {**finished.environment, "AWS_SECRET_ACCESS_KEY": "hunter2"}
    launcher = Launcher(tmp_path, finished.launcher.store, ROOT, wrong, run_id="refused")
    with pytest.raises(StepFailedError) as failed:
        launcher.run(COMPILED, {**ARGUMENTS, "registry": str(tmp_path / "registry.sqlite")})
    assert (failed.value.task, failed.value.code) == ("ingest-data", 1)
    assert f"{DATA}: {finished.store.endpoint} refused the signature" in failed.value.output
    assert "Fix: check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY" in failed.value.output
    assert "hunter2" not in failed.value.output
    assert launcher.finished == []


def _heed_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.long
def test_serve_answers_with_the_model_from_the_store(here: Finished) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["serve", "ad-campaigns@1", "--port", str(port), "--grpc-port", "0", "--registry", str(here.registry)]
    child = subprocess.Popen(
        [sys.executable, "-m", "mlflywheel", *words, "--quiet"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ},
        preexec_fn=_heed_interrupts,
    )
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/models/ad-campaigns/ready", timeout=5) as told:
                    assert told.status == 200
                break
            except OSError:
                assert child.poll() is None, child.communicate()[1]
                assert time.monotonic() < deadline
                time.sleep(0.1)
    finally:
        child.send_signal(signal.SIGINT)
        child.communicate(timeout=30)


@pytest.mark.long
def test_a_version_in_the_store_is_rebuilt(here: Finished, tmp_path: Path) -> None:
    result = here.call("rebuild", "ad-campaigns@1", "--runs", str(tmp_path / "runs"), "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["outcome"] in ("same", "equivalent")
