"""Wiring of the vehicle-prices pipeline. `make compile` writes it to `pipeline.yaml`, which is what runs everywhere."""

from pathlib import Path

from mlflywheel.pipelines.wiring import build_pipeline

vehicle_prices = build_pipeline(
    name="vehicle-prices",
    model="vehicle-price",
    folder=Path(__file__).parent,
    display_name="Vehicle prices: a price with a range for each listing",
    description="From a table of listings to a registered price model and a price, a range and its drivers for each.",
)
