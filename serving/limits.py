"""What keeps one client from taking the whole server: bounded bodies, a bounded queue, bounded threads."""

import asyncio
import time
from collections.abc import Awaitable, Callable, MutableMapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from mlflywheel.serving.metrics import IN_FLIGHT
from mlflywheel.serving.predictor import Exchange
from mlflywheel.serving.refusals import BusyError, GoneError, SlowBodyError, TooLargeError

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
_Answer = TypeVar("_Answer")

_BODY_TIMEOUT_SECONDS = 30.0
#: Bodies that are being received may hold this many times the largest body.
_RECEIVING_BODIES = 32
#: After a refusal, this much of a body that is still being sent is read and thrown away, so that the client, which may
#: not look for an answer before it has sent everything, finds the answer and not a reset connection.
_DISCARDED_BYTES = 256 * 1024 * 1024
_DISCARD_SECONDS = 10.0


class Pool:
    """Threads that answer requests, with a limit on those that wait.

    Decoding, predicting and encoding all run here, so that health checks are answered while a request computes.

    Args:
        threads: Requests computed at once.
        max_in_flight: Requests computed or waiting.
    """

    def __init__(self, threads: int, max_in_flight: int) -> None:
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="predict")
        self._max_in_flight = max_in_flight
        self.in_flight = 0

    def check_free(self) -> None:
        """Refuse now what `run` would refuse.

        Raises:
            BusyError: Too many requests wait already.
        """
        if self.in_flight >= self._max_in_flight:
            raise BusyError(
                "server",
                f"{self.in_flight} requests wait",
                f"at most {self._max_in_flight} are taken at a time",
                "repeat the request in a second, or add replicas",
            )

    async def run(self, work: Callable[[], _Answer], exchange: Exchange) -> _Answer:
        """Run in a thread. A caller that is cancelled while it waits takes its work out of the queue.

        Raises:
            BusyError: Too many requests wait already.
        """
        self.check_free()
        loop = asyncio.get_running_loop()
        self._count(1)
        submitted = time.perf_counter()

        def timed() -> _Answer:
            exchange.seconds["queue"] = time.perf_counter() - submitted
            return work()

        future: Future[_Answer] = self._executor.submit(timed)
        # A place is free when the thread is, which is later than the end of a caller that gave up.
        future.add_done_callback(lambda _: _call_if_open(loop, self._count, -1))
        return await asyncio.wrap_future(future)

    def _count(self, change: int) -> None:
        self.in_flight += change
        IN_FLIGHT.inc(change)


def _call_if_open(loop: asyncio.AbstractEventLoop, call: Callable[[int], None], value: int) -> None:
    if not loop.is_closed():
        loop.call_soon_threadsafe(call, value)


class BodyReader:
    """Receives bodies, none larger than the limit, and not too many large ones at a time.

    Args:
        max_bytes: Largest body.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._receiving_bytes = 0

    async def read(self, headers: dict[bytes, bytes], receive: Receive) -> bytes:
        """Receive a body, whether its length was announced or not.

        Raises:
            TooLargeError: It is larger than the limit, announced or not; the rest was not read.
            BusyError: Too many bytes of other bodies are being received.
            SlowBodyError: It did not arrive within 30 seconds.
            GoneError: The client closed the connection.
        """
        announced = headers.get(b"content-length", b"")
        if announced.isdigit() and int(announced) > self._max_bytes:
            raise self._too_large(f"{int(announced)} bytes")
        chunks: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(_BODY_TIMEOUT_SECONDS):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise GoneError("body", "the connection was closed", "a whole body", "send it again")
                    chunk = message.get("body", b"")
                    size += len(chunk)
                    self._receiving_bytes += len(chunk)
                    chunks.append(chunk)
                    if size > self._max_bytes:
                        raise self._too_large(f"more than {self._max_bytes} bytes")
                    if self._receiving_bytes > _RECEIVING_BODIES * self._max_bytes:
                        raise BusyError(
                            "server", "too many large bodies at a time", "memory is limited", "repeat in a second"
                        )
                    if not message.get("more_body", False):
                        return b"".join(chunks)
        except TimeoutError:
            raise SlowBodyError(
                "body",
                f"{size} bytes after {_BODY_TIMEOUT_SECONDS:.0f} seconds",
                "the whole body is needed by then",
                "send it faster, or split it",
            ) from None
        finally:
            self._receiving_bytes -= size

    def _too_large(self, seen: str) -> TooLargeError:
        return TooLargeError(
            "body", seen, f"at most {self._max_bytes} bytes are taken", "split it into several requests"
        )


async def discard_body(receive: Receive) -> bool:
    """Read the rest of a body without keeping it, for a while; return whether it ended."""
    size = 0
    try:
        async with asyncio.timeout(_DISCARD_SECONDS):
            while size <= _DISCARDED_BYTES:
                message = await receive()
                if message["type"] == "http.disconnect" or not message.get("more_body", False):
                    return True
                size += len(message.get("body", b""))
    except TimeoutError:
        pass
    return False
