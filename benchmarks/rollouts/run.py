"""How often the canary judge errs on simulated traffic, how many requests that costs, and what others' rules do there.

    python -m benchmarks.rollouts.run                                all of it: about 4 minutes on one core
    python -m benchmarks.rollouts.run --quick --out quick.json       few runs: does it run?

Everything is seeded. Peers (`peers.py`) are calibrated on equal candidates until they roll back as many of them as the
default policy does. Of the numbers of failed checks that they may tolerate each takes the one that finds most doubled
error rates, and among those within one in a hundred of it the one that exposes fewest requests: better than a user
could choose without knowing the traffic.
"""

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.rollouts import peers
from mlflywheel.decisions.canary.planning import plan
from mlflywheel.decisions.canary.policy import ErrorsMetric, LimitLine, Minimum, Policy
from mlflywheel.decisions.canary.simulation import (
    SCENARIOS,
    ScenarioResult,
    Traffic,
    results_to_dict,
    simulate,
)

FOLDER = Path(__file__).parent
RESULTS = FOLDER / "results" / "rollouts.json"
ROOT = FOLDER.parents[1]
IMAGE = ROOT / "docs" / "images" / "benchmarks-rollouts.svg"
_START, _END = "<!-- rollouts: written by benchmarks.rollouts.run -->", "<!-- end of rollouts -->"
_LIMIT_REQUESTS = 10_000
_PEER_SCENARIOS = (
    "aa", "error-x2", "error-x2-late", "latency-tail", "latency-shift", "daily-cycle", "daily-cycle-x2", "error-burst",
    "bursts",
)  # fmt: skip
_TOLERATED = (0, 1, 2, 3, 5, 9, 14, 19, 29)
_INK, _QUIET, _PANEL, _OURS, _PEER = "#1f2933", "#616e7c", "#f7f9fb", "#1f5fa8", "#d9822b"

Say = Callable[[str], None]


def describe(result: ScenarioResult, **more: Any) -> dict[str, Any]:
    """Return a result with the share that was rolled back within the limit of requests."""
    return (
        more | result.to_dict() | {f"rollback_rate_within_{_LIMIT_REQUESTS}": result.share("rollback", _LIMIT_REQUESTS)}
    )


def measure_scenarios(policy: Policy, runs: int, seed: int, say: Say) -> dict[str, Any]:
    """Simulate every scenario under the default policy."""
    results = []
    for name in SCENARIOS:
        say(f"scenario {name}")
        results += simulate(policy, [name], runs, seed)
    found = results_to_dict(policy, results, seed)
    found["scenarios"] = [describe(result) for result in results]
    return found


def measure_targets(policy: Policy, runs: int, seed: int, say: Say) -> dict[str, Any]:
    """Simulate what the targets speak of with more runs, and with another seed than the plan's."""
    say("targets")
    equal, twice = simulate(policy, ["aa", "error-x2"], runs, seed + 1)
    planned = plan(policy, Traffic().requests_per_second)
    requests = planned.to_promote.requests
    return {
        "plan": planned.to_dict(),
        "sentences": planned.describe().split("\n"),
        "aa": describe(equal),
        "promoted_within_plan": equal.share("promote", float(requests)) if requests else None,
        "error-x2": describe(twice),
    }


def measure_asking(policy: Policy, runs: int, seed: int, say: Say) -> list[dict[str, Any]]:
    """Simulate equal candidates and ask the judge more or less often."""
    rows = []
    cells: list[tuple[str, Policy, int]] = [
        (f"windows of {seconds} s, asked every {'window' if every == 1 else f'{every} windows'}",
         policy.model_copy(update={"window_seconds": float(seconds)}), every)
        for seconds, every in ((5, 1), (30, 1), (30, 5), (300, 1))
    ]  # fmt: skip
    cells.append(
        ("windows of 30 s, one suffices for a decision", policy.model_copy(update={"sustained_windows": 1}), 1)
    )
    for name, changed, every in cells:
        say(f"asking: {name}")
        [result] = simulate(changed, ["aa"], runs, seed, ask_every_windows=every)
        rows.append(describe(result, cell=name))
    # Equal candidates are never shown to be better, so that this one is asked for a whole day.
    metric = ErrorsMetric(name="errors", role="superiority")
    stubborn = Policy(metrics=(metric,))
    name = "promoted only if better: asked 2,880 times, until the deadline"
    say(f"asking: {name}")
    [result] = simulate(stubborn, ["aa"], runs, seed)
    rows.append(describe(result, cell=name))
    return rows


def measure_rates(policy: Policy, runs: int, seed: int, say: Say) -> list[dict[str, Any]]:
    """Simulate equal and doubled error rates at several stable rates, with the default margin and one that fits."""
    rows = []
    for rate in (0.002, 0.01, 0.05):
        margins = {0.01: "default: 1 % more"}
        margins.setdefault(rate, f"{rate:.1%} more")
        for difference, margin in margins.items():
            errors = ErrorsMetric(name="errors", margin=LimitLine(difference=difference))
            changed = policy.model_copy(update={"metrics": (errors, *policy.metrics[1:])})
            say(f"stable rate {rate:.1%}, margin {margin}")
            for result in simulate(changed, ["aa", "error-x2"], runs, seed, Traffic(error_rate=rate)):
                rows.append(describe(result, stable_rate=rate, margin=margin))
    return rows


def measure_starts(policy: Policy, runs: int, seed: int, say: Say) -> list[dict[str, Any]]:
    """Let errors double when a weight is reached, and let drifts have hours."""
    rows = []
    for percent in policy.steps[:-1]:
        say(f"errors double from {percent:g} %")
        [result] = simulate(policy, [f"error-x2-from-{percent:g}"], runs, seed)
        rows.append(describe(result, cell=f"errors double at {percent:g} %"))
    slow = policy.model_copy(update={"minimum": Minimum(requests=50, seconds=3600)})
    for name in ("slow-drift", "aa"):
        say(f"{name} with an hour a step")
        [result] = simulate(slow, [name], runs, seed)
        rows.append(describe(result, cell=f"{name}, every step at least an hour"))
    return rows


def measure_peers(ours: dict[str, Any], rate: float, runs: int, seed: int, say: Say) -> list[dict[str, Any]]:
    """Run others' rules as documented, and calibrated to our rate of false alarms."""
    rows = [
        {
            "rule": {"name": "the judge, default policy"},
            "kind": "ours",
            "scenarios": {
                row["scenario"]: {key: row[key] for key in ("rollback_rate", "promote_rate", "median_requests_exposed",
                                                            "p95_requests_exposed", "median_minutes")}
                for row in ours["scenarios"]
                if row["scenario"] in _PEER_SCENARIOS
            },
        }
    ]  # fmt: skip
    rules: list[tuple[str, peers.Rule]] = []
    for documented, stepped in ((peers.FLAGGER, peers.FLAGGER_OUR_STEPS), (peers.ARGO, peers.ARGO_OUR_STEPS)):
        rules.append(("as documented", documented))
        for steps, rule in (("documented steps", documented), ("our steps", stepped)):
            for is_relative in (False, True):
                kind = f"{steps}, {'relative to stable' if is_relative else 'fixed thresholds'}"
                say(f"{rule.name}, {kind}")
                checks = rule.checks_a_weight * (len(rule.weights) - rule.unchecked_weights)
                tried = [
                    peers.calibrate(
                        replace(rule, is_relative=is_relative, tolerated=tolerated), rate, max(5000, runs), seed
                    )
                    for tolerated in _TOLERATED
                    if rule.halts or tolerated < checks
                ]
                found = [peers.simulate_rule(one, "error-x2", runs, seed + 1).to_dict() for one in tried]
                most = max(one["rollback_rate"] for one in found)
                # Among those that find about as many, the one that exposes fewest.
                exposed = [
                    one["median_requests_exposed"] if one["rollback_rate"] >= most - 0.01 else float("inf")
                    for one in found
                ]
                rules.append((kind, tried[exposed.index(min(exposed))]))
    for kind, rule in rules:
        outcomes = {name: peers.simulate_rule(rule, name, runs, seed + 2).to_dict() for name in _PEER_SCENARIOS}
        rows.append({"rule": rule.to_dict(), "kind": kind, "scenarios": outcomes})
    return rows


def measure_z_tests(policy: Policy, runs: int, seed: int, say: Say) -> list[dict[str, Any]]:
    """Run the planned test of two proportions, and the same one looked at after every window."""
    from scipy import stats

    say("z-tests")
    low, high, alpha, power = 0.01, 0.02, policy.alpha, 0.95
    critical = float(stats.norm.isf(alpha))
    spread = low * (1 - low) + high * (1 - high)
    requests = round((critical + float(stats.norm.isf(1 - power))) ** 2 * spread / (high - low) ** 2)
    windows = -(-requests // 150)
    cells: list[tuple[str, Callable[[str], peers.Outcome]]] = [
        ("one look, planned", lambda name: peers.decide_once(name, requests, critical, runs, seed)),
        (f"a look after each of {windows} windows",
         lambda name: peers.decide_every_window(name, windows, 30, critical, runs, seed)),
        ("a look every 30 s for a day",
         lambda name: peers.decide_every_window(name, 2880, 30, critical, runs, seed)),
    ]  # fmt: skip
    return [
        {
            "cell": cell,
            "alpha": alpha,
            "power": power,
            "requests_an_arm": requests,
            "scenarios": {name: run(name).to_dict() for name in ("aa", "error-x2")},
        }
        for cell, run in cells
    ]


def measure_all(runs: int, more_runs: int, seed: int, say: Say) -> dict[str, Any]:
    """Measure everything."""
    policy = Policy()
    scenarios = measure_scenarios(policy, runs, seed, say)
    targets = measure_targets(policy, more_runs, seed, say)
    return {
        "default": scenarios,
        "targets": targets,
        "asking": measure_asking(policy, runs, seed, say),
        "stable_rates": measure_rates(policy, runs, seed, say),
        "starts": measure_starts(policy, runs, seed, say),
        "peers": measure_peers(scenarios, targets["aa"]["rollback_rate"], runs, seed, say),
        "z_tests": measure_z_tests(policy, runs, seed, say),
    }


def format_tables(result: dict[str, Any]) -> list[str]:
    """Return the results as Markdown."""
    default, targets = result["default"], result["targets"]
    equal, twice = targets["aa"], targets["error-x2"]
    traffic = default["traffic"]
    within = f"rollback_rate_within_{_LIMIT_REQUESTS}"
    lines = [
        f"`{result['command']}`, {result['machine']}, {result['measured']}; mlflywheel {result['mlflywheel']}, NumPy "
        f"{result['numpy']}, seed {default['seed']}, {result['seconds']:.0f} s. {default['runs']:,} rollouts a cell, "
        f"{traffic['requests_per_second']:g} requests a second, {traffic['error_rate']:.0%} errors, unless a cell says "
        "otherwise. Exposed are the requests to the candidate before the decision; intervals are 95 %, Wilson's.",
        "",
        f"What was asked for, over {equal['runs']:,} rollouts each, alpha {default['policy']['alpha']:g}:",
        "",
        f"- Equal candidates: {_share(equal, 'rollback')} rolled back, {_share(equal, 'promote')} promoted;"
        + (
            f" {targets['promoted_within_plan']:.1%} promoted within the {targets['plan']['to_promote']['requests']:,} "
            f"requests of the plan, which promises {targets['plan']['power']:.0%}."
            if targets["promoted_within_plan"] is not None
            else " the plan has no number."
        ),
        f"- Errors from 1 % to 2 %: {_share(twice, 'rollback')} rolled back, {twice[within]:.1%} within "
        f"{_LIMIT_REQUESTS:,} requests to the candidate, {_share(twice, 'promote')} promoted; exposed "
        f"{twice['median_requests_exposed']:,.0f} in the median.",
        "",
        "The calculator says:",
        "",
        *(f"- {sentence}" for sentence in targets["sentences"]),
        "",
        "| scenario | promoted | rolled back | undecided | exposed, median | p95 | minutes, median |",
        "|---|---:|---:|---:|---:|---:|---:|",
        *(_row(f"`{row['scenario']}`: {row['description']}", row) for row in default["scenarios"]),
        "",
        "Equal candidates, asked more or less often:",
        "",
        "| | promoted | rolled back | undecided | exposed, median | p95 | minutes, median |",
        "|---|---:|---:|---:|---:|---:|---:|",
        *(_row(row["cell"], row) for row in result["asking"]),
        "",
        "At other stable error rates. A candidate within the margin may be promoted; what is worse than the stable "
        "version may be rolled back, within the margin too:",
        "",
        "| stable rate, margin, scenario | promoted | rolled back | undecided | exposed, median | p95 | minutes |",
        "|---|---:|---:|---:|---:|---:|---:|",
        *(
            _row(f"{row['stable_rate']:.1%}, {row['margin']}, `{row['scenario']}`", row)
            for row in result["stable_rates"]
        ),
        "",
        "Harm that comes late:",
        "",
        "| | promoted | rolled back | undecided | exposed, median | p95 | minutes, median |",
        "|---|---:|---:|---:|---:|---:|---:|",
        *(_row(row["cell"], row) for row in result["starts"]),
        "",
        "Others' rules on the same traffic, in percent rolled back (requests exposed, median). Calibrated rules roll "
        f"back about {equal['rollback_rate']:.1%} of equal candidates, as ours; of the numbers of failed checks to "
        f"tolerate ({', '.join(map(str, _TOLERATED))}) each has the one that finds most doubled error rates, with the "
        "fewest requests. Exposed requests count for rollbacks and promotions together.",
        "",
        "| rule | " + " | ".join(f"`{name}`" for name in _PEER_SCENARIOS) + " |",
        "|---|" + "---:|" * len(_PEER_SCENARIOS),
    ]
    for row in result["peers"]:
        cells = [
            f"{100 * one['rollback_rate']:.1f} ({one['median_requests_exposed']:,.0f})"
            for one in (row["scenarios"][name] for name in _PEER_SCENARIOS)
        ]
        name = row["rule"]["name"] if row["kind"] == "ours" else f"{row['rule']['name']}, {row['kind']}{_settings(row)}"
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines += [
        "",
        "A z-test of two proportions on errors alone, half of the traffic each, planned for "
        f"{result['z_tests'][0]['requests_an_arm']:,} requests an arm (alpha {result['z_tests'][0]['alpha']:g}, power "
        f"{result['z_tests'][0]['power']:g}):",
        "",
        "| | equal candidates rolled back | doubled errors rolled back | exposed there, median |",
        "|---|---:|---:|---:|",
    ]
    for row in result["z_tests"]:
        aa, worse = row["scenarios"]["aa"], row["scenarios"]["error-x2"]
        lines.append(
            f"| {row['cell']} | {aa['rollback_rate']:.1%} | {worse['rollback_rate']:.1%} "
            f"| {worse['median_requests_exposed']:,.0f} |"
        )
    return lines


def draw(result: dict[str, Any], path: Path) -> None:
    """Draw what the default policy does in each scenario, and detection beside exposure of all rules."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    style: Any = {
        "font.family": "DejaVu Sans", "font.size": 9.0, "text.color": _INK, "axes.labelcolor": _INK,
        "xtick.color": _QUIET, "ytick.color": _INK, "axes.edgecolor": "#c3ccd5", "axes.facecolor": _PANEL,
        "figure.facecolor": _PANEL, "savefig.facecolor": _PANEL, "svg.fonttype": "path", "svg.hashsalt": "mlflywheel",
    }  # fmt: skip
    rows = list(reversed(result["default"]["scenarios"]))
    with plt.rc_context(style):
        figure, (left, right) = plt.subplots(1, 2, figsize=(10.5, 4.6), layout="constrained")
        start = [0.0] * len(rows)
        names = [row["scenario"] for row in rows]
        for label, key, colour in (
            ("promoted", "promote_rate", "#7fa8d6"),
            ("rolled back", "rollback_rate", _PEER),
            ("undecided", "undecided_rate", "#c3ccd5"),
        ):
            widths = [100 * row[key] for row in rows]
            left.barh(names, widths, left=start, color=colour, label=label)
            start = [a + b for a, b in zip(start, widths, strict=True)]
        left.set_xlabel("% of simulated rollouts")
        left.set_xlim(0, 100)
        left.set_title("The default policy", loc="left", fontsize=10)
        left.legend(loc="upper center", bbox_to_anchor=(0.4, -0.13), ncols=3, frameon=False)
        for row in result["peers"]:
            one = row["scenarios"]["error-x2"]
            if row["kind"] == "as documented":
                continue
            is_ours, is_argo = row["kind"] == "ours", row["rule"]["name"].startswith("Argo")
            is_relative = bool(row["rule"].get("is_relative"))
            right.scatter(
                one["median_requests_exposed"], 100 * one["rollback_rate"], s=90 if is_ours else 45, zorder=3,
                marker="*" if is_ours else "s" if is_argo else "o",
                facecolors=_OURS if is_ours else _PEER if is_relative else _PANEL,
                edgecolors=_OURS if is_ours else _PEER,
            )  # fmt: skip
        for label, marker, face in (
            ("the judge", "*", _OURS), ("Flagger, fixed", "o", _PANEL), ("Flagger, relative", "o", _PEER),
            ("Argo Rollouts, fixed", "s", _PANEL), ("Argo Rollouts, relative", "s", _PEER),
        ):  # fmt: skip
            edge = _OURS if marker == "*" else _PEER
            right.scatter([], [], marker=marker, facecolors=face, edgecolors=edge, label=label)
        right.set_xlabel("requests to the bad candidate before the decision, median")
        right.set_ylabel("% rolled back")
        right.set_xlim(0, None)
        right.set_ylim(0, 104)
        right.grid(color="#e3e8ed", zorder=0)
        right.set_title("Errors doubled, at equal false alarms", loc="left", fontsize=10)
        right.legend(loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=3, frameon=False)
        for axes in (left, right):
            axes.spines[["top", "right"]].set_visible(False)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, metadata={"Date": None})
        plt.close(figure)


def write_tables(result: dict[str, Any], page: Path) -> None:
    """Put the tables between the markers of a page."""
    before, rest = page.read_text(encoding="utf-8").split(_START)
    _, after = rest.split(_END)
    page.write_text("\n".join([before + _START, *format_tables(result), _END + after]), encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the options, measure, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few runs")
    parser.add_argument("--seed", type=int, default=5)
    parser.add_argument("--tables", action="store_true", help="only write the tables and the chart from the results")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the JSON goes")
    options = parser.parse_args(arguments)
    if options.tables:
        result = json.loads(RESULTS.read_text(encoding="utf-8"))
        write_tables(result, FOLDER.parent / "README.md")
        draw(result, IMAGE)
        return
    started = time.perf_counter()

    def say(text: str) -> None:
        print(f"{time.perf_counter() - started:6.0f} s  {text}", file=sys.stderr, flush=True)

    runs, more_runs = (60, 100) if options.quick else (2000, 10_000)
    measured = measure_all(runs, more_runs, options.seed, say)
    result = {
        "measured": datetime.now(UTC).date().isoformat(),
        "command": "python -m benchmarks.rollouts.run",
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, {platform.system()}",
        "mlflywheel": version("mlflywheel"),
        "numpy": version("numpy"),
        "seconds": round(time.perf_counter() - started, 1),
        **measured,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if options.out == RESULTS:
        write_tables(result, FOLDER.parent / "README.md")
        draw(result, IMAGE)
    print("\n".join(format_tables(result)))


def _share(row: dict[str, Any], action: str) -> str:
    low, high = row[f"{action}_rate_interval"]
    return f"{row[f'{action}_rate']:.1%} [{low:.1%}, {high:.1%}]"


def _row(name: str, row: dict[str, Any]) -> str:
    undecided = f"{row['undecided_rate']:.1%}" if row["undecided_rate"] else "0"
    return (
        f"| {name} | {_share(row, 'promote')} | {_share(row, 'rollback')} | {undecided} "
        f"| {row['median_requests_exposed']:,.0f} | {row['p95_requests_exposed']:,.0f} | {row['median_minutes']:.0f} |"
    )


def _settings(row: dict[str, Any]) -> str:
    rule = row["rule"]
    if row["kind"] == "as documented":
        return ""
    latency = f"{rule['latency_threshold']:.2f} times" if rule["is_relative"] else f"{rule['latency_threshold']:.3f} s"
    return f" (errors {rule['error_threshold']:.2%}, p99 {latency}, {rule['tolerated']} tolerated)"


if __name__ == "__main__":
    main()
