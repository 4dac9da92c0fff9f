"""`mlflywheel tune ad-campaigns --executor katib`: rows in an object store, trials run as their pods would run them."""

import base64
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml
from control_plane import Cluster
from katib_stand_in import KatibStandIn, Outcome
from kubernetes import client
from moto.server import ThreadedMotoServer

from mlflywheel import Client
from mlflywheel.errors import UsageError
from mlflywheel.pipelines.catalog import find_pipeline
from mlflywheel.runs.search import Execution
from mlflywheel.samples.ad_campaigns import write_sample
from mlflywheel.tuning.metrics import MetricReader, order_values
from mlflywheel.tuning.reader import read_experiment

BUCKET = "bucket"
KEYS = {"id": "AKIDEXAMPLE", "key": "an example of a secret"}
TRIALS = 2


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An S3 server whose address and keys this process has in its environment."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    address = f"http://{host}:{port}"
    for name in [name for name in os.environ if name.startswith(("AWS_", "MINIO_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", address)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEYS["id"])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", KEYS["key"])
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    s3 = boto3.client("s3", endpoint_url=address)
    s3.create_bucket(Bucket=BUCKET)
    s3.close()
    yield address
    server.stop()


@pytest.fixture
def katib_namespace(cluster: Cluster, namespace: str, install_crds: Callable[[str], tuple[str, ...]]) -> str:
    """A namespace in which Katib collects metrics, with the object store's keys as a secret."""
    install_crds("katib")
    core = client.CoreV1Api(cluster.api_client())
    label = "katib.kubeflow.org/metrics-collector-injection"
    core.patch_namespace(namespace, {"metadata": {"labels": {label: "enabled"}}})
    core.create_namespaced_secret(namespace, {"metadata": {"name": "store"}, "stringData": KEYS})
    return namespace


class Pod:
    """Runs a trial's container as Katib has rewritten it, with nothing of this process's environment but PATH."""

    def __init__(self, cluster: Cluster, namespace: str, experiment: str, folder: Path) -> None:
        self.core = client.CoreV1Api(cluster.api_client())
        self.namespace, self.folder = namespace, folder
        self.experiment = read_experiment(experiment)
        self.logs: list[str] = []

    def __call__(self, trial: Mapping[str, Any]) -> Outcome:
        assignments = {one["name"]: one["value"] for one in trial["spec"]["parameterAssignments"]}
        name = trial["metadata"]["name"]
        # Katib puts its trial's own spec there, as it was sent.
        sent = yaml.safe_load(yaml.safe_dump(trial["spec"]["runSpec"]))
        template = type(self.experiment.template)(
            self.experiment.template.primary_container, self.experiment.template.parameters, sent
        )
        container = template.container(template.render(assignments, name, self.namespace))
        assert container is not None
        log, mark = self.folder / f"{name}.log", self.folder / f"{name}.mark"
        words = [*container["command"], *container["args"], f"1>{log} 2>&1", "&&", f"echo completed > {mark}"]
        environment = {entry["name"]: self._value(entry) for entry in container["env"]}
        environment |= {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
        finished = subprocess.run(
            ["sh", "-c", " ".join(words)], env=environment, cwd=self.folder, timeout=200, check=False
        )
        self.logs.append(log.read_text(encoding="utf-8"))
        if finished.returncode or mark.read_text() != "completed\n":
            return Outcome(condition="Failed", message=self.logs[-1])
        reader = MetricReader(self.experiment)
        reports = [report for line in self.logs[-1].split("\n")[:-1] for report in reader.feed(line)]
        metrics = self.experiment.objective.metrics
        return Outcome({metric: [repr(value) for value in order_values(reports, metric)] for metric in metrics})

    def _value(self, entry: Mapping[str, Any]) -> str:
        if "value" in entry:
            return str(entry["value"])
        reference = entry["valueFrom"]["secretKeyRef"]
        data = self.core.read_namespaced_secret(reference["name"], self.namespace).data
        return base64.b64decode(data[reference["key"]]).decode()


def write_experiment() -> str:
    document = yaml.safe_load((find_pipeline("ad-campaigns").folder / "experiment.yaml").read_text(encoding="utf-8"))
    document["spec"] |= {"maxTrialCount": TRIALS, "maxFailedTrialCount": 1, "parallelTrialCount": 1}
    return yaml.safe_dump(document)


def test_trials_read_their_rows_with_the_secrets_keys_and_the_best_one_is_found(
    cluster: Cluster, katib_namespace: str, store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", cluster.kubeconfig)
    data = write_sample(tmp_path / "terms.csv.gz", campaigns=120)
    pod = Pod(cluster, katib_namespace, write_experiment(), tmp_path)
    execution = Execution(
        "katib",
        namespace=katib_namespace,
        timeout_seconds=300,
        cleanup="always",
        storage=f"s3://{BUCKET}/tuning",
        secret="store:id:key",
    )
    with KatibStandIn(cluster.api_client(), katib_namespace, [pod] * TRIALS):
        found = Client(tmp_path / "runs").tune(
            "ad-campaigns",
            data,
            params={"num_topics": 2},
            arguments={"experiment": write_experiment()},
            execution=execution,
        )
    assert found.tuned is not None
    assert [trial.status for trial in found.result.trials] == ["succeeded"] * TRIALS, pod.logs
    assert found.tuned.improved
    assert found.tuned.params["num_topics"] > 2
    assert not any(value in log for value in KEYS.values() for log in pod.logs)
    left = client.CustomObjectsApi(cluster.api_client()).list_namespaced_custom_object(
        "kubeflow.org", "v1beta1", katib_namespace, "experiments"
    )
    assert left["items"] == []
    assert Path(found.artifacts["report"]).exists()


def test_a_cluster_needs_a_place_for_the_rows(tmp_path: Path) -> None:
    data = write_sample(tmp_path / "terms.csv.gz", campaigns=60)
    with pytest.raises(UsageError, match=r"--storage: no object store.*--storage s3://"):
        Client(tmp_path / "runs").tune("ad-campaigns", data, execution=Execution("katib"))
