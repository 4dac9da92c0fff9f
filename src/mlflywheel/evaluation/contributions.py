"""What a model goes by: contributions of features to its predictions, one view of what every model's `explain` gives.

`Model.explain` gives one row for each prepared row, or for each prepared row and output (a campaign's topics), with

- a text column of ids;
- numbers that add up: `base_<quantity>` and `<quantity>` (a price model's `base_log_price` and `log_price`, a
  classifier's `base_log_odds` and `log_odds`), or `base` and one other number (a topic's `share`);
- one list of (feature, contribution): a field `contribution`, one text field that names the feature (`feature`,
  `term`), and `value` where there is one.

The base and the contributions of a row add up to the quantity. That is checked (`check_additivity`), and that the
quantity is what `Model.predict` says (`compare_with_predictions`): an explanation of something else would be none.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from mlflywheel.errors import DataError, ModelError
from mlflywheel.evaluation.importance import draw_rows, find_id_column
from mlflywheel.evaluation.plan import ExplanationPlan
from mlflywheel.events import ProgressCallback, ignore_progress
from mlflywheel.models.contract import Evaluation, Measurement, Model, RowScores, Section

METRIC = "additivity_error"
#: Quantities whose contributions multiply odds, or what the logarithm was taken of.
LOG_ODDS = "log_odds"
_LOG = "log_"
_BASE = "base"
_PARTS = "contribution"
_PHASE = "explaining"
_BARS = 20
_OUTPUTS_SHOWN = 3
_PARTS_SHOWN = 8
# Of a row's largest part: smaller ones are summed up.
_SMALL = 0.01
# float32 answers of a share near 1 carry about seven digits.
_EQUAL = 1e-5


@dataclass(frozen=True)
class Contributions:
    """Contributions to predictions: explanation e has the parts from `offsets[e]` to `offsets[e + 1]`.

    Args:
        ids: Of the rows, string (explanations,); those of one row stand together.
        outputs: Which output is explained, string (explanations,): a topic's name, or the quantity's.
        quantity: What adds up: `log_price`, `log_odds`, `share`.
        base: Before anything is known of the row, float64 (explanations,).
        total: The quantity, float64 (explanations,).
        offsets: int64 (explanations + 1,).
        features: Names, string (parts,).
        values: The features' values as text, string (parts,), null where they have none.
        amounts: Contributions in units of the quantity, float64 (parts,); the largest first in each explanation.
        outputs_per_row: Explanations of each row.
    """

    ids: pa.Array
    outputs: pa.Array
    quantity: str
    base: NDArray[np.float64]
    total: NDArray[np.float64]
    offsets: NDArray[np.int64]
    features: pa.Array
    values: pa.Array
    amounts: NDArray[np.float64]
    outputs_per_row: int = 1

    def __len__(self) -> int:
        """Return the number of explanations."""
        return len(self.ids)

    @property
    def rows(self) -> int:
        """Number of explained rows."""
        return len(self.ids) // self.outputs_per_row

    def owners(self) -> NDArray[np.int64]:
        """Return the explanation of each part, int64 (parts,)."""
        return np.repeat(np.arange(len(self)), np.diff(self.offsets))

    def add_up(self) -> NDArray[np.float64]:
        """Return the base plus all contributions of each explanation."""
        return self.base + np.bincount(self.owners(), self.amounts, minlength=len(self))

    def of_row(self, row: int) -> list[dict[str, Any]]:
        """Return the explanations of a row, by position, as JSON values; the largest quantity first."""
        first = row * self.outputs_per_row
        found = []
        for one in range(first, first + self.outputs_per_row):
            low, high = int(self.offsets[one]), int(self.offsets[one + 1])
            features, values = self.features[low:high].to_pylist(), self.values[low:high].to_pylist()
            parts = [
                {"feature": feature, "value": value, "contribution": amount}
                for feature, value, amount in zip(features, values, self.amounts[low:high].tolist(), strict=True)
            ]
            found.append(
                {
                    "output": self.outputs[one].as_py(),
                    "base": float(self.base[one]),
                    self.quantity: float(self.total[one]),
                    "contributions": parts,
                }
            )
        return sorted(found, key=lambda entry: -entry[self.quantity])

    def to_table(self) -> pa.Table:
        """Return one row an explanation: `id`, `output`, `base`, the quantity, and `contributions`.

        The last is a list of (feature, value, contribution).
        """
        parts = pa.StructArray.from_arrays(
            [self.features, self.values, pa.array(self.amounts)], ["feature", "value", "contribution"]
        )
        return pa.table(
            {
                "id": self.ids,
                "output": self.outputs,
                "base": pa.array(self.base),
                self.quantity: pa.array(self.total),
                "contributions": pa.ListArray.from_arrays(pa.array(self.offsets, pa.int32()), parts),
            }
        )


@dataclass(frozen=True)
class FeatureSummary:
    """What a feature brings over all explained rows.

    Args:
        feature: Its name: a column, or a campaign's term.
        mean_absolute: Mean over all rows of the absolute contributions, summed over the row's outputs; a row without
            the feature counts as 0.
        count: Rows in which it brings anything.
        output: The output that it brings most to.
    """

    feature: str
    mean_absolute: float
    count: int
    output: str


def read_contributions(model: Model, table: pa.Table) -> Contributions:
    """Explain prepared rows, and read the explanation in the shape of this module.

    Args:
        model: The model.
        table: Prepared rows.

    Raises:
        ModelError: `Model.explain` gives a table of another shape.
    """
    found = model.explain(table).combine_chunks()
    parts_name, feature_name = _find_parts(model, found)
    quantity, base_name = _find_quantity(model, found)
    texts = [field.name for field in found.schema if pa.types.is_string(field.type)]
    declared = [column.name for column in type(model).columns if column.kind == "id" and column.name in texts]
    id_name = (declared or texts or [""])[0]
    if not id_name or (table.num_rows and found.num_rows % table.num_rows):
        raise _refuse_shape(model, found, "a text column of ids and as many outputs for every row")
    outputs_per_row = found.num_rows // table.num_rows if table.num_rows else 1
    named = [name for name in texts if name != id_name]
    several = outputs_per_row > 1 and named
    lists = found[parts_name].combine_chunks()
    structs = lists.flatten()
    # `flatten` heeds slices and leaves nulls out, so offsets are counted anew.
    lengths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False).astype(np.int64)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    amounts = _floats(structs.field(_PARTS))
    # Each explanation's parts, the largest first; sorting is stable, so a model's own order of equal ones stays.
    owners = np.repeat(np.arange(found.num_rows), lengths)
    order = np.lexsort((-np.abs(amounts), owners))
    fields = [field.name for field in structs.type]
    values = structs.field("value").cast(pa.string()) if "value" in fields else pa.nulls(len(structs), pa.string())
    taken = pa.array(order)
    return Contributions(
        ids=found[id_name].combine_chunks(),
        outputs=found[named[0]].combine_chunks() if several else _repeat(quantity, found.num_rows),
        quantity=quantity,
        base=_floats(found[base_name].combine_chunks()),
        total=_floats(found[quantity].combine_chunks()),
        offsets=offsets,
        features=structs.field(feature_name).cast(pa.string()).take(taken),
        values=values.take(taken),
        amounts=amounts[order],
        outputs_per_row=outputs_per_row,
    )


def check_additivity(contributions: Contributions) -> float:
    """Return the largest absolute difference between what the parts add up to and the quantity; 0 without rows."""
    return float(np.max(np.abs(contributions.add_up() - contributions.total), initial=0.0))


def read_predictions(
    model: Model, table: pa.Table, quantity: str, outputs_per_row: int = 1
) -> NDArray[np.float64] | None:
    """Return what `Model.predict` says of an explained quantity, in the order of the explanations.

    A quantity `log_x` is the logarithm of the answer `x`; `log_odds` are of the answer `probability`, and that is
    returned; several outputs a row stand in one list of numbers, such as a fingerprint. Otherwise the answer has the
    quantity's own name.

    Args:
        model: The model.
        table: Prepared rows.
        quantity: As in `Contributions`.
        outputs_per_row: As in `Contributions`.

    Returns:
        float64 (explanations,), None where the answers have no such column.
    """
    answers = model.predict(table)
    if outputs_per_row > 1:
        for column in answers.columns:
            if pa.types.is_fixed_size_list(column.type) and column.type.list_size == outputs_per_row:
                return _floats(column.combine_chunks().flatten())
        return None
    if quantity == LOG_ODDS:
        name = "probability"
    elif quantity in answers.column_names:
        name = quantity
    else:
        name = quantity.removeprefix(_LOG)
    if name not in answers.column_names or not _is_number(answers.schema.field(name).type):
        return None
    values = _floats(answers[name].combine_chunks())
    return np.log(values) if name != quantity and quantity != LOG_ODDS else values


def compare_with_predictions(model: Model, table: pa.Table, contributions: Contributions) -> float | None:
    """Return the largest absolute difference between what the parts add up to and what `Model.predict` says.

    In units of the quantity; of log odds in probability, which is what float32 answers still tell near 0 and 1.

    Returns:
        The difference, None where the answers have no column of the quantity.
    """
    predicted = read_predictions(model, table, contributions.quantity, contributions.outputs_per_row)
    if predicted is None:
        return None
    return float(np.max(np.abs(_answer_scale(contributions) - predicted), initial=0.0))


def _answer_scale(contributions: Contributions) -> NDArray[np.float64]:
    """Return what the parts add up to as `read_predictions` gives it."""
    from scipy.special import expit

    sums = contributions.add_up()
    return np.asarray(expit(sums), dtype=np.float64) if contributions.quantity == LOG_ODDS else sums


def summarize_contributions(contributions: Contributions) -> tuple[FeatureSummary, ...]:
    """Return what every feature brings over all rows, the strongest first; equal ones by name."""
    if not len(contributions.amounts):
        return ()
    encoded = contributions.features.dictionary_encode()
    codes = np.asarray(encoded.indices.to_numpy(zero_copy_only=False), dtype=np.int64)
    names = encoded.dictionary.to_pylist()
    owners = contributions.owners()
    sizes = np.abs(contributions.amounts)
    sums = np.bincount(codes, sizes, minlength=len(names)) / contributions.rows
    brings = sizes > 0
    keys = np.unique(codes[brings] * contributions.rows + owners[brings] // contributions.outputs_per_row)
    counts = np.bincount(keys // contributions.rows, minlength=len(names))
    # The outputs of every row are the same ones in the same order.
    width = contributions.outputs_per_row
    by_output = np.bincount(codes * width + owners % width, sizes, minlength=len(names) * width).reshape(-1, width)
    largest = by_output.argmax(axis=1)
    outputs = contributions.outputs[:width].to_pylist()
    found = [
        FeatureSummary(name, float(sums[code]), int(counts[code]), outputs[largest[code]])
        for code, name in enumerate(names)
    ]
    return tuple(sorted(found, key=lambda one: (-one.mean_absolute, one.feature)))


def compare_rankings(first: Mapping[str, float], second: Mapping[str, float]) -> float | None:
    """Return Spearman's rank correlation of two importances over the features that both have.

    Returns:
        From -1 to 1; None with fewer than three features in common, or where one of them is the same for all.

    >>> compare_rankings({"a": 3.0, "b": 2.0, "c": 1.0}, {"a": 0.9, "b": 0.2, "c": 0.1, "d": 5.0})
    1.0
    """
    from scipy.stats import rankdata

    common = sorted(set(first) & set(second))
    ranks = [rankdata([values[name] for name in common]) for values in (first, second)]
    if len(common) < 3 or any(np.ptp(rank) == 0 for rank in ranks):
        return None
    return float(np.round(np.corrcoef(ranks[0], ranks[1])[0, 1], 12))


def measure_contributions(
    model: Model,
    table: pa.Table,
    rows: RowScores,
    plan: ExplanationPlan,
    seed: int = 0,
    progress: ProgressCallback = ignore_progress,
) -> Evaluation:
    """Explain held-out rows: whether the parts add up, what the model goes by, and a few rows as cards.

    Args:
        model: A fitted model that scores its rows one by one.
        table: Prepared held-out rows.
        rows: What `model.score_rows(table)` gave; rows are shown by its first metric.
        plan: How many rows, drawn at random as for the importance, and how many are shown; 0 rows explain nothing.
        seed: Of the drawn rows.
        progress: Called with the phase `explaining`.

    Returns:
        `additivity_error` with the slice `all`: the larger of `check_additivity` and `compare_with_predictions`; bars
        of mean absolute contributions; and cards from the best row to the worst.
    """
    if not plan.rows:
        return Evaluation(())
    id_column = find_id_column(model, table, rows.ids)
    sample = draw_rows(table, id_column, rows.ids, plan.rows, seed)
    if not sample.num_rows:
        return Evaluation(_measure_nothing("no held-out row with a truth"))
    progress(_PHASE, 0, sample.num_rows)
    try:
        found = read_contributions(model, sample)
    except ModelError as error:
        # A model of somebody else's may explain in another shape; that is not what the evaluation is about.
        return Evaluation(_measure_nothing(f"{error.where}: {error.seen}", sample.num_rows))
    progress(_PHASE, sample.num_rows, sample.num_rows)
    sections = [draw_summary(found)]
    if id_column is not None and plan.shown:
        ids = sample[id_column].cast(pa.string()).to_pylist()
        sections.append(_draw_cards(found, rows, _choose_rows(ids, rows, plan.shown)))
    return Evaluation((_measure_additivity(model, sample, found),), tuple(sections))


def _measure_nothing(note: str, count: int = 0) -> tuple[Measurement, ...]:
    return (Measurement(METRIC, None, count=count, note=note, about="explanations"),)


def _measure_additivity(model: Model, table: pa.Table, found: Contributions) -> Measurement:
    error, note = check_additivity(found), f"largest difference in {found.quantity}, over every part of every row"
    predicted = read_predictions(model, table, found.quantity, found.outputs_per_row)
    differences = np.abs(found.add_up() - found.total)
    if predicted is not None:
        beside = np.abs(_answer_scale(found) - predicted)
        error = max(error, float(np.max(beside, initial=0.0)))
        differences = np.maximum(differences, beside)
        note += ", and beside the answers"
    off = int(np.count_nonzero(~(differences <= _EQUAL)))
    if off:
        note += f"; {off:,} of {len(found):,} differ by more than {_EQUAL:g}: those answers are not the sum alone"
    return Measurement(METRIC, error, count=found.rows, note=note, about="explanations")


def draw_summary(found: Contributions, most: int = _BARS) -> Section:
    """Draw mean absolute contributions as bars.

    Args:
        found: Contributions.
        most: Number of bars.
    """
    summary = summarize_contributions(found)
    largest = [one for one in summary if one.mean_absolute][:most]
    several = found.outputs_per_row > 1
    # Of a column that every row has, the number of rows would say nothing.
    everywhere = all(one.count == found.rows for one in largest[:1])
    groups: dict[str, list[dict[str, Any]]] = {}
    for one in largest:
        bar = {"label": one.feature, "value": one.mean_absolute, **({} if everywhere else {"count": one.count})}
        groups.setdefault(one.output if several else "", []).append(bar)
    summed = f", summed over the {found.outputs_per_row} outputs of a row" if several else ""
    text = (
        f"Mean absolute contribution to {found.quantity}{summed}, over {found.rows:,} held-out rows; a row without the "
        f"feature counts as 0. {_describe_unit(found.quantity)}It says what the model goes by, not what causes what."
    )
    if several:
        text += " Each stands under the output that it brings most to."
    if len(summary) > len(largest):
        rest = (
            f"The {len(largest)} largest of {len(summary):,} are drawn"
            if len(largest) == most
            else "Others bring nothing"
        )
        text += f" {rest}."
    data: dict[str, Any] = {"groups": [{"name": name, "bars": bars} for name, bars in groups.items()]}
    if several:
        data["unit"] = "share"
    return Section("bars" if groups else "text", "What the model goes by", text, data if groups else {})


def _describe_unit(quantity: str) -> str:
    if quantity == LOG_ODDS:
        return "0.1 changes the odds by about 10 %. "
    return f"0.1 changes the {_plain(quantity)} by about 10 %. " if quantity.startswith(_LOG) else ""


def _draw_cards(found: Contributions, rows: RowScores, chosen: Sequence[tuple[str, int, int]]) -> Section:
    """Draw rows as cards: what they stand for, their positions among the contributions and among the scores."""
    metric = rows.metrics[0]
    cards = []
    for label, row, at in chosen:
        chips = _say_answer(rows, at)
        cards.append(
            {
                "title": str(found.ids[row * found.outputs_per_row].as_py()),
                "subtitle": f"{label}: {metric.name} {_write(float(metric.values[at]))}",
                "chips": chips,
                "blocks": _draw_blocks(found, row),
            }
        )
    text = f"From the best to the worst by {metric.name}. The base is what holds before anything is known of a row."
    return Section("cards", "How single answers came about", text, {"cards": cards})


def _say_answer(rows: RowScores, at: int) -> list[str]:
    """Say what a row got and what is true; nothing of recommendations, which are no single value."""
    answer = rows.answers[at].as_py()
    if answer is None or isinstance(answer, list):
        return []
    said = [f"answer {_write(answer)}"]
    if rows.probability is not None:
        said.append(f"probability {_write(float(rows.probability[at]))}")
    if rows.truth is None or not math.isfinite(rows.truth[at]):
        return said
    true = float(rows.truth[at])
    if rows.task == "classification":
        return [*said, "truly the positive class" if true > 0 else "truly the other class"]
    return [*said, f"true {_write(true)}"]


def _choose_rows(ids: Sequence[str], rows: RowScores, shown: int) -> list[tuple[str, int, int]]:
    """Return rows from the best to the worst by the first metric: name of the place, position in ids and in scores."""
    metric = rows.metrics[0]
    places = {name: place for place, name in enumerate(rows.ids.to_pylist())}
    found = [(row, places[name]) for row, name in enumerate(ids) if math.isfinite(metric.values[places[name]])]
    sign = 1.0 if metric.better == "lower" else -1.0
    found.sort(key=lambda pair: (sign * metric.values[pair[1]], ids[pair[0]]))
    if not found:
        return []
    alike = len({float(metric.values[at]) for _, at in found}) == 1
    picked: dict[int, str] = {}
    for spot in [0.5] if shown == 1 else np.linspace(0.0, 1.0, shown).tolist():
        picked.setdefault(round(spot * (len(found) - 1)), "Typical" if alike else _name_spot(spot))
    return [(label, *found[position]) for position, label in picked.items()]


def _name_spot(spot: float) -> str:
    named = {0.0: "Best", 0.5: "Typical", 1.0: "Worst"}
    return named.get(spot, f"Better than {1.0 - spot:.0%}")


def _draw_blocks(found: Contributions, row: int) -> list[dict[str, Any]]:
    quantity, several = found.quantity, found.outputs_per_row > 1
    blocks = []
    for one in choose_outputs(found.of_row(row), quantity):
        parts = [part for part in one["contributions"] if part["contribution"]]
        largest = abs(parts[0]["contribution"]) if parts else 1.0
        large = [part for part in parts if abs(part["contribution"]) >= _SMALL * largest][:_PARTS_SHOWN]
        rest = sum(part["contribution"] for part in parts[len(large) :])
        entries = [(_BASE, one["base"], describe(quantity, one["base"]))]
        entries += [(name_part(part), part["contribution"], "") for part in large]
        if parts[len(large) :]:
            count = len(parts) - len(large)
            entries.append((f"{count} other {'feature' if count == 1 else 'features'}", rest, ""))
        entries.append((quantity, one[quantity], describe(quantity, one[quantity])))
        # Three digits of the largest part, so that none is written as a power of ten.
        decimals = 2 - math.floor(math.log10(largest))
        items = [
            {
                "text": text,
                "value": round(value, decimals) + 0.0,
                "note": note if number in (0, len(entries) - 1) else describe_factor(quantity, value),
            }
            for number, (text, value, note) in enumerate(entries)
        ]
        heading = str(one["output"]) if several else f"What adds up to {quantity}"
        blocks.append({"heading": heading, "items": items, **({"unit": "share"} if several else {})})
    return blocks


def choose_outputs(explained: Sequence[dict[str, Any]], quantity: str) -> list[dict[str, Any]]:
    """Return the outputs of a row that are worth showing: at most three, the largest and those above the mean.

    Args:
        explained: What `Contributions.of_row` gave.
        quantity: Its quantity.
    """
    mean = sum(one[quantity] for one in explained) / max(1, len(explained))
    return [one for place, one in enumerate(explained[:_OUTPUTS_SHOWN]) if place == 0 or one[quantity] > mean]


def name_part(part: Mapping[str, Any]) -> str:
    """Name a feature with its value."""
    return str(part["feature"]) if part["value"] is None else f"{part['feature']} = {part['value']}"


def describe(quantity: str, value: float) -> str:
    """Say what a quantity on a logarithmic scale is in plain units; nothing for another.

    >>> describe("log_price", 9.21034), describe("log_odds", 0.0), describe("share", 0.5)
    ('price 10,000', 'probability 0.5', '')
    """
    if quantity == LOG_ODDS:
        probability = 1.0 / (1.0 + math.exp(-value)) if value >= 0 else math.exp(value) / (1.0 + math.exp(value))
        return f"probability {probability:.3g}"
    return f"{_plain(quantity)} {_write(math.exp(value))}" if quantity.startswith(_LOG) else ""


def describe_factor(quantity: str, amount: float) -> str:
    """Say what a contribution on a logarithmic scale multiplies by; nothing for another."""
    return f"times {math.exp(amount):.3g}" if quantity.startswith(_LOG) else ""


def _plain(quantity: str) -> str:
    return quantity.removeprefix(_LOG).replace("_", " ")


def _write(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return str(value)


def pick_rows(model: Model, table: pa.Table, wanted: Collection[str]) -> pa.Table:
    """Return the rows with these ids, in the table's order; all of them if none is named.

    Args:
        model: Its explanation says which column holds the ids.
        table: Prepared rows.
        wanted: Ids.

    Raises:
        DataError: An id is not among the rows; the message names those that are written alike.
    """
    if not wanted:
        return table
    column = name_id_column(model, table)
    texts = table[column].cast(pa.string()) if column is not None else _count_rows(table.num_rows)
    known = set(texts.to_pylist())
    for name in wanted:
        if name not in known:
            near = get_close_matches(name, [text for text in known if text is not None], n=3, cutoff=0.5)
            raise DataError(
                f"row {name}",
                f"not among the {table.num_rows:,} prepared rows" + (f", by column {column}" if column else ""),
                "an id of the table is needed",
                f"write {' or '.join(near)}" if near else f"take one such as {_name_some(texts)}",
            )
    return table.filter(pc.is_in(texts, value_set=pa.array(sorted(wanted), pa.string()))).combine_chunks()


def name_id_column(model: Model, table: pa.Table) -> str | None:
    """Return the column of ids: declared as one, or that of the explanation; None where rows have no ids."""
    declared = [
        column.name for column in type(model).columns if column.kind == "id" and column.name in table.column_names
    ]
    if declared:
        return declared[0]
    found = model.explain(table.slice(0, 1))
    named = [field.name for field in found.schema if pa.types.is_string(field.type)]
    return next((name for name in named if name in table.column_names), None)


def _count_rows(rows: int) -> pa.Array:
    return pa.array([str(number + 1) for number in range(rows)], pa.string())


def _name_some(texts: pa.Array | pa.ChunkedArray) -> str:
    return ", ".join(str(text) for text in texts.slice(0, 3).to_pylist()) or "none: the table is empty"


def _find_parts(model: Model, found: pa.Table) -> tuple[str, str]:
    """Return the column of the parts, and their field that names the feature."""
    for field in found.schema:
        kind = field.type
        if pa.types.is_list(kind) and pa.types.is_struct(kind.value_type):
            names = [inner.name for inner in kind.value_type]
            texts = [
                inner.name for inner in kind.value_type if pa.types.is_string(inner.type) and inner.name != "value"
            ]
            if _PARTS in names and texts:
                return field.name, texts[0]
    raise _refuse_shape(model, found, f"a list of (feature, {_PARTS})")


def _find_quantity(model: Model, found: pa.Table) -> tuple[str, str]:
    """Return the column of what adds up, and that of its base."""
    numbers = [field.name for field in found.schema if pa.types.is_floating(field.type)]
    pairs = [(name, f"{_BASE}_{name}") for name in numbers if f"{_BASE}_{name}" in numbers]
    # A price and its logarithm may both stand there, and only logarithms add up.
    pairs.sort(key=lambda pair: not pair[0].startswith(_LOG))
    if pairs:
        return pairs[0]
    others = [name for name in numbers if name != _BASE]
    if _BASE in numbers and len(others) == 1:
        return others[0], _BASE
    raise _refuse_shape(model, found, f"numbers `{_BASE}_<quantity>` and `<quantity>`, or `{_BASE}` and one other")


def _refuse_shape(model: Model, found: pa.Table, needed: str) -> ModelError:
    return ModelError(
        f"{type(model).__name__}.explain",
        f"columns {', '.join(found.column_names)}",
        f"{needed} is needed",
        "return contributions in the shape that mlflywheel.evaluation.contributions describes",
    )


def _floats(values: pa.Array) -> NDArray[np.float64]:
    return np.asarray(values.cast(pa.float64()).fill_null(np.nan).to_numpy(zero_copy_only=False), dtype=np.float64)


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_floating(kind) or pa.types.is_integer(kind))


def _repeat(text: str, rows: int) -> pa.Array:
    return pa.array([text] * rows, pa.string())
