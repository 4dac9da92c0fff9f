"""A real API server for tests: etcd and kube-apiserver on this machine, or a cluster that somebody named.

On our own control plane no controller and no kubelet runs. Objects are validated, stored, watched and guarded by RBAC
as on any cluster, but no pod starts, no Deployment becomes ready and no namespace finishes terminating: a test plays
the controllers itself, by writing the status.
"""

import contextlib
import http.client
import os
import random
import secrets
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import yaml
from kubernetes import client, config

_LOOPBACK = "127.0.0.1"
# Below the ports that Linux gives to outgoing connections: a client that reconnects while the server is away could be
# given the server's own port, talk to itself and keep the server from coming back.
_PORTS = range(20_000, 32_000)
_SUPERVISOR = Path(__file__).resolve().parent / "supervise.py"
_LOG_LINES = 15


class ClusterError(RuntimeError):
    """A server did not start, or a command against it failed."""


def wait_until(condition: Callable[[], object], timeout_seconds: float, what: str) -> None:
    """Return when the condition is true.

    Raises:
        TimeoutError: It never was; the message names `what` was waited for.
    """
    deadline = time.monotonic() + timeout_seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {timeout_seconds:g} s")
        time.sleep(0.05)


class Cluster:
    """Access to an API server as its administrator, and as users with fewer rights.

    Args:
        kubeconfig: A path, or several as the variable KUBECONFIG takes them; the current context is used.
        kubectl: The command, if there is one.

    Attributes:
        kubeconfig: As given. A test sets the variable KUBECONFIG to it for code that reads that.
    """

    #: Whether pods run, and whatever else needs Kubernetes' controllers.
    has_controllers = True

    def __init__(self, kubeconfig: str, kubectl: Path | None) -> None:
        self.kubeconfig = kubeconfig
        self._kubectl = kubectl
        self._clients: list[client.ApiClient] = []
        self._namespaces: list[str] = []
        self._definitions: list[str] = []

    def api_client(self) -> client.ApiClient:
        """A new client with the rights of the kubeconfig, closed with the cluster."""
        return self._open(self._configuration())

    def user_client(self, service_account: str, namespace: str) -> client.ApiClient:
        """A new client that is a service account, by a token from the API server; the account is made if missing."""
        core = client.CoreV1Api(self.api_client())
        try:
            core.create_namespaced_service_account(namespace, {"metadata": {"name": service_account}})
        except client.ApiException as error:
            if error.status != 409:
                raise
        request = client.AuthenticationV1TokenRequest(
            spec=client.V1TokenRequestSpec(audiences=[], expiration_seconds=3600)
        )
        answer = core.create_namespaced_service_account_token(service_account, namespace, request)
        admin, user = self._configuration(), client.Configuration()
        # Where the server is and how it is recognised, but none of the administrator's credentials.
        for name in ("host", "ssl_ca_cert", "verify_ssl", "tls_server_name", "proxy", "no_proxy"):
            setattr(user, name, getattr(admin, name))
        user.api_key = {"authorization": f"Bearer {answer.status.token}"}
        return self._open(user)

    def kubectl(
        self, *arguments: str, input: str | None = None, check: bool = True, timeout_seconds: float = 60
    ) -> subprocess.CompletedProcess[str]:
        """Run kubectl with the rights of the kubeconfig.

        Args:
            arguments: What follows `kubectl`.
            input: Standard input, such as a manifest for `apply -f -`.
            check: Raise when it fails; else its return code, output and error output are the caller's to read.
            timeout_seconds: How long it may take.

        Raises:
            ClusterError: There is no kubectl, or it failed and `check` is true.
        """
        if self._kubectl is None:
            raise ClusterError("kubectl: none found; one is needed. Fix: run `make cluster-tools`.")
        with tempfile.TemporaryDirectory(prefix="mlflywheel-kubectl-") as cache:
            done = subprocess.run(
                [str(self._kubectl), "--cache-dir", cache, *arguments],
                # The user's own defaults for kubectl stay out.
                env=os.environ | {"KUBECONFIG": self.kubeconfig, "KUBECTL_KUBERC": "false"},
                input="" if input is None else input,
                capture_output=True,
                text=True,
                timeout=timeout_seconds,
                check=False,
            )
        if check and done.returncode != 0:
            raise ClusterError(f"kubectl {' '.join(arguments)}: exit status {done.returncode}\n{done.stderr}")
        return done

    def create_namespace(self) -> str:
        """Create a namespace with a name that nobody else has, deleted with `delete_namespace` or `clean`."""
        name = f"mlflywheel-test-{uuid.uuid4().hex[:12]}"
        client.CoreV1Api(self.api_client()).create_namespace({"metadata": {"name": name}})
        self._namespaces.append(name)
        return name

    def delete_namespace(self, name: str) -> None:
        """Ask for the deletion of a namespace of `create_namespace`; `clean` waits for the end of it."""
        try:
            client.CoreV1Api(self.api_client()).delete_namespace(name)
        except client.ApiException as error:
            if error.status != 404:
                raise

    def create_definition(self, definition: dict[str, Any]) -> None:
        """Create a CustomResourceDefinition and wait until it is served; `clean` deletes it, with what it holds."""
        self.create_definitions(definition)

    def create_definitions(self, *definitions: dict[str, Any]) -> None:
        """Create several, as `create_definition` does one; they get ready side by side."""
        resources = client.CustomObjectsApi(self.api_client())
        place = ("apiextensions.k8s.io", "v1", "customresourcedefinitions")
        for definition in definitions:
            made = resources.create_cluster_custom_object(*place, definition)
            self._definitions.append(made["metadata"]["name"])

        def is_served(name: str, spec: dict[str, Any]) -> bool:
            status = resources.get_cluster_custom_object(*place, name).get("status", {})
            conditions = {one["type"]: one["status"] for one in status.get("conditions") or ()}
            if conditions.get("NamesAccepted") == "False":
                raise ClusterError(f"{name}: its names are taken: {status['conditions']}")
            return conditions.get("Established") == "True" and all(
                self._lists(spec["group"], version["name"], spec["names"]["plural"])
                for version in spec["versions"]
                if version["served"]
            )

        for definition in definitions:
            name = definition["metadata"]["name"]
            wait_until(partial(is_served, name, definition["spec"]), 30, f"{name} is served")

    def defined(self) -> set[str]:
        """Names of the CustomResourceDefinitions, such as `experiments.kubeflow.org`."""
        found = client.CustomObjectsApi(self.api_client()).list_cluster_custom_object(
            "apiextensions.k8s.io", "v1", "customresourcedefinitions"
        )
        return {one["metadata"]["name"] for one in found["items"]}

    def clean(self) -> None:
        """Delete what tests made in the cluster and wait until it is gone, then close the clients.

        Raises:
            TimeoutError: Some of it does not go away.
        """
        try:
            core = client.CoreV1Api(self.api_client())
            extensions = client.ApiextensionsV1Api(self.api_client())
            for name in self._namespaces:
                self.delete_namespace(name)
            for name in self._definitions:
                try:
                    extensions.delete_custom_resource_definition(name)
                except client.ApiException as error:
                    if error.status != 404:
                        raise
            left = {*self._namespaces, *self._definitions}
            wait_until(
                lambda: left.isdisjoint({one.metadata.name for one in core.list_namespace().items} | self.defined()),
                180,
                f"deletion of {', '.join(sorted(left))}",
            )
        finally:
            self._close_clients()

    @contextlib.contextmanager
    def closing_clients(self) -> Iterator[None]:
        """Close the clients that are opened meanwhile: each holds connections, of which a process may have so many."""
        known = list(self._clients)
        yield
        for opened in [one for one in self._clients if one not in known]:
            self._clients.remove(opened)
            _close(opened)

    def _configuration(self) -> client.Configuration:
        configuration = client.Configuration()
        config.load_kube_config(config_file=self.kubeconfig, client_configuration=configuration)
        return configuration

    def _open(self, configuration: client.Configuration) -> client.ApiClient:
        opened = client.ApiClient(configuration)
        self._clients.append(opened)
        return opened

    def _lists(self, group: str, version: str, plural: str) -> bool:
        try:
            client.CustomObjectsApi(self.api_client()).list_cluster_custom_object(group, version, plural, limit=1)
        except client.ApiException as error:
            # For a moment after it is established, requests are told so.
            if error.status in (404, 429, 503):
                return False
            raise
        return True

    def _close_clients(self) -> None:
        for opened in self._clients:
            _close(opened)
        self._clients.clear()


def _close(opened: client.ApiClient) -> None:
    opened.close()
    opened.rest_client.pool_manager.clear()


class ControlPlane(Cluster):
    """etcd and kube-apiserver on this machine, with RBAC, and nothing else; use with `with`.

    The API server listens on 127.0.0.1 only, etcd only on a socket in a folder that nobody else can enter. Both end,
    and the folder goes, with `stop` or with this process, however that ends.

    Args:
        assets: A folder with `etcd`, `kube-apiserver` and perhaps `kubectl`, as KUBEBUILDER_ASSETS names one.
        kubectl: In place of the one among the assets.
        ready_seconds: How long the start may take.

    Attributes:
        port: Of the API server, also after a restart.
        folder: With the data, the logs `etcd.log` and `kube-apiserver.log`, and the credentials.
    """

    has_controllers = False

    def __init__(self, assets: Path, kubectl: Path | None = None, ready_seconds: float = 60) -> None:
        kubectl = kubectl or _executable(assets / "kubectl")
        self.folder = Path(tempfile.mkdtemp(prefix="mlflywheel-cluster-"))
        super().__init__(str(self.folder / "admin.kubeconfig"), kubectl)
        self.port = 0
        self._assets = assets
        self._ready_seconds = ready_seconds
        self._token = secrets.token_urlsafe(32)
        self._servers: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def process_groups(self) -> list[int]:
        """The process group of each server that was started and not yet stopped."""
        return [supervisor.pid for supervisor in self._servers.values()]

    def start(self) -> None:
        """Start both servers and wait until the API server is ready.

        Raises:
            ClusterError: One of them ended, or is not ready in time; the message shows the end of its log.
        """
        try:
            self._write_credentials()
            self._start_etcd()
            for attempt in range(3):
                self.port = find_port()
                try:
                    self.start_api_server()
                except ClusterError as error:
                    # Somebody was quicker.
                    if "address already in use" not in str(error) or attempt == 2:
                        raise
                else:
                    break
            self._write_kubeconfig()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop all servers and remove their folder."""
        self._close_clients()
        for name in list(self._servers):
            # What they would still write goes with the folder.
            self.stop_server(name, graceful=False)
        shutil.rmtree(self.folder, ignore_errors=True)

    def start_api_server(self) -> None:
        """Start the API server on its port, with the data that etcd has, and wait until it is ready.

        Raises:
            ClusterError: It ended, or is not ready in time.
        """
        keys = str(self.folder / "service-accounts.key")
        self.start_server(
            "kube-apiserver",
            f"--etcd-servers=unix://{self.folder}/client:0",
            f"--bind-address={_LOOPBACK}",
            f"--secure-port={self.port}",
            f"--advertise-address={_LOOPBACK}",
            # A loopback address is not allowed as an endpoint of the service `kubernetes`.
            "--endpoint-reconciler-type=none",
            "--service-cluster-ip-range=10.0.0.0/24",
            # It writes a certificate there when there is none.
            f"--cert-dir={self.folder}",
            f"--token-auth-file={self.folder}/tokens.csv",
            "--authorization-mode=RBAC",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={keys}",
            f"--service-account-signing-key-file={keys}",
            # It would refuse every pod, for want of the controller that makes the default service account.
            "--disable-admission-plugins=ServiceAccount",
            "--allow-privileged=true",
            "--profiling=false",
            # Without it, an open watch holds up a graceful stop for a minute.
            "--shutdown-watch-termination-grace-period=1s",
        )
        self.wait_for_server("kube-apiserver", lambda: self._answers("/readyz", "/api/v1/namespaces/default"))

    def stop_api_server(self, *, graceful: bool = True) -> None:
        """Stop the API server and leave etcd with the data.

        Args:
            graceful: Let it finish what it is doing; else kill it, as a node that fails would.
        """
        self.stop_server("kube-apiserver", graceful=graceful)

    def restart_api_server(self, *, graceful: bool = True) -> None:
        """Stop the API server and start it on the same port with the same data; clients and their tokens stay valid."""
        self.stop_api_server(graceful=graceful)
        self.start_api_server()

    def start_server(
        self, name: str, *options: str, path: Path | None = None, environment: dict[str, str] | None = None
    ) -> None:
        """Start a server that ends with this control plane, in its folder, where it logs to `<name>.log`.

        Args:
            name: What the other methods call it.
            options: Of its command line.
            path: The command; `name` among the assets if none is given.
            environment: Variables to add to those of this process.

        Raises:
            ClusterError: There is no such command.
        """
        path = path or self._assets / name
        if _executable(path) is None:
            raise ClusterError(f"{path.parent}: no {path.name}; it is needed. Fix: run `make cluster-tools`.")
        supervision = [sys.executable, "-I", "-S", str(_SUPERVISOR), str(os.getpid()), str(self.folder)]
        with (self.folder / f"{name}.log").open("ab") as log:
            self._servers[name] = subprocess.Popen(
                [*supervision, str(path.resolve()), *options],
                cwd=self.folder,
                env=None if environment is None else os.environ | environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # Ctrl-C is for the test run, which stops the servers at its end.
                start_new_session=True,
            )

    def stop_server(self, name: str, *, graceful: bool) -> None:
        """Stop a server that runs.

        Args:
            name: As `start_server` got it.
            graceful: Let it finish what it is doing; else kill it.
        """
        supervisor = self._servers.pop(name, None)
        if supervisor is None:
            return
        for asked in (signal.SIGTERM, signal.SIGUSR1)[0 if graceful else 1 :]:
            supervisor.send_signal(asked)
            with contextlib.suppress(subprocess.TimeoutExpired):
                supervisor.wait(timeout=10)
                return
        # It leads the group, whose number is nobody else's as long as it is not waited for.
        os.killpg(supervisor.pid, signal.SIGKILL)
        supervisor.wait()

    def wait_for_server(self, name: str, is_ready: Callable[[], bool]) -> None:
        """Wait until a server is ready.

        Raises:
            ClusterError: It ended, or is not ready in time; the message shows the end of its log.
        """
        deadline = time.monotonic() + self._ready_seconds
        while not is_ready():
            status = self._servers[name].poll()
            if status is not None or time.monotonic() > deadline:
                seen = f"ended with {status}" if status is not None else f"not ready in {self._ready_seconds:g} s"
                self.stop_server(name, graceful=False)
                log = (self.folder / f"{name}.log").read_text(encoding="utf-8", errors="replace").splitlines()
                raise ClusterError("\n".join((f"{name}: {seen}; the end of its log:", *log[-_LOG_LINES:])))
            time.sleep(0.05)

    def clean(self) -> None:
        """Do nothing: all of it goes with the folder, and no controller would delete a namespace."""

    def delete_namespace(self, name: str) -> None:
        """Do nothing, as `clean`."""

    def _configuration(self) -> client.Configuration:
        configuration = super()._configuration()
        # A proxy cannot reach this machine's loopback.
        configuration.proxy = None
        return configuration

    def _write_credentials(self) -> None:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import rsa

        key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        pem = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
        )
        (self.folder / "service-accounts.key").write_bytes(pem)
        tokens = f'{self._token},admin,admin,"system:masters"\n'
        (self.folder / "tokens.csv").write_text(tokens, encoding="utf-8")

    def _write_kubeconfig(self) -> None:
        place = {"server": f"https://{_LOOPBACK}:{self.port}", "certificate-authority": str(self._certificate)}
        content = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "test", "cluster": place}],
            "users": [{"name": "admin", "user": {"token": self._token}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "admin", "namespace": "default"}}],
            "current-context": "test",
        }
        Path(self.kubeconfig).write_text(yaml.safe_dump(content), encoding="utf-8")

    @property
    def _certificate(self) -> Path:
        return self.folder / "apiserver.crt"

    def _start_etcd(self) -> None:
        # Before version 3.6 etcd takes no path for a socket, but a name with a port, as a file in its own folder. The
        # addresses for other members are not used: there are none.
        self.start_server(
            "etcd",
            "--name=test",
            "--data-dir=data",
            "--listen-client-urls=unix://client:0",
            "--advertise-client-urls=unix://client:0",
            "--listen-peer-urls=unix://peer:0",
            "--initial-advertise-peer-urls=http://localhost:2380",
            "--initial-cluster=test=http://localhost:2380",
            "--unsafe-no-fsync",
            "--log-level=warn",
        )
        self.wait_for_server("etcd", (self.folder / "client:0").is_socket)

    def _answers(self, *paths: str) -> bool:
        try:
            context = ssl.create_default_context(cafile=self._certificate)
            connection = http.client.HTTPSConnection(_LOOPBACK, self.port, timeout=5, context=context)
            try:
                for path in paths:
                    connection.request("GET", path, headers={"Authorization": f"Bearer {self._token}"})
                    answer = connection.getresponse()
                    answer.read()
                    if answer.status != 200:
                        return False
            finally:
                connection.close()
        except (OSError, http.client.HTTPException):
            return False
        return True


def _executable(path: Path) -> Path | None:
    return path if os.access(path, os.X_OK) else None


def find_port() -> int:
    """A port that is free now; not from a seed, so that two runs do not meet on it."""
    chosen = random.SystemRandom()
    while True:
        port = chosen.choice(_PORTS)
        with socket.socket() as probe:
            try:
                probe.bind((_LOOPBACK, port))
            except OSError:
                continue
            return port
