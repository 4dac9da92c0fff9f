"""The REST API of a Kubeflow Pipelines server, and what its refusals mean.

The server is spoken to in its published API (v2beta1), and not through `kfp.Client`: that one prints links on standard
output, asks for logins, writes `.config/kfp/context.json` into the home folder, tries a health check five times in 25 s
and hides why it failed, and logs the headers of a refused answer.
"""

import json
import math
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode, urlsplit

from mlflywheel.errors import MissingExtraError, MlflywheelError, RunError

try:
    import urllib3
except ImportError as error:
    raise MissingExtraError.of("urllib3", "cluster", "Kubeflow Pipelines") from error

if TYPE_CHECKING:
    from mlflywheel.cluster.kubernetes_client import Connection

#: Names of this machine.
LOOPBACK = ("127.0.0.1", "localhost", "::1")
#: Holds what a browser would send as the header Cookie.
COOKIES_VARIABLE = "MLFLYWHEEL_PIPELINES_COOKIES"
_SECONDS = urllib3.Timeout(connect=5.0, read=60.0)
_AWAY = (408, 429, 502, 503, 504)
_SHOWN_CHARACTERS = 400
# A server that was never reached is more often a wrong address than one that restarts.
_FIRST_CONTACT_SECONDS = 2.0


class NotFoundError(Exception):
    """The server has no such thing; the message is its own."""


class AlreadyThereError(Exception):
    """The server has something of that name; the message is its own."""


class LostAnswerError(Exception):
    """A request may have been carried out or not; the message says what was seen of the answer.

    Args:
        seen: What was seen.
        error: What to raise if it cannot be found out.
    """

    def __init__(self, seen: str, error: MlflywheelError) -> None:
        self.error = error
        super().__init__(seen)


@dataclass
class PipelinesApi:
    """The REST API of a Kubeflow Pipelines server.

    Args:
        url: What its paths are put behind.
        pool: The connections.
        headers: Called for the headers of each request, so that a token that is exchanged meanwhile is taken up.
        source: Where the credentials come from, in words.
        secrets: Called for what must not be shown.
        namespace: The user's namespace as far as it is known.
        ui: What links are put behind; None if nobody could open them.
        kubeflow_namespace: Where the server is installed; the pods of an installation for one user are there too.
        reload: Log in again; None if that is not possible.
        kubernetes: Returns the cluster that the server is reached through; None if it is reached otherwise.
        patience_seconds: How long a server that answered before may be away.
        told: Called with a line when a call has to wait.
    """

    url: str
    pool: urllib3.PoolManager
    headers: Callable[[], dict[str, str]]
    source: str
    secrets: Callable[[], tuple[str, ...]]
    namespace: str | None = None
    ui: str | None = None
    kubeflow_namespace: str = "kubeflow"
    reload: Callable[[], None] | None = None
    kubernetes: "Callable[[], Connection] | None" = None
    patience_seconds: float = 600.0
    told: Callable[[str], None] = lambda line: None
    _was_reached: bool = False

    @property
    def where(self) -> str:
        """The server, as messages name it."""
        return f"Kubeflow Pipelines at {self.url}"

    def close(self) -> None:
        """Close the connections."""
        self.pool.clear()

    def pods_namespace(self, is_multi_user: bool) -> str:
        """Return the namespace of the pods of runs."""
        return (self.namespace if is_multi_user else None) or self.kubeflow_namespace

    def get(self, path: str, **query: Any) -> dict[str, Any]:
        """Ask for an object, and wait for a server that is away.

        Args:
            path: Behind `/apis/v2beta1/`.
            query: What follows the question mark; values of None are left out.

        Raises:
            NotFoundError: There is none.
            RunError: The server refused, or could not be reached.
        """
        pause, since, told_of = 0.3, time.monotonic(), ""
        while True:
            try:
                answer = self._read_object(self._send("GET", self._address(path, query)))
            except LostAnswerError as lost:
                waited = time.monotonic() - since
                if waited >= min(self.patience_seconds, math.inf if self._was_reached else _FIRST_CONTACT_SECONDS):
                    raise lost.error from None
                if told_of != str(lost):
                    told_of = str(lost)
                    self.told(f"waiting for Kubeflow Pipelines: {told_of}")
                time.sleep(pause * random.uniform(0.75, 1.25))
                pause = min(pause * 2, 10.0)
            else:
                if told_of:
                    self.told("Kubeflow Pipelines answers again")
                return answer

    def post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Ask for something to be made, once.

        Raises:
            AlreadyThereError: There is one of that name.
            LostAnswerError: It may have been made.
            RunError: The server refused.
        """
        data = json.dumps(body).encode()
        return self._read_object(self._send("POST", self._address(path, {}), data, "application/json"))

    def delete(self, path: str) -> None:
        """Delete something; what is not there counts as deleted.

        Raises:
            RunError: The server refused, or could not be reached.
        """
        try:
            self._send("DELETE", self._address(path, {}))
        except NotFoundError:
            return
        except LostAnswerError as lost:
            raise lost.error from None

    def upload(self, path: str, text_yaml: str, **query: Any) -> dict[str, Any]:
        """Send a compiled pipeline as a file.

        Raises:
            AlreadyThereError: There is a version of that name.
            LostAnswerError: It may have been stored.
            RunError: The server refused.
        """
        body, kind = urllib3.encode_multipart_formdata(
            {"uploadfile": ("pipeline.yaml", text_yaml.encode(), "application/octet-stream")}
        )
        return self._read_object(self._send("POST", self._address(path, query), body, kind))

    def read_log(self, run_id: str, pod: str) -> str | None:
        """Return what a pod of a run printed; None if the server has it no longer, or never had."""
        address = f"{self.url}/apis/v1alpha1/runs/{quote(run_id)}/nodes/{quote(pod)}/log"
        try:
            text = self._send("GET", address).data.decode(errors="replace")
        except (NotFoundError, LostAnswerError, MlflywheelError):
            return None
        # The server reports what it could not read with HTTP 200.
        return None if not text.strip() or text.lstrip().startswith('{"error_message"') else self.redact(text)

    def redact(self, text: str) -> str:
        """Return a text without the secrets that were sent."""
        for secret in self.secrets():
            text = text.replace(secret, "***") if secret else text
        return text

    def _address(self, path: str, query: Mapping[str, Any]) -> str:
        given = {key: value for key, value in query.items() if value is not None}
        return f"{self.url}/apis/v2beta1/{path}" + (f"?{urlencode(given)}" if given else "")

    def _send(self, method: str, address: str, body: bytes | None = None, kind: str | None = None) -> Any:
        for attempt in range(2):
            headers = self.headers() | ({"Content-Type": kind} if kind else {})
            try:
                # A redirect would take the token along to wherever it leads.
                answer = self.pool.request(
                    method, address, body=body, headers=headers, timeout=_SECONDS, retries=False, redirect=False
                )
            except urllib3.exceptions.HTTPError as error:
                raise self._explain_silence(error) from None
            if answer.status == 401 and self.reload is not None and attempt == 0:
                self.reload()
                continue
            break
        if answer.status < 300 and not _is_page(answer):
            self._was_reached = True
            return answer
        raise self._explain(method, answer)

    def _read_object(self, answer: Any) -> dict[str, Any]:
        try:
            read = json.loads(answer.data or b"{}")
        except ValueError:
            read = None
        if not isinstance(read, dict):
            raise RunError(
                self.where,
                f"the answer is no JSON object: {self._line(answer.data)}",
                "an answer of the API is needed",
                "correct --host",
            )
        return read

    def _explain_silence(self, error: urllib3.exceptions.HTTPError) -> Exception:
        """Return the error for a request without an answer."""
        reason = getattr(error, "reason", None) or error
        text = self._line(str(reason).partition("): ")[2] or reason)
        if isinstance(error, urllib3.exceptions.SSLError) or "SSL" in text or "CERTIFICATE" in text:
            plain = "WRONG_VERSION_NUMBER" in text or "UNKNOWN_PROTOCOL" in text
            return RunError(
                self.where,
                f"no TLS: {text}",
                "it speaks plain HTTP" if plain else "its certificate has to be trusted",
                "write http:// in --host" if plain else "name its certificate authority with --ca-file",
            )
        fix = "see whether the address is right and the server runs"
        if urlsplit(self.url).hostname in LOOPBACK:
            fix = "start `kubectl port-forward -n kubeflow svc/ml-pipeline 8888:8888`, with the port of --host"
        elif "resolve" in text or "Name or service" in text:
            fix = "correct --host; names that end in .svc.cluster.local exist inside the cluster alone"
        unreachable = RunError(self.where, f"no answer: {text}", "the server has to be reachable", fix)
        return LostAnswerError(text, unreachable)

    def _explain(self, method: str, answer: Any) -> Exception:
        """Return the error for an answer that is no success."""
        status, told = int(answer.status), self._line(_read_message(answer.data))
        target = answer.headers.get("Location") or ""
        if _is_page(answer) or 300 <= status < 400:
            seen = f"a redirect to {urlsplit(target).netloc or 'another page'}" if target else "a page for browsers"
            if status == 404:
                return self._error(
                    f"{seen} with HTTP 404", "the API is not there", "correct --host; it often ends in /pipeline"
                )
            return self._error(
                f"{seen} in place of an answer: a login stands in front",
                f"it takes a token or cookies, and got {self.source}",
                f"name a token with --token-file, set {COOKIES_VARIABLE}, or go through Kubernetes with --context",
            )
        through = "services" in told and "proxy" in told and "forbidden" in told
        if status == 401:
            return self._error(
                f"it does not know who asks: {told}",
                f"valid credentials are needed, and it got {self.source}",
                f"name a token with --token-file, or set {COOKIES_VARIABLE}"
                if self.source == "no credentials"
                else "get a new token; through --context none arrives at an installation for several users: use --host",
            )
        if status == 403:
            return self._error(
                f"not permitted: {told}",
                "get, create and delete on services/proxy are needed"
                if through
                else f"{self.source} needs the rights of an editor in namespace {self.namespace or 'of the run'}",
                "ask for a Role with them, or use --host" if through else "ask the namespace's owner for kubeflow-edit",
            )
        if status == 404 and ("services" in told or told in ("Not Found", "404 page not found", "")):
            return self._error(
                f"HTTP 404: {told or 'nothing'}",
                "the API v2beta1 of Kubeflow Pipelines 2 is needed",
                "correct --host, which often ends in /pipeline, or --kubeflow-namespace",
            )
        if status == 404:
            return NotFoundError(told)
        if status == 409:
            return AlreadyThereError(told)
        refused = self._error(
            f"HTTP {status}: {told}",
            "the request was expected to succeed",
            "see the log of the pod ml-pipeline" if status >= 500 else "change what it complains about",
        )
        if status in _AWAY or (status >= 500 and method != "GET"):
            return LostAnswerError(f"HTTP {status}: {told}", refused)
        return refused

    def _error(self, seen: str, needed: str, fix: str) -> RunError:
        return RunError(self.where, seen, needed, fix)

    def _line(self, value: Any) -> str:
        """Return a text as one line of bounded length, without secrets and its last full stop."""
        text = value.decode(errors="replace") if isinstance(value, bytes) else str(value)
        text = self.redact(" ".join(text.split()).rstrip("."))
        return text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "…"


def _is_page(answer: Any) -> bool:
    """Tell whether an answer is meant for a browser: a login page comes with HTTP 200."""
    kind = str(answer.headers.get("Content-Type") or "")
    return kind.startswith("text/html") or answer.data[:200].lstrip().lower().startswith((b"<!doctype", b"<html"))


def _read_message(body: bytes) -> str:
    """Return the server's own words: of its API, its uploads, or of Kubernetes."""
    try:
        read = json.loads(body)
    except ValueError:
        return body.decode(errors="replace")
    if not isinstance(read, dict):
        return str(read)
    details = read.get("details")
    inner = (
        details[0].get("message") if isinstance(details, list) and details and isinstance(details[0], dict) else None
    )
    return str(inner or read.get("message") or read.get("error_message") or read)
