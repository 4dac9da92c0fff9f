"""Turn raw rows into one row an entity."""

from kfp import dsl

from mlflywheel import images


@dsl.component(base_image=images.COMPONENTS, install_kfp_package=False)
def prepare_table(
    rows: dsl.Input[dsl.Dataset],
    table: dsl.Output[dsl.Dataset],
    model: str,
    config: str = "{}",
):
    """Turn raw rows into one row an entity, as the model prepares them.

    Args:
        rows: Raw rows, Parquet.
        table: One row an entity (a campaign, a listing, a series), Parquet.
        model: Model class, by entry point name or as module:Class.
        config: JSON object of the model's preparation settings.
    """
    import pyarrow.parquet as pq

    from mlflywheel.events import step
    from mlflywheel.models.contract import load_model_class

    with step("preparation") as running:
        model_class = load_model_class(model)
        settings = model_class.Config.parse(config, "preparation settings")
        prepared = model_class.prepare(pq.read_table(rows.path), settings, running)
        pq.write_table(prepared, table.path, compression="zstd")
        table.metadata.update(entities=prepared.num_rows)
        cleaning = model_class.describe_table(prepared)
        running.record(data={"entities": prepared.num_rows, **({"cleaning": cleaning} if cleaning else {})})
