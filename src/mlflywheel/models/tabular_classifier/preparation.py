"""From a table of any columns to an id, a target of ones and zeros, features, and attributes that no model sees."""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from difflib import get_close_matches
from typing import Any, Literal, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import Field, field_validator, model_validator

from mlflywheel.data.ingestion import infer_column
from mlflywheel.errors import DataError
from mlflywheel.events import ProgressCallback, ignore_progress
from mlflywheel.models.contract import Column, Settings

ROW_ID, TARGET = "row_id", "target"
#: Names that prepared tables and answers use themselves.
RESERVED = (ROW_ID, TARGET, "probability")
COLUMNS = (
    Column(
        ROW_ID,
        "id",
        description="the row; made from its content if there is none",
        aliases=("id", "application_id"),
    ),
)
METADATA = b"mlflywheel.tabular_classifier"
_VALUES_KEPT = 20

Kind = Literal["number", "category"]


class PrepareConfig(Settings):
    """What the columns of a table mean. The defaults are those of the credit sample."""

    target: str = Field("decision", min_length=1, description="the column that is predicted")
    positive: str | float | None = Field(
        None,
        description="the value whose probability is predicted; of two values the last in sorted order, if left out",
    )
    id: str | None = Field(None, description="the column that names a row; row_id, id or application_id if left out")
    features: tuple[str, ...] = Field(
        (), description="columns to predict from; all but the target, the id and not_features, if left out"
    )
    not_features: tuple[str, ...] = Field(
        ("sex", "age"), description="columns that are kept for slices and groups, and that no model sees"
    )
    numeric: tuple[str, ...] = Field((), description="columns of numbers, whatever their values look like")
    categorical: tuple[str, ...] = Field((), description="columns of categories, though their values look like numbers")

    @field_validator("positive", mode="before")
    @classmethod
    def _name_truth(cls, value: Any) -> Any:
        # As tables have them: a truth value is a text.
        return str(value) if isinstance(value, bool) else value

    @model_validator(mode="after")
    def _check_names(self) -> Self:
        for one, other in (("numeric", "categorical"), ("features", "not_features")):
            both = sorted(set(getattr(self, one)) & set(getattr(self, other)))
            if both and other in self.model_fields_set:
                raise ValueError(f"{', '.join(both)} is in {one} and in {other}")
        for name in ("features", "not_features"):
            taken = [one for one in getattr(self, name) if one in (self.target, self.id)]
            if taken:
                raise ValueError(f"{name}: {', '.join(taken)} is the target or the id")
        return self


@dataclass(frozen=True)
class Facts:
    """What preparing found: the model keeps it, since a fitted model sees prepared rows alone.

    It travels in the schema metadata of the prepared table, which Parquet, splitting and filtering keep.

    Args:
        target: Name of the target's column; empty where the table had none.
        positive: Text of the positive class; empty where none was given or found.
        negative: Text of the other class, `not X` where several values are not the positive one.
        values: Rows by value of the target, the most frequent ones.
        kinds: Features, in order, with the kind of each.
        attributes: Columns that are kept, and that no model sees.
        columns: Columns of the raw table.
        rows: Number of rows.
        without_target: Rows without a value of the target.
        repeated: Rows that are equal to an earlier one in every column but id and target.
        unreadable: Cells of `numeric` columns that are no numbers, by column; they are missing.
    """

    target: str = ""
    positive: str = ""
    negative: str = ""
    values: Mapping[str, int] = field(default_factory=dict)
    kinds: Mapping[str, Kind] = field(default_factory=dict)
    attributes: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    rows: int = 0
    without_target: int = 0
    repeated: int = 0
    unreadable: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def read(cls, table: pa.Table) -> "Facts | None":
        """Return the facts of a prepared table; None where its metadata got lost."""
        text = (table.schema.metadata or {}).get(METADATA)
        if text is None:
            return None
        values = json.loads(text)
        # Pairs, because an object's order is not everybody's to keep.
        values["kinds"] = dict(values["kinds"])
        return cls(**{**values, "attributes": tuple(values["attributes"]), "columns": tuple(values["columns"])})

    def attach(self, table: pa.Table) -> pa.Table:
        """Return the table with these facts in its schema metadata."""
        values = {**asdict(self), "kinds": list(self.kinds.items())}
        text = json.dumps(values, sort_keys=True).encode()
        return table.replace_schema_metadata({**(table.schema.metadata or {}), METADATA: text})


def prepare_rows(raw: pa.Table, config: PrepareConfig, progress: ProgressCallback = ignore_progress) -> pa.Table:
    """Name and type columns; the order of the rows stays, and none is dropped.

    Numbers are features as they are; texts are categories, trimmed, and a blank one is missing. A column of texts that
    are all numbers is one of numbers, unless `categorical` names it.

    A table without the target is one to score: names in the configuration that it lacks are then no error.

    Args:
        raw: One row an entity; columns of numbers, texts or booleans.
        config: What the columns mean.
        progress: Called with the phase `rows`.

    Returns:
        `row_id` string; `target` float64, 1 for the positive class, 0 for another, null where it is missing; features,
        float64 or string; attributes, the same. Schema metadata holds `Facts`.

    Raises:
        DataError: A column that the configuration names is not there, a column has a name that prepared tables use, the
            target has more than two values and no `positive`, or no feature is left.

    >>> raw = pa.table({"amount": [5.0, 9.0], "age": [20.0, 60.0], "decision": ["bad", "good"]})
    >>> prepared = prepare_rows(raw, PrepareConfig())
    >>> prepared.select(["target", "amount", "age"]).to_pylist()[1]
    {'target': 1.0, 'amount': 9.0, 'age': 60.0}
    >>> Facts.read(prepared).kinds, Facts.read(prepared).attributes
    ({'amount': 'number'}, ('age',))
    """
    progress("rows", 0, 3)
    named = [name for name in (config.id, ROW_ID, *COLUMNS[0].aliases) if name in raw.column_names]
    id_column = config.id or next(iter(named), None)
    _check_columns(raw, config)
    own = [name for name in raw.column_names if name not in (config.target, id_column)]
    for name in own:
        if name in RESERVED:
            raise DataError(
                f"column {name}",
                "a feature of this name",
                f"{', '.join(RESERVED)} are names of the prepared table and of answers",
                "rename the column in the file",
            )
    columns = {name: _clean(raw[name], name, config) for name in own}
    progress("rows", 1, 3)
    hidden = set(config.not_features) - set(config.features)
    features = [name for name in own if name not in hidden and (not config.features or name in config.features)]
    if not features:
        raise DataError(
            "features",
            f"none of the columns {', '.join(raw.column_names)} is one",
            "at least one column beside the target, the id and not_features is needed",
            "check the settings features and not_features, and the file's columns",
        )
    attributes = [name for name in own if name not in features]
    keys = _hash_rows({name: columns[name] for name in sorted(own)}, raw.num_rows)
    ids, repeated = _number_repeated(keys)
    made = pa.array(ids, pa.string())
    if id_column is not None and id_column in raw.column_names:
        given = _to_texts(raw[id_column])
        made = pc.coalesce(given, made)
    progress("rows", 2, 3)
    target, positive, negative, values = _read_target(raw, config)
    kinds: dict[str, Kind] = {
        name: "number" if pa.types.is_floating(columns[name].type) else "category" for name in features
    }
    unreadable = {
        name: count
        for name in config.numeric
        if name in columns and (count := _count_unreadable(raw[name], columns[name]))
    }
    facts = Facts(
        target=config.target if config.target in raw.column_names else "",
        positive=positive,
        negative=negative,
        values=values,
        kinds=kinds,
        attributes=tuple(attributes),
        columns=tuple(raw.column_names),
        rows=raw.num_rows,
        without_target=target.null_count,
        repeated=repeated,
        unreadable={name: count for name, count in unreadable.items() if count},
    )
    progress("rows", 3, 3)
    return facts.attach(
        pa.table({ROW_ID: made, TARGET: target} | {name: columns[name] for name in (*features, *attributes)})
    )


def suggest(name: str, known: Sequence[str], otherwise: str) -> str:
    """Return a fix: the known name that is spelled most alike, or another one.

    >>> suggest("amuont", ["amount", "age"], "correct it")
    'write amount'
    """
    near = get_close_matches(name, known, n=1)
    return f"write {near[0]}" if near else otherwise


def write_number(value: float) -> str:
    """Write a number as a category's text or a driver's value: whole numbers without a point.

    >>> write_number(2.0), write_number(0.1)
    ('2', '0.1')
    """
    number = float(value)
    return str(int(number)) if number.is_integer() and abs(number) < 1e15 else repr(number)


def parse_number(text: str | None) -> float:
    """Return the number that a text is, NaN where it is none.

    >>> parse_number(" 1e3 "), parse_number("?"), parse_number("inf")
    (1000.0, nan, nan)
    """
    try:
        number = math.nan if text is None or "_" in text else float(text)
    except ValueError:
        return math.nan
    return number if math.isfinite(number) else math.nan


def read_column(table: pa.Table, name: str) -> pa.Array | None:
    """Return a column as one array, without a dictionary; None where the table lacks it."""
    position = table.schema.get_field_index(name)
    if position < 0:
        return None
    chunked = table.column(position)
    if pa.types.is_dictionary(chunked.type):
        chunked = chunked.cast(chunked.type.value_type)
    return chunked.chunk(0) if chunked.num_chunks == 1 else chunked.combine_chunks()


def read_texts(values: pa.Array) -> pa.Array:
    """Return categories as trimmed texts; a blank one is null. Numbers are written by `write_number`."""
    if pa.types.is_null(values.type):
        return pa.nulls(len(values), pa.string())
    encoded = values.dictionary_encode()
    texts: list[str | None] = []
    for value in encoded.dictionary.to_pylist():
        if isinstance(value, float | int) and not isinstance(value, bool):
            texts.append(write_number(value) if math.isfinite(value) else None)
        else:
            texts.append((value if isinstance(value, str) else str(value)).strip() or None)
    return pc.take(pa.array(texts, pa.string()), encoded.indices)


def read_numbers(values: pa.Array) -> NDArray[np.float64]:
    """Return numbers with NaN for what is missing, infinite, or a text that is no number."""
    if is_text(values.type):
        return np.array([parse_number(text) for text in values.to_pylist()], dtype=np.float64)
    numbers = np.array(values.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False), dtype=np.float64)
    numbers[~np.isfinite(numbers)] = np.nan
    return numbers


def is_text(kind: pa.DataType) -> bool:
    """Return whether a type is one of texts."""
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _check_columns(raw: pa.Table, config: PrepareConfig) -> None:
    if config.target not in raw.column_names:
        return
    asked = [("id", config.id)] if config.id else []
    asked += [(part, name) for part in ("features", "numeric", "categorical") for name in getattr(config, part)]
    if "not_features" in config.model_fields_set:
        asked += [("not_features", name) for name in config.not_features]
    for part, name in asked:
        if name not in raw.column_names:
            raise DataError(
                f"setting {part}",
                f"{name} is no column of the table",
                f"it has {', '.join(raw.column_names)}",
                suggest(str(name), raw.column_names, "correct the name, or take it out"),
            )


def _clean(values: pa.ChunkedArray, name: str, config: PrepareConfig) -> pa.Array:
    """Return a column as float64 or string."""
    kind = values.type.value_type if pa.types.is_dictionary(values.type) else values.type
    plain = is_text(kind) or pa.types.is_boolean(kind) or pa.types.is_null(kind)
    if not (plain or pa.types.is_integer(kind) or pa.types.is_floating(kind)):
        if not (pa.types.is_temporal(kind) or pa.types.is_decimal(kind)):
            raise DataError(
                f"column {name}",
                f"type {kind}",
                "numbers or texts are needed",
                "convert or drop the column in the file",
            )
        values, kind = values.cast(pa.string()), pa.string()
    if name in config.numeric:
        numbers = read_numbers(_join(values))
        return pa.array(numbers, pa.float64(), mask=np.isnan(numbers))
    if name not in config.categorical:
        if is_text(kind):
            values = infer_column(values.cast(pa.string()))
            kind = values.type
        if pa.types.is_integer(kind) or pa.types.is_floating(kind):
            numbers = read_numbers(_join(values))
            return pa.array(numbers, pa.float64(), mask=np.isnan(numbers))
    return _to_texts(values)


def _join(values: pa.ChunkedArray) -> pa.Array:
    if pa.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    return values.combine_chunks()


def _to_texts(values: pa.ChunkedArray) -> pa.Array:
    return read_texts(_join(values))


def _count_unreadable(raw: pa.ChunkedArray, numbers: pa.Array) -> int:
    blank = _to_texts(raw).null_count
    return int(numbers.null_count - blank)


def _hash_rows(columns: Mapping[str, pa.Array], rows: int) -> list[str]:
    """Return a key for each row's content: equal rows have equal keys, whatever the order of the columns."""
    # A byte that text does not hold keeps a missing value from meeting an empty one.
    texts = [pc.fill_null(read_texts(values), "\x00").to_pylist() for values in columns.values()]
    if not texts:
        return [""] * rows
    names = hashlib.blake2b("\x1f".join(columns).encode()).digest()
    return [
        hashlib.blake2b("\x1f".join(row).encode(), key=names, digest_size=10).hexdigest()
        for row in zip(*texts, strict=True)
    ]


def _number_repeated(keys: Sequence[str]) -> tuple[list[str], int]:
    """Return keys that differ, the second of two equal ones with `-2` behind it, and how many got such a number."""
    seen: dict[str, int] = {}
    numbered = []
    for key in keys:
        seen[key] = seen.get(key, 0) + 1
        numbered.append(key if seen[key] == 1 else f"{key}-{seen[key]}")
    return numbered, len(keys) - len(seen)


def _read_target(raw: pa.Table, config: PrepareConfig) -> tuple[pa.Array, str, str, dict[str, int]]:
    """Return ones, zeros and nulls; the texts of both classes; and the rows by value, the most frequent ones."""
    if config.target not in raw.column_names:
        return pa.nulls(raw.num_rows, pa.float64()), "", "", {}
    texts = _to_texts(raw[config.target])
    counted = sorted(
        ((item["values"], item["counts"]) for item in pc.value_counts(texts).to_pylist() if item["values"] is not None),
        key=lambda item: (-item[1], item[0]),
    )
    values = [text for text, _ in counted]
    kept = dict(counted[:_VALUES_KEPT])
    if config.positive is not None:
        positive = read_texts(pa.array([config.positive]))[0].as_py() or ""
    elif len(values) == 2:
        positive = max(values, key=lambda text: (_rank(text), text))
    elif len(values) > 2:
        shown = ", ".join(values[:5]) + (", ..." if len(values) > 5 else "")
        raise DataError(
            f"target column {config.target}",
            f"{len(values)} values ({shown})",
            "two classes are needed, or the one whose probability is predicted",
            f"add --prepare positive={values[0]}, or name another column with --prepare target=",
        )
    else:
        return pa.nulls(raw.num_rows, pa.float64()), "", "", kept
    others = [text for text in values if text != positive]
    negative = others[0] if len(others) == 1 else f"not {positive}"
    return pc.equal(texts, positive).cast(pa.float64()), positive, negative, kept


def _rank(text: str) -> float:
    """Return what orders two values: of two numbers the larger is the last."""
    number = parse_number(text)
    return -math.inf if math.isnan(number) else number
