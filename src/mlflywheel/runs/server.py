"""Serve a model folder on this machine: the predictor of the containers, as a child process."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from mlflywheel.errors import MissingExtraError, MlflywheelError, ModelError, RunError, UsageError

_MESSAGE = re.compile(r"(.+?): (.+?); (.+)\. Fix: (.+)\.")
_READY_SECONDS = 120.0
_STOP_SECONDS = 30.0


EventCallback = Callable[[Mapping[str, Any]], None]


def ignore_event(event: Mapping[str, Any]) -> None:
    """Do nothing: the callback for callers that do not watch."""


@dataclass(frozen=True)
class ServeOptions:
    """How a model is served on this machine.

    Args:
        host: Address to listen on; the loopback address by default, since there is no authentication.
        http_port: Port of V1, V2 and the pages; 0 for a free one.
        grpc_port: Port of gRPC; 0 for a free one.
        workers: Processes.
        device: `auto`, `cpu` or `cuda`.
    """

    host: str = "127.0.0.1"
    http_port: int = 8080
    grpc_port: int = 8081
    workers: int = 1
    device: str = "auto"


class LocalServer:
    """A predictor that was started by this process; use it with `with`, or call `stop`.

    Args:
        folder: A saved model.
        name: Its name in URLs.
        version: Its version in answers.
        options: How to serve.
        on_event: Called with every log line of the server, from another thread.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        version: str,
        options: ServeOptions,
        on_event: EventCallback = ignore_event,
    ) -> None:
        from importlib.util import find_spec

        if find_spec("kserve") is None:
            raise MissingExtraError.of("kserve", "serving", "serving a model")
        self.name, self.options, self._folder, self._on_event = name, options, folder, on_event
        self.http_port, self.grpc_port = options.http_port, options.grpc_port
        self._told: list[str] = []
        self._is_ready = False
        self._ended_or_ready = threading.Event()
        # A process of its own: its libraries' threads are pinned before they are imported.
        self._child = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "mlflywheel.serving",
                f"--model_name={name}",
                f"--model_dir={folder}",
                f"--model_version={version}",
                f"--host={options.host}",
                f"--http_port={options.http_port}",
                f"--grpc_port={options.grpc_port}",
                f"--workers={options.workers}",
                f"--device={options.device}",
                # Nobody sends requests to a laptop that is about to go.
                "--drain_delay_seconds=0",
                "--log_format=json",
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            # Ctrl-C reaches it through us alone, once.
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def url(self) -> str:
        """Where it answers."""
        return f"http://{self.options.host}:{self.http_port}"

    def wait_until_ready(self) -> None:
        """Wait until the model answers.

        Raises:
            MlflywheelError: It does not; the message is the server's own.
        """
        self._ended_or_ready.wait(_READY_SECONDS)
        if self._is_ready:
            return
        self.stop()
        if self._told:
            raise _read_error(self._told[-1], self._child.returncode)
        raise RunError(
            f"model {self.name}",
            f"not ready after {_READY_SECONDS:.0f} s",
            "it is loaded, and answers its example",
            "serve the model's folder with python -m mlflywheel.serving, and read its log",
        )

    def example(self) -> dict[str, Any]:
        """Return one valid instance of a request."""
        from mlflywheel.models.contract import load_model_class, verify_model_folder

        return load_model_class(str(verify_model_folder(self._folder)["model"])).example_request()

    def wait(self) -> int:
        """Wait for its end, and return its exit code."""
        return self._child.wait()

    def stop(self) -> None:
        """End it: requests that it has taken are answered first."""
        if self._child.poll() is None:
            self._child.send_signal(signal.SIGTERM)
            try:
                self._child.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                os.killpg(self._child.pid, signal.SIGKILL)
                self._child.wait()
        self._reader.join(timeout=5)
        if self._child.stderr is not None:
            self._child.stderr.close()

    def __enter__(self) -> Self:
        """Wait until it is ready."""
        try:
            self.wait_until_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop it."""
        self.stop()

    def _read(self) -> None:
        """Take in what the server logs, until it ends."""
        assert self._child.stderr is not None
        for line in self._child.stderr:
            text = line.decode("utf-8", "replace").strip()
            try:
                event = json.loads(text)
            except json.JSONDecodeError:
                event = None
            if not isinstance(event, dict):
                if text:
                    self._told.append(text)
                continue
            if event.get("event") == "listening":
                self.http_port = int(event["http_port"])
                self.grpc_port = int(event["grpc_port"])
            self._on_event(event)
            if event.get("event") == "ready":
                self._is_ready = True
                self._ended_or_ready.set()
        self._ended_or_ready.set()


def _read_error(told: str, code: int | None) -> MlflywheelError:
    """Return the error that a process printed before it ended.

    >>> print(_read_error("port 80: taken; a free port is needed. Fix: choose another.", 2))
    port 80: taken; a free port is needed. Fix: choose another.
    """
    found = _MESSAGE.fullmatch(told)
    if found is None:
        return RunError("server", told.rstrip("."), "it was expected to start", "read the lines above it in its log")
    return (UsageError if code == UsageError.exit_code else ModelError)(*found.groups())
