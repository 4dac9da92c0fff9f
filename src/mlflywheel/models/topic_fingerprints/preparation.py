"""From rows of terms to one row a campaign."""

from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from mlflywheel.errors import DataError
from mlflywheel.events import ProgressCallback, ignore_progress
from mlflywheel.models.contract import Column, Settings
from mlflywheel.models.topic_fingerprints.text import clean_terms

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
_TERM_COLUMNS = ("campaign_id", "term", "kind", *SUMMED)


class PrepareConfig(Settings):
    """How rows become campaigns."""

    split_terms: bool = Field(False, description="split each term at white space: for sources with one text a campaign")
    weighting: Literal["presence", "count", "log_impressions", "log_clicks"] = Field(
        "presence",
        description="a term's weight in its campaign: 1; its number of rows; or 1 + ln(1 + impressions or clicks)",
    )


def prepare_campaigns(raw: pa.Table, config: PrepareConfig, progress: ProgressCallback = ignore_progress) -> pa.Table:
    """Gather rows into campaigns.

    Rows without an id are left out (validation has counted them). Terms are cleaned (`text.clean_terms`), blank ones
    left out, and equal ones of a campaign are one term. A campaign whose every term is blank stays, with no terms.

    Args:
        raw: One row a term, with the columns of `COLUMNS`; any other column is an attribute.
        config: Settings.
        progress: Called with the phase `campaigns`.

    Returns:
        One row a campaign, sorted by id: `campaign_id` string; `terms` list<string>, heaviest first; `weights`
        list<float>; then the attributes: declared ones by their most frequent value, `impressions`, `clicks`, `cost`
        summed, and other columns where every campaign has one value only.

    Raises:
        DataError: There is no row with an id, or the weighting needs a column that is not there.
    """
    needed = config.weighting.removeprefix("log_")
    if needed in SUMMED and needed not in raw.column_names:
        raise DataError(
            f"weighting={config.weighting}",
            f"no column {needed}",
            "the weighting reads it",
            f"map it (--map {needed}=...) or choose weighting=presence",
        )
    progress("campaigns", 0, 3)
    raw = raw.filter(pc.is_valid(raw["campaign_id"]))
    if raw.num_rows == 0:
        raise DataError(
            "campaign_id", "no row has one", "every row names its campaign", "map the id column (--map campaign_id=...)"
        )
    ids = pc.dictionary_encode(raw["campaign_id"].combine_chunks())
    order = pc.sort_indices(ids.dictionary).to_numpy()
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.arange(len(order))
    campaign = rank[ids.indices.to_numpy()]
    columns: dict[str, pa.Array] = {"campaign_id": pc.take(ids.dictionary, pa.array(order)).cast(pa.string())}
    columns["terms"], columns["weights"] = _gather_terms(raw, campaign, len(order), config)
    progress("campaigns", 1, 3)
    for name in raw.column_names:
        if name in SUMMED:
            values = pc.fill_null(raw[name].combine_chunks().cast(pa.float64()), 0.0).to_numpy()
            columns[name] = pa.array(np.bincount(campaign, weights=values, minlength=len(order)))
        elif name not in _TERM_COLUMNS:
            attribute = _gather_attribute(raw[name].combine_chunks(), campaign, len(order))
            declared = any(column.name == name for column in COLUMNS)
            if declared or attribute.constant:
                columns[name] = attribute.values
    progress("campaigns", 3, 3)
    return pa.table(columns)


def _gather_terms(
    raw: pa.Table, campaign: np.ndarray, campaigns: int, config: PrepareConfig
) -> tuple[pa.Array, pa.Array]:
    """Return `terms` and `weights`, one list a campaign."""
    terms = raw["term"].combine_chunks().cast(pa.large_string())
    values = _row_weights(raw, config)
    if config.split_terms:
        lists = pc.utf8_split_whitespace(pc.fill_null(terms, ""))
        owner = pc.list_parent_indices(lists).to_numpy()
        campaign, values, terms = campaign[owner], values[owner], pc.list_flatten(lists)
    terms = clean_terms(terms)
    valid = terms.is_valid().to_numpy(zero_copy_only=False)
    campaign, values = campaign[valid], values[valid]
    encoded = pc.dictionary_encode(terms.drop_null())
    word_order = pc.sort_indices(encoded.dictionary).to_numpy()
    word_rank = np.empty(len(word_order), dtype=np.int64)
    word_rank[word_order] = np.arange(len(word_order))
    words = word_rank[encoded.indices.to_numpy()]
    dictionary = pc.take(encoded.dictionary, pa.array(word_order))
    # One key for each pair of campaign and term; the pairs come back sorted by campaign, then alphabetically.
    key, inverse = np.unique(campaign * max(1, len(dictionary)) + words, return_inverse=True)
    weight: np.ndarray = np.bincount(inverse.ravel(), weights=values, minlength=len(key))
    if config.weighting == "presence":
        weight = np.ones(len(key))
    elif config.weighting != "count":
        weight = 1.0 + np.log1p(weight)
    owner, word = key // max(1, len(dictionary)), key % max(1, len(dictionary))
    heaviest = np.lexsort((word, -weight, owner))
    offsets = pa.array(np.searchsorted(owner, np.arange(campaigns + 1)), pa.int32())
    texts = pc.take(dictionary, pa.array(word[heaviest])).cast(pa.string())
    return (
        pa.ListArray.from_arrays(offsets, texts),
        pa.ListArray.from_arrays(offsets, pa.array(weight[heaviest], pa.float32())),
    )


def _row_weights(raw: pa.Table, config: PrepareConfig) -> np.ndarray:
    """Return what each row adds to its term, before the rule is applied to the sum; negatives count as nothing."""
    if config.weighting in ("presence", "count"):
        return np.ones(raw.num_rows)
    column = raw[config.weighting.removeprefix("log_")].combine_chunks().cast(pa.float64())
    weights: np.ndarray = pc.fill_null(column, 0.0).to_numpy(zero_copy_only=False)
    return np.asarray(np.maximum(weights, 0.0))


class _Attribute:
    def __init__(self, values: pa.Array, constant: bool) -> None:
        self.values = values
        self.constant = constant


def _gather_attribute(values: pa.Array, campaign: np.ndarray, campaigns: int) -> _Attribute:
    """Return each campaign's most frequent value, the smallest of equally frequent ones, null where it has none."""
    encoded = pc.dictionary_encode(values)
    valid = encoded.indices.is_valid().to_numpy(zero_copy_only=False)
    codes = encoded.indices.drop_null().to_numpy().astype(np.int64)
    sort = pc.sort_indices(encoded.dictionary).to_numpy()
    rank = np.empty(len(sort), dtype=np.int64)
    rank[sort] = np.arange(len(sort))
    width = max(1, len(sort))
    key, count = np.unique(campaign[valid] * width + rank[codes], return_counts=True)
    owner, value = key // width, key % width
    best = np.lexsort((value, -count, owner))
    first = np.flatnonzero(np.diff(owner[best], prepend=-1))
    result = np.full(campaigns, -1, dtype=np.int64)
    result[owner[best][first]] = value[best][first]
    present = pa.array(np.where(result >= 0, sort[np.maximum(result, 0)] if len(sort) else 0, 0), mask=result < 0)
    taken = pc.take(encoded.dictionary, present) if len(sort) else pa.nulls(campaigns, values.type)
    return _Attribute(taken, len(key) == len(first))
