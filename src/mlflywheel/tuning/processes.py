"""A trial's processes on this machine: start, watch, limit and stop them, and leave none behind.

Every trial is a process group of its own. As in a container, its first process decides: when that has ended, what it
left running is killed. A process that gave itself a new session is out of the group's reach; `Watchdog` finds it at the
search's end by its environment, on Linux.
"""

import contextlib
import math
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mlflywheel.tuning import watchdog

MARK_VARIABLE = "MLFLYWHEEL_SEARCH"
"""Environment variable by which a search's processes are found."""

# A search may itself be part of a step that gets SIGTERM and, 5 s later, SIGKILL: it has to be done before.
GRACE_SECONDS = 3.0
_WATCHDOG_SECONDS = 6.0
_GONE_SECONDS = 1.0
_PROC = Path("/proc")


@dataclass(frozen=True)
class ProcessEntry:
    """One live process, as /proc shows it."""

    pid: int
    parent: int
    group: int
    session: int


class TrialProcess:
    """One started process with everything that it starts.

    Args:
        command: Program and arguments.
        environment: Its whole environment.
        folder: Working folder; None for this process's.
        output: File that takes standard output and standard error; emptied first.

    Raises:
        OSError: The program, the folder or the output file is not usable.
    """

    def __init__(
        self, command: Sequence[str], environment: Mapping[str, str], folder: Path | None, output: Path
    ) -> None:
        self.started = time.monotonic()
        with output.open("wb") as file:
            self._process = subprocess.Popen(
                list(command),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env=dict(environment),
                cwd=folder,
                # A group of its own: it is ended as a whole, and Ctrl-C reaches it through us alone.
                start_new_session=True,
            )
        self.pid = self._process.pid
        self.seconds: float | None = None
        self.descriptor = _open_pidfd(self.pid)
        self._kill_at = math.inf

    @property
    def stopping(self) -> bool:
        """Whether it was told to stop."""
        return self._kill_at < math.inf

    def stop(self, grace_seconds: float = GRACE_SECONDS) -> None:
        """Ask it to end with SIGTERM; `poll` kills what is left after the grace."""
        if self.stopping or self.seconds is not None:
            return
        self._kill_at = time.monotonic() + grace_seconds
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """Kill it at the next `poll`, without any grace."""
        self._kill_at = -math.inf
        self._signal(signal.SIGKILL)

    def poll(self) -> int | None:
        """Return the first process's exit code, negative for a signal's number; None while it runs.

        Once it has ended, no process of the group is left, but for one that the kernel cannot end within a second.
        """
        if self.seconds is not None:
            return self._process.returncode
        now = time.monotonic()
        if not self._has_ended():
            if now >= self._kill_at:
                self._signal(signal.SIGKILL)
            return None
        # A shell ends at SIGTERM at once; the program that it runs gets the grace to save its work.
        if self.stopping and now < self._kill_at and _has_members(self.pid):
            return None
        self._signal(signal.SIGKILL)
        self.seconds = now - self.started
        if self.descriptor is not None:
            os.close(self.descriptor)
            self.descriptor = None
        code = self._process.wait()
        self._await_group()
        return code

    def _await_group(self) -> None:
        """Wait until what was killed has gone: a signal is delivered some time after it is sent."""
        until = time.monotonic() + _GONE_SECONDS
        while time.monotonic() < until:
            try:
                # Cheap, and most trials leave nothing behind; what waits to be reaped still counts here.
                os.killpg(self.pid, 0)
            except (ProcessLookupError, PermissionError):
                return
            if not _has_members(self.pid):
                return
            time.sleep(0.001)

    def _has_ended(self) -> bool:
        if not hasattr(os, "waitid"):
            # macOS, before Python 3.13.
            return self._process.poll() is not None
        # WNOWAIT: as long as it is not reaped, its number cannot belong to anything else, and is safe to signal.
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def _signal(self, number: int) -> None:
        # PermissionError: macOS says so of a group whose processes have all ended.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)


class Watchdog:
    """A process that ends a search's trials when this process does not do it.

    Args:
        lock: Descriptor that it keeps open until it has ended: with a `flock` on it, nobody else takes up the search
            before its last process is gone.

    It is started at once, and again if someone kills it.
    """

    def __init__(self, lock: int | None = None) -> None:
        self.mark = secrets.token_hex(16)
        self._lock = lock
        self._groups: set[int] = set()
        self._process = self._start()

    def watch(self, pid: int) -> None:
        """Add a process group."""
        self._groups.add(pid)
        self._tell(f"+{pid}\n")

    def forget(self, pid: int) -> None:
        """Remove a process group that has ended: its number may soon be another's."""
        self._groups.discard(pid)
        self._tell(f"-{pid}\n")

    def close(self) -> None:
        """End every process that is left, and itself."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_WATCHDOG_SECONDS)

    def _start(self) -> "subprocess.Popen[bytes]":
        return subprocess.Popen(
            [sys.executable, "-I", "-S", str(watchdog.__file__), f"{MARK_VARIABLE}={self.mark}", str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            # Nothing in it may match a mark that an outer search looks for: this one has to outlive that search.
            env={},
            cwd="/",
            pass_fds=() if self._lock is None else (self._lock,),
            start_new_session=True,
        )

    def _tell(self, line: str) -> None:
        if self._process.poll() is not None:
            self.close()
            self._process = self._start()
            line = "".join(f"+{pid}\n" for pid in self._groups)
        assert self._process.stdin is not None
        # It was killed just now: the next call starts it again.
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(line.encode())


def can_measure_memory() -> bool:
    """Return whether this system shows how much memory other processes use."""
    return (_PROC / "self" / "statm").exists()


def list_processes() -> list[ProcessEntry]:
    """Return this machine's live processes; none where there is no /proc.

    A process that has ended and waits to be reaped is not alive.
    """
    entries = []
    try:
        names = os.listdir(_PROC)
    except OSError:
        return []
    for name in names:
        if not name.isdigit():
            continue
        try:
            with open(f"{_PROC}/{name}/stat", "rb") as file:
                # The program's name, in parentheses, may hold anything.
                state, parent, group, session = file.read().rpartition(b")")[2].split()[:4]
        except (OSError, ValueError):
            continue
        if state not in (b"Z", b"X"):
            entries.append(ProcessEntry(int(name), int(parent), int(group), int(session)))
    return entries


def lives(pid: int) -> bool:
    """Return whether a process is alive; one that has ended and waits to be reaped is not, where that can be seen."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    processes = list_processes()
    return not processes or any(entry.pid == pid for entry in processes)


def find_tree(pid: int, processes: Sequence[ProcessEntry]) -> list[int]:
    """Return the processes of a trial: of its session, and whatever those have started.

    >>> find_tree(7, [ProcessEntry(9, 8, 9, 9), ProcessEntry(8, 7, 7, 7), ProcessEntry(7, 1, 7, 7)])
    [7, 8, 9]
    """
    found = {entry.pid for entry in processes if entry.session == pid}
    while True:
        more = {entry.pid for entry in processes if entry.parent in found} - found
        if not more:
            return sorted(found)
        found |= more


def measure_memory(pids: Sequence[int], limit_bytes: int | None = None) -> int:
    """Return how many bytes of memory processes use together.

    Resident memory counts a page once for every process that shares it. Only a sum above the limit is therefore
    measured again by each page's share (PSS), which takes the kernel longer.
    """
    resident = sum(_read_resident(pid) for pid in pids)
    if limit_bytes is None or resident <= limit_bytes:
        return resident
    return sum(_read_share(pid) for pid in pids)


def _read_resident(pid: int) -> int:
    try:
        with open(f"{_PROC}/{pid}/statm", "rb") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0


def _read_share(pid: int) -> int:
    try:
        with open(f"{_PROC}/{pid}/smaps_rollup", "rb") as file:
            for line in file:
                if line.startswith(b"Pss:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return _read_resident(pid)


def _has_members(group: int) -> bool:
    """Return whether a group has a live process; False where that cannot be seen."""
    return any(entry.group == group for entry in list_processes())


def _open_pidfd(pid: int) -> int | None:
    """Return a descriptor that is readable once the process has ended; None where the system has none."""
    if sys.platform != "linux":
        return None
    try:
        return os.pidfd_open(pid)
    except OSError:
        return None
