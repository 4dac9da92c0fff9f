"""What a model card says, before it is Markdown or HTML: parts of facts, tables and text, all of them plain data."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from importlib.metadata import entry_points
from typing import Any

from mlflywheel.decisions.gates import DEFAULT_MIN_COUNT_OF_A_COLUMN
from mlflywheel.errors import UsageError
from mlflywheel.models.contract import ENTRY_POINT_GROUP, Evaluation, Measurement, load_model_class
from mlflywheel.registry.records import ModelVersion, State, Transition
from mlflywheel.reports.brief import Line, list_lines
from mlflywheel.reports.formats import NOTHING, flatten, format_number, humanize, is_number, plural
from mlflywheel.reports.page import pair_references
from mlflywheel.storage import without_credentials

_RUN_AGAIN = "run the pipeline again with this version of the library: it writes a dossier with every version"
_SHOWN_ROWS = 12
_FEW = 3
_EFFECT = "slice_effect_"
_SHOWN_CHARACTERS = 300


class Code(str):
    """Text that is a name, a hash, a command or JSON."""

    __slots__ = ()


Value = str | Code
"""One value of a card: text, or code."""


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str


@dataclass(frozen=True)
class Missing:
    """What a card should say and nobody recorded.

    Args:
        what: What is not known.
        how: How to get it, as an imperative without a full stop.
    """

    what: str
    how: str


@dataclass(frozen=True)
class Facts:
    """Names with a value each."""

    rows: tuple[tuple[str, Value], ...]


@dataclass(frozen=True)
class Rows:
    """A table.

    Args:
        caption: What it shows.
        headings: One a column.
        rows: As many values as headings, each.
        numbers: Columns that hold numbers.
        tones: Of the rows, in order, `bad` or `warn`; may be shorter than the rows.
    """

    caption: str
    headings: tuple[str, ...]
    rows: tuple[tuple[Value, ...], ...]
    numbers: frozenset[int] = frozenset()
    tones: tuple[str | None, ...] = ()


@dataclass(frozen=True)
class Brief:
    """The report's questions and answers."""

    lines: tuple[Line, ...]


@dataclass(frozen=True)
class Points:
    """A list of sentences."""

    points: tuple[str, ...]


@dataclass(frozen=True)
class Listing:
    """Lines of code."""

    text: str


@dataclass(frozen=True)
class Heading:
    """A heading within a part."""

    text: str


Block = Text | Missing | Facts | Rows | Brief | Points | Listing | Heading


@dataclass(frozen=True)
class Part:
    """One part of a card."""

    id: str
    title: str
    blocks: tuple[Block, ...]


def build_parts(
    version: ModelVersion,
    dossier: Mapping[str, Any] | None,
    history: Sequence[Transition],
    testscore: Mapping[str, Any] | None = None,
) -> tuple[Part, ...]:
    """Return the parts of a version's card, in the order of Mitchell et al. 2019, section 4.

    Args:
        version: From the registry.
        dossier: As `mlflywheel.registry.dossier.read_dossier` returns it.
        history: Of the version, its registration first.
        testscore: As `mlflywheel testscore --json` prints it, or None.
    """
    known = _Known(version, dossier or {}, history, dossier is not None)
    return (
        Part("brief", "In brief", tuple(_tell_brief(known, testscore))),
        Part("details", "Model details", tuple(_tell_details(known))),
        Part("use", "Intended use", tuple(_tell_use(known))),
        Part("factors", "Factors", tuple(_tell_factors(known))),
        Part("metrics", "Metrics and gates", tuple(_tell_metrics(known))),
        Part("evaluation-data", "Evaluation data", tuple(_tell_evaluation_data(known))),
        Part("training-data", "Training data", tuple(_tell_training_data(known))),
        Part("analyses", "Quantitative analyses", tuple(_tell_analyses(known))),
        Part("ethics", "Ethical considerations", tuple(_tell_ethics(known))),
        Part("caveats", "Caveats and recommendations", tuple(_tell_caveats(known, testscore))),
        Part("reproducibility", "Reproducibility", tuple(_tell_reproducibility(known))),
        Part("sign-off", "Sign-off", tuple(_tell_history(known))),
        Part("contract", "Contract with callers", tuple(_tell_contract(known))),
    )


def list_brief(dossier: Mapping[str, Any] | None) -> list[Line]:
    """Return the report's brief of what was measured, a line each; none without a dossier."""
    if dossier is None:
        return []
    evaluation = _part(dossier, "evaluation")
    champion = evaluation.get("champion")
    measured = Evaluation(read_measurements(dossier))
    return list_lines(measured, _mappings(evaluation.get("gates")), None if champion is None else str(champion))


def list_objections(version: ModelVersion, dossier: Mapping[str, Any] | None) -> tuple[str, ...]:
    """Return what stands against signing a version off, a sentence each: what was found, and what nobody looked at.

    Args:
        version: From the registry.
        dossier: Its dossier, None if it has none.

    Returns:
        Refused and skipped gates first; none if nothing is known that speaks against it.
    """
    if dossier is None:
        return (f"{version.reference} has no dossier: how it was evaluated and made is not recorded.",)
    return tuple(_list_objections(dossier))


def read_measurements(dossier: Mapping[str, Any]) -> tuple[Measurement, ...]:
    """Return a dossier's measurements; keys that this version does not know are left out."""
    known = {field.name for field in fields(Measurement)}
    found = _mappings(_part(dossier, "evaluation").get("measurements"))
    return tuple(
        Measurement(**{name: value for name, value in one.items() if name in known})
        for one in found
        if "metric" in one and "value" in one
    )


@dataclass(frozen=True)
class _Known:
    """Everything that a card is made of."""

    version: ModelVersion
    dossier: Mapping[str, Any]
    history: Sequence[Transition]
    has_dossier: bool

    def part(self, *names: str) -> Mapping[str, Any]:
        found: Mapping[str, Any] = self.dossier
        for name in names:
            found = _part(found, name)
        return found

    def measured(self, about: str) -> list[Measurement]:
        return [one for one in read_measurements(self.dossier) if one.about == about]

    @property
    def gates(self) -> list[Mapping[str, Any]]:
        return _mappings(self.part("evaluation").get("gates"))


def _part(values: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = values.get(name)
    return found if isinstance(found, Mapping) else {}


def _mappings(values: Any) -> list[Mapping[str, Any]]:
    return [one for one in values if isinstance(one, Mapping)] if isinstance(values, list | tuple) else []


def _facts(*rows: tuple[str, Any]) -> Facts:
    """Keep the facts that have a value."""
    return Facts(tuple((name, value if isinstance(value, str) else str(value)) for name, value in rows if value))


def _code(value: Any) -> Code | None:
    return None if value in (None, "", {}, []) else Code(str(value))


def _json(value: Any) -> Code | None:
    if value in (None, "", {}, []):
        return None
    return Code(json.dumps(value, ensure_ascii=False, sort_keys=True, default=str))


def _shorten(text: str) -> str:
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}…"


def _end(text: str) -> str:
    """Let a sentence end with one full stop."""
    return text if text.endswith((".", "!", "?", "…")) else f"{text}."


def _tell_brief(known: _Known, testscore: Mapping[str, Any] | None) -> Iterator[Block]:
    version = known.version
    words = {
        State.CANDIDATE: "is a candidate: it was measured, and nobody has approved it",
        State.APPROVED: "is approved: it may be served",
        State.LIVE: "is live: a rollout made it the version in use",
        State.ARCHIVED: "is archived: it may not be served",
    }
    last = known.history[-1] if known.history else None
    told = f"{version.reference} {words[version.state]}."
    if last is not None and last.from_state is not None:
        because = f": {last.reason}" if last.reason else ""
        told += _end(f" Decided by {last.by} on {last.at:%Y-%m-%d}{because}")
    yield Text(told)
    lines = list_brief(known.dossier if known.has_dossier else None)
    if lines:
        yield Brief(tuple(lines))
    if testscore is not None:
        sections = ", ".join(f"{name} {value:g}" for name, value in _part(testscore, "sections").items())
        yield Text(
            f"ML Test Score: {format_number(testscore.get('score'))}, the lowest of its four sections ({sections}); "
            "each can reach 7 (Breck et al. 2017)."
        )
    if not known.has_dossier:
        yield Missing("How this version was evaluated and made is not recorded", _RUN_AGAIN)


def tell_outcomes(gates: Sequence[bool | None]) -> str:
    """Count outcomes of gates in words.

    >>> tell_outcomes([True, True, None]), tell_outcomes([])
    ('2 held, 1 skipped', 'no gate')
    """
    words = [
        f"{sum(holds is outcome for holds in gates)} {word}"
        for word, outcome in (("refused", False), ("held", True), ("skipped", None))
        if any(holds is outcome for holds in gates)
    ]
    return ", ".join(words) or "no gate"


def _tell_details(known: _Known) -> Iterator[Block]:
    version, run, model = known.version, known.part("run"), known.part("model")
    yield _facts(
        ("Model", Code(version.reference)),
        ("State", str(version.state)),
        ("Registered", f"{version.created_at:%Y-%m-%d %H:%M} UTC"),
        ("Class", _code(model.get("class"))),
        ("Format", Code(f"{version.format_name} {version.format_version}".strip())),
        ("Contract version", _code(known.part("model", "contract").get("version"))),
        ("Hash of its files", _code(version.hash)),
        ("Address", _code(without_credentials(version.uri))),
        ("Pipeline", _code(run.get("pipeline"))),
        ("Run", _code(run.get("id") or version.key)),
        ("Started", {"manual": "by hand", "scheduled": "on a schedule", "ci": "by CI"}.get(str(run.get("trigger")))),
    )
    shown = model.get("facts") or version.parameters
    if isinstance(shown, Mapping) and shown:
        rows = tuple((humanize(str(name)), Code(str(value))) for name, value in sorted(shown.items()))
        yield Heading("What it is made of")
        yield Facts(rows)


def _tell_use(known: _Known) -> Iterator[Block]:
    purpose = _find_purpose(str(known.part("model").get("class") or ""))
    if purpose:
        yield Text(f"In the words of its author: {purpose}")
    else:
        yield Missing("What the model is for is not known here", "install the package that its class comes from")
    if known.version.description:
        yield Text(f"At its registration: {known.version.description}")
    fields_ = list(_part(_part(known.part("model", "contract"), "request"), "properties"))
    if fields_:
        yield Text(
            f"One request holds {', '.join(map(str, fields_))}. What they mean stands under “Contract with callers”."
        )
    yield Missing(
        "Who may use it, and for what it must not be used, is not recorded",
        "agree on it with those who answer for its decisions, and write it down beside this card",
    )


def _find_purpose(class_name: str) -> str:
    """Return the first line of what a model class says of itself.

    Only classes of this library or of an installed entry point are looked at: a dossier is data, and data does not
    choose what code is imported.
    """
    points = entry_points(group=ENTRY_POINT_GROUP)
    name = class_name
    if not class_name.startswith("mlflywheel.models."):
        package = class_name.split(".")[0].split(":")[0]
        near = (point.name for point in points if point.value.split(".")[0].split(":")[0] == package)
        name = next(near, "") if package else ""
    if not name:
        return ""
    try:
        found = load_model_class(name)
    except UsageError:
        return ""
    if name != class_name and f"{found.__module__}:{found.__qualname__}" != class_name:
        return ""
    return (found.__doc__ or "").strip().split("\n")[0]


def _tell_factors(known: _Known) -> Iterator[Block]:
    plan = known.part("evaluation", "plan")
    groups = _name_groupings(_part(plan, "fairness").get("groups"))
    slices = _name_groupings(_part(plan, "slices").get("columns"))
    how = "name columns in evaluation.yaml, and run the pipeline again"
    if groups:
        smallest = _part(plan, "fairness").get("minimum_count")
        least = f" Groups of fewer than {smallest} rows count in no gap." if smallest else ""
        yield Text(f"Groups between which answers were compared: {'; '.join(groups)}.{least}")
    else:
        yield Missing("No groups of people or things were compared", f"{how} (fairness, groups)")
    by_model = dict.fromkeys(one.slice.partition("=")[0] for one in known.measured("model") if "=" in one.slice)
    if slices:
        yield Text(f"Slices on which every metric was measured: {'; '.join(slices)}.")
    if by_model:
        yield Text(f"Slices that the model measures by itself: {', '.join(by_model)}.")
    if not slices and not by_model:
        yield Missing("No slices were declared", f"{how} (slices, columns)")
    search = _part(_part(plan, "slices"), "discover")
    if search.get("enabled"):
        yield Text(
            f"Other slices of at least {search.get('minimum_count')} rows and at most {search.get('conditions')} "
            "conditions were searched for; what was found stands under “Quantitative analyses”."
        )


def _name_groupings(values: Any) -> list[str]:
    named = []
    for one in _mappings(values):
        bands = one.get("bands") or ()
        ends = ", ".join(f"{end:,g}" if is_number(end) else str(end) for end in bands)
        named.append(f"{one.get('name')} in bands that end at {ends}" if ends else str(one.get("name")))
    return named


def _tell_metrics(known: _Known) -> Iterator[Block]:
    gates = known.gates
    if not gates:
        yield Missing("No gate judged this version", "write thresholds into gates.yaml, and run the pipeline again")
        return
    held = sum(gate.get("holds") is True for gate in gates)
    skipped = sum(gate.get("holds") is None for gate in gates)
    yield Text(
        f"A version is registered if no gate refuses it. Here {held} of {plural(len(gates), 'gate')} held, and "
        f"{skipped} had nothing to judge."
    )
    ordered = sorted(gates, key=lambda gate: (gate.get("holds") is not False, gate.get("holds") is True))
    yield Rows(
        "Gates",
        ("Metric", "Slice", "Value", "Limit", "Outcome", "Why"),
        tuple(
            (
                Code(str(gate.get("metric"))),
                str(gate.get("slice", "all")),
                format_number(gate.get("value")),
                f"{_RELATIONS.get(str(gate.get('relation')), '')} {format_number(gate.get('limit'))}".strip(),
                {True: "held", False: "refused", None: "skipped"}.get(gate.get("holds"), NOTHING),
                _shorten(str(gate.get("reason", ""))),
            )
            for gate in ordered
        ),
        frozenset((2, 3)),
        tuple({False: "bad", None: "warn"}.get(gate.get("holds")) for gate in ordered),
    )


_RELATIONS = {">=": "≥", "<=": "≤"}


def _tell_evaluation_data(known: _Known) -> Iterator[Block]:
    data = known.part("data")
    split = _part(data, "split")
    if not data:
        yield Missing("What it was evaluated on is not recorded", _RUN_AGAIN)
        return
    share = split.get("holdout_fraction")
    held = f", {format_number(100 * share)} % of them" if is_number(share) else ""
    column = f" by {split['column']}" if split.get("column") else ""
    yield Text(
        f"Rows of the table below that the model was not fitted on{held}: a {split.get('method') or 'recorded'} split"
        f"{column} with seed {split.get('seed')}. Before the version was registered, these rows were added to what it "
        "looks up, if it looks anything up; what it had learned stayed."
    )
    counts = [one.count for one in read_measurements(known.dossier) if one.slice == "all" and one.about == "model"]
    if any(counts):
        yield Text(f"The most rows that a metric rests on: {max(counts):,}.")


def _tell_training_data(known: _Known) -> Iterator[Block]:
    data, training = known.part("data"), known.part("training")
    if not data:
        yield Missing("What it was trained on is not recorded", _RUN_AGAIN)
    else:
        rows = ", ".join(
            f"{format_number(count)} {name}" for name, count in _part(data, "rows").items() if is_number(count)
        )
        yield _facts(
            ("Table", _code(without_credentials(str(data.get("uri") or "")))),
            ("Version of the data", _code(data.get("version"))),
            ("Rows", rows),
            ("Columns", _json(data.get("columns"))),
            ("Preparation", _json(data.get("prepare"))),
        )
        yield from _tell_validation(data.get("validation"))
    yield Heading("Training")
    params = training.get("settings") or training.get("params")
    if isinstance(params, Mapping) and params:
        yield Facts(tuple((str(name), Code(str(value))) for name, value in sorted(flatten(params).items())))
    elif training:
        yield Text("With the parameters' defaults.")
    else:
        yield Missing("With which parameters is not recorded", _RUN_AGAIN)
    search = training.get("search")
    if isinstance(search, Mapping):
        yield Text(
            f"A search for parameters ({search.get('experiment')}) tried {search.get('trials')} of them for "
            f"{search.get('objective')}: {format_number(search.get('baseline'))} before, "
            f"{format_number(search.get('best'))} at best; "
            + ("its best parameters were taken." if search.get("improved") else "the given parameters were kept.")
        )
    elif training:
        yield Text("No search for parameters was made.")


def _tell_validation(validation: Any) -> Iterator[Block]:
    if not isinstance(validation, Mapping):
        yield Missing("The data was not validated", "write expectations.json, and run the pipeline again")
        return
    failed = _mappings(validation.get("failed"))
    told = (
        f"Validation: {validation.get('passed')} of {validation.get('expectations')} expectations hold "
        f"({validation.get('status')})"
    )
    if failed:
        told += "; not: " + ", ".join(f"{one.get('name')} ({one.get('severity')})" for one in failed)
    yield Text(_end(told))


def _tell_analyses(known: _Known) -> Iterator[Block]:
    yield from _tell_headlines(known)
    yield from _tell_slices(known)
    yield from _tell_groups(known)
    yield from _tell_champion(known)
    yield from _tell_features(known)


def _tell_headlines(known: _Known) -> Iterator[Block]:
    yield Heading("Metrics on all held-out rows")
    overall = {one.metric: one for one in known.measured("model") if one.slice == "all"}
    pairs = pair_references(list(overall))
    paired = {name for found in pairs.values() for name, _ in found}
    gated = {str(gate.get("metric")) for gate in known.gates}
    names = [name for name in overall if name not in paired]
    names.sort(key=lambda name: (name not in gated and name not in pairs, name not in pairs))
    if not names and known.version.metrics:
        yield Text("As the registry has them, without intervals.")
        yield _table(
            "Metrics",
            ("Metric", "Value"),
            [(Code(name), format_number(value)) for name, value in sorted(known.version.metrics.items())],
            numbers=(1,),
        )
        return
    if not names:
        yield Missing("No metric was recorded", _RUN_AGAIN)
        return
    yield Text("Beside them simpler methods on the same rows. Intervals are 95 % intervals.")
    yield _table(
        "Metrics",
        ("Metric", "Value", "Interval", "Simpler methods", "Rows"),
        [
            (
                Code(name),
                format_number(overall[name].value),
                _tell_interval(overall[name]),
                "; ".join(
                    f"{words.removeprefix('Reference').strip() or 'reference'} {format_number(overall[other].value)}"
                    for other, words in pairs.get(name, ())
                )
                or NOTHING,
                f"{overall[name].count:,}" if overall[name].count else NOTHING,
            )
            for name in names
        ],
        numbers=(1, 2, 4),
        most=None,
    )


def _tell_slices(known: _Known) -> Iterator[Block]:
    yield Heading("Weakest slices")
    measured = known.measured("slices")
    found = [one for one in measured if one.metric.startswith(_EFFECT) and one.value is not None]
    found.sort(key=lambda one: -(one.value or 0.0))
    shown = [one for one in found if one.low is not None and one.low > 0]
    if found:
        yield Text(
            "Found by a search over the held-out rows; how much worse than elsewhere, corrected for the search."
            if shown
            else "A search over the held-out rows showed no slice to be worse than the rest; the largest differences:"
        )
        yield _table(
            "Slices that were found",
            ("Rows where", "Metric", "Worse by", "Interval", "Rows"),
            [
                (
                    one.slice,
                    Code(one.metric.removeprefix(_EFFECT)),
                    format_number(one.value),
                    _tell_interval(one),
                    f"{one.count:,}",
                )
                for one in shown or found[:_FEW]
            ],
            numbers=(2, 3, 4),
        )
    declared = list(_rank_declared(known))
    if declared:
        yield Text("Slices on the worse side of all rows, by metrics that a gate judges; the furthest first.")
        yield _table(
            "Declared slices", ("Slice", "Metric", "Value", "Interval", "All rows", "Rows"), declared, (2, 3, 4, 5)
        )
    if not found and not declared:
        notes = "; ".join(dict.fromkeys(one.note for one in measured if one.note))
        why = f" ({notes})" if notes else ""
        yield Missing(
            f"No weak slice is recorded{why}", "name slices in evaluation.yaml, or see why the search found none"
        )


def _rank_declared(known: _Known) -> Iterator[tuple[Value, ...]]:
    """Rank slices of metrics whose worse side is known, which is where a gate limits them on one side only."""
    sides: dict[str, set[str]] = {}
    for gate in known.gates:
        sides.setdefault(str(gate.get("metric")), set()).add(str(gate.get("relation")))
    every = [one for about in ("model", "slices") for one in known.measured(about) if one.value is not None]
    overall = {one.metric: one.value for one in every if one.slice == "all"}
    ranked = []
    for one in every:
        whole = overall.get(one.metric)
        if "=" not in one.slice or not whole or one.count < DEFAULT_MIN_COUNT_OF_A_COLUMN:
            continue
        if len(sides.get(one.metric, ())) == 1:
            apart = ((one.value or 0.0) - whole) / abs(whole)
            ranked.append((apart if "<=" in sides[one.metric] else -apart, one, whole))
    ranked.sort(key=lambda entry: (-entry[0], entry[1].metric, entry[1].slice))
    for worse, one, whole in ranked[:_SHOWN_ROWS]:
        if worse > 0:
            yield (
                one.slice,
                Code(one.metric),
                format_number(one.value),
                _tell_interval(one),
                format_number(whole),
                f"{one.count:,}",
            )


def _tell_groups(known: _Known) -> Iterator[Block]:
    yield Heading("Between groups")
    gaps = [one for one in known.measured("groups") if one.slice.startswith("between=")]
    if not gaps:
        yield Missing(
            "No gap between groups was measured", "name groups in evaluation.yaml, and run the pipeline again"
        )
        return
    gated = {(str(gate.get("metric")), str(gate.get("slice", "all"))) for gate in known.gates}
    defined = [one for one in gaps if one.value is not None]
    if not defined:
        yield Text("No gap has a value; why stands under “Caveats and recommendations”.")
        return
    rows = []
    for one in sorted(defined, key=lambda one: (one.slice, one.metric.endswith(("_rise", "_fall")))):
        is_gated = (one.metric, one.slice) in gated or (one.metric, "all") in gated
        rows.append(
            (
                one.slice.removeprefix("between="),
                Code(one.metric),
                format_number(one.value),
                _tell_interval(one),
                "yes" if is_gated else "no",
                _shorten(one.note),
            )
        )
    yield _table(
        "Gaps", ("Groups by", "Criterion", "Value", "Interval", "Gate", "Between whom"), rows, (2, 3), most=None
    )


def _tell_champion(known: _Known) -> Iterator[Block]:
    yield Heading("Against the version in use")
    champion = known.part("evaluation").get("champion")
    measured = [one for one in known.measured("champion") if one.slice == "all"]
    if champion is None:
        yield Missing(
            "There was no version in use to compare it with",
            "approve and deploy a first version; the next one is compared with it",
        )
    else:
        yield Text(f"Against {champion}, on the same rows; a positive loss is worse.")
    shown = [one for one in measured if champion is not None or one.value is not None]
    if shown:
        width = 4 if any(one.note for one in shown) else 3
        yield _table(
            "Comparison",
            ("Measurement", "Value", "Interval", "Note")[:width],
            [
                (Code(one.metric), format_number(one.value), _tell_interval(one), _shorten(one.note))[:width]
                for one in shown
            ],
            numbers=(1, 2),
        )
    trend = [one for one in known.measured("trend") if one.value is not None]
    if trend:
        yield Text("Decline a version, over the versions that are registered; positive is a decline.")
        yield _table(
            "Trend",
            ("Measurement", "Value", "Interval", "Versions"),
            [(Code(one.metric), format_number(one.value), _tell_interval(one), f"{one.count:,}") for one in trend],
            numbers=(1, 2, 3),
        )


def _tell_features(known: _Known) -> Iterator[Block]:
    yield Heading("What it goes by")
    measured = [one for one in known.measured("explanations") if one.slice.startswith("feature=")]
    needed = sorted((one for one in measured if one.value is not None), key=lambda one: -(one.value or 0.0))
    if not needed:
        yield Missing(
            "What the model goes by was not measured",
            "set explanations.rows in evaluation.yaml above 0, and run the pipeline again",
        )
        return
    yield Text("How much worse the first metric gets when a column's values are exchanged between rows.")
    yield _table(
        "Features",
        ("Feature", "Importance", "Interval"),
        [(Code(one.slice.removeprefix("feature=")), format_number(one.value), _tell_interval(one)) for one in needed],
        numbers=(1, 2),
    )


def _tell_ethics(known: _Known) -> Iterator[Block]:
    groups = known.measured("groups")
    names = dict.fromkeys(one.metric for one in groups if one.slice.startswith("between="))
    gated = dict.fromkeys(
        f"{gate.get('metric')} ({gate.get('slice', 'all')})" for gate in known.gates if gate.get("metric") in names
    )
    if gated:
        yield Text(
            f"Of the criteria between groups, gates judge: {', '.join(gated)}. The others are reported and decide "
            "nothing. Criteria conflict: where groups differ in their base rates, equal selection, equal error rates "
            "and calibration cannot all hold (Kleinberg et al. 2016; Chouldechova 2017), so somebody has to choose."
        )
    elif names:
        yield Missing(
            "Gaps between groups were measured, and no gate judges them",
            "decide which criterion matters here, and write a gate on it into gates.yaml",
        )
    else:
        yield Missing(
            "Whether groups are treated alike was not measured",
            "name the groups that the decisions affect in evaluation.yaml",
        )
    yield Missing(
        "Whether the data is personal or sensitive, and whom the decisions affect, is not recorded",
        "write it down beside this card",
    )


def _tell_caveats(known: _Known, testscore: Mapping[str, Any] | None) -> Iterator[Block]:
    objections = list_objections(known.version, known.dossier if known.has_dossier else None)
    if objections:
        yield Text("What stands against it, or was not looked at:")
        yield Points(objections)
    else:
        yield Text("Nothing is recorded that stands against it.")
    undefined = [one for one in read_measurements(known.dossier) if one.value is None]
    if undefined:
        yield Heading("What has no value")
        reasons: dict[str, list[str]] = {}
        for one in undefined:
            name = one.metric if one.slice == "all" else f"{one.metric} ({one.slice})"
            reasons.setdefault(_shorten(one.note) or "not recorded", []).append(name)
        yield Rows(
            "Measurements without a value",
            ("Why", "Measurements"),
            tuple((why, _shorten(", ".join(names))) for why, names in reasons.items()),
        )
    if testscore is None:
        yield Missing(
            "The ML Test Score is not on this card", f"compute it with `mlflywheel testscore {known.version.reference}`"
        )
    else:
        lacking = [one for one in _mappings(testscore.get("tests")) if not one.get("points")]
        if lacking:
            yield Heading("Tests of the ML Test Score without evidence")
            yield Points(
                tuple(
                    _end(f"{one.get('id')}, {one.get('title')}: {one.get('missing') or 'nothing'}") for one in lacking
                )
            )


def _list_objections(dossier: Mapping[str, Any]) -> Iterator[str]:
    evaluation, made = _part(dossier, "evaluation"), _part(dossier, "reproducibility")
    gates = _mappings(evaluation.get("gates"))
    measured = read_measurements(dossier)
    if not gates:
        yield "No gate judged it."
    for word, outcome in (("refused", False), ("skipped", None)):
        by_metric: dict[str, list[Mapping[str, Any]]] = {}
        for gate in gates:
            if gate.get("holds") is outcome:
                by_metric.setdefault(str(gate.get("metric")), []).append(gate)
        for metric, found in by_metric.items():
            slices = [str(gate.get("slice", "all")) for gate in found]
            places = "" if slices == ["all"] else f" on {', '.join(slices)}"
            because = f"; {_shorten(str(found[0].get('reason', '')))}" if len(found) == 1 else ""
            yield _end(f"{'Gate' if len(found) == 1 else f'{len(found)} gates'} {word}: {metric}{places}{because}")
    if evaluation.get("champion") is None:
        yield "It was compared with no version in use."
    for one in measured:
        if one.metric == "breaking_contract_changes" and one.value:
            yield _end(f"It breaks {plural(int(one.value), 'part')} of the contract with callers: {_shorten(one.note)}")
    weak = [one for one in measured if one.metric.startswith(_EFFECT) and one.low is not None and one.low > 0]
    for one in sorted(weak, key=lambda one: -(one.value or 0.0))[:3]:
        metric = one.metric.removeprefix(_EFFECT)
        yield _end(
            f"It is worse where {one.slice}: {metric} by {format_number(one.value)} ({_tell_interval(one)}), "
            f"{one.count:,} rows"
        )
    for one in measured:
        is_rise = one.metric.endswith(("_rise", "_fall")) and one.slice.startswith("between=")
        if is_rise and one.low is not None and one.low > 0:
            yield _end(
                f"A gap has grown against the version in use: {one.metric} by {one.slice.removeprefix('between=')}, "
                f"{format_number(one.value)} ({_tell_interval(one)})"
            )
    if not any(one.about == "groups" for one in measured):
        yield "Groups were not compared."
    validation = _part(dossier, "data").get("validation")
    if not isinstance(validation, Mapping):
        yield "Its data was not validated."
    elif validation.get("failed"):
        failed = [f"{one.get('name')} ({one.get('severity')})" for one in _mappings(validation["failed"])]
        yield _end(f"Its data does not meet {plural(len(failed), 'expectation')}: {', '.join(failed)}")
    code = _part(made, "code")
    if code.get("dirty"):
        yield f"Its code had changes that were not committed, on top of {code.get('commit') or 'an unknown commit'}."
    unknown = _part(made, "unknown")
    for name in ("commit", "code", "lock", "lock_hash"):
        if name in unknown:
            yield _end(f"Not known for a rebuild: {name}, {unknown[name]}")


def _tell_reproducibility(known: _Known) -> Iterator[Block]:
    made = known.part("reproducibility")
    if not made:
        yield Missing("What it was made in is not recorded", _RUN_AGAIN)
        return
    code, hardware, image = _part(made, "code"), _part(made, "hardware"), _part(made, "image")
    threads = _part(_part(made, "threads"), "variables")
    commit = str(code.get("commit") or "")
    memory = hardware.get("memory_bytes")
    machine = [
        str(hardware.get("cpu") or ""),
        str(hardware.get("instructions") or ""),
        f"{hardware['cores']} cores" if hardware.get("cores") else "",
        f"{format_number(round(memory / 2**30, 1))} GiB" if is_number(memory) else "",
    ]
    yield _facts(
        ("Code", _code(commit)),
        ("Changes that were not committed", {True: "yes", False: "no"}.get(code.get("dirty", ""))),
        ("Version of the library", _code(code.get("version"))),
        ("Source files", _code(code.get("source"))),
        ("Lock of the packages", _code(made.get("lock_hash"))),
        ("Packages", f"{len(_part(made, 'packages'))} recorded" if made.get("packages") else None),
        ("Python", _code(f"{made.get('implementation') or ''} {made.get('python') or ''}".strip())),
        ("Platform", _code(made.get("platform"))),
        ("Machine", ", ".join(one for one in machine if one)),
        ("Threads", _code(", ".join(f"{name}={value}" for name, value in sorted(threads.items())))),
        ("Image", _code(image.get("digest") or image.get("reference"))),
        ("Seeds", _json(made.get("seeds"))),
        ("Pipeline's hash", _code(known.part("run").get("pipeline_spec"))),
    )
    unknown = _part(made, "unknown")
    if unknown:
        yield Text("Not known: " + _end("; ".join(f"{name} ({why})" for name, why in sorted(unknown.items()))))
    yield Text("To train it again and compare:")
    yield Listing(f"mlflywheel rebuild {known.version.reference}")


def _tell_history(known: _Known) -> Iterator[Block]:
    reference = known.version.reference
    if known.history:
        yield Rows(
            "States",
            ("When (UTC)", "State", "Who", "Why"),
            tuple(
                (f"{one.at:%Y-%m-%d %H:%M}", str(one.to_state), one.by, one.reason or NOTHING) for one in known.history
            ),
        )
    if not any(one.to_state is State.APPROVED for one in known.history):
        yield Missing("Nobody has approved it", f'`mlflywheel models approve {reference} --reason "..."`')


def _tell_contract(known: _Known) -> Iterator[Block]:
    contract = known.part("model", "contract")
    if not contract:
        yield Missing("What requests and answers look like was not recorded", _RUN_AGAIN)
        return
    yield Text(f"Version {contract.get('version')}. A change that breaks callers raises its major number.")
    for side, title in (("request", "A request"), ("response", "An answer")):
        schema = _part(contract, side)
        rows = list(_list_fields(schema))
        if rows:
            yield Heading(title)
            yield Rows(title, ("Field", "Type", "Needed", "Meaning"), tuple(rows))
    if contract.get("example"):
        yield Heading("An example")
        yield Listing(json.dumps(contract["example"], ensure_ascii=False, indent=1, default=str))


def _list_fields(schema: Mapping[str, Any]) -> Iterator[tuple[Value, ...]]:
    needed = schema.get("required") or ()
    for name, field in _part(schema, "properties").items():
        described = field if isinstance(field, Mapping) else {}
        yield (
            Code(str(name)),
            _name_type(described),
            "yes" if name in needed else "no",
            str(described.get("description") or NOTHING),
        )


def _name_type(schema: Mapping[str, Any]) -> str:
    """Name a field's type in short.

    >>> _name_type({"anyOf": [{"type": "array", "items": {"type": "string"}}, {"type": "null"}]})
    'list of string or null'
    """
    options = schema.get("anyOf") or schema.get("oneOf")
    if isinstance(options, list):
        return " or ".join(dict.fromkeys(_name_type(one) for one in options if isinstance(one, Mapping)))
    if "$ref" in schema:
        return str(schema["$ref"]).rpartition("/")[2]
    if "enum" in schema:
        return "one of " + ", ".join(str(value) for value in schema["enum"])
    kind = schema.get("type")
    if kind == "array":
        return f"list of {_name_type(_part(schema, 'items'))}"
    if isinstance(kind, list):
        return " or ".join(str(one) for one in kind)
    return str(kind or "any value")


def _table(
    caption: str,
    headings: Sequence[str],
    rows: Iterable[Sequence[Value]],
    numbers: Sequence[int] = (),
    most: int | None = _SHOWN_ROWS,
) -> Rows:
    """Make a table of at most so many rows, with a line that counts the others."""
    every = [tuple(row) for row in rows]
    shown = every if most is None else every[:most]
    if len(every) > len(shown):
        rest = f"and {len(every) - len(shown)} more, in the dossier"
        shown.append((rest, *("" for _ in headings[1:])))
    return Rows(caption, tuple(headings), tuple(shown), frozenset(numbers))


def _tell_interval(found: Measurement) -> str:
    if not (is_number(found.low) and is_number(found.high)):
        return NOTHING
    return f"{format_number(found.low)} to {format_number(found.high)}"
