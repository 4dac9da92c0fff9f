"""The commands below `mlflywheel rollout` that need no cluster, and how all of them refuse."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from mlflywheel.cli import app
from mlflywheel.client import Client
from mlflywheel.cluster.rollouts import NoSource, ServiceRollout
from mlflywheel.commands.rollout import rollout_app
from mlflywheel.decisions.canary.policy import DEFAULT_YAML, Policy, read_policy
from mlflywheel.errors import GateRefusedError, MlflywheelError, UsageError
from mlflywheel.registry import EmbeddedRegistry
from mlflywheel.registry.records import State
from mlflywheel.rollouts.file_store import FileStore
from mlflywheel.rollouts.interfaces import Actuator, Candidate, Memo, Move, Target

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


# What the registry says before a rollout, and is told after it.


class Router(Actuator):
    """Moves traffic at once, and remembers where the stable version lies."""

    def begin(self, candidate: Candidate) -> Memo:
        return {"original": {"predictor": {"model": {"storageUri": "s3://models/ads/1"}}}}

    def move(self, candidate: Candidate, target: Target, memo: Memo) -> Move:
        return Move(True)

    def render(self, candidate: Candidate, target: Target, memo: Memo) -> Sequence[Mapping[str, Any]]:
        return ({"target": str(target)},)


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> EmbeddedRegistry:
    """A registry with `ads@1` live and `ads@2` approved, and a service whose rollout is kept in a file."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLYWHEEL_REGISTRY", raising=False)

    def open_rollout(self: Client, service: str, **options: Any) -> ServiceRollout:
        return ServiceRollout(f"team/{service}", Router(), NoSource(), FileStore(tmp_path / "rollout.json"), "ann@desk")

    # There is no cluster here: only what leads to it is replaced.
    monkeypatch.setattr(Client, "rollout", open_rollout)
    made = EmbeddedRegistry(tmp_path / "models.sqlite")
    for number in ("1", "2"):
        made.ensure_version(
            "ads", f"s3://models/ads/{number}", key=number, format_name="f", format_version="1", hash="sha256:0"
        )
        made.set_state("ads", number, State.APPROVED, by="ann")
    made.set_state("ads", "1", State.LIVE, by="ann")
    return made


def read_states(registry: EmbeddedRegistry) -> list[str]:
    return [str(version.state) for version in registry.list_versions("ads")]


def call(*arguments: str) -> tuple[int, str]:
    """Call a command; return its exit code, or its error's, and what it says beside its result."""
    result = RUNNER.invoke(app, ["rollout", *arguments])
    if isinstance(result.exception, MlflywheelError):
        return result.exception.exit_code, f"{result.stderr}{result.exception}"
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stderr


START = ("start", "ads", "--candidate", "ads@2", "--registry", "models.sqlite")


@pytest.mark.parametrize("more", [(), ("--dry-run",)])
def test_a_version_that_is_not_approved_is_not_started(registry: EmbeddedRegistry, more: tuple[str, ...]) -> None:
    registry.set_state("ads", "2", State.CANDIDATE, by="bob")
    code, told = call(*START, *more)
    assert (code, "mlflywheel models approve ads@2" in told) == (GateRefusedError.exit_code, True)
    assert not Path("rollout.json").exists()
    Path("policy.yaml").write_text("schema: 1\napproval: not_required\n", encoding="utf-8")
    assert call(*START, *more, "--policy", "policy.yaml")[0] == 0


def test_manifests_of_a_version_that_is_not_approved_are_not_rendered(registry: EmbeddedRegistry) -> None:
    words = ("render", *START[1:])
    assert call(*words)[0] == 0
    registry.set_state("ads", "2", State.ARCHIVED, by="bob")
    assert call(*words)[0] == 3


def test_an_address_that_is_in_no_registry_needs_no_approval(registry: EmbeddedRegistry) -> None:
    assert call("start", "ads", "--uri", "s3://models/other", "--name", "v9")[0] == 0
    call("promote", "ads")
    assert "registry" not in call("watch", "ads", "--registry", "models.sqlite")[1]
    assert read_states(registry) == ["live", "approved"]


@pytest.mark.parametrize("command", ["watch", "step"])
def test_whoever_ends_a_rollout_tells_the_registry(registry: EmbeddedRegistry, command: str) -> None:
    call(*START)
    call("promote", "ads", "--why", "fixes an incident")
    code, told = call(command, "ads", "--registry", "models.sqlite")
    assert (code, read_states(registry)) == (0, ["approved", "live"])
    assert "registry: ads@2 is live\nregistry: ads@1 is approved" in told
    last = registry.history("ads", "2")[-1]
    assert (last.by, last.reason.endswith("of team/ads: promoted, fixes an incident")) == ("ann@desk", True)


def test_a_rolled_back_version_is_a_candidate_again(registry: EmbeddedRegistry) -> None:
    call(*START)
    call("rollback", "ads", "--why", "customers complain")
    code, told = call("watch", "ads", "--registry", "models.sqlite")
    assert (code, read_states(registry)) == (3, ["live", "candidate"])
    assert "registry: ads@2 is candidate" in told
    assert call(*START)[0] == 3


def test_a_registry_that_was_not_at_hand_is_told_later_and_once(registry: EmbeddedRegistry) -> None:
    call(*START)
    call("promote", "ads")
    code, told = call("step", "ads")
    assert (code, read_states(registry)) == (0, ["live", "approved"])
    assert "mlflywheel rollout watch ads -n team --registry ADDRESS" in " ".join(told.split())
    assert "registry: ads@2 is live" in call("watch", "ads", "--registry", "models.sqlite")[1]
    # A tick of a rollout that has ended changes nothing, and a repeated watch tells nothing twice.
    registry.set_state("ads", "2", State.APPROVED, by="bob", reason="taken out by hand")
    assert call("step", "ads", "--registry", "models.sqlite") == (0, "")
    assert "registry:" not in call("watch", "ads", "--registry", "models.sqlite")[1]
    assert read_states(registry) == ["approved", "approved"]


def test_a_registry_that_cannot_be_told_is_a_warning_and_the_promotion_stands(registry: EmbeddedRegistry) -> None:
    call(*START)
    call("promote", "ads")
    registry.set_state("ads", "2", State.ARCHIVED, by="bob")
    code, told = call("watch", "ads", "--registry", "models.sqlite")
    assert code == 0
    assert "warning: ads@2 is promoted, and the registry does not say so" in told
    assert "archived cannot become live" in told
