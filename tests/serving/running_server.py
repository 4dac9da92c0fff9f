"""A predictor as a process of its own, on free ports of this machine."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

START_SECONDS = 60.0


class RunningServer:
    """`python -m mlflywheel.serving` on 127.0.0.1; `log` grows while it runs."""

    def __init__(self, folder: Path, *options: str, name: str = "campaigns", environment: dict[str, str] | None = None):
        self.name = name
        self.log: list[dict[str, Any]] = []
        self.other_lines: list[str] = []
        command = [sys.executable, "-m", "mlflywheel.serving", f"--model_name={name}", f"--model_dir={folder}"]
        command += ["--host=127.0.0.1", "--http_port=0", "--grpc_port=0", "--drain_delay_seconds=0", *options]
        self.process = subprocess.Popen(
            command,
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
            # What a client has sent may be anything.
            errors="backslashreplace",
            env={**os.environ, **(environment or {})},
            # A shell that runs tests in the background makes its children ignore SIGINT.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            try:
                self.log.append(json.loads(line))
            except ValueError:
                self.other_lines.append(line.rstrip("\n"))

    def events(self, name: str) -> list[dict[str, Any]]:
        return [line for line in self.log if line["event"] == name]

    def wait_for(self, condition: Callable[[], Any], seconds: float = START_SECONDS) -> Any:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            found = condition()
            if found:
                return found
            time.sleep(0.02)
        raise AssertionError(f"not in {seconds} s; log: {self.log[-5:]} {self.other_lines[-5:]}")

    def wait_until_ready(self) -> "RunningServer":
        self.wait_for(lambda: self.process.poll() is not None or self.events("ready"))
        assert self.process.poll() is None, self.other_lines
        self.wait_for(lambda: httpx.get(f"{self.url}/v2/health/ready").status_code == 200)
        return self

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.wait_for(lambda: self.events('listening'))[0]['http_port']}"

    @property
    def grpc_address(self) -> str:
        return f"127.0.0.1:{self.wait_for(lambda: self.events('listening'))[0]['grpc_port']}"

    def predict(self, instances: list[Any], **options: Any) -> httpx.Response:
        return self.post({"instances": instances}, **options)

    def post(self, body: Any, **options: Any) -> httpx.Response:
        return httpx.post(f"{self.url}/v1/models/{self.name}:predict", json=body, timeout=60, **options)

    def infer(self, body: Any, **options: Any) -> httpx.Response:
        return httpx.post(f"{self.url}/v2/models/{self.name}/infer", json=body, timeout=60, **options)

    def get(self, path: str, **options: Any) -> httpx.Response:
        return httpx.get(self.url + path, timeout=10, **options)

    def stop(self, number: int = signal.SIGTERM) -> int:
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            code = self.process.wait(40)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait()
        self._reader.join(5)
        assert self.process.stderr is not None
        self.process.stderr.close()
        return code
