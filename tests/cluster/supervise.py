"""Run a server for as long as the process that asked for it lives: `supervise.py PARENT FOLDER COMMAND...`.

A test run that is killed cannot stop what it started. This small process in between notices that PARENT is gone, then
kills the server and removes its FOLDER. Linux could do half of it alone (PR_SET_PDEATHSIG), but a parent is a thread
there: the server would end with the thread that started it.
"""

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

_PR_SET_PDEATHSIG = 1


def supervise(parent: int, folder: Path, command: list[str]) -> int:
    """Return the exit status of the server, which SIGTERM asks to end and SIGUSR1 kills."""
    server = subprocess.Popen(command, stdin=subprocess.DEVNULL, preexec_fn=_end_with_this_process)
    signal.signal(signal.SIGTERM, lambda *_: server.terminate())
    signal.signal(signal.SIGUSR1, lambda *_: server.kill())
    while server.poll() is None:
        if os.getppid() != parent:
            server.kill()
            server.wait()
            shutil.rmtree(folder, ignore_errors=True)
            break
        time.sleep(0.05)
    return server.returncode


def _end_with_this_process() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(supervise(int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]))
