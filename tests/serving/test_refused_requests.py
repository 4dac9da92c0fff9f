"""Requests that cannot be answered: 4xx with a message that says what to send, and never a 500."""

import json
import struct
from typing import Any

import httpx
import pytest
from running_server import RunningServer

GOOD = {"terms": ["emergency plumber"]}
TERMS = {"name": "terms", "datatype": "BYTES", "shape": [1], "data": ['["a"]']}


@pytest.mark.parametrize(
    ("body", "parts"),
    [
        (b"", ["body: empty", '{"instances": [']),
        (b"{", ["not JSON"]),
        (b"\xff\xfe", ["not JSON"]),
        (b'{"instances": [{"terms": ["\\ud800"]}]}', ["not JSON"]),
        (b'{"instances": [{"terms": [NaN]}]}', ["not JSON"]),
        (b"[" * 100_000, ["not JSON"]),
        (b"[]", ["a list of 0", "`instances` is needed"]),
        (b"{}", ["an empty object", "`instances` is needed"]),
        (b'{"instances": {}}', ["instances: an empty object", "a list is needed"]),
        (b'{"instances": [1]}', ["instances[0]: the number 1", "an object is needed"]),
    ],
)
def test_a_v1_body_that_is_no_request(server: RunningServer, body: bytes, parts: list[str]) -> None:
    response = httpx.post(f"{server.url}/v1/models/campaigns:predict", content=body)
    assert response.status_code == 400
    error = response.json()["error"]
    assert all(part in error for part in parts), error
    assert "Fix: " in error


@pytest.mark.parametrize(
    ("instance", "parts"),
    [
        ({}, ["instances[3].terms: missing", "emergency plumber"]),
        ({"terms": None}, ["instances[3].terms: null"]),
        ({"terms": ["a", "b", 5]}, ["instances[3].terms[2]: the number 5; a valid string is needed"]),
        ({"term": ["a"]}, ["instances[3]"]),
        ({"terms": [], "trems": []}, ["instances[3].trems: not a known name", "write terms"]),
        ({"terms": ["a"], "weights": [1, 2]}, ["2 weights for 1 terms", "give one weight a term"]),
        ({"terms": ["a"], "weights": [-1]}, ["instances[3].weights[0]: the number -1"]),
        ({"terms": ["a"], "weights": [1e300]}, ["instances[3].weights[0]"]),
        ({"terms": [["a"]]}, ["instances[3].terms[0]: a list of 1"]),
        ({"terms": "a"}, ["instances[3].terms: the text 'a'"]),
        ({"terms": [{"x" * 5000: 1}]}, ["an object with xxx"]),
    ],
)
def test_an_instance_that_does_not_fit_is_named(server: RunningServer, instance: Any, parts: list[str]) -> None:
    response = server.predict([GOOD, GOOD, GOOD, instance])
    assert response.status_code == 400
    error = response.json()["error"]
    assert all(part in error for part in parts), error
    assert len(error) < 600


@pytest.mark.parametrize(
    ("body", "part"),
    [
        ([], "an object with `inputs` is needed"),
        ({}, "body.inputs: missing"),
        ({"inputs": []}, "at least one input"),
        ({"inputs": [1]}, "inputs[0]: the number 1"),
        ({"inputs": [{}]}, "inputs[0].name: missing"),
        ({"inputs": [{**TERMS, "name": "term"}]}, "write terms"),
        ({"inputs": [TERMS, TERMS]}, "sent twice"),
        ({"inputs": [{**TERMS, "datatype": "INT64", "data": [1]}]}, "BYTES is needed"),
        ({"inputs": [{**TERMS, "shape": [2]}]}, "shape [2] has 2"),
        ({"inputs": [{**TERMS, "shape": [-1]}]}, "inputs[0].shape"),
        ({"inputs": [{**TERMS, "shape": [True]}]}, "inputs[0].shape"),
        ({"inputs": [{**TERMS, "shape": []}]}, "[n] is needed"),
        ({"inputs": [{**TERMS, "shape": [1, 2], "data": ["a", "b"]}]}, "[n] is needed"),
        ({"inputs": [{**TERMS, "shape": [10**18]}]}, "at most 200"),
        ({"inputs": [{**TERMS, "shape": [10**30]}]}, "inputs[0].shape"),
        ({"inputs": [{**TERMS, "data": "a"}]}, "inputs[0].data: the text 'a'; a list is needed"),
        ({"inputs": [{**TERMS, "data": [1]}]}, "a text with one JSON document"),
        ({"inputs": [{**TERMS, "data": ["a"]}]}, "input terms[0]: not JSON"),
        ({"inputs": [{**TERMS, "data": ['"a"']}]}, "instance 0.terms: the text 'a'"),
        ({"inputs": [{**TERMS, "data": ["[" * 5000]}]}, "input terms[0]: not JSON"),
        ({"inputs": [TERMS], "outputs": [{"name": "notes"}]}, "write note"),
        ({"inputs": [TERMS], "outputs": [{"name": "note"}, {"name": "note"}]}, "a second time"),
        ({"inputs": [TERMS], "outputs": 5}, "body.outputs"),
        ({"inputs": [TERMS], "id": 5}, "body.id"),
        ({"inputs": [TERMS], "parameters": {"binary_data_output": 1}}, "binary_data_output"),
        ({"inputs": [{"name": "campaign_id", "datatype": "BYTES", "shape": [1], "data": ["a"]}]}, "no input terms"),
        ({"inputs": [{**TERMS, "data": None, "parameters": {"binary_data_size": 3}}]}, "data and binary_data_size"),
        (
            {"inputs": [TERMS, {"name": "campaign_id", "datatype": "BYTES", "shape": [2], "data": ["a", "b"]}]},
            "2 instances, where the inputs before it have 1",
        ),
    ],
)
def test_a_v2_request_that_cannot_be_meant(server: RunningServer, body: Any, part: str) -> None:
    response = server.infer(body)
    assert response.status_code == 400
    assert part in response.json()["error"]


@pytest.mark.parametrize(
    ("binary", "size", "length", "part"),
    [
        (b"\x05\x00\x00\x00ab", 6, None, "ends after the data"),
        (b"\x05\x00", 2, None, "ends after the data"),
        (b"\xff\xff\xff\xff", 4, None, "ends after the data"),
        (struct.pack("<I", 2) + b"\xff\xfe", 6, None, "not UTF-8"),
        (struct.pack("<I", 2) + b"[]", 5, None, "ends after the data"),
        (struct.pack("<I", 2) + b"[]xx", 6, None, "2 bytes that belong to no input"),
        (struct.pack("<I", 2) + b"[]", 600, None, "6 bytes of binary data are left"),
        (struct.pack("<I", 2) + b"[]", -1, None, "binary data are left"),
        (b"", 0, None, "0 elements"),
        (b"", 0, "99999", "inference-header-content-length"),
        (b"", 0, "-1", "inference-header-content-length"),
        (b"", 0, "x", "inference-header-content-length"),
        (b"", 0, "5", "not JSON"),
    ],
)
def test_binary_data_that_does_not_divide_into_elements(
    server: RunningServer, binary: bytes, size: int, length: str | None, part: str
) -> None:
    item = {"name": "terms", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": size}}
    text = json.dumps({"inputs": [item]}).encode()
    headers = {"inference-header-content-length": length or str(len(text))}
    response = httpx.post(f"{server.url}/v2/models/campaigns/infer", content=text + binary, headers=headers)
    assert response.status_code == 400
    assert part in response.json()["error"]


def test_too_many_rows_are_to_be_split(server: RunningServer) -> None:
    error = server.predict([GOOD] * 201)
    assert error.status_code == 400
    assert "201 instances; at most 200 are taken. Fix: split them into requests of 200." in error.json()["error"]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/models/campaigns:predict", 405),
        ("DELETE", "/v2/models/campaigns/infer", 405),
        ("POST", "/v2/models/campaigns", 405),
        ("POST", "/nothing", 404),
        ("GET", "/v1/models/other", 404),
        ("GET", "/v2/models/other/ready", 404),
        ("POST", "/v1/models/other:predict", 404),
        ("POST", "/v1/models/campaigns:explain", 404),
        ("POST", "/v2/repository/models/campaigns/unload", 404),
        ("GET", "/v2/models/%FF%00/ready", 404),
        ("GET", "/v2/models/campaigns%2Fready", 200),
    ],
)
def test_paths_and_methods_that_are_not_there(server: RunningServer, method: str, path: str, status: int) -> None:
    response = httpx.request(method, server.url + path)
    assert response.status_code == status
    assert "error" in response.json() or status == 200
    assert ("allow" in response.headers) == (status == 405)


def test_a_compressed_body_is_refused(server: RunningServer) -> None:
    response = server.predict([GOOD], headers={"content-encoding": "gzip"})
    assert response.status_code == 415


def test_grpc_errors_have_a_code_and_the_same_text(server: RunningServer, grpc_stub: Any, grpc_messages: Any) -> None:
    import grpc

    def code_of(request: Any) -> tuple[Any, str]:
        with pytest.raises(grpc.RpcError) as caught:
            grpc_stub.ModelInfer(request)
        return caught.value.code(), caught.value.details()

    request = grpc_messages.ModelInferRequest(model_name="campaigns")
    assert code_of(request)[0] == grpc.StatusCode.INVALID_ARGUMENT
    item = request.inputs.add(name="terms", datatype="BYTES", shape=[1])
    item.contents.bytes_contents.append(b"[1]")
    code, text = code_of(request)
    assert code == grpc.StatusCode.INVALID_ARGUMENT
    assert "instance 0.terms[0]: the number 1; a valid string is needed" in text
    item.contents.fp32_contents.append(1.0)
    assert "fp32_contents for BYTES" in code_of(request)[1]
    item.ClearField("contents")
    request.raw_input_contents.append(b"\x09\x00\x00\x00")
    assert "ends after the data" in code_of(request)[1]
    request.raw_input_contents.append(b"")
    assert "2 of them for 1 inputs" in code_of(request)[1]
    assert code_of(grpc_messages.ModelInferRequest(model_name="x"))[0] == grpc.StatusCode.NOT_FOUND
    large = grpc_messages.ModelInferRequest(model_name="campaigns", raw_input_contents=[b"x" * 2_000_000])
    assert code_of(large)[0] == grpc.StatusCode.RESOURCE_EXHAUSTED
    with pytest.raises(grpc.RpcError) as caught:
        grpc_stub.RepositoryModelUnload(grpc_messages.RepositoryModelUnloadRequest(model_name="campaigns"))
    assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED


def test_the_server_is_well_after_all_that(server: RunningServer) -> None:
    assert server.predict([GOOD]).status_code == 200
    assert not server.events("defect")
