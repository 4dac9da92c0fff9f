"""Batch scores: every row of a prepared table, with the version that scored it."""

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from mlflywheel.events import ProgressCallback, ignore_progress
from mlflywheel.models.contract import Model


def score(model: Model, table: pa.Table, model_version: str, progress: ProgressCallback = ignore_progress) -> pa.Table:
    """Score a table.

    Args:
        model: The model.
        table: Prepared rows.
        model_version: NAME@VERSION, or the folder's hash for a model that is not registered.
        progress: Called with the phases of `Model.predict`.

    Returns:
        What `Model.predict` gives, and `model_version` behind it.
    """
    scored = model.predict(table, progress)
    return scored.append_column("model_version", pa.array([model_version] * scored.num_rows, pa.string()))


def write_scores(scores: pa.Table, path: Path) -> None:
    """Write scores as Parquet, all or nothing."""
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        pq.write_table(scores, partial, compression="zstd")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
