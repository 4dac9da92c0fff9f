"""The committed pipelines on Kubeflow Pipelines' own backend: the same YAML and data give what they give on a laptop.

Minutes for each run, and a backend that `backend.py` says how to build.
"""

import io
import json
import time
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("kfp")
pytest.importorskip("boto3")

import pyarrow.parquet as pq
import yaml
from backend import NAMESPACE
from laboratory import Laboratory

from mlflywheel import images
from mlflywheel.cluster.model_registry import KubeflowRegistry
from mlflywheel.errors import RegistryError
from mlflywheel.pipelines.catalog import find_pipeline
from mlflywheel.registry.records import State

pytestmark = pytest.mark.long

# Samples as small as these are refused by the committed gates.
LENIENT = {
    "ad-campaigns": '{"schema":1,"gates":[{"metric":"coherence_c_npmi","at_least":0.05}]}',
    "credit-decisions": '{"schema":1,"gates":[{"metric":"auc","at_least":0.5}]}',
    "vehicle-prices": '{"schema":1,"gates":[{"metric":"mdape","at_most":1}]}',
}
SIZES = {"ad-campaigns": 150, "credit-decisions": 600, "vehicle-prices": 600}
MEASURED = {
    "ingest-data",
    "prepare-table",
    "validate-data",
    "split-table",
    "tune-model",
    "train-model",
    "evaluate-model",
}
REGISTERED = MEASURED | {"extend-model", "register-model", "score-table", "deploy-model"}


class Finished:
    """A run on the backend and the same on this machine."""

    def __init__(self, laboratory: Laboratory, pipeline: str) -> None:
        self.pipeline = pipeline
        self.data = laboratory.sample(pipeline, SIZES[pipeline])
        self.ids = laboratory.upload(pipeline)
        gates = laboratory.folder / f"{pipeline}-gates.json"
        gates.write_text(LENIENT[pipeline], encoding="utf-8")
        self.parameters: dict[str, Any] = {
            "data": self.data,
            "registry": laboratory.registry.url,
            "gates": LENIENT[pipeline],
            "approve": True,
        }
        self.run_id = laboratory.start_run(self.ids, **self.parameters)
        here = ("--data", self.data, "--gates", str(gates), "--set", "approve=true")
        self.status_here, self.summary_here, self.files_here = laboratory.run_here(pipeline, pipeline, *here)
        self.state = laboratory.wait(self.run_id)
        self.files = laboratory.artifacts(pipeline, self.run_id)


@pytest.fixture(scope="module", params=list(SIZES))
def finished(laboratory: Laboratory, request: pytest.FixtureRequest) -> Finished:
    return Finished(laboratory, request.param)


def _steps(files: dict[str, bytes]) -> set[str]:
    """The steps that ran: the launcher keeps the log of each among its artifacts."""
    return {name.partition("/")[0] for name in files}


def _json(files: dict[str, bytes], name: str) -> Any:
    return json.loads(files[name])


def test_run_ends_where_it_ends_on_a_laptop(finished: Finished) -> None:
    assert (finished.state, finished.status_here) == ("SUCCEEDED", 0)
    assert _steps(finished.files) == REGISTERED


def test_model_is_the_laptops_bit_for_bit(finished: Finished) -> None:
    for step in ("train-model/fitted", "extend-model/extended"):
        there, here = (
            {name: content for name, content in files.items() if name.startswith(f"{step}/")}
            for files in (finished.files, finished.files_here)
        )
        assert len(there) > 1
        assert there == here


def test_metrics_and_gates_are_the_laptops(finished: Finished) -> None:
    there, here = (_json(files, "evaluate-model/evaluation") for files in (finished.files, finished.files_here))
    assert there == here
    assert _json(finished.files, "evaluate-model/verdict") == _json(finished.files_here, "evaluate-model/verdict")


def test_scores_are_the_laptops(finished: Finished) -> None:
    there, here = (
        pq.read_table(io.BytesIO(files["score-table/scores"])).drop_columns(["model_version"])
        for files in (finished.files, finished.files_here)
    )
    assert there.num_rows > 0
    assert there.equals(here)


def test_pages_lie_in_the_store(finished: Finished) -> None:
    for name in ("validate-data/report", "evaluate-model/report", "register-model/page"):
        assert finished.files[name].lstrip().lower().startswith(b"<!doctype html")
    assert b"|" in finished.files["evaluate-model/gate_table"]


def test_training_knows_cluster_and_image(finished: Finished) -> None:
    environment = _json(finished.files, "train-model/environment")
    assert environment["image"]["reference"] == images.COMPONENTS
    assert environment["image"]["digest"].startswith("sha256:")
    assert environment["cluster"]["version"].startswith("v1.")


def test_version_is_registered_with_an_address_that_servers_read(finished: Finished, laboratory: Laboratory) -> None:
    version = KubeflowRegistry(laboratory.registry.url).get(finished.pipeline)
    assert version.uri.startswith(f"s3://mlpipeline/v2/artifacts/{finished.pipeline}/{finished.run_id}/extend-model/")
    assert version.uri.endswith("/extended")
    assert (version.endpoint, version.secret) == (f"http://seaweedfs.{NAMESPACE}:9000", "model-store")
    assert version.state is State.APPROVED
    assert version.hash == _json(finished.files, "extend-model/extended/manifest.json")["hash"]
    assert version.lineage["run_id"] == finished.run_id


@pytest.fixture(scope="module")
def campaigns(laboratory: Laboratory) -> dict[str, Any]:
    return {"data": laboratory.sample("ad-campaigns", SIZES["ad-campaigns"]), "registry": laboratory.registry.url}


@pytest.fixture(scope="module")
def uploaded(laboratory: Laboratory) -> tuple[str, str]:
    found = laboratory.client.get_pipeline_id("ad-campaigns")
    if found is None:
        return laboratory.upload("ad-campaigns")
    return found, laboratory.client.list_pipeline_versions(found).pipeline_versions[0].pipeline_version_id


def test_gate_that_says_no_fails_the_run(
    laboratory: Laboratory, uploaded: tuple[str, str], campaigns: dict[str, Any]
) -> None:
    gates = '{"schema":1,"gates":[{"metric":"topic_diversity","at_least":1.1}]}'
    run_id = laboratory.start_run(uploaded, **campaigns, gates=gates, model_name="refused")
    assert laboratory.wait(run_id) == "FAILED"
    files = laboratory.artifacts("ad-campaigns", run_id)
    assert _steps(files) == MEASURED | {"refuse-model"}
    assert "topic_diversity" in files["refuse-model/executor-logs-0"].decode()
    with pytest.raises(RegistryError):
        KubeflowRegistry(laboratory.registry.url).get("refused")


def test_table_that_is_missing_fails_the_run_and_is_named(
    laboratory: Laboratory, uploaded: tuple[str, str], campaigns: dict[str, Any]
) -> None:
    run_id = laboratory.start_run(uploaded, **campaigns | {"data": "s3://mlpipeline/data/absent.parquet"})
    assert laboratory.wait(run_id) == "FAILED"
    files = laboratory.artifacts("ad-campaigns", run_id)
    # One attempt: Argo as KFP configures it starts what was lost again, and not what failed.
    assert set(files) == {"ingest-data/executor-logs-0"}
    assert "s3://mlpipeline/data/absent.parquet" in files["ingest-data/executor-logs-0"].decode()


@pytest.fixture
def artifacts_in_s3(laboratory: Laboratory) -> Iterator[None]:
    """Artifacts have `s3://` addresses in place of Kubeflow's own `minio://`."""
    secret = {"secretName": "mlpipeline-minio-artifact", "accessKeyKey": "accesskey", "secretKeyKey": "secretkey"}
    default = {
        "endpoint": f"seaweedfs.{NAMESPACE}:9000",
        "region": "us-east-1",
        "disableSSL": True,
        "credentials": {"fromEnv": False, "secretRef": secret},
    }
    root = "s3://mlpipeline/v2/artifacts"
    providers = yaml.safe_dump({"s3": {"default": default}})
    laboratory.backend.configure_launcher({"defaultPipelineRoot": root, "providers": providers})
    yield
    laboratory.backend.configure_launcher({})


@pytest.mark.usefixtures("artifacts_in_s3")
def test_trials_run_beside_the_step_and_artifacts_lie_in_s3(
    laboratory: Laboratory, uploaded: tuple[str, str], campaigns: dict[str, Any]
) -> None:
    experiment = yaml.safe_load((find_pipeline("ad-campaigns").folder / "experiment.yaml").read_text(encoding="utf-8"))
    experiment["spec"] |= {"maxTrialCount": 2, "maxFailedTrialCount": 1, "parallelTrialCount": 1}
    settings = {"tune": True, "tune_executor": "local", "confirmations": 0, "experiment": json.dumps(experiment)}
    gates = LENIENT["ad-campaigns"]
    run_id = laboratory.start_run(uploaded, **campaigns, **settings, gates=gates, model_name="searched")
    assert laboratory.wait(run_id) == "SUCCEEDED"
    search = _json(laboratory.artifacts("ad-campaigns", run_id), "tune-model/search")
    assert search["facts"]["succeeded_trials"] == 2
    version = KubeflowRegistry(laboratory.registry.url).get("searched")
    assert version.uri.startswith("s3://mlpipeline/v2/artifacts/ad-campaigns/")
    assert version.endpoint == f"http://seaweedfs.{NAMESPACE}:9000"


def test_recurring_run_starts_the_pipeline(
    laboratory: Laboratory, uploaded: tuple[str, str], campaigns: dict[str, Any]
) -> None:
    parameters = campaigns | {"trigger": "scheduled", "gates": LENIENT["ad-campaigns"], "model_name": "recurring"}
    recurring = laboratory.client.create_recurring_run(
        laboratory.experiment,
        "every minute",
        interval_second=60,
        pipeline_id=uploaded[0],
        version_id=uploaded[1],
        params=parameters,
        max_concurrency=1,
    )
    deadline = time.monotonic() + 180
    try:
        while not (started := _runs_of(laboratory, recurring.recurring_run_id)):
            assert time.monotonic() < deadline
            time.sleep(1)
    finally:
        laboratory.client.disable_recurring_run(recurring.recurring_run_id)
    assert laboratory.wait(started[0]) == "SUCCEEDED"
    dossier = _json(laboratory.artifacts("ad-campaigns", started[0]), "register-model/dossier")
    assert dossier["run"]["trigger"] == "scheduled"


def _runs_of(laboratory: Laboratory, recurring_run_id: str) -> list[str]:
    runs = laboratory.client.list_runs(experiment_id=laboratory.experiment, page_size=100).runs or ()
    return [one.run_id for one in runs if one.recurring_run_id == recurring_run_id]
