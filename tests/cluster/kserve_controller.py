"""KServe's own controller manager and webhooks beside the API server, and stand-ins for pods and a gateway.

The manager is the real one: it validates, defaults and reconciles InferenceServices as on any cluster. What runs on
nodes is not there: `mark_deployment` says how many pods of a Deployment are available, and `accept_routes` what a
gateway says of its HTTPRoutes; `play_cluster` goes on doing both. Nothing collects garbage: what an InferenceService
owns stays when it is deleted.
"""

import base64
import contextlib
import datetime
import http.client
import ipaddress
import json
import ssl
import threading
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from control_plane import ControlPlane, find_port
from custom_resources import read_definitions
from kubernetes import client

#: Where the manager's configuration is.
NAMESPACE = "kserve"
CONFIG_MAP = "inferenceservice-config"
#: HTTPRoutes name this Gateway as their parent. No such object is needed for that.
GATEWAY = "kserve/kserve-ingress-gateway"
#: The parts of the configuration that differ from what KServe ships.
SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "deploy": {"defaultDeploymentMode": "Standard"},
    "ingress": {
        "enableGatewayApi": True,
        "kserveIngressGateway": GATEWAY,
        "ingressDomain": "example.com",
        "disableIstioVirtualHost": True,
    },
}
ISVC = ("serving.kserve.io", "v1beta1")
ROUTE = ("gateway.networking.k8s.io", "v1")

_LOOPBACK = "127.0.0.1"
_SERVER = "kserve-manager"
# Without Knative's kinds the manager refuses that mode; without KEDA's it does not look at them.
_PROJECTS = ("kserve", "gateway-api", "keda", "knative")


class KServe:
    """KServe's controller manager on a control plane, whose `stop` ends it too.

    Args:
        plane: A control plane that runs, for KServe alone: its webhooks see to every InferenceService there.
        manager: The command.
        sources: What `cluster_tools.py` took from KServe's module: definitions, configuration and webhooks.

    Attributes:
        plane: As given.
    """

    def __init__(self, plane: ControlPlane, manager: Path, sources: Path) -> None:
        self.plane = plane
        self._manager = manager
        self._sources = sources

    def start(self) -> None:
        """Install what KServe's installation installs, start the manager and wait until it answers.

        Raises:
            ClusterError: It ended, or is not ready in time; the message shows the end of its log.
        """
        definitions = [read_definitions(self._sources / "crds" / project) for project in _PROJECTS]
        self.plane.create_definitions(*(one for found in definitions for one in found.values()))
        core = client.CoreV1Api(self.plane.api_client())
        for namespace in (NAMESPACE, "knative-serving"):
            core.create_namespace({"metadata": {"name": namespace}})
        self.configure()
        # Knative's installation brings it, and the manager reads it for every InferenceService in Knative mode.
        core.create_namespaced_config_map("knative-serving", {"metadata": {"name": "config-autoscaler"}, "data": {}})

        # Where the manager looks: in the folder for temporary files.
        certificate = _write_certificate(self.plane.folder / "k8s-webhook-server" / "serving-certs")
        webhooks, health = find_port(), find_port()
        self.plane.start_server(
            _SERVER,
            # There is no option for the address of the webhooks: they listen on all, with a certificate for this one.
            f"--webhook-port={webhooks}",
            "--metrics-addr=0",
            f"--health-probe-addr={_LOOPBACK}:{health}",
            path=self._manager,
            environment={"KUBECONFIG": self.plane.kubeconfig, "TMPDIR": str(self.plane.folder)},
        )
        self.plane.wait_for_server(_SERVER, lambda: _is_ready(health) and _accepts_tls(webhooks, certificate))
        self._register_webhooks(webhooks, certificate)

    def configure(self, **changes: Mapping[str, Any]) -> None:
        """Write the manager's configuration: what KServe ships, changed by `SETTINGS` and then by `changes`.

        It is read again for each InferenceService that is reconciled; what to watch was decided at the start.

        Args:
            changes: A part of the configuration, such as `ingress`, and the values in it that change.
        """
        shipped = yaml.safe_load((self._sources / "inferenceservice.yaml").read_text(encoding="utf-8"))["data"]
        data = {name: value for name, value in shipped.items() if name != "_example"}
        for settings in (SETTINGS, changes):
            for name, values in settings.items():
                data[name] = json.dumps(json.loads(data[name]) | dict(values))
        core = client.CoreV1Api(self.plane.api_client())
        body = {"metadata": {"name": CONFIG_MAP}, "data": data}
        try:
            core.create_namespaced_config_map(NAMESPACE, body)
        except client.ApiException as error:
            if error.status != 409:
                raise
            core.replace_namespaced_config_map(CONFIG_MAP, NAMESPACE, body)

    def log(self) -> str:
        """What the manager has logged so far."""
        return (self.plane.folder / f"{_SERVER}.log").read_text(encoding="utf-8", errors="replace")

    @contextlib.contextmanager
    def play_cluster(self, namespace: str, broken: Collection[str] = ()) -> Iterator[None]:
        """Let the pods of a namespace become available and its routes be accepted, as long as the context lasts.

        Args:
            namespace: Where.
            broken: Names of Deployments whose pods never become available. It is looked at again and again: a set that
                changes breaks and mends them.
        """
        ended = threading.Event()
        apps = client.AppsV1Api(self.plane.api_client())

        def play() -> None:
            while not ended.wait(0.1):
                # What is gone or was changed since it was read comes up again, or not.
                with contextlib.suppress(client.ApiException):
                    for deployment in apps.list_namespaced_deployment(namespace).items:
                        mark_deployment(apps, deployment, 0 if deployment.metadata.name in broken else None)
                with contextlib.suppress(client.ApiException):
                    accept_routes(apps.api_client, namespace)

        player = threading.Thread(target=play, name=f"cluster of {namespace}")
        player.start()
        try:
            yield
        finally:
            ended.set()
            player.join()

    def _register_webhooks(self, port: int, certificate: Path) -> None:
        bundle = base64.b64encode(certificate.read_bytes()).decode()
        registration = client.AdmissionregistrationV1Api(self.plane.api_client())
        create = {
            "MutatingWebhookConfiguration": registration.create_mutating_webhook_configuration,
            "ValidatingWebhookConfiguration": registration.create_validating_webhook_configuration,
        }
        for document in yaml.safe_load_all((self._sources / "webhooks.yaml").read_text(encoding="utf-8")):
            if document is None:
                continue
            for webhook in document["webhooks"]:
                path = webhook["clientConfig"]["service"]["path"]
                webhook["clientConfig"] = {"url": f"https://{_LOOPBACK}:{port}{path}", "caBundle": bundle}
            document["metadata"] = {"name": document["metadata"]["name"]}
            create[document["kind"]](document)


def mark_deployment(apps: client.AppsV1Api, deployment: client.V1Deployment, available: int | None = None) -> None:
    """Write the status that the Deployment's controller would, unless it says so already.

    Args:
        apps: Who writes.
        deployment: As it was read.
        available: How many of its pods are ready and available; all that it asks for if not given.
    """
    replicas = deployment.spec.replicas
    ready = replicas if available is None else available
    seen, known = deployment.status, deployment.metadata.generation
    if seen.observed_generation == known and seen.replicas == replicas and (seen.available_replicas or 0) == ready:
        return
    now = _now()
    available_enough = {"type": "Available", "status": "True" if ready >= min(replicas, 1) else "False"}
    progressing = {"type": "Progressing", "status": "True"}
    conditions = [
        one | {"reason": "PlayedByTheTest", "message": "", "lastUpdateTime": now, "lastTransitionTime": now}
        for one in (available_enough, progressing)
    ]
    status = {
        "observedGeneration": known,
        "replicas": replicas,
        "updatedReplicas": replicas,
        "readyReplicas": ready,
        "availableReplicas": ready,
        "unavailableReplicas": replicas - ready,
        "conditions": conditions,
    }
    name, namespace = deployment.metadata.name, deployment.metadata.namespace
    apps.patch_namespaced_deployment_status(name, namespace, {"status": status})


def accept_routes(api: client.ApiClient, namespace: str) -> None:
    """Write the status of a gateway that accepts every HTTPRoute of a namespace, unless it is there already."""
    resources = client.CustomObjectsApi(api)
    place = (*ROUTE, namespace, "httproutes")
    for route in resources.list_namespaced_custom_object(*place)["items"]:
        if route.get("status", {}).get("parents"):
            continue
        conditions = [
            {"type": kind, "status": "True", "reason": kind, "message": "", "lastTransitionTime": _now()}
            for kind in ("Accepted", "ResolvedRefs")
        ]
        parents = [
            {"parentRef": parent, "controllerName": "example.com/gateway", "conditions": conditions}
            for parent in route["spec"]["parentRefs"]
        ]
        name = route["metadata"]["name"]
        resources.patch_namespaced_custom_object_status(*place, name, {"status": {"parents": parents}})


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _write_certificate(folder: Path) -> Path:
    """Write a key and a certificate for the loopback address that vouches for itself."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    folder.mkdir(parents=True)
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "webhooks of a test")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=2))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(_LOOPBACK))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    (folder / "tls.key").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    path = folder / "tls.crt"
    path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    return path


def _is_ready(port: int) -> bool:
    connection = http.client.HTTPConnection(_LOOPBACK, port, timeout=5)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _accepts_tls(port: int, certificate: Path) -> bool:
    connection = http.client.HTTPSConnection(
        _LOOPBACK, port, timeout=5, context=ssl.create_default_context(cafile=certificate)
    )
    try:
        connection.connect()
    except OSError:
        return False
    finally:
        connection.close()
    return True
