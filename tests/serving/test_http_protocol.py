"""What is no HTTP, what does not end, and what other servers lose."""

import asyncio
import json
import socket
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from contextlib import contextmanager
from threading import Event, Thread
from typing import Any

import pytest

from mlflywheel.serving import http_protocol
from mlflywheel.serving.web_server import WebServer

HEAD = b"POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n"
GOOD = HEAD + b"\r\nhello"


async def echo(
    scope: MutableMapping[str, Any],
    receive: Callable[[], Awaitable[Any]],
    send: Callable[[Any], Awaitable[None]],
) -> None:
    body, more = b"", True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        body += message.get("body", b"")
        more = message.get("more_body", False)
    await asyncio.sleep(0.05)
    headers = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


@contextmanager
def serving(keep_alive_seconds: int = 65) -> Iterator[tuple[str, int]]:
    """Serve `echo` from a thread."""
    listening = socket.create_server(("127.0.0.1", 0))
    address = listening.getsockname()
    ended = Event()

    async def run() -> None:
        web = WebServer(echo, listening, keep_alive_seconds)
        await web.start()
        while not ended.is_set():
            await asyncio.sleep(0.01)
        await web.stop(1)

    thread = Thread(target=lambda: asyncio.run(run()))
    thread.start()
    try:
        yield address
    finally:
        ended.set()
        thread.join()


@pytest.fixture(scope="module")
def address() -> Iterator[tuple[str, int]]:
    with serving() as found:
        yield found


def ask(address: tuple[str, int], *parts: bytes, half_close: bool = False) -> bytes:
    """Send, and return everything until the server closes its side."""
    with socket.create_connection(address, timeout=5) as connection:
        for part in parts:
            connection.sendall(part)
        if half_close:
            connection.shutdown(socket.SHUT_WR)
        answer = b""
        while chunk := connection.recv(65536):
            answer += chunk
    return answer


def error_of(answer: bytes) -> str:
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"\r\nconnection: close" in head
    assert b"\r\nx-request-id: " in head
    return str(json.loads(body)["error"])


@pytest.mark.parametrize("garbage", [b"\x16\x03\x01\x02", b"GE T / HTTP/1.1\r\n\r\n", b"CONNECT a:1 HTTP/1.1\r\n\r\n"])
def test_what_is_no_http_gets_an_error_in_json(address: tuple[str, int], garbage: bytes) -> None:
    answer = ask(address, garbage)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert error_of(answer).startswith("request: not HTTP/1.1; ")


def test_a_client_that_sends_much_garbage_finds_its_answer(address: tuple[str, int]) -> None:
    for _ in range(20):
        assert ask(address, b"\x00" * 3_000_000).startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize(
    "endless", [b"GET /" + b"a" * 300_000, HEAD + b"x: " + b"v" * 300_000, HEAD + b"x: 1\r\n" * 50_000 + b"\r\nhello"]
)
def test_a_head_has_a_limit(address: tuple[str, int], endless: bytes) -> None:
    answer = ask(address, endless)
    assert answer.startswith(b"HTTP/1.1 431 ")
    assert "more than 65536 bytes" in error_of(answer)


def test_a_head_under_the_limit_is_taken_in_pieces(address: tuple[str, int]) -> None:
    long = HEAD + b"connection: close\r\nx: " + b"v" * 60_000 + b"\r\n\r\nhello"
    assert ask(address, *(long[start : start + 7000] for start in range(0, len(long), 7000))).endswith(b"\r\n\r\nhello")


def test_a_head_must_arrive_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_protocol, "HEAD_SECONDS", 0.2)
    with serving() as address:
        answer = ask(address, GOOD[:20])
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert "a head that does not end" in error_of(answer)
        # A body has a limit of its own, elsewhere; and a request that came whole is not late.
        assert ask(address, GOOD, half_close=True).endswith(b"hello")


def test_a_connection_that_stays_silent_is_closed() -> None:
    with serving(keep_alive_seconds=1) as address:
        assert ask(address) == b""


def test_a_request_is_answered_before_the_garbage_behind_it(address: tuple[str, int]) -> None:
    answer = ask(address, GOOD + b"\x00garbage")
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert answer.endswith(b"hello")
    assert answer.count(b"HTTP/1.1") == 1


def test_garbage_inside_a_body_is_answered_once(address: tuple[str, int]) -> None:
    chunked = b"POST /echo HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\nzz\r\n"
    answer = ask(address, chunked)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert answer.count(b"HTTP/1.1 ") == 1


def test_a_client_that_closed_its_half_gets_its_answer(address: tuple[str, int]) -> None:
    assert ask(address, GOOD, half_close=True).endswith(b"\r\n\r\nhello")
    assert ask(address, GOOD[:-1], half_close=True) == b""


@pytest.mark.parametrize("offer", [b"h2c", b"websocket"])
@pytest.mark.parametrize("cut", [0, 30, 110, -3])
def test_an_offer_to_upgrade_does_not_lose_the_body(address: tuple[str, int], offer: bytes, cut: int) -> None:
    lines = b"connection: Upgrade, HTTP2-Settings\r\nupgrade: " + offer + b"\r\nhttp2-settings: AAMAAABkAAQ\r\n"
    sent = HEAD + lines + b"\r\nhello"
    # The connection goes on: the second request ends it.
    last = GOOD.replace(b"host: x", b"host: x\r\nconnection: close")
    answer = ask(address, sent[:cut], sent[cut:] + last)
    assert answer.count(b"HTTP/1.1 200 ") == 2
    assert answer.count(b"\r\n\r\nhello") == 2
