"""On real terms, fingerprints find the right neighbours more often than plain word vectors, and their topics read well.

The terms are those of O*NET 27.0 (U.S. Department of Labor, CC BY 4.0): job titles, tools and activities stand in for
an advertiser's keywords, and the occupation's major group for the vertical. They are not part of the repository.
"""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from mlflywheel.models.topic_fingerprints.model import FitParams, TopicFingerprints
from mlflywheel.models.topic_fingerprints.naming import rank_terms
from mlflywheel.models.topic_fingerprints.preparation import PrepareConfig, prepare_campaigns
from mlflywheel.models.topic_fingerprints.quality import measure_coherence, measure_diversity, measure_purity
from mlflywheel.models.topic_fingerprints.references import find_reference_neighbours
from mlflywheel.models.topic_fingerprints.text import (
    TextOptions,
    count_features,
    count_terms,
    learn_vocabulary,
    read_campaigns,
)

_TERMS = Path(__file__).parents[3] / "shared" / "data" / "campaign_topics" / "onet27_campaign_terms.csv.gz"
pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(not _TERMS.is_file(), reason="needs the O*NET terms in shared/data beside the repository"),
]

WORDS = TextOptions(bigrams=False)


@pytest.fixture(scope="module")
def rows() -> pa.Table:
    from pyarrow import csv

    text = csv.ConvertOptions(column_types=dict.fromkeys(["campaign_id", "occupation_code", "term"], pa.string()))
    return csv.read_csv(_TERMS, convert_options=text)


@pytest.fixture(scope="module")
def campaigns(rows: pa.Table) -> pa.Table:
    """Campaigns with at least 15 terms; several can stem from one occupation."""
    table = prepare_campaigns(
        rows.select(["campaign_id", "term", "vertical", "occupation_code"]), PrepareConfig()
    ).combine_chunks()
    return table.filter(pa.array(count_terms(table) >= 15)).combine_chunks()


@pytest.fixture(scope="module")
def occupations(rows: pa.Table) -> pa.Table:
    named = rows.select(["occupation_code", "term", "vertical"]).rename_columns(["campaign_id", "term", "vertical"])
    return prepare_campaigns(named, PrepareConfig())


@pytest.fixture(scope="module")
def model(campaigns: pa.Table) -> TopicFingerprints:
    return TopicFingerprints.fit(campaigns, FitParams())


def find_reference(table: pa.Table, k: int) -> np.ndarray:
    """Nearest others by TF-IDF of single words and a truncated SVD with 100 components."""
    _, counts = learn_vocabulary(read_campaigns(table), WORDS)
    return find_reference_neighbours(counts.matrix, counts.matrix, k)[0].positions


def purity(positions: np.ndarray, table: pa.Table, left_out: str = "campaign_id") -> float:
    """Mean share of the 10 nearest others with the same vertical, rows with the same value of a column left out."""
    values = np.asarray(table[left_out].to_pylist(), dtype=object)
    labels = table["vertical"].to_pylist()
    other = (positions >= 0) & (values[positions] != values[:, None])
    order = np.argsort(~other, axis=1, kind="stable")[:, :10]
    assert np.take_along_axis(other, order, axis=1).all(), "enough others were looked up"
    return float(np.nanmean(measure_purity(np.take_along_axis(positions, order, axis=1), labels, labels)))


def find_own(model: TopicFingerprints, k: int) -> np.ndarray:
    found = model.index.search(model.index.vectors, k).positions
    assert model.index.ids == model.catalogue["campaign_id"].to_pylist(), "every campaign has a known term"
    return found


def test_neighbours_of_campaigns_are_better_than_the_reference(model: TopicFingerprints, campaigns: pa.Table) -> None:
    # An occupation has up to 61 campaigns.
    siblings = max(pc.value_counts(campaigns["occupation_code"]).field("counts").to_pylist())
    own, reference = find_own(model, siblings + 10), find_reference(campaigns, siblings + 10)
    found = {name: purity(own, campaigns, name) for name in ("campaign_id", "occupation_code")}
    plain = {name: purity(reference, campaigns, name) for name in ("campaign_id", "occupation_code")}
    print(f"campaigns {found}, reference {plain}")
    assert found["campaign_id"] >= 0.90
    assert found["campaign_id"] > plain["campaign_id"] + 0.02
    assert found["occupation_code"] >= 0.85
    assert found["occupation_code"] > plain["occupation_code"] + 0.04


def test_neighbours_of_occupations_are_better_than_the_reference(occupations: pa.Table) -> None:
    own = purity(find_own(TopicFingerprints.fit(occupations, FitParams()), 11), occupations)
    reference = purity(find_reference(occupations, 11), occupations)
    print(f"occupations {own:.4f}, reference {reference:.4f}")
    assert own >= 0.87
    assert own > reference + 0.05


def test_topics_read_well(model: TopicFingerprints, campaigns: pa.Table) -> None:
    top = rank_terms(model.topics.topic_term(), model.topics.term_topic(), 10).tolist()
    coherence = float(np.mean(measure_coherence(top, model.count(campaigns)[1].matrix)))
    diversity = measure_diversity(top)
    print(f"npmi {coherence:.4f}, diversity {diversity:.4f}")
    assert coherence >= 0.40
    assert diversity >= 0.80


def test_unseen_campaigns_are_no_worse_than_the_reference(campaigns: pa.Table) -> None:
    held_out = np.random.default_rng(0).random(campaigns.num_rows) < 0.2
    train, unseen = campaigns.filter(pa.array(~held_out)), campaigns.filter(pa.array(held_out))
    model = TopicFingerprints.fit(train, FitParams())
    _, counts = model.count(unseen)
    known = np.diff(counts.matrix.indptr) > 0
    found = model.index.search(model.embed(model.topics.transform(counts.matrix), known), 10).positions
    vocabulary, fitted = learn_vocabulary(read_campaigns(train), WORDS)
    asked = count_features(read_campaigns(unseen), vocabulary, WORDS)
    reference = find_reference_neighbours(fitted.matrix, asked.matrix, 10)[0].positions
    labels, catalogue = unseen["vertical"].to_pylist(), train["vertical"].to_pylist()
    own = float(np.nanmean(measure_purity(found, labels, catalogue)))
    plain = float(np.nanmean(measure_purity(reference, labels, catalogue)))
    print(f"unseen {own:.4f}, reference {plain:.4f}")
    assert own >= plain - 0.01
