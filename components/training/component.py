"""Fit a model, and make the evaluated model ready for service."""

from kfp import dsl

from mlflywheel import images


@dsl.component(base_image=images.COMPONENTS, install_kfp_package=False)
def train_model(
    train: dsl.Input[dsl.Dataset],
    fitted: dsl.Output[dsl.Model],
    metrics: dsl.Output[dsl.Metrics],
    environment: dsl.Output[dsl.Artifact],
    model: str,
    params: str = "{}",
):
    """Fit the model on the training part, and record what it was trained in.

    Args:
        train: Prepared training rows, Parquet.
        fitted: The model as a folder of data files with a checksum manifest.
        metrics: Sizes and settings of the fitted model.
        environment: Code, packages, threads, hardware and image that it was fitted with, as JSON.
        model: Model class, by entry point name or as module:Class.
        params: JSON object of the model's parameters.
    """
    import json
    from pathlib import Path

    import pyarrow.parquet as pq

    from mlflywheel.cluster.surroundings import describe_surroundings
    from mlflywheel.events import step
    from mlflywheel.models.contract import load_model_class
    from mlflywheel.reproducibility import describe_environment

    with step("training") as running:
        model_class = load_model_class(model)
        settings = model_class.Params.parse(params, "model parameters")
        learned = model_class.fit(pq.read_table(train.path), settings, running)
        fitted.framework = model_class.format_name
        fitted.metadata["hash"] = learned.save(Path(fitted.path))
        for name, value in learned.describe().items():
            metrics.log_metric(name, value)
        # After the fit: by now the libraries that it used are loaded, and their threads can be counted.
        surroundings = describe_environment(cluster=describe_surroundings())
        Path(environment.path).write_text(json.dumps(surroundings, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        running.record(parameters=settings.model_dump(mode="json"))


@dsl.component(base_image=images.COMPONENTS, install_kfp_package=False)
def extend_model(
    fitted: dsl.Input[dsl.Model],
    holdout: dsl.Input[dsl.Dataset],
    extended: dsl.Output[dsl.Model],
):
    """Add the held-out rows to what an evaluated model looks up; what it learned stays as it was evaluated.

    Args:
        fitted: The evaluated model.
        holdout: Prepared held-out rows, Parquet.
        extended: The model that goes into service.
    """
    from pathlib import Path

    import pyarrow.parquet as pq

    from mlflywheel.events import step
    from mlflywheel.models.contract import load_model

    with step("extension") as running:
        complete = load_model(Path(fitted.path)).extend(pq.read_table(holdout.path), running)
        extended.framework = complete.format_name
        extended.metadata["hash"] = complete.save(Path(extended.path))
