"""Measure a model on held-out rows and hold the measurements against gates."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pyarrow as pa

from mlflywheel.decisions.gates import Gate, Verdict, judge
from mlflywheel.errors import MlflywheelError, UsageError
from mlflywheel.evaluation.grouping import Grouping
from mlflywheel.evaluation.plan import EvaluationPlan
from mlflywheel.events import ProgressCallback, ignore_progress
from mlflywheel.models.contract import Evaluation, Measurement, Model, RowScores
from mlflywheel.reports import Report, render_report
from mlflywheel.statistics.intervals import estimate_mean

DEFAULT_PLAN = EvaluationPlan()
ABOUT = get_args(get_type_hints(Measurement)["about"])


@dataclass(frozen=True)
class Champion:
    """The registered version in use, that a new one is compared with.

    Args:
        reference: `NAME@VERSION`.
        model: The version itself.
        contract: What its requests and answers looked like when it was registered; those of its class now if None.
        data: How its rows were prepared and split, as its dossier says (`prepare` and `split`); None if nothing does.
    """

    reference: str
    model: Model
    contract: Mapping[str, Any] | None = None
    data: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Predecessors:
    """What was registered before, under the name that the new version gets.

    Args:
        champion: The version in use; None if there is none.
        history: Overall metrics of the registered versions, oldest first.
    """

    champion: Champion | None = None
    history: tuple[Mapping[str, float], ...] = ()


@dataclass(frozen=True)
class Judged:
    """An evaluation and what the gates say about it.

    Args:
        evaluation: Every measurement, and the sections of the report.
        verdict: What the gates say.
        plan: What was measured beside the model's own metrics; None if nothing was.
        champion: `NAME@VERSION` that it was compared with; None without one.
    """

    evaluation: Evaluation
    verdict: Verdict
    plan: EvaluationPlan | None = None
    champion: str | None = None


def evaluate(
    model: Model,
    holdout: pa.Table,
    gates: Sequence[Gate],
    progress: ProgressCallback = ignore_progress,
    *,
    plan: EvaluationPlan | None = None,
    predecessors: Predecessors | None = None,
    data: Mapping[str, Any] | None = None,
) -> Judged:
    """Measure a model and judge it.

    Args:
        model: A fitted model.
        holdout: Prepared rows that it was not fitted on.
        gates: The thresholds.
        progress: Called with the phases of `Model.evaluate` and of what is measured beside it.
        plan: What to measure beside the model's own metrics; None measures nothing else.
        predecessors: What it is compared with; None is not asked for, which is not the same as none registered.
        data: How these rows were prepared and split, as `Champion.data`; the report says where the champion's were not.

    Returns:
        The evaluation with null in place of NaN and infinity, which neither JSON nor a registry holds, and the verdict
        on the values as they were measured: a gate refuses NaN, where it might skip a missing value.

    Raises:
        UsageError: The champion is of another task or cannot score these rows, or a metric was measured twice.
        DataError: A column that rows are to be grouped by is not there.
    """
    measured = model.evaluate(holdout, progress)
    if plan is not None:
        measured = _measure_beside(measured, model, holdout, plan, predecessors, data, progress)
    kept = Evaluation(
        tuple(_keep_finite(found) for found in measured.measurements),
        tuple(replace(section, data=_without_infinities(section.data)) for section in measured.sections),
    )
    champion = predecessors.champion.reference if predecessors and predecessors.champion else None
    return Judged(kept, judge(gates, measured.measurements), plan, champion)


def _measure_beside(
    measured: Evaluation,
    model: Model,
    holdout: pa.Table,
    plan: EvaluationPlan,
    predecessors: Predecessors | None,
    data: Mapping[str, Any] | None,
    progress: ProgressCallback,
) -> Evaluation:
    """Add what can be measured of any model that scores its rows one by one."""
    from mlflywheel.evaluation.champion import compare_with_champion, compare_with_references, no_champion
    from mlflywheel.evaluation.contract import compare_contracts, describe_contract
    from mlflywheel.evaluation.contributions import measure_contributions
    from mlflywheel.evaluation.discovery import discover_slices
    from mlflywheel.evaluation.fairness import measure_fairness, measure_unscored
    from mlflywheel.evaluation.importance import measure_importance
    from mlflywheel.evaluation.slices import measure_slices
    from mlflywheel.evaluation.trend import measure_trend

    champion = predecessors.champion if predecessors else None
    steps = 6
    progress("comparing", 0, steps)
    parts = _Parts(measured)
    if predecessors is not None:
        old = champion.contract or describe_contract(type(champion.model)) if champion else None
        kind = type(model)
        reference = champion.reference if champion else ""
        parts.add("contract", compare_contracts(describe_contract(kind), old, reference, kind.Request))
    rows = model.score_rows(holdout, progress)
    if rows is None:
        return parts.join()
    plan = plan.fit_to(rows.attributes.column_names)
    parts.add("model", _measure_overall(rows))
    progress("comparing", 1, steps)
    parts.add("slices", measure_slices(rows, plan.slices, parts.known))
    parts.add("slices", discover_slices(rows, plan.slices.discover, plan.seed))
    progress("comparing", 2, steps)
    parts.add("champion", compare_with_references(rows))
    other = None
    if champion is not None:
        own, other = _score_alike(model, champion, holdout, rows, progress)
        groupings = plan.champion.slices or _unite(plan.slices.columns, plan.fairness.groups)
        caution = _describe_difference(champion.data, data)
        parts.add(
            "champion",
            compare_with_champion(own, other, champion.reference, plan.champion, groupings, caution=caution),
        )
        rows = own
    elif predecessors is not None:
        parts.add("champion", no_champion(rows))
    progress("comparing", 3, steps)
    reference = champion.reference if champion else ""
    parts.add("groups", measure_fairness(rows, plan.fairness, other, reference, existing=parts.known, seed=plan.seed))
    # A plan without groups measures none of them, and a score that is no number would pass unseen.
    parts.add("groups", Evaluation((measure_unscored(rows),)))
    progress("comparing", 4, steps)
    if predecessors is not None:
        directions = {metric.name: metric.better for metric in rows.metrics}
        current = parts.join().metrics()
        parts.add("trend", measure_trend(predecessors.history, current, directions, plan.champion.trend_versions))
    if plan.explanations.rows:
        parts.add("explanations", measure_importance(model, holdout, rows, plan.explanations, plan.seed, progress))
        parts.add("explanations", measure_contributions(model, holdout, rows, plan.explanations, plan.seed, progress))
    progress("comparing", steps, steps)
    return parts.join()


def _score_alike(
    model: Model, champion: Champion, holdout: pa.Table, rows: RowScores, progress: ProgressCallback
) -> tuple[RowScores, RowScores]:
    """Score the held-out rows by both models, each as it goes into service: what it looks up holds these rows too.

    The champion was extended when it was registered. Compared with a model that was not, it would have more to look up.
    """
    extended = model.extend(holdout)
    own = rows if extended is model else extended.score_rows(holdout, progress)
    try:
        other = champion.model.extend(holdout).score_rows(holdout, progress)
    except Exception as error:
        # Whatever another class makes of a table that was not prepared for it: the way out is the same.
        if isinstance(champion.model, type(model)):
            raise
        name = type(champion.model).__name__
        why = (
            f"{error.where}: {error.seen}" if isinstance(error, MlflywheelError) else f"{type(error).__name__}: {error}"
        )
        raise UsageError(
            f"champion {champion.reference}",
            f"it is a {name}, which cannot score these rows ({why})",
            f"both versions are compared on rows prepared for {type(model).__name__}",
            f"register the new model under another name, or archive {champion.reference}",
        ) from error
    if own is None or other is None:
        raise UsageError(
            f"champion {champion.reference}",
            f"{type(champion.model).__name__} does not score rows one by one",
            "both versions are compared on the same rows",
            "archive that version, or leave the states of champions empty in evaluation.yaml",
        )
    return own, other


def _describe_difference(then: Mapping[str, Any] | None, now: Mapping[str, Any] | None) -> str:
    """Say what makes a comparison with the champion unequal; empty where nothing is known to."""
    from mlflywheel.evaluation.champion import describe_seen_rows

    if now is None:
        return ""
    words = describe_seen_rows(then.get("split") if then else None, now.get("split"))
    if then is not None and (then.get("prepare") or {}) != (now.get("prepare") or {}):
        words += " Its rows were prepared with other settings, so that it may look worse here than it is."
    return words.strip()


class _Parts:
    """Evaluations that become one."""

    def __init__(self, first: Evaluation) -> None:
        self._measurements = list(first.measurements)
        self._sections = list(first.sections)

    @property
    def known(self) -> set[tuple[str, str]]:
        """What is measured already, as metric and slice."""
        return {(found.metric, found.slice) for found in self._measurements}

    def add(self, about: Any, part: Evaluation) -> None:
        known = self.known
        # The model's own measurement says more than the general one: it knows what its rows are.
        new = (found for found in part.measurements if (found.metric, found.slice) not in known)
        self._measurements += [replace(found, about=about) for found in new]
        self._sections += part.sections

    def join(self) -> Evaluation:
        return Evaluation(tuple(self._measurements), tuple(self._sections))


def _measure_overall(rows: RowScores) -> Evaluation:
    """Return the mean of every row metric: what the trend over versions is a trend of."""
    found = [(metric.name, estimate_mean(metric.values, bounds=metric.bounds)) for metric in rows.metrics]
    return Evaluation(tuple(Measurement(name, of.value, "all", of.count, of.low, of.high) for name, of in found))


def _unite(first: Sequence[Grouping], second: Sequence[Grouping]) -> tuple[Grouping, ...]:
    return tuple({grouping.name: grouping for grouping in (*first, *second)}.values())


def _keep_finite(measurement: Measurement) -> Measurement:
    value, low, high = (
        number if number is None or math.isfinite(number) else None
        for number in (measurement.value, measurement.low, measurement.high)
    )
    note = measurement.note
    if value is None and measurement.value is not None:
        note = f"measured as {measurement.value}" + (f"; {note}" if note else "")
    return replace(measurement, value=value, low=low, high=high, note=note)


def _without_infinities(data: Any) -> Any:
    """Return JSON values with null in place of NaN and infinity, at any depth."""
    if isinstance(data, float):
        return data if math.isfinite(data) else None
    if isinstance(data, Mapping):
        return {name: _without_infinities(value) for name, value in data.items()}
    if isinstance(data, list | tuple):
        return [_without_infinities(value) for value in data]
    return data


def write_evaluation(judged: Judged, evaluation: Path, verdict: Path, report: Path, gate_table: Path) -> None:
    """Write the evaluation and the verdict as JSON, a page with both, and the gates as a Markdown table."""
    document = {
        **judged.evaluation.to_dict(),
        "plan": None if judged.plan is None else judged.plan.model_dump(mode="json"),
        "champion": judged.champion,
    }
    evaluation.write_text(json.dumps(document, allow_nan=False), encoding="utf-8")
    verdict.write_text(json.dumps(judged.verdict.to_list(), allow_nan=False), encoding="utf-8")
    summary = {
        "status": "succeeded" if judged.verdict.holds else "gate_refused",
        "metrics": judged.evaluation.metrics(),
        "gates": judged.verdict.to_list(),
        "champion": judged.champion,
    }
    report.write_text(render_report(Report("Evaluation", summary, judged.evaluation)), encoding="utf-8")
    gate_table.write_text(render_gate_table(judged.verdict), encoding="utf-8")


def render_gate_table(verdict: Verdict) -> str:
    """Return the gates as a Markdown table, refused ones first; what does not hold says why."""
    lines = ["| gate | slice | value | limit | |", "|---|---|---:|---:|---|"]
    for result in sorted(verdict.results, key=lambda result: result.holds is not False):
        outcome = {True: "holds", False: "**refused**", None: "skipped"}[result.holds]
        if not result.holds:
            outcome += f": {_escape(result.reason)}"
        value = "–" if result.value is None else f"{result.value:.4g}"
        limit = "–" if result.limit is None else f"{result.relation} {result.limit:.4g}"
        lines.append(f"| {_escape(result.metric)} | {_escape(result.slice)} | {value} | {limit} | {outcome} |")
    return "\n".join(lines) + "\n"


def _escape(text: str) -> str:
    """Keep text of the data, such as the name of a slice, from becoming markup or another cell."""
    return re.sub(r"([\\|*`\[\]])", r"\\\1", escape(" ".join(text.split()), quote=False))
