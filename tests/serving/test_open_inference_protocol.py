"""The published description of the Open Inference Protocol, and our own, against a real server.

schemathesis makes requests from an OpenAPI document, and sees whether the answers are those that the document allows:
status, content type, schema, headers, no 5xx, and 4xx for every request that breaks the document.

How the published file is read:

- It writes `${MODEL_NAME}` where OpenAPI has `{MODEL_NAME}`; our model's name and version are put there.
- It cannot know a model's inputs, so requests that fit it are mostly refused (400, which it lists). That valid requests
  are taken is seen with requests of our own making, and with our own document.
- JSON has no NaN, and the protocol's data are numbers; in place of a NaN stands null, as kserve writes it. So null is
  taken as a number here. Binary data and gRPC carry the NaN.
- It lists 200 and 400 only. A model or version that is not there is 404, a refused size 413, as HTTP has it.

Our deviations beside these: none. kserve's own server, which ours replaces, has those of `KSERVE_DEVIATIONS`.
"""

import asyncio
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from running_server import RunningServer

EXAMPLES = settings(
    max_examples=60, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck)
)
METADATA = "/v2/models/campaigns/versions/7"
INFER = f"{METADATA}/infer"
NUMBER = {"name": "terms", "datatype": "FP32", "shape": [1], "data": [1]}

#: What kserve's server does, seen in 0.21: why it deviates, the request, and its answer's status.
KSERVE_DEVIATIONS = [
    ("it knows no versions, which the document's paths have", "GET", METADATA, None, 501),
    ("the same for readiness of a version", "GET", f"{METADATA}/ready", None, 501),
    ("the same for inference", "POST", INFER, {"inputs": [NUMBER]}, 501),
    ("the path with a slash at its end is sent elsewhere", "GET", "/v2/", None, 307),
    ("what its pydantic models refuse is 422 with `detail`, not 400 with `error`", "POST", INFER, {"inputs": "x"}, 422),
    ("the same for what is missing", "POST", INFER, {}, 422),
    ("the same for an empty body", "POST", INFER, b"", 422),
    ("an empty list of inputs reaches the model, which fails", "POST", INFER, {"inputs": []}, 500),
    ("data that do not fill the shape are its failure", "POST", INFER, {"inputs": [{**NUMBER, "shape": [3]}]}, 500),
    ("a text among numbers is its failure", "POST", INFER, {"inputs": [{**NUMBER, "data": ["x"]}]}, 500),
    ("absent fields are null, where the document has texts and objects", "POST", INFER, {"inputs": [NUMBER]}, 200),
    ("absent versions are null, where the document has a list", "GET", METADATA, None, 200),
]  # fmt: skip


@pytest.fixture(scope="module")
def protocol(shared_folder: Path) -> Any:
    """The published document, as schemathesis has it."""
    import schemathesis

    path = shared_folder / "specs" / "open-inference-rest_predict_v2.yaml"
    if not path.is_file():
        pytest.skip(f"no {path.name} in the folder {shared_folder.name}: it is published with KServe's documentation")
    text = path.read_text(encoding="utf-8").replace("${MODEL_NAME}", "campaigns").replace("${MODEL_VERSION}", "7")
    document = yaml.safe_load(text)
    for operations in document["paths"].values():
        operations.pop("parameters", None)
    for choice in document["components"]["schemas"]["tensor_data"]["items"]["anyOf"]:
        if choice.get("type") == "number":
            choice["nullable"] = True
    return schemathesis.openapi.from_dict(document)


@pytest.fixture(scope="module")
def own(server: RunningServer) -> Any:
    """The document that the server gives about itself."""
    import schemathesis

    return schemathesis.openapi.from_dict(server.get("/openapi.json").json())


def accepts_more() -> list[Any]:
    """Checks of what only a model's own document can say."""
    from schemathesis.specs.openapi.checks import positive_data_acceptance

    return [positive_data_acceptance]


def check_operations(document: Any, url: str, *, refusing: bool) -> dict[str, int]:
    """Send requests for each operation, such as fit the document or such as do not; return how many by path."""
    from schemathesis import GenerationMode

    mode = GenerationMode.NEGATIVE if refusing else GenerationMode.POSITIVE
    operations = [found.ok() for found in document.get_all_operations()]
    # Nothing can be wrong with a GET without parameters.
    chosen = [operation for operation in operations if not refusing or operation.method == "post"]
    return {operation.path: check_operation(operation, mode, url, refusing=refusing) for operation in chosen}


def check_operation(operation: Any, mode: Any, url: str, *, refusing: bool) -> int:
    sent = 0

    @EXAMPLES
    @given(case=operation.as_strategy(generation_mode=mode))
    def check(case: Any) -> None:
        nonlocal sent
        response = case.call(base_url=url, timeout=10)
        case.validate_response(response, excluded_checks=accepts_more())
        assert not refusing or response.status_code == 400
        sent += 1

    check()
    return sent


def test_every_operation_of_the_protocol_answers_as_published(protocol: Any, server: RunningServer) -> None:
    assert len(check_operations(protocol, server.url, refusing=False)) == 6


def test_requests_that_break_the_protocol_are_refused_as_published(protocol: Any, server: RunningServer) -> None:
    assert check_operations(protocol, server.url, refusing=True)[INFER] >= 50


def test_every_operation_of_our_own_description_answers_as_it_says(own: Any, server: RunningServer) -> None:
    assert len(check_operations(own, server.url, refusing=False)) == 10


def test_requests_that_break_our_own_description_are_refused(own: Any, server: RunningServer) -> None:
    sent = check_operations(own, server.url, refusing=True)
    assert set(sent) == {"/v1/models/campaigns:predict", "/v2/models/campaigns/infer"}


def test_requests_that_a_model_takes_are_answered_as_published(protocol: Any, server: RunningServer) -> None:
    operation = protocol[INFER]["POST"]
    names = ["campaign_id", "fingerprint", "note", "topics", "unknown_share"]

    @EXAMPLES
    @given(
        st.lists(st.lists(st.text(max_size=20), max_size=5), max_size=4),
        st.text(max_size=10),
        st.lists(st.sampled_from(names), unique=True),
    )
    def check(campaigns: list[list[str]], request_id: str, outputs: list[str]) -> None:
        terms = [json.dumps(terms, ensure_ascii=False) for terms in campaigns]
        tensor = {"name": "terms", "datatype": "BYTES", "shape": [len(terms)], "data": terms}
        body = {"id": request_id, "inputs": [tensor], "outputs": [{"name": name} for name in outputs]}
        case = operation.Case(body=body, media_type="application/json")
        response = case.call_and_validate(base_url=server.url, timeout=10)
        assert response.status_code == 200
        answer = response.json()
        assert not request_id or answer["id"] == request_id
        assert not outputs or [output["name"] for output in answer["outputs"]] == outputs

    check()


@pytest.mark.parametrize("path", ["/v2/models/other/versions/7/infer", "/v2/models/campaigns/versions/8/infer"])
def test_a_model_or_version_that_is_not_there_is_404(server: RunningServer, path: str) -> None:
    response = httpx.post(server.url + path, json={"inputs": []})
    assert response.status_code == 404
    assert list(response.json()) == ["error"]


@pytest.fixture(scope="module")
def ask_kserve() -> Callable[[str, str, Any], httpx.Response]:
    """Asks kserve's own server, with a model that does no checking, in this process."""
    values, sys.argv = sys.argv, sys.argv[:1]
    try:
        from kserve import InferOutput, InferResponse, Model, ModelRepository
        from kserve.protocol.dataplane import DataPlane
        from kserve.protocol.model_repository_extension import ModelRepositoryExtension
        from kserve.protocol.rest.server import RESTServer
    finally:
        sys.argv = values
    from fastapi import FastAPI

    class Echo(Model):  # type: ignore[misc]
        async def predict(self, payload: Any, headers: Any = None, response_headers: Any = None) -> Any:
            output = InferOutput("out", [1], "FP32")
            output.set_data_from_numpy(payload.inputs[0].as_numpy(), binary_data=False)
            return InferResponse(payload.id or "", self.name, [output])

    repository = ModelRepository()
    model = Echo("campaigns")
    model.ready = True
    repository.update(model)
    app = FastAPI()
    kserves = RESTServer("", DataPlane(repository), ModelRepositoryExtension(repository), 0)
    kserves._register_endpoints(app)
    kserves._add_exception_handlers(app)

    def ask(method: str, path: str, body: Any) -> httpx.Response:
        async def send() -> httpx.Response:
            transport = httpx.ASGITransport(app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://kserve") as client:
                content = body if isinstance(body, bytes) or body is None else json.dumps(body)
                headers = {"content-type": "application/json"} if body is not None else {}
                return await client.request(method, path, content=content, headers=headers)

        return asyncio.run(send())

    return ask


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [pytest.param(*request, id=reason) for reason, *request in KSERVE_DEVIATIONS],
)
def test_kserves_deviations_are_not_ours(
    protocol: Any,
    server: RunningServer,
    ask_kserve: Callable[[str, str, Any], httpx.Response],
    method: str,
    path: str,
    body: Any,
    status: int,
) -> None:
    """If kserve's part fails, kserve was repaired: remove the entry."""
    case = protocol[path][method].Case(**({} if body is None else {"body": body, "media_type": "application/json"}))
    # It has no versions; what it says without one is looked at where 200 is expected.
    theirs = ask_kserve(method, path.replace("/versions/7", "") if status != 501 else path, body)
    assert theirs.status_code == status
    with pytest.raises(BaseException, match=r"Schemathesis found|Undocumented|schema|Server error"):
        case.validate_response(theirs, excluded_checks=accepts_more())
    ours = httpx.request(method, server.url + path, **({} if body is None else _content(body)))
    case.validate_response(ours, excluded_checks=accepts_more())
    assert ours.status_code == (200 if method == "GET" else 400)


def _content(body: Any) -> dict[str, Any]:
    return {"content": body} if isinstance(body, bytes) else {"json": body}
