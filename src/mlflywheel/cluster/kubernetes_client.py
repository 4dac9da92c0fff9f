"""Calls to a Kubernetes API server that outlive its restarts, and say which permission is missing.

Inside a pod the service account is used, elsewhere a context of the kubeconfig. What a call can meet:

- The server is away (connection refused or cut, 408, 429, 500, 502, 503, 504): the call is repeated, at first soon and
  then every quarter of a minute, for ten minutes at the most. `Retry-After` is kept to.
- 401: tokens expire while a search runs for hours, so the configuration is read again, once.
- 403: an error at once, with the verb, the resource and the manifest that grants them; unless the same call was
  permitted before, since a server that just started has not read its Roles yet.
- Any other refusal is the caller's to understand: `RefusedError`.
"""

import json
import os
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from mlflywheel.errors import MissingExtraError, MlflywheelError, UsageError

try:
    import kubernetes
    import urllib3
    import yaml
    from kubernetes.client import (
        ApiClient,
        ApiException,
        CoreV1Api,
        CustomObjectsApi,
        V1DeleteOptions,
        V1Preconditions,
    )
    from kubernetes.config.config_exception import ConfigException
    from kubernetes.config.incluster_config import InClusterConfigLoader
    from kubernetes.config.kube_config import KubeConfigLoader, KubeConfigMerger
except ImportError as error:
    raise MissingExtraError.of("kubernetes", "cluster", "a Kubernetes cluster") from error

# The parts of the client that others need come from here, so that a missing package is told of in one place.
__all__ = [
    "REQUEST_TIMEOUT_SECONDS",
    "UNAVAILABLE_SECONDS",
    "ApiClient",
    "Cluster",
    "Connection",
    "CoreV1Api",
    "CustomObjectsApi",
    "DeadlinePassedError",
    "RefusedError",
    "V1DeleteOptions",
    "V1Preconditions",
    "connect",
]

#: Where a pod finds its token, its certificates to trust and its namespace.
SERVICE_ACCOUNT_FOLDER = Path("/var/run/secrets/kubernetes.io/serviceaccount")
#: For one call: to connect, and to answer.
REQUEST_TIMEOUT_SECONDS = (5.0, 30.0)
UNAVAILABLE_SECONDS = 600.0
# A server that was never reached is more often a wrong address than one that restarts.
_FIRST_CONTACT_SECONDS = 30.0
# A server that just started answers 403 to what a Role permits, and 404 to custom resources, until it has read them.
_SETTLING_SECONDS = 30.0
_AWAY = (408, 429, 500, 502, 503, 504)
_SHOWN_CHARACTERS = 300

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Connection:
    """An API client with what is known of where it leads.

    Args:
        api: The client.
        namespace: The pod's own namespace, or the context's; None if neither names one.
        source: In words: the pod's service account, or which context of which file.
    """

    api: ApiClient
    namespace: str | None
    source: str


def connect(context: str | None = None) -> Connection:
    """Load what the environment offers: a pod's service account, else the kubeconfig. Nobody is asked yet.

    Args:
        context: Context of the kubeconfig; its current one if left out. With one, the pod's account is not used.

    Raises:
        UsageError: There is no configuration, it cannot be read, or it has no such context.
    """
    configuration = kubernetes.client.Configuration()
    # The retries below know deadlines and say what they wait for; those of urllib3 would come on top.
    configuration.retries = False
    if context is None and os.environ.get("KUBERNETES_SERVICE_HOST"):
        try:
            InClusterConfigLoader(
                str(SERVICE_ACCOUNT_FOLDER / "token"), str(SERVICE_ACCOUNT_FOLDER / "ca.crt")
            ).load_and_set(configuration)
        except (ConfigException, OSError) as error:
            raise UsageError(
                "cluster",
                f"this is a pod whose service account cannot be used: {error}",
                "a token is needed",
                "set automountServiceAccountToken to true for the pod, or name a kubeconfig context",
            ) from error
        namespace_file = SERVICE_ACCOUNT_FOLDER / "namespace"
        own = namespace_file.read_text().strip() if namespace_file.is_file() else ""
        return Connection(ApiClient(configuration), own or None, "the pod's service account")
    files = os.environ.get("KUBECONFIG") or "~/.kube/config"
    try:
        merged = KubeConfigMerger(files).config
        if merged is None:
            raise UsageError(
                "cluster",
                f"no pod, and no kubeconfig at {files}",
                "one of them says where the cluster is",
                "set KUBECONFIG, or run this in a pod of the cluster",
            )
        loader = KubeConfigLoader(config_dict=merged, active_context=context, config_base_path=None)
        loader.load_and_set(configuration)
        chosen = loader.current_context
    except (ConfigException, OSError, yaml.YAMLError, KeyError, TypeError, ValueError) as error:
        raise UsageError(
            f"kubeconfig {files}",
            f"not usable: {str(error).splitlines()[0]}" if str(error) else "not usable",
            "a context with a cluster and a user is needed" if context is None else f"context {context} is needed",
            "list the contexts with kubectl config get-contexts, and name one",
        ) from error
    namespace = (chosen.get("context") or {}).get("namespace")
    return Connection(ApiClient(configuration), namespace or None, f"context {chosen.get('name')} of {files}")


class RefusedError(Exception):
    """The API server answered, and the answer is no.

    Args:
        status: HTTP status.
        message: The server's own words.
        details: Its `Status.details`; empty where the path is unknown to it, since it then answers with plain text.
        retry_after_seconds: When it wants to be asked again; None if it does not say so.
    """

    def __init__(
        self, status: int, message: str, details: Mapping[str, Any], retry_after_seconds: float | None = None
    ) -> None:
        self.status, self.message, self.details = status, message, details
        self.retry_after_seconds = retry_after_seconds
        super().__init__(f"HTTP {status}: {message}")

    @property
    def is_unknown_kind(self) -> bool:
        """Whether the server does not know the resource at all: its CustomResourceDefinition is missing."""
        return self.status == 404 and not self.details


class DeadlinePassedError(Exception):
    """The caller's time was over while the server was away; the message says what the last attempt met."""


@dataclass
class Cluster:
    """An API server, with patience.

    Args:
        connection: Where it is.
        error: The class of the errors to raise.
        manifest: What grants the permissions that are needed, as messages name it.
        context: How `connection` was loaded.
        is_own: Whether the connection may be loaded again, and has to be closed.
        unavailable_seconds: How long the server may be away in one stretch.
        pause_seconds: The first pause between attempts.
        longest_pause_seconds: What the pause grows to.
        told: Called with a line when a call has to wait.
    """

    connection: Connection
    error: type[MlflywheelError]
    manifest: str
    context: str | None = None
    is_own: bool = True
    unavailable_seconds: float = UNAVAILABLE_SECONDS
    pause_seconds: float = 0.5
    longest_pause_seconds: float = 15.0
    told: Callable[[str], None] = lambda line: None
    _granted: set[tuple[str, str]] = field(default_factory=set)
    _was_reached: bool = False

    def close(self) -> None:
        """Close the connection if it was opened here."""
        if self.is_own:
            self.connection.api.rest_client.pool_manager.clear()
            self.connection.api.close()

    def try_once(self, send: Callable[[ApiClient], Answer]) -> Answer:
        """Call without patience, for what is good to know and not needed.

        Args:
            send: The call.

        Raises:
            RefusedError: The server said no, 401 and 403 included.
            ConnectionError: It did not answer, or with something else than the API does.
        """
        try:
            answer = send(self.connection.api)
        except ApiException as error:
            if not error.status:
                raise ConnectionError(_line(error.reason)) from error
            self._was_reached = True
            raise _read_refusal(error) from error
        except urllib3.exceptions.HTTPError as error:
            raise ConnectionError(_describe(error)) from error
        if not isinstance(answer, dict):
            # Such as the page of a login in front of the cluster, which comes with HTTP 200.
            raise ConnectionError(f"the answer is no JSON object: {_line(answer)}")
        self._was_reached = True
        return answer

    def call(
        self,
        verb: str,
        resource: str,
        namespace: str,
        send: Callable[[ApiClient], Answer],
        deadline: float | None = None,
    ) -> Answer:
        """Call until the server answers.

        Args:
            verb: RBAC verb of the call, for messages.
            resource: Resource with its group, such as `experiments.kubeflow.org`, for messages.
            namespace: Where, for messages.
            send: The call. It must be safe to repeat: the server may have done it without saying so.
            deadline: Point in time of `time.monotonic` at which nobody waits any longer.

        Raises:
            RefusedError: The server said no, in another way than the errors below.
            DeadlinePassedError: The deadline came first.
            MlflywheelError: Of the class `error`: not permitted, not let in, or away for too long.
        """
        right = (verb, resource)
        away_since: float | None = None
        pause, is_reloaded, told_of = self.pause_seconds, False, ""
        while True:
            refusal: RefusedError | None = None
            try:
                answer = self.try_once(send)
            except ConnectionError as error:
                seen = str(error)
                limit = 0.0 if _is_untrusted(seen) else self._patience_seconds()
            except RefusedError as error:
                if error.status == 401 and self.is_own and not is_reloaded:
                    self._reload()
                    is_reloaded = True
                    continue
                tolerated = self._tolerance_seconds(error, right)
                if tolerated is None:
                    raise
                seen, refusal, limit = str(error), error, tolerated
            else:
                self._granted.add(right)
                if told_of:
                    self.told("the API server answers again")
                return answer
            now = time.monotonic()
            away_since = now if away_since is None else away_since
            if deadline is not None and now >= deadline:
                raise DeadlinePassedError(seen)
            if now - away_since >= limit:
                raise self._explain(seen, refusal, right, namespace, now - away_since)
            if seen != told_of:
                self.told(f"waiting for the API server, {limit:.0f} s at the most: {seen}")
                told_of = seen
            asked_for = refusal.retry_after_seconds if refusal else None
            # Jitter, so that the steps of a loop do not all come back in the same moment.
            wait_seconds = asked_for if asked_for is not None else pause * random.uniform(0.75, 1.25)
            pause = min(pause * 2, self.longest_pause_seconds)
            end = away_since + limit if deadline is None else min(deadline, away_since + limit)
            time.sleep(max(0.0, min(wait_seconds, end - now)))

    def _patience_seconds(self) -> float:
        if self._was_reached:
            return self.unavailable_seconds
        return min(_FIRST_CONTACT_SECONDS, self.unavailable_seconds)

    def _tolerance_seconds(self, refusal: RefusedError, right: tuple[str, str]) -> float | None:
        """Return for how long a refusal is waited out; None if it is the caller's to understand."""
        grace = min(_SETTLING_SECONDS, self.unavailable_seconds) if right in self._granted else 0.0
        if refusal.status in _AWAY:
            return self._patience_seconds()
        if refusal.status in (401, 403):
            return grace
        if refusal.is_unknown_kind and grace:
            return grace
        return None

    def _reload(self) -> None:
        fresh = connect(self.context)
        self.close()
        self.connection = fresh

    def _explain(
        self, seen: str, refusal: RefusedError | None, right: tuple[str, str], namespace: str, seconds: float
    ) -> Exception:
        """Return the error for a call that is given up."""
        verb, resource = right
        where = f"{resource} in namespace {namespace}"
        if refusal is not None and refusal.is_unknown_kind:
            return refusal
        if refusal is not None and refusal.status == 403:
            if f"cannot {verb} resource" not in refusal.message:
                return self.error(where, refusal.message, f"{verb} must not be refused", "ask whoever runs the cluster")
            return self.error(
                where,
                f"{self.connection.source} may not {verb} them: {refusal.message}",
                f"a Role with the verb {verb} on {resource} is needed",
                f"kubectl apply -k {self.manifest}",
            )
        if refusal is not None and refusal.status == 401:
            return self.error(
                where,
                f"the API server does not accept the credentials of {self.connection.source}: {refusal.message}",
                "a valid token or certificate is needed",
                "log in to the cluster again",
            )
        host = self.connection.api.configuration.host
        if _is_untrusted(seen):
            return self.error(
                f"API server {host}",
                f"its certificate is not trusted: {seen}",
                f"the certificate authority of {self.connection.source} has to know it",
                "correct certificate-authority in the kubeconfig",
            )
        return self.error(
            f"API server {host}",
            f"no answer for {seconds:.0f} s: {seen}",
            f"{self.connection.source} leads there",
            "see whether kubectl get --raw /readyz answers, then run the same command again",
        )


def _is_untrusted(seen: str) -> bool:
    return "CERTIFICATE_VERIFY_FAILED" in seen


def _describe(error: urllib3.exceptions.HTTPError) -> str:
    """Return what went wrong with a connection, without the objects that urllib3 puts around it."""
    text = str(getattr(error, "reason", None) or error)
    return _line(text.partition("): ")[2] or text)


def _read_refusal(error: ApiException) -> RefusedError:
    """Read the `Status` object of an answer."""
    body = error.body.decode(errors="replace") if isinstance(error.body, bytes) else str(error.body or "")
    try:
        status = json.loads(body)
    except ValueError:
        status = None
    if not isinstance(status, dict):
        status = {"message": body.strip() or error.reason}
    text = (error.headers or {}).get("Retry-After") or ""
    return RefusedError(
        int(error.status),
        _line(status.get("message") or error.reason),
        status.get("details") or {},
        float(text) if text.isdecimal() else None,
    )


def _line(value: Any) -> str:
    """Return something's text as one line of bounded length, without its last full stop."""
    text = " ".join(str(value).split()).rstrip(".")
    return text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "…"
