"""Searches with real processes: small shell scripts that stand for trials."""

import json
import math
import os
import sys
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from trial_experiments import LETTERS, NUMBER, make_experiment, make_job, shell

from mlflywheel.errors import TuningError, UsageError
from mlflywheel.events import EVENTS_VARIABLE
from mlflywheel.tuning.experiment import Collector, EarlyStopping, Experiment, Parameter
from mlflywheel.tuning.jobs import TrialFiles, build_command, expand_variables, read_quantity
from mlflywheel.tuning.local import THREAD_VARIABLES, LocalTuner
from mlflywheel.tuning.processes import list_processes
from mlflywheel.tuning.search import SearchResult, Trial
from mlflywheel.tuning.state import FILE_NAME, SearchState, StoredTrial

NEEDS_PROC = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="there is no /proc")


def letters(count: int) -> Parameter:
    return replace(LETTERS, values=LETTERS.values[:count])


def grid(script: str, cells: int = 3, **options: Any) -> Experiment:
    """Return a search that runs a script once for each of the first letters: `${trialParameters.letter}`."""
    options = {"trials": cells, "algorithm": "grid", "parameters": (letters(cells),), **options}
    return make_experiment(shell(script), **options)


def search(folder: Path, experiment: Experiment, **options: Any) -> SearchResult:
    return LocalTuner(folder, **{"any_command": True, **options}).search(experiment)


def only(result: SearchResult) -> Trial:
    (trial,) = result.trials
    return trial


def run_one(folder: Path, script: str, **options: Any) -> Trial:
    """Run one trial that may fail beside one that does not."""
    script = "if [ ${trialParameters.letter} = b ]; then echo loss=9; exit; fi; " + script
    # A braced script that exits takes Katib's mark with it; a subshell does not.
    experiment = grid(f"( {script} )", cells=2, **options)
    trials = search(folder, experiment).trials
    (trial,) = [trial for trial in trials if trial.parameters["letter"] == "a"]
    return trial


def stored(folder: Path) -> list[StoredTrial]:
    (path,) = folder.glob(f"*/{FILE_NAME}")
    with SearchState(path.parent) as state:
        return state.read_trials()


# Trials and their results.


def test_a_search_finds_the_best_trial_and_keeps_every_log(tmp_path: Path) -> None:
    experiment = make_experiment(shell("echo number ${trialParameters.number}; echo loss=${trialParameters.number}"))
    result = search(tmp_path, experiment)
    assert result.reason == "ExperimentMaxTrialsReached"
    assert result.count("succeeded") == len(result.trials) == 3
    assert result.best is not None
    assert result.best.objective == min(float(trial.parameters["number"]) for trial in result.trials)
    for trial in result.trials:
        assert trial.objective == float(trial.parameters["number"])
        assert Path(trial.log).read_text().splitlines()[0] == f"number {trial.parameters['number']}"
        assert trial.seconds is not None
        assert 0 < trial.seconds < 10
        assert not trial.message


def test_a_result_is_json_and_back(tmp_path: Path) -> None:
    result = search(tmp_path, grid("echo loss=1"))
    assert SearchResult.from_dict(json.loads(json.dumps(result.to_dict()))) == result
    assert result.facts["versions"]["optuna"]
    assert result.facts["folder"] == str(next(tmp_path.iterdir()))


def test_names_and_files_are_the_same_in_every_search_of_one_key(tmp_path: Path) -> None:
    one, two = (search(tmp_path / name, grid("echo loss=1", parallel=2)) for name in ("one", "two"))
    assert [trial.name for trial in one.trials] == [trial.name for trial in two.trials]
    assert len({trial.name for trial in one.trials}) == 3
    other = search(tmp_path / "one", grid("echo loss=1", parallel=2), key="sha256:" + "ab" * 32)
    assert not {trial.name for trial in one.trials} & {trial.name for trial in other.trials}
    assert sorted(path.name for path in (tmp_path / "one").iterdir()) == sorted(
        [Path(one.facts["folder"]).name, "search-abababababab"]
    )


def test_a_trial_knows_its_name_and_gets_the_templates_environment(tmp_path: Path) -> None:
    experiment = make_experiment(
        shell('echo "$KATIB_TRIAL_NAME|$PLAIN|$JOINED|$GIVEN|$OVER" > "$PLACE/seen"; echo loss=1'),
        trials=1,
        container={
            "env": [
                {"name": "PLAIN", "value": "with space ${trialParameters.number}"},
                {"name": "JOINED", "value": "$(PLAIN)/$(NONE)/$$(PLAIN)"},
                {"name": "OVER", "value": "template"},
                {"name": "PLACE", "value": str(tmp_path)},
            ]
        },
    )
    trial = only(search(tmp_path / "searches", experiment, environment={"GIVEN": "caller", "OVER": "caller"}))
    plain = f"with space {trial.parameters['number']}"
    seen = (tmp_path / "seen").read_text()
    assert seen == f"{trial.name}|{plain}|{plain}/$(NONE)/$(PLAIN)|caller|template\n"


def test_threads_are_shared_out_unless_they_are_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in THREAD_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MKL_NUM_THREADS", "7")
    experiment = grid("echo $OMP_NUM_THREADS $MKL_NUM_THREADS $OPENBLAS_NUM_THREADS; echo loss=1", cells=1, parallel=1)
    experiment = replace(experiment, parallel_trials=10_000)
    result = search(tmp_path, experiment, environment={"OPENBLAS_NUM_THREADS": "3"})
    assert Path(only(result).log).read_text() == "1 7 3\nloss=1\n"
    assert result.facts["threads"] == {
        **dict.fromkeys(THREAD_VARIABLES, "1"), "MKL_NUM_THREADS": "7", "OPENBLAS_NUM_THREADS": "3",
    }  # fmt: skip


def test_a_trial_runs_in_the_callers_folder_or_in_the_templates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    monkeypatch.chdir(here)
    result = search(Path("searches"), make_experiment(shell("pwd; echo loss=1"), trials=1))
    assert Path(only(result).log).read_text() == f"{here}\nloss=1\n"
    assert Path(only(result).log).is_relative_to(here / "searches")
    moved = make_experiment(shell("pwd; echo loss=1"), trials=1, container={"workingDir": str(there)})
    assert Path(only(search(Path("searches"), moved)).log).read_text() == f"{there}\nloss=1\n"


def test_a_folder_with_spaces_and_quotes_is_no_obstacle(tmp_path: Path) -> None:
    assert only(search(tmp_path / "it's $HOME", make_experiment(shell("echo loss=1"), trials=1))).objective == 1.0


def test_a_trial_does_not_tell_the_events_of_the_step_that_searches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(EVENTS_VARIABLE, str(tmp_path / "events"))
    trial = only(search(tmp_path, make_experiment(shell("env; echo loss=1"), trials=1)))
    assert EVENTS_VARIABLE not in Path(trial.log).read_text()


def test_a_system_without_process_descriptors_is_polled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlflywheel.tuning.processes._open_pidfd", lambda pid: None)
    started = time.monotonic()
    assert search(tmp_path, grid("echo loss=1", cells=6, parallel=2)).count("succeeded") == 6
    assert time.monotonic() - started < 5


def test_metrics_of_standard_error_count(tmp_path: Path) -> None:
    assert run_one(tmp_path, "echo loss=0.25 >&2").objective == 0.25


def test_all_metrics_are_summarized(tmp_path: Path) -> None:
    script = "echo loss=3 auc=0.5; echo loss=1; printf loss=2"
    trial = only(search(tmp_path, make_experiment(shell(script), trials=1, additional=("auc",))))
    loss, auc = trial.metrics
    assert (loss.name, loss.min, loss.max, loss.latest) == ("loss", 1.0, 3.0, 2.0)
    assert (auc.name, auc.latest) == ("auc", 0.5)
    assert stored(tmp_path)[0].reported == (3.0, 1.0, 2.0)


def test_a_metrics_file_is_every_trials_own(tmp_path: Path) -> None:
    experiment = grid(
        "sleep 0.05; echo loss=7; echo loss=0.${trialParameters.number} >> /shared/metrics.log; "
        "cat /shared/metrics.log",
        cells=3,
        parallel=3,
        parameters=(Parameter("number", "categorical", values=("1", "2", "3")),),
        collector=Collector("File", "/shared/metrics.log"),
    )
    result = search(tmp_path, experiment)
    for trial in result.trials:
        assert trial.objective == float(f"0.{trial.parameters['number']}")
        assert Path(trial.log).read_text() == f"loss=7\nloss=0.{trial.parameters['number']}\n"


def test_a_metrics_file_may_be_named_by_a_variable(tmp_path: Path) -> None:
    experiment = make_experiment(
        shell('echo loss=4 > "$METRICS"'),
        trials=1,
        collector=Collector("File", "/shared/metrics.log"),
        container={"env": [{"name": "METRICS", "value": "/shared/metrics.log"}]},
    )
    assert only(search(tmp_path, experiment)).objective == 4.0


def test_this_packages_own_commands_run_without_leave(tmp_path: Path) -> None:
    experiment = make_experiment(["/usr/bin/python3", "-m", "mlflywheel", "--version"], trials=1)
    with pytest.raises(TuningError) as caught:
        search(tmp_path, experiment, any_command=False)
    (trial,) = (entry.trial for entry in stored(tmp_path))
    assert trial.status == "metrics_unavailable"
    assert Path(trial.log).read_text().strip()
    assert "never printed" in str(caught.value)


# How trials end.


def test_a_failure_tells_its_exit_code_and_last_line(tmp_path: Path) -> None:
    trial = run_one(tmp_path, "echo loss=1; echo 'the reason' >&2; echo; exit 3")
    assert (trial.status, trial.objective) == ("failed", None)
    assert trial.message == "exit code 3: the reason"


def test_a_signal_is_named(tmp_path: Path) -> None:
    # Kubernetes makes one dollar of two.
    script = "if [ ${trialParameters.letter} = a ]; then kill -SEGV $$$$; fi; echo loss=1"
    result = search(
        tmp_path, make_experiment(["sh", "-c", script], trials=2, algorithm="grid", parameters=(letters(2),))
    )
    (trial,) = [trial for trial in result.trials if trial.parameters["letter"] == "a"]
    assert (trial.status, trial.message) == ("failed", "ended by SIGSEGV")


def test_a_command_that_is_not_there_fails_as_a_shell_says_it(tmp_path: Path) -> None:
    trial = run_one(tmp_path, "no-such-program")
    assert trial.status == "failed"
    assert trial.message.startswith("exit code 127: ")
    assert "no-such-program" in trial.message


def test_a_shell_that_is_not_there_fails_the_trials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(TuningError, match=r"2 of 2 trials failed.*cannot be started: No such file or directory: sh"):
        search(tmp_path, make_experiment(shell("echo loss=1"), trials=2))


@pytest.mark.parametrize(
    ("script", "told"),
    [
        ("echo loss=nan", "no finite number"),
        ("echo loss=0.1; echo loss=inf", "no finite number"),
        ("echo accuracy=0.5", "never printed; the log names accuracy"),
        ("echo loss: 0.5", "in another form"),
        ("true", "the log names no metric"),
    ],
)
def test_a_trial_without_a_finite_objective_has_no_metrics(tmp_path: Path, script: str, told: str) -> None:
    trial = run_one(tmp_path, script)
    assert (trial.status, trial.objective) == ("metrics_unavailable", None)
    assert told in trial.message


def test_what_katibs_redirection_misses_is_missing_here_too(tmp_path: Path) -> None:
    # Katib appends its redirection to the joined words, where it belongs to the last command alone.
    experiment = make_experiment(["sh", "-c", "echo loss=1; echo done"], trials=1)
    with pytest.raises(TuningError, match="output of the command's last part alone; past it went: loss=1"):
        search(tmp_path, experiment)


def test_exit_before_katibs_mark_is_a_failure(tmp_path: Path) -> None:
    with pytest.raises(TuningError, match="exit code 0 before the command's end"):
        search(tmp_path, make_experiment(["sh", "-c", "echo loss=1; exit 0"], trials=1))


def test_words_are_joined_without_quotes_as_katib_joins_them(tmp_path: Path) -> None:
    experiment = make_experiment(["echo", "loss=1 > /dev/null; echo loss=2"], trials=1)
    assert only(search(tmp_path, experiment)).objective == 2.0


def test_a_trial_is_stopped_at_its_deadline(tmp_path: Path) -> None:
    trial = run_one(tmp_path, "echo loss=1; sleep 60", job_spec={"activeDeadlineSeconds": 1, "backoffLimit": 3})
    assert trial.status == "failed"
    assert trial.message == "stopped after 1 s, activeDeadlineSeconds"
    assert trial.seconds is not None
    assert 1 <= trial.seconds < 8


@NEEDS_PROC
def test_a_trial_over_its_memory_limit_is_killed(tmp_path: Path) -> None:
    script = f"{sys.executable} -I -S -c 'import time; held = b\"x\" * (90 << 20); time.sleep(60)'"
    trial = run_one(tmp_path, script, container={"resources": {"limits": {"memory": "64Mi", "cpu": "1"}}})
    assert trial.status == "failed"
    assert trial.message.startswith("killed: it used ")
    assert trial.message.endswith("its memory limit is 64 MiB")


@NEEDS_PROC
def test_a_trial_within_its_memory_limit_is_left_alone(tmp_path: Path) -> None:
    script = f"{sys.executable} -I -S -c 'import time; held = b\"x\" * (20 << 20); time.sleep(0.5)'; echo loss=1"
    trial = run_one(tmp_path, script, container={"resources": {"limits": {"memory": "200Mi"}}})
    assert trial.status == "succeeded"


def test_a_failed_trial_is_tried_again_as_often_as_the_job_says(tmp_path: Path) -> None:
    count = tmp_path / "count"
    script = f"echo x >> '{count}'; echo loss=$(wc -l < '{count}'); [ $(wc -l < '{count}') = 3 ]"
    result = search(tmp_path / "searches", make_experiment(shell(script), trials=1, job_spec={"backoffLimit": 2}))
    trial = only(result)
    assert (trial.status, trial.objective) == ("succeeded", 3.0)
    logs = sorted(path.read_text() for path in (Path(result.facts["folder"]) / "trials").iterdir())
    assert logs == ["loss=1\n", "loss=2\n", "loss=3\n"]
    assert Path(trial.log).read_text() == "loss=3\n"
    assert result.facts["attempts"] == {trial.name: 3}


@pytest.mark.parametrize(("limit", "attempts"), [({}, 1), ({"backoffLimit": 0}, 1), ({"backoffLimit": 1}, 2)])
def test_without_a_limit_a_failure_is_final(tmp_path: Path, limit: dict[str, int], attempts: int) -> None:
    experiment = make_experiment(shell("echo once; false"), trials=1, job_spec=limit)
    with pytest.raises(TuningError):
        search(tmp_path, experiment)
    assert [entry.attempts for entry in stored(tmp_path)] == [attempts]
    assert len(list(tmp_path.glob("*/trials/*.log"))) == attempts


def test_an_unavailable_metric_is_not_tried_again(tmp_path: Path) -> None:
    with pytest.raises(TuningError):
        search(tmp_path, make_experiment(shell("echo none"), trials=1, job_spec={"backoffLimit": 3}))
    assert [entry.attempts for entry in stored(tmp_path)] == [1]


# How many run, and how searches end.


def most_at_once(lines: Iterable[str]) -> int:
    running = most = 0
    for line in lines:
        running += {"start": 1, "end": -1}[line]
        most = max(most, running)
    return most


@pytest.mark.parametrize("parallel", [1, 3])
def test_as_many_trials_run_at_once_as_asked_for(tmp_path: Path, parallel: int) -> None:
    diary = tmp_path / "diary"
    script = f"echo start >> '{diary}'; sleep 0.15; echo end >> '{diary}'; echo loss=1"
    result = search(tmp_path / "searches", grid(script, cells=6, parallel=parallel))
    assert most_at_once(diary.read_text().split()) == parallel
    assert result.count("succeeded") == 6


def test_every_cell_of_a_grid_runs_exactly_once(tmp_path: Path) -> None:
    diary = tmp_path / "diary"
    script = f"echo ${{trialParameters.letter}} >> '{diary}'; echo loss=1"
    result = search(tmp_path / "searches", grid(script, cells=6, parallel=2, trials=None))
    assert sorted(diary.read_text().split()) == list(LETTERS.values)
    assert result.reason == "ExperimentSuggestionEndReached"


def test_trials_are_told_in_the_order_in_which_they_end(tmp_path: Path) -> None:
    script = "sleep 0.${trialParameters.number}; echo loss=1"
    tenths = Parameter("number", "categorical", values=("1", "4", "7"))
    result = search(tmp_path, grid(script, cells=3, parallel=3, parameters=(tenths,)))
    assert [trial.number for trial in result.trials] == [0, 1, 2]
    told = sorted(stored(tmp_path), key=lambda entry: entry.told or 0)
    assert [entry.trial.parameters["number"] for entry in told] == ["1", "4", "7"]


@NEEDS_PROC
def test_a_reached_goal_ends_the_search_and_the_other_trials(tmp_path: Path) -> None:
    script = "echo loss=5; if [ ${trialParameters.letter} = b ]; then echo loss=0.1; else exec sleep 61.25; fi"
    started = time.monotonic()
    result = search(tmp_path, grid(f"( {script} )", cells=6, parallel=6, goal=0.1))
    assert time.monotonic() - started < 20
    assert result.reason == "ExperimentGoalReached"
    assert (result.count("succeeded"), result.count("killed")) == (1, 5)
    assert result.best is not None
    assert result.best.parameters["letter"] == "b"
    killed = [trial for trial in result.trials if trial.status == "killed"]
    assert all(trial.objective is None and "ExperimentGoalReached" in trial.message for trial in killed)
    assert not find_commands("61.25")


@NEEDS_PROC
def test_too_many_failures_end_the_search_and_the_other_trials(tmp_path: Path) -> None:
    script = (
        "case ${trialParameters.letter} in b) echo none;; c) echo sorry; exit 4;; "
        "*) echo loss=1; exec sleep 62.25;; esac"
    )
    with pytest.raises(TuningError, match=r"2 of 4 trials failed.*maxFailedTrialCount is 2") as caught:
        search(tmp_path, grid(f"( {script} )", cells=4, parallel=4, most_failed=2))
    trials = [entry.trial for entry in stored(tmp_path)]
    first = next(trial for trial in trials if trial.status in ("failed", "metrics_unavailable"))
    assert first.message in str(caught.value)
    assert first.log in caught.value.fix
    assert not find_commands("62.25")


def test_a_search_in_which_no_trial_has_a_value_fails(tmp_path: Path) -> None:
    with pytest.raises(
        TuningError, match=r"3 of 3 trials failed, the first one, search-[0-9a-f]{8}: exit code 1: sorry"
    ):
        search(tmp_path, make_experiment(shell("echo sorry; false")))


def test_some_failures_are_no_harm(tmp_path: Path) -> None:
    result = search(tmp_path, grid("[ ${trialParameters.letter} != c ] && echo loss=1", cells=6, parallel=2))
    assert (result.count("succeeded"), result.count("failed")) == (5, 1)


def test_progress_counts_finished_trials(tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    experiment = grid("echo loss=1", cells=4)
    LocalTuner(tmp_path, any_command=True).search(experiment, lambda *told: seen.append(told))
    assert seen == [("trials", done, 4) for done in range(5)]
    seen.clear()
    LocalTuner(tmp_path, any_command=True).search(experiment, lambda *told: seen.append(told))
    assert seen == [("trials", 4, 4)]


def test_nothing_is_printed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    search(tmp_path, make_experiment(shell("echo loss=1"), algorithm="tpe"))
    assert capfd.readouterr() == ("", "")


def test_signal_handlers_are_given_back(tmp_path: Path) -> None:
    import signal

    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    search(tmp_path, grid("echo loss=1", cells=1))
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_no_descriptor_is_left_open(tmp_path: Path) -> None:
    search(tmp_path / "warm", grid("echo loss=1", cells=1))
    before = len(os.listdir("/dev/fd"))
    search(tmp_path / "one", grid("echo loss=1; [ ${trialParameters.letter} != b ]", cells=6, parallel=3))
    assert len(os.listdir("/dev/fd")) == before


# Early stopping.

WORSE = "for step in 1 2 3 4 5 6; do echo loss=9; done; sleep 60"


def medianstop(folder: Path, script: str, **settings: str) -> SearchResult:
    """Run six trials one by one: the first three report 1 four times, the others what the script prints."""
    stopping = EarlyStopping("medianstop", settings)
    count = folder / "count"
    whole = (
        f"echo x >> '{count}'; if [ $(wc -l < '{count}') -le 3 ]; then for step in 1 2 3 4; do echo loss=1; done; "
        f"else {script}; fi"
    )
    return search(folder / "searches", grid(whole, cells=4, stopping=stopping))


def test_a_trial_worse_than_the_median_is_stopped(tmp_path: Path) -> None:
    started = time.monotonic()
    result = medianstop(tmp_path, WORSE)
    assert time.monotonic() - started < 20
    assert [trial.status for trial in result.trials] == ["succeeded"] * 3 + ["early_stopped"]
    stopped = result.trials[3]
    assert stopped.objective == 9.0
    assert "after 4 reports the best loss is 9.0, above 1.0" in stopped.message
    assert result.reason == "ExperimentMaxTrialsReached"


def test_a_trial_as_good_as_the_median_goes_on(tmp_path: Path) -> None:
    result = medianstop(tmp_path, "for step in 1 2 3 4; do echo loss=1; done; sleep 0.2; echo loss=0.5")
    assert result.count("succeeded") == 4


def test_settings_of_the_rule_are_heeded(tmp_path: Path) -> None:
    result = medianstop(tmp_path, "echo loss=9; sleep 0.3; echo loss=0.5", min_trials_required="4", start_step="1")
    assert result.count("succeeded") == 4


# One search, several calls.


def test_a_finished_search_is_not_run_again(tmp_path: Path) -> None:
    diary = tmp_path / "diary"
    experiment = grid(f"echo x >> '{diary}'; echo loss=1")
    first = search(tmp_path / "searches", experiment)
    again = search(tmp_path / "searches", experiment)
    assert again == replace(first, resumed=3)
    assert first.resumed == 0
    assert len(diary.read_text().split()) == 3


def test_a_failed_search_begins_anew(tmp_path: Path) -> None:
    flag = tmp_path / "flag"
    experiment = make_experiment(shell(f"[ -e '{flag}' ] && echo loss=1"))
    for _ in range(2):
        with pytest.raises(TuningError, match=r"3 of 3 trials failed.*mend the cause, and run it again"):
            search(tmp_path / "searches", experiment)
    flag.touch()
    found = search(tmp_path / "searches", experiment)
    assert (found.count("succeeded"), found.resumed) == (3, 0)


def test_a_restart_forgets_everything(tmp_path: Path) -> None:
    diary = tmp_path / "diary"
    experiment = grid(f"echo x >> '{diary}'; echo loss=1")
    first = search(tmp_path / "searches", experiment)
    (Path(first.facts["folder"]) / "trials" / "old.log").touch()
    assert search(tmp_path / "searches", experiment, restart=True).resumed == 0
    assert len(diary.read_text().split()) == 6
    assert not (Path(first.facts["folder"]) / "trials" / "old.log").exists()


def test_a_restart_helps_against_a_damaged_state(tmp_path: Path) -> None:
    experiment = grid("echo loss=1")
    folder = Path(search(tmp_path, experiment).facts["folder"])
    (folder / FILE_NAME).write_bytes(b"damaged" * 1000)
    with pytest.raises(TuningError, match=r"search\.sqlite: not readable"):
        search(tmp_path, experiment)
    assert search(tmp_path, experiment, restart=True).count("succeeded") == 3


class Stopped(Exception):
    """Raised by a progress callback to stop a search in its middle."""


def stop_after(folder: Path, experiment: Experiment, finished: int) -> None:
    def progress(phase: str, done: int, total: int) -> None:
        if done == finished:
            raise Stopped

    with pytest.raises(Stopped):
        LocalTuner(folder, any_command=True).search(experiment, progress)


@pytest.mark.parametrize("algorithm", ["random", "tpe", "multivariate-tpe", "cmaes", "sobol"])
def test_a_search_goes_on_with_the_suggestions_it_would_have_had(tmp_path: Path, algorithm: str) -> None:
    script = "echo loss=${trialParameters.number}${trialParameters.other}"
    other = Parameter("other", "int", 1, 9)
    experiment = make_experiment(shell(script), trials=14, algorithm=algorithm, parameters=(NUMBER, other))
    whole = search(tmp_path / "whole", experiment)
    stop_after(tmp_path / "parts", experiment, 5)
    stop_after(tmp_path / "parts", experiment, 12)
    parts = search(tmp_path / "parts", experiment)
    assert parts.resumed == 12
    assert [trial.parameters for trial in parts.trials] == [trial.parameters for trial in whole.trials]
    assert [trial.name for trial in parts.trials] == [trial.name for trial in whole.trials]


def test_failed_and_stopped_trials_are_replayed_as_such(tmp_path: Path) -> None:
    script = "echo loss=${trialParameters.number}; case ${trialParameters.number} in *[02468]) false;; esac"
    experiment = make_experiment(shell(script), trials=16, algorithm="tpe")
    whole = search(tmp_path / "whole", experiment)
    assert whole.count("failed") > 2
    stop_after(tmp_path / "parts", experiment, 11)
    parts = search(tmp_path / "parts", experiment)
    assert [trial.parameters for trial in parts.trials] == [trial.parameters for trial in whole.trials]


def test_trials_that_were_running_run_again_first(tmp_path: Path) -> None:
    diary = tmp_path / "diary"
    script = f"echo ${{trialParameters.letter}} >> '{diary}'; sleep 0.1; echo loss=1"
    experiment = grid(script, cells=6, parallel=2)
    stop_after(tmp_path / "searches", experiment, 2)
    unfinished = [entry.trial for entry in stored(tmp_path / "searches") if entry.trial.status == "running"]
    assert unfinished
    before = diary.read_text().split()
    result = search(tmp_path / "searches", experiment)
    after = diary.read_text().split()[len(before) :]
    assert set(after[: len(unfinished)]) == {trial.parameters["letter"] for trial in unfinished}
    assert sorted(set(before + after)) == list(LETTERS.values)
    for trial in unfinished:
        assert result.trials[trial.number].name == trial.name
        assert result.trials[trial.number].status == "succeeded"
    assert len(after) == 6 - result.resumed


def test_other_suggestions_than_the_stored_ones_are_refused(tmp_path: Path) -> None:
    experiment = grid("echo loss=1", cells=3)
    stop_after(tmp_path, experiment, 1)
    (folder,) = tmp_path.iterdir()
    with SearchState(folder) as state:
        first = state.read_trials()[0]
        state.write([replace(first, trial=replace(first.trial, parameters={"letter": "z"}))])
        state._connection.execute("""UPDATE search SET versions = '{"optuna": "1.0"}'""")
    with pytest.raises(TuningError, match=r"had \{'letter': 'z'\}.*suggests.*optuna 1.0 to .*--restart"):
        search(tmp_path, experiment)


def test_one_key_is_one_search(tmp_path: Path) -> None:
    search(tmp_path, grid("echo loss=1"), key="data-1")
    with pytest.raises(TuningError, match="the state of another search"):
        search(tmp_path, grid("echo loss=1", goal=0.5, parallel=2), key="data-1")


def test_data_that_moved_does_not_change_the_suggestions(tmp_path: Path) -> None:
    def experiment(place: str) -> Experiment:
        return make_experiment(shell("echo loss=1"), trials=6).with_environment({"DATA": place})

    stop_after_key = LocalTuner(tmp_path, any_command=True, key="data-1")

    def stop(phase: str, done: int, total: int) -> None:
        if done == 3:
            raise Stopped

    with pytest.raises(Stopped):
        stop_after_key.search(experiment("/here"), stop)
    assert search(tmp_path, experiment("/there"), key="data-1").resumed == 3


def test_a_second_tuner_of_the_same_search_is_refused(tmp_path: Path) -> None:
    experiment = grid("echo loss=1")
    refused: list[str] = []

    def progress(phase: str, done: int, total: int) -> None:
        if done == 1:
            with pytest.raises(TuningError) as caught:
                search(tmp_path, experiment)
            refused.append(str(caught.value))

    assert LocalTuner(tmp_path, any_command=True).search(experiment, progress).count("succeeded") == 3
    assert len(refused) == 1
    assert f"process {os.getpid()} on " in refused[0]


@NEEDS_PROC
def test_an_exception_of_the_caller_leaves_no_process(tmp_path: Path) -> None:
    script = "if [ ${trialParameters.letter} = b ]; then echo loss=1; else exec sleep 63.25; fi"
    stop_after(tmp_path, grid(f"( {script} )", cells=3, parallel=3), 1)
    assert not find_commands("63.25")


# What is refused.

JOB = make_job(["true"])


def job(**changes: Any) -> dict[str, Any]:
    """Return a Job with a dotted path of its pod or its own spec set, written with `__` for the dots."""
    changed = json.loads(json.dumps(make_job(["echo", "loss=1"])))
    for path, value in changes.items():
        *way, last = path.split("__")
        place = changed
        for part in way:
            place = place.setdefault(part, {})
        place[last] = value
    return dict(changed)


SPEC = "spec__template__spec__"
REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("another kind", {"job": job(kind="TrainJob")}, "trialSpec.kind: batch/v1 TrainJob"),
    ("another version", {"job": job(apiVersion="batch/v1beta1")}, "trialSpec.kind: batch/v1beta1 Job"),
    ("a ConfigMap", {"template": {"configMap": {"configMapName": "a"}}}, "configMap: a template in a ConfigMap"),
    ("a condition", {"template": {"successCondition": "status.x"}}, 'successCondition: "status.x"; on this machine'),
    ("an unknown field of the template", {"template": {"other": 1}}, "trialTemplate.other: 1"),
    ("an unknown field of the Job", {"job": job(status={"x": 1})}, "trialSpec.status"),
    ("several pods at once", {"job": job(spec__parallelism=2)}, "spec.parallelism: 2; a trial is one process"),
    ("several completions", {"job": job(spec__completions=3)}, "spec.completions: 3; a trial is one process"),
    ("a suspended Job", {"job": job(spec__suspend=True)}, "spec.suspend: true"),
    ("a failure policy", {"job": job(spec__podFailurePolicy={"rules": [1]})}, "spec.podFailurePolicy"),
    ("a deadline of text", {"job": job(spec__activeDeadlineSeconds="9")}, 'activeDeadlineSeconds: "9"; a whole'),
    ("a deadline of 0", {"job": job(spec__activeDeadlineSeconds=0)}, "activeDeadlineSeconds: 0; a whole"),
    ("retries below 0", {"job": job(spec__backoffLimit=-1)}, "backoffLimit: -1; a whole number from 0"),
    ("no restart policy", {"job": job(**{f"{SPEC}restartPolicy": None})}, "restartPolicy: null; a process is not"),
    ("restarts in place", {"job": job(**{f"{SPEC}restartPolicy": "OnFailure"})}, 'restartPolicy: "OnFailure"'),
    ("init containers", {"job": job(**{f"{SPEC}initContainers": [{"name": "a"}]})}, "spec.initContainers"),
    ("volumes", {"job": job(**{f"{SPEC}volumes": [{"name": "a"}]})}, "spec.volumes: .*; there are no volumes"),
    ("the host's network", {"job": job(**{f"{SPEC}hostNetwork": True})}, "spec.hostNetwork"),
    ("a deadline of the pod", {"job": job(**{f"{SPEC}activeDeadlineSeconds": 1})}, "template.spec.activeDeadline"),
    (
        "a second container",
        {"job": job(**{f"{SPEC}containers": [{"name": "main", "command": ["a"]}, {"name": "b"}]})},
        "spec.containers: 2 containers; a trial is one process",
    ),
    ("containers of text", {"job": job(**{f"{SPEC}containers": []})}, "spec.containers: 0 containers"),
    (
        "a container of another name",
        {"job": job(**{f"{SPEC}containers": [{"name": "b", "command": ["a"]}]})},
        "primaryContainerName: main; no container",
    ),
    ("mounts", {"container": {"volumeMounts": [{"name": "a"}]}}, r"containers\[main\].volumeMounts"),
    ("a probe", {"container": {"livenessProbe": {"exec": {}}}}, "livenessProbe"),
    ("envFrom", {"container": {"envFrom": [{"secretRef": {}}]}}, "envFrom: .*there are no Secrets"),
    (
        "a secret",
        {"container": {"env": [{"name": "TOKEN", "valueFrom": {"secretKeyRef": {"name": "a"}}}]}},
        "env.TOKEN: valueFrom secretKeyRef; .*Fix: export TOKEN before the call",
    ),
    ("a variable that is a number", {"container": {"env": [{"name": "N", "value": 1}]}}, "env.N: 1; Kubernetes takes"),
    ("a variable without a name", {"container": {"env": [{"value": "a"}]}}, "env: null; a variable needs a name"),
    (
        "a GPU",
        {"container": {"resources": {"limits": {"nvidia.com/gpu": 1}}}},
        "limits.nvidia.com/gpu: 1; devices are not divided",
    ),
    ("a requested GPU", {"container": {"resources": {"requests": {"amd.com/gpu": 1}}}}, "requests.amd.com/gpu"),
    ("a disk limit", {"container": {"resources": {"limits": {"ephemeral-storage": "1Gi"}}}}, "ephemeral-storage"),
    ("claims", {"container": {"resources": {"claims": [{"name": "a"}]}}}, "resources.claims"),
    ("a limit that is none", {"container": {"resources": {"limits": {"memory": "much"}}}}, "memory: much; a quantity"),
    ("a folder that is not there", {"container": {"workingDir": "/no/such/folder"}}, "workingDir: /no/such/folder"),
    ("a relative folder", {"container": {"workingDir": "."}}, "workingDir: .; an absolute path"),
    ("no command", {"command": [], "container": {"args": ["a"]}}, r"containers\[main\].command: none; what the image"),
    ("a command of numbers", {"command": ["sleep", 1]}, "command: .*; a list of text"),
    ("a shell alone", {"command": ["sh"]}, "command: sh; Katib cannot read a shell alone"),
    ("a collector of its own", {"collector": Collector("Custom")}, "collector.kind: Custom; StdOut and File"),
    ("TensorFlow's events", {"collector": Collector("TensorFlowEvent", "/a")}, "collector.kind: TensorFlowEvent"),
    ("no collector", {"collector": Collector("None")}, "collector.kind: None"),
    (
        "a metrics file that the command does not name",
        {
            "collector": Collector("File", "/a/metrics.log"),
            "command": ["echo", "/a/metrics.log.old", "/b/a/metrics.log"],
        },
        "fileSystemPath.path: /a/metrics.log; it has to occur",
    ),
    ("an algorithm", {"algorithm": "hyperband"}, "algorithmName: hyperband"),
    ("a distribution", {"parameters": (replace(NUMBER, distribution="normal"),)}, "distribution: normal"),
    ("early stopping", {"stopping": EarlyStopping("other")}, "earlyStopping.algorithmName: 'other'"),
]


@pytest.mark.parametrize(("options", "message"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED])
def test_what_one_machine_cannot_do_is_refused(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    options = {"command": ["echo", "loss=1"], **options}
    with pytest.raises(UsageError, match=message):
        LocalTuner(tmp_path, any_command=True).check(make_experiment(**options))
    assert not list(tmp_path.iterdir())


def test_a_memory_limit_that_cannot_be_kept_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = make_experiment(["true"], container={"resources": {"limits": {"memory": "1Gi"}}})
    LocalTuner(tmp_path, any_command=True).check(experiment)
    monkeypatch.setattr("mlflywheel.tuning.jobs.can_measure_memory", lambda: False)
    with pytest.raises(UsageError, match=r"limits.memory: 1Gi; this system does not show"):
        LocalTuner(tmp_path, any_command=True).check(experiment)


def test_what_only_says_where_a_pod_runs_is_passed_over(tmp_path: Path) -> None:
    placed = job(
        metadata={"labels": {"a": "b"}, "annotations": {"sidecar.istio.io/inject": "false"}},
        spec__ttlSecondsAfterFinished=5,
        spec__parallelism=1,
        spec__completions=1,
        spec__template__metadata={"annotations": {"sidecar.istio.io/inject": "false"}},
        **{
            f"{SPEC}nodeSelector": {"a": "b"},
            f"{SPEC}tolerations": [{"key": "a"}],
            f"{SPEC}serviceAccountName": "a",
            f"{SPEC}imagePullSecrets": [{"name": "a"}],
            f"{SPEC}initContainers": [],
            f"{SPEC}volumes": None,
        },
    )
    (container,) = placed["spec"]["template"]["spec"]["containers"]
    container.update(
        imagePullPolicy="Always",
        resources={"requests": {"cpu": "2", "memory": "4Gi"}, "limits": {"cpu": 1}},
        securityContext={"runAsNonRoot": True},
    )
    template = {"retain": True, "primaryPodLabels": {"a": "b"}}
    LocalTuner(tmp_path, any_command=True).check(make_experiment(job=placed, template=template))


@pytest.mark.parametrize(
    "command",
    [
        ["true"],
        ["sh", "-c", "mlflywheel --version"],
        ["python", "train.py"],
        ["python", "-m", "mlflywheel_evil"],
        ["python", "-c", "import mlflywheel"],
        ["python", "-u", "-m", "mlflywheel"],
        ["env", "mlflywheel"],
        ["/tmp/mlflywheel", "--version"],
    ],
)
def test_other_commands_need_leave(tmp_path: Path, command: list[str]) -> None:
    with pytest.raises(UsageError, match="Fix: read the command, and allow it with --any-command"):
        LocalTuner(tmp_path).check(make_experiment(command))
    LocalTuner(tmp_path, any_command=True).check(make_experiment(command))


@pytest.mark.parametrize(
    "word", ["a b", "$(id)", "`id`", "a;b", "a&b", "a|b", "a>b", "'a'", "*", "~", "", "a\nb", "$X"]
)
def test_own_commands_take_no_word_that_katibs_shell_would_take_apart(tmp_path: Path, word: str) -> None:
    for any_command in (False, True):
        with pytest.raises(UsageError, match="Katib joins the words without quotes"):
            LocalTuner(tmp_path, any_command=any_command).check(make_experiment(["mlflywheel", word]))


def test_every_listed_value_is_checked_as_a_word(tmp_path: Path) -> None:
    kinds = Parameter("kind", "categorical", values=("plain", "1e-05", "two words"))
    command = ["python", "-m", "mlflywheel.tuning.trial", "kind=${trialParameters.kind}"]
    with pytest.raises(UsageError, match="the word 'kind=two words'"):
        LocalTuner(tmp_path).check(make_experiment(command, parameters=(kinds,)))
    LocalTuner(tmp_path).check(make_experiment(command, parameters=(replace(kinds, values=kinds.values[:2]),)))


def test_a_trial_cannot_give_itself_leave(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="must not give itself leave"):
        LocalTuner(tmp_path).check(make_experiment(["mlflywheel", "tune", "--any-command"]))


@pytest.mark.parametrize("name", ["PYTHONPATH", "PYTHONSTARTUP", "LD_PRELOAD", "PATH"])
def test_variables_that_choose_the_code_need_leave(tmp_path: Path, name: str) -> None:
    command = ["python", "-m", "mlflywheel.tuning.trial"]
    experiment = make_experiment(command, container={"env": [{"name": name, "value": "/a"}]})
    with pytest.raises(UsageError, match=f"env.{name}: .*it decides which code runs"):
        LocalTuner(tmp_path).check(experiment)
    LocalTuner(tmp_path, any_command=True).check(experiment)
    harmless = make_experiment(command, container={"env": [{"name": "PYTHONUNBUFFERED", "value": "1"}]})
    LocalTuner(tmp_path).check(harmless)


def test_a_metrics_file_needs_a_folder_without_special_characters(tmp_path: Path) -> None:
    experiment = make_experiment(["tee", "/a/metrics.log"], collector=Collector("File", "/a/metrics.log"))
    with pytest.raises(UsageError, match="without quotes"):
        LocalTuner(tmp_path / "two words", any_command=True).check(experiment)


def test_own_commands_run_under_this_interpreter_and_others_as_katib_writes_them(tmp_path: Path) -> None:
    files = TrialFiles(tmp_path / "log", tmp_path / "outside", tmp_path / "mark", tmp_path / "own")

    def words(command: list[str], **options: Any) -> tuple[str, ...]:
        experiment = make_experiment(command, **options)
        rendered = experiment.template.render({"number": "0.5"}, "search-1")
        return build_command(experiment, rendered, files, any_command=True).words

    module = ["/opt/python3.11", "-m", "mlflywheel.tuning.trial"]
    value = "x=${trialParameters.number}"
    assert words([*module, value]) == (sys.executable, "-m", "mlflywheel.tuning.trial", "x=0.5")
    assert words(["mlflywheel", "doctor"]) == (sys.executable, "-m", "mlflywheel", "doctor")
    end = f"1>{files.log} 2>&1 && echo completed > {files.mark}"
    assert words(["python", "-c", "print(1)"]) == ("sh", "-c", f"python -c print(1) {end}")
    assert words(["bash", "-c", "a $(KATIB_TRIAL_NAME) $$$$"]) == ("bash", "-c", f"a search-1 $$ {end}")
    assert words(["bash", "-x", "-c", "a"]) == ("sh", "-c", f"bash -x -c a {end}")
    filed = words(["a", "/m/log"], collector=Collector("File", "/m/log"))
    assert filed == ("sh", "-c", f"a {files.own / 'log'} && echo completed > {files.mark}")


@pytest.mark.parametrize(
    ("text", "expanded"),
    [
        ("$(A)", "1"),
        ("$(A)$(A)", "11"),
        ("$$(A)", "$(A)"),
        ("$$$(A)", "$1"),
        ("$(B)", "$(B)"),
        ("$(A", "$(A"),
        ("$A ${A} $", "$A ${A} $"),
        ("$(LOOP)", "$(A)"),
    ],
)
def test_variables_expand_as_kubernetes_expands_them(text: str, expanded: str) -> None:
    assert expand_variables(text, {"A": "1", "LOOP": "$(A)"}) == expanded


@pytest.mark.parametrize(
    ("text", "size"),
    [("128974848", 128974848), ("129e6", 129_000_000), ("129M", 129_000_000), ("123Mi", 128974848), ("1.5Ki", 1536)],
)
def test_quantities_are_kubernetess(text: str, size: int) -> None:
    assert read_quantity(text) == size


@pytest.mark.parametrize("text", ["", "Mi", "1 Gi", "1gb", "1.2.3", "nan", "1e999999999", "0x10"])
def test_what_is_no_quantity_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no quantity"):
        read_quantity(text)


def find_commands(word: str) -> list[int]:
    found = []
    for entry in list_processes():
        try:
            words = Path(f"/proc/{entry.pid}/cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if word.encode() in words:
            found.append(entry.pid)
    return found


def test_a_hundred_trials_take_seconds(tmp_path: Path) -> None:
    started = time.monotonic()
    result = search(tmp_path, make_experiment(["echo", "loss=1"], trials=100))
    seconds = time.monotonic() - started
    assert result.count("succeeded") == 100
    # 0.7 s on an idle machine: a sleep of 0.1 s a trial would show.
    assert seconds < 10
    assert all(math.isclose(trial.objective or 0, 1.0) for trial in result.trials)
