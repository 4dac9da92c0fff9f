"""`mlflywheel run` that is stopped or runs out of disk: nothing is left running, and the summary says what happened."""

import json
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from command_line import run, start

from mlflywheel.registry import EmbeddedRegistry


def _children_of(folder: Path) -> list[str]:
    """Command lines of processes that work in a run folder, from /proc."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            text = entry.read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
        except OSError:
            continue
        if str(folder) in text:
            found.append(text)
    return found


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="looks for left processes in /proc")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "terminate"])
def test_interrupted_run_leaves_no_process_and_the_next_run_is_clean(
    tmp_path: Path, sample: Path, number: signal.Signals
) -> None:
    child = start(tmp_path, "--data", str(sample))
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        events = list(tmp_path.glob("runs/ad-campaigns/*/events.jsonl"))
        if events and '"step": "validation", "event": "started"' in events[0].read_text(encoding="utf-8"):
            break
        time.sleep(0.1)
    else:
        pytest.fail("the run did not reach its third step")
    child.send_signal(number)
    _, errors = child.communicate(timeout=60)
    assert child.returncode == 130
    assert "Traceback" not in errors
    assert _children_of(tmp_path) == []
    summary = json.loads(next(tmp_path.glob("runs/ad-campaigns/*/summary.json")).read_text(encoding="utf-8"))
    assert summary["status"] == "failed"
    assert summary["error"]["seen"] == "stopped by the user"
    assert EmbeddedRegistry(tmp_path / "runs" / "registry.sqlite").list_models() == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB, where this user may mount one."""
    place = tmp_path / "small"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(place)], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {mounted.stderr.strip()}")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.mark.long
def test_full_disk_is_said_so(small_disk: Path, tmp_path: Path, sample: Path) -> None:
    finished = run(tmp_path / "work", "--data", str(sample), "--runs", str(small_disk))
    assert finished.code == 1
    message = finished.errors.strip().splitlines()[-1]
    assert "no space is left on the device" in message
    assert "Fix: free space" in message
    assert "Traceback" not in finished.errors
