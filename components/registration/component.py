"""Register a model version."""

from kfp import dsl

from mlflywheel import images


@dsl.component(base_image=images.COMPONENTS, install_kfp_package=False)
def register_model(
    extended: dsl.Input[dsl.Model],
    evaluation: dsl.Input[dsl.Artifact],
    name: str,
    registry: str,
    run_id: str,
    data: str,
    data_version: str,
    params: str = "{}",
    prepare: str = "{}",
) -> str:
    """Register the model with its metrics and its lineage; registering a run again gives the same version.

    Args:
        extended: The model that goes into service.
        evaluation: Its measurements.
        name: Registered name, such as the pipeline's.
        registry: Path of an embedded registry, or URL of a Kubeflow Model Registry.
        run_id: The pipeline run; the key that makes a retry find its own version.
        data: Where the data came from.
        data_version: What ingest_data returned.
        params: JSON object of the parameters that the model was fitted with.
        prepare: JSON object of the settings that the data was prepared with.

    Returns:
        NAME@VERSION.
    """
    from pathlib import Path

    from mlflywheel.cluster.registration import register
    from mlflywheel.events import step

    with step("registration") as running:
        version = register(
            Path(extended.path),
            extended.uri,
            Path(evaluation.path),
            name=name,
            registry=registry,
            run_id=run_id,
            data=data,
            data_version=data_version,
            params=params,
            prepare=prepare,
        )
        running.record(model={"name": version.name, "version": version.version, "uri": version.uri})
    return version.reference
