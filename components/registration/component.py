"""Register a model version."""

from kfp import dsl

from mlflywheel import images


@dsl.component(base_image=images.COMPONENTS, install_kfp_package=False)
def register_model(
    extended: dsl.Input[dsl.Model],
    evaluation: dsl.Input[dsl.Artifact],
    verdict: dsl.Input[dsl.Artifact],
    environment: dsl.Input[dsl.Artifact],
    dossier: dsl.Output[dsl.Artifact],
    card: dsl.Output[dsl.Markdown],
    page: dsl.Output[dsl.HTML],
    name: str,
    registry: str,
    run_id: str,
    data: str,
    data_version: str,
    columns: str = "{}",
    prepare: str = "{}",
    expectations: str = "",
    split_method: str = "random",
    split_column: str = "",
    split_seed: int = 0,
    holdout_fraction: float = 0.2,
    params: str = "{}",
    pipeline: str = "",
    pipeline_spec: str = "",
    trigger: str = "",
    approve: bool = False,
    validation: dsl.Input[dsl.Artifact] = None,
    search: dsl.Input[dsl.Artifact] = None,
) -> str:
    """Register the model with its metrics, lineage, dossier and card; a run registered again gives the same version.

    Args:
        extended: The model that goes into service.
        evaluation: Its measurements.
        verdict: What the gates said about them.
        environment: What the training ran in.
        dossier: Everything that is known of the version, as JSON.
        card: The model card: the same for people.
        page: The card as a page.
        name: Registered name, such as the pipeline's.
        registry: Path of an embedded registry, or URL of a Kubeflow Model Registry.
        run_id: The pipeline run; the key that makes a retry find its own version.
        data: Where the data came from.
        data_version: What ingest_data returned.
        columns: JSON object of our column names to the table's.
        prepare: JSON object of the settings that the data was prepared with.
        expectations: The validation suite, as JSON.
        split_method: random, grouped or temporal: how rows were held out.
        split_column: The group or time column of the grouped and temporal methods.
        split_seed: Seed of the split.
        holdout_fraction: Share of the prepared rows that only the evaluation saw.
        params: JSON object of the parameters that the model was fitted with.
        pipeline: Name of the pipeline.
        pipeline_spec: Hash of the compiled pipeline.
        trigger: What started the run: manual, scheduled or ci; found out if empty.
        approve: Whether to approve the version where every gate held.
        validation: What the data validation found, where there was one.
        search: The trials of the search for parameters, where there was one.

    Returns:
        NAME@VERSION.
    """
    import os
    from pathlib import Path

    from mlflywheel.cluster.connection import open_registry
    from mlflywheel.cluster.registration import RUN_ID_VARIABLE, Findings, Origin, register
    from mlflywheel.events import step
    from mlflywheel.registry.dossier import read_dossier_file
    from mlflywheel.reports.card import write_card
    from mlflywheel.reproducibility import find_trigger

    with step("registration") as running:
        version = register(
            Path(extended.path),
            extended.uri,
            Findings(
                evaluation=Path(evaluation.path),
                verdict=Path(verdict.path),
                environment=Path(environment.path),
                validation=Path(validation.path) if validation else None,
                search=Path(search.path) if search else None,
            ),
            Origin(
                run_id=os.environ.get(RUN_ID_VARIABLE) or run_id,
                data=data,
                data_version=data_version,
                columns=columns,
                prepare=prepare,
                expectations=expectations,
                split_method=split_method,
                split_column=split_column,
                # kfp.local hands whole numbers on as floats.
                split_seed=int(split_seed),
                holdout_fraction=holdout_fraction,
                params=params,
                pipeline=pipeline,
                pipeline_spec=pipeline_spec,
                trigger=find_trigger(trigger),
            ),
            name=name,
            registry=registry,
            dossier=Path(dossier.path),
            dossier_uri=dossier.uri,
            card_uri=page.uri,
            approve=approve,
        )
        history = open_registry(registry).history(version.name, version.version)
        write_card(Path(card.path), Path(page.path), version, read_dossier_file(Path(dossier.path)), history)
        dossier.metadata["hash"] = version.lineage["dossier_hash"]
        running.record(
            model={"name": version.name, "version": version.version, "uri": version.uri},
            artifacts={"dossier": dossier.path, "card": page.path},
        )
    return version.reference
