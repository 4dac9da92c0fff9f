"""The command of one trial, run as Katib and the local executor run it."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from planted_campaigns import plant_campaigns

from mlflywheel.data.splitting import split
from mlflywheel.errors import ModelError, UsageError
from mlflywheel.tuning.trial import INPUT_VARIABLE, TrialInput, cut_validation, format_metric, main, run_trial

METRICS = ["neighbour_purity_at_10", "topic_diversity"]
# As Katib's collector reads a line (its default filter, in Python's syntax).
KATIB_LINE = re.compile(r"([\w|-]+)\s*=\s*([+-]?\d*(\.\d+)?([Ee][+-]?\d+)?)", re.ASCII)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "train.parquet"
    pq.write_table(plant_campaigns(150), path)
    return path


def describe(rows: Path | str, **changes: Any) -> str:
    return json.dumps({"data": str(rows), "model": "topic-fingerprints", "metrics": METRICS, **changes})


def call(variable: str | None, *words: str) -> "subprocess.CompletedProcess[str]":
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment.pop(INPUT_VARIABLE, None)
    if variable is not None:
        environment[INPUT_VARIABLE] = variable
    command = [sys.executable, "-m", "mlflywheel.tuning.trial", *words]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)


def test_a_trial_prints_what_katib_reads(rows: Path) -> None:
    finished = call(describe(rows, params={"num_topics": 12, "text": {"bigrams": False}}), "num_topics=6")
    assert finished.returncode == 0, finished.stderr
    lines = finished.stdout.splitlines()
    assert [KATIB_LINE.fullmatch(line)[1] for line in lines] == METRICS  # type: ignore[index]
    printed = {found[1]: float(found[2]) for found in map(KATIB_LINE.fullmatch, lines) if found}
    given = TrialInput.parse(describe(rows, params={"text": {"bigrams": False}}), "test")
    assert printed == run_trial(given, {"num_topics": 6})
    assert printed["neighbour_purity_at_10"] > 0.9


@pytest.mark.parametrize("value", [1e-07, -3.25e-12, 123456789.125, 0.1, 5e20, 0.0, 1 / 3])
def test_a_value_is_a_plain_decimal_that_reads_back(value: float) -> None:
    line = format_metric("m", value)
    assert re.fullmatch(r"m=-?\d+(\.\d+)?", line)
    assert float(line.partition("=")[2]) == value


@pytest.mark.parametrize(
    ("variable", "words", "told"),
    [
        (None, [], "MLFLYWHEEL_TRIAL: not set"),
        ("{", [], "MLFLYWHEEL_TRIAL: not JSON"),
        ('{"data": "x"}', [], "MLFLYWHEEL_TRIAL, model"),
        ("ROWS", ["num_topics"], "trial argument num_topics: no name and value"),
        ("ROWS", ["num_topic=3"], "trial parameters, num_topic"),
        ("ROWS", ["num_topics=300"], "trial parameters, num_topics: 300"),
        ("ROWS", ["num_topics=3", "num_topics=4"], "given twice"),
        ("ROWS", ["text=3", "text.bigrams=true"], "text has a value of its own"),
    ],
)
def test_bad_input_exits_with_2_and_names_the_place(
    rows: Path,
    variable: str | None,
    words: list[str],
    told: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv(INPUT_VARIABLE, raising=False)
    if variable is not None:
        monkeypatch.setenv(INPUT_VARIABLE, variable.replace("ROWS", describe(rows)))
    assert main(words) == 2
    printed = capsys.readouterr()
    assert told in printed.err
    assert "Fix: " in printed.err
    assert printed.out == ""


def test_missing_rows_exit_with_1(tmp_path: Path) -> None:
    finished = call(describe(tmp_path / "none.parquet"))
    assert finished.returncode == 1
    assert "none.parquet" in finished.stderr
    assert "Traceback" not in finished.stderr


def test_a_metric_without_a_value_fails_and_says_why(rows: Path) -> None:
    table = plant_campaigns(60).drop_columns(["vertical"])
    given = TrialInput.parse(describe(rows), "test")
    with pytest.raises(ModelError, match=r"no vertical to compare with.*objectiveMetricName"):
        run_trial(given, {"num_topics": 4}, table)


def test_an_unknown_metric_is_refused(rows: Path) -> None:
    given = TrialInput.parse(describe(rows, metrics=["auc"]), "test")
    with pytest.raises(UsageError, match="metric auc: not measured by this model"):
        run_trial(given, {"num_topics": 4})


def test_the_validation_part_is_a_fair_share_of_rows_split_by_the_same_seed() -> None:
    """Rows that a split has left are not ordered by their hash when the trial splits them again."""
    train = split(plant_campaigns(600), "random", 0.2, 0).train
    parts = cut_validation(TrialInput.parse(describe("unused", validation_fraction=0.25), "test"), train)
    assert parts.holdout.num_rows / train.num_rows == pytest.approx(0.25, abs=0.06)
    assert parts.train.num_rows + parts.holdout.num_rows == train.num_rows


def test_the_validation_part_keeps_groups_together() -> None:
    train = plant_campaigns(200)
    given = TrialInput.parse(describe("unused", split_method="grouped", split_column="vertical"), "test")
    parts = cut_validation(given, train)
    assert not set(parts.train["vertical"].to_pylist()) & set(parts.holdout["vertical"].to_pylist())
