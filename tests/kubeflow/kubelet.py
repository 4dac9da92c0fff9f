"""A kubelet for tests: it runs the pods of a namespace as processes of this machine, and writes their status.

What is done as a real one does: init containers one after the other, then all containers side by side; volumes of the
kinds `emptyDir`, `configMap`, `secret`, `projected` and `downwardAPI`, with `subPath`; service account tokens from the
API server; environment from values, config maps, secrets and fields; `$(NAME)` in commands; exit statuses; graceful
deletion. Images are
programs of this machine, in front of PATH. Not there: images' own files, users, limits of
memory and CPU, probes, restarts, and networks of pods, which share the one of the tests.
"""

import base64
import contextlib
import datetime
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kubernetes import client

_SANDBOX = Path(__file__).resolve().parent / "sandbox.py"
_TOKENS = "/var/run/secrets/kubernetes.io/serviceaccount"
_PROGRAMS = "/image/bin"
_UNSHARE = (
    "setpriv",
    "--pdeathsig=KILL",
    "unshare",
    "--mount",
    "--pid",
    "--fork",
    "--kill-child",
    "--propagation",
    "private",
    "--",
)
_POLL_SECONDS = 0.1
_GRACE_SECONDS = 5.0
_REFERENCE = re.compile(r"\$\$|\$\(([A-Za-z_][A-Za-z0-9_.-]*)\)")


@dataclass(frozen=True)
class Image:
    """What stands in for a container image.

    Args:
        files: Programs by their names, which stand in front of PATH.
        command: What runs where a pod names no command.
        environment: Variables that the image sets.
        folders: What else its containers see of this machine's temporary files.
    """

    files: Mapping[str, Path] = field(default_factory=dict)
    command: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    folders: tuple[Path, ...] = ()


class Kubelet:
    """Runs the pods of one namespace; start with `with`.

    Args:
        api: A client that may do everything in the namespace.
        namespace: Whose pods.
        images: By a part of the image's name.
        folder: For volumes and logs; the logs stay as `<pod>/<container>.log`.
        certificate: Of the API server, for pods.
        port: Of the API server, on 127.0.0.1.
    """

    def __init__(
        self,
        api: client.ApiClient,
        namespace: str,
        images: Mapping[str, Image],
        folder: Path,
        certificate: Path,
        port: int,
    ) -> None:
        self.folder = folder
        self._core = client.CoreV1Api(api)
        self._namespace = namespace
        self._images = images
        self._certificate = certificate
        self._port = port
        self._ended = threading.Event()
        self._pods: dict[str, _Pod] = {}
        self._watcher = threading.Thread(target=self._watch, name="kubelet")

    def __enter__(self) -> "Kubelet":
        self._watcher.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._watcher.join()
        for pod in self._pods.values():
            pod.stop(0)
        for pod in self._pods.values():
            pod.join()

    def _watch(self) -> None:
        while not self._ended.wait(_POLL_SECONDS):
            # The server is away for a moment, or ends before this does.
            with contextlib.suppress(client.ApiException, OSError):
                for pod in _read(self._core.list_namespaced_pod, self._namespace)["items"]:
                    self._see(pod)

    def _see(self, pod: dict[str, Any]) -> None:
        uid, name = pod["metadata"]["uid"], pod["metadata"]["name"]
        known = self._pods.get(uid)
        if "deletionTimestamp" in pod["metadata"]:
            if known is not None and known.is_alive():
                known.stop(_GRACE_SECONDS)
            else:
                self._core.delete_namespaced_pod(name, self._namespace, grace_period_seconds=0)
        elif known is None and pod.get("status", {}).get("phase", "Pending") == "Pending":
            self._pods[uid] = _Pod(self, pod)
            self._pods[uid].start()


class _Pod(threading.Thread):
    def __init__(self, kubelet: Kubelet, pod: dict[str, Any]) -> None:
        self._kubelet = kubelet
        self._pod = pod
        self._pod_name, self._spec = pod["metadata"]["name"], pod["spec"]
        self._folder = kubelet.folder / self._pod_name
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._stopping = False
        self._statuses: dict[str, dict[str, dict[str, Any]]] = {"initContainerStatuses": {}, "containerStatuses": {}}
        super().__init__(name=f"pod {self._pod_name}", daemon=True)

    def stop(self, grace_seconds: float) -> None:
        """Ask its processes to end, and kill those that have not after the time of grace."""
        if not self._stopping:
            self._stopping = True
            self._signal(signal.SIGTERM)
            threading.Timer(grace_seconds, self._signal, [signal.SIGKILL]).start()

    def run(self) -> None:
        try:
            self._run()
        except Exception as error:
            self._report("Failed", f"kubelet: {error!r}")
            raise

    def _run(self) -> None:
        self._folder.mkdir(parents=True)
        # What the scheduler does.
        binding = {"metadata": {"name": self._pod_name}, "target": {"kind": "Node", "name": "laboratory"}}
        core, namespace = self._kubelet._core, self._kubelet._namespace
        core.create_namespaced_pod_binding(self._pod_name, namespace, binding, _preload_content=False)
        self._volumes = {one["name"]: self._make_volume(one) for one in self._spec.get("volumes", ())}
        self._report("Pending")
        for container in self._spec.get("initContainers", ()):
            process = self._start("initContainerStatuses", container)
            if self._wait("initContainerStatuses", {container["name"]: process}) or self._stopping:
                self._report("Failed")
                return
        processes = {one["name"]: self._start("containerStatuses", one) for one in self._spec["containers"]}
        self._report("Running")
        failed = self._wait("containerStatuses", processes)
        self._report("Failed" if failed else "Succeeded")

    def _start(self, kind: str, container: dict[str, Any]) -> "subprocess.Popen[bytes]":
        name = container["name"]
        image = next(image for part, image in self._kubelet._images.items() if part in container["image"])
        environment = self._environment(container, image)
        command = [*(container.get("command") or image.command), *container.get("args", ())]
        root = Path(tempfile.mkdtemp(prefix=f"{name}-root-", dir=self._folder))
        specification = {
            "root": str(root),
            "mounts": [
                *((str(path.resolve()), f"{_PROGRAMS}/{name}") for name, path in image.files.items()),
                *((str(folder), str(folder)) for folder in image.folders),
                *self._mounts(container),
            ],
            "command": [_expand(word, environment) for word in command],
            "environment": environment,
            "folder": container.get("workingDir", "/tmp"),
        }
        written = self._folder / f"{name}.json"
        written.write_text(json.dumps(specification), encoding="utf-8")
        with (self._folder / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                # Its processes end with the first one, as those of a container do.
                [*_UNSHARE, sys.executable, "-I", "-S", str(_SANDBOX), str(written)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env={"PATH": os.defpath},
            )
        self._running[name] = process
        self._statuses[kind][name] = {"image": container["image"], "state": {"running": {"startedAt": _now()}}}
        return process

    def _wait(self, kind: str, processes: dict[str, "subprocess.Popen[bytes]"]) -> bool:
        """Wait for all of them; tell whether one failed."""
        left = dict(processes)
        while left:
            for name, process in list(left.items()):
                if process.poll() is None:
                    continue
                del left[name], self._running[name]
                status = self._statuses[kind][name]
                code = process.returncode if process.returncode >= 0 else 128 - process.returncode
                status["state"] = {
                    "terminated": {
                        "exitCode": code,
                        "reason": "Error" if code else "Completed",
                        "startedAt": status["state"]["running"]["startedAt"],
                        "finishedAt": _now(),
                    }
                }
                if left:
                    self._report("Running" if kind == "containerStatuses" else "Pending")
            time.sleep(0.02)
        return any(process.returncode for process in processes.values())

    def _signal(self, number: int) -> None:
        for process in list(self._running.values()):
            with contextlib.suppress(ProcessLookupError):
                # The first process of a namespace may ignore what it does not handle: its parent passes on a kill only.
                os.killpg(process.pid, number)

    def _report(self, phase: str, message: str = "") -> None:
        ended = phase in ("Succeeded", "Failed")
        status: dict[str, Any] = {"phase": phase, "hostIP": "127.0.0.1", "podIP": "127.0.0.1", "message": message}
        status["startTime"] = self._pod["metadata"]["creationTimestamp"]
        for kind, statuses in self._statuses.items():
            status[kind] = [
                {
                    "name": name,
                    # A digest of the name: there is no content that one could be of.
                    "imageID": f"{one['image']}@sha256:{hashlib.sha256(one['image'].encode()).hexdigest()}",
                    "containerID": f"process://{self._pod_name}/{name}",
                    "restartCount": 0,
                    "ready": "running" in one["state"],
                    **one,
                }
                for name, one in statuses.items()
            ]
        if phase != "Pending":
            condition = {"status": "False" if ended else "True", "lastTransitionTime": _now()}
            status["conditions"] = [{"type": kind, **condition} for kind in ("Ready", "ContainersReady")]
        # It was deleted by force, or the server has ended.
        with contextlib.suppress(client.ApiException, OSError):
            self._kubelet._core.patch_namespaced_pod_status(
                self._pod_name, self._kubelet._namespace, {"status": status}
            )

    def _environment(self, container: dict[str, Any], image: Image) -> dict[str, str]:
        environment = {
            "PATH": f"{_PROGRAMS}:/usr/local/bin:/usr/bin:/bin",
            "HOSTNAME": self._pod_name,
            "KUBERNETES_SERVICE_HOST": "127.0.0.1",
            "KUBERNETES_SERVICE_PORT": str(self._kubelet._port),
            **image.environment,
        }
        for source in container.get("envFrom", ()):
            for kind in ("configMapRef", "secretRef"):
                if kind in source:
                    content = self._content(kind.removesuffix("Ref"), source[kind]["name"], source[kind])
                    environment.update({name: value.decode() for name, value in content.items()})
        for variable in container.get("env", ()):
            value = variable.get("value", "")
            if "valueFrom" in variable:
                value = self._value(variable["valueFrom"], container)
            if value is not None:
                environment[variable["name"]] = _expand(value, environment)
        return environment

    def _value(self, source: dict[str, Any], container: dict[str, Any]) -> str | None:
        (kind, reference), *_ = source.items()
        if kind == "fieldRef":
            return self._field(reference["fieldPath"])
        if kind == "resourceFieldRef":
            part, name = reference["resource"].split(".")
            return str(container.get("resources", {}).get(part, {}).get(name, "0"))
        content = self._content(kind.removesuffix("KeyRef"), reference["name"], reference)
        found = content.get(reference["key"])
        if found is None and not reference.get("optional"):
            raise KeyError(f"{kind} {reference['name']}/{reference['key']}")
        return None if found is None else found.decode()

    def _field(self, path: str) -> str:
        named = re.fullmatch(r"metadata\.(labels|annotations)(?:\['(.+)'\])?", path)
        if named:
            values = self._pod["metadata"].get(named[1], {})
            if named[2] is not None:
                return str(values.get(named[2], ""))
            return "\n".join(f"{name}={json.dumps(value)}" for name, value in values.items())
        if path in ("status.podIP", "status.hostIP"):
            return "127.0.0.1"
        value: Any = self._pod
        for part in path.split("."):
            value = value.get(part, "")
        return str(value)

    def _content(self, kind: str, name: str, reference: Mapping[str, Any]) -> dict[str, bytes]:
        core, namespace = self._kubelet._core, self._kubelet._namespace
        try:
            if kind == "configMap":
                found = core.read_namespaced_config_map(name, namespace)
                return {key: value.encode() for key, value in (found.data or {}).items()}
            found = core.read_namespaced_secret(name, namespace)
            return {key: base64.b64decode(value) for key, value in (found.data or {}).items()}
        except client.ApiException as error:
            if error.status == 404 and reference.get("optional"):
                return {}
            raise

    def _make_volume(self, volume: dict[str, Any]) -> Path:
        folder = self._folder / "volumes" / volume["name"]
        folder.mkdir(parents=True)
        folder.chmod(0o777)
        sources = volume["projected"]["sources"] if "projected" in volume else [volume]
        for source in sources:
            for name, content in self._files(source):
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).write_bytes(content)
        return folder

    def _files(self, source: dict[str, Any]) -> Iterator[tuple[str, bytes]]:
        if "serviceAccountToken" in source:
            wanted = source["serviceAccountToken"]
            yield wanted["path"], self._token(wanted.get("audience")).encode()
        for one in source.get("downwardAPI", {}).get("items", ()):
            yield one["path"], self._field(one["fieldRef"]["fieldPath"]).encode()
        for kind, key in (("configMap", "name"), ("secret", "name"), ("secret", "secretName")):
            if key in source.get(kind, {}):
                content = self._content(kind, source[kind][key], source[kind])
                items = source[kind].get("items") or [{"key": name, "path": name} for name in content]
                yield from ((one["path"], content[one["key"]]) for one in items)

    def _mounts(self, container: dict[str, Any]) -> list[tuple[str, str]]:
        mounts = []
        for one in container.get("volumeMounts", ()):
            source = self._volumes[one["name"]] / one.get("subPath", "")
            if not source.exists():
                source.mkdir(parents=True)
                source.chmod(0o777)
            mounts.append((str(source), one["mountPath"]))
        if self._spec.get("automountServiceAccountToken", True) and _TOKENS not in (target for _, target in mounts):
            folder = self._folder / "token"
            if not folder.exists():
                folder.mkdir()
                (folder / "token").write_text(self._token(None), encoding="utf-8")
                (folder / "namespace").write_text(self._kubelet._namespace, encoding="utf-8")
                (folder / "ca.crt").write_bytes(self._kubelet._certificate.read_bytes())
            mounts.append((str(folder), _TOKENS))
        # A mount inside another one comes after it.
        return sorted(mounts, key=lambda mount: mount[1])

    def _token(self, audience: str | None) -> str:
        audiences = [audience] if audience else []
        request = client.AuthenticationV1TokenRequest(
            spec=client.V1TokenRequestSpec(audiences=audiences, expiration_seconds=3600)
        )
        account = self._spec.get("serviceAccountName", "default")
        answer = self._kubelet._core.create_namespaced_service_account_token(account, self._kubelet._namespace, request)
        return str(answer.status.token)


def _expand(text: str, environment: Mapping[str, str]) -> str:
    """Replace `$(NAME)` as the kubelet does: what is not known stays, and `$$` is one dollar sign."""

    def replace(match: re.Match[str]) -> str:
        return "$" if match[0] == "$$" else environment.get(match[1], match[0])

    return _REFERENCE.sub(replace, text)


def _read(call: Any, *arguments: str) -> Any:
    """The answer as JSON; the client's own classes take a hundred times as long to make."""
    return json.loads(call(*arguments, _preload_content=False).data)


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
