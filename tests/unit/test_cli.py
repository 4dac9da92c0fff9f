"""The command line without a pipeline run: reading options, exit codes, and one line for a user's mistake."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from mlflywheel import Client
from mlflywheel.cli import app
from mlflywheel.errors import UsageError
from mlflywheel.models.topic_fingerprints import TopicFingerprints
from mlflywheel.registry import EmbeddedRegistry
from mlflywheel.samples.ad_campaigns import generate_ad_campaigns

COMMANDS = (
    ["run"],
    ["compile"],
    ["sample"],
    ["score"],
    ["explain"],
    ["rebuild"],
    ["testscore"],
    ["models", "list"],
    ["models", "show"],
    ["models", "approve"],
    ["models", "archive"],
    ["models", "card"],
    ["doctor"],
)


def call(*arguments: str, folder: Path | None = None) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "mlflywheel", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=folder,
        env={**os.environ, "COLUMNS": "200"},
    )


@pytest.fixture(scope="module")
def registered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of runs whose registry holds one small model."""
    runs = tmp_path_factory.mktemp("runs")
    raw = generate_ad_campaigns(campaigns=60)
    table = TopicFingerprints.prepare(raw, TopicFingerprints.Config())
    model = TopicFingerprints.fit(table, TopicFingerprints.Params(num_topics=5))
    digest = model.save(runs / "model")
    EmbeddedRegistry(runs / "registry.sqlite").ensure_version(
        "ad-campaigns",
        (runs / "model").as_uri(),
        key="run-1",
        format_name=model.format_name,
        format_version=model.format_version,
        hash=digest,
        metrics={"neighbour_purity_at_10": 0.9},
        lineage={"prepare": '{"split_terms": false}'},
    )
    return runs


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_has_help_with_an_example_and_json(command: list[str]) -> None:
    result = CliRunner().invoke(app, [*command, "--help"])
    assert result.exit_code == 0
    assert "mlflywheel " + " ".join(command) in result.output
    assert "--json" in result.output


def test_version_is_printed() -> None:
    result = CliRunner().invoke(app, ["--version"])
    assert result.output.startswith("mlflywheel 0.")


@pytest.mark.parametrize(
    ("arguments", "fix"),
    [
        (["run", "no-such-pipeline"], "Fix: correct the name."),
        (["run", "ad-campaigns", "--map", "vertical"], "--map"),
        (["run", "ad-campaigns", "--map", "industry=vertical"], "Fix:"),
        (["run", "ad-campaigns", "--param", "num_topics=1"], "num_topics"),
        (["run", "ad-campaigns", "--param", "topics=9"], "known names are"),
        (["run", "ad-campaigns", "--param", "rotated_lsa.seed=1"], "top level"),
        (["run", "ad-campaigns", "--prepare", "weighting=heavy"], "weighting"),
        (["run", "ad-campaigns", "--set", "no_such=1"], "not a parameter of the pipeline"),
        (["run", "ad-campaigns", "--set", "split_seed=one"], "a whole number is needed"),
        (["run", "ad-campaigns", "--set", "split_seed"], "NAME=VALUE is needed"),
        (["run", "ad-campaigns", "--gates", "missing.yaml"], "missing.yaml"),
        (["run", "missing.yaml"], "compiled pipeline YAML is needed"),
        (["sample", "ad-campaigns", "--output", "terms.xlsx"], ".parquet"),
        (["score", "ad-campaigns@", "--data", "x.csv"], "Fix:"),
        (["compile", "no-such-pipeline"], "Fix: correct the name."),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_usage_is_one_line_and_exit_code_2(arguments: list[str], fix: str, tmp_path: Path) -> None:
    data = tmp_path / "terms.csv"
    data.write_text("campaign_id,term\na,b\n", encoding="utf-8")
    if arguments[0] == "run" and len(arguments) > 2:
        arguments = [*arguments, "--data", str(data)]
    result = call(*arguments, folder=tmp_path)
    assert result.returncode == 2, result.stderr
    assert fix in result.stderr
    assert "Traceback" not in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert result.stdout == ""
    assert not (tmp_path / "runs").exists()


def test_unknown_option_is_wrong_usage(tmp_path: Path) -> None:
    assert call("run", "ad-campaigns", "--no-such-option", folder=tmp_path).returncode == 2


def test_unreadable_data_for_scoring_is_exit_code_1(registered: Path, tmp_path: Path) -> None:
    result = call("score", "ad-campaigns@1", "--data", "missing.csv", "--runs", str(registered), folder=tmp_path)
    assert result.returncode == 1
    assert "missing.csv: no such file" in result.stderr


def test_models_are_listed_and_shown(registered: Path, tmp_path: Path) -> None:
    listed = json.loads(call("models", "list", "--json", "--runs", str(registered), folder=tmp_path).stdout)
    assert [version["reference"] for version in listed] == ["ad-campaigns@1"]
    assert "ad-campaigns@1" in call("models", "list", "--runs", str(registered), folder=tmp_path).stdout
    shown = json.loads(
        call("models", "show", "ad-campaigns", "--json", "--runs", str(registered), folder=tmp_path).stdout
    )
    assert shown["metrics"] == {"neighbour_purity_at_10": 0.9}
    assert shown["history"][-1]["to_state"] == "candidate"
    text = call("models", "show", "ad-campaigns@1", "--runs", str(registered), folder=tmp_path).stdout
    assert "neighbour_purity_at_10" in text


def test_a_version_that_is_not_registered_is_an_error(registered: Path, tmp_path: Path) -> None:
    result = call("models", "show", "ad-campaigns@7", "--runs", str(registered), folder=tmp_path)
    assert result.returncode == 1
    assert "Fix:" in result.stderr


def test_empty_registry_says_what_to_do(tmp_path: Path) -> None:
    result = call("models", "list", folder=tmp_path)
    assert result.returncode == 0
    assert "mlflywheel run ad-campaigns" in result.stdout
    assert not (tmp_path / "runs").exists()


def test_scoring_by_name_and_by_folder_agree(registered: Path, tmp_path: Path) -> None:
    Client().sample("ad-campaigns", tmp_path / "new.csv", campaigns=20, seed=3)
    client = Client(registered)
    by_name = client.score("ad-campaigns@1", tmp_path / "new.csv", output=tmp_path / "scores.parquet")
    by_folder = client.score(registered / "model", tmp_path / "new.csv")
    assert set(by_name["model_version"].to_pylist()) == {"ad-campaigns@1"}
    assert by_name.drop_columns("model_version").equals(by_folder.drop_columns("model_version"))
    assert pq.read_table(tmp_path / "scores.parquet").num_rows == 20


def test_scoring_refuses_files_that_are_not_the_registered_ones(registered: Path, tmp_path: Path) -> None:
    import shutil

    runs = tmp_path / "runs"
    shutil.copytree(registered, runs)
    registry = EmbeddedRegistry(runs / "registry.sqlite")
    registry.ensure_version(
        "ad-campaigns", (runs / "model").as_uri(), key="run-2", format_name="f", format_version="1", hash="sha256:other"
    )
    result = call("score", "ad-campaigns@2", "--data", "x.csv", "--runs", str(runs), folder=tmp_path)
    assert result.returncode == 1
    assert "registered with sha256:other" in result.stderr


def test_sample_has_the_asked_size_and_repeats(tmp_path: Path) -> None:
    arguments = ("sample", "ad-campaigns", "--campaigns", "30", "--seed", "5", "--json", "--output")
    first = json.loads(call(*arguments, str(tmp_path / "a.parquet")).stdout)
    assert first["campaigns"] == 30
    call(*arguments, str(tmp_path / "b.parquet"))
    assert pq.read_table(tmp_path / "a.parquet").equals(pq.read_table(tmp_path / "b.parquet"))


def test_every_pipeline_has_a_sample_of_its_own_size(tmp_path: Path) -> None:
    told = json.loads(call("sample", "vehicle-prices", "--size", "40", "--json", "-o", str(tmp_path / "a.csv")).stdout)
    assert told["listings"] == 40
    assert (tmp_path / "a.csv").read_text(encoding="utf-8").count("\n") == 41
    path = Client().sample("vehicle-prices", tmp_path / "b.parquet")
    assert pq.read_metadata(path).num_rows > 6000


def test_sample_into_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x", encoding="utf-8")
    result = call("sample", "ad-campaigns", "--output", str(tmp_path / "file" / "terms.csv"))
    assert result.returncode == 1
    assert "Fix: choose another --output" in result.stderr


def test_compile_check_reports_yaml_that_is_out_of_date(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from mlflywheel.pipelines.catalog import PIPELINES, Pipeline

    assert CliRunner().invoke(app, ["compile", "--check"]).exit_code == 0
    stale = tmp_path / "pipeline.yaml"
    stale.write_text("older: true\n", encoding="utf-8")
    monkeypatch.setattr(Pipeline, "compiled", property(lambda self: stale))
    result = CliRunner().invoke(app, ["compile", "--check", "--json"])
    assert result.exit_code == 1
    assert json.loads(result.output)["differing"] == [str(stale)] * len(PIPELINES)
    assert stale.read_text(encoding="utf-8") == "older: true\n"
    assert CliRunner().invoke(app, ["compile"]).exit_code == 0
    assert PIPELINES[-1].name in stale.read_text(encoding="utf-8")


def test_doctor_finds_nothing_wrong_here(tmp_path: Path) -> None:
    result = call("doctor", "--json", folder=tmp_path)
    findings = json.loads(result.stdout)
    assert result.returncode == 0, findings
    assert findings["problems"] == 0
    subjects = {finding["subject"] for finding in findings["findings"]}
    assert {"python", "registry", "runs", "pipeline ad-campaigns"} <= subjects


def test_doctor_names_a_broken_registry_with_its_fix(tmp_path: Path) -> None:
    (tmp_path / "registry.sqlite").write_text("this is no database" * 100, encoding="utf-8")
    result = call("doctor", "--runs", str(tmp_path), folder=tmp_path)
    assert result.returncode == 1
    assert "✗ registry" in result.stdout
    assert "Fix:" in result.stdout


def test_importing_the_command_line_is_quick_to_start() -> None:
    heavy = ("kfp", "sklearn", "gensim", "pandas")
    code = f"import sys, mlflywheel.cli; print([name for name in {heavy} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert result.stdout.strip() == "[]"


def test_dotted_parameters_that_contradict_each_other_are_refused() -> None:
    from mlflywheel.cli import nest

    with pytest.raises(UsageError, match="leave one out"):
        nest({"text": 1, "text.bigrams": False})


def test_a_run_shows_itself_in_a_notebook() -> None:
    from mlflywheel.client import Run

    summary: dict[str, Any] = {
        "pipeline": "ad-campaigns",
        "run_id": "r",
        "status": "failed",
        "metrics": {"<b>": 0.5},
        "error": UsageError("here", "<i>", "x", "y").to_dict(),
        "model": None,
        "artifacts": {"report": "report.html"},
    }
    page = Run(summary)._repr_html_()
    assert "&lt;b&gt;" in page
    assert "<i>" not in page
    with pytest.raises(UsageError):
        Run(summary).raise_for_status()


def test_next_commands_can_be_typed_where_the_program_is_not_on_the_path(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from mlflywheel.console import name_command

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path / "nowhere"))
    monkeypatch.setattr(sys, "argv", [str(tmp_path / ".venv" / "bin" / "mlflywheel")])
    assert name_command() == ".venv/bin/mlflywheel"
    monkeypatch.setattr(sys, "argv", ["__main__.py"])
    assert name_command() == "python -m mlflywheel"
    program = tmp_path / "mlflywheel"
    program.touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert name_command() == "mlflywheel"
