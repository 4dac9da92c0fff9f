"""uvicorn, started and stopped by us: it does not touch signals, and its listening socket is given to it."""

import asyncio
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn

from mlflywheel.serving.http_protocol import BoundedHttpProtocol

_POLL_SECONDS = 0.01


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class WebServer:
    """An HTTP server on a listening socket.

    Args:
        app: An ASGI application.
        listening: Its socket, which the server closes.
        keep_alive_seconds: How long an idle connection stays open.
    """

    def __init__(self, app: Any, listening: socket.socket, keep_alive_seconds: int = 65) -> None:
        self._config = uvicorn.Config(
            app,
            http=BoundedHttpProtocol,
            log_config=None,
            access_log=False,
            server_header=False,
            lifespan="off",
            ws="none",
            timeout_keep_alive=keep_alive_seconds,
        )
        self._server = _Server(self._config)
        self._listening = listening
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Take connections."""
        self._task = asyncio.create_task(self._server.serve(sockets=[self._listening]))
        while not self._server.started and not self._task.done():
            await asyncio.sleep(_POLL_SECONDS)

    async def stop(self, grace_seconds: float) -> None:
        """Take no more connections, wait for running requests, and cut off those that last longer than the grace."""
        if self._task is None:
            self._listening.close()
            return
        # 0 would mean to wait for ever.
        self._config.timeout_graceful_shutdown = max(1, int(grace_seconds))
        self._server.should_exit = True
        await self._task
