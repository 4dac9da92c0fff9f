"""The HTTP side: V1 and V2 of KServe, `/metrics`, the description of the interface and the page to try it.

| path                                                 | method | answer                                             |
| ---------------------------------------------------- | ------ | -------------------------------------------------- |
| `/`, `/v2/health/live`                               | GET    | 200 while the process runs                         |
| `/v2/health/ready`, `/v2/models/M/ready`,            | GET    | 200 when the model is loaded and warm, 503 before, |
| `/v1/models/M`                                       |        | and after SIGTERM                                  |
| `/v1/models`, `/v2/models`                           | GET    | names                                              |
| `/v2`, `/v2/models/M`                                | GET    | metadata                                           |
| `/v1/models/M:predict`, `/v2/models/M/infer`         | POST   | predictions                                        |
| `/metrics`                                           | GET    | Prometheus text                                    |
| `/openapi.json`, `/docs`, `/try`                     | GET    | the interface: for programs, to read, to try       |

`/v2/models/M` and what is below it also take `/versions/V`, of the served version only.

Errors are `{"error": "<where>: <seen>; <needed>. Fix: <action>."}`, and every answer has the header `x-request-id`.
`Content-Type` is not looked at, so that `curl -d` works; `Content-Encoding` must be absent.
"""

import asyncio
import re
import time
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from mlflywheel.errors import DataError, UsageError
from mlflywheel.serving.kserve_model import Call, ModelDataPlane, ServedModel
from mlflywheel.serving.limits import BodyReader, Receive, discard_body
from mlflywheel.serving.logs import log_defect, log_request
from mlflywheel.serving.metrics import observe, render
from mlflywheel.serving.openapi import describe_interface
from mlflywheel.serving.pages import Page, docs_page, try_page
from mlflywheel.serving.predictor import Exchange, HttpAnswer
from mlflywheel.serving.refusals import (
    BusyError,
    GoneError,
    NotReadyError,
    RefusalError,
    TooLargeError,
    UnknownEncodingError,
    UnknownPathError,
    WrongMethodError,
)
from mlflywheel.serving.request_ids import choose_request_id

Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

_PREDICT = re.compile(r"/v1/models/([^/]+):predict")
_INFER = re.compile(r"/v2/models/([^/]+)(?:/versions/([^/]+))?/infer")
_MODEL_V1 = re.compile(r"/v1/models/([^/:]+)")
_MODEL_V2 = re.compile(r"/v2/models/([^/]+)(?:/versions/([^/]+))?")
_READY_V2 = re.compile(r"/v2/models/([^/]+)(?:/versions/([^/]+))?/ready")
_JSON = "application/json"


@dataclass
class _Response:
    status: int
    body: bytes
    content_type: str = _JSON
    headers: dict[str, str] = field(default_factory=dict)


class HttpApp:
    """An ASGI application.

    Args:
        plane: Health and metadata.
        model: The model.
        max_request_bytes: Largest body.
    """

    def __init__(self, plane: ModelDataPlane, model: ServedModel, max_request_bytes: int) -> None:
        self._plane = plane
        self._model = model
        self._bodies = BodyReader(max_request_bytes)

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        headers = dict(scope["headers"])
        request_id = choose_request_id(headers.get(b"x-request-id", b"").decode("latin-1"))
        path, method = scope["path"], scope["method"]
        for protocol, pattern in (("v1", _PREDICT), ("v2", _INFER)):
            match = pattern.fullmatch(path)
            if match and method == "POST":
                exchange = Exchange(protocol, request_id)
                await self._answer(exchange, match.group(1), (*match.groups(), None)[1], headers, receive, send)
                return
        try:
            response = await self._route(method, path)
        except RefusalError as error:
            response = _refuse(error)
        except Exception as error:
            response = _fail(Exchange("other", request_id), error)
        await self._send(response, request_id, send, without_body=method == "HEAD")

    async def _answer(
        self,
        exchange: Exchange,
        name: str,
        version: str | None,
        headers: dict[bytes, bytes],
        receive: Receive,
        send: Send,
    ) -> None:
        refusal: str | None = None
        discarding = False
        status = 499
        try:
            try:
                response = await self._predict(exchange, name, version, headers, receive)
            except RefusalError as error:
                response, refusal = _refuse(error), type(error).__name__
                # The body may still be on its way.
                discarding = isinstance(error, TooLargeError | BusyError)
            except (DataError, UsageError) as error:
                # What the model itself finds wrong with these instances.
                response = _Response(400, orjson.dumps({"error": str(error)}))
                refusal = type(error).__name__
            except asyncio.CancelledError:
                # Only the end of the process cancels, when the deadline of a drain has passed.
                stopped = NotReadyError("server", "it stops", "it must be running", "repeat the request")
                response, refusal = _refuse(stopped), "Stopped"
            except Exception as error:
                response, refusal = _fail(exchange, error), type(error).__name__
            status = response.status
        finally:
            total_seconds = time.perf_counter() - exchange.started
            observe(exchange, str(status), total_seconds)
            log_request(exchange, self._model.name, str(status), total_seconds, refusal)
        if status == GoneError.http_status:
            return
        awaited = headers.get(b"expect", b"").lower() == b"100-continue"
        if discarding and not awaited:
            response.headers["connection"] = "close"
            await self._send(response, exchange.request_id, send, more=True)
            await discard_body(receive)
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        else:
            if discarding:
                response.headers["connection"] = "close"
            await self._send(response, exchange.request_id, send)

    async def _predict(
        self, exchange: Exchange, name: str, version: str | None, headers: dict[bytes, bytes], receive: Receive
    ) -> _Response:
        predictor = self._model.require(name, version)
        self._model.pool.check_free()
        encoding = headers.get(b"content-encoding", b"identity").decode("latin-1")
        if encoding.lower() not in ("", "identity"):
            raise UnknownEncodingError(
                "header content-encoding", encoding[:40], "a plain body is needed", "send it without compression"
            )
        body = await self._bodies.read(headers, receive)
        length = headers.get(b"inference-header-content-length")
        json_length = None if length is None else length.decode("latin-1")

        def answer() -> HttpAnswer:
            if exchange.protocol == "v1":
                return predictor.answer_v1(body, exchange)
            return predictor.answer_v2(body, json_length, exchange)

        found, _ = await self._model(Call(exchange, answer), {})
        if found.json_length is None:
            return _Response(200, found.body)
        binary_headers = {"inference-header-content-length": str(found.json_length)}
        return _Response(200, found.body, "application/octet-stream", binary_headers)

    async def _route(self, method: str, path: str) -> _Response:
        if _PREDICT.fullmatch(path) or _INFER.fullmatch(path):
            raise WrongMethodError(f"{method} {path[:200]}", "another method", "POST is needed", "send a POST", "POST")
        answer = await self._find(path)
        if method not in ("GET", "HEAD"):
            raise WrongMethodError(f"{method} {path[:200]}", "another method", "GET is needed", "send a GET")
        return answer

    async def _find(self, path: str) -> _Response:
        if path == "/":
            return _json({"status": "alive"})
        if path == "/v2/health/live":
            return _json({"live": True})
        if path == "/v2/health/ready":
            return _json({"ready": True}) if await self._plane.ready() else self._not_ready({"ready": False})
        if path in ("/v1/models", "/v2/models"):
            return _json({"models": [self._model.name]})
        if path in ("/v2", "/v2/"):
            return _json(self._plane.metadata())
        if path == "/metrics":
            body, content_type = render()
            return _Response(200, body, content_type)
        if path == "/openapi.json":
            return _json(describe_interface(self._model.require(self._model.name, None)))
        if path in ("/docs", "/try"):
            predictor = self._model.require(self._model.name, None)
            return _page(docs_page(predictor) if path == "/docs" else try_page(predictor))
        if match := _READY_V2.fullmatch(path) or _MODEL_V1.fullmatch(path):
            name, version = match.group(1), (*match.groups(), None)[1]
            if name == self._model.name and self._model.predictor is None:
                return self._not_ready({"name": name, "ready": False})
            self._model.require(name, version)
            state = {"name": name, "ready": bool(self._model.ready)}
            return _json(state) if self._model.ready else self._not_ready(state)
        if match := _MODEL_V2.fullmatch(path):
            self._model.require(match.group(1), match.group(2))
            return _json(await self._plane.model_metadata(match.group(1)))
        raise UnknownPathError(path[:200], "no such path", "see /docs", "correct the path")

    def _not_ready(self, state: dict[str, Any]) -> _Response:
        doing = "stopping" if self._model.draining else "still loading"
        text = f"model {self._model.name}: {doing}; it must be ready. Fix: ask another replica, or wait."
        return _Response(503, orjson.dumps({**state, "error": text}), headers={"retry-after": "1"})

    async def _send(
        self, response: _Response, request_id: str, send: Send, *, more: bool = False, without_body: bool = False
    ) -> None:
        headers = {
            "content-type": response.content_type,
            "content-length": str(len(response.body)),
            "x-request-id": request_id,
            "x-content-type-options": "nosniff",
            **response.headers,
        }
        if self._model.draining:
            # A proxy then takes its next request elsewhere, instead of to a connection that is about to end.
            headers["connection"] = "close"
        encoded = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
        await send({"type": "http.response.start", "status": response.status, "headers": encoded})
        body = b"" if without_body else response.body
        await send({"type": "http.response.body", "body": body, "more_body": more})


def _json(value: Any) -> _Response:
    return _Response(200, orjson.dumps(value))


def _page(page: Page) -> _Response:
    return _Response(200, page.body, "text/html; charset=utf-8", dict(page.headers))


def _refuse(error: RefusalError) -> _Response:
    response = _Response(error.http_status, orjson.dumps({"error": _text(error)}))
    if error.retry_after_seconds is not None:
        response.headers["retry-after"] = str(error.retry_after_seconds)
    if isinstance(error, WrongMethodError):
        response.headers["allow"] = error.allowed
    return response


def _fail(exchange: Exchange, error: Exception) -> _Response:
    log_defect(exchange, error)
    text = f"request {exchange.request_id}: internal error; a defect. Fix: look for this id in the server's log."
    return _Response(500, orjson.dumps({"error": text}))


def _text(error: Exception) -> str:
    """Return the message as text that JSON can carry: a path may hold what is not Unicode."""
    return str(error).encode("utf-8", "replace").decode()
