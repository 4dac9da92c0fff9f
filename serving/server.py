"""The life of a predictor process: listen, load, serve, drain, end.

1. The port is open at once, and liveness is answered; readiness is not.
2. The model is loaded in a thread: checksums, then the warm-up prediction. If that fails, the process ends with code 1
   and one line on standard error.
3. Readiness says yes.
4. SIGTERM: readiness says no at once. Requests are still taken for `drain_delay_seconds`, because routers learn of the
   end later than the process does, and every answer asks the client to close its connection. Then the ports are
   closed, running requests are finished (until `drain_deadline_seconds`), and the process ends with code 0.
   SIGINT (Ctrl-C) skips the delay; a second signal ends the process at once.
"""

import asyncio
import gc
import importlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Coroutine
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar

from mlflywheel.errors import MlflywheelError, UsageError
from mlflywheel.serving.arguments import ServeArguments

if TYPE_CHECKING:
    from mlflywheel.serving.predictor import Predictor

#: What a worker tells its parent, and the parent its workers.
LOADED = b"L"
START = b"S"
#: Exit code after a second signal.
FORCED_EXIT_CODE = 130

#: How long a computing thread may keep the event loop from running; Python's own 5 ms would add up in a health check.
_SWITCH_SECONDS = 0.0005

_CLIENT = "KServeClient"
_CLIENT_MODULE = "kserve.api.kserve_client"

_Result = TypeVar("_Result")


def serve(arguments: ServeArguments) -> int:
    """Serve until a signal comes.

    Call `pin_threads` before anything imports numpy. With several workers this process only watches them.

    Args:
        arguments: What to serve, and where.

    Returns:
        The exit code: 0 after a signal, 1 if the model cannot be loaded.

    Raises:
        UsageError: A port is taken.
    """
    if arguments.worker_sockets is not None:
        return _serve_worker(arguments, *arguments.worker_sockets)
    listening = bind(arguments.host, arguments.http_port)
    if arguments.workers > 1:
        from mlflywheel.serving.workers import supervise

        return supervise(arguments, listening)
    return _run(_Process(arguments, listening))


def bind(host: str, port: int) -> socket.socket:
    """Return a listening socket.

    Raises:
        UsageError: The port is taken, or the address is not this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server(
            (host, port), family=family, backlog=2048, dualstack_ipv6=family == socket.AF_INET6 and host == "::"
        )
    except OSError as error:
        raise UsageError(
            f"{host} port {port}",
            error.strerror or str(error),
            "a free port of this machine is needed",
            "choose another --http_port, --grpc_port or --host",
        ) from error


def _serve_worker(arguments: ServeArguments, listening: int, parent: int) -> int:
    """Serve as one of several workers: the socket is shared, and the parent says when to start."""
    return _run(_Process(arguments, socket.socket(fileno=listening), socket.socket(fileno=parent)))


def _run(process: "_Process") -> int:
    import uvloop

    sys.setswitchinterval(_SWITCH_SECONDS)
    try:
        code = uvloop.run(process.run())
    except MlflywheelError as error:
        print(error, file=sys.stderr, flush=True)
        code = error.exit_code
    if process.has_running_threads:
        # Threads cannot be cancelled, and the interpreter would wait for them.
        sys.stderr.flush()
        os._exit(code)
    return code


class _Process:
    """One process that loads and serves the model."""

    def __init__(
        self, arguments: ServeArguments, listening: socket.socket, parent: socket.socket | None = None
    ) -> None:
        _import_kserve()
        from mlflywheel.serving.grpc_service import GrpcServer, InferenceService
        from mlflywheel.serving.http_app import HttpApp
        from mlflywheel.serving.kserve_model import ModelDataPlane, ServedModel
        from mlflywheel.serving.limits import Pool
        from mlflywheel.serving.logs import configure_logs
        from mlflywheel.serving.web_server import WebServer

        configure_logs(arguments.log_format)
        self._arguments = arguments
        self._parent = parent
        self._listening = listening
        self._started = time.perf_counter()
        self._signal = signal.SIGTERM
        self._stopping = asyncio.Event()
        self.has_running_threads = False
        self._pool = Pool(arguments.predict_threads, arguments.max_concurrency)
        self._model = ServedModel(arguments.model_name, self._pool)
        plane = ModelDataPlane(self._model)
        app = HttpApp(plane, self._model, arguments.max_request_bytes)
        self._web = WebServer(app, listening, arguments.keep_alive_seconds)
        self._new_grpc: Callable[[], GrpcServer] = lambda: GrpcServer(
            InferenceService(plane, self._model),
            f"[{arguments.host}]:{arguments.grpc_port}"
            if ":" in arguments.host
            else f"{arguments.host}:{arguments.grpc_port}",
            arguments.max_request_bytes,
            shared=parent is not None,
        )
        self._grpc: GrpcServer | None = None

    async def run(self) -> int:
        from mlflywheel.serving.logs import log_event

        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop, number)
        deadline = loop.time()
        try:
            if self._parent is None:
                await self._listen()
            log_event("loading", model=self._arguments.model_name, folder=str(self._arguments.model_dir))
            if not await self._become_ready():
                return 0
            await self._stopping.wait()
            delay = self._arguments.drain_delay_seconds if self._signal == signal.SIGTERM else 0.0
            deadline = loop.time() + self._arguments.drain_deadline_seconds
            self._model.drain()
            log_event("draining", in_flight=self._pool.in_flight, delay_seconds=delay)
            await asyncio.sleep(min(delay, self._arguments.drain_deadline_seconds))
        finally:
            left = max(0.0, deadline - loop.time())
            await asyncio.gather(self._web.stop(left), self._grpc.stop(left) if self._grpc else asyncio.sleep(0))
        # The last answers were sent; their threads end a moment later.
        await asyncio.sleep(0)
        self.has_running_threads = self._pool.in_flight > 0
        log_event("stopped", cut_off=self._pool.in_flight)
        return 0

    async def _listen(self) -> None:
        from mlflywheel.serving.logs import log_event

        await self._web.start()
        if self._arguments.enable_grpc:
            self._grpc = self._new_grpc()
            try:
                await self._grpc.start()
            except RuntimeError as error:
                raise UsageError(
                    f"{self._arguments.host} port {self._arguments.grpc_port}",
                    "gRPC cannot listen there",
                    "a free port of this machine is needed",
                    "choose another --grpc_port, or write --enable_grpc=false",
                ) from error
        log_event(
            "listening",
            http_port=self._listening.getsockname()[1],
            grpc_port=self._grpc.port if self._grpc else None,
            pid=os.getpid(),
        )

    async def _become_ready(self) -> bool:
        """Load the model and take it into service; return False if the server is stopped before that."""
        from mlflywheel.serving.logs import log_event
        from mlflywheel.serving.metrics import publish

        predictor = await self._unless_stopped(self._load())
        if predictor is None:
            self.has_running_threads = True
            return False
        if self._parent is not None:
            if not await self._unless_stopped(self._wait_for_parent(self._parent)):
                return False
            await self._listen()
        # What was imported and loaded stays: a full collection that looks at all of it would stop every thread for
        # more than a tenth of a second.
        gc.collect()
        gc.freeze()
        self._model.accept(predictor)
        publish(predictor)
        log_event(
            "ready",
            model=predictor.name,
            version=predictor.version,
            hash=predictor.model_hash,
            device=predictor.device,
            **({"device_note": predictor.device_note} if predictor.device_note else {}),
            seconds=round(time.perf_counter() - self._started, 3),
        )
        return True

    async def _unless_stopped(self, work: Coroutine[Any, Any, _Result]) -> "_Result | None":
        task = asyncio.ensure_future(work)
        stopped = asyncio.ensure_future(self._stopping.wait())
        await asyncio.wait({task, stopped}, return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        if task.done():
            return task.result()
        task.cancel()
        return None

    async def _load(self) -> "Predictor":
        """Load in a thread that does not keep the process alive."""
        from mlflywheel.serving.predictor import Predictor

        loop = asyncio.get_running_loop()
        loaded: asyncio.Future[Predictor] = loop.create_future()
        arguments = self._arguments

        def tell(set_value: Callable[[Any], None], value: object) -> None:
            if not loaded.done():
                set_value(value)

        def work() -> None:
            try:
                predictor = Predictor.load(
                    arguments.model_dir,
                    arguments.model_name,
                    arguments.model_version,
                    arguments.device,
                    arguments.max_rows,
                )
            except BaseException as error:
                loop.call_soon_threadsafe(tell, loaded.set_exception, error)
            else:
                loop.call_soon_threadsafe(tell, loaded.set_result, predictor)

        threading.Thread(target=work, name="load", daemon=True).start()
        return await loaded

    async def _wait_for_parent(self, parent: socket.socket) -> bool:
        """Tell the parent that the model is loaded, and wait until it says that all workers are."""
        loop = asyncio.get_running_loop()
        parent.setblocking(False)
        await loop.sock_sendall(parent, LOADED)
        if await loop.sock_recv(parent, 1) != START:
            return False
        # From now on the parent says nothing more; its end is the end of this process.
        loop.create_task(self._stop_with(parent)).add_done_callback(lambda _: None)
        return True

    async def _stop_with(self, parent: socket.socket) -> None:
        if await asyncio.get_running_loop().sock_recv(parent, 1) == b"":
            self._stop(signal.SIGTERM)

    def _stop(self, number: signal.Signals) -> None:
        if self._stopping.is_set():
            os._exit(FORCED_EXIT_CODE)
        self._signal = number
        self._stopping.set()


def _import_kserve() -> None:
    """Import kserve without showing it our command line, which it would read as its own.

    Half of the time would go to Kubernetes' client, for kserve's KServeClient alone. A predictor has no use for it; a
    model that asks for `kserve.KServeClient` gets it then.
    """
    # gRPC's own library would write what a client sent to standard error, line ends included: a client could write log
    # lines of its own.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    is_first = "kserve" not in sys.modules
    values = sys.argv
    sys.argv = values[:1]
    if is_first:
        stand_in = ModuleType(_CLIENT_MODULE)
        vars(stand_in)[_CLIENT] = None
        sys.modules[_CLIENT_MODULE] = stand_in
    try:
        import kserve
    finally:
        sys.argv = values
        if is_first:
            del sys.modules[_CLIENT_MODULE]
    if is_first:
        vars(kserve).pop(_CLIENT, None)
        vars(kserve)["__getattr__"] = _import_client


def _import_client(name: str) -> Any:
    """Answer for an attribute that the module kserve lacks."""
    if name != _CLIENT:
        raise AttributeError(f"module 'kserve' has no attribute {name!r}")
    return getattr(importlib.import_module(_CLIENT_MODULE), _CLIENT)
