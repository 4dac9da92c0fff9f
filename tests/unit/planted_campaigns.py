"""Campaigns whose verticals, topics and words are known, made for tests: small, seeded and easy to separate."""

import numpy as np
import pyarrow as pa

VERTICALS = ("plumbing", "dentistry", "travel", "shoes", "software", "gardening")
_TIERS = ("small", "large")


def plant_campaigns(
    campaigns: int = 120, *, words: int = 12, terms: int = 14, common: float = 0.1, seed: int = 0, prefix: str = "c"
) -> pa.Table:
    """Return prepared campaigns: terms of two words of their vertical, a tenth of them words that all verticals use."""
    random = np.random.default_rng(seed)
    rows = []
    for number in range(campaigns):
        vertical = VERTICALS[number % len(VERTICALS)]
        bag = set()
        for _ in range(terms):
            names = ["common" if random.random() < common else vertical for _ in range(2)]
            bag.add(" ".join(f"{name}{random.integers(words)}" for name in names))
        rows.append(
            {
                "campaign_id": f"{prefix}{number:04d}",
                "terms": sorted(bag),
                "weights": [1.0] * len(bag),
                "vertical": vertical,
                "advertiser_tier": _TIERS[int(random.random() < 0.3)],
                "locale": "en-US",
            }
        )
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def campaigns_of(*terms: list[str]) -> pa.Table:
    """Return prepared campaigns with these terms, each of weight 1, and no attributes."""
    return pa.table(
        {
            "campaign_id": [f"q{number}" for number in range(len(terms))],
            "terms": pa.array(terms, pa.list_(pa.string())),
            "weights": pa.array([[1.0] * len(own) for own in terms], pa.list_(pa.float32())),
        }
    )


SCHEMA = pa.schema(
    [
        ("campaign_id", pa.string()),
        ("terms", pa.list_(pa.string())),
        ("weights", pa.list_(pa.float32())),
        ("vertical", pa.string()),
        ("advertiser_tier", pa.string()),
        ("locale", pa.string()),
    ]
)
