"""Short questions to an API server, each asked once: what `mlflywheel doctor` sees a cluster through.

Nothing is waited out here, unlike in `kubernetes_client.Cluster.call`: who asks what is wrong wants to hear it now.
"""

import re
import threading
from collections.abc import Mapping
from concurrent.futures import Future
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlencode

from mlflywheel.cluster.kubernetes_client import ApiClient, Cluster, Connection, RefusedError
from mlflywheel.errors import RunError

#: For one call: to connect, and to answer.
CALL_TIMEOUT_SECONDS = (3.0, 8.0)
_FORBIDDEN = re.compile(
    r'cannot (?P<verb>\S+) resource "(?P<resource>[^"]+)" in API group "(?P<group>[^"]*)"'
    r'(?: in the namespace "(?P<namespace>[^"]+)")?'
)


class ApiReader:
    """Reads an API server; what was read once is remembered, refusals too. Threads may share it.

    Args:
        connection: Where the server is.
        is_own: Whether `close` closes it.
    """

    def __init__(self, connection: Connection, is_own: bool = True) -> None:
        self.connection = connection
        self._cluster = Cluster(connection, RunError, "", is_own=is_own)
        self._lock = threading.Lock()
        self._answers: dict[str, Future[dict[str, Any]]] = {}

    def close(self) -> None:
        """Close the connection if it was opened for this."""
        self._cluster.close()

    def get(self, path: str, **query: str) -> dict[str, Any]:
        """Get one path of the API.

        Raises:
            RefusedError: The server said no.
            ConnectionError: It did not answer in time, or not as an API server does.
        """
        url = f"{path}?{urlencode(query)}" if query else path
        with self._lock:
            known = self._answers.get(url)
            answer = known or self._answers.setdefault(url, Future())
        if known is None:
            try:
                answer.set_result(self._send("GET", path, query))
            except Exception as error:
                answer.set_exception(error)
        return answer.result()

    def find(self, path: str, **query: str) -> dict[str, Any] | None:
        """Get one path, None for 404; errors as in `get`."""
        try:
            return self.get(path, **query)
        except RefusedError as error:
            if error.status == 404:
                return None
            raise

    def post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Post a question, such as a review of a right; errors as in `get`."""
        return self._send("POST", path, {}, body)

    def serves(self, group: str, version: str, resource: str) -> bool:
        """Tell whether the server knows a resource, by discovery, which every user may read.

        Raises:
            RefusedError: Discovery is refused.
            ConnectionError: As in `get`.
        """
        found = self.find(f"/apis/{group}/{version}")
        return any(one.get("name") == resource for one in (found or {}).get("resources") or ())

    def measure_clock(self) -> float | None:
        """Return the server's time in seconds since 1970, by its `Date` header of whole seconds; None without one."""
        dates: list[str] = []

        def send(api: ApiClient) -> Any:
            answer, _, headers = self._call(api, "GET", "/version", {}, None, only_data=False)
            dates.append((headers or {}).get("Date") or "")
            return answer

        self._cluster.try_once(send)
        try:
            # The header says a second that has begun.
            return parsedate_to_datetime(dates[-1]).timestamp() + 0.5
        except ValueError:
            return None

    def _send(
        self, method: str, path: str, query: Mapping[str, str], body: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        def send(api: ApiClient) -> Any:
            return self._call(api, method, path, query, body)

        answer: dict[str, Any] = self._cluster.try_once(send)
        return answer

    def _call(
        self,
        api: ApiClient,
        method: str,
        path: str,
        query: Mapping[str, str],
        body: Mapping[str, Any] | None,
        only_data: bool = True,
    ) -> Any:
        return api.call_api(
            path,
            method,
            query_params=list(query.items()),
            header_params={"Accept": "application/json"},
            body=body,
            response_type="object",
            auth_settings=["BearerToken"],
            _return_http_data_only=only_data,
            _request_timeout=CALL_TIMEOUT_SECONDS,
        )


def read_missing_right(refusal: RefusedError) -> tuple[str, str, str]:
    """Return verb, resource with its group and " in namespace X" of what an answer with status 403 says is missing.

    All are empty if it does not say so.

    >>> read_missing_right(RefusedError(403, 'User "a" cannot get resource "nodes" in API group "" at the scope', {}))
    ('get', 'nodes', '')
    """
    match = _FORBIDDEN.search(refusal.message)
    if match is None:
        return "", "", ""
    resource = f"{match['resource']}{'.' if match['group'] else ''}{match['group']}"
    return match["verb"], resource, f" in namespace {match['namespace']}" if match["namespace"] else ""
