"""Two rollouts under real traffic on this machine, recorded tick by tick.

    python -m benchmarks.rollouts.traffic                    both: about 5 minutes; needs haproxy
    python -m benchmarks.rollouts.traffic --only bad

Predictors are processes behind HAProxy; see `tests/serving/haproxy_canary.py`. The good candidate is the same model
saved again. The bad one fails one request in 40. A policy like the default one, but with steps of 20 s, decides.

What is recorded: `ticks` (seconds since the start; phase; the candidate's weight as HAProxy has it, in percent; each
test's evidence), `windows` (what both arms did in 5 s), `history`, and `outcomes` as the clients saw them. Requests are
seeded; how they are spread over time is not.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mlflywheel.cluster.prometheus import PrometheusSource
from mlflywheel.decisions.canary.evidence import window_to_dict
from mlflywheel.decisions.canary.policy import read_policy
from mlflywheel.rollouts.file_store import FileStore
from mlflywheel.rollouts.interfaces import Candidate
from mlflywheel.rollouts.record import Record
from mlflywheel.rollouts.rollout import Rollout

RESULTS = Path(__file__).parent / "results"
TESTS = Path(__file__).parents[2] / "tests" / "serving"
HAPROXY = shutil.which("haproxy") or shutil.which("haproxy", path="/usr/local/sbin:/usr/sbin")
POLICY = """
schema: 1
steps: [1, 5, 25, 50, 100]
minimum: {requests: 30, seconds: 20}
window_seconds: 5
settle_seconds: 2
deadline: {after_minutes: 8, shift_minutes: 2}
metrics:
  - {name: errors, kind: errors, margin: {difference: 0.01}}
  - {name: latency, kind: latency, seconds: 0.25, margin: {difference: 0.01}}
"""
# Of prices up to 10, one in 40 is one for which the bad candidate fails.
_HIGHEST_PRICE = 10.0
_BEFORE_AND_AFTER_SECONDS = 5.0
_TICK_SECONDS = 1.0


def record_rollout(kind: str, seed: int) -> dict[str, Any]:
    """Run one rollout, and return what was seen of it."""
    for folder in (TESTS, TESTS / "third_party"):
        sys.path.insert(0, str(folder))
    from haproxy_canary import NAMESPACE, SERVICE, HaproxyActuator, Load, Stage
    from listings_candidates import FailingListings
    from listings_model import Listings

    assert HAPROXY is not None
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        Listings().save(folder / "stable")
        (FailingListings() if kind == "bad" else Listings()).save(folder / kind)
        stage = Stage(HAPROXY, folder / "stable", TESTS / "third_party", {})
        try:
            source = PrometheusSource(
                stage.scraper.address, "mlflywheel", NAMESPACE, SERVICE, stale_seconds=5, lag_seconds=0.4
            )
            actuator = HaproxyActuator(stage.router, stage.predictors)
            rollout = Rollout(f"{NAMESPACE}/{SERVICE}", actuator, source, FileStore(folder / "rollout.json"), "bench")
            ticks = []
            with Load(stage.router.port, seed, _HIGHEST_PRICE) as load:
                time.sleep(_BEFORE_AND_AFTER_SECONDS)
                record = rollout.start(Candidate(str(folder / kind), kind), read_policy(POLICY))
                candidate = record.memo["candidate"]["server"]
                while not record.has_ended:
                    time.sleep(_TICK_SECONDS)
                    record = rollout.step()
                    ticks.append(describe_tick(record, stage.router.read()[candidate].weight))
                time.sleep(_BEFORE_AND_AFTER_SECONDS)
            outcomes = {outcome.replace(candidate, "candidate"): count for outcome, count in load.outcomes.items()}
        finally:
            stage.stop()
        return {
            "kind": kind,
            "phase": record.phase,
            "why": record.message,
            "policy": record.policy.to_dict(),
            "outcomes": {
                outcome.replace(record.memo["stable"]["server"], "stable"): n for outcome, n in outcomes.items()
            },
            "ticks": ticks,
            "windows": [
                {**window_to_dict(window), "start": since(record, window.start), "end": since(record, window.end)}
                for window in record.windows
            ],
            "history": [
                {"seconds": since(record, entry.time), "what": entry.what, "why": entry.why.replace(f"{folder}/", "")}
                for entry in record.history
            ],
        }


def describe_tick(record: Record, weight: int) -> dict[str, Any]:
    """Return what a chart needs of a tick."""
    return {
        "seconds": since(record, time.time()),
        "phase": record.phase,
        "weight_percent": weight,
        "evidence": {f"{one['metric']} {one['test']}": one["evidence"] for one in record.verdict.get("findings", [])},
        "needed": {f"{one['metric']} {one['test']}": one["needed"] for one in record.verdict.get("findings", [])},
    }


def since(record: Record, at: float) -> float:
    """Return seconds since the rollout's start."""
    return round(at - record.started, 2)


def main(arguments: Sequence[str] | None = None) -> int:
    """Record what was asked for, and write it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rollouts.traffic")
    parser.add_argument("--only", choices=["good", "bad"], help="one of the two")
    parser.add_argument("--seed", type=int, default=1, help="of the requests (1)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    chosen = parser.parse_args(arguments)
    if HAPROXY is None:
        print("no haproxy here; Debian's package haproxy has it", file=sys.stderr)
        return 1
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    about = {
        "command": "python -m benchmarks.rollouts.traffic",
        "date": datetime.now(UTC).date().isoformat(),
        "seed": chosen.seed,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}",
        "python": platform.python_version(),
        "mlflywheel": version("mlflywheel"),
        "haproxy": subprocess.run([HAPROXY, "-v"], capture_output=True, text=True, check=True).stdout.split()[2],
    }
    for kind in [chosen.only] if chosen.only else ["good", "bad"]:
        found = record_rollout(kind, chosen.seed)
        chosen.out.mkdir(parents=True, exist_ok=True)
        path = chosen.out / f"traffic-{kind}.json"
        path.write_text(json.dumps(about | found, indent=1) + "\n", encoding="utf-8")
        print(f"{kind}: {found['phase']} after {found['history'][-1]['seconds']:.0f} s; {found['outcomes']}")
        print(f"  {found['why']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
