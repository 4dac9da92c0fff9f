"""Requests that are kept as files, asked of the application in this process and of a real server: the same answers.

`recorded/NAME.json` has `method`, `path` and `headers`, or `grpc` (the method's name), and the request's content as
`body` (JSON), `body_text` or `body_file` (bytes beside it). Behind that stands what was answered: `status`,
`answer_headers`, and `answer`, in which texts and numbers are replaced by their kind, except those that say what
something is. `MLFLYWHEEL_RECORD=1 pytest tests/serving/test_recorded_requests.py` writes the answers into the files;
read the difference before it is committed.
"""

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import httpx
import pytest
from running_server import RunningServer
from threadpoolctl import threadpool_limits

RECORDED = Path(__file__).parent / "recorded"
NAMES = sorted(path.stem for path in RECORDED.glob("*.json"))
HTTP_NAMES = [name for name in NAMES if not name.startswith("grpc-")]
GRPC_NAMES = [name for name in NAMES if name.startswith("grpc-")]
ID = {"x-request-id": "recorded"}
#: What is recorded as it is.
KEPT = {
    "datatype",
    "error",
    "id",
    "live",
    "model_name",
    "model_version",
    "models",
    "name",
    "platform",
    "ready",
    "shape",
}
COMPARED_HEADERS = ("content-type", "x-request-id", "inference-header-content-length", "allow", "retry-after")


class InProcess:
    """The application, without a server around it."""

    def __init__(self, folder: Path) -> None:
        from mlflywheel.serving.http_app import HttpApp
        from mlflywheel.serving.kserve_model import ModelDataPlane, ServedModel
        from mlflywheel.serving.limits import Pool
        from mlflywheel.serving.predictor import Predictor

        self.predictor = Predictor.load(folder, "campaigns", "7", "cpu", 200)
        model = ServedModel("campaigns", Pool(1, 8))
        model.accept(self.predictor)
        self._app: Any = HttpApp(ModelDataPlane(model), model, 1024 * 1024)

    def ask(self, request: httpx.Request) -> httpx.Response:
        async def send() -> httpx.Response:
            transport = httpx.ASGITransport(self._app)
            async with httpx.AsyncClient(transport=transport) as client:
                return await client.send(request)

        with threadpool_limits(1):
            return asyncio.run(send())


@pytest.fixture(scope="module")
def in_process(saved_model: Path, grpc_messages: Any) -> InProcess:
    return InProcess(saved_model)


def read(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((RECORDED / f"{name}.json").read_text(encoding="utf-8"))
    return found


def content_of(record: dict[str, Any]) -> bytes:
    if "body_file" in record:
        return (RECORDED / record["body_file"]).read_bytes()
    if "body_text" in record:
        return str(record["body_text"]).encode()
    return json.dumps(record["body"]).encode() if "body" in record else b""


def generalize(value: Any, key: str = "", kept: frozenset[str] = KEPT) -> Any:
    """Replace what depends on the model's numbers by its kind."""
    if key in kept:
        return value
    if isinstance(value, dict):
        # Topics have ids and names too, and those are the model's.
        return {
            name: generalize(item, name, frozenset() if name == "predictions" else kept) for name, item in value.items()
        }
    if isinstance(value, list):
        kinds: list[Any] = []
        for item in value:
            general = generalize(item, "", kept)
            if general not in kinds:
                kinds.append(general)
        return kinds
    if value is None or isinstance(value, bool):
        return value
    return "text" if isinstance(value, str) else "number"


def check(name: str, record: dict[str, Any], found: dict[str, Any]) -> None:
    if os.environ.get("MLFLYWHEEL_RECORD"):
        text = json.dumps({**record, **found}, indent=1, ensure_ascii=False)
        (RECORDED / f"{name}.json").write_text(text + "\n", encoding="utf-8")
    else:
        assert {key: record.get(key) for key in found} == found


@pytest.mark.parametrize("name", HTTP_NAMES)
def test_an_http_request_is_answered_as_recorded(server: RunningServer, in_process: InProcess, name: str) -> None:
    record = read(name)
    headers = {**ID, **record.get("headers", {})}
    request = httpx.Request(record["method"], server.url + record["path"], headers=headers, content=content_of(record))
    inside = in_process.ask(request)
    with httpx.Client() as client:
        outside = client.send(request)
    assert (inside.status_code, inside.content) == (outside.status_code, outside.content)
    kept = [
        {key: found.headers[key] for key in COMPARED_HEADERS if key in found.headers} for found in (inside, outside)
    ]
    assert kept[0] == kept[1]
    assert kept[0].pop("x-request-id") == "recorded"
    length = int(kept[0].pop("inference-header-content-length", len(outside.content)))
    answer = generalize(json.loads(outside.content[:length]))
    check(name, record, {"status": outside.status_code, "answer_headers": kept[0], "answer": answer})


@pytest.mark.parametrize("name", GRPC_NAMES)
def test_a_grpc_request_is_answered_as_recorded(
    server: RunningServer, in_process: InProcess, grpc_messages: Any, name: str
) -> None:
    import grpc

    record = read(name)
    data = content_of(record)
    with grpc.insecure_channel(server.grpc_address) as channel:
        try:
            call = channel.unary_unary(f"/inference.GRPCInferenceService/{record['grpc']}")
            outside = ("OK", call(data, timeout=10))
        except grpc.RpcError as error:
            outside = (error.code().name, error.details())
    inside = ask_predictor(in_process, grpc_messages, data)
    assert inside == outside
    answer: Any = {"error": outside[1]}
    if outside[0] == "OK":
        message = grpc_messages.ModelInferResponse.FromString(outside[1])
        outputs = [
            {"name": item.name, "datatype": item.datatype, "shape": list(item.shape)} for item in message.outputs
        ]
        answer = {"id": message.id, "model_name": message.model_name, "outputs": outputs}
        assert len(message.raw_output_contents) == len(outputs)
    check(name, record, {"status": outside[0], "answer": answer})


def ask_predictor(in_process: InProcess, messages: Any, data: bytes) -> tuple[str, Any]:
    from mlflywheel.serving.grpc_service import InferenceService
    from mlflywheel.serving.kserve_model import ModelDataPlane, ServedModel
    from mlflywheel.serving.limits import Pool

    model = ServedModel("campaigns", Pool(1, 8))
    model.accept(in_process.predictor)

    class Context:
        """What the service needs of gRPC's context."""

        aborted: tuple[str, str] | None = None

        def invocation_metadata(self) -> Any:
            return tuple(ID.items())

        async def send_initial_metadata(self, metadata: Any) -> None:
            assert dict(metadata) == ID

        async def abort(self, code: Any, text: str) -> None:
            self.aborted = (code.name, text)

    context = Context()
    with threadpool_limits(1):
        answer = asyncio.run(InferenceService(ModelDataPlane(model), model).ModelInfer(data, context))
    return context.aborted or ("OK", answer.SerializeToString())


def test_there_are_recorded_requests_of_every_protocol() -> None:
    assert {name.partition("-")[0] for name in NAMES} == {"v1", "v2", "grpc", "server"}
    used = {record["body_file"] for record in map(read, NAMES) if "body_file" in record}
    assert used == {path.name for path in RECORDED.glob("*.bin")}
