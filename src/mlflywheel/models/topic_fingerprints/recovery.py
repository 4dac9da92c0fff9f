"""How many of a campaign's own keywords are recommended back to it, when some of them are hidden.

The one measurement of recommendations that needs no labels: campaigns already say which keywords belong to them. The
hidden fifth is chosen by a hash, so it is the same for every model that is measured on a campaign.
"""

import hashlib
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from mlflywheel.models.topic_fingerprints.recommendation import normalize_keyword

if TYPE_CHECKING:
    from mlflywheel.models.topic_fingerprints.model import TopicFingerprints

AT = 10
_HIDDEN_SHARE = 0.2
_FEWEST_KEYWORDS = 5


def hide_keywords(table: pa.Table) -> tuple[pa.Table, list[set[str]]]:
    """Hide a fifth of the keywords of every campaign that has five or more; near-duplicates are hidden together.

    Args:
        table: Prepared campaigns.

    Returns:
        `campaign_id`, `terms` and `weights` (if there were any) of what can still be seen, and the hidden keywords of
        each campaign, normalised; none for a smaller campaign.
    """
    ids = table["campaign_id"].to_pylist()
    weights = table["weights"].to_pylist() if "weights" in table.column_names else [None] * table.num_rows
    shown_terms, shown_weights, hidden = [], [], []
    for campaign, terms, own in zip(ids, table["terms"].to_pylist(), weights, strict=True):
        keys = [normalize_keyword(term or "") for term in terms or ()]
        distinct = sorted({key for key in keys if key}, key=lambda key: _hash(f"{campaign}\0{key}"))
        away = set(distinct[: int(len(distinct) * _HIDDEN_SHARE)]) if len(distinct) >= _FEWEST_KEYWORDS else set()
        kept = [number for number, key in enumerate(keys) if key not in away]
        shown_terms.append([terms[number] for number in kept])
        shown_weights.append(None if own is None else [own[number] for number in kept])
        hidden.append(away)
    shown = pa.table({"campaign_id": pa.array(ids, pa.string()), "terms": pa.array(shown_terms, pa.list_(pa.string()))})
    if "weights" in table.column_names:
        shown = shown.append_column("weights", pa.array(shown_weights, pa.list_(pa.float32())))
    return shown, hidden


def _hash(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=8).digest()


def measure_recovery(model: "TopicFingerprints", table: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    """Return the share of hidden keywords among ten recommended ones, and among the ten most used keywords.

    Args:
        model: The fitted model.
        table: Prepared campaigns that it was not fitted on.

    Returns:
        Two arrays, float64 (campaigns,), from 0 to 1: hidden keywords found, of ten or as many as were hidden. NaN for
        a campaign of fewer than five keywords.
    """
    shown, hidden = hide_keywords(table)
    bags, counts = model.count(shown)
    fingerprints = model.topics.transform(counts.matrix)
    vectors = model.embed(fingerprints, np.diff(counts.matrix.indptr) > 0)
    found = model.index.search(vectors, model.params.neighbours, shown["campaign_id"].to_pylist())
    recommended = model.recommend(bags, found, fingerprints, AT)
    popularity = np.bincount(model.keywords.use.indices, minlength=len(model.keywords.keywords))
    order = np.argsort(-popularity, kind="stable")
    key_of = {column: key for key, column in model.keywords.columns.items()}
    most_used = [key_of[column] for column in order.tolist()]
    recall, popular = np.full(table.num_rows, np.nan), np.full(table.num_rows, np.nan)
    for row, (away, terms) in enumerate(zip(hidden, shown["terms"].to_pylist(), strict=True)):
        if away:
            most = min(AT, len(away))
            recall[row] = len(away & {normalize_keyword(item.term) for item in recommended[row]}) / most
            seen = {normalize_keyword(term or "") for term in terms}
            named = [key for key in most_used[: AT + len(seen)] if key not in seen][:AT]
            popular[row] = len(away.intersection(named)) / most
    return recall, popular
