"""From raw listings to one row a listing, in fixed units, with every change written into the row's flags."""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, field_validator, model_validator

from mlflywheel.errors import DataError
from mlflywheel.events import ProgressCallback, ignore_progress
from mlflywheel.models.contract import Column, Settings

# How exports write that a value is missing.
_NO_VALUE = ("N/A", "n/a", "-", "-/-")
COLUMNS = (
    Column("listing_id", "id", description="the listing; made from the row's content if there is none"),
    Column(
        "price",
        "number",
        description="what is asked for the vehicle; needed to fit and to evaluate",
        missing=_NO_VALUE,
    ),
    Column("make", "text", description="the brand, such as Volkswagen"),
    Column("model", "text", description="the model, such as Golf"),
    Column("year", "number", description="year of the first registration", missing=_NO_VALUE),
    Column("mileage", "number", description="distance driven, in the unit mileage_unit", missing=_NO_VALUE),
    Column(
        "power", "number", description="the engine's power, in the unit power_unit", aliases=("hp",), missing=_NO_VALUE
    ),
    Column(
        "fuel",
        "text",
        description="petrol, diesel, electric, as the marketplace writes it",
        missing=(*_NO_VALUE, "-/- (Fuel)"),
    ),
    Column("gear", "text", description="manual or automatic"),
    Column("offer_type", "text", description="used, new, demonstration", aliases=("offerType",)),
    Column("engine_size", "number", description="the engine's size, in any one unit", missing=_NO_VALUE),
    Column("tax", "number", description="tax a year, in the currency of the price", missing=_NO_VALUE),
    Column("region", "text", description="where the vehicle stands"),
    Column("body", "text", description="the vehicle's shape, such as estate"),
)
#: Prepared numbers, with the raw column of each.
NUMBERS: Mapping[str, str] = {
    "year": "year",
    "mileage_km": "mileage",
    "power_hp": "power",
    "engine_size": "engine_size",
    "tax": "tax",
}
CATEGORIES = ("make", "model", "fuel", "gear", "offer_type", "region", "body")
FEATURES = (*NUMBERS, *CATEGORIES)
METADATA = b"mlflywheel.vehicle_price"

KM_OF_MILE = 1.609344
#: Metric horsepower (735.49875 W) and kilowatts in mechanical horsepower (745.69987 W).
HP_OF_PS = 735.49875 / 745.69987158227
HP_OF_KW = 1000.0 / 745.69987158227
_YEARS_AHEAD = 1
# A few listings from the future must not move the year that ages are counted from.
_REFERENCE_SHARE = 0.002

Range = tuple[float, float]


class Ranges(Settings):
    """Values that are possible, both ends included; a value outside is a mistake, not a fact about the vehicle."""

    price: Range = Field((50.0, 20_000_000.0), description="in the currency")
    year: Range = Field((1950.0, 2100.0), description="the upper end is never later than a year after reference_year")
    mileage_km: Range = Field((0.0, 900_000.0), description="kilometres")
    power_hp: Range = Field((4.0, 2_500.0), description="mechanical horsepower")
    engine_size: Range = Field((0.0, 20_000.0), description="in the file's own unit")
    tax: Range = Field((0.0, 1_000_000.0), description="in the currency")

    @field_validator("*")
    @classmethod
    def _check_order(cls, value: Range) -> Range:
        if not (math.isfinite(value[0]) and math.isfinite(value[1]) and value[0] < value[1]):
            raise ValueError("two finite numbers are needed, the smaller one first")
        return value


class PrepareConfig(Settings):
    """How raw listings become prepared ones."""

    mileage_unit: Literal["km", "miles"] = Field("km", description="unit of the column mileage")
    power_unit: Literal["hp", "kw", "ps"] = Field("hp", description="unit of the column power; hp is not converted")
    currency: str = Field("EUR", min_length=1, max_length=10, pattern=r"^\S+$", description="what prices are in")
    reference_year: int | None = Field(
        None,
        ge=1950,
        le=2100,
        description="the year that ages are counted from; the newest that 0.2 % of the listings have, if left out",
    )
    deduplicate: bool = Field(True, description="keep one of rows that are equal in every declared column")
    features: tuple[str, ...] | None = Field(
        None, description="prepared columns to predict from; all that the table has, if left out"
    )
    missing_texts: tuple[str, ...] = Field(
        ("-", "-/-", "n/a", "null", "none"), description="texts that mean a missing value, in any case"
    )
    ranges: Ranges = Field(default_factory=Ranges, description="possible values")

    @model_validator(mode="after")
    def _check_features(self) -> Self:
        unknown = sorted(set(self.features or ()) - set(FEATURES))
        if unknown:
            raise ValueError(f"features: {', '.join(unknown)} unknown; there are {', '.join(FEATURES)}")
        return self


@dataclass(frozen=True)
class Facts:
    """What preparing did: settings that the model keeps, and counts for validation and reports.

    It travels in the schema metadata of the prepared table, which Parquet, splitting and filtering keep.

    Args:
        currency: What prices are in.
        reference_year: The year that ages are counted from, None if no row has a year.
        ranges: Possible values by prepared column, both ends included.
        rows: Raw rows.
        duplicates_removed: Rows that were equal to an earlier one.
        without_price: Rows left without a usable price.
        flagged: Number of rows by flag.
    """

    currency: str = "EUR"
    reference_year: int | None = None
    ranges: Mapping[str, Range] = field(default_factory=lambda: Ranges().model_dump())
    rows: int = 0
    duplicates_removed: int = 0
    without_price: int = 0
    flagged: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def read(cls, table: pa.Table) -> "Facts":
        """Return the facts of a prepared table; the defaults where its metadata got lost."""
        text = (table.schema.metadata or {}).get(METADATA)
        if text is None:
            return cls()
        values = json.loads(text)
        values["ranges"] = {name: (float(low), float(high)) for name, (low, high) in values["ranges"].items()}
        return cls(**values)

    def attach(self, table: pa.Table) -> pa.Table:
        """Return the table with these facts in its schema metadata."""
        text = json.dumps(asdict(self), sort_keys=True).encode()
        return table.replace_schema_metadata({**(table.schema.metadata or {}), METADATA: text})


def prepare_listings(raw: pa.Table, config: PrepareConfig, progress: ProgressCallback = ignore_progress) -> pa.Table:
    """Clean listings and convert units; the order of the rows stays.

    Exact duplicates (equal in all declared columns, the id among them) are removed before anything else. Nothing else
    is dropped: an impossible or unreadable value becomes missing, and the row's `flags` say so. A row without a usable
    price stays, can be scored, and is left out by `fit` and `evaluate`.

    Args:
        raw: One row a listing, with columns of `COLUMNS`; numbers may be texts. Other columns are kept as they are.
        config: Settings.
        progress: Called with the phase `listings`.

    Returns:
        `listing_id` string; `price` float64; the columns of `NUMBERS` float64 and of `CATEGORIES` string, as far as the
        raw table has them; other columns; `flags` list<string>. Schema metadata holds `Facts`.

    Raises:
        DataError: None of the columns that a price can be predicted from is there.

    >>> raw = pa.table({"make": ["VW ", "VW "], "mileage": [10.0, 10.0], "power": [1.0, 1.0], "year": [2019, 2019]})
    >>> prepared = prepare_listings(raw, PrepareConfig(mileage_unit="miles"))
    >>> prepared.select(["make", "mileage_km", "power_hp", "flags"]).to_pylist()
    [{'make': 'VW', 'mileage_km': 16.09344, 'power_hp': None, 'flags': ['power_hp_out_of_range']}]
    >>> Facts.read(prepared).duplicates_removed
    1
    """
    wanted = [name for name in FEATURES if config.features is None or name in config.features]
    sources = {name: NUMBERS.get(name, name) for name in wanted}
    found = [name for name in wanted if sources[name] in raw.column_names]
    if not found:
        raise DataError(
            "listings",
            f"columns {', '.join(raw.column_names) or '(none)'}",
            f"at least one of {', '.join(sources.values())} is needed",
            "map the file's columns (--map make=brand)",
        )
    progress("listings", 0, 4)
    declared = [column.name for column in COLUMNS if column.name in raw.column_names]
    keys = _hash_rows(raw.select(declared))
    rows = raw.num_rows
    if config.deduplicate:
        _, first = np.unique(keys, return_index=True)
        kept = np.sort(first)
        raw, keys = raw.take(pa.array(kept)), keys[kept]
    progress("listings", 1, 4)
    columns: dict[str, pa.Array | pa.ChunkedArray] = {"listing_id": _name_listings(raw, keys)}
    flags: dict[str, np.ndarray] = {}
    if "price" in raw.column_names:
        # A listing without a price is one to score: no fault of the row.
        columns["price"] = _clean_number(raw["price"], "price", 1.0, config.ranges.price, flags)
        flags.pop("missing_price", None)
    else:
        columns["price"] = pa.nulls(raw.num_rows, pa.float64())
    reference_year = config.reference_year
    if reference_year is None and "year" in found:
        reference_year = _find_reference_year(_read_number(raw["year"])[0], config.ranges.year)
    ranges: dict[str, Range] = config.ranges.model_dump()
    ranges["year"] = limit_year(ranges["year"], reference_year)
    factors = {
        "mileage_km": KM_OF_MILE if config.mileage_unit == "miles" else 1.0,
        "power_hp": {"hp": 1.0, "kw": HP_OF_KW, "ps": HP_OF_PS}[config.power_unit],
    }
    for name in found:
        values = raw[sources[name]]
        if name in NUMBERS:
            columns[name] = _clean_number(values, name, factors.get(name, 1.0), ranges[name], flags)
        else:
            columns[name] = _clean_texts(values, config.missing_texts)
            flags[f"missing_{name}"] = columns[name].is_null().to_numpy(zero_copy_only=False)
    progress("listings", 3, 4)
    known = {column.name for column in COLUMNS} | set(FEATURES) | {"flags"}
    columns |= {name: raw[name] for name in raw.column_names if name not in known}
    columns["flags"] = list_flags(flags, raw.num_rows)
    facts = Facts(
        currency=config.currency,
        reference_year=reference_year,
        ranges=ranges,
        rows=rows,
        duplicates_removed=rows - raw.num_rows,
        without_price=columns["price"].null_count,
        flagged={name: int(mask.sum()) for name, mask in flags.items() if mask.any()},
    )
    progress("listings", 4, 4)
    return facts.attach(pa.table(columns))


def limit_year(valid: Range, reference_year: int | None) -> Range:
    """Return the range of years with the upper end at most a year after the reference year."""
    if reference_year is None:
        return valid
    return (valid[0], max(valid[0] + 1.0, min(valid[1], float(reference_year + _YEARS_AHEAD))))


def clean_text(text: str) -> str:
    r"""Trim a text and join its words by single spaces.

    >>> clean_text("  Mercedes \n Benz")
    'Mercedes Benz'
    """
    return " ".join(text.split())


def list_flags(masks: Mapping[str, np.ndarray], rows: int) -> pa.ListArray:
    """Turn one boolean mask a flag into one list of flags a row."""
    names = list(masks)
    matrix = np.column_stack([masks[name] for name in names]) if names else np.zeros((rows, 0), dtype=bool)
    offsets = np.concatenate([[0], np.cumsum(matrix.sum(axis=1))])
    values = pc.take(pa.array(names, pa.string()), pa.array(np.nonzero(matrix)[1]))
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), values)


def _hash_rows(table: pa.Table) -> np.ndarray:
    """Return a key for each row's content: equal rows have equal keys."""
    texts = []
    for column in table.column_names:
        values = table[column]
        text = values.cast(pa.string()) if not pa.types.is_nested(values.type) else pa.array(map(str, values))
        # A byte that text does not hold keeps a missing value from meeting an empty one.
        texts.append(pc.fill_null(text, "\x00").to_pylist())
    names = "\x1f".join(table.column_names).encode()
    if not texts:
        return np.array([str(row) for row in range(table.num_rows)], dtype=object)
    return np.array(
        [
            hashlib.blake2b("\x1f".join(row).encode(), key=hashlib.blake2b(names).digest(), digest_size=10).hexdigest()
            for row in zip(*texts, strict=True)
        ],
        dtype=object,
    )


def _name_listings(raw: pa.Table, keys: np.ndarray) -> pa.Array:
    made = pa.array(keys, pa.string())
    if "listing_id" not in raw.column_names:
        return made
    given = _clean_texts(raw["listing_id"], ())
    return pc.coalesce(given, made)


def _read_number(values: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """Return numbers as float64 with NaN for missing ones, and which cells hold something that is no finite number."""
    if pa.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    if pa.types.is_string(values.type) or pa.types.is_large_string(values.type):
        texts = values.to_pylist()
        numbers = np.array([_parse(text) for text in texts], dtype=np.float64)
        given = np.array([text is not None and text.strip() != "" for text in texts], dtype=bool)
    else:
        numbers = values.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False).astype(np.float64, copy=True)
        # NaN is how many tables write a missing number.
        given = ~np.isnan(numbers)
    unreadable = given & ~np.isfinite(numbers)
    numbers[~np.isfinite(numbers)] = np.nan
    return numbers, unreadable


def _parse(text: str | None) -> float:
    try:
        return float(text) if text is not None else math.nan
    except ValueError:
        return math.nan


def _clean_number(
    values: pa.ChunkedArray, name: str, factor: float, valid: Sequence[float], flags: dict[str, np.ndarray]
) -> pa.Array:
    numbers, unreadable = _read_number(values)
    if factor != 1.0:
        numbers = numbers * factor
    missing = np.isnan(numbers)
    with np.errstate(invalid="ignore"):
        outside = (numbers < valid[0]) | (numbers > valid[1])
    flags[f"missing_{name}"] = missing & ~unreadable
    flags[f"unreadable_{name}"] = unreadable
    flags[f"{name}_out_of_range"] = outside
    return pa.array(numbers, pa.float64(), mask=missing | outside)


def _clean_texts(values: pa.ChunkedArray, missing: Sequence[str]) -> pa.Array:
    """Trim texts; blank ones, and those that mean so, become missing. Each distinct text is cleaned once."""
    if pa.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    encoded = values.cast(pa.string()).combine_chunks().dictionary_encode()
    absent = {text.casefold() for text in missing}
    cleaned = [clean_text(text) for text in encoded.dictionary.to_pylist()]
    distinct = pa.array([text if text and text.casefold() not in absent else None for text in cleaned], pa.string())
    return pc.take(distinct, encoded.indices)


def _find_reference_year(years: np.ndarray, valid: Range) -> int | None:
    usable = years[(years >= valid[0]) & (years <= valid[1])]
    if not len(usable):
        return None
    values, counts = np.unique(np.floor(usable), return_counts=True)
    common = values[counts >= _REFERENCE_SHARE * len(usable)]
    return int(common.max() if len(common) else values.max())


def read_column(table: pa.Table, name: str) -> Any:
    """Return a column of a prepared table as one array, or None if the table lacks it."""
    position = table.schema.get_field_index(name)
    if position < 0:
        return None
    chunked = table.column(position)
    if pa.types.is_dictionary(chunked.type):
        chunked = chunked.cast(chunked.type.value_type)
    return chunked.chunk(0) if chunked.num_chunks == 1 else chunked.combine_chunks()
