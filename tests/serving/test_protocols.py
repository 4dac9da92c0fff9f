"""The same campaigns by batch, V1, V2 JSON, V2 binary and gRPC: equal answers."""

import json
import struct
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pytest
from running_server import RunningServer
from threadpoolctl import threadpool_limits

from mlflywheel.models.contract import load_model
from mlflywheel.models.topic_fingerprints.model import CampaignRequest

WORDS = ["plumber", "cheap flights", "zahnarzt münchen", "靴 セール", "обувь", "qqqq", "café ☕", "👟 sale"]


@pytest.fixture(scope="module")
def campaigns() -> list[dict[str, Any]]:
    """50 campaigns, among them empty, unknown, weighted and non-Latin ones."""
    random = np.random.default_rng(3)
    found: list[dict[str, Any]] = [
        {"campaign_id": "", "terms": []},
        {"campaign_id": "né", "terms": ["qqqq zzzz"]},
        {"campaign_id": "x", "terms": ["", "  ", "\u0000", "\n"]},
        {"campaign_id": "w", "terms": ["emergency plumber", "drain"], "weights": [0.5, 1e9]},
    ]
    while len(found) < 50:
        terms = [str(term) for term in random.choice([*WORDS, "drain cleaning", "solar panel"], random.integers(1, 9))]
        found.append({"campaign_id": f"c-{len(found):06d}", "terms": terms})
    return found


@pytest.fixture(scope="module")
def batch(saved_model: Path, campaigns: list[dict[str, Any]]) -> pa.Table:
    """What a batch says about them."""
    model = load_model(saved_model)
    with threadpool_limits(1):
        return model.predict(model.to_table([CampaignRequest(**campaign) for campaign in campaigns]))


def to_inputs(campaigns: list[dict[str, Any]]) -> dict[str, list[str]]:
    return {
        "campaign_id": [campaign["campaign_id"] for campaign in campaigns],
        "terms": [json.dumps(campaign["terms"], ensure_ascii=False) for campaign in campaigns],
        "weights": [json.dumps(campaign.get("weights")) for campaign in campaigns],
    }


def v2_body(campaigns: list[dict[str, Any]], **others: Any) -> dict[str, Any]:
    inputs = to_inputs(campaigns).items()
    shape = [len(campaigns)]
    return {"inputs": [{"name": n, "datatype": "BYTES", "shape": shape, "data": d} for n, d in inputs], **others}


def pack(texts: list[str]) -> bytes:
    return b"".join(struct.pack("<I", len(text.encode())) + text.encode() for text in texts)


def unpack(raw: bytes) -> list[str]:
    texts = []
    while raw:
        (length,) = struct.unpack_from("<I", raw)
        texts.append(raw[4 : 4 + length].decode())
        raw = raw[4 + length :]
    return texts


def as_float32(value: Any) -> Any:
    """Cast every float of a JSON value to float32."""
    if isinstance(value, float):
        return np.float32(value).item()
    if isinstance(value, list):
        return [as_float32(item) for item in value]
    return {key: as_float32(item) for key, item in value.items()} if isinstance(value, dict) else value


def check_columns(columns: dict[str, list[Any]], batch: pa.Table) -> None:
    """Compare V2 outputs with the batch: JSON documents, numbers with NaN for null, texts with "" for null."""
    assert list(columns) == batch.column_names
    for name in batch.column_names:
        expected = batch[name].to_pylist()
        kind = batch.schema.field(name).type
        if pa.types.is_string(kind):
            assert columns[name] == ["" if text is None else text for text in expected], name
        elif pa.types.is_floating(kind) or pa.types.is_fixed_size_list(kind):
            found = np.array(columns[name], np.float32)
            np.testing.assert_array_equal(found.ravel(), np.array(expected, np.float32).ravel(), err_msg=name)
        else:
            assert [as_float32(json.loads(text)) for text in columns[name]] == expected, name


def test_v1_equals_the_batch(server: RunningServer, campaigns: list[dict[str, Any]], batch: pa.Table) -> None:
    answer = server.predict(campaigns).json()
    assert [as_float32(row) for row in answer["predictions"]] == batch.to_pylist()
    assert answer["model_name"] == "campaigns"
    assert answer["model_version"] == "7"


def test_one_campaign_at_a_time_equals_the_batch(
    server: RunningServer, campaigns: list[dict[str, Any]], batch: pa.Table
) -> None:
    with httpx.Client() as client:
        url = f"{server.url}/v1/models/campaigns:predict"
        single = [client.post(url, json={"instances": [row]}).json()["predictions"][0] for row in campaigns[:20]]
    assert [as_float32(row) for row in single] == batch.slice(0, 20).to_pylist()


def test_v1_writes_floats_as_short_as_float32_allows(server: RunningServer) -> None:
    text = server.predict([{"terms": ["emergency plumber"]}]).text
    numbers = json.loads(text, parse_float=str)["predictions"][0]["fingerprint"]
    assert all(str(np.float32(number)) == number or "e" in number for number in numbers)
    assert max(map(len, numbers)) < 16


def test_v2_json_equals_the_batch(server: RunningServer, campaigns: list[dict[str, Any]], batch: pa.Table) -> None:
    answer = server.infer(v2_body(campaigns, id="mine")).json()
    assert (answer["id"], answer["model_name"], answer["model_version"]) == ("mine", "campaigns", "7")
    columns = {}
    for output in answer["outputs"]:
        assert len(output["data"]) == np.prod(output["shape"])
        columns[output["name"]] = [np.nan if item is None else item for item in output["data"]]
    check_columns(columns, batch)


def test_v2_binary_equals_the_batch(server: RunningServer, campaigns: list[dict[str, Any]], batch: pa.Table) -> None:
    head: dict[str, Any] = {"parameters": {"binary_data_output": True}, "inputs": []}
    binary = b""
    for name, texts in to_inputs(campaigns).items():
        raw = pack(texts)
        parameters = {"binary_data_size": len(raw)}
        head["inputs"].append({"name": name, "datatype": "BYTES", "shape": [50], "parameters": parameters})
        binary += raw
    text = json.dumps(head).encode()
    headers = {"inference-header-content-length": str(len(text)), "content-type": "application/octet-stream"}
    url = f"{server.url}/v2/models/campaigns/infer"
    response = httpx.post(url, content=text + binary, headers=headers, timeout=30)
    assert response.status_code == 200
    length = int(response.headers["inference-header-content-length"])
    rest = response.content[length:]
    columns: dict[str, list[Any]] = {}
    for output in json.loads(response.content[:length])["outputs"]:
        size = output["parameters"]["binary_data_size"]
        raw, rest = rest[:size], rest[size:]
        numbers = output["datatype"] == "FP32"
        columns[output["name"]] = np.frombuffer(raw, "<f4").tolist() if numbers else unpack(raw)
    assert not rest
    check_columns(columns, batch)


@pytest.mark.parametrize("raw", [True, False])
def test_grpc_equals_the_batch(
    grpc_stub: Any, grpc_messages: Any, campaigns: list[dict[str, Any]], batch: pa.Table, raw: bool
) -> None:
    request = grpc_messages.ModelInferRequest(model_name="campaigns", id="mine")
    for name, texts in to_inputs(campaigns).items():
        item = request.inputs.add(name=name, datatype="BYTES", shape=[len(texts)])
        if raw:
            request.raw_input_contents.append(pack(texts))
        else:
            item.contents.bytes_contents.extend(text.encode() for text in texts)
    answer = grpc_stub.ModelInfer(request, timeout=30)
    assert (answer.id, answer.model_version) == ("mine", "7")
    columns = {}
    for output, data in zip(answer.outputs, answer.raw_output_contents, strict=True):
        columns[output.name] = unpack(data) if output.datatype == "BYTES" else np.frombuffer(data, "<f4").tolist()
    check_columns(columns, batch)


def test_kserves_own_client_reads_the_answer(server: RunningServer, grpc_messages: Any) -> None:
    from kserve import InferInput, InferRequest, InferResponse

    texts = np.array([json.dumps(["emergency plumber"]), json.dumps([])], dtype=object)
    item = InferInput("terms", [2], "BYTES")
    item.set_data_from_numpy(texts, binary_data=True)
    body, length = InferRequest("campaigns", [item]).to_rest()
    headers = {"inference-header-content-length": str(length), "content-type": "application/octet-stream"}
    response = httpx.post(f"{server.url}/v2/models/campaigns/infer", content=body, headers=headers)
    answer = InferResponse.from_rest(response.json())
    shapes = {output.name: output.shape for output in answer.outputs}
    assert shapes["fingerprint"] == [2, 8]
    assert shapes["topics"] == [2]


def test_requested_outputs_come_alone_and_in_order(server: RunningServer, campaigns: list[dict[str, Any]]) -> None:
    outputs = [{"name": "note"}, {"name": "fingerprint", "parameters": {"binary_data": True}}]
    response = server.infer(v2_body(campaigns, outputs=outputs))
    length = int(response.headers["inference-header-content-length"])
    answer = json.loads(response.content[:length])
    assert [output["name"] for output in answer["outputs"]] == ["note", "fingerprint"]
    assert len(response.content) - length == answer["outputs"][1]["parameters"]["binary_data_size"] == 50 * 8 * 4


def test_optional_inputs_may_be_left_out_and_a_column_shape_is_taken(server: RunningServer) -> None:
    data = [[json.dumps(["drain"])], [json.dumps([])]]
    body = {"inputs": [{"name": "terms", "datatype": "BYTES", "shape": [2, 1], "data": data}]}
    assert server.infer(body).status_code == 200


def test_no_instances_get_no_predictions(server: RunningServer) -> None:
    assert server.predict([]).json()["predictions"] == []
    body = {"inputs": [{"name": "terms", "datatype": "BYTES", "shape": [0], "data": []}]}
    shapes = [output["shape"] for output in server.infer(body).json()["outputs"]]
    assert [0, 8] in shapes


def test_metadata_lists_the_contract_by_http_and_grpc(
    server: RunningServer, grpc_stub: Any, grpc_messages: Any
) -> None:
    by_http = server.get("/v2/models/campaigns").json()
    assert by_http["versions"] == ["7"]
    assert by_http["platform"] == "mlflywheel-topic-fingerprints"
    assert {item["name"]: (item["datatype"], item["shape"]) for item in by_http["inputs"]} == {
        "campaign_id": ("BYTES", [-1]),
        "terms": ("BYTES", [-1]),
        "weights": ("BYTES", [-1]),
    }
    assert {"name": "fingerprint", "datatype": "FP32", "shape": [-1, 8]} in by_http["outputs"]
    by_grpc = grpc_stub.ModelMetadata(grpc_messages.ModelMetadataRequest(name="campaigns"))
    assert [item.name for item in by_grpc.inputs] == [item["name"] for item in by_http["inputs"]]
    assert [list(item.shape) for item in by_grpc.outputs] == [item["shape"] for item in by_http["outputs"]]


def test_only_the_served_version_may_be_named(server: RunningServer, grpc_stub: Any, grpc_messages: Any) -> None:
    import grpc

    assert server.get("/v2/models/campaigns/versions/7/ready").json() == {"name": "campaigns", "ready": True}
    assert server.get("/v2/models/campaigns/versions/7").status_code == 200
    refused = server.get("/v2/models/campaigns/versions/6/ready")
    assert refused.status_code == 404
    assert "this server has 7" in refused.json()["error"]
    request = grpc_messages.ModelReadyRequest(name="campaigns", version="6")
    with pytest.raises(grpc.RpcError) as caught:
        grpc_stub.ModelReady(request)
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND


def test_health_and_names(server: RunningServer, grpc_stub: Any, grpc_messages: Any) -> None:
    assert server.get("/").json() == {"status": "alive"}
    assert server.get("/v2/health/live").json() == {"live": True}
    assert server.get("/v2/health/ready").json() == {"ready": True}
    assert server.get("/v1/models").json() == {"models": ["campaigns"]}
    assert server.get("/v1/models/campaigns").json() == {"name": "campaigns", "ready": True}
    assert server.get("/v2").json()["extensions"] == ["binary_tensor_data"]
    assert grpc_stub.ServerLive(grpc_messages.ServerLiveRequest()).live
    assert grpc_stub.ServerReady(grpc_messages.ServerReadyRequest()).ready
    assert grpc_stub.ModelReady(grpc_messages.ModelReadyRequest(name="campaigns")).ready
    assert grpc_stub.ServerMetadata(grpc_messages.ServerMetadataRequest()).name == "mlflywheel"


def test_every_protocol_names_the_dictionary(
    server: RunningServer, saved_model: Path, grpc_stub: Any, grpc_messages: Any
) -> None:
    expected = json.loads((saved_model / "manifest.json").read_text())["facts"]["dictionary_hash"]
    campaign = {"campaign_id": "a", "terms": ["drain"]}
    assert server.predict([campaign]).json()["dictionary_hash"] == expected
    assert server.infer(v2_body([campaign])).json()["parameters"] == {"dictionary_hash": expected}
    request = grpc_messages.ModelInferRequest(model_name="campaigns")
    request.inputs.add(name="terms", datatype="BYTES", shape=[1]).contents.bytes_contents.append(b"[]")
    assert grpc_stub.ModelInfer(request).parameters["dictionary_hash"].string_param == expected
