"""Wiring of the credit-decisions pipeline. `make compile` writes it to `pipeline.yaml`, which runs everywhere."""

from pathlib import Path

from mlflywheel.pipelines.wiring import build_pipeline

credit_decisions = build_pipeline(
    name="credit-decisions",
    model="tabular-classifier",
    folder=Path(__file__).parent,
    display_name="Credit decisions: the probability of a class for each row of any table",
    description="From a table of rows with a class to a registered classifier and a probability with drivers for each.",
)
