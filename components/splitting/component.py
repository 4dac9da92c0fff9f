"""Hold out entities for the evaluation."""

from kfp import dsl

from mlflywheel import images


@dsl.component(base_image=images.COMPONENTS, install_kfp_package=False)
def split_table(
    table: dsl.Input[dsl.Dataset],
    train: dsl.Output[dsl.Dataset],
    holdout: dsl.Output[dsl.Dataset],
    method: str = "random",
    holdout_fraction: float = 0.2,
    seed: int = 0,
    column: str = "",
):
    """Split the prepared table; training sees one part, evaluation the other.

    Args:
        table: Prepared table, Parquet.
        train: Entities to learn from.
        holdout: Entities to measure on.
        method: random (by a hash of the id, so an entity keeps its side when others come), grouped or temporal.
        holdout_fraction: Share of the entities (random), groups or rows (temporal) to hold out, between 0 and 1.
        seed: Any integer.
        column: The group or time column of the grouped and temporal methods.
    """
    import pyarrow.parquet as pq

    from mlflywheel.data.splitting import split
    from mlflywheel.events import step

    with step("splitting") as running:
        source = pq.read_table(table.path)
        parts = split(source, method, holdout_fraction, seed, column or None)
        pq.write_table(parts.train, train.path, compression="zstd")
        pq.write_table(parts.holdout, holdout.path, compression="zstd")
        running.record(data={"train": parts.train.num_rows, "holdout": parts.holdout.num_rows})
