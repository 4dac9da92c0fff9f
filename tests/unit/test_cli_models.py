"""Signing versions off on the command line: who, when and why, and what an approval rests on."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from mlflywheel import Client
from mlflywheel.cli import app
from mlflywheel.errors import GateRefusedError, MlflywheelError, RegistryError, UsageError
from mlflywheel.registry import EmbeddedRegistry
from mlflywheel.registry.dossier import Dossier, write_dossier
from mlflywheel.registry.identity import name_this_user
from mlflywheel.registry.records import State

RUNNER = CliRunner()
MEASUREMENTS = [
    {"metric": "mape", "value": 0.08, "slice": "all", "count": 900, "low": 0.07, "high": 0.09, "note": ""},
    {"metric": "slice_effect_error", "value": 0.08, "slice": "fuel=Electric", "count": 90, "low": 0.05, "high": 0.11,
     "note": "", "about": "slices"},
    {"metric": "champion_loss_error", "value": -0.002, "slice": "all", "count": 900, "low": -0.005, "high": 0.001,
     "note": "", "about": "champion"},
]  # fmt: skip
GATES = [
    {"metric": "mape", "slice": "all", "value": 0.08, "relation": "<=", "limit": 0.1, "holds": True, "reason": "held"},
    {"metric": "bias", "slice": "all", "value": None, "relation": "<=", "limit": 0.1, "holds": None,
     "reason": "bias is not measured on slice all, <= 0.1 was skipped"},
]  # fmt: skip


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """A folder of runs whose registry holds `prices@1`, with a dossier, and `prices@2`, without."""
    evaluation = {"plan": None, "champion": "prices@0", "measurements": MEASUREMENTS, "gates": GATES}
    dossier = Dossier(
        schema=1, run={}, model={"name": "prices"}, data={}, training={}, evaluation=evaluation, reproducibility={}
    )
    digest = write_dossier(dossier, tmp_path / "dossier.json")
    registry = EmbeddedRegistry(tmp_path / "registry.sqlite")
    for number in (1, 2):
        address = (tmp_path / "dossier.json").as_uri()
        registry.ensure_version(
            "prices", f"s3://models/prices/{number}", key=f"run-{number}", format_name="f", format_version="1",
            hash="sha256:0", lineage={"dossier": address, "dossier_hash": digest} if number == 1 else {},
        )  # fmt: skip
    return tmp_path


def call(runs: Path, *arguments: str) -> str:
    result = RUNNER.invoke(app, ["models", *arguments, "--runs", str(runs)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


def read(runs: Path, *arguments: str) -> Any:
    return json.loads(call(runs, *arguments, "--json"))


def test_an_approval_prints_what_it_rests_on_and_what_stands_against_it(runs: Path) -> None:
    told = call(runs, "approve", "prices@1", "--reason", "agreed with sales", "--by", "ann@desk")
    assert "May it be registered?\n  Yes: 1 of 2 gates hold, none refuses. 1 gate had nothing to judge." in told
    assert "Against prices@0, on the same rows: error 0.0020 better" in told
    assert "fuel=Electric (0.080 worse, 90 rows)" in told
    assert "  - Gate skipped: bias; bias is not measured on slice all" in told
    assert "by ann@desk: agreed with sales" in told.splitlines()[-1]
    assert told.splitlines()[-1].startswith("prices@1 is approved since ")


def test_an_approval_as_json_has_the_same(runs: Path) -> None:
    told = read(runs, "approve", "prices@1", "--reason", "agreed")
    assert (told["reference"], told["state"]) == ("prices@1", "approved")
    assert told["rests_on"][0]["question"] == "May it be registered?"
    assert told["against"][0].startswith("Gate skipped: bias")
    last = told["history"][-1]
    assert (last["from_state"], last["to_state"], last["by"], last["reason"]) == (
        "candidate", "approved", name_this_user(), "agreed",
    )  # fmt: skip


def test_a_version_without_a_dossier_can_be_approved_and_says_so(runs: Path) -> None:
    assert "prices@2 has no dossier" in call(runs, "approve", "prices@2", "--reason", "an old one")


def test_a_dossier_that_was_changed_is_named_and_not_believed(runs: Path) -> None:
    path = runs / "dossier.json"
    path.write_text(path.read_text("utf-8").replace("0.08", "0.01"), encoding="utf-8")
    told = read(runs, "approve", "prices@1", "--reason", "agreed")
    assert told["rests_on"] == []
    (against,) = told["against"]
    assert "dossier of prices@1" in against
    assert "its hash is sha256:" in against


def test_a_version_goes_through_every_state_and_the_history_is_shown(runs: Path) -> None:
    call(runs, "approve", "prices@1", "--reason", "first")
    call(runs, "withdraw", "prices@1", "--reason", "labels were wrong", "--by", "bob")
    call(runs, "archive", "prices@1")
    call(runs, "restore", "prices@1", "--reason", "wanted again")
    assert read(runs, "show", "prices@1")["state"] == "candidate"
    shown = call(runs, "show", "prices@1").split("History (UTC)\n")[1].splitlines()
    assert [line.split()[2] for line in shown] == ["candidate", "approved", "candidate", "archived", "candidate"]
    assert shown[2].endswith("bob: labels were wrong")
    assert shown[3].endswith(name_this_user())


@pytest.mark.parametrize(
    ("before", "command", "seen", "needed"),
    [
        (State.ARCHIVED, "approve", "it is archived", "only what is candidate becomes approved"),
        (State.LIVE, "approve", "it is live", "from live there is approved, archived"),
        (State.LIVE, "withdraw", "it is live", "from live there is approved, archived"),
        (State.ARCHIVED, "withdraw", "it is archived", "only what is approved becomes candidate"),
        (State.APPROVED, "restore", "it is approved", "from approved there is archived, candidate, live"),
    ],
)
def test_a_step_that_is_not_legal_is_refused_with_the_legal_ones(
    runs: Path, before: State, command: str, seen: str, needed: str
) -> None:
    registry = EmbeddedRegistry(runs / "registry.sqlite")
    for state in (State.ARCHIVED,) if before is State.ARCHIVED else (State.APPROVED, before):
        registry.set_state("prices", "1", state, by="test")
    with pytest.raises(RegistryError) as caught:
        call(runs, command, "prices@1", "--reason", "x")
    assert seen in caught.value.seen
    assert needed in caught.value.needed
    assert registry.get("prices", "1").state is before


@pytest.mark.parametrize(("command", "state"), [("approve", "approved"), ("archive", "archived"), ("restore", None)])
def test_a_repeated_decision_changes_nothing(runs: Path, command: str, state: str | None) -> None:
    first = read(runs, command, "prices@1", "--reason", "x")
    again = read(runs, command, "prices@1", "--reason", "y")
    assert again["history"] == first["history"]
    assert again["state"] == (state or "candidate")


@pytest.mark.parametrize(
    ("arguments", "message", "code"),
    [
        (("approve", "prices@1"), "--reason: nothing; an approval needs a reason", 2),
        (("approve", "prices@1", "--reason", "  "), "an approval needs a reason", 2),
        (("approve", "prices", "--reason", "x"), "a decision is about one version. Fix: write prices@VERSION", 2),
        (("archive", "prices@9"), "no version prices@9", 1),
        (("withdraw", "models@1"), "no model models", 1),
        (("card", "prices@9"), "no version prices@9", 1),
        (("card", "prices@1", "--output", "/nowhere/card.md"), "choose another --output", 1),
    ],
)
def test_what_cannot_be_done_says_what_to_do(runs: Path, arguments: tuple[str, ...], message: str, code: int) -> None:
    with pytest.raises(MlflywheelError, match=message) as caught:
        call(runs, *arguments)
    assert caught.value.exit_code == code


def test_a_card_is_printed_or_written_by_its_suffix(runs: Path, tmp_path: Path) -> None:
    card = call(runs, "card", "prices@1")
    assert card.startswith("# prices@1: model card\n")
    assert read(runs, "card", "prices")["reference"] == "prices@2"
    assert call(runs, "card", "prices@1", "--output", str(tmp_path / "card.md")).strip() == str(tmp_path / "card.md")
    assert (tmp_path / "card.md").read_text("utf-8") == card
    told = read(runs, "card", "prices@1", "--output", str(tmp_path / "card.html"))
    assert told == {"reference": "prices@1", "path": str(tmp_path / "card.html")}
    assert (tmp_path / "card.html").read_text("utf-8").startswith("<!doctype html>")


def test_a_card_shows_a_test_score_of_its_own_version_only(runs: Path) -> None:
    path = runs / "score.json"
    path.write_text(json.dumps({"reference": "prices@1", "score": 2.5, "sections": {"data": 2.5}, "tests": []}))
    assert "ML Test Score: 2.50" in call(runs, "card", "prices@1", "--testscore", str(path))
    with pytest.raises(UsageError, match=r"the score of prices@1; that of prices@2 is needed"):
        call(runs, "card", "prices@2", "--testscore", str(path))
    path.write_text("[]")
    with pytest.raises(UsageError, match="no test score"):
        call(runs, "card", "prices@1", "--testscore", str(path))


@pytest.mark.parametrize("command", ["list", "show", "approve", "withdraw", "archive", "restore", "card", "export"])
def test_every_command_has_an_example_and_json(command: str) -> None:
    result = RUNNER.invoke(app, ["models", command, "--help"])
    assert f"mlflywheel models {command}" in result.output
    assert "--json" in result.output


# What the approval is for.


def test_a_version_becomes_a_rollout_s_candidate_only_if_it_is_approved(runs: Path) -> None:
    client = Client(runs)
    with pytest.raises(GateRefusedError, match="nobody has approved it") as caught:
        client.candidate("prices@1")
    assert "mlflywheel models approve prices@1" in caught.value.fix
    client.approve("prices@1", "agreed")
    assert client.candidate("prices@1").model == "prices@1"
    client.withdraw("prices@1")
    with pytest.raises(GateRefusedError):
        client.candidate("prices@1")


def test_a_policy_may_ask_for_no_approval(runs: Path) -> None:
    from mlflywheel.decisions.canary.policy import read_policy

    client, policy = Client(runs), read_policy("schema: 1\napproval: not_required")
    assert client.candidate("prices@1", policy=policy).model == "prices@1"
    client.archive("prices@1")
    with pytest.raises(GateRefusedError, match="it is archived") as caught:
        client.candidate("prices@1", policy=policy)
    assert "mlflywheel models restore prices@1" in caught.value.fix


def test_a_policy_knows_no_third_way() -> None:
    from mlflywheel.decisions.canary.policy import read_policy

    with pytest.raises(UsageError, match="approval: 'maybe'; input should be 'required' or 'not_required'"):
        read_policy("schema: 1\napproval: maybe")
