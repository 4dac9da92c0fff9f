"""The load generator: clients that each send one request after the other, over connections that stay open.

    python -m benchmarks.serving.load < plan.json

The plan names the port, the requests, the number of clients and the seconds; the result is JSON too. It is a process
of its own, so that it can be kept on another core than the server. HTTP is written by hand on asyncio's transports,
because usual clients need more processor time for a small request than the servers that are measured.
"""

import asyncio
import base64
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import cycle
from typing import Any

_HEAD_END = b"\r\n\r\n"
_LENGTH = b"content-length:"
GRPC_METHOD = "/inference.GRPCInferenceService/ModelInfer"


@dataclass
class Tally:
    """Answers between two moments of the clock.

    Args:
        start: Answers before it are warm-up.
        end: No request is sent after it.
        most_seconds: For the whole measure; `end` waits for `fewest` answers until then.
        fewest: Answers that are wanted.
    """

    start: float
    end: float
    most_seconds: float
    fewest: int
    seconds: list[float] = field(default_factory=list)
    answered: list[float] = field(default_factory=list)
    failures: int = 0
    total: int = 0

    def note(self, sent: float, *, good: bool) -> bool:
        """Count an answer; return whether to send another request."""
        now = time.perf_counter()
        self.total += 1
        if sent >= self.start:
            if good:
                self.seconds.append(now - sent)
                self.answered.append(now)
            else:
                self.failures += 1
        if now < self.end:
            return True
        return len(self.seconds) < self.fewest and now < self.start + self.most_seconds


class _HttpClient(asyncio.Protocol):
    """One connection."""

    def __init__(self, next_request: Callable[[], bytes], tally: Tally) -> None:
        self._next_request = next_request
        self._tally = tally
        self._buffer = bytearray()
        self._missing: int | None = None
        self._good = False
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._send()

    def _send(self) -> None:
        self._buffer.clear()
        self._missing = None
        self._sent = time.perf_counter()
        self._transport.write(self._next_request())

    def data_received(self, data: bytes) -> None:
        if self._missing is None:
            self._buffer += data
            end = self._buffer.find(_HEAD_END)
            if end < 0:
                return
            head = bytes(self._buffer[:end]).lower()
            place = head.index(_LENGTH) + len(_LENGTH)
            self._missing = int(head[place:].split(b"\r\n", 1)[0]) - (len(self._buffer) - end - len(_HEAD_END))
            self._good = head.startswith(b"http/1.1 200")
        else:
            self._missing -= len(data)
        if self._missing > 0:
            return
        if self._tally.note(self._sent, good=self._good):
            self._send()
        else:
            self._transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        if self.done.done():
            return
        if error is not None or self._missing != 0:
            self.done.set_exception(ConnectionError(f"the server closed a connection: {error}"))
        else:
            self.done.set_result(None)


async def _send_http(port: int, next_request: Callable[[], bytes], tally: Tally) -> None:
    loop = asyncio.get_running_loop()
    _, client = await loop.create_connection(lambda: _HttpClient(next_request, tally), "127.0.0.1", port)
    await client.done


async def _send_grpc(port: int, next_request: Callable[[], bytes], tally: Tally) -> None:
    import grpc

    # A connection of its own, as a client elsewhere would have; messages are neither built nor read here.
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1)]
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=options) as channel:
        call = channel.unary_unary(GRPC_METHOD)
        going = True
        while going:
            sent = time.perf_counter()
            try:
                await call(next_request())
                good = True
            except grpc.aio.AioRpcError:
                good = False
            going = tally.note(sent, good=good)


async def measure(plan: dict[str, Any]) -> dict[str, Any]:
    """Send requests, and return what came back.

    Args:
        plan: `port`, `requests` (base64 of whole HTTP requests or of gRPC messages, sent in turns), `grpc`, `clients`,
            `seconds`, `warm_up_seconds`, `fewest`, `most_seconds`.

    Returns:
        `requests_per_second`, `milliseconds` of each answer, `failures`, `seconds` that were measured, `total` answers
        with the warm-up's, and `generator_cpu`, the share of the time for which the generator itself computed.
    """
    requests = cycle([base64.b64decode(request) for request in plan["requests"]])
    start = time.perf_counter() + plan["warm_up_seconds"]
    tally = Tally(start, start + plan["seconds"], plan["most_seconds"], plan["fewest"])
    send = _send_grpc if plan["grpc"] else _send_http
    computed = time.process_time()
    began = time.perf_counter()
    await asyncio.gather(*(send(plan["port"], lambda: next(requests), tally) for _ in range(plan["clients"])))
    generator_cpu = (time.process_time() - computed) / (time.perf_counter() - began)
    # From the first answer that counts to the last before clients began to stop: all of them were at work.
    answered = sorted(tally.answered)
    last = max(1, len(answered) - plan["clients"])
    span = answered[last] - answered[0] if last < len(answered) else answered[-1] - tally.start
    return {
        "requests_per_second": last / span,
        "milliseconds": [round(1e3 * seconds, 3) for seconds in tally.seconds],
        "failures": tally.failures,
        "seconds": span,
        "total": tally.total,
        "generator_cpu": generator_cpu,
    }


def main() -> None:
    """Read a plan from standard input, and print the result."""
    import uvloop

    plan = json.load(sys.stdin)
    # gRPC's own event engine works beside asyncio's usual loop at least as well.
    run = asyncio.run if plan["grpc"] else uvloop.run
    json.dump(run(measure(plan)), sys.stdout)


if __name__ == "__main__":
    main()
