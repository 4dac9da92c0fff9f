"""How two versions' answers to the same requests differ, for any model: only columns and JSON values are looked at.

Values are equal if they are after casting to the declared type: over JSON a float32 arrives as its shortest decimal.
How far apart two values are is a number from 0 (equal) to 1:

| values             | distance                                                                       |
| ------------------ | ------------------------------------------------------------------------------ |
| number             | abs(a - b) / max(abs(a), abs(b)), at most 1                                    |
| vector             | Euclidean norm of a - b over the sum of both norms; 1 for different lengths     |
| list               | 1 - overlap; at least 0.01 if only the order or the items' values differ       |
| object             | mean over the fields of both                                                   |
| anything else      | 1                                                                              |

The overlap of two lists is the number of items that both have, over the length of the longer one. An item that is an
object is known by its texts and whole numbers (a name, an id), not by its scores.
"""

import heapq
import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from mlflywheel.data.validation.masking import mask_identifier
from mlflywheel.rollouts.rehearsal_requests import Protocol

Kind = Literal["number", "vector", "list", "text", "object", "none"]
Row = Mapping[str, Any]

#: Answers differ clearly beyond this distance: not only in rounding, or in the order of a list.
CLEAR_DISTANCE = 0.01
_LEAST_LIST_DISTANCE = 0.01
_QUANTILES = (0.5, 0.9, 0.99)
_SHORT_FLOATS = frozenset({"FP16", "FP32"})


@dataclass(frozen=True)
class Column:
    """What both versions declare about a column of their answers, by V2 model metadata.

    Args:
        datatypes: V2 datatypes of the stable version and of the candidate; empty where one has no such column.
        is_vector: Whether an element is a list of numbers of fixed length.
    """

    datatypes: tuple[str, str] = ("", "")
    is_vector: bool = False

    @property
    def is_short(self) -> bool:
        """Whether values are compared as float32."""
        return bool(_SHORT_FLOATS & set(self.datatypes))


_UNDECLARED = Column()


def read_columns(stable: Mapping[str, Any], candidate: Mapping[str, Any]) -> dict[str, Column]:
    """Read what both versions declare, from V2 model metadata.

    >>> output = {"name": "score", "datatype": "FP32", "shape": [-1]}
    >>> read_columns({"outputs": [output]}, {"outputs": [{**output, "datatype": "FP64"}]})
    {'score': Column(datatypes=('FP32', 'FP64'), is_vector=False)}
    """
    declared: list[dict[str, Mapping[str, Any]]] = [
        {str(output["name"]): output for output in metadata.get("outputs", ())} for metadata in (stable, candidate)
    ]
    columns = {}
    for name in dict.fromkeys((*declared[0], *declared[1])):
        outputs = [found.get(name, {}) for found in declared]
        first, second = (str(output.get("datatype", "")) for output in outputs)
        is_vector = any(
            len(output.get("shape", ())) > 1 and output.get("datatype") not in ("BYTES", "BOOL") for output in outputs
        )
        columns[name] = Column((first, second), is_vector)
    return columns


def read_rows(body: bytes, protocol: Protocol) -> list[Row]:
    """Read an answer: one mapping of values by column for each instance.

    Raises:
        ValueError: It is no answer of the protocol.

    >>> read_rows(b'{"outputs": [{"name": "x", "datatype": "FP32", "shape": [2, 2], "data": [1, 2, 3, 4]}]}', "v2")
    [{'x': [1, 2]}, {'x': [3, 4]}]
    """
    answer = json.loads(body)
    key = "predictions" if protocol == "v1" else "outputs"
    items = answer.get(key) if isinstance(answer, dict) else None
    if not isinstance(items, list):
        raise ValueError(f"no list `{key}`")
    if protocol == "v1":
        return [item if isinstance(item, dict) else {"prediction": item} for item in items]
    columns = {str(item["name"]): _read_tensor(item) for item in items if isinstance(item, dict) and "name" in item}
    lengths = {len(values) for values in columns.values()}
    if len(columns) != len(items) or len(lengths) > 1:
        raise ValueError("outputs of different lengths or without a name")
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _read_tensor(item: Mapping[str, Any]) -> list[Any]:
    data, shape = item.get("data"), item.get("shape")
    if not isinstance(data, list) or not isinstance(shape, list) or not shape:
        raise ValueError(f"output {item['name']} without data or shape")
    rows = int(shape[0])
    values = data
    if len(shape) > 1 and len(data) == math.prod(shape) and rows:
        size = len(data) // rows
        values = [data[row * size : (row + 1) * size] for row in range(rows)]
    if len(values) != rows:
        raise ValueError(f"output {item['name']}: {len(values)} elements for shape {shape}")
    return [_open_json(value) for value in values]


def _open_json(value: Any) -> Any:
    """Return a list or an object that stands as JSON in a text; anything else as it is."""
    if isinstance(value, str) and value[:1] in ("[", "{"):
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value


@dataclass(frozen=True)
class Comparison:
    """Two values of one column.

    Args:
        distance: From 0 for equal to 1.
        kind: What they are.
        gap: Largest absolute difference of their numbers; None without any that belong together.
        overlap: Of two lists, from 0 to 1; None for anything else.
    """

    distance: float
    kind: Kind
    gap: float | None = None
    overlap: float | None = None


def compare(stable: Any, candidate: Any, column: Column = _UNDECLARED) -> Comparison:
    """Compare two JSON values.

    >>> compare(0.1, 0.10000000149011612, Column(("FP32", "FP64"))).distance
    0.0
    >>> near = [{"id": "a", "score": 0.9}, {"id": "b", "score": 0.5}]
    >>> compare(near, [{"id": "a", "score": 0.8}, {"id": "c", "score": 0.4}]).overlap
    0.5
    """
    kind = _find_kind(stable, candidate, column)
    if kind == "number":
        return _compare_numbers(stable, candidate, column)
    if kind == "vector":
        return _compare_vectors(stable, candidate, column)
    if kind == "list":
        return _compare_lists(stable, candidate)
    if kind == "object":
        names = {**stable, **candidate}
        parts = [compare(stable.get(name), candidate.get(name)) for name in names]
        gaps = [part.gap for part in parts if part.gap is not None]
        return Comparison(sum(part.distance for part in parts) / max(len(parts), 1), kind, max(gaps, default=None))
    return Comparison(
        0.0 if stable == candidate and isinstance(stable, bool) == isinstance(candidate, bool) else 1.0, kind
    )


def _find_kind(stable: Any, candidate: Any, column: Column) -> Kind:
    pair = (stable, candidate)
    if all(isinstance(one, dict) for one in pair):
        return "object"
    if all(isinstance(one, list) for one in pair):
        items = [*stable, *candidate]
        all_numbers = all(item is None or _is_number(item) for item in items)
        is_vector = column.is_vector or (
            column.datatypes == ("", "") and any(isinstance(item, float) for item in items)
        )
        return "vector" if all_numbers and is_vector else "list"
    if all(_is_number(one) for one in pair):
        return "number"
    return "none" if stable is None and candidate is None else "text"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _compare_numbers(stable: float, candidate: float, column: Column) -> Comparison:
    a, b = (float(np.float32(one)) if column.is_short else one for one in (stable, candidate))
    if a == b:
        return Comparison(0.0, "number", 0.0)
    gap = abs(a - b)
    return Comparison(min(1.0, gap / max(abs(a), abs(b))), "number", float(gap))


def _compare_vectors(stable: Sequence[float | None], candidate: Sequence[float | None], column: Column) -> Comparison:
    if len(stable) != len(candidate):
        return Comparison(1.0, "vector")
    dtype = np.float32 if column.is_short else np.float64
    a, b = (np.array(one, dtype).astype(np.float64) for one in (stable, candidate))
    if np.array_equal(a, b, equal_nan=True):
        return Comparison(0.0, "vector", 0.0)
    both = np.isfinite(a) & np.isfinite(b)
    gap = float(np.abs(a[both] - b[both]).max()) if both.any() else None
    if not both.all():
        return Comparison(1.0, "vector", gap)
    norm = float(np.linalg.norm(a) + np.linalg.norm(b))
    return Comparison(float(np.linalg.norm(a - b)) / norm, "vector", gap)


def _compare_lists(stable: Sequence[Any], candidate: Sequence[Any]) -> Comparison:
    keys = [[identify(item) for item in items] for items in (stable, candidate)]
    shared = sum((Counter(keys[0]) & Counter(keys[1])).values())
    overlap = shared / max(len(stable), len(candidate)) if stable or candidate else 1.0
    by_key = dict(zip(keys[0], stable, strict=True))
    gaps = [
        gap
        for key, item in zip(keys[1], candidate, strict=True)
        if key in by_key and (gap := _largest_gap(by_key[key], item)) is not None
    ]
    distance = 0.0 if stable == candidate else max(1.0 - overlap, _LEAST_LIST_DISTANCE)
    return Comparison(distance, "list", max(gaps, default=None), overlap)


def _largest_gap(stable: Any, candidate: Any) -> float | None:
    """Return the largest absolute difference of two items' scores."""
    if not (isinstance(stable, dict) and isinstance(candidate, dict)):
        return None
    gaps = [
        abs(stable[name] - candidate[name])
        for name in stable.keys() & candidate.keys()
        if isinstance(stable[name], float) and isinstance(candidate[name], float)
    ]
    return max(gaps, default=None)


def identify(item: Any) -> str:
    """Return what an item of a list is known by.

    >>> identify({"id": 7, "name": "Shoes", "score": 0.4, "terms": ["a"]})
    '["id",7,"name","Shoes"]'
    """
    if isinstance(item, dict):
        named = [(name, value) for name, value in sorted(item.items()) if isinstance(value, str | int)]
        if named:
            item = [part for pair in named for part in pair]
    return json.dumps(item, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def measure_loss(expected: Mapping[str, Any], row: Row) -> float:
    """Return how far an answer is from what is expected, from 0 to 1: the mean over the expected columns.

    A list misses the share of expected items that it does not have: an item is there if it is equal, if one of its
    texts or whole numbers is, or, for an expected object, if all its fields are. A float is as far as `compare` says.
    Anything else is right or wrong.

    >>> measure_loss({"near": ["a", "b"]}, {"near": [{"id": "b", "score": 0.5}]})
    0.5
    >>> measure_loss({"label": 3, "price": 10.0}, {"label": 3, "price": 8.0})
    0.1
    """
    return sum(_measure_one(value, row.get(name)) for name, value in expected.items()) / len(expected)


def _measure_one(expected: Any, value: Any) -> float:
    if isinstance(expected, list):
        if not isinstance(value, list):
            return 1.0
        missing = sum(not any(_is_item(one, item) for item in value) for one in expected)
        return missing / len(expected) if expected else float(bool(value))
    if isinstance(expected, float) and _is_number(value):
        return compare(expected, value).distance
    return 0.0 if expected == value and isinstance(expected, bool) == isinstance(value, bool) else 1.0


def _is_item(expected: Any, item: Any) -> bool:
    if expected == item:
        return True
    if not isinstance(item, dict):
        return False
    if isinstance(expected, dict):
        return all(name in item and item[name] == value for name, value in expected.items())
    return any(isinstance(value, str | int) and value == expected for value in item.values())


@dataclass
class ColumnTally:
    """What is known about one column over all compared instances.

    Args:
        rows: Compared instances.
        differing: Those whose values differ.
        differing_clearly: Those that are further apart than `CLEAR_DISTANCE`.
        missing: Instances where only one version gave the column.
        kinds: How often the values were of each kind.
        gaps: Largest absolute differences, one an instance where numbers belong together.
        overlaps: Of lists, one an instance.
        lengths: Lengths of the longer list, one an instance.
    """

    rows: int = 0
    differing: int = 0
    differing_clearly: int = 0
    missing: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    gaps: list[float] = field(default_factory=list)
    overlaps: list[float] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values; what does not apply is None."""
        kinds = [kind for kind, _ in self.kinds.most_common() if kind != "none"]
        return {
            "kind": kinds[0] if kinds else "none",
            "rows": self.rows,
            "differing": self.differing,
            "differing_clearly": self.differing_clearly,
            "missing": self.missing,
            "share": self.differing / self.rows if self.rows else None,
            "gap": _summarise(self.gaps),
            "overlap": _summarise(self.overlaps),
            "longest_list": max(self.lengths, default=None),
        }


def _summarise(values: Sequence[float]) -> dict[str, float] | None:
    if not values:
        return None
    found = np.asarray(values)
    quantiles = {f"p{q * 100:g}": float(np.quantile(found, q)) for q in _QUANTILES}
    return {"mean": float(found.mean()), "min": float(found.min()), "max": float(found.max()), **quantiles}


@dataclass(frozen=True, order=True)
class DifferingAnswer:
    """One instance with both answers.

    Args:
        distance: Mean over the columns, from 0 to 1.
        line: The request's line, negated: of equal distances the first comes first.
        request_id: The request.
        instance: Its number in the request, from 0.
        columns: What differs: column, distance, the stable version's value and the candidate's.
    """

    distance: float
    line: int
    request_id: str = field(compare=False)
    instance: int = field(compare=False)
    columns: tuple[tuple[str, float, Any, Any], ...] = field(compare=False)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values, with contact data masked."""
        return {
            "request_id": self.request_id,
            "line": -self.line,
            "instance": self.instance,
            "distance": self.distance,
            "columns": [
                {"column": name, "distance": distance, "stable": mask(stable), "candidate": mask(candidate)}
                for name, distance, stable, candidate in self.columns
            ],
        }


def mask(value: Any) -> Any:
    """Return an answer without contact data, and with long texts cut: what a file that is handed on may show.

    >>> mask({"to": "jane.doe@example.com", "ids": ["c-20260131"], "score": 0.5})
    {'to': 'j***@***', 'ids': ['c-20260131'], 'score': 0.5}
    """
    if isinstance(value, dict):
        return {str(name): mask(item) for name, item in value.items()}
    if isinstance(value, list):
        return [mask(item) for item in value]
    return mask_identifier(value) if isinstance(value, str) else value


class DifferenceTally:
    """Adds up how answers differ, request by request.

    Args:
        columns: What both versions declare.
        worst: How many of the most different instances are kept.
    """

    def __init__(self, columns: Mapping[str, Column], worst: int = 10) -> None:
        self.requests = 0
        self.differing_requests = 0
        self.clearly_differing_requests = 0
        self.rows = 0
        self.differing_rows = 0
        self.other_lengths = 0
        self.columns: dict[str, ColumnTally] = {}
        self._declared = columns
        self._most = worst
        self._worst: list[DifferingAnswer] = []

    @property
    def worst(self) -> tuple[DifferingAnswer, ...]:
        """The most different instances, the worst first; at most one a request."""
        return tuple(sorted(self._worst, reverse=True))

    def add(self, line: int, request_id: str, stable: Sequence[Row], candidate: Sequence[Row]) -> bool:
        """Add both answers to a request; return whether they differ."""
        self.requests += 1
        differs = len(stable) != len(candidate)
        self.other_lengths += differs
        is_clear = differs
        worst: DifferingAnswer | None = None
        for instance, (one, other) in enumerate(zip(stable, candidate, strict=False)):
            found = self._add_row(line, request_id, instance, one, other)
            if found is not None:
                differs = True
                is_clear = is_clear or any(column[1] > CLEAR_DISTANCE for column in found.columns)
                worst = found if worst is None or found.distance > worst.distance else worst
        if worst is not None:
            heapq.heappush(self._worst, worst)
            if len(self._worst) > self._most:
                heapq.heappop(self._worst)
        self.differing_requests += differs
        self.clearly_differing_requests += is_clear
        return differs

    def _add_row(
        self, line: int, request_id: str, instance: int, stable: Row, candidate: Row
    ) -> DifferingAnswer | None:
        self.rows += 1
        differing = []
        distances = []
        for name in dict.fromkeys((*stable, *candidate)):
            tally = self.columns.setdefault(name, ColumnTally())
            tally.rows += 1
            if name in stable and name in candidate:
                found = compare(stable[name], candidate[name], self._declared.get(name, _UNDECLARED))
                _note(tally, found, stable[name], candidate[name])
            else:
                found = Comparison(1.0, "none")
                tally.missing += 1
            distances.append(found.distance)
            if found.distance > 0:
                tally.differing += 1
                tally.differing_clearly += found.distance > CLEAR_DISTANCE
                differing.append((name, found.distance, stable.get(name), candidate.get(name)))
        if not differing:
            return None
        self.differing_rows += 1
        distance = sum(distances) / len(distances)
        return DifferingAnswer(distance, -line, request_id, instance, tuple(differing))

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "requests": self.requests,
            "differing_requests": self.differing_requests,
            "clearly_differing_requests": self.clearly_differing_requests,
            "clear_distance": CLEAR_DISTANCE,
            "share": self.differing_requests / self.requests if self.requests else None,
            "rows": self.rows,
            "differing_rows": self.differing_rows,
            "other_lengths": self.other_lengths,
            "columns": {name: tally.to_dict() for name, tally in self.columns.items()},
            "worst": [one.to_dict() for one in self.worst],
        }


def _note(tally: ColumnTally, found: Comparison, stable: Any, candidate: Any) -> None:
    tally.kinds[found.kind] += 1
    if found.gap is not None:
        tally.gaps.append(found.gap)
    if found.overlap is not None:
        tally.overlaps.append(found.overlap)
        tally.lengths.append(max(len(stable), len(candidate)))


def name_columns(rows: Iterable[Row]) -> list[str]:
    """Return the columns of some rows, in the order in which they appear."""
    return list(dict.fromkeys(name for row in rows for name in row))
