"""Slow, large and many requests, and what is told about them in logs and metrics."""

import asyncio
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from running_server import RunningServer

Start = Callable[..., RunningServer]
GOOD = {"terms": ["emergency plumber", "drain cleaning"]}


def read_metrics(server: RunningServer) -> dict[tuple[str, ...], float]:
    """Return values by name and label values."""
    families = text_string_to_metric_families(server.get("/metrics").text)
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }


def send_raw(server: RunningServer, request: bytes, wait_seconds: float = 10.0) -> bytes:
    """Send bytes, and return what comes back until the server is done."""
    host, _, port = server.url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=wait_seconds) as connection:
        connection.sendall(request)
        answer = b""
        while chunk := connection.recv(65536):
            answer += chunk
            head, _, body = answer.partition(b"\r\n\r\n")
            length = next((line for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")), None)
            if length and len(body) >= int(length.split(b":")[1]):
                break
    return answer


def test_health_answers_while_a_large_request_runs(server: RunningServer) -> None:
    large = [{"terms": [f"word{row} number{term} plumber" for term in range(150)]} for row in range(200)]
    statuses: list[int] = []
    seconds: list[float] = []
    with httpx.Client(base_url=server.url) as client:
        client.get("/v2/health/live")
        request = threading.Thread(target=lambda: statuses.append(server.predict(large).status_code))
        request.start()
        while request.is_alive():
            before = time.perf_counter()
            assert client.get("/v2/models/campaigns/ready").status_code == 200
            seconds.append(time.perf_counter() - before)
        request.join()
    assert statuses == [200]
    # A blocked event loop would let one or two probes through, the last of them at the end.
    assert len(seconds) > 20
    # The machine itself may pause a process now and then.
    assert sorted(seconds)[len(seconds) * 95 // 100] < 0.1


def test_a_body_over_the_limit_is_refused_before_it_is_read(server: RunningServer) -> None:
    head = b"POST /v1/models/campaigns:predict HTTP/1.1\r\nHost: x\r\nContent-Length: 1073741824\r\n\r\n"
    answer = send_raw(server, head)
    assert answer.startswith(b"HTTP/1.1 413")
    assert b"1073741824 bytes; at most 1048576 bytes are taken" in answer


def test_a_large_body_that_is_sent_whole_still_gets_its_answer(server: RunningServer) -> None:
    for _ in range(3):
        response = httpx.post(f"{server.url}/v1/models/campaigns:predict", content=b"x" * 20_000_000)
        assert response.status_code == 413


def test_a_chunked_body_over_the_limit_is_refused(server: RunningServer) -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(100):
            yield b"x" * 100_000

    response = httpx.post(f"{server.url}/v2/models/campaigns/infer", content=chunks())
    assert response.status_code == 413
    assert "more than 1048576 bytes" in response.json()["error"]


def test_a_client_that_waits_for_permission_is_refused_without_a_body(server: RunningServer) -> None:
    head = b"POST /v1/models/campaigns:predict HTTP/1.1\r\nHost: x\r\nContent-Length: 9999999\r\n"
    answer = send_raw(server, head + b"Expect: 100-continue\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 413")
    assert b"100 Continue" not in answer


@pytest.mark.parametrize("length", [b"-5", b"abc", b"5, 6", b"99999999999999999999999999"])
def test_a_content_length_that_is_no_number_is_refused(server: RunningServer, length: bytes) -> None:
    answer = send_raw(
        server, b"POST /v2/models/m/infer HTTP/1.1\r\nHost: x\r\nContent-Length: " + length + b"\r\n\r\n{}"
    )
    assert answer.startswith(b"HTTP/1.1 4")


def test_a_client_that_leaves_in_the_middle_harms_nobody(server: RunningServer) -> None:
    host, _, port = server.url.removeprefix("http://").partition(":")
    before = len(server.events("request"))
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(b"POST /v1/models/campaigns:predict HTTP/1.1\r\nHost: x\r\nContent-Length: 500\r\n\r\n{")
    line = server.wait_for(lambda: server.events("request")[before:])[0]
    assert (line["status"], line["refusal"]) == (499, "GoneError")
    assert server.predict([GOOD]).status_code == 200


def test_too_many_requests_get_503_and_the_others_their_answer(start: Start) -> None:
    running = start("--max_concurrency=2", "--predict_threads=1", "--max_rows=1000").wait_until_ready()
    slow = [{"terms": [f"word{row} number{term} plumber" for term in range(100)]} for row in range(300)]

    async def ask() -> list[httpx.Response]:
        async with httpx.AsyncClient(timeout=60) as client:
            url = f"{running.url}/v1/models/campaigns:predict"
            return await asyncio.gather(*(client.post(url, json={"instances": slow}) for _ in range(8)))

    answers = asyncio.run(ask())
    refused = [answer for answer in answers if answer.status_code == 503]
    assert {answer.status_code for answer in answers} == {200, 503}
    assert all(answer.headers["retry-after"] == "1" for answer in refused)
    assert "at most 2 are taken at a time" in refused[0].json()["error"]
    values = read_metrics(running)
    assert values["mlflywheel_requests_total", "503", "v1"] == len(refused)
    assert values["mlflywheel_requests_total", "200", "v1"] == 8 - len(refused)
    assert values[("mlflywheel_requests_in_flight",)] == 0


def test_a_request_is_one_line_without_its_content(server: RunningServer) -> None:
    header = {"x-request-id": "my-id-1"}
    response = server.predict([{"campaign_id": "private-name", "terms": ["private-term"]}], headers=header)
    assert response.headers["x-request-id"] == "my-id-1"
    server.predict([{"private-field": 1}], headers={"x-request-id": "my-id-2"})
    lines = server.wait_for(lambda: [line for line in server.events("request") if "my-id" in line["request_id"]][1:2])
    good = next(line for line in server.events("request") if line["request_id"] == "my-id-1")
    assert (good["protocol"], good["model"], good["rows"], good["status"]) == ("v1", "campaigns", 1, 200)
    assert set(good["milliseconds"]) == {"queue", "decode", "predict", "encode", "total"}
    assert sum(good["milliseconds"].values()) <= 2 * good["milliseconds"]["total"] + 0.1
    assert (lines[0]["status"], lines[0]["refusal"]) == (400, "BadRequestError")
    assert "private" not in str(server.log)


def test_an_id_that_cannot_stand_in_a_line_is_replaced(server: RunningServer) -> None:
    response = server.predict([GOOD], headers={"x-request-id": "a b"})
    assert len(response.headers["x-request-id"]) == 32


def test_metrics_count_rows_phases_unknown_words_and_notes(server: RunningServer) -> None:
    before = read_metrics(server)
    server.predict([GOOD, {"terms": ["qqqq"]}, {"terms": []}])
    server.predict([{"terms": 5}])
    after = read_metrics(server)

    def grown(*key: str) -> float:
        return after[key] - before.get(key, 0.0)

    assert grown("mlflywheel_requests_total", "200", "v1") == 1
    assert grown("mlflywheel_requests_total", "400", "v1") == 1
    assert grown("mlflywheel_request_rows_total", "v1") == 3
    assert grown("mlflywheel_fallbacks_total") == 2
    # Two rows have words: one knows them all, one none.
    assert grown("mlflywheel_unknown_share_count") == 2
    assert grown("mlflywheel_unknown_share_sum") == 1.0
    for phase in ("queue", "decode", "total"):
        assert grown("mlflywheel_request_seconds_count", phase, "v1") == 2
    for phase in ("predict", "encode"):
        assert grown("mlflywheel_request_seconds_count", phase, "v1") == 1
    info = [key for key in after if key[0] == "mlflywheel_model_info"]
    assert len(info) == 1
    assert {"campaigns", "7", "cpu"} < set(info[0])


def test_workers_share_the_port_and_add_up_their_metrics(start: Start, grpc_messages: Any) -> None:
    import grpc
    from kserve.protocol.grpc.grpc_predict_v2_pb2_grpc import GRPCInferenceServiceStub

    running = start("--workers=2")
    running.wait_for(lambda: running.process.poll() is not None or len(running.events("ready")) == 2)
    assert running.process.poll() is None, running.other_lines
    running.wait_for(lambda: running.get("/v2/models/campaigns/ready").status_code == 200)

    async def ask() -> set[int]:
        async with httpx.AsyncClient(timeout=60, limits=httpx.Limits(max_keepalive_connections=0)) as client:
            url = f"{running.url}/v1/models/campaigns:predict"
            answers = [await asyncio.gather(*(client.post(url, json={"instances": [GOOD] * 3}) for _ in range(8)))]
            answers += [await asyncio.gather(*(client.post(url, json={"instances": [GOOD] * 3}) for _ in range(12)))]
            return {answer.status_code for group in answers for answer in group}

    assert asyncio.run(ask()) == {200}
    request = grpc_messages.ModelInferRequest(model_name="campaigns")
    item = request.inputs.add(name="terms", datatype="BYTES", shape=[1])
    item.contents.bytes_contents.append(b"[]")
    for _ in range(4):
        with grpc.insecure_channel(running.grpc_address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
            GRPCInferenceServiceStub(channel).ModelInfer(request, timeout=10)
    for _ in range(5):
        values = read_metrics(running)
        assert values["mlflywheel_requests_total", "200", "v1"] == 20
        assert values["mlflywheel_request_rows_total", "v1"] == 60
        assert values["mlflywheel_requests_total", "OK", "grpc"] == 4
        assert values[("mlflywheel_requests_in_flight",)] == 0
    # A worker that dies is replaced.
    listening = [line["pid"] for line in running.events("listening")]
    workers = [pid for pid in listening if pid != running.process.pid]
    os.kill(workers[0], signal.SIGKILL)
    running.wait_for(lambda: len(running.events("ready")) == 3)
    assert running.predict([GOOD]).status_code == 200
    assert running.stop() == 0
    for pid in workers:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_workers_end_when_the_model_cannot_be_loaded(start: Start, tmp_path: Any) -> None:
    running = start("--workers=2", folder=tmp_path / "nothing")
    assert running.process.wait(60) == 1
    running.stop()
    assert "no such folder" in running.other_lines[0]
