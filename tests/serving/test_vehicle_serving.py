"""The predictor serves prices of vehicles: every protocol gives the batch's answer, and no listing ends in a 5xx."""

import html
import json
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pytest
from running_server import RunningServer
from typer.testing import CliRunner

from mlflywheel.cli import app
from mlflywheel.client import Client
from mlflywheel.errors import ModelFilesError, UsageError
from mlflywheel.models.vehicle_price import VehiclePrice
from mlflywheel.samples.vehicle_prices import generate_vehicle_prices
from mlflywheel.scoring import score
from mlflywheel.serving.triton import find_graph, read_signature, write_repository

NAME = "vehicle-prices"
TABLE = json.loads((Path(__file__).parent / "malformed_listings.json").read_text(encoding="utf-8"))
GOOD: dict[str, Any] = TABLE["good"]
COLUMNS = ["listing_id", "price", "low", "high", "currency", "confidence", "needs_review", "flags", "drivers"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> VehiclePrice:
    params = VehiclePrice.Params.parse({"max_iter": 80, "scale_iter": 40}, "params")
    return VehiclePrice.fit(VehiclePrice.prepare(generate_vehicle_prices(2000), VehiclePrice.Config()), params)


@pytest.fixture(scope="module")
def folder(model: VehiclePrice, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vehicles") / "model"
    model.save(folder)
    return folder


@pytest.fixture(scope="module")
def vehicles(folder: Path) -> Iterator[RunningServer]:
    running = RunningServer(folder, "--model_version=3", name=NAME)
    try:
        yield running.wait_until_ready()
    finally:
        running.stop()


@pytest.fixture(scope="module")
def listings(model: VehiclePrice) -> pa.Table:
    """Prepared rows that the model has not seen, faults of every kind among them."""
    table = model.prepare(generate_vehicle_prices(150, seed=11), VehiclePrice.Config())
    flagged = [bool(flags) for flags in table["flags"].to_pylist()]
    return pa.concat_tables([table.filter(flagged), table.filter([not one for one in flagged]).slice(0, 60)])


@pytest.fixture(scope="module")
def batch(model: VehiclePrice, listings: pa.Table) -> pa.Table:
    # A request has no flags of preparing: an impossible value is missing there already.
    return score(model, listings.drop_columns("flags"), f"{NAME}@3")


def to_instances(table: pa.Table) -> list[dict[str, Any]]:
    fields = [name for name in VehiclePrice.Request.model_fields if name in table.column_names]
    return [{key: value for key, value in row.items() if value is not None} for row in table.select(fields).to_pylist()]


@pytest.fixture(scope="module")
def kinds(vehicles: RunningServer) -> dict[str, str]:
    """The datatype of each input."""
    return {item["name"]: item["datatype"] for item in vehicles.get(f"/v2/models/{NAME}").json()["inputs"]}


@pytest.fixture(scope="module")
def good(vehicles: RunningServer) -> dict[str, Any]:
    """The answer to the listing without a fault."""
    (found,) = vehicles.predict([GOOD]).json()["predictions"]
    assert found["flags"] == []
    return dict(found)


def to_tensors(instances: list[dict[str, Any]], kinds: dict[str, str]) -> list[dict[str, Any]]:
    """As V2 has them; null where an instance lacks a field that another one has."""
    names = list(dict.fromkeys(name for instance in instances for name in instance))
    return [
        {
            "name": name,
            "datatype": kinds.get(name, "FP64"),
            "shape": [len(instances)],
            "data": [one.get(name) for one in instances],
        }
        for name in names
    ]


def read_outputs(answer: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of a V2 answer; lists are JSON documents."""
    columns = {item["name"]: item["data"] for item in answer["outputs"]}
    for name in ("flags", "drivers"):
        columns[name] = [json.loads(text) for text in columns[name]]
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


# Every protocol.


def test_metadata_names_every_field_and_output(vehicles: RunningServer) -> None:
    found = vehicles.get(f"/v2/models/{NAME}").json()
    assert found["platform"] == VehiclePrice.format_name
    assert found["versions"] == ["3"]
    inputs = {item["name"]: item["datatype"] for item in found["inputs"]}
    assert set(inputs) == set(VehiclePrice.Request.model_fields)
    assert {inputs[name] for name in ("make", "fuel", "listing_id")} == {"BYTES"}
    assert {inputs[name] for name in ("year", "mileage_km", "power_kw")} == {"FP64"}
    assert [item["name"] for item in found["outputs"]] == COLUMNS
    assert {item["name"]: item["datatype"] for item in found["outputs"]} == {
        **dict.fromkeys(COLUMNS, "BYTES"),
        **dict.fromkeys(["price", "low", "high", "confidence"], "FP64"),
        "needs_review": "BOOL",
    }


def test_example_request_gets_a_whole_answer(vehicles: RunningServer) -> None:
    answer = vehicles.predict([VehiclePrice.example_request()]).json()
    assert (answer["model_name"], answer["model_version"]) == (NAME, "3")
    (found,) = answer["predictions"]
    assert list(found) == COLUMNS
    assert 0 < found["low"] < found["price"] < found["high"]
    assert found["currency"] == "EUR"
    assert 0 <= found["confidence"] <= 1
    assert [sorted(driver) for driver in found["drivers"]] == [["factor", "feature", "value"]] * 5
    # Of the sample's regions none was sent.
    assert found["flags"] == ["missing_region"]
    assert found["needs_review"] is True
    assert VehiclePrice.Response.model_validate(found)


def test_documented_requests_are_answered(vehicles: RunningServer) -> None:
    document = vehicles.get("/openapi.json").json()
    for path, answer in ((f"/v1/models/{NAME}:predict", "predictions"), (f"/v2/models/{NAME}/infer", "outputs")):
        example = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["example"]
        response = httpx.post(vehicles.url + path, json=example)
        assert response.status_code == 200, response.text
        assert response.json()[answer]


def test_v1_gives_the_answers_of_the_batch(vehicles: RunningServer, listings: pa.Table, batch: pa.Table) -> None:
    found = vehicles.predict(to_instances(listings)).json()["predictions"]
    assert found == batch.select(COLUMNS).to_pylist()


def test_v1_alone_gives_the_answer_of_the_batch(vehicles: RunningServer, listings: pa.Table, batch: pa.Table) -> None:
    expected = batch.select(COLUMNS).to_pylist()
    for row, instance in enumerate(to_instances(listings)[:20]):
        assert vehicles.predict([instance]).json()["predictions"] == [expected[row]]


def test_v2_json_gives_the_answers_of_the_batch(
    vehicles: RunningServer, kinds: dict[str, str], listings: pa.Table, batch: pa.Table
) -> None:
    answer = vehicles.infer({"inputs": to_tensors(to_instances(listings), kinds)}).json()
    assert answer["model_version"] == "3"
    assert read_outputs(answer) == batch.select(COLUMNS).to_pylist()


def encode(tensor: dict[str, Any]) -> bytes:
    """The V2 binary form; what is missing is NaN or an empty text."""
    if tensor["datatype"] == "FP64":
        return np.array([np.nan if value is None else value for value in tensor["data"]], "<f8").tobytes()
    texts = [("" if value is None else value).encode() for value in tensor["data"]]
    return b"".join(struct.pack("<I", len(text)) + text for text in texts)


def test_v2_binary_gives_the_answers_of_the_batch(
    vehicles: RunningServer, kinds: dict[str, str], listings: pa.Table, batch: pa.Table
) -> None:
    tensors = to_tensors(to_instances(listings), kinds)
    raw = [encode(tensor) for tensor in tensors]
    head = json.dumps(
        {
            "inputs": [
                {key: tensor[key] for key in ("name", "datatype", "shape")}
                | {"parameters": {"binary_data_size": len(data)}}
                for tensor, data in zip(tensors, raw, strict=True)
            ],
            "outputs": [
                {"name": "price", "parameters": {"binary_data": True}},
                {"name": "flags", "parameters": {"binary_data": False}},
            ],
        }
    ).encode()
    response = httpx.post(
        f"{vehicles.url}/v2/models/{NAME}/infer",
        content=head + b"".join(raw),
        headers={"inference-header-content-length": str(len(head))},
        timeout=60,
    )
    assert response.status_code == 200, response.text
    length = int(response.headers["inference-header-content-length"])
    answer = json.loads(response.content[:length])
    prices = np.frombuffer(response.content[length:], "<f8")
    assert prices.tolist() == batch["price"].to_pylist()
    assert [json.loads(text) for text in answer["outputs"][1]["data"]] == batch["flags"].to_pylist()


def test_grpc_gives_the_answers_of_the_batch(
    vehicles: RunningServer, kinds: dict[str, str], listings: pa.Table, batch: pa.Table, grpc_messages: Any
) -> None:
    import grpc
    from kserve.protocol.grpc.grpc_predict_v2_pb2_grpc import GRPCInferenceServiceStub

    request = grpc_messages.ModelInferRequest(model_name=NAME)
    for tensor in to_tensors(to_instances(listings), kinds):
        request.inputs.add(name=tensor["name"], datatype=tensor["datatype"], shape=tensor["shape"])
        request.raw_input_contents.append(encode(tensor))
    with grpc.insecure_channel(vehicles.grpc_address) as channel:
        answer = GRPCInferenceServiceStub(channel).ModelInfer(request, timeout=60)
    assert answer.model_version == "3"
    raw = dict(zip([output.name for output in answer.outputs], answer.raw_output_contents, strict=True))
    for name in ("price", "low", "high", "confidence"):
        assert np.frombuffer(raw[name], "<f8").tolist() == batch[name].to_pylist()
    assert np.frombuffer(raw["needs_review"], "?").tolist() == batch["needs_review"].to_pylist()


def test_units_of_the_request_are_those_of_preparing(vehicles: RunningServer) -> None:
    others = {"mileage_miles": GOOD["mileage_km"] / 1.609344, "power_kw": GOOD["power_hp"] / 1.3410220895950279}
    same = {key: value for key, value in GOOD.items() if key not in ("mileage_km", "power_hp")} | others
    first, second = vehicles.predict([GOOD, same]).json()["predictions"]
    assert first["price"] == pytest.approx(second["price"], rel=1e-9)
    assert first["flags"] == second["flags"] == []


def test_pages_show_the_listing_and_no_campaign(vehicles: RunningServer) -> None:
    facts = {}
    for path in ("/try", "/docs"):
        page = vehicles.get(path)
        assert page.status_code == 200
        (text,) = re.findall(r'<script type="application/json" id="facts">(.*?)</script>', page.text, re.DOTALL)
        facts[path] = json.loads(html.unescape(text))
    assert facts["/try"]["example"] == VehiclePrice.example_request()
    assert facts["/try"]["campaign"] is False
    assert vehicles.predict([facts["/try"]["example"]]).status_code == 200
    assert {item["name"] for item in facts["/docs"]["outputs"]} == set(COLUMNS)


# Listings that are wrong.


def malformed(entry: dict[str, Any]) -> dict[str, Any]:
    """A good listing with the entry's fault."""
    listing = {key: value for key, value in GOOD.items() if key not in entry.get("left_out", ())}
    for key, value in entry.get("sent", {}).items():
        repeated = isinstance(value, dict) and "repeat" in value
        listing[key] = value["repeat"] * value["times"] if repeated else value
    return listing


def post(server: RunningServer, path: str, body: Any) -> httpx.Response:
    # Surrogates and numbers that httpx's own writer refuses.
    return httpx.post(server.url + path, content=json.dumps(body).encode(), timeout=60)


def test_table_of_malformed_listings_is_long_enough() -> None:
    names = [entry["name"] for entry in TABLE["listings"]]
    assert len(set(names)) == len(names) >= 40
    assert all(("flags" in entry) != ("v1" in entry and "v2" in entry) for entry in TABLE["listings"])
    assert sum("flags" in entry for entry in TABLE["listings"]) >= 20


@pytest.mark.parametrize("entry", TABLE["listings"], ids=lambda entry: entry["name"])
def test_malformed_listing_is_flagged_or_refused(
    vehicles: RunningServer, kinds: dict[str, str], good: dict[str, Any], entry: dict[str, Any]
) -> None:
    listing = malformed(entry)
    by_v1 = post(vehicles, f"/v1/models/{NAME}:predict", {"instances": [listing]})
    by_v2 = post(vehicles, f"/v2/models/{NAME}/infer", {"inputs": to_tensors([listing], kinds)})
    if "flags" in entry:
        (first,), (second,) = by_v1.json()["predictions"], read_outputs(by_v2.json())
        assert first == second
        assert first["flags"] == entry["flags"] != []
        assert first["needs_review"] is True
        assert 0 < first["low"] < first["price"] < first["high"]
        width, usual = (one["high"] / one["low"] for one in (first, good))
        assert usual < width < usual * 20
    else:
        for response, part in ((by_v1, entry["v1"]), (by_v2, entry["v2"])):
            assert response.status_code == 400
            error = response.json()["error"]
            assert part in error
            assert "Fix: " in error
            assert len(error) < 600


def test_a_faulty_listing_does_not_move_the_others(vehicles: RunningServer, good: dict[str, Any]) -> None:
    faulty = [malformed(entry) for entry in TABLE["listings"] if "flags" in entry]
    together = vehicles.predict([GOOD, *faulty, GOOD]).json()["predictions"]
    assert together[0] == together[-1] == good
    assert vehicles.predict([GOOD, {"make": 5}]).status_code == 400


def test_no_listing_at_all_is_an_empty_answer(vehicles: RunningServer) -> None:
    assert vehicles.predict([]).json()["predictions"] == []
    refused = vehicles.infer({"inputs": []})
    assert refused.status_code == 400
    assert "at least one input is needed" in refused.json()["error"]


def test_nothing_of_a_refused_listing_was_a_defect(vehicles: RunningServer) -> None:
    assert vehicles.events("defect") == []


# Triton.


def read_config(text: str) -> dict[str, Any]:
    """What of `config.pbtxt` a test compares: a reader of protobuf's text format that knows its brackets."""
    tensors = {
        field: re.findall(
            r'name: "(\w+)" data_type: (\w+) dims: \[ ([\d, -]*) \]',
            re.search(rf"^{field} \[\n(.*?)\n\]", text, re.MULTILINE | re.DOTALL)[1],  # type: ignore[index]
        )
        for field in ("input", "output")
    }
    plain = dict(re.findall(r'^(\w+): "?([^"\n]+)"?$', text, re.MULTILINE))
    return plain | tensors | {"kind": re.findall(r"count: (\d+) kind: (\w+)", text)}


@pytest.mark.parametrize(("device", "kind"), [("cpu", "KIND_CPU"), ("cuda", "KIND_GPU")])
def test_tritons_configuration_is_that_of_the_graph(folder: Path, tmp_path: Path, device: Any, kind: str) -> None:
    import onnxruntime

    written = write_repository(folder, tmp_path / "repository", NAME, version=3, device=device)
    assert written == tmp_path / "repository" / NAME
    assert sorted(str(path.relative_to(written)) for path in written.rglob("*")) == [
        "3",
        "3/model.onnx",
        "config.pbtxt",
    ]
    config = read_config((written / "config.pbtxt").read_text(encoding="utf-8"))
    assert (config["name"], config["platform"], config["kind"]) == (NAME, "onnxruntime_onnx", [("1", kind)])
    # Triton adds the dimension of the batch to the others.
    assert int(config["max_batch_size"]) == 1024
    session = onnxruntime.InferenceSession(str(written / "3" / "model.onnx"), providers=["CPUExecutionProvider"])
    types = {"TYPE_FP32": "tensor(float)", "TYPE_STRING": "tensor(string)"}
    for field, values in (("input", session.get_inputs()), ("output", session.get_outputs())):
        assert [(name, types[kind], [int(size) for size in dims.split(",")]) for name, kind, dims in config[field]] == [
            (value.name, value.type, value.shape[1:]) for value in values
        ]
        assert not any(isinstance(value.shape[0], int) for value in values)
    assert [name for name, _, _ in config["output"]] == ["price", "low", "high"]


def test_graph_of_the_repository_gives_the_predictors_prices(
    folder: Path, tmp_path: Path, listings: pa.Table, batch: pa.Table
) -> None:
    import onnxruntime

    written = write_repository(folder, tmp_path, NAME)
    session = onnxruntime.InferenceSession(str(written / "1" / "model.onnx"), providers=["CPUExecutionProvider"])
    feed = {}
    for value in session.get_inputs():
        column = listings[value.name].to_pylist()
        number = value.type == "tensor(float)"
        filled = [(np.nan if number else "") if one is None else one for one in column]
        feed[value.name] = np.array(filled, np.float32 if number else object).reshape(-1, 1)
    for name, found in zip(("price", "low", "high"), session.run(["price", "low", "high"], feed), strict=True):
        assert found.ravel() == pytest.approx(batch[name].to_numpy(), rel=1e-4)


def test_a_version_in_the_repository_stays_what_it_is(folder: Path, model: VehiclePrice, tmp_path: Path) -> None:
    write_repository(folder, tmp_path, NAME)
    write_repository(folder, tmp_path, NAME, device="cuda")
    assert "KIND_GPU" in (tmp_path / NAME / "config.pbtxt").read_text(encoding="utf-8")
    other = tmp_path / "other"
    few = VehiclePrice.prepare(generate_vehicle_prices(200), VehiclePrice.Config())
    VehiclePrice.fit(few, VehiclePrice.Params.parse({"max_iter": 3, "scale_iter": 2}, "params")).save(other)
    before = find_graph(folder).read_bytes()
    with pytest.raises(UsageError, match="holds another graph"):
        write_repository(other, tmp_path, NAME)
    assert (tmp_path / NAME / "1" / "model.onnx").read_bytes() == before
    write_repository(other, tmp_path, NAME, version=2)
    assert sorted(path.name for path in (tmp_path / NAME).iterdir()) == ["1", "2", "config.pbtxt"]


def test_only_a_model_with_one_graph_goes_to_triton(saved_model: Path, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelFilesError, match="0 ONNX files"):
        write_repository(saved_model, tmp_path, "campaigns")
    with pytest.raises(ModelFilesError, match="missing or unreadable"):
        write_repository(tmp_path, tmp_path, "nothing")
    for name, options in (("../up", {}), ("x", {"version": 0}), ("x", {"instances": 0})):
        with pytest.raises(UsageError):
            write_repository(folder, tmp_path, name, **options)
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no graph")
    with pytest.raises(ModelFilesError, match=r"broken\.onnx"):
        read_signature(broken)
    assert [path.name for path in tmp_path.iterdir()] == ["broken.onnx"]


def test_the_command_line_exports_what_a_stock_server_takes(folder: Path, tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    result = CliRunner().invoke(
        app, ["models", "export", str(folder), "--triton", str(repository), "--name", "prices", "--version", "2"]
    )
    assert result.exit_code == 0, result.output
    assert sorted(path.relative_to(repository).as_posix() for path in repository.rglob("*") if path.is_file()) == [
        "prices/2/model.onnx",
        "prices/config.pbtxt",
    ]
    with pytest.raises(UsageError, match="add --name NAME"):
        Client(tmp_path / "runs").export(folder, repository)
