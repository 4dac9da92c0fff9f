"""How a local search ends when its process does: Ctrl-C, SIGTERM, `kill -9`; and how it goes on.

Trials are shell scripts that write a diary. Every process of a search has the search's folder in its environment, by
which the tests look for what is left behind.
"""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import yaml

from mlflywheel.errors import TuningError
from mlflywheel.tuning.local import LocalTuner
from mlflywheel.tuning.reader import read_experiment
from mlflywheel.tuning.search import SearchResult
from mlflywheel.tuning.state import SearchState, StoredTrial

pytestmark = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="there is no /proc")

MARK = "TUNING_TEST"
STARTED: list["subprocess.Popen[str]"] = []
SCRIPT = """
import sys
from pathlib import Path
from mlflywheel.tuning.local import LocalTuner
from mlflywheel.tuning.reader import read_experiment
experiment = read_experiment(Path(sys.argv[1]).read_text(encoding="utf-8"))
LocalTuner(Path(sys.argv[2]), any_command=True).search(experiment)
"""


class Search:
    """A search in a folder of its own, that can be run here or in another process."""

    def __init__(self, folder: Path, script: str, trials: int, parallel: int = 1, algorithm: str = "tpe") -> None:
        folder.mkdir()
        self.folder, self.diary, self.path = folder, folder / "diary", folder / "experiment.yaml"
        command = f"{{ echo ${{trialParameters.x}} ${{trialParameters.y}} >> {self.diary}; {script}; }}"
        document = {
            "apiVersion": "kubeflow.org/v1beta1",
            "kind": "Experiment",
            "metadata": {"name": "ends"},
            "spec": {
                "objective": {"type": "minimize", "objectiveMetricName": "loss"},
                "algorithm": {
                    "algorithmName": algorithm,
                    # The folders of two searches stand in their specs, and would give them other seeds.
                    "algorithmSettings": [{"name": "random_state", "value": "7"}],
                },
                "parallelTrialCount": parallel,
                "maxTrialCount": trials,
                "parameters": [
                    {"name": "x", "parameterType": "double", "feasibleSpace": {"min": "0", "max": "1"}},
                    {"name": "y", "parameterType": "int", "feasibleSpace": {"min": "1", "max": "9"}},
                ],
                "trialTemplate": {
                    "primaryContainerName": "main",
                    "trialParameters": [{"name": "x", "reference": "x"}, {"name": "y", "reference": "y"}],
                    "trialSpec": {
                        "apiVersion": "batch/v1",
                        "kind": "Job",
                        "spec": {
                            "template": {
                                "spec": {
                                    "restartPolicy": "Never",
                                    "containers": [{"name": "main", "image": "i", "command": ["sh", "-c", command]}],
                                }
                            }
                        },
                    },
                },
            },
        }
        self.path.write_text(yaml.safe_dump(document), encoding="utf-8")

    def run(self) -> SearchResult:
        experiment = read_experiment(self.path.read_text(encoding="utf-8"))
        return LocalTuner(self.folder / "searches", any_command=True).search(experiment)

    def start(self) -> "subprocess.Popen[str]":
        child = subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(self.path), str(self.folder / "searches")],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, MARK: str(self.folder)},
            start_new_session=True,
            # A test run in the background ignores Ctrl-C, and so would its children.
            preexec_fn=_heed_interrupts,
        )
        STARTED.append(child)
        return child

    def read_diary(self) -> list[str]:
        return self.diary.read_text().splitlines() if self.diary.exists() else []

    def wait_for(self, entries: int) -> None:
        wait_until(lambda: len(self.read_diary()) >= entries)

    def read_trials(self) -> list[StoredTrial]:
        (folder,) = (self.folder / "searches").iterdir()
        with SearchState(folder) as state:
            return state.read_trials()

    def find_processes(self) -> list[int]:
        """Return every live process that was started by a run of this search in another process."""
        mark = f"{MARK}={self.folder}".encode()
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            try:
                if mark in (path / "environ").read_bytes().split(b"\0"):
                    found.append(int(path.name))
            except OSError:
                continue
        return found

    def count_sleeping(self) -> int:
        """Return how many trials run `sleep 60`."""
        return sum(_read_command(pid) == b"sleep\x0060\0" for pid in self.find_processes())


def _read_command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


@pytest.fixture(autouse=True)
def _leave_nothing_running() -> Iterator[None]:
    """End what a failed test has left."""
    yield
    while STARTED:
        with STARTED.pop() as child:
            child.kill()


def _heed_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def wait_until(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.01)


def parameters(result: SearchResult) -> list[dict[str, str]]:
    return [dict(trial.parameters) for trial in result.trials]


def end(child: "subprocess.Popen[str]", number: int, group: bool = False) -> tuple[int, float]:
    """Send a signal; return the exit code and how many seconds the process took to end."""
    started = time.monotonic()
    (os.killpg if group else os.kill)(child.pid, number)
    child.communicate(timeout=30)
    return child.returncode, time.monotonic() - started


LOSS = "echo loss=${trialParameters.x}${trialParameters.y}"


def test_a_search_killed_in_trial_7_of_20_goes_on_as_if_nothing_had_been(tmp_path: Path) -> None:
    whole = Search(tmp_path / "whole", LOSS, trials=20).run()
    flag = tmp_path / "flag"
    search = Search(
        tmp_path / "killed",
        f"if [ ! -e {flag} ] && [ $(wc -l < {tmp_path / 'killed' / 'diary'}) = 7 ]; then sleep 60; fi; {LOSS}",
        trials=20,
    )
    child = search.start()
    search.wait_for(7)
    # At once: the new call has to wait for the end of the killed one's trial.
    child.kill()
    flag.touch()
    result = search.run()
    child.communicate()
    assert result.resumed == 6
    assert result.count("succeeded") == 20
    assert parameters(result) == parameters(whole)
    entries = search.read_diary()
    assert len(entries) == 21
    assert entries[6] == entries[7]
    assert len(set(entries)) == 20
    assert search.find_processes() == []


def test_a_search_killed_again_and_again_ends_the_same(tmp_path: Path) -> None:
    whole = Search(tmp_path / "whole", LOSS, trials=30).run()
    search = Search(tmp_path / "killed", f"sleep 0.02; {LOSS}", trials=30)
    chance = random.Random(7)
    for _ in range(5):
        before = len(search.read_diary())
        child = search.start()
        search.wait_for(before + 1)
        time.sleep(chance.uniform(0.0, 0.15))
        child.kill()
        child.communicate()
    result = search.run()
    assert 0 < result.resumed < 30
    assert parameters(result) == parameters(whole)
    assert result.count("succeeded") == 30
    # One trial at most was under way at each of the kills.
    assert 30 <= len(search.read_diary()) <= 35
    assert search.find_processes() == []


@pytest.mark.parametrize("group", [False, True], ids=["the process", "its group"])
def test_kill_9_leaves_no_process(tmp_path: Path, group: bool) -> None:
    # In the background, under a second shell, and in a session of its own.
    script = "sleep 60 & setsid sleep 60 & sh -c 'sleep 60; true'; echo loss=1"
    search = Search(tmp_path / "search", script, trials=6, parallel=3)
    child = search.start()
    # The search itself and, for each of three trials, two shells and three sleeps.
    wait_until(lambda: len(search.find_processes()) == 1 + 3 * 5)
    assert end(child, signal.SIGKILL, group)[0] == -signal.SIGKILL
    wait_until(lambda: search.find_processes() == [], 5)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
def test_an_interrupt_leaves_no_process_and_the_search_goes_on_later(tmp_path: Path, number: int) -> None:
    flag = tmp_path / "flag"
    script = f"if [ ! -e {flag} ] && [ $(wc -l < {tmp_path / 'search' / 'diary'}) -gt 2 ]; then sleep 60; fi; {LOSS}"
    search = Search(tmp_path / "search", script, trials=6, parallel=2)
    child = search.start()
    wait_until(lambda: search.count_sleeping() == 2)
    begun = len(search.read_diary())
    code, seconds = end(child, number)
    # Python ends a process by the signal itself after KeyboardInterrupt.
    assert code == -signal.SIGINT
    assert seconds < 3
    assert search.find_processes() == []
    assert [stored.trial.status for stored in search.read_trials()].count("running") == 2
    flag.touch()
    result = search.run()
    assert result.resumed == begun - 2
    assert result.count("succeeded") == 6
    assert len(search.read_diary()) == 6 + 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
def test_trials_that_ignore_the_request_are_gone_before_a_step_would_be_killed(tmp_path: Path, number: int) -> None:
    script = "trap '' TERM INT; sleep 60; sleep 60; echo loss=1"
    search = Search(tmp_path / "search", script, trials=3, parallel=3)
    child = search.start()
    search.wait_for(3)
    wait_until(lambda: len(search.find_processes()) == 1 + 3 * 2)
    code, seconds = end(child, number, group=True)
    assert code == -signal.SIGINT
    assert 2.5 < seconds < 5
    assert search.find_processes() == []


def test_a_second_ctrl_c_does_not_keep_trials_alive(tmp_path: Path) -> None:
    script = "trap '' TERM INT; sleep 60; sleep 60; echo loss=1"
    search = Search(tmp_path / "search", script, trials=2, parallel=2)
    child = search.start()
    search.wait_for(2)
    wait_until(lambda: len(search.find_processes()) == 1 + 2 * 2)
    for _ in range(3):
        child.send_signal(signal.SIGINT)
        time.sleep(0.2)
    child.communicate(timeout=30)
    assert search.find_processes() == []


def test_a_trial_gets_the_grace_to_end_well(tmp_path: Path) -> None:
    saved = tmp_path / "saved"
    script = f"trap 'sleep 0.5; touch {saved}; exit' TERM; while true; do sleep 0.05; done"
    search = Search(tmp_path / "search", script, trials=1)
    child = search.start()
    search.wait_for(1)
    time.sleep(0.2)
    _, seconds = end(child, signal.SIGTERM)
    assert saved.exists()
    assert seconds < 3


def test_two_processes_do_not_share_a_search(tmp_path: Path) -> None:
    search = Search(tmp_path / "search", "sleep 60; echo loss=1", trials=2)
    child = search.start()
    search.wait_for(1)
    started = time.monotonic()
    with pytest.raises(TuningError, match=f"process {child.pid} on "):
        search.run()
    assert time.monotonic() - started < 5
    assert len(search.read_diary()) == 1
    end(child, signal.SIGINT)


def test_a_search_in_another_thread_runs_without_handling_signals(tmp_path: Path) -> None:
    import threading

    search = Search(tmp_path / "search", LOSS, trials=3)
    found: list[SearchResult] = []
    thread = threading.Thread(target=lambda: found.append(search.run()))
    thread.start()
    thread.join(60)
    assert found[0].count("succeeded") == 3


def read_parameters(trials: Sequence[StoredTrial]) -> list[dict[str, str]]:
    return [dict(stored.trial.parameters) for stored in trials]


def test_a_search_killed_with_parallel_trials_loses_only_those_under_way(tmp_path: Path) -> None:
    flag = tmp_path / "flag"
    script = f"if [ ! -e {flag} ] && [ $(wc -l < {tmp_path / 'search' / 'diary'}) -gt 6 ]; then sleep 60; fi; {LOSS}"
    search = Search(tmp_path / "search", script, trials=12, parallel=3)
    child = search.start()
    wait_until(lambda: search.count_sleeping() == 3)
    end(child, signal.SIGKILL)
    wait_until(lambda: search.find_processes() == [], 5)
    before = search.read_trials()
    flag.touch()
    result = search.run()
    assert result.resumed == len(before) - 3 >= 4
    assert [stored.trial.status for stored in before].count("running") == 3
    assert parameters(result)[: len(before)] == read_parameters(before)
    finished = [stored.trial for stored in before if stored.trial.status == "succeeded"]
    assert all(result.trials[trial.number] == trial for trial in finished)
    assert len(search.read_diary()) == 12 + 3
