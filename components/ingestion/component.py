"""Read a table from anywhere into Parquet, with a version."""

from kfp import dsl

from mlflywheel import images


@dsl.component(base_image=images.COMPONENTS, install_kfp_package=False)
def ingest_data(rows: dsl.Output[dsl.Dataset], data: str, model: str, columns: str = "{}") -> str:
    """Read a CSV, CSV.gz or Parquet table from any URI and compute its version.

    Args:
        rows: The table as Parquet, columns named and typed as the model declares them.
        data: Path or URI of the table (file, s3, gs, http, minio).
        model: Model class, by entry point name or as module:Class; it declares the columns.
        columns: JSON object of our column names to the table's, such as {"price": "asking_price"}.

    Returns:
        The data version, sha256 over the content, independent of the file format.
    """
    from pathlib import Path

    from mlflywheel.data.ingestion import ingest, read_mapping, write_ingested
    from mlflywheel.events import step
    from mlflywheel.models.contract import load_model_class

    with step("ingestion") as running:
        reader = load_model_class(model)
        ingested = ingest(data, reader.columns, read_mapping(columns), running, other_columns=reader.other_columns)
        write_ingested(ingested, Path(rows.path))
        version = ingested.version
        rows.metadata.update(version=version.hash, rows=version.rows, source=version.source)
        running.record(data={"uri": version.source, "version": version.hash, "rows": version.rows})
    return version.hash
