"""`mlflywheel run --set tune=true` and `mlflywheel tune` as a user types them: real trials, small ones."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from command_line import LEAN_PLAN, NO_RULES, Finished, run, start

from mlflywheel.pipelines.catalog import find_pipeline
from mlflywheel.registry import EmbeddedRegistry

GATES = '{"schema": 1, "gates": [{"metric": "coherence_c_npmi", "at_least": -1}]}'
SPACE = {
    "num_topics": {"parameterType": "int", "feasibleSpace": {"min": "6", "max": "20"}},
    "text.bigrams": {"parameterType": "categorical", "feasibleSpace": {"list": ["true", "false"]}},
}


def write_experiment(folder: Path, trials: int, **objective: Any) -> Path:
    """Write the pipeline's own experiment with another space, so that its template is what is tested."""
    document = yaml.safe_load((find_pipeline("ad-campaigns").folder / "experiment.yaml").read_text(encoding="utf-8"))
    spec = document["spec"]
    spec["parameters"] = [{"name": name, **value} for name, value in SPACE.items()]
    spec["maxTrialCount"] = spec["maxFailedTrialCount"] = trials
    spec["objective"].update(objective)
    template = spec["trialTemplate"]
    template["trialParameters"] = [{"name": name.replace(".", ""), "reference": name} for name in SPACE]
    container = template["trialSpec"]["spec"]["template"]["spec"]["containers"][0]
    container["args"] = [f"{name}=${{trialParameters.{name.replace('.', '')}}}" for name in SPACE]
    path = folder / "experiment.yaml"
    path.write_text(yaml.safe_dump(document), encoding="utf-8")
    return path


def call(folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "mlflywheel", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=400, check=False)


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory, sample: Path) -> Finished:
    folder = tmp_path_factory.mktemp("tuned")
    write_experiment(folder, 3)
    (folder / "gates.yaml").write_text(GATES, encoding="utf-8")
    words = ["--set", "tune=true", "--experiment", "experiment.yaml", "--gates", "gates.yaml"]
    words += ["--set", f"expectations={NO_RULES}", "--set", f"plan={LEAN_PLAN}"]
    # Two topics for eight verticals: nearly any trial is better.
    return run(folder, "--data", str(sample), *words, "--param", "num_topics=2", "--param", "seed=5", "--json")


def test_a_run_trains_on_the_best_trial(tuned: Finished) -> None:
    assert tuned.code == 0, tuned.errors
    summary = tuned.summary
    found = summary["tuning"]
    assert found["improved"]
    assert found["best"] > found["baseline"]
    assert (found["trials"], found["succeeded_trials"], found["resumed_trials"]) == (3, 3, 0)
    assert summary["parameters"]["num_topics"] == int(found["best_parameters"]["num_topics"])
    assert str(summary["parameters"]["text"]["bigrams"]).lower() == found["best_parameters"]["text.bigrams"]
    assert summary["parameters"]["seed"] == 5
    (version,) = EmbeddedRegistry(tuned.folder / "runs" / "registry.sqlite").list_versions("ad-campaigns")
    assert json.loads(version.lineage["params"]) == found["params"]


def test_the_search_is_in_the_report_and_in_the_events(tuned: Finished) -> None:
    for title in ("History", "Trials", "neighbour_purity_at_10"):
        assert title in tuned.report
    assert "✓ tuning" in tuned.errors
    search = json.loads(Path(tuned.summary["artifacts"]["search"]).read_text(encoding="utf-8"))
    assert [trial["status"] for trial in search["result"]["trials"]] == ["succeeded"] * 3


def test_the_search_sees_none_of_the_held_out_rows(tuned: Finished) -> None:
    (train,) = tuned.folder.glob("runs/ad-campaigns/*/artifacts/*/split-table/train")
    (holdout,) = tuned.folder.glob("runs/ad-campaigns/*/artifacts/*/split-table/holdout")
    seen, unseen = (set(pq.read_table(path)["campaign_id"].to_pylist()) for path in (train, holdout))
    assert unseen
    assert not seen & unseen
    search = json.loads(Path(tuned.summary["artifacts"]["search"]).read_text(encoding="utf-8"))
    assert search["result"]["facts"]["folder"]
    for log in Path(search["result"]["facts"]["folder"]).glob("trials/*.log"):
        assert "neighbour_purity_at_10=" in log.read_text(encoding="utf-8")


def _events(folder: Path) -> list[Mapping[str, Any]]:
    return [
        json.loads(line)
        for path in folder.glob("runs/ad-campaigns/*/events.jsonl")
        for line in path.read_text(encoding="utf-8").splitlines()
    ]


@pytest.mark.long
def test_the_search_of_a_killed_run_is_taken_up(tmp_path: Path, sample: Path) -> None:
    write_experiment(tmp_path, 6)
    (tmp_path / "gates.yaml").write_text(GATES, encoding="utf-8")
    words = ["--data", str(sample), "--set", "tune=true", "--experiment", "experiment.yaml", "--gates", "gates.yaml"]
    child = start(tmp_path, *words)
    deadline = time.monotonic() + 200
    while not any(e["event"] == "progress" and e["phase"] == "trials" and e["done"] >= 1 for e in _events(tmp_path)):
        assert time.monotonic() < deadline
        assert child.poll() is None, child.communicate()[1]
        time.sleep(0.1)
    child.send_signal(signal.SIGINT)
    child.communicate(timeout=60)
    assert child.returncode == 130
    assert not _lives("mlflywheel.tuning.trial", tmp_path)
    (first,) = tmp_path.glob("runs/ad-campaigns/*")
    assert json.loads((first / "summary.json").read_text(encoding="utf-8"))["status"] == "failed"
    # The same search, without the rest of the run.
    second = call(tmp_path, "tune", "ad-campaigns", *words[:2], "--experiment", "experiment.yaml", "--json")
    assert second.returncode == 0, second.stderr
    found = json.loads(second.stdout)["result"]
    assert [trial["status"] for trial in found["trials"]] == ["succeeded"] * 6
    assert found["resumed"] >= 1


def _lives(word: str, folder: Path) -> list[str]:
    """Return the command lines with a word of processes that were started for a folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            command = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            environment = (path / "environ").read_bytes()
        except OSError:
            continue
        if word in command and os.fsencode(folder) in environment:
            found.append(command)
    return found


@pytest.mark.long
def test_tune_prints_what_to_train_with_and_takes_it_up_again(tmp_path: Path, sample: Path) -> None:
    experiment = write_experiment(tmp_path, 2)
    words = ["tune", "ad-campaigns", "--data", str(sample), "--experiment", str(experiment), "--param", "num_topics=2"]
    first = call(tmp_path, *words)
    assert first.returncode == 0, first.stderr
    assert "2 trials: 2 succeeded" in first.stdout
    assert "run ad-campaigns --param num_topics=" in first.stdout
    again = json.loads(call(tmp_path, *words, "--json").stdout)
    assert again["result"]["resumed"] == 2
    assert again["facts"]["improved"]
    assert all(Path(path).exists() for path in again["artifacts"].values())


def test_tune_runs_any_experiment_when_it_may(tmp_path: Path) -> None:
    document = yaml.safe_load(write_experiment(tmp_path, 4).read_text(encoding="utf-8"))
    document["spec"]["objective"] = {"type": "minimize", "objectiveMetricName": "loss"}
    container = document["spec"]["trialTemplate"]["trialSpec"]["spec"]["template"]["spec"]["containers"][0]
    container["command"] = ["sh", "-c", "echo loss=0.${trialParameters.num_topics} for ${trialParameters.textbigrams}"]
    del container["args"]
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(document), encoding="utf-8")
    refused = call(tmp_path, "tune", "mine.yaml")
    assert refused.returncode == 2
    assert "--any-command" in refused.stderr
    done = call(tmp_path, "tune", "mine.yaml", "--any-command", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    best = next(trial for trial in found["result"]["trials"] if trial["name"] == found["result"]["best"])
    values = [float(f"0.{trial['parameters']['num_topics']}") for trial in found["result"]["trials"]]
    assert best["objective"] == min(values)


@pytest.mark.parametrize(
    ("edit", "told"),
    [
        (("algorithmName: multivariate-tpe", "algorithmName: multivarate-tpe"), "multivariate-tpe"),
        (("maxTrialCount: 3", "maxTrialCount: 0"), "spec.maxTrialCount"),
        (("maxFailedTrialCount", "maxFailedTrials"), "maxFailedTrialCount"),
        (("max: '20'", "max: '5'"), "spec.parameters[0].feasibleSpace"),
        (("reference: num_topics", "reference: topics"), "reference"),
    ],
)
def test_check_names_the_field_and_exits_with_2(tmp_path: Path, edit: tuple[str, str], told: str) -> None:
    path = write_experiment(tmp_path, 3)
    text = path.read_text(encoding="utf-8")
    assert edit[0] in text
    path.write_text(text.replace(*edit), encoding="utf-8")
    checked = call(tmp_path, "tune", "--check", "experiment.yaml")
    assert checked.returncode == 2
    assert told in checked.stderr
    assert "experiment.yaml" in checked.stderr
    assert "Fix: " in checked.stderr


def test_check_says_what_it_read(tmp_path: Path) -> None:
    write_experiment(tmp_path, 3)
    checked = call(tmp_path, "tune", "--check", "experiment.yaml", "--json")
    assert checked.returncode == 0, checked.stderr
    assert json.loads(checked.stdout)["algorithm"] == "multivariate-tpe"
    named = call(tmp_path, "tune", "--check", "ad-campaigns", "--executor", "katib")
    assert named.returncode == 0, named.stderr
    assert not (tmp_path / "runs").exists()
