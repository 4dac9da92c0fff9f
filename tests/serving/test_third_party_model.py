"""The predictor serves a model that it has never heard of: values of every kind, slow requests, defects, a drain."""

import signal
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from running_server import RunningServer

THIRD_PARTY = Path(__file__).parent / "third_party"
Start = Callable[..., RunningServer]
LISTING = {"title": "blue", "price": 3.0}


@pytest.fixture(scope="session")
def saved_listings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sys.path.insert(0, str(THIRD_PARTY))
    from listings_model import Listings

    folder = tmp_path_factory.mktemp("listings") / "model"
    Listings().save(folder)
    return folder


@pytest.fixture(scope="session")
def listings(saved_listings: Path) -> Iterator[RunningServer]:
    running = RunningServer(saved_listings, "--predict_threads=4", name="listings", environment=installed())
    try:
        yield running.wait_until_ready()
    finally:
        running.stop()


def installed() -> dict[str, str]:
    return {"PYTHONPATH": str(THIRD_PARTY)}


def tensor(name: str, datatype: str, *data: Any) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": [len(data)], "data": list(data)}


def test_a_package_that_is_not_installed_is_asked_for(start: Start, saved_listings: Path) -> None:
    running = start(folder=saved_listings)
    assert running.process.wait(60) == 1
    running.stop()
    assert "saved by listings_model:Listings" in running.other_lines[0]


def test_every_kind_of_field_has_a_tensor(listings: RunningServer) -> None:
    metadata = listings.get("/v2/models/listings").json()
    assert {item["name"]: item["datatype"] for item in metadata["inputs"]} == {
        "title": "BYTES",
        "price": "FP64",
        "doors": "INT64",
        "sold": "BOOL",
        "fuel": "BYTES",
        "built": "BYTES",
        "tags": "BYTES",
    }
    assert {item["name"]: (item["datatype"], item["shape"]) for item in metadata["outputs"]} == {
        "title": ("BYTES", [-1]),
        "estimate": ("FP64", [-1]),
        "doors": ("INT64", [-1]),
        "sold": ("BOOL", [-1]),
        "span": ("FP32", [-1, 2]),
        "built": ("BYTES", [-1]),
        "tags": ("BYTES", [-1]),
    }


def test_values_of_every_kind_arrive_and_return(listings: RunningServer) -> None:
    body = {
        "inputs": [
            tensor("title", "BYTES", "", "ünï"),
            tensor("price", "FP64", -1, 0.3),
            tensor("doors", "INT64", 2**62, 5),
            tensor("sold", "BOOL", True, False),
            tensor("fuel", "BYTES", "diesel", "petrol"),
            tensor("built", "BYTES", "1999-12-31", "2024-02-29"),
            tensor("tags", "BYTES", '["x"]', "[]"),
        ]
    }
    outputs = {item["name"]: item["data"] for item in listings.infer(body).json()["outputs"]}
    assert outputs["title"] == ["", "ünï"]
    assert outputs["estimate"] == [None, 0.3 * 1.1]
    assert outputs["doors"] == [2**62, 5]
    assert outputs["sold"] == [True, False]
    assert outputs["built"] == ['"1999-12-31"', '"2024-02-29"']
    assert outputs["tags"] == ['["x"]', "[]"]
    assert np.array_equal(np.float32(outputs["span"]), np.float32([-1, -1 / 3, 0.3, 0.3 / 3]))
    by_v1 = listings.predict([{"title": "", "price": -1, "built": "1999-12-31"}]).json()["predictions"][0]
    assert by_v1["title"] is None
    assert by_v1["estimate"] is None
    assert by_v1["built"] == "1999-12-31"


def test_numbers_arrive_as_binary_data(listings: RunningServer, grpc_messages: Any) -> None:
    import grpc
    from kserve.protocol.grpc.grpc_predict_v2_pb2_grpc import GRPCInferenceServiceStub

    request = grpc_messages.ModelInferRequest(model_name="listings")
    for name, datatype, raw in (
        ("title", "BYTES", struct.pack("<I", 1) + b"a"),
        ("price", "FP64", struct.pack("<d", 0.1)),
        ("doors", "INT64", struct.pack("<q", -3)),
        ("sold", "BOOL", b"\x01"),
    ):
        request.inputs.add(name=name, datatype=datatype, shape=[1])
        request.raw_input_contents.append(raw)
    with grpc.insecure_channel(listings.grpc_address) as channel:
        answer = GRPCInferenceServiceStub(channel).ModelInfer(request)
    found = {output.name: raw for output, raw in zip(answer.outputs, answer.raw_output_contents, strict=True)}
    assert struct.unpack("<d", found["estimate"]) == (0.1 * 1.1,)
    assert struct.unpack("<q", found["doors"]) == (-3,)
    assert found["sold"] == b"\x01"


@pytest.mark.parametrize(
    ("sent", "part"),
    [
        (tensor("price", "FP64", "3"), "input price[0]: the text '3'; a number is needed"),
        (tensor("price", "FP64", True), "input price[0]: true"),
        (tensor("price", "FP32", 3), "FP64 is needed"),
        (tensor("price", "FP64", None), "instance 0.price: null"),
        (tensor("price", "FP64", 10**400), "not JSON"),
    ],
)
def test_a_number_of_the_wrong_kind_is_named(listings: RunningServer, sent: Any, part: str) -> None:
    response = listings.infer({"inputs": [tensor("title", "BYTES", "a"), sent]})
    assert response.status_code == 400
    assert part in response.json()["error"]


def test_what_the_model_itself_refuses_is_400(listings: RunningServer) -> None:
    response = listings.predict([{"title": "refuse", "price": 1}])
    assert response.status_code == 400
    assert response.json()["error"] == "title: refuse; another title is needed. Fix: choose one."


def test_a_defect_is_500_with_an_id_and_its_message_stays_inside(listings: RunningServer) -> None:
    with httpx.Client(base_url=listings.url) as client:
        failed = client.post("/v1/models/listings:predict", json={"instances": [{"title": "explode", "price": 1}]})
        assert failed.status_code == 500
        assert failed.headers["x-request-id"] in failed.json()["error"]
        assert "secret" not in failed.text
        # The same connection goes on.
        assert client.post("/v1/models/listings:predict", json={"instances": [LISTING]}).status_code == 200
    defect = listings.wait_for(lambda: listings.events("defect"))[0]
    assert defect["request_id"] == failed.headers["x-request-id"]
    assert defect["exception"] == "ZeroDivisionError"
    assert any(place.endswith(" predict") for place in defect["places"])
    assert "secret" not in str(listings.log) + str(listings.other_lines)


def test_pages_escape_the_models_example(listings: RunningServer) -> None:
    for path in ("/try", "/docs"):
        page = listings.get(path).text
        assert "<b>blue" not in page
        assert page.count("</script>") == 2


def sleep_for(server: RunningServer, seconds: float, answers: list[httpx.Response]) -> threading.Thread:
    thread = threading.Thread(
        target=lambda: answers.append(server.predict([{"title": "sleep", "price": seconds}, LISTING]))
    )
    thread.start()
    server.wait_for(lambda: "requests_in_flight 1.0" in server.get("/metrics").text)
    return thread


def test_sigterm_finishes_running_requests_and_says_not_ready_at_once(start: Start, saved_listings: Path) -> None:
    running = start("--drain_delay_seconds=1", folder=saved_listings, name="listings", environment=installed())
    running.wait_until_ready()
    answers: list[httpx.Response] = []
    thread = sleep_for(running, 2.5, answers)
    running.process.send_signal(signal.SIGTERM)
    running.wait_for(lambda: running.events("draining"))
    # During the delay: not ready, and requests are taken, on connections that are then closed.
    assert running.get("/v2/models/listings/ready").status_code == 503
    assert running.get("/v2/health/live").status_code == 200
    late = running.predict([LISTING])
    assert (late.status_code, late.headers["connection"]) == (200, "close")
    thread.join()
    assert answers[0].status_code == 200
    assert running.process.wait(10) == 0
    running.stop()
    assert running.events("stopped")[0]["cut_off"] == 0
    with pytest.raises(httpx.ConnectError):
        running.get("/")


def test_a_request_beyond_the_deadline_is_cut_off(start: Start, saved_listings: Path) -> None:
    running = start("--drain_deadline_seconds=1", folder=saved_listings, name="listings", environment=installed())
    running.wait_until_ready()
    answers: list[httpx.Response] = []
    thread = sleep_for(running, 30, answers)
    started = time.monotonic()
    assert running.stop() == 0
    assert time.monotonic() - started < 6
    thread.join()
    assert answers[0].status_code == 503
    assert "repeat the request" in answers[0].json()["error"]
    assert running.events("stopped")[0]["cut_off"] == 1


def test_a_second_signal_ends_the_process_at_once(start: Start, saved_listings: Path) -> None:
    running = start("--drain_delay_seconds=20", folder=saved_listings, name="listings", environment=installed())
    running.wait_until_ready()
    running.process.send_signal(signal.SIGTERM)
    running.wait_for(lambda: running.events("draining"))
    assert running.stop(signal.SIGINT) == 130


def test_grpc_requests_are_finished_too(start: Start, saved_listings: Path, grpc_messages: Any) -> None:
    import grpc
    from kserve.protocol.grpc.grpc_predict_v2_pb2_grpc import GRPCInferenceServiceStub

    running = start(folder=saved_listings, name="listings", environment=installed()).wait_until_ready()
    request = grpc_messages.ModelInferRequest(model_name="listings")
    request.inputs.add(name="title", datatype="BYTES", shape=[1]).contents.bytes_contents.append(b"sleep")
    request.inputs.add(name="price", datatype="FP64", shape=[1]).contents.fp64_contents.append(1.5)
    with grpc.insecure_channel(running.grpc_address) as channel:
        future = GRPCInferenceServiceStub(channel).ModelInfer.future(request, timeout=20)
        running.wait_for(lambda: "requests_in_flight 1.0" in running.get("/metrics").text)
        assert running.stop() == 0
        assert future.result().model_name == "listings"


def test_a_client_that_gives_up_frees_its_place(listings: RunningServer, grpc_messages: Any) -> None:
    import grpc
    from kserve.protocol.grpc.grpc_predict_v2_pb2_grpc import GRPCInferenceServiceStub

    request = grpc_messages.ModelInferRequest(model_name="listings")
    request.inputs.add(name="title", datatype="BYTES", shape=[1]).contents.bytes_contents.append(b"sleep")
    request.inputs.add(name="price", datatype="FP64", shape=[1]).contents.fp64_contents.append(0.8)
    with grpc.insecure_channel(listings.grpc_address) as channel, pytest.raises(grpc.RpcError):
        GRPCInferenceServiceStub(channel).ModelInfer(request, timeout=0.2)
    line = listings.wait_for(lambda: [line for line in listings.events("request") if line["status"] == "CANCELLED"])
    assert line[0]["protocol"] == "grpc"
    listings.wait_for(lambda: "requests_in_flight 0.0" in listings.get("/metrics").text)
