"""Wiring of the ad-campaigns pipeline. `make compile` writes it to `pipeline.yaml`, which is what runs everywhere."""

from pathlib import Path

from mlflywheel.pipelines.wiring import build_pipeline

ad_campaigns = build_pipeline(
    name="ad-campaigns",
    model="topic-fingerprints",
    folder=Path(__file__).parent,
    display_name="Ad campaigns: topic fingerprints",
    description="From a table of terms to registered topic fingerprints, similar campaigns and recommended keywords.",
)
