"""Ends a search's trials when the process that runs them is gone, however it ended: `kill -9` cannot be caught.

It is run by its path, without the package, so that it starts in milliseconds. Its standard input is a pipe of which the
search holds the other end: lines `+PID` and `-PID` say which process groups live, and the end of input that the search
has ended. Then it kills the groups that are left, and, where there is /proc, every process whose environment holds the
search's mark: what was started but not yet told of, and what left its group.
"""

import contextlib
import os
import select
import signal
import sys
import time

_LOOK_SECONDS = 1.0
_SWEEP_SECONDS = 5.0
_PAUSE_SECONDS = 0.01


def watch(mark: bytes, parent: int) -> None:
    """Follow standard input to its end, then end what is left.

    Args:
        mark: The search's entry in its trials' environments, `NAME=value`.
        parent: Process that runs the search.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    groups: set[int] = set()
    rest = b""
    while True:
        readable, _, _ = select.select([0], [], [], _LOOK_SECONDS)
        # A fork of the search may hold the pipe open, so its end alone is not enough.
        if not readable and os.getppid() != parent:
            break
        if readable:
            data = os.read(0, 65536)
            if not data:
                break
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                (groups.add if line.startswith(b"+") else groups.discard)(int(line[1:]))
    for group in groups:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(group, signal.SIGKILL)
    deadline = time.monotonic() + _SWEEP_SECONDS
    # Repeated: a process may have started another one while the others were looked at.
    while _kill_marked(mark) and time.monotonic() < deadline:
        time.sleep(_PAUSE_SECONDS)


def _kill_marked(mark: bytes) -> bool:
    """Kill every process that has the mark in its environment; return whether there was one."""
    try:
        names = os.listdir("/proc")
    except OSError:
        return False
    found = False
    for name in names:
        if not name.isdigit() or int(name) == os.getpid():
            continue
        try:
            with open(f"/proc/{name}/environ", "rb") as file:
                marked = mark in file.read().split(b"\0")
        except OSError:
            continue
        if marked:
            found = True
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(int(name), signal.SIGKILL)
    return found


if __name__ == "__main__":
    watch(os.fsencode(sys.argv[1]), int(sys.argv[2]))
