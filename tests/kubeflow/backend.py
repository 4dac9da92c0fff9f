"""Kubeflow Pipelines' own backend on this machine: everything but a node and a registry of images.

What is the real thing, built from its source: KFP's API server, driver, launcher, persistence agent and controller of
recurring runs; Argo's workflow controller and executor; kube-apiserver and etcd; MariaDB; Kubeflow's Model Registry
with PostgreSQL. What stands in: `kubelet.py` for nodes and images, `metadata_server.py` for the transport of ML
Metadata, moto for the object store.

MLFLYWHEEL_TEST_KUBEFLOW names a folder with:

- `apiserver`, `persistence_agent`, `scheduledworkflow`, `driver` and `launcher`, from a checkout of
  https://github.com/kubeflow/pipelines: `go build -o FOLDER/NAME ./backend/src/PATH` with the paths `apiserver`,
  `agent/persistence`, `crd/controller/scheduledworkflow`, `v2/cmd/driver` and `v2/cmd/launcher-v2`;
- `workflow-controller` and `argoexec`, from the tag of https://github.com/argoproj/argo-workflows that the first one's
  go.mod names: `go build -o FOLDER/NAME ./cmd/NAME`;
- `mlmd`, a virtual environment of a Python that it has wheels for, with `pip install ml-metadata grpcio`.

Go's module proxy did not have these modules, which is why no target builds them. It needs Linux, root,
`mariadbd` on PATH, what `make cluster-tools` builds, and what `registry_server.py` asks for.

The backend has a network of its own with the services' usual names and ports, so that it meets nothing else that runs
on the machine, and nothing outside meets it. The thread that enters it, and what it starts, are inside.
"""

import contextlib
import ctypes
import os
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import boto3
import yaml
from control_plane import ControlPlane
from kubelet import Image, Kubelet
from kubernetes import client
from sandbox import bind, mount

VARIABLE = "MLFLYWHEEL_TEST_KUBEFLOW"
NAMESPACE = "kubeflow"
BUCKET = "mlpipeline"
#: What the image of components sets (serving/components.Containerfile).
COMPONENT_ENVIRONMENT = {
    "HOME": "/tmp",
    "NUMBA_CACHE_DIR": "/tmp/numba",
    "PYTHONDONTWRITEBYTECODE": "1",
    "PYTHONUNBUFFERED": "1",
    **{f"{library}_NUM_THREADS": "1" for library in ("OMP", "OPENBLAS", "MKL", "NUMBA")},
}

_HERE = Path(__file__).resolve().parent
_PROGRAMS = (
    *("apiserver", "persistence_agent", "scheduledworkflow", "driver", "launcher", "workflow-controller", "argoexec"),
    "mlmd/bin/python",
)
_COMMANDS = ("mariadbd", "mariadb-install-db", "unshare", "setpriv", "ip")
_NEW_NAMESPACES = 0x40000000 | 0x00020000
_PRIVATE = 0x4000 | 0x40000
_DETACH = 2
#: Services of a Kubeflow installation. Metadata has an address of its own, for a registry may be on its port.
_SERVICES = {name: "127.0.0.1" for name in ("ml-pipeline", "seaweedfs", "mysql")} | {
    "metadata-grpc-service": "127.0.0.2"
}
_CRDS = {
    "argoproj.io/v1alpha1": (
        *("Workflow", "WorkflowTemplate", "CronWorkflow", "WorkflowTaskSet", "WorkflowTaskResult"),
        *("WorkflowEventBinding", "WorkflowArtifactGCTask", "ClusterWorkflowTemplate"),
    ),
    "kubeflow.org/v1beta1": ("ScheduledWorkflow",),
}
_WITH_STATUS = ("WorkflowTaskSet", "WorkflowArtifactGCTask")
#: What the library asks an administrator to install for the pods of runs.
_MANIFESTS = Path(__file__).resolve().parents[2] / "manifests" / "pipelines"


def what_is_missing() -> str:
    """Say what the tests lack here, or nothing."""
    named = os.environ.get(VARIABLE)
    if not named:
        return f"no Kubeflow Pipelines. Fix: build it as tests/kubeflow/backend.py says, and name it in {VARIABLE}"
    lacking = [program for program in _PROGRAMS if not os.access(Path(named) / program, os.X_OK)]
    if lacking:
        return f"{VARIABLE}={named} has no {', '.join(lacking)}. Fix: build it as tests/kubeflow/backend.py says"
    if sys.platform != "linux" or os.geteuid() != 0:
        return "pods of the tests need mount and network namespaces. Fix: run as root on Linux"
    commands = [command for command in _COMMANDS if shutil.which(command) is None]
    if commands:
        return f"no {', '.join(commands)} on PATH. Fix: install MariaDB's server, util-linux and iproute2"
    return ""


@contextlib.contextmanager
def own_network(folder: Path) -> Iterator[None]:
    """Put the calling thread, and what it starts, into a network with nothing in it but the services' names.

    Args:
        folder: For the file of names.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    mounted: list[str] = []
    with open("/proc/thread-self/ns/net", "rb") as outside:
        if libc.unshare(_NEW_NAMESPACES) != 0:
            raise OSError(ctypes.get_errno(), "no network of its own")
        try:
            mount("none", "/", flags=_PRIVATE)
            subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
            lines = ["127.0.0.1 localhost"]
            for name, address in _SERVICES.items():
                full = f"{name}.{NAMESPACE}.svc.cluster.local"
                lines.append(f"{address} {name} {name}.{NAMESPACE} {name}.{NAMESPACE}.svc {full}")
            # No server of names: what is not in the file is unknown at once.
            files = {"hosts": "\n".join(lines), "resolv.conf": "nameserver 127.0.0.1\noptions attempts:1 timeout:1"}
            for name, text in files.items():
                (folder / name).write_text(f"{text}\n", encoding="utf-8")
                bind(str(folder / name), f"/etc/{name}")
                mounted.append(f"/etc/{name}")
            # Where servers look for the tokens of their pods.
            mount("run", "/run", "tmpfs")
            mounted.append("/run")
            yield
        finally:
            # There is no way back into the first mount namespace for a process with threads, so it is made alike.
            for place in mounted:
                libc.umount2(place.encode(), _DETACH)
            if libc.setns(outside.fileno(), 0) != 0:
                raise OSError(ctypes.get_errno(), "the way back from the network")


class Backend:
    """The backend beside a control plane, which ends it; start with `with`, in `own_network`.

    Args:
        plane: A control plane that runs, for this alone.
        folder: For images, volumes and logs of pods.
        components: In place of the image of components.

    Attributes:
        url: Of KFP's API.
        store: A client of the object store.
    """

    def __init__(self, plane: ControlPlane, folder: Path, components: Image) -> None:
        self.plane = plane
        self.components = components
        self.url = "http://ml-pipeline.kubeflow:8888"
        self.store_url = f"http://seaweedfs.{NAMESPACE}:9000"
        self._folder = folder
        self._programs = Path(os.environ[VARIABLE]).resolve()
        self._core = client.CoreV1Api(plane.api_client())

    def __enter__(self) -> "Backend":
        self._install()
        self._start_stores()
        self._start_servers()
        self._kubelet = Kubelet(
            self.plane.api_client(),
            NAMESPACE,
            self._make_images(),
            self._folder / "pods",
            self.plane.folder / "apiserver.crt",
            self.plane.port,
        )
        self._kubelet.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._kubelet.__exit__()

    def configure_steps(self, variables: Mapping[str, str]) -> None:
        """Write the ConfigMap and the Secret that the compiled pipelines name, as manifests/pipelines does."""
        keys = {name: value for name, value in variables.items() if "_KEY" in name}
        rest = {name: value for name, value in variables.items() if name not in keys}
        rest["MLFLYWHEEL_S3_SECRET"] = "model-store"
        self._core.create_namespaced_secret(NAMESPACE, {"metadata": {"name": "model-store"}, "stringData": keys})
        self._core.create_namespaced_config_map(NAMESPACE, {"metadata": {"name": "mlflywheel-store"}, "data": rest})

    def configure_launcher(self, data: Mapping[str, str]) -> None:
        """Write the configuration of the launcher: default root of artifacts, and how stores are reached."""
        self._core.replace_namespaced_config_map(
            "kfp-launcher", NAMESPACE, {"metadata": {"name": "kfp-launcher"}, "data": dict(data)}
        )

    def _install(self) -> None:
        self.plane.create_definitions(*(_definition(group, kind) for group, kinds in _CRDS.items() for kind in kinds))
        self._core.create_namespace({"metadata": {"name": NAMESPACE}})
        secret = {"accesskey": "minio", "secretkey": "minio123"}
        self._core.create_namespaced_secret(
            NAMESPACE, {"metadata": {"name": "mlpipeline-minio-artifact"}, "stringData": secret}
        )
        config = {"executor": "imagePullPolicy: IfNotPresent\n", "workflowDefaults": _WORKFLOW_DEFAULTS}
        for name, data in (("workflow-controller-configmap", config), ("kfp-launcher", {}), ("kube-root-ca.crt", {})):
            self._core.create_namespaced_config_map(NAMESPACE, {"metadata": {"name": name}, "data": data})
        for name in ("service-account", "role", "role-binding"):
            document = yaml.safe_load((_MANIFESTS / f"{name}.yaml").read_text(encoding="utf-8"))
            document["metadata"]["namespace"] = NAMESPACE
            for subject in document.get("subjects", ()):
                subject["namespace"] = NAMESPACE
            self.plane.kubectl("apply", "-f", "-", input=yaml.safe_dump(document))
        # Whose tokens the backend's own servers show to each other.
        self._core.create_namespaced_service_account(NAMESPACE, {"metadata": {"name": "ml-pipeline"}})

    def _start_stores(self) -> None:
        start = self.plane.start_server
        moto = Path(sys.executable).parent / "moto_server"
        # It would take the first part of the service's name for a bucket's.
        environment = {"S3_IGNORE_SUBDOMAIN_BUCKETNAME": "true"}
        start("object-store", "-H", "127.0.0.1", "-p", "9000", path=moto, environment=environment)
        self.plane.wait_for_server("object-store", lambda: _answers(f"{self.store_url}/moto-api/"))
        self.store = boto3.client(
            "s3",
            endpoint_url=self.store_url,
            aws_access_key_id="minio",
            aws_secret_access_key="minio123",
            region_name="us-east-1",
        )
        self.store.create_bucket(Bucket=BUCKET)

        data = self.plane.folder / "mariadb"
        data.mkdir()
        self.plane.folder.chmod(0o711)
        shutil.chown(data, "mysql")
        options = ["--no-defaults", f"--datadir={data}", "--user=mysql"]
        subprocess.run(
            ["mariadb-install-db", *options, "--skip-test-db", "--auth-root-authentication-method=normal"],
            check=True,
            capture_output=True,
        )
        mariadb = Path(str(shutil.which("mariadbd")))
        start(
            "mariadb",
            *options,
            f"--socket={data}/socket",
            "--bind-address=127.0.0.1",
            "--port=3306",
            path=mariadb,
        )
        self.plane.wait_for_server("mariadb", (data / "socket").is_socket)

        # A link followed to its end would leave the environment.
        python = str(self._programs / "mlmd" / "bin" / "python")
        database = str(self.plane.folder / "metadata.db")
        start(
            "metadata", python, str(_HERE / "metadata_server.py"), "127.0.0.2:8080", database, path=Path("/usr/bin/env")
        )

    def _start_servers(self) -> None:
        start = self.plane.start_server
        secrets = Path("/run/secrets")
        audience = client.V1TokenRequestSpec(audiences=["pipelines.kubeflow.org"], expiration_seconds=7200)
        request = client.AuthenticationV1TokenRequest(spec=audience)
        answer = self._core.create_namespaced_service_account_token("ml-pipeline", NAMESPACE, request)
        for name in ("persistenceagent-sa-token", "scheduledworkflow-sa-token"):
            _write(secrets / "kubeflow" / "tokens" / name, answer.status.token)
        environment = {
            "KUBECONFIG": self.plane.kubeconfig,
            "POD_NAMESPACE": NAMESPACE,
            "CRON_SCHEDULE_TIMEZONE": "UTC",
            "V2_DRIVER_IMAGE": "kfp-driver",
            "V2_LAUNCHER_IMAGE": "kfp-launcher",
            "NO_PROXY": "*",
            "ML_PIPELINE_VISUALIZATIONSERVER_SERVICE_HOST": "127.0.0.1",
            "ML_PIPELINE_VISUALIZATIONSERVER_SERVICE_PORT": "8889",
            "LEADER_ELECTION_IDENTITY": "workflow-controller",
            # Of a workflow whose pods have changed; 10 s otherwise, several times in each step.
            "DEFAULT_REQUEUE_TIME": "200ms",
        }
        config = self.plane.folder / "config"
        config.mkdir()
        (config / "config.json").write_text(_API_SERVER_CONFIG, encoding="utf-8")
        start(
            "ml-pipeline",
            f"--config={config}",
            "--logtostderr=true",
            path=self._programs / "apiserver",
            environment=environment,
        )
        self.plane.wait_for_server("ml-pipeline", lambda: _answers(f"{self.url}/apis/v2beta1/healthz"))
        start(
            "workflow-controller",
            f"--kubeconfig={self.plane.kubeconfig}",
            "--namespaced",
            f"--namespace={NAMESPACE}",
            "--executor-image=argoexec",
            path=self._programs / "workflow-controller",
            environment=environment,
        )
        for name in ("persistence_agent", "scheduledworkflow"):
            options = [f"--kubeconfig={self.plane.kubeconfig}", f"--namespace={NAMESPACE}", "--logtostderr=true"]
            # Argo's controller has that port too.
            options += ["--metricsPort=9091"] if name == "scheduledworkflow" else []
            start(name, *options, path=self._programs / name, environment=environment)

    def _make_images(self) -> dict[str, Image]:
        images = {
            "kfp-driver": Image({"driver": self._programs / "driver"}),
            "kfp-launcher": Image({"launcher-v2": self._programs / "launcher"}),
            "argoexec": Image({"argoexec": self._programs / "argoexec"}, ("argoexec",)),
        }
        return images | {"mlflywheel/components": self.components}


_WORKFLOW_DEFAULTS = """
spec:
  templateDefaults:
    retryStrategy:
      limit: '2'
      retryPolicy: OnError
"""
_API_SERVER_CONFIG = """
{"DBConfig": {"MySQLConfig": {"Host": "mysql", "Port": "3306", "User": "root", "Password": "",
                              "DBName": "mlpipeline", "GroupConcatMaxLen": "4194304"},
              "ConMaxLifeTime": "120s"},
 "ObjectStoreConfig": {"AccessKey": "minio", "SecretAccessKey": "minio123", "BucketName": "mlpipeline",
                       "PipelinePath": "pipelines", "Region": "us-east-1", "Host": "seaweedfs.kubeflow", "Port": "9000",
                       "Secure": false},
 "DBDriverName": "mysql",
 "InitConnectionTimeout": "1m", "DEFAULTPIPELINERUNNERSERVICEACCOUNT": "mlflywheel-pipelines", "CacheEnabled": "true",
 "CRON_SCHEDULE_TIMEZONE": "UTC"}
"""


def _definition(group_version: str, kind: str) -> dict[str, Any]:
    """A definition without a schema, as Argo's own `minimal` ones."""
    group, version = group_version.split("/")
    plural = f"{kind.lower()}s"
    served: dict[str, Any] = {
        "name": version,
        "served": True,
        "storage": True,
        "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}},
    }
    if kind in _WITH_STATUS:
        served["subresources"] = {"status": {}}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.{group}"},
        "spec": {
            "group": group,
            "scope": "Cluster" if kind.startswith("Cluster") else "Namespaced",
            "names": {"kind": kind, "listKind": f"{kind}List", "plural": plural, "singular": kind.lower()},
            "versions": [served],
        },
    }


def _answers(url: str) -> bool:
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=5):
            return True
    except urllib.error.HTTPError as error:
        error.close()
        return False
    except OSError:
        return False


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
