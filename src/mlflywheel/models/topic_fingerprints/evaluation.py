"""Measuring topic fingerprints on held-out campaigns, beside the plain references that they must be worth more than."""

from collections.abc import Collection, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import scipy.sparse as sp

from mlflywheel.events import ProgressCallback, ignore_progress
from mlflywheel.models.contract import Evaluation, Measurement, RowMetric, RowScores, choose_measurements
from mlflywheel.models.topic_fingerprints.lda import Lda
from mlflywheel.models.topic_fingerprints.naming import rank_terms
from mlflywheel.models.topic_fingerprints.quality import (
    find_unclear,
    measure_coherence,
    measure_diversity,
    measure_exposure,
    measure_hubness,
    measure_purity,
    measure_stability,
)
from mlflywheel.models.topic_fingerprints.recovery import measure_recovery
from mlflywheel.models.topic_fingerprints.references import ReferenceNeighbours, find_reference_neighbours
from mlflywheel.models.topic_fingerprints.text import (
    TextOptions,
    count_features,
    count_terms,
    learn_vocabulary,
    read_campaigns,
)
from mlflywheel.statistics.intervals import Interval, estimate_difference, estimate_mean, estimate_share

if TYPE_CHECKING:
    from mlflywheel.models.topic_fingerprints.model import TopicFingerprints

TRUTH = "vertical"
SLICED_BY = ("vertical", "advertiser_tier", "locale")
EXPOSED = ("advertiser_tier", "locale")
PURITY = "neighbour_purity_at_10"
RECOVERY = "hidden_keyword_recall_at_10"
_AT = 10
_THIN_TERMS = 10
_TOP_TERMS = 10


@dataclass(frozen=True)
class _Scored:
    """What held-out campaigns got, one entry a campaign."""

    table: pa.Table
    fingerprints: np.ndarray
    known: np.ndarray
    unknown_share: np.ndarray
    neighbours: np.ndarray
    similarity: np.ndarray


def evaluate_fingerprints(
    model: "TopicFingerprints", table: pa.Table, progress: ProgressCallback = ignore_progress
) -> Evaluation:
    """Measure a model on campaigns that it was not fitted on.

    Neighbours of held-out campaigns are looked up among the training campaigns. Coherence and diversity are properties
    of the topics, measured on the training campaigns; stability refits the topics on two bootstrap resamples of them.

    Args:
        model: The fitted model.
        table: Prepared held-out campaigns; none is a defined case, whose measurements are None.
        progress: Called with the phase `measuring`.
    """
    steps = 5
    progress("measuring", 0, steps)
    scored = _score(model, table)
    progress("measuring", 1, steps)
    measurements = list(_measure_topics(model, scored))
    progress("measuring", 2, steps)
    stability, stable = _measure_stability(model, progress)
    measurements.append(stability)
    progress("measuring", 3, steps)
    references = _find_references(model, table)
    measurements += _measure_campaigns(model, scored, references)
    progress("measuring", 4, steps)
    measurements += _measure_exposure(model, scored)
    from mlflywheel.models.topic_fingerprints.sections import build_sections

    sections = build_sections(model, scored.table, scored.fingerprints, measurements, stable)
    progress("measuring", steps, steps)
    return Evaluation(tuple(measurements), sections)


def measure_fingerprints(
    model: "TopicFingerprints", table: pa.Table, metrics: Collection[str], progress: ProgressCallback = ignore_progress
) -> tuple[Measurement, ...]:
    """Measure some overall metrics: without slices, and without refits and references unless they are asked for."""
    scored = _score(model, table)
    values, shares = _value_campaigns(model, scored, [])
    note = _note_truth(values[PURITY])
    found = [_measurement(name, _estimate(name, value), note=note) for name, value in values.items()]
    found += [_measurement(name, _estimate(name, value)) for name, value in shares.items()]
    if not set(metrics) <= {measurement.metric for measurement in found}:
        found += _measure_topics(model, scored)
    if not set(metrics) <= {measurement.metric for measurement in found}:
        return choose_measurements(evaluate_fingerprints(model, table, progress).measurements, metrics)
    return choose_measurements(found, metrics)


def score_rows(model: "TopicFingerprints", table: pa.Table) -> RowScores:
    """Measure every campaign by itself; see `Model.score_rows`."""
    scored = _score(model, table)
    values, shares = _value_campaigns(model, scored, _find_references(model, table)[:1])
    # Positions count the campaigns that can be found: those with a known term.
    found = model.catalogue.filter(pa.array(model.known))
    ids = [str(one) for one in found["campaign_id"].to_pylist()]
    finite = np.isfinite(scored.fingerprints).all(axis=1)
    answers = [
        [ids[place] for place in row if place >= 0] if has_fingerprint else None
        for row, has_fingerprint in zip(scored.neighbours.tolist(), finite.tolist(), strict=True)
    ]
    metrics = (
        RowMetric(PURITY, values[PURITY], "higher", (0.0, 1.0)),
        RowMetric(RECOVERY, shares[RECOVERY], "higher", (0.0, 1.0)),
        RowMetric("out_of_vocabulary_share", shares["out_of_vocabulary_share"], "lower", (0.0, 1.0)),
        RowMetric("no_known_term_share", shares["no_known_term_share"], "lower", (0.0, 1.0)),
    )
    # Without a column that says which campaigns belong together, their own keywords do.
    labelled = bool(np.isfinite(values[PURITY]).any())
    reference = values[f"reference_{PURITY}"] if labelled else shares[f"reference_{RECOVERY}"]
    return RowScores(
        task="recommendation",
        ids=table["campaign_id"].cast(pa.string()).combine_chunks(),
        attributes=_attributes(table),
        metrics=metrics if labelled else metrics[1:],
        answers=pa.array(answers, pa.list_(pa.string())),
        references={"tfidf_svd" if labelled else "most_used_keywords": reference},
        catalogue=_attributes(found).append_column("id", pa.array(ids, pa.string())),
    )


def _attributes(table: pa.Table) -> pa.Table:
    """Return what campaigns may be sliced by: their attribute columns, and how many terms they have."""
    lengths = count_terms(table)
    columns = {
        name: table[name]
        for name, kind in zip(table.schema.names, table.schema.types, strict=True)
        if name != "campaign_id" and not pa.types.is_nested(kind)
    }
    sizes = np.where(lengths < _THIN_TERMS, "thin", "thick")
    return pa.table({**columns, "terms": pa.array(lengths.astype(np.float64)), "size": pa.array(sizes.tolist())})


def _score(model: "TopicFingerprints", table: pa.Table) -> _Scored:
    _, counts = model.count(table)
    fingerprints = model.topics.transform(counts.matrix)
    known = np.diff(counts.matrix.indptr) > 0
    found = model.index.search(model.embed(fingerprints, known), _AT, table["campaign_id"].to_pylist())
    return _Scored(table, fingerprints, known, counts.unknown_share, found.positions, found.similarity)


def _measure_topics(model: "TopicFingerprints", scored: _Scored) -> Iterator[Measurement]:
    top = rank_terms(model.topics.topic_term(), model.topics.term_topic(), _TOP_TERMS).tolist()
    _, counts = model.count(model.catalogue)
    coherence = measure_coherence(top, sp.csr_array(counts.matrix))
    mean = estimate_mean(coherence)
    yield _measurement("coherence_c_npmi", mean, note="top 10 terms of each topic, over the training campaigns")
    yield Measurement("topic_diversity", _finite(measure_diversity(top)), count=model.num_topics)
    yield Measurement("num_topics", float(model.num_topics), count=model.num_topics)
    yield Measurement("vocabulary_terms", float(len(model.vocabulary)), count=model.catalogue.num_rows)
    if isinstance(model.topics, Lda) and scored.table.num_rows:
        _, held_out = model.count(scored.table)
        perplexity = _finite(model.topics.perplexity(held_out.matrix))
        yield Measurement("held_out_perplexity", perplexity, count=scored.table.num_rows, note="document completion")


def _measure_stability(model: "TopicFingerprints", progress: ProgressCallback) -> tuple[Measurement, np.ndarray | None]:
    """Refit on two bootstrap resamples of the campaigns, and match their topics.

    A second seed would say nothing: both algorithms start from a decomposition that hardly depends on it.
    """
    from mlflywheel.models.topic_fingerprints.model import fit_topics

    rows = model.catalogue.num_rows
    if rows < 2:
        return Measurement("topic_stability", None, count=rows, note="one campaign cannot be resampled"), None
    _, counts = model.count(model.catalogue)
    random = np.random.default_rng(model.params.seed)
    fits = []
    for number in range(2):
        resample = counts.matrix[np.sort(random.integers(0, rows, rows))]
        if resample.nnz == 0:
            return Measurement("topic_stability", None, count=rows, note="a resample has no terms"), None
        fits.append(fit_topics(resample, model.params).topic_term())
        progress("refitting on resamples", number + 1, 2)
    agreement = measure_stability(fits[0], fits[1])
    own = measure_stability(model.topics.topic_term(), fits[0])
    note = "cosine of matched topics of two bootstrap resamples of the campaigns"
    return Measurement("topic_stability", agreement.mean, count=model.num_topics, note=note), own.per_topic


def _find_references(model: "TopicFingerprints", table: pa.Table) -> list[ReferenceNeighbours]:
    """TF-IDF references see single words only, as the published baselines do."""
    options = TextOptions.model_validate({**model.params.text.model_dump(), "bigrams": False})
    vocabulary, fitted = learn_vocabulary(read_campaigns(model.catalogue), options)
    held_out = count_features(read_campaigns(table), vocabulary, options)
    return find_reference_neighbours(fitted.matrix, held_out.matrix, _AT, model.params.seed)


def _measure_campaigns(
    model: "TopicFingerprints", scored: _Scored, references: list[ReferenceNeighbours]
) -> list[Measurement]:
    """Per-campaign values, overall and by slice."""
    values, shares = _value_campaigns(model, scored, references)
    purity = values[PURITY]
    no_truth = _note_truth(purity)
    measurements = []
    for rows, name in _slices(scored.table):
        for metric, value in {**values, **shares}.items():
            note = no_truth if metric in values else ""
            measurements.append(_measurement(metric, _estimate(metric, value[rows]), name, note))
    gain = estimate_difference(purity, values[f"reference_{PURITY}"])
    measurements.append(_measurement("neighbour_purity_gain", gain, note=no_truth or "over the reference, paired"))
    indexed = int(np.count_nonzero(model.known))
    hubness = _hubness(scored.neighbours, indexed)
    measurements.append(Measurement("neighbour_occurrence_skewness", hubness, count=indexed))
    return measurements


def _value_campaigns(
    model: "TopicFingerprints", scored: _Scored, references: list[ReferenceNeighbours]
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Return what each campaign's neighbours and fingerprint are worth, by metric: against the truth, and without."""
    labels = _column(scored.table, TRUTH)
    catalogue = _column(model.catalogue, TRUTH)
    known = [label for label, kept in zip(catalogue, model.known, strict=True) if kept]
    values = {PURITY: _purity(scored.neighbours, labels, known)}
    for reference in references:
        values[f"reference_{reference.prefix}{PURITY}"] = _purity(reference.positions, labels, catalogue)
    recovery, popular = measure_recovery(model, scored.table)
    shares = {
        RECOVERY: recovery,
        f"reference_{RECOVERY}": popular,
        "out_of_vocabulary_share": scored.unknown_share,
        "no_clear_topic_share": np.where(scored.known, find_unclear(scored.fingerprints, clear_share(model)), np.nan),
        "no_known_term_share": (~scored.known).astype(float),
        "mean_neighbour_similarity": _row_means(scored.similarity),
    }
    return values, shares


def _note_truth(purity: np.ndarray) -> str:
    return "" if np.isfinite(purity).any() else f"no {TRUTH} to compare with"


def clear_share(model: "TopicFingerprints") -> float:
    """Return the largest share from which a campaign has a clear topic: four times the even share, at most one half.

    >>> class Fifty:
    ...     num_topics = 50
    >>> clear_share(Fifty())
    0.08
    """
    return min(0.5, 4.0 / model.num_topics)


def _measure_exposure(model: "TopicFingerprints", scored: _Scored) -> list[Measurement]:
    """How much of the neighbour lists each group of advertisers gets, against its share of the catalogue."""
    full = scored.neighbours[(scored.neighbours >= 0).all(axis=1)]
    measurements = []
    for column in EXPOSED:
        groups = [value for value, kept in zip(_column(model.catalogue, column), model.known, strict=True) if kept]
        if not len(full) or not any(group is not None for group in groups):
            continue
        for exposure in measure_exposure(full, groups):
            measurements.append(
                _measurement(
                    "exposure_to_catalogue_ratio",
                    exposure.ratio,
                    f"{column}={exposure.group}",
                    f"{exposure.catalogue_share:.1%} of the catalogue, {exposure.exposure_share:.1%} of the exposure",
                )
            )
    return measurements


def _slices(table: pa.Table) -> Iterator[tuple[np.ndarray, str]]:
    """Yield the rows of every slice: all, each value of the sliced columns, and thin and thick campaigns."""
    yield np.ones(table.num_rows, dtype=bool), "all"
    for column in SLICED_BY:
        if column in table.column_names:
            values = np.asarray(_column(table, column), dtype=object)
            for value in sorted({value for value in values if value is not None}, key=str):
                yield values == value, f"{column}={value}"
    lengths = count_terms(table)
    for rows, name in ((lengths < _THIN_TERMS, "thin"), (lengths >= _THIN_TERMS, "thick")):
        if rows.any():
            yield rows, f"size={name}"


def _purity(neighbours: np.ndarray, labels: Sequence[Hashable], catalogue: Sequence[Hashable]) -> np.ndarray:
    """Purity of rows that have all their neighbours; a row with fewer is measured on those that it has."""
    result = np.full(len(neighbours), np.nan)
    complete = (neighbours >= 0).all(axis=1) if neighbours.size else np.zeros(len(neighbours), dtype=bool)
    for rows in [np.flatnonzero(complete), *(np.array([row]) for row in np.flatnonzero(~complete))]:
        if len(rows):
            nearest = neighbours[rows]
            kept = nearest[:, (nearest >= 0).all(axis=0)]
            if kept.shape[1]:
                result[rows] = measure_purity(kept, [labels[row] for row in rows], catalogue)
    return result


def _estimate(metric: str, values: np.ndarray) -> Interval:
    defined = values[~np.isnan(values)]
    if metric in ("no_clear_topic_share", "no_known_term_share"):
        return estimate_share(int(defined.sum()), len(defined))
    bounds = (-1.0, 1.0) if metric == "mean_neighbour_similarity" else (0.0, 1.0)
    return estimate_mean(np.clip(values, *bounds), bounds=bounds)


def _measurement(metric: str, interval: Interval, name: str = "all", note: str = "") -> Measurement:
    return Measurement(
        metric, _finite(interval.value), name, interval.count, _finite(interval.low), _finite(interval.high), note
    )


def _row_means(similarity: np.ndarray) -> np.ndarray:
    counted = np.isfinite(similarity).sum(axis=1)
    return np.where(counted > 0, np.nansum(similarity, axis=1) / np.maximum(counted, 1), np.nan)


def _hubness(neighbours: np.ndarray, catalogue: int) -> float | None:
    complete = neighbours[(neighbours >= 0).all(axis=1)] if neighbours.size else neighbours[:0]
    return _finite(measure_hubness(complete, catalogue).skewness) if len(complete) else None


def _column(table: pa.Table, name: str) -> list[Any]:
    return list(table[name].to_pylist()) if name in table.column_names else [None] * table.num_rows


def _finite(value: float | None) -> float | None:
    return None if value is None or not np.isfinite(value) else float(value)
