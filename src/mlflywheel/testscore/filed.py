"""Evidence of the evidence folders: test cases, rollouts, rehearsals, rebuilds, reports of jobs, people's records."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from mlflywheel.errors import DataError
from mlflywheel.registry.records import ModelVersion
from mlflywheel.testscore.folder import Document, Files
from mlflywheel.testscore.items import (
    AUTOMATIC,
    Evidence,
    Found,
    Registered,
    Remark,
    check_time,
    enumerate_names,
    is_number,
    part,
    read_any_time,
    read_run_id,
    read_seconds,
    read_time,
    rows,
    shorten,
)
from mlflywheel.testscore.junit import Case
from mlflywheel.testscore.notebook import Record, find_test
from mlflywheel.testscore.rubric import TESTS, VALID_DAYS

_FEWEST_LABELS = 30


def read_cases(files: Files, now: datetime) -> Found:
    """Yield what test cases show, by the names that `testscore.yaml` maps to tests.

    Raises:
        UsageError: A test case stands for two tests.
    """
    notebooks = tuple(book for _, book in files.notebooks)
    patterns = {(test, pattern) for book in notebooks for test, given in book.cases.items() for pattern in given}
    if not patterns:
        if files.cases:
            yield Remark("", f"{len(files.cases):,} test cases stand for no test: testscore.yaml has no `cases`")
        return
    chosen: dict[str, dict[str, list[tuple[str, Case]]]] = {}
    for path, case in files.cases:
        test = find_test(case.name, notebooks)
        if test is not None:
            chosen.setdefault(test, {}).setdefault(case.name, []).append((path, case))
    for test in sorted({test for test, _ in patterns} - chosen.keys()):
        yield Remark(test, f"no test case has a name that `cases` of testscore.yaml maps to {test}")
    for test in sorted(chosen):
        yield _judge_cases(test, chosen[test], now)


def _judge_cases(test: str, cases: Mapping[str, Sequence[tuple[str, Case]]], now: datetime) -> Evidence | Remark:
    """Judge all results of a test's cases: the newest one of each counts."""
    dated = {
        name: sorted(((case.at, path, case) for path, case in results if case.at is not None), key=lambda one: one[:2])
        for name, results in cases.items()
    }
    newest = [results[-1] for results in dated.values() if results]
    if not newest:
        return Remark(test, "the JUnit file does not say when its tests ran")
    failed = sorted(case.name for _, _, case in newest if case.outcome == "failed")
    if failed:
        return Remark(test, f"{len(failed)} of {len(newest)} test cases failed: {enumerate_names(failed)}")
    passed = [one for one in newest if one[2].outcome == "passed"]
    if not passed:
        return Remark(test, f"all {len(newest)} test cases were skipped")
    at, path, case = max(passed, key=lambda one: one[:2])
    problem = check_time(at, now, VALID_DAYS)
    if problem:
        return Remark(test, f"{path}: {problem}")
    is_repeated = any(
        len({one[0] for one in results if one[2].outcome == "passed"}) > 1 for results in dated.values() if results
    )
    what = f"{len(passed)} of {len(newest)} test cases passed, the others were skipped"
    if len(passed) == len(newest):
        what = f"{len(passed)} test case{'s' if len(passed) > 1 else ''} passed"
    what += ", more than once" if is_repeated else ""
    return Evidence(test, "junit", path, what, at, f"{path} {at}", case.suite, is_own=True, is_repeated=is_repeated)


def read_document(document: Document, subject: Registered, others: Sequence[Registered], now: datetime) -> Found:
    """Yield what a rollout, a rehearsal, a rebuild or a validation of served requests shows.

    Raises:
        DataError: It does not have the shape of its kind.
    """
    try:
        # Inside the guard: a generator reads when it is asked.
        yield from _READERS[document.kind](document, subject, others, now)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise DataError(
            document.path,
            f"a {document.kind} without its shape ({type(error).__name__}: {error})",
            "what mlflywheel wrote is needed",
            "write it again, or remove it",
        ) from None


def _read_rollout(document: Document, subject: Registered, others: Sequence[Registered], now: datetime) -> Found:
    values = document.values
    reference = str(values["candidate"].get("model") or "")
    name = reference.partition("@")[0]
    if name != subject.version.name:
        return
    identity, at = str(values["id"]), read_seconds(values.get("phase_started") or values["started"])
    is_own = reference == subject.version.reference
    problem = check_time(at, now, VALID_DAYS)
    if problem:
        yield Remark("I6" if is_own else "I7", f"{document.path}: {problem}")
        return

    def tell(test: str, place: str, what: str, is_own: bool = is_own) -> Evidence:
        return Evidence(test, "rollout", f"{document.path}#{place}", what, at, identity, "manual", is_own)

    windows = values.get("windows") or ()
    judged = [one for one in windows if 0 < one["traffic_percent"] < 100 and not one.get("gap")]
    requests = sum(one["candidate"]["requests"] for one in judged)
    if requests > 0:
        most = max(one["traffic_percent"] for one in judged)
        yield tell("I6", "windows", f"{reference} answered {requests:,.0f} requests at up to {most:g} % of the traffic")
    kinds = {str(one["name"]): str(one["kind"]) for one in values["policy"].get("metrics") or ()}
    yield from _judge_findings(values.get("verdict") or {}, kinds, tell, is_own)
    if values["phase"] == "rolled_back":
        yield tell("I7", "phase", f"{reference} was rolled back: {shorten(str(values.get('message', '')))}", True)


def _judge_findings(verdict: Mapping[str, Any], kinds: Mapping[str, str], tell: Any, is_own: bool) -> Found:
    for kind, test in (("latency", "O6"), ("labels", "O7")):
        found = [
            one
            for one in verdict.get("findings") or ()
            if kinds.get(str(one["metric"])) == kind and one["candidate_total"] and one["stable_total"]
        ]
        harmed = [str(one["metric"]) for one in found if one["test"] == "harm" and one["is_reached"]]
        if harmed and is_own:
            yield Remark(test, f"shown to be worse than the version before: {enumerate_names(harmed)}")
        elif found and not harmed:
            names = list(dict.fromkeys(str(one["metric"]) for one in found))
            total = max(one["candidate_total"] for one in found)
            place = f"verdict.findings[{enumerate_names(names)}]"
            yield tell(test, place, f"no harm is shown in {total:,.0f} judged events")


def _read_rehearsal(document: Document, subject: Registered, others: Sequence[Registered], now: datetime) -> Found:
    values = document.values
    candidate, stable = (str(values[arm]["reference"]) for arm in ("candidate", "stable"))
    if candidate.partition("@")[0] != subject.version.name:
        return
    is_own = candidate == subject.version.reference
    identity = str(values["id"])
    at = read_run_id(identity)
    problem = check_time(at, now, VALID_DAYS)
    if problem:
        if is_own:
            yield Remark("M2", f"{document.path}: {problem}")
        return

    def tell(test: str, place: str, what: str) -> Evidence:
        return Evidence(test, "rehearsal", f"{document.path}#{place}", what, at, identity, "manual", is_own)

    kinds = {str(one["name"]): str(one["kind"]) for one in values["policy"].get("metrics") or ()}
    # Labels of a rehearsal are no answers that anybody was served: they count for M2 alone.
    latency = {name: kind for name, kind in kinds.items() if kind == "latency"}
    yield from _judge_findings(values["verdict"], latency, tell, is_own)
    versions = {one.version.reference: one for one in (subject, *others)}
    if candidate in versions and stable in versions:
        yield from _compare_orders(values.get("labels") or {}, versions[candidate], versions[stable], tell, is_own)


def _compare_orders(
    labels: Mapping[str, Any], candidate: Registered, stable: Registered, tell: Any, is_own: bool
) -> Found:
    for metric, arms in labels.items():
        offline = [found for one in (candidate, stable) if (found := _find_measured(one, metric)) is not None]
        judged = [arms[arm] for arm in ("candidate", "stable") if arms[arm]["count"] >= _FEWEST_LABELS]
        online = [float(one["mean_loss"]) for one in judged if one["mean_loss"] is not None]
        if len(offline) < 2 or len(online) < 2:
            continue
        values = f"{online[0]:.4g} and {online[1]:.4g} online, {offline[0]:.4g} and {offline[1]:.4g} offline"
        if (online[0] - online[1]) * (offline[0] - offline[1]) > 0:
            what = f"{metric} puts both versions in the same order: {values}, candidate first"
            yield tell("M2", f"labels[{metric}]", what)
        elif is_own:
            yield Remark("M2", f"{metric} contradicts its offline measurement: {values}, candidate first")


def _find_measured(one: Registered, metric: str) -> float | None:
    for found in rows(part(one.dossier or {}, "evaluation").get("measurements")):
        if found.get("metric") == metric and found.get("slice", "all") == "all" and is_number(found.get("value")):
            return float(found["value"])
    return None


def _read_rebuild(document: Document, subject: Registered, others: Sequence[Registered], now: datetime) -> Found:
    values = document.values
    reference = str(values["reference"])
    if reference.partition("@")[0] != subject.version.name:
        return
    is_own = reference == subject.version.reference
    if is_own and values["recorded_hash"] != subject.version.hash:
        yield Remark("I1", f"{document.path}: it is about another {reference} than the registry's: the hash differs")
        return
    at = read_any_time(values)
    problem = check_time(at, now, VALID_DAYS)
    outcome, reason = str(values["outcome"]), shorten(str(values["reason"]))
    if not problem and outcome not in ("same", "equivalent"):
        problem = f"the rebuilt model is {outcome}: {reason}"
    if problem:
        if is_own:
            yield Remark("I1", f"{document.path}: {problem}")
        return
    what = f"{reference} was rebuilt, and is {outcome}: {reason}"
    trigger = str(values.get("trigger") or "manual")
    yield Evidence("I1", "rebuild", f"{document.path}#outcome", what, at, f"{reference} {at}", trigger, is_own)


def _read_validated(document: Document, subject: Registered, others: Sequence[Registered], now: datetime) -> Found:
    values = document.values
    at = read_time(values.get("today"))
    problem = check_time(at, now, VALID_DAYS)
    passed = sum(rule["status"] == "passed" for rule in values["rules"])
    if not problem and (values["status"] != "passed" or not passed):
        problem = f"validation of served requests {values['status']}, {passed} expectations hold"
    if problem:
        yield Remark("O2", f"{document.path}: {problem}")
        return
    counts = [count for count in values["counts"].values() if is_number(count)]
    what = f"{passed} of {len(values['rules'])} expectations hold on {max(counts, default=0):,.0f} served rows"
    trigger = str(values.get("trigger") or "manual")
    yield Evidence("O2", "validation", f"{document.path}#rules", what, at, f"validation of {at}", trigger)


def read_checks(documents: Sequence[Document], version: ModelVersion, now: datetime) -> Found:
    """Yield what reports of other jobs show; of several by the same job for a test the newest one decides.

    Raises:
        DataError: A report names a test that the rubric does not have.
    """
    newest: dict[tuple[str, str], tuple[datetime, Document]] = {}
    for document in documents:
        values = document.values
        test = str(values.get("test"))
        if test not in TESTS:
            raise DataError(
                f"{document.path}, test", repr(test), "an id of the rubric is needed, such as O2", "correct the id"
            )
        name, _, number = str(values.get("model") or version.name).partition("@")
        if name != version.name or (number and number != version.version):
            continue
        at = read_any_time(values)
        problem = check_time(at, now, VALID_DAYS)
        if "check" not in TESTS[test].accepts:
            able = ", ".join(one.id for one in TESTS.values() if "check" in one.accepts)
            problem = f"a check cannot prove {test}; it can prove {able}"
        if problem or at is None:
            yield Remark(test, f"{document.path}: {problem}")
            continue
        key = test, str(values.get("by") or document.path)
        if key not in newest or newest[key][0] < at:
            newest[key] = at, document
    for (test, job), (at, document) in newest.items():
        what = shorten(str(document.values.get("what", "")))
        if document.values.get("holds") is not True:
            yield Remark(test, f"{document.path}: it does not hold: {what}")
            continue
        trigger = str(document.values.get("trigger") or "manual")
        # By hand it is no more than a record, however often.
        earns_one = trigger in AUTOMATIC
        yield Evidence(test, "check", document.path, f"{what} ({job})", at, job, trigger, earns_one=earns_one)


def read_records(files: Files, now: datetime) -> Found:
    """Yield what people wrote down; a job's record earns a point only while the file that it leaves is there."""
    for folder, notebook in files.notebooks:
        for record in notebook.records:
            where = f"{notebook.where}#records[{record.test}, {record.at}]"
            at = datetime(record.at.year, record.at.month, record.at.day, tzinfo=UTC)
            if record.automatic and record.last_run is not None:
                at = datetime(record.last_run.year, record.last_run.month, record.last_run.day, tzinfo=UTC)
            problem = check_time(at, now, record.valid_days)
            if problem:
                yield Remark(record.test, f"{where}: {problem}")
                continue
            link = folder / record.link if record.automatic else None
            is_there = link is not None and link.is_file() and not link.is_symlink()
            if link is not None and not is_there:
                yield Remark(record.test, f"{where}: {record.link} is not there, so the job is not shown to have run")
            yield _tell_record(record, where, at, is_there)


def _tell_record(record: Record, where: str, at: datetime, is_automatic: bool) -> Evidence:
    what = f"{record.by}: {shorten(record.what)}" + (f" ({record.link})" if record.link else "")
    trigger = "scheduled" if is_automatic else "manual"
    return Evidence(record.test, "record", where, what, at, where, trigger, True, is_automatic)


_READERS = {
    "rollout": _read_rollout,
    "rehearsal": _read_rehearsal,
    "rebuild": _read_rebuild,
    "validation": _read_validated,
}
