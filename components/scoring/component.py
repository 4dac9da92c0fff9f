"""Score a whole table with a model."""

from kfp import dsl

from mlflywheel import images


@dsl.component(base_image=images.COMPONENTS, install_kfp_package=False)
def score_table(
    extended: dsl.Input[dsl.Model],
    table: dsl.Input[dsl.Dataset],
    model_version: str,
    scores: dsl.Output[dsl.Dataset],
):
    """Score every row of a prepared table.

    Args:
        extended: The registered model.
        table: Prepared table, Parquet.
        model_version: NAME@VERSION, written beside every score.
        scores: One row an entity, Parquet.
    """
    from pathlib import Path

    import pyarrow.parquet as pq

    from mlflywheel.events import step
    from mlflywheel.models.contract import load_model
    from mlflywheel.scoring import score, write_scores

    with step("scoring") as running:
        scored = score(load_model(Path(extended.path)), pq.read_table(table.path), model_version, running)
        write_scores(scored, Path(scores.path))
        scores.metadata.update(rows=scored.num_rows, model_version=model_version)
        running.record(artifacts={"scores": scores.path})
