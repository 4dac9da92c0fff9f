"""Read a table from anywhere into Parquet, with a version."""

from mlflywheel.components.ingestion.component import ingest_data

__all__ = ["ingest_data"]
