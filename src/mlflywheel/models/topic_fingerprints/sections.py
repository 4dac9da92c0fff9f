"""The model's own part of the report: a map of the topics, their terms, and example campaigns."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from mlflywheel.models.contract import Measurement, Section
from mlflywheel.models.topic_fingerprints.text import count_terms

if TYPE_CHECKING:
    from mlflywheel.models.topic_fingerprints.model import TopicFingerprints

_DOTS = 3000
_EXAMPLES = 6
_CHIPS = 12


def build_sections(
    model: "TopicFingerprints",
    table: pa.Table,
    fingerprints: np.ndarray,
    measurements: Sequence[Measurement],
    stability: np.ndarray | None,
) -> tuple[Section, ...]:
    """Build the report's sections.

    Args:
        model: The fitted model.
        table: Held-out campaigns.
        fingerprints: Their fingerprints, float32 (campaigns, topics).
        measurements: What was measured.
        stability: Likeness of each topic to its match in a refit, (topics,), if it was measured.
    """
    sections = [_map(model), _topic_table(model, stability)]
    if table.num_rows:
        sections.append(_examples(model, table, fingerprints))
    sections.append(_references(measurements))
    exposure = [m for m in measurements if m.metric == "exposure_to_catalogue_ratio"]
    if exposure:
        sections.append(_exposure(exposure))
    return tuple(sections)


def _map(model: "TopicFingerprints") -> Section:
    """Place topics by similarity of their campaigns, and each campaign at the mean of its topics."""
    fingerprints = model.fingerprints[model.known]
    places = _place_topics(fingerprints)
    mean = fingerprints.mean(axis=0)
    # What a campaign has above the mean pulls it; the common background would pull every campaign to the centre.
    pull = np.maximum(fingerprints - mean, 0.0) ** 2
    pull /= np.maximum(pull.sum(axis=1, keepdims=True), 1e-12)
    random = np.random.default_rng(0)
    dots = pull @ places + random.normal(0.0, 0.012, (len(pull), 2))
    catalogue = model.catalogue.filter(pa.array(model.known))
    chosen = np.sort(random.permutation(len(dots))[:_DOTS])
    groups = _values(catalogue, "vertical")
    ids = catalogue["campaign_id"].to_pylist()
    owner = fingerprints.argmax(axis=1)
    bubbles = []
    for topic in model.named:
        inside = [groups[row] for row in np.flatnonzero(owner == topic.id) if groups[row] is not None]
        bubbles.append(
            {
                "x": float(places[topic.id, 0]),
                "y": float(places[topic.id, 1]),
                "size": float(mean[topic.id]),
                "label": topic.name,
                "group": max(sorted(set(inside)), key=inside.count) if inside else None,
                "detail": [", ".join(topic.terms[:8]), f"{mean[topic.id]:.1%} of the catalogue"],
            }
        )
    data: dict[str, Any] = {
        "dots": [
            {"x": float(dots[row, 0]), "y": float(dots[row, 1]), "group": groups[row], "label": ids[row]}
            for row in chosen
        ],
        "bubbles": [{key: value for key, value in bubble.items() if value is not None} for bubble in bubbles],
        "dot_noun": "campaign",
        "bubble_noun": "topic",
    }
    for dot in data["dots"]:
        if dot["group"] is None:
            del dot["group"]
    text = (
        "A bubble is a topic, its size the topic's share of the catalogue; near bubbles are topics that campaigns "
        "combine. A dot is a campaign, drawn between the topics that it has more of than the average."
    )
    return Section("scatter", "Topic map", text, data)


def _place_topics(fingerprints: np.ndarray) -> np.ndarray:
    """Place topics in the unit square so that topics with alike campaigns lie close, float64 (topics, 2)."""
    topics = fingerprints.shape[1]
    if topics < 5 or len(fingerprints) < 5:
        angle = 2.0 * np.pi * np.arange(topics) / topics
        return np.column_stack([np.cos(angle), np.sin(angle)]) * 0.5 + 0.5
    from sklearn.manifold import TSNE

    spread = fingerprints.std(axis=0)
    centred = (fingerprints - fingerprints.mean(axis=0)) / np.where(spread > 0, spread, 1.0)
    alike = centred.T @ centred / len(centred)
    distance = np.sqrt(np.maximum(2.0 - 2.0 * np.clip(alike, -1.0, 1.0), 0.0))
    np.fill_diagonal(distance, 0.0)
    layout = TSNE(
        2, perplexity=min(10.0, (topics - 1) / 3), metric="precomputed", init="random", random_state=0, max_iter=1000
    ).fit_transform(distance)
    low, high = layout.min(axis=0), layout.max(axis=0)
    return np.asarray((layout - low) / np.where(high > low, high - low, 1.0), dtype=np.float64)


def _topic_table(model: "TopicFingerprints", stability: np.ndarray | None) -> Section:
    shares = model.fingerprints[model.known].mean(axis=0)
    owner = np.bincount(model.fingerprints[model.known].argmax(axis=1), minlength=model.num_topics)
    columns = [
        {"name": "Topic", "kind": "text"},
        {"name": "Most distinctive terms", "kind": "list"},
        {"name": "Share", "kind": "share"},
        {"name": "Campaigns it leads", "kind": "number"},
    ]
    rows: list[list[Any]] = [
        [topic.name, list(topic.terms[:10]), float(shares[topic.id]), int(owner[topic.id])] for topic in model.named
    ]
    if stability is not None:
        columns.append({"name": "Found again", "kind": "share"})
        for topic, row in zip(model.named, rows, strict=True):
            row.append(float(stability[topic.id]))
    text = (
        "Terms that a topic uses often and other topics do not. Share: of the catalogue's fingerprints. Found again: "
        "likeness to the matching topic of a refit on resampled campaigns, 1 for the same."
    )
    return Section("table", "Topics", text, {"columns": columns, "rows": rows, "sortable": True})


def _examples(model: "TopicFingerprints", table: pa.Table, fingerprints: np.ndarray) -> Section:
    """Show held-out campaigns: from different topics, one of them thin."""
    chosen = _choose(table, fingerprints)
    scored = model.predict(table.take(pa.array(chosen))).to_pylist()
    catalogue = dict(zip(model.catalogue["campaign_id"].to_pylist(), range(model.catalogue.num_rows), strict=True))
    cards = []
    for row, answer in zip(chosen, scored, strict=True):
        campaign = table.slice(row, 1).to_pylist()[0]
        own = set(campaign["terms"])
        facts = [str(campaign[name]) for name in ("vertical", "locale", "advertiser_tier") if campaign.get(name)]
        neighbours = []
        for neighbour in answer["neighbours"][:5]:
            other = model.catalogue.slice(catalogue[neighbour["campaign_id"]], 1).to_pylist()[0]
            shared = len(own & set(other["terms"]))
            note = f"{shared} common terms" if shared != 1 else "1 common term"
            if other.get("vertical"):
                note = f"{other['vertical']}, {note}"
            neighbours.append({"text": neighbour["campaign_id"], "value": neighbour["similarity"], "note": note})
        cards.append(
            {
                "title": answer["campaign_id"],
                "subtitle": " · ".join([*facts, f"{len(campaign['terms'])} terms"]),
                "chips": campaign["terms"][:_CHIPS],
                "blocks": [
                    {
                        "heading": "Topics",
                        "unit": "share",
                        "items": [{"text": topic["name"], "value": topic["weight"]} for topic in answer["topics"]],
                    },
                    {"heading": "Similar campaigns", "items": neighbours},
                    {
                        "heading": "Recommended keywords",
                        "items": [
                            {
                                "text": keyword["term"],
                                "value": keyword["score"],
                                "note": f"used by {len(keyword['evidence']['neighbours'])} of the similar campaigns",
                            }
                            for keyword in answer["recommended"][:6]
                        ],
                    },
                ],
            }
        )
    text = (
        "Campaigns that the topics were not learned from. Similarity is the cosine of two fingerprints around the "
        "catalogue's mean; a recommended keyword is one that similar campaigns use and this one does not."
    )
    return Section("cards", "Example campaigns", text, {"cards": cards})


def _choose(table: pa.Table, fingerprints: np.ndarray) -> list[int]:
    """Choose campaigns with the clearest fingerprint of different leading topics, the largest topics first."""
    lengths = count_terms(table)
    leading = fingerprints.argmax(axis=1)
    chosen: list[int] = []
    typical = np.flatnonzero((lengths >= 10) & (lengths <= 80))
    for topic in np.argsort(-np.bincount(leading, minlength=fingerprints.shape[1]), kind="stable"):
        rows = typical[leading[typical] == topic]
        if len(rows) and len(chosen) < _EXAMPLES - 1:
            chosen.append(int(rows[np.argsort(fingerprints[rows, topic], kind="stable")[len(rows) // 2]]))
    thin = np.flatnonzero((lengths > 0) & (lengths < 10))
    if len(thin):
        chosen.append(int(thin[0]))
    return chosen or [0]


def _references(measurements: Sequence[Measurement]) -> Section:
    names = {
        "neighbour_purity_at_10": "These fingerprints",
        "reference_neighbour_purity_at_10": "TF-IDF and SVD(100)",
        "reference_tfidf_neighbour_purity_at_10": "TF-IDF",
    }
    bars = [
        {
            "label": names[m.metric],
            "value": m.value,
            "low": m.low,
            "high": m.high,
            "count": m.count,
            "note": m.note,
            "accent": m.metric == "neighbour_purity_at_10",
        }
        for m in measurements
        if m.metric in names and m.slice == "all"
    ]
    text = (
        "Share of a held-out campaign's ten nearest campaigns that are in its vertical. The references are plain word "
        "vectors, which nobody can read; fingerprints have to be worth their name beside them."
    )
    return Section("bars", "Neighbours against simpler methods", text, {"bars": bars, "unit": "share", "high": 1.0})


def _exposure(measurements: Sequence[Measurement]) -> Section:
    groups: dict[str, list[dict[str, Any]]] = {}
    for m in measurements:
        column, _, value = m.slice.partition("=")
        groups.setdefault(column, []).append(
            {"label": value, "value": m.value, "low": m.low, "high": m.high, "note": m.note}
        )
    text = (
        "What each group gets of the places in neighbour lists, divided by its share of the catalogue. 1 is parity; "
        "groups whose campaigns differ in relevance differ here for good reason."
    )
    data = {
        "groups": [{"name": name, "bars": bars} for name, bars in groups.items()],
        "reference": {"value": 1.0, "label": "parity"},
    }
    return Section("bars", "Exposure in neighbour lists", text, data)


def _values(table: pa.Table, name: str) -> list[Any]:
    if name not in table.column_names:
        return [None] * table.num_rows
    return [None if value is None else str(value) for value in table[name].to_pylist()]
