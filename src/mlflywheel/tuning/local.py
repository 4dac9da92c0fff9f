"""A Katib Experiment's trials as processes of this machine: no cluster, no container, the same document.

What a cluster gives a pod and one machine does not is refused (`LocalTuner.check`). What only says where and as whom a
pod runs is passed over, since it changes no result:

- of the Job and its pod: labels and annotations (also Istio's), `ttlSecondsAfterFinished`, `nodeSelector`, `affinity`,
  `tolerations`, `topologySpreadConstraints`, `schedulerName`, `priorityClassName`, `serviceAccountName`,
  `automountServiceAccountToken`, `enableServiceLinks`, `imagePullSecrets`, `securityContext`,
  `terminationGracePeriodSeconds`
- of the container: `image`, `imagePullPolicy`, `ports`, `securityContext`, `terminationMessagePath` and its policy, CPU
  limits, and every request of CPU, memory and ephemeral storage
- of the Experiment: `retain`, `primaryPodLabels` and `resumePolicy`; a search can always be taken up again, and a
  finished one stays finished

Three things differ from a cluster on purpose. A failed trial is tried again only if `backoffLimit` is written: the 6
retries that Kubernetes adds by itself hide errors, and are of no use on one machine; nor is there a pause before a
retry. A trial without a finite objective value is `metrics_unavailable`, where Katib may make `nan` its best. And a
trial runs in the folder of the call, beside the code, where a pod has its image's folder.
"""

import hashlib
import importlib.metadata
import math
import os
import platform
import re
import selectors
import shutil
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import Any

from mlflywheel.errors import TuningError
from mlflywheel.events import EVENTS_VARIABLE, ProgressCallback, disk_error, ignore_progress
from mlflywheel.tuning.early_stopping import MedianStop, StopRule
from mlflywheel.tuning.experiment import Experiment
from mlflywheel.tuning.jobs import (
    TRIAL_NAME_VARIABLE,
    Limits,
    TrialCommand,
    TrialFiles,
    build_command,
    check_job,
    read_limits,
)
from mlflywheel.tuning.metrics import MetricReader, Report, find_objective, order_values, summarize
from mlflywheel.tuning.processes import (
    GRACE_SECONDS,
    MARK_VARIABLE,
    TrialProcess,
    Watchdog,
    find_tree,
    list_processes,
    measure_memory,
)
from mlflywheel.tuning.search import FINISHED, Reason, SearchResult, Trial, TrialStatus, Tuner, conclude, find_best
from mlflywheel.tuning.state import SearchState, StoredSearch, StoredTrial, hold, order_steps, remove_state
from mlflywheel.tuning.suggestions import Suggestions, check_algorithm

THREAD_VARIABLES = (
    "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS", "VECLIB_MAXIMUM_THREADS",
    "NUMBA_NUM_THREADS",
)  # fmt: skip
# They decide what is suggested: a search that goes on under other versions may go on differently.
_PACKAGES = ("mlflywheel", "optuna", "cmaes", "numpy", "scipy")
_FAILED: tuple[TrialStatus, ...] = ("failed", "metrics_unavailable")
_RESTART = "begin the search anew with mlflywheel tune --restart"

_IDLE_SECONDS = 1.0
_POLL_SECONDS = 0.02
_MEMORY_SECONDS = 0.2
_REAP_SECONDS = 5.0
_LINE_BYTES = 1 << 20
_TAIL_BYTES = 4096
_DISK_ERRNOS = (28, 122)


class LocalTuner(Tuner):
    """Runs trials as processes of this machine, and takes a search up again where it stopped, even after `kill -9`.

    Args:
        folder: Where searches are kept. One search's own folder in it is `<experiment>-<12 hex digits of the key>`,
            with `search.sqlite` and a log of every trial, `trials/<number>-<trial>.log`.
        key: What tells this search from others, `sha256:<hex>` or any text; by default the Experiment's `spec_hash`.
            A search with data that is not named in the Experiment needs a key that includes the data.
        any_command: Whether trials may run other commands than this package's own.
        restart: Whether to forget what an earlier call has done.
        environment: Environment variables for every trial, over this process's and under the template's.
    """

    name = "local"

    def __init__(
        self,
        folder: Path,
        *,
        key: str | None = None,
        any_command: bool = False,
        restart: bool = False,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.folder = Path(folder)
        self.key = key
        self.any_command = any_command
        self.restart = restart
        self.environment = dict(environment or {})

    def check(self, experiment: Experiment) -> None:
        """Refuse what one machine cannot do as a cluster does it.

        Raises:
            UsageError: With the field, the reason and what would do; nothing is ever ignored.
        """
        check_job(experiment, _name_files(self.find_folder(experiment), 0, "trial", 1), self.any_command)
        check_algorithm(experiment)
        if experiment.early_stopping is not None:
            MedianStop(experiment)

    def find_folder(self, experiment: Experiment) -> Path:
        """Return the folder of one search; it need not exist."""
        key = self.key or experiment.spec_hash
        found = re.fullmatch(r"(?:sha256:)?([0-9a-f]{12,})", key)
        digits = found[1] if found else hashlib.sha256(key.encode()).hexdigest()
        return self.folder.resolve() / f"{experiment.name}-{digits[:12]}"

    def search(self, experiment: Experiment, progress: ProgressCallback = ignore_progress) -> SearchResult:
        """Run the trials to the end of the search, or take up an earlier call's search where it stopped.

        A trial that an earlier call started and did not see ending runs again, under the same name and with the same
        parameters. A finished search is not run again: its result is returned. One that failed begins anew. Ctrl-C and
        SIGTERM end all trials within 3 s, and raise KeyboardInterrupt.

        Args:
            experiment: Checked Experiment.
            progress: Called with the phase `trials`, the finished ones and their number, 0 if it is open.

        Raises:
            UsageError: What `check` refuses.
            TuningError: The search failed, no trial has an objective value, another process works on the search, or
                its state is not readable or does not fit.
        """
        self.check(experiment)
        folder = self.find_folder(experiment)
        with hold(folder) as lock:
            if self.restart or _has_failed(folder, experiment):
                remove_state(folder)
                shutil.rmtree(folder / "trials", ignore_errors=True)
            with SearchState(folder) as state:
                return _Search(self, experiment, folder, state, progress).run(lock)


class _Interrupts:
    """Holds Ctrl-C and SIGTERM back until the search can stop without losing sight of a process.

    Only the main thread may handle signals; in another one nothing is held back.
    """

    def __init__(self) -> None:
        self.seen = False
        self._stopping = False
        self._previous: dict[int, Any] = {}
        self.descriptor, self._writer = os.pipe()
        os.set_blocking(self._writer, False)

    def __enter__(self) -> "_Interrupts":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                # An ignored signal stays ignored, as in a job in a shell's background.
                if signal.getsignal(number) not in (signal.SIG_IGN, None):
                    self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        os.close(self.descriptor)
        os.close(self._writer)

    def _note(self, number: int, frame: FrameType | None) -> None:
        again, self.seen = self.seen, True
        with suppress(OSError):
            os.write(self._writer, b"!")
        # The second time somebody is impatient: a suggestion may take long.
        if again and not self._stopping:
            raise KeyboardInterrupt

    def check(self) -> None:
        """Raise what was held back."""
        if self.seen:
            raise KeyboardInterrupt

    def hold(self) -> None:
        """Hold everything back from now on: trials are being ended."""
        self._stopping = True


class _Tail:
    """Reads a growing file line by line."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self._rest = b""

    def read(self, last: bool = False) -> list[str]:
        """Return the lines that are new; with `last` also one without its end."""
        try:
            if self._path.stat().st_size > self._offset:
                with self._path.open("rb") as file:
                    file.seek(self._offset)
                    data = file.read()
                self._offset += len(data)
                self._rest += data
        except FileNotFoundError:
            return []
        *lines, self._rest = self._rest.split(b"\n")
        # A line that never ends, such as a progress bar's, must not fill the memory.
        if self._rest and (last or len(self._rest) > _LINE_BYTES):
            lines.append(self._rest)
            self._rest = b""
        return [line.decode("utf-8", "replace") for line in lines]


@dataclass
class _Run:
    """One trial that is under way, in its current attempt."""

    stored: StoredTrial
    job: Mapping[str, Any]
    limits: Limits
    command: TrialCommand
    files: TrialFiles
    process: TrialProcess
    reader: MetricReader
    tail: _Tail
    rule: StopRule | None
    started: float
    attempt: int = 1
    reports: list[Report] = field(default_factory=list)
    #: Why it was told to stop: `early`, `timeout` or `memory`.
    stopped: str = ""
    message: str = ""

    @property
    def deadline(self) -> float:
        """When its time is over, on the monotonic clock."""
        return math.inf if self.limits.timeout_seconds is None else self.started + self.limits.timeout_seconds


class _Search:
    """One call of `LocalTuner.search`."""

    def __init__(
        self,
        tuner: LocalTuner,
        experiment: Experiment,
        folder: Path,
        state: SearchState,
        progress: ProgressCallback,
    ) -> None:
        self._tuner = tuner
        self._experiment = experiment
        self._folder = folder
        self._state = state
        self._progress = progress
        self._key = tuner.key or experiment.spec_hash
        self._trials: dict[int, StoredTrial] = {}
        self._running: dict[int, _Run] = {}
        self._interrupted: deque[StoredTrial] = deque()
        #: Trials that could not even be started.
        self._unstarted: list[StoredTrial] = []
        self._suggestions_ended = False
        self._sequence = 0
        self._memory_looked = 0.0
        self._versions = _read_versions()
        self._versions_then: Mapping[str, str] = self._versions
        self._environment, self._threads = _trial_environment(tuner, experiment.parallel_trials)

    def run(self, lock: int) -> SearchResult:
        reason = self._read_state()
        resumed = self._count_finished()
        if reason is None:
            suggestions = Suggestions(self._experiment)
            self._replay(suggestions)
            reason = self._run_trials(suggestions, lock)
        else:
            self._tell_progress()
        trials = tuple(self._trials[number].trial for number in sorted(self._trials))
        if reason == "ExperimentFailed" or find_best(self._experiment.objective, trials) is None:
            raise _explain_failure(self._experiment, trials, reason)
        facts = {
            "folder": str(self._folder),
            "key": self._key,
            "versions": self._versions,
            "threads": self._threads,
            "attempts": {stored.trial.name: stored.attempts for stored in self._trials.values()},
        }
        return SearchResult(
            self._experiment.name, LocalTuner.name, self._experiment.objective, trials, reason, resumed, facts
        )

    # What an earlier call has done.

    def _read_state(self) -> Reason | None:
        stored = self._state.read_search()
        if stored is None:
            self._state.start(StoredSearch(self._key, self._experiment.document, self._versions))
            return None
        if stored.key != self._key or _identity(stored.document) != _identity(self._experiment.document):
            raise TuningError(
                str(self._state.path),
                "the state of another search",
                "objective, algorithm, parameters and counts have to be those it was started with",
                f"{_RESTART}, or give it another key",
            )
        self._versions_then = stored.versions
        self._trials = {trial.trial.number: trial for trial in self._state.read_trials()}
        return stored.reason

    def _replay(self, suggestions: Suggestions) -> None:
        """Take a new sampler through the steps of the earlier call."""
        for stored, told in order_steps(list(self._trials.values())):
            trial = stored.trial
            if told:
                suggestions.tell(trial.number, trial.objective, early_stopped=trial.status == "early_stopped")
                continue
            again = suggestions.ask()
            if again is None or dict(again) != dict(trial.parameters):
                raise self._explain_replay(trial, again)
            if trial.status not in FINISHED:
                self._interrupted.append(stored)
        self._sequence = 1 + max((max(stored.asked, stored.told or 0) for stored in self._trials.values()), default=-1)

    def _explain_replay(self, trial: Trial, again: Mapping[str, str] | None) -> TuningError:
        changed = [
            f"{package} {self._versions_then.get(package)} to {version}"
            for package, version in self._versions.items()
            if self._versions_then.get(package) != version
        ]
        return TuningError(
            str(self._state.path),
            f"trial {trial.number} had {dict(trial.parameters)}, and the algorithm now suggests "
            f"{again and dict(again)}" + (f" ({', '.join(changed)})" if changed else ""),
            "the same packages are needed to go on with a search",
            f"{_RESTART}, or install the earlier versions",
        )

    # The loop.

    def _run_trials(self, suggestions: Suggestions, lock: int) -> Reason:
        trials_folder = self._folder / "trials"
        try:
            trials_folder.mkdir(exist_ok=True)
        except OSError as error:
            raise TuningError(
                str(trials_folder),
                f"it cannot be created ({error.strerror})",
                "a folder that can be written is needed",
                "choose another folder for searches",
            ) from error
        with _Interrupts() as interrupts, closing(Watchdog(lock)) as watchdog, selectors.DefaultSelector() as selector:
            selector.register(interrupts.descriptor, selectors.EVENT_READ)
            self._watchdog, self._selector = watchdog, selector
            try:
                return self._loop(suggestions, interrupts)
            finally:
                interrupts.hold()
                self._stop_all()

    def _loop(self, suggestions: Suggestions, interrupts: _Interrupts) -> Reason:
        self._tell_progress()
        while True:
            interrupts.check()
            changed = self._collect()
            for stored in changed:
                trial = stored.trial
                self._trials[trial.number] = stored
                suggestions.tell(trial.number, trial.objective, early_stopped=trial.status == "early_stopped")
            reason = self._conclude()
            starting: list[StoredTrial] = []
            if reason is None:
                starting = self._choose(suggestions)
                if not starting and not self._running:
                    reason = self._conclude()
            if reason is not None:
                changed += self._give_up(reason)
            # One commit for what has ended and what comes next: a trial is written before it starts.
            if changed or starting or reason is not None:
                self._state.write([*changed, *starting], reason)
            if changed:
                self._tell_progress()
            if reason is not None:
                return reason
            for stored in starting:
                interrupts.check()
                self._start(stored)
            self._wait()

    def _conclude(self) -> Reason | None:
        trials = [stored.trial for stored in self._trials.values()]
        return conclude(self._experiment, trials, suggestions_ended=self._suggestions_ended)

    def _choose(self, suggestions: Suggestions) -> list[StoredTrial]:
        """Return the trials that start now: interrupted ones first, then new suggestions."""
        chosen: list[StoredTrial] = []
        most = self._experiment.max_trials
        while len(self._running) + len(self._unstarted) + len(chosen) < self._experiment.parallel_trials:
            if self._interrupted:
                chosen.append(self._interrupted.popleft())
                continue
            number = len(self._trials)
            if self._suggestions_ended or (most is not None and number >= most):
                break
            assignments = suggestions.ask()
            if assignments is None:
                self._suggestions_ended = True
                break
            name = _name_trial(self._experiment.name, self._key, number)
            log = str(_name_files(self._folder, number, name, 1).log)
            stored = StoredTrial(Trial(name, number, dict(assignments), log=log), asked=self._next_step())
            self._trials[number] = stored
            chosen.append(stored)
        return chosen

    def _give_up(self, reason: Reason) -> list[StoredTrial]:
        """Mark what has not been judged as killed: it has no say any more."""
        killed = []
        for number, run in self._running.items():
            trial = replace(
                run.stored.trial,
                status="killed",
                seconds=time.monotonic() - run.started,
                message=f"the search ended: {reason}",
            )
            killed.append(replace(run.stored, trial=trial, attempts=run.attempt))
            self._trials[number] = killed[-1]
        for stored in self._interrupted:
            trial = replace(stored.trial, status="killed", message=f"the search ended: {reason}")
            killed.append(replace(stored, trial=trial))
            self._trials[trial.number] = killed[-1]
        self._interrupted.clear()
        for stored in self._unstarted:
            killed.append(stored)
            self._trials[stored.trial.number] = stored
        self._unstarted.clear()
        return killed

    def _wait(self) -> None:
        """Wait until a process ends, or something else is due."""
        if self._unstarted:
            return
        now, due = time.monotonic(), _IDLE_SECONDS
        for run in self._running.values():
            if run.process.descriptor is None or run.process.stopping or run.rule is not None:
                due = min(due, _POLL_SECONDS)
            if run.limits.memory_bytes is not None:
                due = min(due, _MEMORY_SECONDS)
            if not run.stopped:
                due = min(due, max(run.deadline - now, 0.0))
        self._selector.select(due)

    # One trial.

    def _start(self, stored: StoredTrial) -> None:
        trial = stored.trial
        job = self._experiment.template.render(trial.parameters, trial.name)
        self._attempt(stored, job, 1, time.monotonic())

    def _make_rule(self, stored: StoredTrial) -> StopRule | None:
        """Return a trial's stop rule as it stood when the trial was asked for, also if it runs again."""
        finished = [
            (other.trial, other.reported)
            for _, other in sorted(self._trials.items())
            if other.told is not None and other.told < stored.asked
        ]
        return MedianStop(self._experiment).rule(finished)

    def _attempt(self, stored: StoredTrial, job: Mapping[str, Any], attempt: int, started: float) -> None:
        trial = stored.trial
        files = _name_files(self._folder, trial.number, trial.name, attempt)
        command = build_command(self._experiment, job, files, self._tuner.any_command)
        environment = {**self._environment, **command.variables, MARK_VARIABLE: self._watchdog.mark}
        stored = replace(stored, trial=replace(trial, log=str(files.log)), attempts=attempt)
        try:
            for path in (files.log, files.outside, files.mark):
                path.unlink(missing_ok=True)
            if command.metrics != files.log:
                shutil.rmtree(files.own, ignore_errors=True)
                files.own.mkdir()
            process = TrialProcess(command.words, environment, command.folder, command.output)
        except OSError as error:
            if error.errno in _DISK_ERRNOS:
                raise disk_error(str(self._folder)) from error
            message = f"it cannot be started: {error.strerror}: {error.filename}"
            self._unstarted.append(
                replace(stored, trial=replace(stored.trial, status="failed", seconds=0.0, message=message))
            )
            return
        run = _Run(
            stored,
            job,
            read_limits(self._experiment, job),
            command,
            files,
            process,
            MetricReader(self._experiment),
            _Tail(command.metrics),
            self._make_rule(stored),
            started,
            attempt,
        )
        self._running[trial.number] = run
        self._watchdog.watch(process.pid)
        if process.descriptor is not None:
            self._selector.register(process.descriptor, selectors.EVENT_READ)

    def _collect(self) -> list[StoredTrial]:
        """Look after every running trial, and return those that have ended, by number."""
        ended = [replace(stored, told=self._next_step()) for stored in self._unstarted]
        self._unstarted.clear()
        self._check_memory()
        for number, run in sorted(self._running.items()):
            descriptor = run.process.descriptor
            code = run.process.poll()
            self._read(run, last=code is not None)
            if code is None:
                if not run.stopped and time.monotonic() >= run.deadline:
                    self._stop(run, "timeout", f"stopped after {run.limits.timeout_seconds:g} s, activeDeadlineSeconds")
                continue
            if descriptor is not None:
                self._selector.unregister(descriptor)
            self._watchdog.forget(run.process.pid)
            del self._running[number]
            finished = self._finish(run, code)
            if finished is not None:
                ended.append(replace(finished, told=self._next_step()))
        return ended

    def _read(self, run: _Run, last: bool) -> None:
        """Read what a trial has printed since the last time."""
        for line in run.tail.read(last):
            for report in run.reader.feed(line):
                run.reports.append(report)
                if run.rule is None or run.stopped or report.metric != run.rule.metric:
                    continue
                # A trial that has ended by itself is judged by its end.
                if run.rule.observe(float(report.value)) and not last:
                    self._stop(run, "early", f"stopped early: {run.rule.describe()}")

    def _check_memory(self) -> None:
        """Stop trials that use more memory than they may."""
        limited = [
            run for run in self._running.values() if run.limits.memory_bytes is not None and not run.process.stopping
        ]
        now = time.monotonic()
        if not limited or now - self._memory_looked < _MEMORY_SECONDS / 2:
            return
        self._memory_looked = now
        processes = list_processes()
        for run in limited:
            limit = run.limits.memory_bytes or 0
            used = measure_memory(find_tree(run.process.pid, processes), limit)
            if used > limit:
                run.stopped = "memory"
                run.message = f"killed: it used {used / 2**20:.0f} MiB, and its memory limit is {limit / 2**20:.0f} MiB"
                # No grace, as the kernel gives none: it would go on taking memory.
                run.process.kill()

    def _stop(self, run: _Run, stopped: str, message: str) -> None:
        run.stopped, run.message = stopped, message
        run.process.stop()

    def _finish(self, run: _Run, code: int) -> StoredTrial | None:
        """Judge a trial that has ended; None if it is tried again."""
        marked = run.command.mark is None or run.command.mark.exists()
        self._tidy(run)
        objective = self._experiment.objective
        summaries = summarize(run.reports, objective)
        value = find_objective(summaries, objective)
        missing = run.reader.explain()
        status: TrialStatus = "failed"
        if run.stopped in ("timeout", "memory"):
            message = run.message
        elif code and not run.stopped:
            message = _join(_describe_code(code), _last_line(run))
        elif not marked and not run.stopped:
            message = "exit code 0 before the command's end, where Katib leaves a mark: exit and exec skip it"
        elif missing:
            status, message = "metrics_unavailable", self._describe_missing(run, missing)
        else:
            status, message = ("early_stopped", run.message) if run.stopped else ("succeeded", "")
        if status == "failed" and run.stopped != "timeout" and run.attempt <= run.limits.retries:
            self._attempt(run.stored, run.job, run.attempt + 1, run.started)
            return None
        trial = replace(
            run.stored.trial,
            status=status,
            metrics=summaries,
            objective=None if status in _FAILED else value,
            seconds=time.monotonic() - run.started,
            message=message,
        )
        return replace(run.stored, trial=trial, reported=order_values(run.reports, objective.metric))

    def _tidy(self, run: _Run) -> None:
        run.files.mark.unlink(missing_ok=True)
        with suppress(FileNotFoundError):
            if not run.files.outside.stat().st_size:
                run.files.outside.unlink()

    def _describe_missing(self, run: _Run, missing: str) -> str:
        outside = _tail(run.files.outside)
        if not outside or run.reports:
            return missing
        return (
            f"{missing} Katib's redirection takes the output of the command's last part alone; past it went: {outside}"
        )

    def _stop_all(self) -> None:
        """End every running trial: SIGTERM, a grace, SIGKILL."""
        for run in self._running.values():
            run.process.stop()
        deadline = time.monotonic() + GRACE_SECONDS + _REAP_SECONDS
        while self._running and time.monotonic() < deadline:
            for number, run in list(self._running.items()):
                if run.process.poll() is not None:
                    self._watchdog.forget(run.process.pid)
                    self._tidy(run)
                    del self._running[number]
            if self._running:
                time.sleep(_POLL_SECONDS / 4)

    def _next_step(self) -> int:
        self._sequence += 1
        return self._sequence - 1

    def _count_finished(self) -> int:
        return sum(stored.trial.status in FINISHED for stored in self._trials.values())

    def _tell_progress(self) -> None:
        self._progress("trials", self._count_finished(), self._experiment.max_trials or 0)


def _name_trial(experiment: str, key: str, number: int) -> str:
    return f"{experiment}-{hashlib.sha256(f'{key}/{number}'.encode()).hexdigest()[:8]}"


def _name_files(folder: Path, number: int, name: str, attempt: int) -> TrialFiles:
    base = f"{number:04d}-{name}" + (f".{attempt}" if attempt > 1 else "")
    trials = folder / "trials"
    return TrialFiles(
        trials / f"{base}.log", trials / f"{base}.outside.log", trials / f"{base}.completed", trials / base
    )


def _trial_environment(tuner: LocalTuner, parallel: int) -> tuple[dict[str, str], dict[str, str]]:
    """Return the environment of every trial, and the thread counts in it."""
    threads = str(max(1, _count_cores() // parallel))
    environment = {**dict.fromkeys(THREAD_VARIABLES, threads), **os.environ, **tuner.environment}
    # A trial is not a step of a run, and must not tell the run's events.
    for name in (TRIAL_NAME_VARIABLE, EVENTS_VARIABLE):
        environment.pop(name, None)
    return environment, {name: environment[name] for name in THREAD_VARIABLES}


def _count_cores() -> int:
    counted: Callable[[int], Any] | None = getattr(os, "sched_getaffinity", None)
    return len(counted(0)) if counted is not None else os.cpu_count() or 1


def _read_versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return versions


def _identity(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a search's steps depend on: all of its spec but what a trial runs, which the key stands for."""
    spec = document.get("spec") or {}
    return {name: value for name, value in spec.items() if name != "trialTemplate"}


def _describe_code(code: int) -> str:
    """Describe how a process ended.

    >>> _describe_code(3), _describe_code(-9), _describe_code(137)
    ('exit code 3', 'ended by SIGKILL', 'exit code 137 (SIGKILL)')
    """
    number = -code if code < 0 else code - 128
    try:
        name = signal.Signals(number).name
    except ValueError:
        name = ""
    if code < 0:
        return f"ended by {name or f'signal {number}'}"
    return f"exit code {code}" + (f" ({name})" if name else "")


def _join(description: str, line: str) -> str:
    return f"{description}: {line}" if line else description


def _last_line(run: _Run) -> str:
    return _tail(run.files.log) or _tail(run.files.outside)


def _tail(path: Path) -> str:
    """Return the last line of a file that is not blank, cut to 300 characters; empty if there is none."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _TAIL_BYTES))
            text = file.read().decode("utf-8", "replace")
    except FileNotFoundError:
        return ""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else ""


def _has_failed(folder: Path, experiment: Experiment) -> bool:
    """Return whether an earlier call's search came to its end without a result."""
    with SearchState(folder) as state:
        stored = state.read_search()
        if stored is None or stored.reason is None:
            return False
        trials = [found.trial for found in state.read_trials()]
    return stored.reason == "ExperimentFailed" or find_best(experiment.objective, trials) is None


def _explain_failure(experiment: Experiment, trials: tuple[Trial, ...], reason: Reason) -> TuningError:
    failed = [trial for trial in trials if trial.status in _FAILED]
    seen = f"{len(failed)} of {len(trials)} trials failed"
    fix = "change the experiment, and run it again"
    if failed:
        seen += f", the first one, {failed[0].name}: {failed[0].message}"
        fix = f"read {failed[0].log}, mend the cause, and run it again"
    if reason == "ExperimentFailed":
        needed = f"maxFailedTrialCount is {experiment.max_failed_trials}"
    else:
        needed = f"at least one trial with a finite {experiment.objective.metric} is needed"
    return TuningError(f"experiment {experiment.name}", seen, needed, fix)
