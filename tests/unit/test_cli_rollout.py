"""The commands below `mlflywheel rollout` that need no cluster, and how all of them refuse."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mlflywheel.cli import app
from mlflywheel.cli_rollout import rollout_app
from mlflywheel.decisions.canary.policy import DEFAULT_YAML, Policy, read_policy
from mlflywheel.errors import MlflywheelError, UsageError

RUNNER = CliRunner()


def invoke(*arguments: str) -> str:
    result = RUNNER.invoke(app, ["rollout", *arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


def test_the_documented_default_is_the_default() -> None:
    assert read_policy(DEFAULT_YAML) == Policy()
    assert read_policy("schema: 1") == Policy()


def test_a_policy_survives_its_json() -> None:
    from mlflywheel.decisions.canary.policy import policy_from_dict

    policy = read_policy(
        "schema: 1\nmetrics:\n  - {name: slow, kind: latency, seconds: 0.5, role: guardrail}\n"
        "  - {name: quality, kind: labels, by: locale, groups: [de, fr]}\n"
        "  - {name: sales, kind: counter, better: more, role: superiority}"
    )
    assert policy_from_dict(json.loads(json.dumps(policy.to_dict()))) == policy


@pytest.mark.parametrize(
    ("text", "place", "seen"),
    [
        ("steps: [5, 5, 100]", "steps", "every step must be larger"),
        ("steps: [5, 50]", "steps", "100 at the end"),
        ("steps: [0, 100]", "steps", "without traffic there is no evidence"),
        ("steps: [5, 101]", "steps", "100 at the end"),
        ("alpha: 2", "alpha", "less than 0.5"),
        ("alhpa: 0.1", "alhpa", "not permitted"),
        ("alpha: 0.1\nalpha: 0.2", "alpha", "written twice"),
        ("deadline: {action: panic}", "deadline.action", "'rollback', 'hold' or 'promote'"),
        ("metrics: []", "metrics", "nothing decides a promotion"),
        ("metrics:\n  - {name: a, kind: errors, role: guardrail}", "metrics", "nothing decides a promotion"),
        ("metrics:\n  - {name: a, kind: errors}\n  - {name: a, kind: errors}", "metrics", "a stands twice"),
        ("metrics:\n  - {name: a, kind: latency}", "metrics.0", "exactly one of quantile and seconds"),
        ("metrics:\n  - {name: a, kind: labels, groups: [de]}", "metrics.0", "groups need `by`"),
        ("metrics:\n  - {name: Errors!, kind: errors}", "metrics.0.name", "pattern"),
    ],
)
def test_a_wrong_policy_names_the_field(text: str, place: str, seen: str) -> None:
    with pytest.raises(UsageError) as caught:
        read_policy(f"schema: 1\n{text}", "rollout.yaml")
    assert f"rollout.yaml, {place}" in str(caught.value)
    assert seen in str(caught.value)


def test_simulate_prints_what_each_scenario_costs(tmp_path: Path) -> None:
    policy = tmp_path / "rollout.yaml"
    policy.write_text("schema: 1\nsteps: [50, 100]\nmetrics:\n  - {name: errors, kind: errors}\n")
    arguments = ("simulate", "--policy", str(policy), "--scenario", "aa,error-x5", "--runs", "60", "--seed", "3")
    result = json.loads(invoke(*arguments, "--json"))
    assert [one["scenario"] for one in result["scenarios"]] == ["aa", "error-x5"]
    for one in result["scenarios"]:
        assert one["runs"] == 60
        assert one["promote_rate"] + one["rollback_rate"] + one["undecided_rate"] == pytest.approx(1)
        assert 0 < one["median_requests_exposed"] <= one["p95_requests_exposed"]
    same, worse = result["scenarios"]
    assert same["promote_rate"] > 0.8
    assert worse["rollback_rate"] > 0.8
    assert json.loads(invoke(*arguments, "--json")) == result


def test_simulate_lists_its_scenarios() -> None:
    listed = json.loads(invoke("simulate", "--list", "--json"))
    assert {"aa", "error-x2", "wrong-answers", "low-traffic"} <= set(listed)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("simulate", "--scenario", "earthquake"), "earthquake"),
        (("simulate", "--traffic", "colour=1"), "there is requests_per_second"),
        (("simulate", "--traffic", "requests_per_second=fast"), "a number is needed"),
        (("simulate", "--policy", "missing.yaml"), "missing.yaml"),
        (("start", "ads", "--preset", "knative"), "add --prometheus URL"),
        (("start", "ads", "--prometheus", "http://localhost:1", "--evidence", "x.json"), "one source is needed"),
    ],
)
def test_wrong_usage_is_told(arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(MlflywheelError, match=message) as caught:
        invoke(*arguments)
    assert caught.value.exit_code == 2


def test_every_command_has_an_example() -> None:
    for command in rollout_app.registered_commands:
        name = command.name or command.callback.__name__
        assert f"mlflywheel rollout {name}" in invoke(name, "--help")
