"""The data that is measured on: O*NET terms, advertisements, and corpora drawn from LDA's own model."""

import csv
import gzip
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import scipy.sparse as sp

from mlflywheel.models.topic_fingerprints.text import Counts, TextOptions, Vocabulary, learn_vocabulary, read_bags

ONET = "campaign_topics/onet27_campaign_terms.csv.gz"
FARM_ADS = "campaign_topics/farm_ads.csv.gz"
SMALLEST_CAMPAIGN = 15
TOPICS = 50


@dataclass(frozen=True)
class Labelled:
    """Campaigns with what they are about.

    Args:
        terms: Each campaign's terms.
        labels: One a campaign.
        families: Campaigns of one family are shards of one occupation: they share no term by construction.
    """

    terms: list[list[str]]
    labels: np.ndarray
    families: np.ndarray

    def take(self, rows: np.ndarray) -> "Labelled":
        """Return the campaigns at some positions, or where a mask is true."""
        positions = np.flatnonzero(rows) if rows.dtype == bool else rows
        return Labelled([self.terms[i] for i in positions], self.labels[positions], self.families[positions])


def read_onet(data_folder: Path, by: str = "campaign_id", smallest: int = SMALLEST_CAMPAIGN) -> Labelled | None:
    """Return O*NET's terms by campaign or by `occupation_code`, None where the file is absent.

    An occupation's titles, tools, software and activities stand in for keywords; the label is one of 23 major groups.
    """
    if not (data_folder / ONET).is_file():
        return None
    terms: dict[str, list[str]] = {}
    facts: dict[str, tuple[str, str]] = {}
    with gzip.open(data_folder / ONET, "rt", encoding="utf-8", newline="") as lines:
        for row in csv.DictReader(lines):
            terms.setdefault(row[by], []).append(row["term"])
            facts[row[by]] = (row["vertical"], row["occupation_code"])
    kept = sorted(name for name, own in terms.items() if len(own) >= smallest)
    labels, families = zip(*(facts[name] for name in kept), strict=True)
    return Labelled([terms[name] for name in kept], np.array(labels), np.array(families))


def read_farm_ads(data_folder: Path) -> Labelled | None:
    """Return real advertisements with the label whether farm sites accepted them; None where the file is absent."""
    if not (data_folder / FARM_ADS).is_file():
        return None
    with gzip.open(data_folder / FARM_ADS, "rt", encoding="utf-8", newline="") as lines:
        rows = list(csv.DictReader(lines))
    labels = np.array([row["label"] for row in rows])
    return Labelled([row["tokens"].split() for row in rows], labels, np.arange(len(rows)).astype(str))


def count_words(terms: list[list[str]], bigrams: bool) -> tuple[Vocabulary, Counts, TextOptions]:
    """Count words as the product does, so that every method is given the same ones."""
    options = TextOptions(bigrams=bigrams)
    vocabulary, counts = learn_vocabulary(read_bags(pa.array(terms, pa.list_(pa.string()))), options)
    return vocabulary, counts, options


@dataclass(frozen=True)
class Drawn:
    """A corpus drawn from LDA's own model, which flatters LDA.

    Args:
        counts: CSR float32 (campaigns, terms).
        mixtures: The true topic shares, (campaigns, topics).
        topics: The true p(term | topic), (topics, terms).
    """

    counts: sp.csr_matrix
    mixtures: np.ndarray
    topics: np.ndarray


def draw_corpus(
    campaigns: int, tokens: int, terms: int = 20_000, seed: int = 0, topics: np.ndarray | None = None
) -> Drawn:
    """Draw campaigns: Dirichlet(0.05) mixtures of 50 topics over Zipf-distributed terms.

    Args:
        campaigns: Number of campaigns.
        tokens: Term occurrences in each.
        terms: Size of the vocabulary.
        seed: Seed.
        topics: True topics to use instead of new ones.
    """
    rng = np.random.default_rng(seed)
    if topics is None:
        base = 1.0 / np.arange(1, terms + 1)
        topics = rng.gamma(base / base.sum() * terms * 0.05 + 1e-9, 1.0, (TOPICS, terms)) + 1e-300
        topics /= topics.sum(axis=1, keepdims=True)
    mixtures = rng.dirichlet(np.full(len(topics), 0.05), campaigns)
    # One uniform number chooses the topic, another the term inside it.
    steps = np.cumsum(mixtures, axis=1)
    chosen = (rng.random((campaigns, tokens))[:, :, None] > steps[:, None, :-1]).sum(axis=2)
    within = rng.random((campaigns, tokens))
    columns = np.empty((campaigns, tokens), dtype=np.int64)
    for topic, weights in enumerate(topics):
        mask = chosen == topic
        columns[mask] = np.minimum(np.searchsorted(np.cumsum(weights), within[mask]), topics.shape[1] - 1)
    rows = np.repeat(np.arange(campaigns), tokens)
    ones = np.ones(campaigns * tokens, dtype=np.float32)
    counts = sp.csr_matrix((ones, (rows, columns.ravel())), shape=(campaigns, topics.shape[1]))
    counts.sum_duplicates()
    return Drawn(counts, mixtures, topics)


def to_bows(counts: sp.csr_matrix) -> list[list[tuple[int, float]]]:
    """Return rows as gensim's bags of words."""
    ends = counts.indptr.tolist()
    columns, values = counts.indices.tolist(), counts.data.tolist()
    return [list(zip(columns[a:b], values[a:b], strict=True)) for a, b in pairwise(ends)]
