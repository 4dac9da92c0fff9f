"""Deploying a version: its rollout is started, taken up or told of, and followed to its end."""

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from mlflywheel.cluster.deployment import (
    Deployed,
    carry_out,
    check_approval,
    deploy,
    describe_source,
    make_candidate,
    tell_registry,
)
from mlflywheel.decisions.canary.policy import Policy, read_policy
from mlflywheel.errors import ForeignEditError, GateRefusedError, RegistryError, RolloutError, UsageError
from mlflywheel.registry import EmbeddedRegistry, ModelVersion
from mlflywheel.registry.records import State
from mlflywheel.reports.rollout import write_rollout
from mlflywheel.rollouts.evidence_file import EvidenceFileSource
from mlflywheel.rollouts.file_store import FileStore
from mlflywheel.rollouts.interfaces import Actuator, Candidate, Memo, Move, Target
from mlflywheel.rollouts.record import read_record
from mlflywheel.rollouts.rollout import Rollout

V1 = "s3://models/ads/1"
CANDIDATE = Candidate("s3://models/ads/2", "v2", "ads@2")
OTHER = Candidate("s3://models/ads/3", "v3", "ads@3")
POLICY = read_policy(
    "schema: 1\nsteps: [20, 50, 100]\nminimum: {requests: 50, seconds: 20}\nwindow_seconds: 10\nsettle_seconds: 0\n"
    "deadline: {after_minutes: 60}\nmetrics:\n  - {name: errors, kind: errors}"
)
REQUESTS_A_SECOND = 100


class KilledError(Exception):
    """The process ended here."""


class Service(Actuator):
    """A service that notes what both versions did into a file of evidence, ten seconds at a time.

    Args:
        folder: Where the evidence and the record go.
        candidate_errors: Of 1,000 requests of the candidate; the version in use has 5.
    """

    def __init__(self, folder: Path, candidate_errors: int = 5) -> None:
        self.folder = folder
        self.candidate_errors = candidate_errors
        self.now = 1_800_000_000.0
        self.in_use = V1
        self.percent: float | None = None
        self.moves = 0
        self.killed_at: int | None = None
        self.foreign = ""
        self.windows: list[dict[str, Any]] = []
        self._write_evidence()

    def begin(self, candidate: Candidate) -> Memo:
        # As the actuators of a cluster remember the service's specification.
        return {"original": {"predictor": {"model": {"storageUri": self.in_use}}}}

    def move(self, candidate: Candidate, target: Target, memo: Memo) -> Move:
        self.moves += 1
        if self.killed_at is not None and self.moves >= self.killed_at:
            self.killed_at = None
            raise KilledError
        if self.foreign:
            raise ForeignEditError("service", self.foreign, "nobody else may change it meanwhile", "undo it")
        wanted = target.traffic_percent if target.kind == "weight" else None
        if target.kind == "promoted":
            self.in_use = candidate.storage_uri
        if self.percent == wanted:
            return Move(True, traffic_percent=wanted)
        self.percent = wanted
        return Move(False, did=f"set {wanted} %", waiting_for="the router")

    def render(self, candidate: Candidate, target: Target, memo: Memo) -> Sequence[Mapping[str, Any]]:
        return ()

    def wait(self, seconds: float) -> None:
        """Let time pass in pieces of at most ten seconds."""
        until = self.now + seconds
        while self.now < until:
            length = min(10.0, until - self.now)
            share = (self.percent or 0.0) / 100
            both = {}
            for arm, part, errors in (("stable", 1 - share, 5), ("candidate", share, self.candidate_errors)):
                requests = round(REQUESTS_A_SECOND * length * part)
                both[arm] = {"requests": requests, "errors": round(requests * errors / 1000)}
            window = {"start": self.now, "end": self.now + length, "step": 0, "traffic_percent": 100 * share, **both}
            self.windows.append(window)
            self.now += length
        self._write_evidence()

    def open(self) -> Rollout:
        source = EvidenceFileSource(str(self.folder / "evidence.json"), lag_seconds=0)
        return Rollout("team/ads", self, source, FileStore(self.folder / "rollout.json"), "ann", lambda: self.now)

    def deploy(self, candidate: Candidate = CANDIDATE, **options: Any) -> Deployed:
        given: dict[str, Any] = {"in_use": self.in_use, "pause": self.wait, **options}
        return carry_out(self.open(), candidate, POLICY, {"kind": "file"}, **given)

    def _write_evidence(self) -> None:
        (self.folder / "evidence.json").write_text(json.dumps({"schema": 1, "windows": self.windows}))


def test_an_equal_version_is_promoted_and_measured(tmp_path: Path) -> None:
    service = Service(tmp_path)
    told: list[tuple[str, int, int]] = []
    deployed = service.deploy(progress=lambda *progress: told.append(progress))
    deployed.raise_if_refused()
    assert (deployed.verdict, service.in_use, service.percent) == ("promoted", CANDIDATE.storage_uri, None)
    assert list(dict.fromkeys(phase for phase, _, _ in told)) == [
        "shifting at 20 %", "watching at 20 %", "shifting at 50 %", "watching at 50 %", "promoting", "promoted",
    ]  # fmt: skip
    assert told[-1][1:] == (3, 3)
    measured = deployed.metrics()
    assert measured["rollout_seconds"] > measured["exposed_seconds"] >= 40
    assert measured["errors_stable"] == pytest.approx(0.005, abs=0.001)
    # Of every second at a weight that was reached, less than a window at each end.
    assert 0 < measured["judged_requests"] <= sum(one["candidate"]["requests"] for one in service.windows)


def test_a_worse_version_is_rolled_back_and_refuses_the_run(tmp_path: Path) -> None:
    service = Service(tmp_path, candidate_errors=80)
    deployed = service.deploy()
    assert (deployed.verdict, service.in_use, service.percent) == ("rolled back", V1, None)
    with pytest.raises(GateRefusedError, match="ads@2 was rolled back: errors is shown to be more") as caught:
        deployed.raise_if_refused()
    assert caught.value.exit_code == 3
    deployed.raise_if_refused("report")
    assert deployed.metrics()["errors_candidate"] == pytest.approx(0.08, abs=0.01)
    assert deployed.facts()["reason"] in str(caught.value)


def test_the_version_in_use_is_left_alone(tmp_path: Path) -> None:
    service = Service(tmp_path)
    deployed = service.deploy(in_use=f"{CANDIDATE.storage_uri}/")
    deployed.raise_if_refused()
    assert (deployed.verdict, deployed.record, deployed.metrics()) == ("already in use", None, {})
    assert service.moves == 0
    assert not (tmp_path / "rollout.json").exists()


def test_a_version_that_is_rolled_back_does_not_begin_again(tmp_path: Path) -> None:
    service = Service(tmp_path, candidate_errors=80)
    first = service.deploy()
    moves = service.moves
    again = service.deploy()
    assert (again.verdict, again.record, service.moves) == ("rolled back", first.record, moves)


def test_a_promotion_is_told_again_until_another_version_is_in_use(tmp_path: Path) -> None:
    service = Service(tmp_path)
    first = service.deploy()
    moves = service.moves
    again = service.deploy()
    assert (again.verdict, again.record, service.moves) == ("promoted", first.record, moves)
    service.in_use = V1
    assert service.deploy(timeout_seconds=10_000).record != first.record


def test_a_step_that_is_killed_at_any_move_is_gone_on_with(tmp_path: Path) -> None:
    undisturbed = Service(tmp_path)
    undisturbed.deploy()
    for number in range(1, undisturbed.moves + 1):
        folder = tmp_path / str(number)
        folder.mkdir()
        service = Service(folder)
        service.killed_at = number
        with pytest.raises(KilledError):
            service.deploy()
        begun = service.open().status()
        service.wait(3)
        deployed = service.deploy()
        assert deployed.verdict == "promoted"
        assert deployed.record is not None
        assert (deployed.record.id, deployed.record.started) == (begun.id, begun.started)


def test_a_rollout_of_another_version_is_named(tmp_path: Path) -> None:
    service = Service(tmp_path)
    service.open().start(OTHER, POLICY)
    with pytest.raises(RolloutError, match=r"of ads@3 is shifting; one rollout at a time") as caught:
        service.deploy()
    assert caught.value.exit_code == 1
    assert service.moves == 0


def test_a_version_in_the_spec_of_another_s_rollout_is_not_taken_for_the_one_in_use(tmp_path: Path) -> None:
    """In Knative mode a candidate's address is the service's from its first percent on."""
    service = Service(tmp_path)
    service.open().start(OTHER, POLICY)
    with pytest.raises(RolloutError, match="one rollout at a time"):
        service.deploy(in_use=CANDIDATE.storage_uri)


def test_time_that_is_over_leaves_the_rollout_as_it_stands(tmp_path: Path) -> None:
    service = Service(tmp_path)
    with pytest.raises(RolloutError, match=r"not ended within 20 s: watching at 20 %.*mlflywheel rollout watch ads"):
        service.deploy(timeout_seconds=20)
    assert (service.percent, service.open().status().phase) == (20, "watching")
    assert service.deploy().verdict == "promoted"


def test_a_rollout_that_somebody_else_moves_on_is_waited_for(tmp_path: Path) -> None:
    service = Service(tmp_path)
    held = ExitStack()
    held.enter_context(FileStore(tmp_path / "rollout.json").lock("a CronJob"))
    waits: list[float] = []

    def wait(seconds: float) -> None:
        waits.append(seconds)
        service.wait(seconds)
        if len(waits) == 2:
            held.close()
        if len(waits) == 4:
            held.enter_context(FileStore(tmp_path / "rollout.json").lock("a CronJob"))
        if len(waits) == 6:
            held.close()

    assert service.deploy(pause=wait).verdict == "promoted"
    assert waits[:2] == waits[4:6] == [5.0, 5.0]


def test_a_rollout_that_is_held_for_ever_ends_with_who_holds_it(tmp_path: Path) -> None:
    service = Service(tmp_path)
    with (
        FileStore(tmp_path / "rollout.json").lock("a CronJob"),
        pytest.raises(RolloutError, match="not ended within 60 s: held by a CronJob"),
    ):
        service.deploy(timeout_seconds=60)


def test_what_was_decided_and_followed_by_another_rollout_is_found(tmp_path: Path) -> None:
    service = Service(tmp_path, candidate_errors=80)
    service.open().start(CANDIDATE, POLICY)

    def wait(seconds: float) -> None:
        service.wait(seconds)
        other = service.open()
        if other.status().candidate == CANDIDATE:
            list(other.watch(service.wait))
            other.start(OTHER, POLICY)

    deployed = service.deploy(pause=wait)
    assert deployed.verdict == "rolled back"
    with pytest.raises(GateRefusedError, match="errors is shown to be more"):
        deployed.raise_if_refused()


def test_somebody_s_edit_ends_the_run_with_what_was_seen(tmp_path: Path) -> None:
    service = Service(tmp_path)

    def wait(seconds: float) -> None:
        service.wait(seconds)
        service.foreign = "minReplicas 7, written by kubectl-edit" if service.now > 1_800_000_015 else ""

    deployed = service.deploy(pause=wait)
    assert deployed.verdict == "stopped"
    with pytest.raises(RolloutError, match="minReplicas 7, written by kubectl-edit"):
        deployed.raise_if_refused("report")


@pytest.mark.parametrize(("candidate_errors", "word"), [(5, "promoted"), (80, "rolled back")])
def test_page_and_json_show_verdict_evidence_and_history(tmp_path: Path, candidate_errors: int, word: str) -> None:
    deployed = Service(tmp_path, candidate_errors).deploy()
    write_rollout(deployed.verdict, deployed.record, tmp_path / "rollout-out.json", tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text("utf-8")
    for text in ("What the judge found", "Errors over time", "History of the rollout", "ads@2", "ann", "errors"):
        assert text in page
    assert deployed.record is not None
    written = json.loads((tmp_path / "rollout-out.json").read_text("utf-8"))
    assert (written["verdict"], written["record"]["id"]) == (word, deployed.record.id)
    assert written["sections"][0]["title"] == "Rollout"
    assert deployed.record.message in page.replace("&gt;", ">").replace("&#x27;", "'")


def test_page_of_a_version_in_use_says_so(tmp_path: Path) -> None:
    write_rollout("already in use", None, tmp_path / "rollout.json", tmp_path / "page.html")
    assert "already in use" in (tmp_path / "page.html").read_text("utf-8")
    assert json.loads((tmp_path / "rollout.json").read_text("utf-8"))["record"] is None


# What is refused before anything is asked.


def make_version(uri: str) -> ModelVersion:
    return ModelVersion(
        name="ads", key="run", uri=uri, format_name="f", format_version="1", hash="sha256:0", version="2",
        state=State.CANDIDATE, created_at=datetime(2026, 11, 21, tzinfo=UTC),
    )  # fmt: skip


@pytest.fixture
def register(tmp_path: Path) -> Callable[[str], str]:
    """`register(uri)` returns the address of a registry with `ads@1`."""

    def make(uri: str) -> str:
        path = tmp_path / "registry.sqlite"
        version = EmbeddedRegistry(path).ensure_version(
            "ads", uri, key="run", format_name="f", format_version="1", hash=f"sha256:{'0' * 64}"
        )
        assert version.reference == "ads@1"
        return str(path)

    return make


def test_a_version_becomes_a_candidate_of_its_number() -> None:
    assert make_candidate(make_version("s3://models/ads/2")) == CANDIDATE
    assert make_candidate(make_version("pvc://models/2"), "next").name == "next"


@pytest.mark.parametrize("uri", ["file:///srv/models/2", "/srv/models/2"])
def test_a_version_that_no_cluster_can_read_is_refused(uri: str) -> None:
    with pytest.raises(UsageError, match=r"ads@2: it lies at .*s3:// or pvc://.*rollout start --uri"):
        make_candidate(make_version(uri))


def test_a_local_version_is_refused_before_a_cluster_is_asked(register: Callable[[str], str]) -> None:
    with pytest.raises(UsageError, match="ads@1: it lies at file:///srv/models/1"):
        deploy("ads@1", register("/srv/models/1"), "ads", context="there is none")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"policy": "schema: 1\nsteps: [5, 4, 100]"}, "the rollout's policy, steps"),
        ({"on_rollback": "ignore"}, "on_rollback: 'ignore'"),
    ],
)
def test_parameters_are_checked_before_anything_is_read(options: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        deploy("ads@1", "/nowhere/registry.sqlite", "ads", **options)


def test_a_version_that_is_not_registered_is_named(register: Callable[[str], str]) -> None:
    with pytest.raises(RegistryError, match="ads@7"):
        deploy("ads@7", register("s3://models/ads/1"), "ads")


def test_one_source_of_evidence_is_needed() -> None:
    assert describe_source(evidence="s3://team/windows.json") == {"kind": "file", "path": "s3://team/windows.json"}
    with pytest.raises(UsageError, match=r"nothing; one source is needed.*--set prometheus=URL"):
        describe_source()
    with pytest.raises(UsageError, match="both prometheus and evidence"):
        describe_source("http://p:9090", evidence="windows.json")
    with pytest.raises(UsageError, match="preset: kserve"):
        describe_source(preset="kserve", evidence="windows.json")


# What the registry says before, and is told afterwards.


@pytest.fixture
def versions(tmp_path: Path) -> EmbeddedRegistry:
    """A registry where `ads@1` is live and `ads@2` approved; `ads@3` is a candidate."""
    registry = EmbeddedRegistry(tmp_path / "registry.sqlite")
    for number in (1, 2, 3):
        registry.ensure_version(
            "ads",
            f"s3://models/ads/{number}",
            key=f"run-{number}",
            format_name="f",
            format_version="1",
            hash="sha256:0",
        )
    for number, states in (("1", (State.APPROVED, State.LIVE)), ("2", (State.APPROVED,))):
        for state in states:
            registry.set_state("ads", number, state, by="ann", reason="reviewed")
    return registry


def read_states(registry: EmbeddedRegistry) -> dict[str, str]:
    return {version.reference: str(version.state) for version in registry.list_versions("ads")}


def refuse() -> None:
    raise GateRefusedError("ads@2", "it is a candidate", "an approval is needed", "approve it")


def test_approval_is_asked_for_before_a_rollout_starts_and_not_after(tmp_path: Path) -> None:
    service = Service(tmp_path)
    with pytest.raises(GateRefusedError, match="approve it"):
        service.deploy(check=refuse)
    assert (service.moves, service.open().store.load()) == (0, None)
    service.open().start(CANDIDATE, POLICY)
    assert service.deploy(check=refuse).verdict == "promoted"
    # A step that is repeated is told the same, whatever was decided since.
    assert service.deploy(check=refuse).verdict == "promoted"


def test_the_version_in_use_needs_no_approval_to_stay(tmp_path: Path) -> None:
    service = Service(tmp_path)
    assert service.deploy(in_use=CANDIDATE.storage_uri, check=refuse).verdict == "already in use"


@pytest.mark.parametrize(
    ("reference", "approval", "refused"),
    [
        ("ads@1", "required", ""),
        ("ads@2", "required", ""),
        ("ads@3", "required", "nobody has approved it"),
        ("ads@3", "not_required", ""),
    ],
)
def test_only_approved_and_live_versions_pass(
    versions: EmbeddedRegistry, reference: str, approval: str, refused: str
) -> None:
    policy = read_policy(f"schema: 1\napproval: {approval}")
    version = versions.get(*reference.split("@"))
    if not refused:
        check_approval(version, policy)
        return
    with pytest.raises(GateRefusedError, match=refused) as caught:
        check_approval(version, policy)
    assert caught.value.exit_code == 3
    assert f"mlflywheel models approve {reference}" in caught.value.fix


def test_an_archived_version_passes_under_no_policy(versions: EmbeddedRegistry) -> None:
    archived = versions.set_state("ads", "3", State.ARCHIVED, by="ann")
    with pytest.raises(GateRefusedError, match=r"archived.*models restore ads@3"):
        check_approval(archived, read_policy("schema: 1\napproval: not_required"))


def test_a_promoted_version_becomes_live_and_the_one_before_it_approved(
    tmp_path: Path, versions: EmbeddedRegistry
) -> None:
    record = Service(tmp_path).deploy().record
    assert record is not None
    changes, warning = tell_registry(versions, record)
    assert (changes, warning) == (("ads@2 is live", "ads@1 is approved"), "")
    assert read_states(versions) == {"ads@1": "approved", "ads@2": "live", "ads@3": "candidate"}
    last = versions.history("ads", "2")[-1]
    assert last.by == "ann"
    assert last.reason.startswith(f"rollout {record.id} of team/ads: promoted, ")
    assert versions.history("ads", "1")[-1].reason == f"rollout {record.id} of team/ads: replaced by ads@2"


def test_a_version_that_was_rolled_back_loses_its_approval(tmp_path: Path, versions: EmbeddedRegistry) -> None:
    record = Service(tmp_path, candidate_errors=80).deploy().record
    assert record is not None
    assert tell_registry(versions, record) == (("ads@2 is candidate",), "")
    assert read_states(versions) == {"ads@1": "live", "ads@2": "candidate", "ads@3": "candidate"}
    assert "rolled back, errors is shown to be more" in versions.history("ads", "2")[-1].reason


@pytest.mark.parametrize("candidate_errors", [5, 80])
def test_what_a_person_decided_since_is_not_overwritten_by_a_repeated_step(
    tmp_path: Path, versions: EmbeddedRegistry, candidate_errors: int
) -> None:
    record = Service(tmp_path, candidate_errors).deploy().record
    assert record is not None
    tell_registry(versions, record)
    versions.set_state("ads", "2", State.APPROVED, by="bob", reason="looked into it")
    states = read_states(versions)
    assert tell_registry(versions, record) == ((), "")
    assert read_states(versions) == states


def test_without_a_need_for_approval_a_candidate_becomes_live_and_the_history_says_why(
    tmp_path: Path, versions: EmbeddedRegistry
) -> None:
    record = Service(tmp_path).deploy(OTHER).record
    assert record is not None
    lenient = replace(record, policy=read_policy("schema: 1\napproval: not_required"))
    assert tell_registry(versions, lenient)[1] == ""
    steps = [(str(one.to_state), one.reason.partition(": ")[2]) for one in versions.history("ads", "3")]
    assert steps[1] == ("approved", "its policy asks for no approval")
    assert steps[2][0] == "live"


def test_a_registry_that_refuses_undoes_nothing_and_is_a_warning(tmp_path: Path, versions: EmbeddedRegistry) -> None:
    record = Service(tmp_path).deploy().record
    assert record is not None
    # Somebody withdrew the approval while the rollout went on.
    versions.set_state("ads", "2", State.CANDIDATE, by="bob", reason="second thoughts")
    changes, warning = tell_registry(versions, record)
    assert changes == ()
    assert warning.startswith("ads@2 is promoted, and the registry does not say so: ")
    assert "candidate cannot become live" in warning
    assert f"`mlflywheel rollout watch ads -n team --registry {versions.address}`" in warning
    told = Deployed("promoted", CANDIDATE, record, changes, warning).facts()
    assert told["warning"] == warning


def test_a_rollout_that_goes_on_or_of_a_bare_address_tells_the_registry_nothing(
    tmp_path: Path, versions: EmbeddedRegistry
) -> None:
    states = read_states(versions)
    started = Service(tmp_path).open().start(CANDIDATE, POLICY)
    nameless = replace(started, phase="promoted", candidate=Candidate("s3://models/ads/2", "v2"))
    for record in (started, replace(started, phase="stopped"), nameless):
        assert tell_registry(versions, record) == ((), "")
    assert read_states(versions) == states


def test_a_rollout_that_was_recorded_before_approvals_is_read_as_asking_for_none(tmp_path: Path) -> None:
    values = Service(tmp_path).open().start(CANDIDATE, Policy()).to_dict()
    assert read_record(json.dumps(values), "here").policy.approval == "required"
    del values["policy"]["approval"]
    assert read_record(json.dumps(values), "here").policy == Policy(approval="not_required")
