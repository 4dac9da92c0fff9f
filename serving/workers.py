"""Several worker processes on one port, watched by a parent.

Each worker loads the model by itself. The HTTP socket is shared, so a connection goes to a worker that is free to
accept it; for gRPC all listen on the same port, and the kernel divides connections among them. Workers start to accept
when all of them are loaded: until then the parent answers that the server is alive and not ready, so readiness never
flickers. A worker that dies is replaced. If a worker cannot load the model at the start, all end with its exit code.
"""

import asyncio
import os
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import fields, replace
from typing import Any

from prometheus_client.multiprocess import mark_process_dead

from mlflywheel.serving.arguments import ServeArguments
from mlflywheel.serving.server import FORCED_EXIT_CODE, LOADED, START, bind
from mlflywheel.serving.web_server import WebServer

_MULTIPROCESS_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
_FIRST_PAUSE_SECONDS = 1.0
_LONGEST_PAUSE_SECONDS = 30.0
#: Beyond the workers' own deadline.
_SPARE_SECONDS = 3.0


def supervise(arguments: ServeArguments, listening: socket.socket) -> int:
    """Run the workers until a signal comes; return the exit code.

    Raises:
        UsageError: The gRPC port is taken.
    """
    from mlflywheel.serving.logs import configure_logs

    configure_logs(arguments.log_format)
    if arguments.enable_grpc:
        # Workers share the port, so none of them would notice that another server has it.
        probe = bind(arguments.host, arguments.grpc_port)
        arguments = replace(arguments, grpc_port=probe.getsockname()[1])
        probe.close()
    folder = tempfile.mkdtemp(prefix="mlflywheel-metrics-")
    try:
        return asyncio.run(_Parent(arguments, listening, folder).run())
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class _Worker:
    """One worker process, and the parent's end of the socket between them."""

    def __init__(self, process: asyncio.subprocess.Process, link: socket.socket) -> None:
        self.process = process
        self.link = link
        self.ended = asyncio.ensure_future(process.wait())
        self.loaded = asyncio.ensure_future(self._wait_until_loaded())

    async def _wait_until_loaded(self) -> bool:
        return await asyncio.get_running_loop().sock_recv(self.link, 1) == LOADED

    async def start(self) -> None:
        """Let it take connections."""
        await asyncio.get_running_loop().sock_sendall(self.link, START)

    def signal(self, number: signal.Signals) -> None:
        if not self.ended.done():
            self.process.send_signal(number)


class _Parent:
    def __init__(self, arguments: ServeArguments, listening: socket.socket, metrics_folder: str) -> None:
        self._arguments = arguments
        self._listening = listening
        self._metrics_folder = metrics_folder
        self._stopping = asyncio.Event()
        self._signal = signal.SIGTERM
        self._workers: list[_Worker] = []

    async def run(self) -> int:
        from mlflywheel.serving.logs import log_event

        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop, number)
        waiting_room = WebServer(_answer_while_loading, self._listening.dup())
        await waiting_room.start()
        log_event(
            "listening",
            http_port=self._listening.getsockname()[1],
            grpc_port=self._arguments.grpc_port if self._arguments.enable_grpc else None,
            workers=self._arguments.workers,
            pid=os.getpid(),
        )
        for _ in range(self._arguments.workers):
            self._workers.append(await self._spawn())
        code = await self._wait_until_all_loaded()
        await waiting_room.stop(0)
        if code is None and not self._stopping.is_set():
            for worker in self._workers:
                await worker.start()
            watching = [asyncio.create_task(self._keep_alive(place)) for place in range(len(self._workers))]
            await self._stopping.wait()
            for task in watching:
                task.cancel()
        # While this process held the socket open, connections would wait for nobody.
        self._listening.close()
        await self._end_workers()
        log_event("stopped")
        return code or 0

    async def _spawn(self) -> _Worker:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        descriptors = (self._listening.fileno(), theirs.fileno())
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "mlflywheel.serving",
            *list_arguments(replace(self._arguments, workers=1, worker_sockets=descriptors)),
            pass_fds=descriptors,
            env={**os.environ, _MULTIPROCESS_VARIABLE: self._metrics_folder},
            # Ctrl-C reaches the whole group, and the parent passes it on itself.
            start_new_session=True,
        )
        theirs.close()
        return _Worker(process, ours)

    async def _wait_until_all_loaded(self) -> int | None:
        """Return None when all are loaded or the server is stopped, else the exit code of one that failed."""
        stopped = asyncio.ensure_future(self._stopping.wait())
        pending = {worker.loaded for worker in self._workers}
        while pending and not stopped.done():
            done, _ = await asyncio.wait({*pending, stopped}, return_when=asyncio.FIRST_COMPLETED)
            for worker in self._workers:
                if worker.loaded in done and not (worker.loaded.exception() is None and worker.loaded.result()):
                    stopped.cancel()
                    return await worker.ended or 1
            pending -= done
        stopped.cancel()
        return None

    async def _keep_alive(self, place: int) -> None:
        """Replace a worker that dies, after a pause that grows while its successors die too."""
        from mlflywheel.serving.logs import log_warning

        pause = _FIRST_PAUSE_SECONDS
        while True:
            worker = self._workers[place]
            # Shielded, because a cancelled wait would take the process's end with it.
            code = await asyncio.shield(worker.ended)
            mark_process_dead(worker.process.pid, self._metrics_folder)  # type: ignore[no-untyped-call]
            worker.link.close()
            log_warning("worker_died", pid=worker.process.pid, code=code, pause_seconds=pause)
            await asyncio.sleep(pause)
            successor = self._workers[place] = await self._spawn()
            await asyncio.wait({successor.loaded, successor.ended}, return_when=asyncio.FIRST_COMPLETED)
            if successor.loaded.done() and successor.loaded.exception() is None and successor.loaded.result():
                await successor.start()
                pause = _FIRST_PAUSE_SECONDS
            else:
                pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)

    async def _end_workers(self) -> None:
        for worker in self._workers:
            worker.signal(self._signal)
        ended = [worker.ended for worker in self._workers]
        _, running = await asyncio.wait(ended, timeout=self._arguments.drain_deadline_seconds + _SPARE_SECONDS)
        for worker in self._workers:
            if worker.ended in running:
                worker.signal(signal.SIGKILL)
            worker.loaded.cancel()
            await worker.ended
            worker.link.close()

    def _stop(self, number: signal.Signals) -> None:
        if self._stopping.is_set():
            for worker in self._workers:
                worker.signal(signal.SIGKILL)
            os._exit(FORCED_EXIT_CODE)
        self._signal = number
        self._stopping.set()


def list_arguments(arguments: ServeArguments) -> list[str]:
    """Return the command line that `parse_arguments` reads back.

    >>> from pathlib import Path
    >>> list_arguments(ServeArguments("m", Path("/mnt/models"), enable_grpc=False))[:3]
    ['--model_name=m', '--model_dir=/mnt/models', '--host=0.0.0.0']
    """
    values = []
    for part in fields(arguments):
        value = getattr(arguments, part.name)
        if value is not None:
            text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
            values.append(f"--{part.name}={text}")
    return values


async def _answer_while_loading(
    scope: MutableMapping[str, Any], receive: Any, send: Callable[[MutableMapping[str, Any]], Awaitable[None]]
) -> None:
    """Answer that the server is alive and not ready."""
    alive = scope["path"] in ("/", "/v2/health/live")
    body = b'{"live":true,"status":"alive"}' if alive else b'{"error":"the model is still loading","ready":false}'
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    # The workers take the next connections; this one belongs to the parent.
    headers += [(b"connection", b"close")] + ([] if alive else [(b"retry-after", b"1")])
    await send({"type": "http.response.start", "status": 200 if alive else 503, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})
