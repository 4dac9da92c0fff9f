"""A Kubeflow Model Registry server for tests: in memory, on 127.0.0.1, true to the published OpenAPI description.

Every request and every answer is validated against that description; what violates it is kept in `violations`. Where
the description is silent it does as the server's sources do: names and external ids are unique (409), the search by
name is SQL's LIKE without regard to case and answers 404 to several matches, an update replaces all custom properties
that are sent, and an artifact's name is unique within its version.
"""

import json
import re
import threading
import time
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

from openapi_core import OpenAPI
from openapi_core.exceptions import OpenAPIError
from openapi_core.testing import MockRequest, MockResponse

_SPECIFIED_HOST = "http://localhost:8080"

Answer = tuple[int, dict[str, Any]]


class ModelRegistryServer:
    """Start with `with`; the address is `url`.

    Args:
        specification: The OpenAPI description, of `v1alpha3`.
        speaks: The versions of the API that are served; the same routes for each.
    """

    def __init__(self, specification: Mapping[str, Any], speaks: tuple[str, ...] = ("v1alpha3",)) -> None:
        self.speaks = speaks
        self.violations: list[str] = []
        self.requests: list[tuple[str, str]] = []
        #: (method, pattern of the path, status) answered once each, before anything is stored.
        self.failures: list[tuple[str, str, int]] = []
        #: Same, after the request was carried out: the answer is lost.
        self.lost_answers: list[tuple[str, str, int]] = []
        #: Called with method and path before a request is handled.
        self.before: Callable[[str, str], None] = lambda method, path: None
        self.models: dict[int, dict[str, Any]] = {}
        self.versions: dict[int, dict[str, Any]] = {}
        self.artifacts: dict[int, dict[str, Any]] = {}
        self._parents: dict[int, int] = {}
        self._last_id = 0
        self._lock = threading.Lock()
        self._descriptions = {version: _description(specification, version) for version in speaks}

    def __enter__(self) -> Self:
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def _do(self) -> None:
                length = int(self.headers.get("Content-Length", "0"))
                status, answer = owner.handle(
                    self.command, self.path, dict(self.headers.items()), self.rfile.read(length)
                )
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            do_GET = do_POST = do_PATCH = _do

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()

    def handle(self, method: str, target: str, headers: dict[str, str], body: bytes) -> tuple[int, bytes]:
        """Validate a request, carry it out, validate the answer, and return it."""
        parts = urlsplit(target)
        match = re.fullmatch(r"/api/model_registry/([^/]+)/(.+)", parts.path)
        if match is None or match[1] not in self.speaks:
            return 404, b"404 page not found\n"
        version, path = match.groups()
        with self._lock:
            self.requests.append((method, path))
        self.before(method, path)
        if self._take(self.failures, method, path) is not None:
            return self._lost(500)
        query = {name: values[0] for name, values in parse_qs(parts.query, keep_blank_values=True).items()}
        request = MockRequest(
            _SPECIFIED_HOST,
            method.lower(),
            parts.path,
            args=query,
            headers=headers,
            data=body or None,
            content_type=headers.get("Content-Type", ""),
        )
        try:
            self._descriptions[version].validate_request(request)
        except OpenAPIError as error:
            return self._violated(f"request {method} {target} {body.decode()}: {error!r} {error.__cause__!r}")
        with self._lock:
            if b"\\u0000" in body:
                # As the real server does, also where the characters are escaped text and no null (v0.3.8, PostgreSQL).
                return 400, b'{"code": "Bad Request", "message": "null character"}'
            status, answer = self._route(method, path, query, json.loads(body) if body else {})
            encoded = json.dumps(answer).encode()
        try:
            response = MockResponse(encoded, status_code=status, content_type="application/json")
            self._descriptions[version].validate_response(request, response)
        except OpenAPIError as error:
            return self._violated(f"answer to {method} {target}: {status} {answer}: {error!r} {error.__cause__!r}")
        lost = self._take(self.lost_answers, method, path)
        return (status, encoded) if lost is None else self._lost(lost)

    def _take(self, rules: list[tuple[str, str, int]], method: str, path: str) -> int | None:
        with self._lock:
            for rule in rules:
                if rule[0] == method and re.fullmatch(rule[1], path):
                    rules.remove(rule)
                    return rule[2]
        return None

    def _lost(self, status: int) -> tuple[int, bytes]:
        return status, json.dumps({"code": "", "message": "the database went away"}).encode()

    def _violated(self, text: str) -> tuple[int, bytes]:
        self.violations.append(text)
        return 500, json.dumps({"code": "", "message": text}).encode()

    def _route(self, method: str, path: str, query: dict[str, str], body: dict[str, Any]) -> Answer:
        segments = path.split("/")
        match method, segments:
            case "GET", ["registered_models"]:
                return _page(list(self.models.values()), query)
            case "GET", ["registered_model"]:
                return _one([m for m in self.models.values() if _matches(m, query)])
            case "POST", ["registered_models"]:
                return self._create(self.models, body, lambda other: True)
            case "GET", ["registered_models", number, "versions"]:
                if int(number) not in self.models:
                    return _not_found()
                return _page([v for v in self.versions.values() if v["registeredModelId"] == number], query)
            case "GET", ["model_version"]:
                return _one([v for v in self.versions.values() if _matches(v, query)])
            case "POST", ["model_versions"]:
                parent = body["registeredModelId"]
                if int(parent) not in self.models:
                    return 400, {"code": "", "message": "no such registered model"}
                return self._create(self.versions, body, lambda other: other["registeredModelId"] == parent)
            case "PATCH", ["model_versions", number]:
                return self._update(self.versions, int(number), body)
            case "GET", ["model_artifact"]:
                parent = query.get("parentResourceId")
                return _one(
                    [a for i, a in self.artifacts.items() if str(self._parents[i]) == parent and _matches(a, query)]
                )
            case "GET", ["model_versions", number, "artifacts"]:
                if int(number) not in self.versions:
                    return _not_found()
                return _page([a for i, a in self.artifacts.items() if self._parents[i] == int(number)], query)
            case "POST", ["model_versions", number, "artifacts"]:
                if int(number) not in self.versions:
                    return _not_found()
                body.setdefault("name", f"generated-{self._last_id}")
                status, made = self._create(
                    self.artifacts, body, lambda other: self._parents[int(other["id"])] == int(number)
                )
                if status == 201:
                    self._parents[int(made["id"])] = int(number)
                return status, made
        return _not_found()

    def _create(
        self, into: dict[int, dict[str, Any]], body: dict[str, Any], is_sibling: Callable[[dict[str, Any]], bool]
    ) -> Answer:
        contexts = [*self.models.values(), *self.versions.values()]
        for other in contexts if into is not self.artifacts else self.artifacts.values():
            if body.get("externalId") and other.get("externalId") == body["externalId"]:
                return 409, {"code": "", "message": "already exists: conflict"}
        for other in into.values():
            if is_sibling(other) and other["name"].casefold() == body["name"].casefold():
                return 409, {"code": "", "message": f"{body['name']} already exists: conflict"}
        self._last_id += 1
        now = str(int(time.time() * 1000))
        stored = {
            "customProperties": {},
            "state": "LIVE",
            **body,
            "id": str(self._last_id),
            "createTimeSinceEpoch": now,
            "lastUpdateTimeSinceEpoch": now,
        }
        into[self._last_id] = stored
        return 201, stored

    def _update(self, into: dict[int, dict[str, Any]], number: int, body: dict[str, Any]) -> Answer:
        if number not in into:
            return _not_found()
        into[number].update(body, lastUpdateTimeSinceEpoch=str(int(time.time() * 1000)))
        return 200, into[number]


_parsed: dict[tuple[int, str], OpenAPI] = {}


def _description(specification: Mapping[str, Any], version: str) -> OpenAPI:
    # Parsing takes a good part of a second, and every test has a server of its own.
    key = (id(specification), version)
    if key not in _parsed:
        paths = {path.replace("/v1alpha3/", f"/{version}/"): item for path, item in specification["paths"].items()}
        _parsed[key] = OpenAPI.from_dict({**specification, "paths": paths})
    return _parsed[key]


def _matches(item: dict[str, Any], query: dict[str, str]) -> bool:
    if "name" in query:
        pattern = re.escape(query["name"]).replace("_", ".").replace("%", ".*")
        parent = item.get("registeredModelId", query.get("parentResourceId"))
        return (
            re.fullmatch(pattern, item["name"], re.IGNORECASE) is not None
            and query.get("parentResourceId", parent) == parent
        )
    return item.get("externalId") == query.get("externalId")


def _one(found: list[dict[str, Any]]) -> Answer:
    return (200, found[0]) if len(found) == 1 else _not_found()


def _not_found() -> Answer:
    return 404, {"code": "", "message": "not found"}


def _page(items: list[dict[str, Any]], query: dict[str, str]) -> Answer:
    # Never more than 5, so that a few items are several pages.
    size = min(int(query.get("pageSize", "20")), 5)
    start = int(query.get("nextPageToken") or 0)
    rest = len(items) > start + size
    page = items[start : start + size]
    return 200, {
        "items": page,
        "size": len(page),
        "pageSize": size,
        "nextPageToken": str(start + size) if rest else "",
    }
