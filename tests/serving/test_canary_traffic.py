"""Rollouts under real load: predictors behind HAProxy, decided by the judge from their own metrics.

Every tick is made by objects that were built for it, as a CronJob's would be: the record in its file is all that is
carried over. No request may fail at any time but those that the candidate itself fails; HAProxy retries nothing.
"""

import shutil
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from haproxy_canary import NAMESPACE, SERVICE, HaproxyActuator, Load, Stage

from mlflywheel.cluster.prometheus import PrometheusSource
from mlflywheel.decisions.canary.policy import read_policy
from mlflywheel.errors import RolloutError
from mlflywheel.rollouts.file_store import FileStore
from mlflywheel.rollouts.interfaces import Candidate
from mlflywheel.rollouts.record import Record
from mlflywheel.rollouts.rollout import Rollout

# Debian keeps it where PATH of ordinary users does not look.
HAPROXY = shutil.which("haproxy") or shutil.which("haproxy", path="/usr/local/sbin:/usr/sbin")
THIRD_PARTY = Path(__file__).parent / "third_party"
# A small alpha and wide margins: what is tested is the way to a decision, on a machine that may be busy.
POLICY = read_policy("""
schema: 1
steps: [5, 25, 50, 100]
alpha: 0.001
minimum: {requests: 20, seconds: 1}
window_seconds: 1
settle_seconds: 0.5
deadline: {after_minutes: 3, shift_minutes: 2}
metrics:
  - {name: errors, kind: errors, margin: {difference: 0.2}}
  - {name: latency, kind: latency, seconds: 0.25, margin: {difference: 0.2}}
""")
TICK_SECONDS = 0.1
# Prices are uniform between 0 and 1; see listings_candidates.
WORSE_SHARE = 0.25


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Saved models: the one in use, the same once more, and two worse ones."""
    sys.path.insert(0, str(THIRD_PARTY))
    from listings_candidates import FailingListings, SlowListings
    from listings_model import Listings

    folder = tmp_path_factory.mktemp("models")
    kinds = {"stable": Listings, "equal": Listings, "failing": FailingListings, "slow": SlowListings}
    for name, kind in kinds.items():
        kind().save(folder / name)
    return {name: folder / name for name in kinds}


@pytest.fixture(scope="module")
def stage(models: dict[str, Path]) -> Iterator[Stage]:
    if HAPROXY is None:
        pytest.skip("no haproxy here; Debian's package haproxy has it")
    stable, *_ = models.values()
    running = Stage(HAPROXY, stable, THIRD_PARTY, {name: models[name] for name in ("equal", "failing", "slow")})
    try:
        yield running
    finally:
        running.stop()


@pytest.fixture
def load(stage: Stage) -> Iterator[Load]:
    with Load(stage.router.port, seed=1) as running:
        running.wait_for_more()
        yield running


def follow(
    stage: Stage, folder: Path, candidate: Candidate, at_tick: Callable[[Record], None] = lambda record: None
) -> Record:
    """Start a rollout, and tick until it has ended."""

    def build() -> Rollout:
        source = PrometheusSource(
            stage.scraper.address, "mlflywheel", NAMESPACE, SERVICE, stale_seconds=5, lag_seconds=0.4
        )
        store = FileStore(folder / "rollout.json")
        return Rollout(f"{NAMESPACE}/{SERVICE}", HaproxyActuator(stage.router, stage.predictors), source, store, "test")

    build().start(candidate, POLICY)
    until = time.monotonic() + 300
    while True:
        record = build().step()
        if record.has_ended:
            return record
        at_tick(record)
        assert time.monotonic() < until, record.message
        time.sleep(TICK_SECONDS)


def told(record: Record) -> list[str]:
    return [entry.what for entry in record.history if entry.what != "change"]


def find_stable(stage: Stage) -> str:
    """Return the arm that is in use between rollouts."""
    (address,) = [server.address for server in stage.router.read().values() if server.status != "MAINT"]
    return next(arm for arm, pod in stage.predictors.pods.items() if pod.address == address)


def check_arms(stage: Stage, kept: str, removed: str) -> None:
    """Check that all traffic is with one version, and that nothing is left of the other."""
    servers = stage.router.read()
    used, free = sorted(servers.values(), key=lambda server: server.status == "MAINT")
    assert used.address == stage.predictors.pods[kept].address
    assert (used.status, used.weight) == ("UP", 100)
    assert (free.status, free.weight) == ("MAINT", 0)
    assert removed not in stage.predictors.pods
    # It was without requests when it was told to end.
    last = next(pod for pod in reversed(stage.predictors.past) if pod.arm == removed)
    assert last.running.stop() == 0
    assert last.running.events("stopped")[0]["cut_off"] == 0
    # Nothing was repeated or moved, and no connection to a predictor failed.
    assert {count for server in servers.values() for count in server.failures.values()} == {"0"}


def check_decision(record: Record, what: str) -> None:
    """Check that the judge decided, by evidence and not by the deadline."""
    decided = next(entry for entry in record.history if entry.what == what)
    assert decided.evidence["is_by_deadline"] is False
    assert {finding["metric"] for finding in decided.evidence["findings"]} == {"errors", "latency"}
    assert decided.why == record.message


def share_of_candidate(record: Record, step: int) -> float:
    windows = [window for window in record.windows if window.step == step and not window.excluded_because]
    candidate = sum(window.candidate.requests for window in windows)
    return candidate / (candidate + sum(window.stable.requests for window in windows))


def test_an_equal_candidate_is_promoted_and_no_request_fails(
    stage: Stage, models: dict[str, Path], load: Load, tmp_path: Path
) -> None:
    stable = find_stable(stage)

    def end_stable_once(record: Record) -> None:
        """What a rollout did not ask for: the process of the version in use is replaced at the second step."""
        if record.step == 1 and record.phase == "watching" and not stage.predictors.past:
            stage.predictors.end(stable)

    record = follow(stage, tmp_path, Candidate(str(models["equal"]), "equal"), end_stable_once)
    load.wait_for_more()
    assert record.phase == "promoted"
    steps = [what for what in told(record) if what not in ("wait", "25 %")]
    assert steps == ["start", "5 %", "advance to 25 %", "advance to 50 %", "50 %", "promote", "promoted"]
    check_decision(record, "promote")
    assert "errors is shown to be less than the stable rate + 20.00%: candidate 0.000%" in record.message
    # The weight was not trusted as long as one of the two was away.
    assert "wait" in told(record)
    assert [pod.arm for pod in stage.predictors.past] == [stable, stable]
    for step, percent in enumerate((5, 25, 50)):
        assert share_of_candidate(record, step) == pytest.approx(percent / 100, abs=0.1)
    assert load.failures == {}
    check_arms(stage, kept="listings-equal", removed=stable)


@pytest.mark.long
def test_a_candidate_that_fails_requests_is_rolled_back_and_no_other_fails(
    stage: Stage, models: dict[str, Path], load: Load, tmp_path: Path
) -> None:
    stable = find_stable(stage)
    record = follow(stage, tmp_path, Candidate(str(models["failing"]), "failing"))
    load.wait_for_more()
    assert record.phase == "rolled_back"
    check_decision(record, "roll back")
    assert record.message.startswith("errors is shown to be more than the stable rate: candidate ")
    judged = next(one for one in record.verdict["findings"] if one["metric"] == "errors" and one["test"] == "harm")
    assert judged["candidate_rate"] == pytest.approx(WORSE_SHARE, abs=0.2)
    assert judged["stable_rate"] == 0
    # Nobody but the candidate has failed a request, and the judge has counted no failure twice.
    ((outcome, failed),) = load.failures.items()
    assert outcome == f"{record.memo['candidate']['server']}: 500"
    assert 0 < sum(window.candidate.errors for window in record.windows) <= failed
    check_arms(stage, kept=stable, removed="listings-failing")


@pytest.mark.long
def test_a_candidate_that_is_slow_in_the_tail_is_rolled_back_and_no_request_fails(
    stage: Stage, models: dict[str, Path], load: Load, tmp_path: Path
) -> None:
    stable = find_stable(stage)
    record = follow(stage, tmp_path, Candidate(str(models["slow"]), "slow"))
    load.wait_for_more()
    assert record.phase == "rolled_back"
    check_decision(record, "roll back")
    assert record.message.startswith("latency is shown to be more than the stable rate: candidate ")
    assert load.failures == {}
    check_arms(stage, kept=stable, removed="listings-slow")


def test_what_is_in_use_is_no_candidate(stage: Stage, tmp_path: Path) -> None:
    folder = stage.predictors.pods[find_stable(stage)].folder
    with pytest.raises(RolloutError, match="the folder in use; another model is needed"):
        follow(stage, tmp_path, Candidate(folder, "again"))


def test_the_load_notices_weight_on_a_server_that_is_not_ready(stage: Stage, load: Load) -> None:
    """The control: without an actuator that waits, requests fail, and are counted by cause."""
    free = next(name for name, server in stage.router.read().items() if server.status == "MAINT")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    stage.router.set((free, f"addr 127.0.0.1 port {port}"), (free, "weight 50"))
    stage.router.trust(free, True)
    stage.router.set((free, "state ready"))
    load.wait_for(lambda: load.failures.get("proxy: 503", 0) > 0)
    stage.router.set((free, "state maint"), (free, "weight 0"))
    stage.router.trust(free, False)
    stage.router.clear_counters()
