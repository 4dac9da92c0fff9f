"""The commands submit, follow and schedules: what they print, and how they end."""

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from kfp_stand_in import Gate, Node, PipelinesStandIn, make_pipeline, play
from typer.testing import CliRunner, Result

from mlflywheel import cli
from mlflywheel.errors import MlflywheelError
from mlflywheel.runs.submission import prepare_submission

DATA = ("--data", "s3://bucket/terms.csv")


@pytest.fixture(scope="module")
def server() -> Iterator[PipelinesStandIn]:
    with PipelinesStandIn() as server:
        yield server


@pytest.fixture
def compiled(server: PipelinesStandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A compiled pipeline of a name of its own; the server is named by the variable, and the home is empty."""
    for name in ("KF_PIPELINES_SA_TOKEN_PATH", "KF_PIPELINES_UI_ENDPOINT", "KUBERNETES_SERVICE_HOST", "CI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("KF_PIPELINES_ENDPOINT", server.url)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    path = tmp_path / "small.yaml"
    path.write_text(make_pipeline("small-" + tmp_path.name.replace("_", "-").lower().rstrip("-")))
    return str(path)


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(cli.app, arguments)


def refuse(*arguments: str) -> MlflywheelError:
    error = invoke(*arguments).exception
    assert isinstance(error, MlflywheelError)
    return error


def test_standard_output_is_json_alone(compiled: str, tmp_path: Path) -> None:
    done = invoke("submit", compiled, *DATA, "--no-wait", "--json", "--service-account", "trainer")
    assert done.exit_code == 0
    told = json.loads(done.stdout)
    assert told["run"]["state"] == "pending"
    assert told["upload"]["is_new"]
    assert f"run {told['run']['run_id']} started" in done.stderr
    again = json.loads(invoke("submit", compiled, "--upload-only", "--json", "-q").stdout)
    assert again["upload"] == {**told["upload"], "is_new": False}
    assert list((tmp_path / "home").iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "where", "fix"),
    [
        ((), "--data", "object store"),
        (("--data", "terms.csv"), "--data terms.csv", "aws s3 cp terms.csv"),
        (("--data", "/data/terms.csv"), "--data /data/terms.csv", "s3://BUCKET/terms.csv"),
        (("--data", "file:///data/terms.csv"), "--data file", "s3://BUCKET"),
        ((*DATA, "--set", "registry=runs/registry.sqlite"), "--set registry", "Kubeflow Model Registry"),
        ((*DATA, "--set", "colour=red"), "--set colour", "correct the name"),
        ((*DATA, "--set", "trigger=moon"), "trigger", "correct"),
        ((*DATA, "--param", "num_topics=many"), "model parameters", "correct"),
        ((*DATA, "--image", "team/components"), "--image", "sha256"),
        ((*DATA, "--cron", "0 6 * * *"), "--cron", "0 0 6"),
        ((*DATA, "--every", "daily"), "--every", "24h"),
        ((*DATA, "--every", "24h", "--cron", "@daily"), "schedule", "give one"),
        (("--upload-only", "--cron", "@daily"), "--upload-only", "leave one out"),
    ],
)
def test_what_cannot_be_meant_is_told_before_anything_is_sent(
    compiled: str, server: PipelinesStandIn, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], where: str,
    fix: str,
) -> None:  # fmt: skip
    with Gate(server.url) as gate:
        monkeypatch.setenv("KF_PIPELINES_ENDPOINT", gate.url)
        error = refuse("submit", "ad-campaigns", *arguments)
        assert gate.requests == []
    assert error.exit_code == 2
    assert where in error.where
    assert fix in error.fix


def test_a_tag_that_may_move_is_warned_of(compiled: str) -> None:
    assert "a tag that may move" in invoke("submit", compiled, "--upload-only").stderr
    moved = invoke("submit", compiled, "--upload-only", "--image", "localhost:5001/components:dev")
    assert "has no digest" in moved.stderr
    pinned = invoke("submit", compiled, "--upload-only", "--image", "team/components@sha256:" + "a" * 64)
    assert "warning" not in pinned.stderr


def test_an_own_experiment_is_pinned_too(compiled: str) -> None:
    image = "team/components@sha256:" + "b" * 64
    declared = "      experiment:\n        parameterType: STRING\n      trigger:\n"
    Path(compiled).write_text(Path(compiled).read_text().replace("      trigger:\n", declared))
    arguments = {"data": DATA[1], "experiment": "image: ghcr.io/mlflywheel/components:0.1.0"}
    sent = prepare_submission(Path(compiled), arguments, image, lambda line: None).arguments
    assert sent == {"data": DATA[1], "experiment": f"image: {image}", "trigger": "manual"}


@pytest.mark.parametrize(
    ("failing", "exit_code", "state"),
    [("train-model", 1, "failed"), ("refuse-model", 3, "gate_refused"), ("", 0, "succeeded")],
)
def test_the_end_of_a_run_is_the_exit_code(
    compiled: str, server: PipelinesStandIn, failing: str, exit_code: int, state: str
) -> None:
    started = json.loads(invoke("submit", compiled, *DATA, "--no-wait", "--json").stdout)["run"]["run_id"]
    nodes = [
        Node(number, name, "Failed" if name == failing else "Succeeded", (child,))
        for number, name, child in (("3", "train-model", "7"), ("4", "refuse-model", "8"))
    ]
    play(server.url, started, "Failed" if failing else "Succeeded", *nodes)
    server.logs["small-x1-system-container-impl-7"] = "Traceback (most recent call last):\nValueError: [red]no[/red]\n"
    done = invoke("follow", started, "--json")
    assert json.loads(done.stdout)["run"]["state"] == state
    if exit_code:
        assert isinstance(done.exception, MlflywheelError)
        assert done.exception.exit_code == exit_code
    plain = invoke("follow", started).stdout
    assert state.replace("_", " ") in plain
    assert started in plain
    assert ("ValueError: [red]no[/red]" in plain) == (failing == "train-model")


def test_an_interrupted_watch_ends_with_130(
    compiled: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(time, "sleep", interrupt)
    monkeypatch.setattr(sys, "argv", ["mlflywheel", "submit", compiled, *DATA])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 130
    assert "the run goes on; follow it with mlflywheel follow" in capsys.readouterr().err


def test_schedules_are_made_listed_and_deleted(compiled: str) -> None:
    made = json.loads(
        invoke("submit", compiled, *DATA, "--every", "24h", "--schedule-name", "nightly", "--json").stdout
    )
    assert made["schedule"]["outcome"] == "created"
    assert "kept" in invoke("submit", compiled, *DATA, "--every", "24h", "--schedule-name", "nightly").stdout
    assert "nightly" in invoke("schedules", "list").stdout
    (listed,) = json.loads(invoke("schedules", "list", "--json").stdout)
    assert listed["when"] == "every 86400 s"
    assert "deleted nightly" in invoke("schedules", "delete", "nightly").stdout
    assert invoke("schedules", "list").stdout == "no schedule\n"
