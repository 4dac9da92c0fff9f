"""Real processes: how they end, what they use, and that none is left behind."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from mlflywheel.tuning.processes import (
    MARK_VARIABLE,
    ProcessEntry,
    TrialProcess,
    Watchdog,
    find_tree,
    list_processes,
    lives,
    measure_memory,
)

NEEDS_PROC = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="there is no /proc")


def start(folder: Path, *command: str, mark: str = "") -> TrialProcess:
    return TrialProcess(command, {**os.environ, MARK_VARIABLE: mark}, folder, folder / "log")


def python(folder: Path, script: str) -> TrialProcess:
    return start(folder, sys.executable, "-I", "-S", "-c", script)


def wait_until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.01)


def wait(process: TrialProcess) -> int:
    wait_until(lambda: process.poll() is not None)
    code = process.poll()
    assert code is not None
    return code


def read_pid(path: Path) -> int:
    wait_until(lambda: path.exists() and path.read_text().endswith("\n"))
    return int(path.read_text())


@pytest.mark.parametrize(("script", "code"), [("exit 0", 0), ("exit 3", 3), ("kill -9 $$", -9)])
def test_the_exit_code_is_the_first_processs(tmp_path: Path, script: str, code: int) -> None:
    process = start(tmp_path, "sh", "-c", script)
    assert wait(process) == code
    assert process.seconds is not None


def test_output_and_errors_go_to_one_file_in_order(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("of an earlier attempt")
    wait(start(tmp_path, "sh", "-c", "echo one; echo two >&2; echo three; pwd"))
    assert (tmp_path / "log").read_text() == f"one\ntwo\nthree\n{tmp_path}\n"


def test_a_program_that_is_not_there_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        start(tmp_path, "no-such-program")


def test_its_end_makes_the_descriptor_readable(tmp_path: Path) -> None:
    process = start(tmp_path, "sleep", "0.05")
    if process.descriptor is None:
        pytest.skip("there is no pidfd")
    import select

    readable, _, _ = select.select([process.descriptor], [], [], 10)
    assert readable
    assert process.poll() == 0
    assert process.descriptor is None


@NEEDS_PROC
def test_what_a_trial_leaves_running_is_killed_at_its_end(tmp_path: Path) -> None:
    process = start(tmp_path, "sh", "-c", "sleep 60 & echo $! > pid")
    assert wait(process) == 0
    wait_until(lambda: not lives(read_pid(tmp_path / "pid")))


@NEEDS_PROC
def test_a_program_under_a_shell_gets_the_grace_to_save_its_work(tmp_path: Path) -> None:
    script = (
        "import signal, sys, time\n"
        "def save(*_):\n"
        "    time.sleep(0.2); open('saved', 'w').close(); sys.exit()\n"
        "signal.signal(signal.SIGTERM, save)\n"
        "open('ready', 'w').close()\n"
        "time.sleep(60)"
    )
    (tmp_path / "trial.py").write_text(script)
    process = start(tmp_path, "sh", "-c", f"{sys.executable} -I -S trial.py; true")
    wait_until((tmp_path / "ready").exists)
    process.stop(5.0)
    wait(process)
    assert (tmp_path / "saved").exists()


@NEEDS_PROC
def test_a_program_that_ignores_the_request_is_killed_after_the_grace(tmp_path: Path) -> None:
    process = python(
        tmp_path,
        "import signal, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "open('ready', 'w').close()\n"
        "time.sleep(60)",
    )
    wait_until((tmp_path / "ready").exists)
    process.stop(0.2)
    started = time.monotonic()
    assert wait(process) == -signal.SIGKILL
    assert time.monotonic() - started < 5


def test_to_kill_waits_for_nothing(tmp_path: Path) -> None:
    process = start(tmp_path, "sleep", "60")
    process.kill()
    assert wait(process) == -signal.SIGKILL


def test_ctrl_c_at_the_terminal_does_not_reach_a_trial(tmp_path: Path) -> None:
    process = start(tmp_path, "sleep", "60")
    assert os.getpgid(process.pid) == process.pid != os.getpgid(0)
    process.kill()
    wait(process)


@NEEDS_PROC
def test_a_process_that_waits_to_be_reaped_does_not_live() -> None:
    with subprocess.Popen(["sleep", "60"]) as child:
        assert lives(child.pid)
        child.kill()
        wait_until(lambda: not lives(child.pid))
        assert child.returncode is None
    assert not lives(child.pid)


@NEEDS_PROC
def test_memory_is_that_of_the_whole_tree(tmp_path: Path) -> None:
    script = (
        "import os, time\n"
        "if os.fork() == 0:\n"
        "    held = b'x' * (40 << 20)\n"
        "    open('ready', 'w').close()\n"
        "time.sleep(60)"
    )
    process = python(tmp_path, script)
    wait_until((tmp_path / "ready").exists)
    tree = find_tree(process.pid, list_processes())
    assert len(tree) == 2
    assert 40 << 20 < measure_memory(tree) < 120 << 20
    process.kill()
    wait(process)
    assert measure_memory(tree) == 0


@NEEDS_PROC
def test_pages_that_processes_share_count_once_against_a_limit(tmp_path: Path) -> None:
    script = (
        "import os, time\n"
        "held = b'x' * (40 << 20)\n"
        "for _ in range(3):\n"
        "    if os.fork() == 0:\n"
        "        break\n"
        "else:\n"
        "    open('ready', 'w').close()\n"
        "time.sleep(60)"
    )
    process = python(tmp_path, script)
    wait_until((tmp_path / "ready").exists)
    tree = find_tree(process.pid, list_processes())
    assert measure_memory(tree) > 160 << 20
    assert measure_memory(tree, 100 << 20) < 80 << 20
    process.kill()
    wait(process)


def test_a_tree_holds_children_that_left_the_session() -> None:
    entries = [ProcessEntry(5, 1, 5, 5), ProcessEntry(6, 5, 6, 6), ProcessEntry(7, 6, 7, 7), ProcessEntry(8, 1, 8, 8)]
    assert find_tree(5, entries) == [5, 6, 7]


@NEEDS_PROC
def test_a_closed_watchdog_leaves_nothing_of_what_it_was_told(tmp_path: Path) -> None:
    with closing(Watchdog()) as watchdog:
        process = start(tmp_path, "sh", "-c", "sleep 60 & sleep 60")
        watchdog.watch(process.pid)
        wait_until(lambda: len(find_tree(process.pid, list_processes())) == 3)
        tree = find_tree(process.pid, list_processes())
    assert wait(process) == -signal.SIGKILL
    wait_until(lambda: not any(lives(pid) for pid in tree))


@NEEDS_PROC
def test_a_watchdog_finds_a_process_that_left_its_group(tmp_path: Path) -> None:
    with closing(Watchdog()) as watchdog:
        script = "setsid sh -c 'echo $$ > pid; sleep 60' & while [ ! -s pid ]; do sleep 0.01; done"
        wait(start(tmp_path, "sh", "-c", script, mark=watchdog.mark))
        pid = read_pid(tmp_path / "pid")
        assert lives(pid)
    wait_until(lambda: not lives(pid))


@NEEDS_PROC
def test_a_watchdog_spares_what_is_not_its_own(tmp_path: Path) -> None:
    with closing(Watchdog()) as watchdog:
        finished = start(tmp_path, "true")
        watchdog.watch(finished.pid)
        wait(finished)
        watchdog.forget(finished.pid)
        other = start(tmp_path, "sleep", "60", mark="another search")
    assert other.poll() is None
    other.kill()
    wait(other)


@NEEDS_PROC
def test_a_watchdog_that_was_killed_is_started_again(tmp_path: Path) -> None:
    with closing(Watchdog()) as watchdog:
        first = start(tmp_path, "sleep", "60")
        watchdog.watch(first.pid)
        (pid,) = find_watchdogs(watchdog.mark)
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not lives(pid))
        second = start(tmp_path, "sleep", "60")
        watchdog.watch(second.pid)
    assert [wait(first), wait(second)] == [-signal.SIGKILL] * 2


@NEEDS_PROC
def test_a_watchdog_outlasts_requests_to_end(tmp_path: Path) -> None:
    with closing(Watchdog()) as watchdog:
        process = start(tmp_path, "sleep", "60")
        watchdog.watch(process.pid)
        wait_until(lambda: find_watchdogs(watchdog.mark) != [])
        (pid,) = find_watchdogs(watchdog.mark)
        wait_until(lambda: ignores_requests(pid))
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            os.kill(pid, number)
        time.sleep(0.05)
        assert lives(pid)
        assert process.poll() is None
    assert wait(process) == -signal.SIGKILL


@NEEDS_PROC
def test_kill_9_of_the_caller_leaves_nothing(tmp_path: Path) -> None:
    script = (
        "import os, sys, time\n"
        "from pathlib import Path\n"
        "from mlflywheel.tuning.processes import MARK_VARIABLE, TrialProcess, Watchdog\n"
        "watchdog = Watchdog()\n"
        # Started, and not yet told of.
        "environment = {**os.environ, MARK_VARIABLE: watchdog.mark}\n"
        "command = ['sh', '-c', 'echo $$ > pid; sleep 60']\n"
        "TrialProcess(command, environment, Path(sys.argv[1]), Path(sys.argv[1], 'log'))\n"
        "time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script, str(tmp_path)]) as child:
        pid = read_pid(tmp_path / "pid")
        assert lives(pid)
        child.kill()
    wait_until(lambda: not lives(pid))


def find_watchdogs(mark: str) -> list[int]:
    """Return the watchdogs of a mark: it stands on their command line alone."""
    found = []
    for entry in list_processes():
        try:
            words = Path(f"/proc/{entry.pid}/cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if f"{MARK_VARIABLE}={mark}".encode() in words:
            found.append(entry.pid)
    return found


def ignores_requests(pid: int) -> bool:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("SigIgn:"):
            return bool(int(line.split()[1], 16) & 1 << (signal.SIGHUP - 1))
    return False
