"""Evidence of the dossier and of the registry: how a version was made, measured, held against gates and approved.

A gate and an expectation stand for one test only, so that taking one away costs no other test its points.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any

from mlflywheel.data.validation.suite import Rule, read_suite
from mlflywheel.errors import MlflywheelError
from mlflywheel.registry.records import State
from mlflywheel.testscore.items import (
    Evidence,
    Found,
    Registered,
    Remark,
    enumerate_names,
    is_number,
    name_slice,
    part,
    rows,
    shorten,
)

_PRIVACY = re.compile(
    r"e-?mail|telephone|phone|\bpii\b|_pii|personal|privacy|passport|iban|social_security|\bssn\b", re.I
)
_CLOSED_LISTS = ("expect_table_columns_to_match_set", "expect_table_columns_to_match_ordered_list")
_BETWEEN_GROUPS = re.compile(
    r"(selection_rate|true_positive_rate|false_positive_rate|calibration_difference|equal_opportunity|equalized_odds"
    r"|exposure_|empty_result_rate)|_gap(_rise)?$|_ratio_fall$"
)
# What compares groups by its name, whatever its slice.
_COMPARED = re.compile(r"_gap(_rise)?$|_ratio(_fall)?$")
# A gate on one of these says nothing about how good the answers are.
_NO_QUALITY = (
    "feature_importance",
    "additivity_error",
    "unscored_share",
    "breaking_contract_changes",
    "contract_changes",
)
_REFERENCE = re.compile(r"\breference_\w+")


@dataclass(frozen=True)
class _Item:
    """Evidence of a dossier, before it is known whose."""

    test: str
    place: str
    what: str
    earns_one: bool = True


def read_registered(one: Registered, everyone: Sequence[Registered], is_own: bool) -> Found:
    """Yield what a version's dossier and its history show.

    Args:
        one: The version.
        everyone: All versions of the model.
        is_own: Whether it is the one that is scored.
    """
    dossier: Mapping[str, Any] = one.dossier or {}
    reference, at = one.version.reference, one.version.created_at
    trigger = str(part(dossier, "run").get("trigger") or "manual")
    measured = rows(part(dossier, "evaluation").get("measurements"))
    gates = rows(part(dossier, "evaluation").get("gates"))
    items = (
        *_read_validation(part(part(dossier, "data"), "validation")),
        *_read_search(part(dossier, "training")),
        *_read_explanations(measured, part(dossier, "evaluation")),
        *_read_gates(measured, gates),
        *_read_stability(measured),
        *_read_older_model(one, measured, everyone),
        *_read_ci_run(dossier, trigger),
    )
    for item in items:
        if isinstance(item, Remark):
            # What does not count for another version is no news about this one.
            if is_own:
                yield item
            continue
        yield Evidence(
            item.test,
            "dossier",
            f"{reference}: {item.place}",
            item.what,
            at,
            reference,
            trigger,
            is_own,
            item.earns_one,
        )
    yield from _read_review(one, dossier, trigger, is_own)


def _read_validation(validation: Mapping[str, Any]) -> Iterator[_Item]:
    suite = validation.get("suite")
    if validation.get("status") != "passed" or not isinstance(suite, Mapping):
        return
    try:
        rules = read_suite(suite, "data.validation.suite").rules
    except MlflywheelError:
        # Written by a newer version of the library: nothing can be said about it.
        return
    skipped = validation.get("skipped")
    without = {str(one.get("name")) for one in rows(validation.get("failed"))}
    without |= {str(name) for name in skipped} if isinstance(skipped, list) else set()
    passed: dict[str, list[str]] = {"D1": [], "D4": [], "D5": []}
    for rule in rules:
        if rule.name not in without:
            passed[_name_rule(rule)].append(rule.name)
    nouns = {
        "D1": "expectation",
        "D4": "list of allowed columns",
        "D5": "expectation against personal data",
    }
    for test, names in passed.items():
        if names:
            place = f"data.validation.suite[{enumerate_names(names)}]"
            yield _Item(test, place, f"{_hold(len(names), nouns[test])} on its data")


def _hold(count: int, noun: str) -> str:
    """Say that so many of something hold.

    >>> _hold(1, "gate"), _hold(2, "expectation against personal data")
    ('1 gate holds', '2 expectations against personal data hold')
    """
    first, space, rest = noun.partition(" ")
    return f"1 {noun} holds" if count == 1 else f"{count} {first}s{space}{rest} hold"


def _name_rule(rule: Rule) -> str:
    if rule.type in _CLOSED_LISTS:
        return "D4"
    is_private = "not_match" in rule.type and _PRIVACY.search(f"{rule.name} {rule.description}")
    return "D5" if is_private else "D1"


def _read_search(training: Mapping[str, Any]) -> Iterator[_Item]:
    search = part(training, "search")
    trials = search.get("succeeded_trials", search.get("trials"))
    if isinstance(trials, list):
        trials = len(trials)
    if is_number(trials) and trials >= 2:
        what = (
            f"{trials:g} trials by {search.get('executor', 'an executor')}, for {search.get('objective', 'a metric')}"
        )
        yield _Item("M3", "training.search", what)


def _read_explanations(
    measured: Sequence[Mapping[str, Any]], evaluation: Mapping[str, Any]
) -> Iterator[_Item | Remark]:
    importance = [one for one in measured if one.get("metric") == "feature_importance" and is_number(one.get("value"))]
    useful = [one for one in importance if one["value"] > 0]
    if useful:
        useless = [str(one.get("slice")).removeprefix("feature=") for one in importance if one["value"] <= 0]
        told = f"; not shown to be of use: {enumerate_names(useless)}" if useless else ""
        what = f"{len(useful)} of {len(importance)} measured features make the model better{told}"
        yield _Item("D2", "evaluation.measurements[feature_importance]", what)
    elif importance:
        yield Remark("D2", "feature_importance: no feature makes the model better on held-out rows")
    for one in measured:
        if one.get("metric") == "additivity_error" and is_number(one.get("value")):
            what = (
                f"contributions to {one.get('count', 0):,} answers, which add up to them to within {one['value']:.2g}"
            )
            yield _Item("I5", "evaluation.measurements[additivity_error]", what)


def _read_gates(measured: Sequence[Mapping[str, Any]], gates: Sequence[Mapping[str, Any]]) -> Iterator[_Item | Remark]:
    groups = {(one.get("metric"), one.get("slice")) for one in measured if _is_between_groups(one)}
    held: dict[str, list[str]] = {"M5": [], "M6": [], "M7": [], "I4": []}
    refused: dict[str, list[str]] = {name: [] for name in held}
    for gate in gates:
        test = _name_gate(gate, groups)
        if test and gate.get("holds") is not None:
            (held if gate["holds"] is True else refused)[test].append(name_slice(gate))
    measured_only = {
        "M5": [one for one in measured if _is_gain(one) and one["value"] > 0],
        "M6": [one for one in measured if _is_slice(one)],
        "M7": [one for one in measured if _is_between_groups(one) and is_number(one.get("value"))],
    }
    for test, names in held.items():
        if refused[test]:
            yield Remark(test, f"registered though gates refused: {enumerate_names(refused[test])}")
        elif names:
            what = f"{_hold(len(names), 'gate')}: {enumerate_names(names)}"
            yield _Item(test, f"evaluation.gates[{enumerate_names(names)}]", what)
        elif measured_only.get(test):
            names = [name_slice(one) for one in measured_only[test]]
            place = f"evaluation.measurements[{enumerate_names(names)}]"
            yield _Item(test, place, "measured and reported, but no gate asks for it", False)
    lost = [one for one in measured if _is_gain(one) and one["value"] <= 0]
    if lost:
        yield Remark("M5", f"not better than a simpler method: {enumerate_names([str(one['metric']) for one in lost])}")


def _name_gate(gate: Mapping[str, Any], groups: set[tuple[Any, Any]]) -> str:
    """Return the one test that a gate counts for."""
    metric, slice_name = str(gate.get("metric", "")), str(gate.get("slice", ""))
    if metric.startswith("gain_over_") or _REFERENCE.search(str(gate.get("reason", ""))):
        return "M5"
    if (metric, slice_name) in groups or _BETWEEN_GROUPS.search(metric):
        return "M7" if _sets_side_by_side(metric, slice_name) else "M6" if "=" in slice_name else "I4"
    if metric in _NO_QUALITY:
        return ""
    return "M6" if "=" in slice_name else "I4"


def _sets_side_by_side(metric: str, slice_name: str) -> bool:
    """Return whether a measurement compares groups: a rate over all rows does not, though it has a group's name."""
    return slice_name.startswith("between=") or _COMPARED.search(metric) is not None


def _is_between_groups(one: Mapping[str, Any]) -> bool:
    # A metric of one group is a slice; only what sets groups side by side is about who is left out.
    is_gap = one.get("about") == "groups" and str(one.get("slice", "")).startswith("between=")
    metric = str(one.get("metric", ""))
    return is_gap or (bool(_BETWEEN_GROUPS.search(metric)) and _sets_side_by_side(metric, str(one.get("slice", ""))))


def _is_gain(one: Mapping[str, Any]) -> bool:
    is_gain = str(one.get("metric", "")).startswith("gain_over_") and one.get("slice", "all") == "all"
    return is_gain and is_number(one.get("value"))


def _is_slice(one: Mapping[str, Any]) -> bool:
    is_slice = "=" in str(one.get("slice", "")) and one.get("about", "model") in ("model", "slices", "groups")
    others = ("feature_importance", "champion_", "gain_over_")
    named = str(one.get("metric", "")).startswith(others) or _is_between_groups(one)
    return is_slice and not named and is_number(one.get("value"))


def _read_stability(measured: Sequence[Mapping[str, Any]]) -> Iterator[_Item | Remark]:
    broken = [name_slice(one) for one in measured if str(one.get("note", "")).startswith("measured as ")]
    if broken:
        yield Remark("O5", f"not finite: {enumerate_names(broken)}")
        return
    without = [one for one in measured if one.get("metric") == "unscored_share" and one.get("slice", "all") == "all"]
    if without and without[0].get("value") == 0:
        what = f"each of {without[0].get('count', 0):,} held-out rows has a finite score"
        yield _Item("O5", "evaluation.measurements[unscored_share]", what)
    elif without and is_number(without[0].get("value")):
        yield Remark("O5", f"unscored_share is {without[0]['value']:.4g}: rows without a finite score")
    finite = sum(is_number(one.get("value")) for one in measured)
    if finite:
        yield _Item("O5", "evaluation.measurements", f"{finite:,} measurements, every one of them finite", False)


def _read_older_model(
    one: Registered, measured: Sequence[Mapping[str, Any]], everyone: Sequence[Registered]
) -> Iterator[_Item]:
    champion = part(one.dossier or {}, "evaluation").get("champion")
    older = next((other for other in everyone if other.version.reference == champion), None)
    losses = [
        loss
        for loss in measured
        if str(loss.get("metric", "")).startswith("champion_loss_")
        and loss.get("slice", "all") == "all"
        and is_number(loss.get("value"))
    ]
    if older is None or not losses:
        return
    days = (one.version.created_at - older.version.created_at) / timedelta(days=1)
    data = (part(version.dossier or {}, "data").get("version") for version in (one, older))
    if days < 1 or len({*data}) == 1:
        return
    loss = losses[0]
    interval = f" ({loss['low']:.3g} to {loss['high']:.3g})" if is_number(loss.get("low")) else ""
    what = f"{champion}, {days:.0f} days older, was measured on the new rows: {loss['metric']} {loss['value']:.3g}"
    told = f"{what}{interval}, below 0 where the older one is worse"
    yield _Item("M4", f"evaluation.measurements[{loss['metric']}]", told)


def _read_ci_run(dossier: Mapping[str, Any], trigger: str) -> Iterator[_Item]:
    if trigger == "ci":
        yield _Item("I3", "run", f"continuous integration ran {part(dossier, 'run').get('pipeline', 'the pipeline')}")


def _read_review(one: Registered, dossier: Mapping[str, Any], trigger: str, is_own: bool) -> Found:
    code = part(part(dossier, "reproducibility"), "code")
    approvals = [step for step in one.history if step.to_state is State.APPROVED and step.from_state is State.CANDIDATE]
    if not approvals:
        return
    reference, approval = one.version.reference, approvals[-1]
    # A run may approve what it registered when every gate holds; that is no review.
    nobody = (one.history[0].by, f"run {part(dossier, 'run').get('id')}")
    problem = ""
    if not code.get("commit"):
        problem = "the commit that it was trained from is not recorded"
    elif code.get("dirty") is not False:
        problem = "it was trained from a commit with changes beside it, or it is not known that there were none"
    elif approval.by in nobody or approval.by.startswith("run "):
        problem = f"it was approved by {approval.by}, who registered it"
    elif not approval.reason.strip():
        problem = f"{approval.by} approved it without a reason"
    if problem:
        if is_own:
            yield Remark("M1", problem)
        return
    what = f"commit {str(code['commit'])[:12]} without changes; approved by {approval.by}: {shorten(approval.reason)}"
    place = f"{reference}: history[approved], reproducibility.code"
    yield Evidence("M1", "registry", place, what, approval.at, reference, trigger, is_own)


def judge_age(subject: Registered, others: Sequence[Registered], maximum_days: float, now: datetime) -> Found:
    """Yield whether a version is young enough, and whether those before it were replaced in time.

    Args:
        subject: The version that is scored.
        others: The model's other versions.
        maximum_days: The age that is allowed.
        now: Until when ages count.
    """
    age = (now - subject.version.created_at) / timedelta(days=1)
    if age > maximum_days:
        yield Remark("O4", f"the version is {age:.0f} days old; {maximum_days:g} are allowed")
        return
    reference = subject.version.reference
    what = f"{max(age, 0):.0f} days old; {maximum_days:g} are allowed"
    yield Evidence("O4", "registry", f"{reference}: created_at", what, subject.version.created_at, reference)
    # An earlier version kept to the age if the next one came in time.
    ordered = sorted((subject, *others), key=lambda one: one.version.created_at)
    for older, newer in pairwise(ordered):
        days = (newer.version.created_at - older.version.created_at) / timedelta(days=1)
        if newer.version.created_at <= subject.version.created_at and 1 <= days <= maximum_days:
            told = f"was followed by {newer.version.reference} after {days:.0f} days"
            name = older.version.reference
            yield Evidence("O4", "registry", f"{name}: created_at", told, newer.version.created_at, name, is_own=False)
