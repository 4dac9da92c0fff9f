"""The pipelines that ship with the library. Importing this imports no compiler, so the command line stays quick."""

from dataclasses import dataclass
from importlib import import_module
from importlib.resources import files
from pathlib import Path
from typing import Any

from mlflywheel.errors import UsageError


@dataclass(frozen=True)
class Pipeline:
    """A pipeline that can be run by name.

    Args:
        name: The name in the compiled YAML, on the command line and in the registry.
        package: Its folder under `pipelines`.
        model: The model class, by entry point name.
        sample: The module of `mlflywheel.samples` that writes a sample of its data.
        entities: What a prepared row stands for, in the plural; also the argument of the sample's `write_sample` that
            says how many.
        sample_size: How many of them a sample has that nobody asked another size of.
    """

    name: str
    package: str
    model: str
    sample: str
    entities: str
    sample_size: int

    @property
    def folder(self) -> Path:
        """The folder with `pipeline.yaml` and the configuration files."""
        return Path(str(files("mlflywheel.pipelines") / self.package))

    @property
    def compiled(self) -> Path:
        """The compiled YAML."""
        return self.folder / "pipeline.yaml"

    def function(self) -> Any:
        """Import the pipeline function, which needs kfp."""
        return getattr(import_module(f"mlflywheel.pipelines.{self.package}.pipeline"), self.package)


PIPELINES = (
    Pipeline("ad-campaigns", "ad_campaigns", "topic-fingerprints", "ad_campaigns", "campaigns", 3000),
    Pipeline("vehicle-prices", "vehicle_prices", "vehicle-price", "vehicle_prices", "listings", 6000),
    Pipeline("credit-decisions", "credit_decisions", "tabular-classifier", "credit_decisions", "applications", 4000),
)


def find_pipeline(name: str) -> Pipeline:
    """Find a pipeline by name.

    Raises:
        UsageError: There is none of that name.
    """
    for pipeline in PIPELINES:
        if pipeline.name == name:
            return pipeline
    raise UsageError(
        f"pipeline {name}",
        "not a pipeline of this library",
        f"there is {', '.join(pipeline.name for pipeline in PIPELINES)}",
        "correct the name",
    )
