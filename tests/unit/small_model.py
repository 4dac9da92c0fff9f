"""One small model of made-up campaigns; the fixture `fitted_campaigns` fits it once for all tests."""

from dataclasses import dataclass

import pyarrow as pa

from mlflywheel.data.splitting import split
from mlflywheel.models.topic_fingerprints.model import FitParams, TopicFingerprints
from mlflywheel.models.topic_fingerprints.preparation import COLUMNS, PrepareConfig
from mlflywheel.samples.ad_campaigns import generate_ad_campaigns


@dataclass(frozen=True)
class FittedCampaigns:
    """A model of 120 made-up campaigns, and the prepared rows that it saw and did not see."""

    model: TopicFingerprints
    train: pa.Table
    holdout: pa.Table


def fit_campaigns() -> FittedCampaigns:
    """Fit 8 topics on four fifths of the campaigns."""
    raw = generate_ad_campaigns(campaigns=120)
    named = raw.select([column.name for column in COLUMNS if column.name in raw.column_names])
    parts = split(TopicFingerprints.prepare(named, PrepareConfig()), "random", 0.2, seed=0)
    model = TopicFingerprints.fit(parts.train, FitParams.parse({"num_topics": 8}, "params"))
    return FittedCampaigns(model, parts.train, parts.holdout)
