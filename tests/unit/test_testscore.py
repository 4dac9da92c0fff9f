"""The ML Test Score: what each piece of evidence earns, that no other earns it, and bad evidence."""

import copy
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

from mlflywheel.decisions.canary.evidence import Arm, Window
from mlflywheel.decisions.canary.judge import Finding, Verdict
from mlflywheel.decisions.canary.policy import read_policy
from mlflywheel.decisions.gates import GateResult
from mlflywheel.errors import DataError, MlflywheelError, UsageError
from mlflywheel.models.contract import Measurement
from mlflywheel.registry import ModelVersion, State, Transition
from mlflywheel.reproducibility import compare_models
from mlflywheel.rollouts.interfaces import Candidate
from mlflywheel.rollouts.record import Record
from mlflywheel.rollouts.rehearsal import Rehearsal, Reply, Settings, Version, replay_requests
from mlflywheel.rollouts.rehearsal_requests import RecordedRequest, add_labels, read_requests
from mlflywheel.runs.rebuild import Rebuild
from mlflywheel.testscore import (
    RUBRIC,
    SECTIONS,
    Registered,
    RubricTest,
    TestScore,
    name_band,
    render_page,
    score_version,
    sections,
)
from mlflywheel.testscore.junit import read_junit

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
NAME = "vehicle-prices"
IDS = [test.id for test in RUBRIC]
POLICY = read_policy(
    "schema: 1\nmetrics:\n- {name: errors, kind: errors}\n- {name: latency_p99, kind: latency, quantile: 0.99}\n"
    "- {name: wrong_price, kind: labels}"
)
SUITE = {
    "schema": 1,
    "rows": [
        {
            "type": "expect_column_values_to_not_be_null",
            "kwargs": {"column": "price"},
            "severity": "error",
            "meta": {"name": "price_present"},
        },
        {
            "type": "expect_table_columns_to_match_set",
            "kwargs": {"column_set": ["price", "fuel"]},
            "severity": "error",
            "meta": {"name": "known_columns"},
        },
        {
            "type": "expect_column_values_to_not_match_regex",
            "kwargs": {"column": "title", "regex": "@"},
            "severity": "error",
            "meta": {"name": "title_without_email"},
        },
    ],
}
CASES = {"D7": "encoding", "I2": "price_model", "I3": "whole_pipeline", "O3": "parity"}
CHECKS = ("D3", "O1")


def gate(metric: str, slice_name: str = "all", holds: bool | None = True, reason: str = "") -> dict[str, Any]:
    return GateResult(metric, slice_name, 0.1, 0.2, "<=", holds, reason).to_dict()


def make_dossier(version: int, trigger: str = "manual") -> dict[str, Any]:
    measurements = (
        Measurement("feature_importance", 0.03, "feature=mileage", 900, 0.02, 0.04, about="explanations"),
        Measurement("additivity_error", 1e-12, count=900, about="explanations"),
        Measurement("gain_over_ridge", 0.02, count=900, low=0.01, high=0.03, about="champion"),
        Measurement("absolute_relative_error", 0.12 - version / 100, count=900),
        Measurement("absolute_relative_error", 0.14, "fuel=electric", 90, about="slices"),
        Measurement("absolute_relative_error_group_gap", 0.02, "between=fuel", 900, about="groups"),
        Measurement("champion_loss_absolute_relative_error", -0.01, count=900, low=-0.02, high=0.0, about="champion"),
        Measurement("unscored_share", 0.0, count=900),
    )
    return {
        "schema": 1,
        "run": {"id": f"run-{version}", "pipeline": NAME, "pipeline_spec": "sha256:aa", "trigger": trigger},
        "model": {},
        "data": {
            "version": f"sha256:data{version}",
            "validation": {"status": "passed", "failed": [], "skipped": [], "suite": copy.deepcopy(SUITE)},
        },
        "training": {"search": {"trials": 12, "succeeded_trials": 11, "executor": "local", "objective": "mdape"}},
        "evaluation": {
            "plan": {},
            "champion": f"{NAME}@{version - 1}" if version > 1 else None,
            "measurements": [asdict(one) for one in measurements],
            "gates": [
                gate("mdape"),
                gate("gain_over_ridge"),
                gate("absolute_relative_error", "fuel=electric"),
                gate("absolute_relative_error_group_gap", "between=fuel"),
            ],
        },
        "reproducibility": {"code": {"commit": "0123456789abcdef", "dirty": False, "version": "0.1"}},
    }


def make_version(version: int) -> ModelVersion:
    return ModelVersion(
        name=NAME,
        key=f"run-{version}",
        uri=f"s3://models/{version}",
        format_name="f",
        format_version="1",
        hash=f"sha256:{version}",
        version=str(version),
        state=State.APPROVED,
        created_at=NOW - timedelta(days=10 + 20 * (3 - version)),
    )


def approve_at(at: datetime, by: str, reason: str) -> Transition:
    return Transition(from_state=State.CANDIDATE, to_state=State.APPROVED, at=at, by=by, reason=reason)


def make_history(version: int) -> list[Transition]:
    at = make_version(version).created_at
    return [
        Transition(from_state=None, to_state=State.CANDIDATE, at=at, by="pipeline"),
        approve_at(at + timedelta(hours=1), "Ana", "read the report"),
    ]


def make_rollout(version: int, phase: Any = "promoted", identity: str = "", **changes: Any) -> dict[str, Any]:
    windows = tuple(
        Window(float(start), start + 30.0, 1, 25.0, Arm(150.0, 1.0), Arm(50.0, 0.0)) for start in range(0, 120, 30)
    )
    findings = tuple(
        Finding(metric, "", "harm", False, 0.4, 40.0, 0.01, 0.01, 200.0, 600.0, "no harm")
        for metric in ("errors", "latency_p99", "wrong_price")
    )
    at = (NOW - timedelta(days=5)).timestamp()
    record = Record(
        id=identity or f"rollout-{version}-{phase}",
        service="team/prices",
        candidate=Candidate("s3://models/x", f"v{version}", f"{NAME}@{version}"),
        policy=POLICY,
        source={},
        started=at,
        phase=phase,
        phase_started=at,
        step=2,
        windows=windows,
        message="errors: 3 % against 1 %" if phase == "rolled_back" else "",
        verdict=Verdict("promote", "every margin is shown", findings, 2, 200.0).to_dict(),
    )
    return {**record.to_dict(), **changes}


def make_rehearsal(candidate: int, online: tuple[float, float] = (0.10, 0.11), **changes: Any) -> dict[str, Any]:
    """The fields of `Rehearsal.to_dict` that are read; another test takes them from a real one."""
    losses = dict(zip(("candidate", "stable"), online, strict=True))
    return {
        "id": f"202611{10 + candidate}-101500-ab{candidate}c",
        "stable": {"reference": f"{NAME}@{candidate - 1}"},
        "candidate": {"reference": f"{NAME}@{candidate}"},
        "requests": {"count": 500},
        "verdict": {"findings": []},
        "policy": {"metrics": []},
        "labels": {"absolute_relative_error": {arm: {"count": 400, "mean_loss": losses[arm]} for arm in losses}},
        **changes,
    }


def make_rebuild(version: int, **changes: Any) -> dict[str, Any]:
    digest = f"sha256:{version}"
    rebuild = Rebuild(
        reference=f"{NAME}@{version}",
        rebuild_id="20261119-120000-0a1b",
        comparison=compare_models(digest, digest, {}, {}, ()),
        found_before=(),
        summary={"run_id": "r", "model": {"uri": "file:///m"}, "data": {"version": "sha256:d"}, "seconds": {}},
        folder=Path("runs"),
        trigger="manual",
        finished_at=NOW - timedelta(days=2),
    )
    return {**rebuild.to_dict(), **changes}


def make_validation(day: str, **changes: Any) -> dict[str, Any]:
    rules = [{"name": "price_present", "status": "passed"}]
    return {
        "schema": 1,
        "status": "passed",
        "today": day,
        "checker": "gx",
        "counts": {"rows": 900},
        "rules": rules,
    } | changes


def make_check(test: str, **changes: Any) -> dict[str, Any]:
    return {
        "schema": 1,
        "kind": "check",
        "test": test,
        "model": NAME,
        "by": f"nightly-{test}",
        "at": "2026-11-20T03:00:00Z",
        "trigger": "scheduled",
        "holds": True,
        "what": "looked at everything",
        **changes,
    }


def make_junit(outcomes: dict[str, str], suite: str = "ci", at: str = "2026-11-20T10:00:00") -> str:
    inside = {"passed": "", "failed": "<failure>no</failure>", "error": "<error/>", "skipped": "<skipped/>"}
    cases = "".join(
        f'<testcase classname="tests.unit.test_{name}" name="test_it[a&amp;b]">{inside[outcome]}</testcase>'
        for name, outcome in outcomes.items()
    )
    return (
        f'<?xml version="1.0"?><testsuites><testsuite name="{suite}" timestamp="{at}">{cases}</testsuite></testsuites>'
    )


@dataclass
class World:
    """A model's versions and its evidence folder; complete at first, so that every test has its point."""

    folder: Path
    dossiers: dict[int, Any] = field(default_factory=lambda: {n: make_dossier(n) for n in (1, 2, 3)})
    histories: dict[int, list[Transition]] = field(default_factory=lambda: {n: make_history(n) for n in (1, 2, 3)})

    def write(self, name: str, value: Any) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
        return path

    def fill(self) -> "World":
        for version in (2, 3):
            self.write(f"rollouts/{version}.json", make_rollout(version))
            self.write(f"rehearsals/{version}.json", make_rehearsal(version))
            self.write(f"rebuilds/{version}.json", make_rebuild(version))
        self.write("rollouts/back-1.json", make_rollout(2, "rolled_back", "back-1"))
        self.write("rollouts/back-2.json", make_rollout(1, "rolled_back", "back-2"))
        for day in ("2026-11-01", "2026-11-08"):
            self.write(f"serving-{day}.json", make_validation(day))
        for test in CHECKS:
            self.write(f"checks/{test}.json", make_check(test))
        for test, name in CASES.items():
            self.write(f"junit-{test}.xml", make_junit({name: "passed"}))
        self.write("jobs/lead-time.log", "3 days")
        self.tell()
        return self

    def tell(self, **changes: Any) -> None:
        """Write testscore.yaml, which is JSON too."""
        record = {
            "test": "D6",
            "by": "platform",
            "at": "2026-06-01",
            "what": "a job measures the days from a feature's first commit to its first answer",
            "automatic": True,
            "link": "jobs/lead-time.log",
            "last_run": "2026-11-20",
        }
        cases = {test: [f"tests.unit.test_{name}.*"] for test, name in CASES.items()}
        self.write(
            "testscore.yaml", {"schema": 1, "maximum_age_days": 30, "cases": cases, "records": [record]} | changes
        )

    def score(self, now: datetime = NOW) -> TestScore:
        siblings = [Registered(make_version(n), self.dossiers[n], self.histories[n]) for n in (1, 2)]
        folders = [self.folder] if self.folder.exists() else []
        return score_version(make_version(3), self.dossiers[3], self.histories[3], siblings, folders, now)

    def points(self) -> dict[str, float]:
        return {test.id: test.points for test in self.score().tests}

    def drop_measured(self, version: int, *metrics: str) -> None:
        evaluation = self.dossiers[version]["evaluation"]
        evaluation["measurements"] = [one for one in evaluation["measurements"] if one["metric"] not in metrics]

    def drop_gate(self, version: int, metric: str) -> None:
        evaluation = self.dossiers[version]["evaluation"]
        evaluation["gates"] = [one for one in evaluation["gates"] if one["metric"] != metric]

    def drop_rule(self, version: int, name: str) -> None:
        suite = self.dossiers[version]["data"]["validation"]["suite"]
        suite["rows"] = [one for one in suite["rows"] if one["meta"]["name"] != name]

    def edit(self, name: str, change: Callable[[dict[str, Any]], None]) -> None:
        values = json.loads((self.folder / name).read_text(encoding="utf-8"))
        change(values)
        self.write(name, values)

    def drop_finding(self, metric: str) -> None:
        def change(values: dict[str, Any]) -> None:
            found = values["verdict"]["findings"]
            values["verdict"]["findings"] = [one for one in found if one["metric"] != metric]

        self.edit("rollouts/3.json", change)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path / "evidence").fill()


def put(name: str, value: Any) -> Callable[[World], None]:
    def write(world: World) -> None:
        world.write(name, value)

    return write


def both(first: Callable[[World], None], second: Callable[[World], None]) -> Callable[[World], None]:
    def change(world: World) -> None:
        first(world)
        second(world)

    return change


def unlink(*names: str) -> Callable[[World], None]:
    def remove(world: World) -> None:
        for name in names:
            (world.folder / name).unlink()

    return remove


# What takes the evidence of one test away, and what is left of its point.
REMOVALS: dict[str, tuple[Callable[[World], None], float]] = {
    "D1": (lambda w: w.drop_rule(3, "price_present"), 0.0),
    "D2": (lambda w: w.drop_measured(3, "feature_importance"), 0.0),
    "D3": (unlink("checks/D3.json"), 0.0),
    "D4": (lambda w: w.drop_rule(3, "known_columns"), 0.0),
    "D5": (lambda w: w.drop_rule(3, "title_without_email"), 0.0),
    "D6": (lambda w: w.tell(records=[]), 0.0),
    "D7": (unlink("junit-D7.xml"), 0.0),
    "M1": (lambda w: w.histories[3].pop(), 0.0),
    "M2": (unlink("rehearsals/3.json"), 0.0),
    "M3": (lambda w: w.dossiers[3]["training"].update(search=None), 0.0),
    "M4": (lambda w: w.drop_measured(3, "champion_loss_absolute_relative_error"), 0.0),
    # What is measured and reported stays worth a half; only the gate makes it a point.
    "M5": (lambda w: w.drop_gate(3, "gain_over_ridge"), 0.5),
    "M6": (lambda w: w.drop_gate(3, "absolute_relative_error"), 0.5),
    "M7": (lambda w: w.drop_gate(3, "absolute_relative_error_group_gap"), 0.5),
    "I1": (unlink("rebuilds/3.json"), 0.0),
    "I2": (unlink("junit-I2.xml"), 0.0),
    "I3": (unlink("junit-I3.xml"), 0.0),
    "I4": (lambda w: w.drop_gate(3, "mdape"), 0.0),
    "I5": (lambda w: w.drop_measured(3, "additivity_error"), 0.0),
    "I6": (lambda w: w.edit("rollouts/3.json", lambda values: values.update(windows=[])), 0.0),
    "I7": (unlink("rollouts/back-1.json", "rollouts/back-2.json"), 0.0),
    "O1": (unlink("checks/O1.json"), 0.0),
    "O2": (unlink("serving-2026-11-01.json", "serving-2026-11-08.json"), 0.0),
    "O3": (unlink("junit-O3.xml"), 0.0),
    "O4": (lambda w: w.edit("testscore.yaml", lambda values: values.pop("maximum_age_days")), 0.0),
    "O5": (lambda w: w.drop_measured(3, "unscored_share"), 0.5),
    "O6": (lambda w: w.drop_finding("latency_p99"), 0.0),
    "O7": (lambda w: w.drop_finding("wrong_price"), 0.0),
}

# What leaves the evidence, and takes away what shows that it is repeated.
ONCE: dict[str, Callable[[World], None]] = {
    "D1": both(lambda w: w.drop_rule(1, "price_present"), lambda w: w.drop_rule(2, "price_present")),
    "D2": both(lambda w: w.drop_measured(1, "feature_importance"), lambda w: w.drop_measured(2, "feature_importance")),
    "D3": lambda w: w.edit("checks/D3.json", lambda values: values.update(trigger="manual")),
    "D6": unlink("jobs/lead-time.log"),
    "D7": put("junit-D7.xml", make_junit({"encoding": "passed"}, "pytest")),
    "M1": lambda w: w.histories.update({1: make_history(1)[:1], 2: make_history(2)[:1]}),
    "M2": unlink("rehearsals/2.json"),
    "M4": lambda w: w.drop_measured(2, "champion_loss_absolute_relative_error"),
    "M5": both(lambda w: w.drop_gate(1, "gain_over_ridge"), lambda w: w.drop_gate(2, "gain_over_ridge")),
    "I1": unlink("rebuilds/2.json"),
    "I7": unlink("rollouts/back-2.json"),
    "O2": unlink("serving-2026-11-01.json"),
    "O4": lambda w: w.tell(maximum_age_days=15),
}


def test_the_rubric_has_seven_tests_in_each_of_four_sections() -> None:
    assert [sum(test.section == name for test in RUBRIC) for name in SECTIONS] == [7, 7, 7, 7]
    assert [f"{letter}{number}" for letter in "DMIO" for number in range(1, 8)] == IDS


def test_complete_evidence_earns_every_point(world: World) -> None:
    score = world.score()
    assert {test.id: test.missing for test in score.tests if test.points < 1} == {}
    assert score.sections == {"data": 7.0, "model": 7.0, "infrastructure": 7.0, "monitoring": 7.0}
    assert score.score == 7.0
    assert score.band == name_band(6.0)
    assert score.next_points() == ()
    assert score.notes == ()


def test_a_removal_is_planned_for_every_test() -> None:
    assert list(REMOVALS) == IDS


@pytest.mark.parametrize("test", IDS)
def test_deleting_the_evidence_of_a_test_drops_its_points_and_no_others(world: World, test: str) -> None:
    remove, left = REMOVALS[test]
    remove(world)
    assert world.points() == {**dict.fromkeys(IDS, 1.0), test: left}


@pytest.mark.parametrize("test", ONCE)
def test_evidence_that_is_not_repeated_is_worth_half_a_point(world: World, test: str) -> None:
    ONCE[test](world)
    assert world.points() == {**dict.fromkeys(IDS, 1.0), test: 0.5}


def test_deleting_a_file_drops_exactly_the_tests_that_name_it(world: World) -> None:
    before = world.score()
    for path in sorted(world.folder.rglob("*.[jx][sm]*")):
        named = {
            test.id
            for test in before.tests
            if any(one.where.partition("#")[0] == path.as_posix() for one in test.evidence)
        }
        text = path.read_text(encoding="utf-8")
        path.unlink()
        points = world.points()
        path.write_text(text, encoding="utf-8")
        dropped = {test for test in IDS if points[test] < 1}
        # A file of another version may be replaced by a further one as what shows that something is repeated.
        assert dropped <= named, path.name
        assert dropped or "rollouts" in path.parts, path.name


@pytest.mark.parametrize("trigger", ["ci", "scheduled"])
def test_a_run_that_a_machine_started_earns_whole_points_at_once(tmp_path: Path, trigger: str) -> None:
    world = World(tmp_path / "none", dossiers={1: None, 2: None, 3: make_dossier(3, trigger)})
    points = world.points()
    assert {test for test, value in points.items() if value == 1} >= {"D1", "D2", "D5", "M3", "M5", "M6", "M7", "I4"}
    # Only continuous integration tests the pipeline; a schedule uses it.
    assert points["I3"] == (1.0 if trigger == "ci" else 0.0)


def test_a_first_version_by_hand_earns_halves_and_says_how_to_go_on(tmp_path: Path) -> None:
    world = World(tmp_path / "none")
    found = score_version(make_version(3), world.dossiers[3], world.histories[3], [], [], NOW)
    assert {test.points for test in found.tests} == {0.0, 0.5}
    assert found.score == 0.5
    assert found.limiting == ("infrastructure", "monitoring")[1:]
    assert found.band.startswith("not wholly untested")
    by_id = {test.id: test for test in found.tests}
    assert "To earn points: run mlflywheel rebuild" in by_id["I1"].missing
    assert "do it again for another version" in by_id["D1"].missing
    steps = found.next_points()
    assert {test.section for test in steps} == {"monitoring"}
    assert [test.effort for test in steps] == sorted(test.effort for test in steps)


def test_a_version_without_a_dossier_is_scored_by_what_else_there_is(world: World) -> None:
    world.dossiers = dict.fromkeys((1, 2, 3))
    found = world.score()
    by_id = {test.id: test.points for test in found.tests}
    assert (by_id["D1"], by_id["M3"], by_id["I4"]) == (0.0, 0.0, 0.0)
    assert (by_id["D7"], by_id["I6"], by_id["O1"]) == (1.0, 1.0, 1.0)
    assert found.notes[0] == f"{NAME}@3 has no dossier: nothing is known of how it was made and measured"


def test_a_version_without_anything_is_a_research_project(tmp_path: Path) -> None:
    found = score_version(make_version(3), None, [], [], [], NOW)
    assert found.score == 0
    assert "research project" in found.band
    assert all(test.missing.startswith("Nothing counts yet. To earn points:") for test in found.tests)


@pytest.mark.parametrize(
    ("score", "words"),
    [(0, "research"), (0.5, "not wholly"), (1, "not wholly"), (1.5, "first pass"), (2, "first pass"), (3, "reasonably"),
     (5, "strong"), (5.5, "exceptionally")],
)  # fmt: skip
def test_bands_include_their_upper_end(score: float, words: str) -> None:
    assert words in name_band(score)


# What looks like evidence, and does not count


@pytest.mark.parametrize(
    ("test", "spoil", "words"),
    [
        ("D2", lambda w: w.dossiers[3]["evaluation"]["measurements"][0].update(value=-0.01), "no feature makes"),
        ("D7", put("junit-D7.xml", make_junit({"encoding": "failed"})), "1 of 1 test cases failed"),
        ("D7", put("junit-D7.xml", make_junit({"encoding": "error"})), "failed: tests.unit.test_encoding.test_it"),
        ("D7", put("junit-D7.xml", make_junit({"encoding": "skipped"})), "1 test cases were skipped"),
        ("D7", put("junit-D7.xml", make_junit({"encoding": "passed"}, at="")), "does not say when"),
        (
            "D7",
            put("junit-D7.xml", make_junit({"encoding": "passed"}, at="2026-01-01T00:00:00")),
            "324 days old, and valid for 180",
        ),
        (
            "D7",
            put("junit-D7.xml", make_junit({"encoding": "passed"}, at="2027-01-01T00:00:00")),
            "2027-01-01 lies in the future",
        ),
        ("M1", lambda w: w.dossiers[3]["reproducibility"]["code"].update(dirty=True), "changes beside it"),
        ("M1", lambda w: w.dossiers[3]["reproducibility"]["code"].update(commit=None), "is not recorded"),
        ("M1", lambda w: w.histories.update({3: approve(3, "run run-3")}), "approved by run run-3, who registered it"),
        ("M1", lambda w: w.histories.update({3: approve(3, "pipeline")}), "approved by pipeline, who registered it"),
        ("M1", lambda w: w.histories.update({3: approve(3, "Ana", " ")}), "Ana approved it without a reason"),
        ("M2", put("rehearsals/3.json", make_rehearsal(3, (0.12, 0.1))), "contradicts its offline"),
        ("M5", lambda w: w.dossiers[3]["evaluation"]["gates"][1].update(holds=False), "gates refused: gain_over_ridge"),
        ("I1", put("rebuilds/3.json", make_rebuild(3, outcome="different")), "is different"),
        ("I1", put("rebuilds/3.json", make_rebuild(3, recorded_hash="sha256:9")), "the hash differs"),
        ("I1", put("rebuilds/3.json", make_rebuild(3, finished_at="yesterday")), "does not say when"),
        ("I4", lambda w: w.dossiers[3]["evaluation"]["gates"][0].update(holds=False), "gates refused: mdape"),
        ("O1", put("checks/O1.json", make_check("O1", holds=False)), "it does not hold"),
        ("O1", put("checks/O1.json", make_check("O1", at="2026-03-01")), "266 days old"),
        ("O4", lambda w: w.tell(maximum_age_days=5), "10 days old; 5 are allowed"),
        (
            "O5",
            lambda w: w.dossiers[3]["evaluation"]["measurements"][3].update(value=None, note="measured as nan"),
            "not finite: absolute_relative_error",
        ),
        (
            "O7",
            lambda w: w.edit("rollouts/3.json", lambda v: v["verdict"]["findings"][2].update(is_reached=True)),
            "shown to be worse",
        ),
    ],
)
def test_what_does_not_hold_earns_nothing_and_is_named(
    world: World, test: str, spoil: Callable[[World], Any], words: str
) -> None:
    spoil(world)
    found = {one.id: one for one in world.score().tests}[test]
    assert found.points == 0
    assert "Does not count: " in found.missing
    assert words in found.missing


def approve(version: int, by: str, reason: str = "fine") -> list[Transition]:
    first, second = make_history(version)
    return [first, approve_at(second.at, by, reason)]


def test_a_failing_validation_of_the_data_earns_nothing(world: World) -> None:
    world.dossiers[3]["data"]["validation"]["status"] = "failed"
    points = world.points()
    assert (points["D1"], points["D4"], points["D5"]) == (0.0, 0.0, 0.0)


def test_an_expectation_that_was_skipped_or_warned_does_not_count(world: World) -> None:
    world.dossiers[3]["data"]["validation"]["skipped"] = ["title_without_email"]
    world.dossiers[3]["data"]["validation"]["failed"] = [{"name": "known_columns", "severity": "warn"}]
    points = world.points()
    assert (points["D1"], points["D4"], points["D5"]) == (1.0, 0.0, 0.0)


def test_a_champion_of_the_same_day_or_the_same_data_says_nothing_about_age(world: World) -> None:
    world.dossiers[3]["data"]["version"] = world.dossiers[2]["data"]["version"]
    assert world.points()["M4"] == 0


@pytest.mark.parametrize(
    ("metric", "slice_name", "test"),
    [
        ("within_10_percent", "all", "I4"),
        ("champion_loss_mdape", "all", "I4"),
        ("within_10_percent", "fuel=electric", "M6"),
        ("champion_loss_mdape", "fuel=electric", "M6"),
        ("selection_rate_ratio", "between=sex", "M7"),
        ("equalized_odds_gap_rise", "all", "M7"),
        ("mdape_gap", "all", "M7"),
        ("exposure_to_relevance_ratio", "tier=small", "M7"),
        ("gain_over_median", "all", "M5"),
        ("breaking_contract_changes", "all", ""),
        ("unscored_share", "all", ""),
    ],
)
def test_a_gate_counts_for_one_test(world: World, metric: str, slice_name: str, test: str) -> None:
    world.dossiers[3]["evaluation"]["gates"] = [gate(metric, slice_name)]
    found = {one.id: one.evidence for one in world.score().tests}
    held = [one for one in ("M5", "M6", "M7", "I4") if any("gate holds" in item.what for item in found[one])]
    assert held == [test] * bool(test)


def test_a_gate_that_judged_nothing_does_not_count(world: World) -> None:
    world.dossiers[3]["evaluation"]["gates"][0]["holds"] = None
    assert world.points()["I4"] == 0


def test_gates_against_a_reference_count_as_the_simpler_model(world: World) -> None:
    world.drop_gate(3, "gain_over_ridge")
    reason = "mdape 0.1 is within 0.2 (reference_ridge_mdape) on slice all"
    world.dossiers[3]["evaluation"]["gates"].append(gate("mdape", reason=reason))
    assert world.points()["M5"] == 1


def test_a_dark_launch_is_no_canary(world: World) -> None:
    def darken(values: dict[str, Any]) -> None:
        for window in values["windows"]:
            window["traffic_percent"] = 0.0

    world.edit("rollouts/3.json", darken)
    assert world.points()["I6"] == 0


def test_the_record_that_a_pipeline_wraps_is_the_same_evidence(world: World) -> None:
    world.write("rollouts/3.json", {"schema": 1, "verdict": "promoted", "record": make_rollout(3), "sections": []})
    assert world.score().score == 7


def test_a_rollout_of_a_pipeline_that_did_not_deploy_is_no_evidence(world: World) -> None:
    world.write("rollouts/3.json", {"schema": 1, "verdict": "not asked for", "record": None, "sections": []})
    assert world.points()["I6"] == 0


def test_evidence_of_another_model_does_not_count(world: World) -> None:
    world.write("rollouts/3.json", make_rollout(3, candidate={"model": "ad-campaigns@3"}))
    world.write("checks/O1.json", make_check("O1", model="ad-campaigns"))
    points = world.points()
    assert (points["I6"], points["O1"]) == (0.0, 0.0)


def test_a_check_of_another_version_does_not_count(world: World) -> None:
    world.write("checks/O1.json", make_check("O1", model=f"{NAME}@2"))
    assert world.points()["O1"] == 0


def test_the_newest_check_of_a_job_decides(world: World) -> None:
    world.write("checks/O1-older.json", make_check("O1", at="2026-11-19T03:00:00Z", holds=False))
    assert world.points()["O1"] == 1
    world.write("checks/O1-newer.json", make_check("O1", at="2026-11-21T03:00:00Z", holds=False))
    assert world.points()["O1"] == 0


def test_checks_by_hand_are_never_a_whole_point(world: World) -> None:
    for job in ("Ana", "Ben"):
        world.write(f"checks/D3-{job}.json", make_check("D3", by=job, trigger="manual"))
    (world.folder / "checks/D3.json").unlink()
    assert world.points()["D3"] == 0.5


def test_a_check_cannot_prove_a_canary(world: World) -> None:
    world.write("checks/I6.json", make_check("I6"))
    assert any("a check cannot prove I6" in note for note in world.score().notes)


def test_the_newest_result_of_a_test_case_decides(world: World) -> None:
    world.write("later.xml", make_junit({"encoding": "failed"}, at="2026-11-20T11:00:00"))
    assert world.points()["D7"] == 0
    world.write("latest.xml", make_junit({"encoding": "passed"}, at="2026-11-20T12:00:00"))
    assert world.points()["D7"] == 1


def test_the_same_case_passed_twice_by_hand_is_repeated(world: World) -> None:
    world.write("junit-D7.xml", make_junit({"encoding": "passed"}, "pytest"))
    assert world.points()["D7"] == 0.5
    world.write("again.xml", make_junit({"encoding": "passed"}, "pytest", "2026-11-01T00:00:00"))
    assert world.points()["D7"] == 1


def test_two_files_of_one_run_are_not_repeated(world: World) -> None:
    world.write("junit-D7.xml", make_junit({"encoding": "passed"}, "pytest"))
    world.write("junit-I2.xml", make_junit({"price_model": "passed", "encoding": "passed"}, "pytest"))
    assert world.points()["D7"] == 0.5


def test_a_pattern_that_no_case_has_is_named(world: World) -> None:
    world.tell(cases={"D7": ["tests.unit.test_gone.*"]})
    found = {one.id: one for one in world.score().tests}["D7"]
    assert "no test case has a name that `cases` of testscore.yaml maps to D7" in found.missing


def test_test_cases_without_a_mapping_are_named(world: World) -> None:
    world.tell(cases={})
    assert "4 test cases stand for no test: testscore.yaml has no `cases`" in world.score().notes


# Records that people write


def test_a_record_is_worth_half_a_point_until_it_is_too_old(tmp_path: Path) -> None:
    world = World(tmp_path / "evidence", dossiers=dict.fromkeys((1, 2, 3)))
    record = {"test": "O3", "by": "Ana", "at": "2026-11-01", "what": "compared 200 answers", "valid_days": 30}
    world.tell(cases={}, records=[record], maximum_age_days=None)
    assert world.points()["O3"] == 0.5
    found = {one.id: one for one in world.score(NOW + timedelta(days=60)).tests}["O3"]
    assert found.points == 0
    assert "#records[O3, 2026-11-01]: 80 days old, and valid for 30" in found.missing


def test_records_by_hand_are_never_a_whole_point(world: World) -> None:
    entries = [{"test": "D6", "by": "Ana", "at": f"2026-11-0{day}", "what": "measured"} for day in (1, 2)]
    world.tell(records=entries)
    assert world.points()["D6"] == 0.5


def test_a_job_whose_file_is_gone_is_worth_half_a_point_and_named(world: World) -> None:
    (world.folder / "jobs/lead-time.log").unlink()
    found = {one.id: one for one in world.score().tests}["D6"]
    assert found.points == 0.5
    assert "jobs/lead-time.log is not there" in found.missing


def test_a_job_that_stopped_is_too_old(world: World) -> None:
    assert world.score(NOW + timedelta(days=200)).sections["data"] < 7


RECORD = {"test": "D5", "by": "Ana", "at": "2026-11-01", "what": "looked"}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"records": [{**RECORD, "test": "D9"}]}, "test 'D9'"),
        ({"records": [{**RECORD, "at": "2027-01-01"}]}, "2027-01-01; today is 2026-11-21"),
        ({"records": [{**RECORD, "at": "soon"}]}, "records.0.at"),
        ({"records": [RECORD, {**RECORD, "what": "again"}]}, "a second record for D5 of 2026-11-01"),
        ({"records": [{**RECORD, "who": "Ana"}]}, "records.0.who"),
        ({"records": [{**RECORD, "automatic": True}]}, "automatic without a link or last_run"),
        ({"records": [{**RECORD, "automatic": True, "link": "../x", "last_run": "2026-11-20"}]}, "../x"),
        ({"records": [{**RECORD, "automatic": True, "link": "https://ci/1", "last_run": "2026-11-20"}]}, "https://ci/1"),
        ({"records": [{**RECORD, "by": ""}]}, "records.0.by"),
        ({"cases": {"X1": ["a"]}}, "test 'X1'"),
        ({"cases": {"I6": ["a"]}}, "test cases can prove D4, D5, D7"),
        ({"cases": {"D7": ["tests.*"], "I2": ["tests.*"]}}, "stands for D7 and I2"),
        ({"schema": 2}, "schema: 2"),
        ({"maximum_age_days": -1}, "maximum_age_days"),
    ],
)  # fmt: skip
def test_a_wrong_testscore_yaml_is_refused_with_its_name(world: World, changes: dict[str, Any], words: str) -> None:
    world.tell(**changes)
    with pytest.raises(UsageError) as caught:
        world.score()
    assert "testscore.yaml" in str(caught.value)
    assert words in str(caught.value)
    assert caught.value.fix


def test_a_field_that_stands_twice_is_refused(world: World) -> None:
    world.write("testscore.yaml", "schema: 1\nmaximum_age_days: 3\nmaximum_age_days: 300\n")
    with pytest.raises(UsageError, match="written twice"):
        world.score()


def test_dates_of_yaml_are_read(world: World) -> None:
    world.write("testscore.yaml", "schema: 1\nrecords:\n- {test: D6, by: Ana, at: 2026-11-01, what: measured}\n")
    assert world.points()["D6"] == 0.5


# Broken and hostile files


BOMB = '<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;">]><testsuite name="&b;"></testsuite>'


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.xml", "<testsuite>", "not XML"),
        ("a.xml", "", "not XML"),
        ("a.xml", BOMB, "a document type (x)"),
        ("a.xml", '<!DOCTYPE x SYSTEM "file:///etc/hostname"><testsuite/>', "a document type (x)"),
        ("a.xml", "<testsuite name='&undefined;'/>", "not XML"),
        ("a.json", "{", "not JSON"),
        pytest.param("a.json", "[" * 100_000, "not JSON", id="nested json"),
        ("testscore.yaml", "a: [", "not YAML"),
        ("testscore.yaml", "schema: 1\na: &a [1]\nrecords: [{what: [*a, *a]}]", "an alias"),
        pytest.param("testscore.yaml", f"schema: 1\n#{'x' * 2**20}", "at most 1 MiB is needed", id="large yaml"),
        ("testscore.yaml", "!!python/object/apply:os.getcwd []", "not YAML"),
        ("a.json", json.dumps(make_check("Z9")), "'Z9'"),
        ("a.json", json.dumps({"kind": "rebuild", "reference": f"{NAME}@3"}), "a rebuild without its shape"),
        (
            "a.json",
            json.dumps(dict.fromkeys(("candidate", "phase", "policy", "history"))),
            "a rollout without its shape",
        ),
        (
            "a.json",
            json.dumps(dict.fromkeys(("candidate", "stable", "verdict", "requests"))),
            "a rehearsal without its shape",
        ),
        ("serving-a.json", json.dumps(dict.fromkeys(("rules", "checker", "status"))), "a validation without its shape"),
    ],
)
def test_a_broken_file_is_an_error_that_names_it(tmp_path: Path, name: str, text: str, words: str) -> None:
    world = World(tmp_path / "evidence")
    world.write(name, text)
    with pytest.raises(MlflywheelError) as caught:
        world.score()
    assert name in caught.value.where
    assert words in str(caught.value)


def test_bytes_that_are_no_text_are_an_error_that_names_the_file(tmp_path: Path) -> None:
    world = World(tmp_path / "evidence")
    world.write("a.xml", "").write_bytes('<?xml version="1.0" encoding="utf-16"?><testsuite/>'.encode("utf-16"))
    with pytest.raises(DataError, match=r"a\.xml: not UTF-8"):
        world.score()


def test_files_of_unknown_kinds_are_left_out_with_a_note(world: World) -> None:
    for name in ("drift.json", "lint.json"):
        world.write(name, {"findings": []})
    world.write("list.json", [1, 2])
    world.write("pom.xml", "<project/>")
    world.write("notes.md", "not looked at")
    found = world.score()
    assert found.score == 7
    assert found.notes == ("of no kind that the rubric knows, and left out: drift.json, lint.json, list.json, pom.xml",)


def test_links_are_not_followed(world: World, tmp_path: Path) -> None:
    outside = tmp_path / "outside.json"
    outside.write_text("not JSON", encoding="utf-8")
    (world.folder / "linked.json").symlink_to(outside)
    assert world.score().score == 7


def test_a_file_that_is_named_twice_counts_once(world: World) -> None:
    world.write("junit-D7.xml", make_junit({"encoding": "passed"}, "pytest"))
    folders = [world.folder, world.folder / "junit-D7.xml", world.folder]
    found = score_version(make_version(3), world.dossiers[3], world.histories[3], [], folders, NOW)
    assert {one.id: one for one in found.tests}["D7"].points == 0.5


def test_a_folder_that_is_not_there_is_wrong_usage(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file or folder"):
        score_version(make_version(3), None, [], [], [tmp_path / "none"], NOW)


def test_nested_suites_and_namespaces_are_read() -> None:
    text = (
        '<j:testsuites xmlns:j="urn:j"><j:testsuite name="ci" timestamp="2026-11-01T10:00:00+02:00">'
        '<j:testsuite name="inner" timestamp="2026-11-02T10:00:00Z"><j:testcase name="b"/></j:testsuite>'
        '<j:testcase classname="t" name="a"><j:system-out>&lt;failure/&gt;</j:system-out></j:testcase>'
        "</j:testsuite></j:testsuites>"
    )
    cases = read_junit(text, "x.xml")
    assert cases is not None
    assert [(one.name, one.suite, one.outcome) for one in cases] == [("b", "inner", "passed"), ("t.a", "ci", "passed")]
    assert cases[1].at == datetime(2026, 11, 1, 8, tzinfo=UTC)


def test_pytest_writes_what_is_read(pytester_folder: Path) -> None:
    cases = read_junit((pytester_folder / "junit.xml").read_text(encoding="utf-8"), "junit.xml")
    assert cases is not None
    assert {(one.name, one.outcome) for one in cases} == {
        ("test_some.test_good[1]", "passed"),
        ("test_some.test_bad", "failed"),
        ("test_some.TestGroup.test_left_out", "skipped"),
    }
    assert {one.suite for one in cases} == {"ci"}
    assert all(one.at is not None and abs(datetime.now(UTC) - one.at) < timedelta(hours=1) for one in cases)


@pytest.fixture
def pytester_folder(tmp_path: Path) -> Path:
    """A folder in which pytest ran as docs/testscore.md says."""
    text = """
import pytest

@pytest.mark.parametrize("one", [1])
def test_good(one): pass

def test_bad(): assert False

class TestGroup:
    @pytest.mark.skip
    def test_left_out(self): pass
"""
    (tmp_path / "test_some.py").write_text(text, encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--junitxml=junit.xml"]
    # Without the plugins that happen to be installed it starts ten times as fast.
    plain = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    subprocess.run([*command, "-o", "junit_suite_name=ci"], cwd=tmp_path, capture_output=True, timeout=60, env=plain)
    return tmp_path


def test_a_real_rehearsal_is_evidence_of_labels_and_of_latency(world: World) -> None:
    policy = read_policy(
        "schema: 1\nmetrics:\n- {name: errors, kind: errors}\n- {name: latency, kind: latency, seconds: 0.1}\n"
        "- {name: absolute_relative_error, kind: labels}"
    )
    numbers = range(200)
    requests = "".join(json.dumps({"request_id": f"r{n}", "body": {"x": n}}) + "\n" for n in numbers)
    labels = "".join(
        json.dumps({"request_id": f"r{n}", "arm": arm, "loss": loss}) + "\n"
        for n in numbers
        for arm, loss in (("candidate", 0.10), ("stable", 0.11))
    )
    recording = read_requests(BytesIO(requests.encode()), "requests.jsonl", policy)
    recording = add_labels(recording, BytesIO(labels.encode()), "labels.jsonl", policy)

    def answer(_: RecordedRequest) -> Reply:
        return Reply(200, b'{"predictions": [{"y": 1}]}', 0.005)

    replay = replay_requests(recording, answer, answer, policy, bounds_seconds=(0.01, 0.1, 1.0), warm_up=0)
    stable, candidate = (Version(f"{NAME}@{number}", f"sha256:{number}", "m:M", "f 1") for number in (2, 3))
    settings = Settings(0, 1, True, 0, 50, "pass")
    rehearsal = Rehearsal(
        "20261113-101500-ab3c", stable, candidate, recording, policy, settings, replay, (), {}, Path("runs")
    )
    world.drop_finding("latency_p99")
    world.write("rehearsals/3.json", rehearsal.to_dict())
    found = {one.id: one for one in world.score().tests}
    assert (found["M2"].points, found["O6"].points) == (1.0, 1.0)
    assert "0.1 and 0.11 online, 0.09 and 0.1 offline" in found["M2"].evidence[0].what
    assert found["O6"].evidence[0].where.endswith("rehearsals/3.json#verdict.findings[latency]")


# What comes out


def test_the_score_is_json_with_evidence_beside_every_point(world: World) -> None:
    values = json.loads(json.dumps(world.score().to_dict(), allow_nan=False))
    assert values["schema"] == 1
    assert values["reference"] == f"{NAME}@3"
    assert list(values["sections"]) == ["data", "model", "infrastructure", "monitoring"]
    assert [test["id"] for test in values["tests"]] == IDS
    for test in values["tests"]:
        assert set(test) == {"id", "section", "title", "points", "evidence", "missing"}
        assert (test["points"] == 0) == (test["evidence"] == [])
        assert all(set(one) == {"kind", "where", "what", "at"} and one["at"] for one in test["evidence"])


def test_the_same_evidence_gives_the_same_score(world: World) -> None:
    assert world.score() == world.score()


def test_limiting_sections_come_first_among_next_points(world: World) -> None:
    for test in ("I1", "I6", "O1"):
        REMOVALS[test][0](world)
    found = world.score()
    assert found.limiting == ("infrastructure",)
    assert [test.id for test in found.next_points()] == ["I1", "I6", "O1"]


def test_sections_are_drawn(world: World) -> None:
    (world.folder / "junit-D7.xml").unlink()
    world.write("drift.json", {})
    found = world.score()
    parts = sections(found)
    assert [part.kind for part in parts] == ["bars", "table", "table", "table", "table"]
    assert [bar["value"] for bar in parts[0].data["bars"]] == [6.0, 7.0, 7.0, 7.0]
    assert [bar["accent"] for bar in parts[0].data["bars"]] == [True, False, False, False]
    page = render_page(found)
    assert "not drawn" not in page
    assert "Done by" not in page
    for text in ("ML Test Score of vehicle-prices@3", "6 of 7", "D7", "map the tests of the preparation", "drift.json"):
        assert text in page


def test_text_of_evidence_is_no_markup(world: World) -> None:
    world.write("checks/O1.json", make_check("O1", what="<script>alert(1)</script>"))
    page = render_page(world.score())
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert" in page


# The page about it


DOCS = (Path(__file__).resolve().parents[2] / "docs" / "testscore.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("test", RUBRIC, ids=lambda test: test.id)
def test_the_documentation_says_what_counts_for_each_test(test: RubricTest) -> None:
    words = {"junit": "test cases", "check": "checks"}
    row = f"| {test.id} | {test.title} | {test.counts} | {', '.join(words[one] for one in test.accepts)} |"
    assert row in DOCS.splitlines()


def test_the_documentation_says_what_a_score_means() -> None:
    for score in (0, 1, 2, 3, 5, 7):
        assert f"| {name_band(score)} |" in DOCS


def test_the_documented_files_are_read(tmp_path: Path) -> None:
    world = World(tmp_path / "evidence", dossiers=dict.fromkeys((1, 2, 3)))
    world.write("testscore.yaml", DOCS.split("```yaml\n")[1].split("```")[0])
    world.write("dependency-job/last-run.log", "")
    world.write("check.json", DOCS.split("```json\n")[1].split("```")[0])
    world.write("junit.xml", make_junit({"vehicle_encoding": "passed", "vehicle_price": "passed"}))
    points = {test: value for test, value in world.points().items() if value}
    assert points == {"D6": 0.5, "D7": 1.0, "I2": 1.0, "O1": 1.0, "O2": 1.0, "O4": 1.0}
