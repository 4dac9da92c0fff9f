"""From rows of terms to one row a campaign."""

from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from mlflywheel.errors import DataError
from mlflywheel.events import ProgressCallback, ignore_progress
from mlflywheel.models.contract import Column, Settings
from mlflywheel.models.topic_fingerprints.text import clean_terms, encode_sorted, split_words

COLUMNS = (
    Column("campaign_id", "id", required=True, description="the campaign that uses the term"),
    Column("term", "text", required=True, description="a keyword or search term, or a whole text with --split-terms"),
    Column("kind", "id", description="keyword or search_term"),
    Column("impressions", "number", description="how often the term was shown"),
    Column("clicks", "number", description="how often it was clicked"),
    Column("cost", "number", description="what the clicks cost"),
    Column("vertical", "id", description="the campaign's industry; the truth that neighbour purity is measured on"),
    Column("advertiser_tier", "id", description="the advertiser's size"),
    Column("locale", "id", description="language and country, such as en-US"),
    Column("as_of", "date", description="the day the row was exported"),
)
SUMMED = ("impressions", "clicks", "cost")
# Rows of one campaign differ in these, or the result has a column of its own under the name.
_NO_ATTRIBUTES = ("campaign_id", "term", "kind", "terms", "weights")


class PrepareConfig(Settings):
    """How rows become campaigns."""

    split_terms: bool = Field(False, description="split each term at white space: for sources with one text a campaign")
    weighting: Literal["presence", "count", "log_impressions", "log_clicks"] = Field(
        "presence",
        description="a term's weight in its campaign: 1; its number of rows; or 1 + ln(1 + impressions or clicks)",
    )


def prepare_campaigns(raw: pa.Table, config: PrepareConfig, progress: ProgressCallback = ignore_progress) -> pa.Table:
    """Gather rows into campaigns; the order of the rows does not matter.

    Rows without an id are left out (validation has counted them). Terms are cleaned (`text.clean_terms`), blank ones
    left out, and equal ones of a campaign are one term. A campaign whose every term is blank stays, with no terms.

    Args:
        raw: One row a term, with the columns of `COLUMNS`; any other column is an attribute.
        config: Settings.
        progress: Called with the phase `campaigns`.

    Returns:
        One row a campaign, sorted by id: `campaign_id` string; `terms` list<string>, heaviest first; `weights`
        list<float>; then the attributes: declared ones by their most frequent value, `impressions`, `clicks`, `cost`
        summed, and other columns where no campaign has two values.

    Raises:
        DataError: A required column is missing, there is no row with an id, or the weighting needs a column that is
            not there.

    >>> raw = pa.table({"campaign_id": ["b", "a", "a"], "term": ["[Tea]", "milk ", "Milk"]})
    >>> prepare_campaigns(raw, PrepareConfig(weighting="count")).to_pylist()  # doctest: +NORMALIZE_WHITESPACE
    [{'campaign_id': 'a', 'terms': ['milk'], 'weights': [2.0]},
     {'campaign_id': 'b', 'terms': ['tea'], 'weights': [1.0]}]
    """
    _check_columns(raw, config)
    progress("campaigns", 0, 3)
    raw = raw.set_column(raw.column_names.index("campaign_id"), "campaign_id", raw["campaign_id"].cast(pa.string()))
    # A blank id counts as none; a null condition drops the row too.
    raw = raw.filter(pc.not_equal(pc.utf8_trim_whitespace(raw["campaign_id"]), ""))
    if raw.num_rows == 0:
        raise DataError(
            "campaign_id", "no row has one", "every row names its campaign", "map the id column (--map campaign_id=...)"
        )
    campaign, ids = encode_sorted(raw["campaign_id"].combine_chunks())
    columns: dict[str, pa.Array] = {"campaign_id": ids}
    columns["terms"], columns["weights"] = _gather_terms(raw, campaign, len(ids), config)
    progress("campaigns", 1, 3)
    declared = {column.name for column in COLUMNS}
    for name in raw.column_names:
        if name in SUMMED:
            columns[name] = pa.array(_sum(_read_numbers(raw, name), campaign, len(ids)))
        elif name not in _NO_ATTRIBUTES and not pa.types.is_nested(raw.schema.field(name).type):
            attribute, constant = _gather_attribute(raw[name].combine_chunks(), campaign, len(ids))
            if constant or name in declared:
                columns[name] = attribute
    progress("campaigns", 3, 3)
    return pa.table(columns)


def _check_columns(raw: pa.Table, config: PrepareConfig) -> None:
    for column in COLUMNS:
        if column.required and column.name not in raw.column_names:
            raise DataError(
                f"column {column.name}",
                f"missing among {', '.join(raw.column_names)}",
                f"it holds {column.description}",
                f"map it (--map {column.name}=...)",
            )
    needed = config.weighting.removeprefix("log_")
    if needed in SUMMED and needed not in raw.column_names:
        raise DataError(
            f"weighting={config.weighting}",
            f"no column {needed}",
            "the weighting reads it",
            f"map it (--map {needed}=...) or choose weighting=presence",
        )


def _gather_terms(
    raw: pa.Table, campaign: np.ndarray, campaigns: int, config: PrepareConfig
) -> tuple[pa.Array, pa.Array]:
    """Return `terms` and `weights`, one list a campaign."""
    terms = raw["term"].combine_chunks().cast(pa.large_string())
    values = _row_weights(raw, config)
    if config.split_terms:
        lists = split_words(pc.fill_null(terms, pa.scalar("", pa.large_string())))
        owner = pc.list_parent_indices(lists).to_numpy()
        campaign, values, terms = campaign[owner], values[owner], pc.list_flatten(lists)
    terms = clean_terms(terms)
    valid = terms.is_valid().to_numpy(zero_copy_only=False)
    words, distinct = encode_sorted(terms.drop_null())
    # One key for each pair of campaign and term; the pairs come back sorted by campaign, then alphabetically.
    width = max(1, len(distinct))
    key, inverse = np.unique(campaign[valid] * width + words, return_inverse=True)
    owner, word = key // width, key % width
    if config.weighting == "presence":
        weight = np.ones(len(key))
    else:
        weight = _sum(values[valid], inverse.ravel(), len(key))
        if config.weighting != "count":
            weight = 1.0 + np.log1p(weight)
    heaviest = np.lexsort((word, -weight, owner))
    offsets = pa.array(np.searchsorted(owner, np.arange(campaigns + 1)), pa.int32())
    return (
        pa.ListArray.from_arrays(offsets, pc.take(distinct, pa.array(word[heaviest]))),
        pa.ListArray.from_arrays(offsets, pa.array(weight[heaviest], pa.float32())),
    )


def _row_weights(raw: pa.Table, config: PrepareConfig) -> np.ndarray:
    """Return what each row adds to its term, before the rule is applied to the sum; negatives count as nothing."""
    if config.weighting in ("presence", "count"):
        return np.ones(raw.num_rows)
    return np.asarray(np.maximum(_read_numbers(raw, config.weighting.removeprefix("log_")), 0.0))


def _read_numbers(raw: pa.Table, name: str) -> np.ndarray:
    """Return a column as float64, 0 where it is null, not a number or infinite."""
    numbers = np.asarray(raw[name].cast(pa.float64()).fill_null(0.0))
    return np.where(np.isfinite(numbers), numbers, 0.0)


def _sum(values: np.ndarray, owner: np.ndarray, owners: int) -> np.ndarray:
    """Sum values by owner in the order of the values, since a sum of fractions depends on the order."""
    order = np.lexsort((values, owner))
    return np.asarray(np.bincount(owner[order], weights=values[order], minlength=owners))


def _gather_attribute(values: pa.Array, campaign: np.ndarray, campaigns: int) -> tuple[pa.Array, bool]:
    """Return each campaign's most frequent value, the smallest of equally frequent ones, null where it has none.

    Also returns whether no campaign has two values.
    """
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    valid = values.is_valid().to_numpy(zero_copy_only=False)
    if not valid.any():
        return pa.nulls(campaigns, values.type), True
    codes, distinct = encode_sorted(values.drop_null())
    key, count = np.unique(campaign[valid] * len(distinct) + codes, return_counts=True)
    owner, value = key // len(distinct), key % len(distinct)
    best = np.lexsort((value, -count, owner))
    first = best[np.flatnonzero(np.diff(owner[best], prepend=-1))]
    chosen = np.zeros(campaigns, dtype=np.int64)
    chosen[owner[first]] = value[first]
    missing = np.ones(campaigns, dtype=bool)
    missing[owner[first]] = False
    return pc.take(distinct, pa.array(chosen, mask=missing)), len(key) == len(first)
