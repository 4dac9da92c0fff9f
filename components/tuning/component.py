"""Search for better parameters before the model is trained."""

from kfp import dsl

from mlflywheel import images


@dsl.component(base_image=images.COMPONENTS, install_kfp_package=False)
def tune_model(
    train: dsl.Input[dsl.Dataset],
    experiment: str,
    search: dsl.Output[dsl.Artifact],
    metrics: dsl.Output[dsl.Metrics],
    report: dsl.Output[dsl.HTML],
    model: str,
    enabled: bool = True,
    executor: str = "katib",
    params: str = "{}",
    split_method: str = "random",
    split_column: str = "",
    split_seed: int = 0,
    validation_fraction: float = 0.25,
    confirmations: int = 5,
    secret: str = "",
    timeout_seconds: float = 86400.0,
    cleanup: str = "never",
) -> str:
    """Search for better parameters with a Katib Experiment; the objective is judged on a part of the training rows.

    Args:
        train: Prepared training rows, Parquet.
        experiment: The Experiment (kubeflow.org/v1beta1), as YAML or JSON.
        search: Every trial, as JSON.
        metrics: The objective of the best trial and of the parameters that the search began from.
        report: The search as a page.
        model: Model class, by entry point name or as module:Class.
        enabled: Whether to search at all; if not, the parameters pass through.
        executor: katib (the cluster's), or local (processes of this pod or machine).
        params: JSON object of the parameters that the search begins from.
        split_method: random, grouped or temporal: as the training rows were split off.
        split_column: The group or time column of the grouped and temporal methods.
        split_seed: The seed with which the training rows were split off.
        validation_fraction: Share of the training rows to judge trials on, between 0 and 1.
        confirmations: Splits of other rows on which the best trial is compared once more with the given parameters; 0
            takes it as soon as it is better.
        secret: Kubernetes secret with the object store's keys, NAME or NAME:ACCESS_KEY:SECRET_KEY; Kubeflow's own if
            empty.
        timeout_seconds: How long to wait for the cluster's search.
        cleanup: When the cluster's Experiment is deleted: never, on_success or always.

    Returns:
        JSON object of the parameters to train with: the best trial's if they are confirmed to be better.
    """
    import json
    from pathlib import Path

    from mlflywheel.cluster.tuning import tune
    from mlflywheel.events import step
    from mlflywheel.tuning.model_search import write_search, write_skipped_search

    if not enabled:
        write_skipped_search(Path(search.path), Path(report.path))
        return params
    with step("tuning") as running:
        read, tuned = tune(
            experiment,
            executor,
            Path(train.path),
            train.uri,
            model=model,
            params=params,
            split=(split_method, split_column, split_seed),
            validation_fraction=validation_fraction,
            confirmations=confirmations,
            secret=secret,
            timeout_seconds=timeout_seconds,
            cleanup=cleanup,
            progress=running,
        )
        write_search(tuned, read, Path(search.path), Path(report.path))
        metrics.log_metric("baseline", tuned.baseline)
        metrics.log_metric("best", tuned.best)
        running.record(tuning=tuned.facts(), artifacts={"search": search.path})
    return json.dumps(tuned.params)
