"""Containers of an image, run by runc as Kubernetes runs a hardened pod: no capability, read-only root, no new rights.

runc itself, since buildah offers no read-only root. The machine's network is used, so that what a container listens to
on 127.0.0.1 can be asked.
"""

import json
import os
import signal
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from base_image import run

_RUN_SECONDS = 600


@dataclass(frozen=True)
class MountedImage:
    """An image whose files can be read.

    Args:
        name: Its reference.
        root: Where its files are.
        config: The image's own configuration: `Env`, `Entrypoint`, `Cmd`, `User`, `WorkingDir`, `Labels`.
    """

    name: str
    root: Path
    config: Mapping[str, Any]

    @property
    def environment(self) -> dict[str, str]:
        return dict(line.split("=", 1) for line in self.config["Env"])


@contextmanager
def mount_image(buildah: Sequence[str], name: str) -> Iterator[MountedImage]:
    """Mount an image's files; what is written there is thrown away."""
    found = json.loads(run([*buildah, "inspect", "--type", "image", name]))
    container = run([*buildah, "from", "--pull-never", name]).strip()
    try:
        yield MountedImage(name, Path(run([*buildah, "mount", container]).strip()), found["OCIv1"]["config"])
    finally:
        run([*buildah, "umount", container])
        run([*buildah, "rm", container])


class Container:
    """One container; `log` grows while it runs.

    Args:
        image: What it runs.
        folder: An empty folder to work in.
        words: Program and arguments.
        mounts: Folders of this machine by the path that the container sees; a path that ends in `:ro` is read only.
        variables: Environment variables besides the image's.
    """

    def __init__(
        self,
        image: MountedImage,
        folder: Path,
        words: Sequence[str],
        mounts: Mapping[str, Path] | None = None,
        variables: Mapping[str, str] | None = None,
    ) -> None:
        self.name = f"mlflywheel-{uuid.uuid4().hex[:12]}"
        self._state = folder / "state"
        bundle = folder / "bundle"
        bundle.mkdir()
        (bundle / "config.json").write_text(
            json.dumps(_describe(image, bundle, words, mounts or {}, variables or {})), encoding="utf-8"
        )
        self.log: list[str] = []
        self.started = time.monotonic()
        self.process = subprocess.Popen(
            ["runc", "--root", str(self._state), "run", "--bundle", str(bundle), self.name],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="backslashreplace",
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        self.log.extend(line.rstrip("\n") for line in self.process.stdout)

    @property
    def text(self) -> str:
        return "\n".join(self.log)

    def wait(self, seconds: float = _RUN_SECONDS) -> int:
        """Return the exit code."""
        code = self.process.wait(timeout=seconds)
        self._reader.join(timeout=10)
        if self.process.stdout is not None:
            self.process.stdout.close()
        return code

    def wait_for(self, find: Callable[[], Any], seconds: float = 120) -> Any:
        """Return what `find` returns when it is true."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            ended = self.process.poll() is not None
            if ended:
                self._reader.join(timeout=10)
            found = find()
            if found:
                return found
            if ended:
                break
            time.sleep(0.01)
        raise AssertionError(f"not in {seconds} s, or the container ended:\n{self.text[-3000:]}")

    def stop(self, seconds: float = 60) -> int:
        """Ask the program to end, as Kubernetes does, and return its exit code."""
        if self.process.poll() is None:
            self._signal(signal.SIGTERM)
        try:
            return self.wait(seconds)
        except subprocess.TimeoutExpired:
            self._signal(signal.SIGKILL)
            return self.wait(seconds)

    def _signal(self, number: int) -> None:
        subprocess.run(
            ["runc", "--root", str(self._state), "kill", self.name, str(int(number))], capture_output=True, check=False
        )


def run_container(image: MountedImage, folder: Path, words: Sequence[str], **others: Any) -> Container:
    """Run a container to its end; a failure is an assertion with what it printed."""
    running = Container(image, folder, words, **others)
    try:
        code = running.wait()
    finally:
        running.stop()
    assert code == 0, running.text[-5000:]
    return running


def _describe(
    image: MountedImage, bundle: Path, words: Sequence[str], mounts: Mapping[str, Path], variables: Mapping[str, str]
) -> dict[str, Any]:
    run(["runc", "spec", "--bundle", str(bundle)])
    described: dict[str, Any] = json.loads((bundle / "config.json").read_text(encoding="utf-8"))
    user, _, group = image.config["User"].partition(":")
    described["root"] = {"path": str(image.root), "readonly": True}
    process = described["process"]
    # Without the right to raise limits, runc would fail to set them.
    process.pop("rlimits", None)
    process.update(
        terminal=False,
        user={"uid": int(user), "gid": int(group or 0)},
        args=list(words),
        env=[f"{name}={value}" for name, value in {**image.environment, **variables}.items()],
        cwd=image.config["WorkingDir"],
        noNewPrivileges=True,
        capabilities={name: [] for name in process["capabilities"]},
    )
    described["mounts"].append(
        {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "nodev", "mode=1777"]}
    )
    for path, folder in mounts.items():
        target, _, options = path.partition(":")
        described["mounts"].append(
            {
                "destination": target,
                "type": "bind",
                "source": os.fspath(folder),
                "options": ["rbind", "ro" if options == "ro" else "rw"],
            }
        )
    linux = described["linux"]
    linux["namespaces"] = [each for each in linux["namespaces"] if each["type"] != "network"]
    linux.pop("resources", None)
    return described
