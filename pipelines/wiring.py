"""The wiring that every pipeline of this library shares: from a table to a registered, scored and deployed model.

A pipeline differs from another one in its model and in the configuration files of its folder. A pipeline that needs
other steps is a function of its own, with the same components.
"""

from pathlib import Path
from typing import Any

from kfp import dsl, kubernetes

from mlflywheel.components import (
    deploy_model,
    evaluate_model,
    extend_model,
    ingest_data,
    prepare_table,
    refuse_model,
    register_model,
    score_table,
    split_table,
    train_model,
    tune_model,
    validate_data,
)
from mlflywheel.pipelines.configuration import read_configuration

# Of manifests/base and manifests/pipelines. A cluster whose store needs neither starts the steps without them.
_STORE_KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
_STORE_SETTINGS = ("AWS_ENDPOINT_URL_S3", "AWS_REGION", "MINIO_ENDPOINT", "MLFLYWHEEL_S3_SECRET")


def build_pipeline(*, name: str, model: str, folder: Path, display_name: str, description: str) -> Any:
    """Build a pipeline of a model and a folder of configuration.

    Args:
        name: Its name; also the default name to register the model under, and of the service to deploy it to.
        model: Model class, by entry point name or as module:Class.
        folder: Holds the defaults: `expectations.json`, `experiment.yaml`, `evaluation.yaml`, `gates.yaml` and
            `rollout.yaml`.
        display_name: For people.
        description: One sentence.

    Returns:
        What `kfp.dsl.pipeline` makes of a function.

    Raises:
        UsageError: A configuration file is missing, or is no text.
    """

    def pipeline(
        data: str,
        columns: str = "{}",
        prepare: str = "{}",
        expectations: str = read_configuration(folder / "expectations.json"),
        split_method: str = "random",
        split_column: str = "",
        split_seed: int = 0,
        holdout_fraction: float = 0.2,
        params: str = "{}",
        tune: bool = False,
        experiment: str = read_configuration(folder / "experiment.yaml"),
        tune_executor: str = "katib",
        tune_secret: str = "",
        validation_fraction: float = 0.25,
        confirmations: int = 5,
        plan: str = read_configuration(folder / "evaluation.yaml"),
        gates: str = read_configuration(folder / "gates.yaml"),
        model_name: str = name,
        registry: str = "http://model-registry-service.kubeflow.svc.cluster.local:8080",
        approve: bool = False,
        trigger: str = "",
        deploy: bool = False,
        service: str = name,
        namespace: str = "",
        rollout: str = read_configuration(folder / "rollout.yaml"),
        prometheus: str = "",
        preset: str = "",
        on_rollback: str = "fail",
        pipeline_spec: str = "",
    ) -> None:
        """From a table to a registered model and its scores.

        Args:
            data: Path or URI of the table: CSV, CSV.gz or Parquet.
            columns: JSON object of our column names to the table's, such as {"price": "asking_price"}.
            prepare: JSON object of the model's preparation settings.
            expectations: The validation suite, as JSON.
            split_method: random, grouped or temporal.
            split_column: The group or time column of the grouped and temporal methods.
            split_seed: Seed of the split.
            holdout_fraction: Share of the prepared rows that only the evaluation sees.
            params: JSON object of model parameters.
            tune: Whether to search for better parameters before training.
            experiment: The search, a Katib Experiment, as YAML or JSON.
            tune_executor: Who runs its trials: katib (the cluster's), or local (processes beside the step).
            tune_secret: Secret with the object store's keys, for trial pods: NAME, or NAME:ACCESS_KEY:SECRET_KEY.
            validation_fraction: Share of the training rows that trials are judged on.
            confirmations: Splits of other rows on which the best trial must be better once more; 0 for none.
            plan: What to measure beside the model's own metrics, as YAML.
            gates: The thresholds, as YAML.
            model_name: Name to register the model under.
            registry: URL of a Kubeflow Model Registry, or path of an embedded one.
            approve: Whether to approve the registered version where every gate held.
            trigger: What starts the run: manual, scheduled or ci. A recurring run has to say so; found out if empty.
            deploy: Whether to roll the registered version out as a canary.
            service: InferenceService to roll it out on, which serves a version already.
            namespace: Namespace of the service; the pod's or the kubeconfig's own if empty.
            rollout: What the rollout may cost and has to show, as YAML.
            prometheus: Address of the Prometheus that counts the service's requests.
            preset: Whose metrics it has, such as mlflywheel or kserve; by the service's mode if empty.
            on_rollback: What a rollback does to the run: fail, or report.
            pipeline_spec: Hash of this compiled pipeline, which compiling writes here. Leave it as it is.
        """
        ingested = ingest_data(data=data, columns=columns, model=model)
        # The bytes behind a URI can change without the URI; KFP's cache would not notice.
        ingested.set_caching_options(False).set_retry(2, backoff_duration="10s")
        rows = ingested.outputs["rows"]
        table = prepare_table(rows=rows, config=prepare, model=model).outputs["table"]
        validated = validate_data(rows=rows, table=table, expectations=expectations, model=model)
        validated.set_memory_request("1G").set_memory_limit("4G")
        split = split_table(
            table=table, method=split_method, holdout_fraction=holdout_fraction, seed=split_seed, column=split_column
        ).after(validated)
        tuned = tune_model(
            train=split.outputs["train"],
            experiment=experiment,
            enabled=tune,
            executor=tune_executor,
            params=params,
            model=model,
            split_method=split_method,
            split_column=split_column,
            split_seed=split_seed,
            validation_fraction=validation_fraction,
            confirmations=confirmations,
            secret=tune_secret,
        )
        # A search that a lost pod had begun is taken up where it stands.
        tuned.set_cpu_request("1").set_memory_request("2G").set_memory_limit("8G").set_retry(2, backoff_duration="30s")
        best = tuned.outputs["Output"]
        trained = train_model(train=split.outputs["train"], params=best, model=model)
        trained.set_cpu_request("1").set_memory_request("2G").set_memory_limit("8G")
        evaluated = evaluate_model(
            fitted=trained.outputs["fitted"],
            holdout=split.outputs["holdout"],
            gates=gates,
            plan=plan,
            registry=registry,
            model_name=model_name,
            prepare=prepare,
            split_method=split_method,
            split_column=split_column,
            split_seed=split_seed,
            holdout_fraction=holdout_fraction,
        )
        # Another version may have gone into use since, and be what this one is compared with.
        evaluated.set_caching_options(False)
        evaluated.set_cpu_request("1").set_memory_request("2G").set_memory_limit("8G")
        for step in (ingested, tuned, evaluated):
            _give_store(step)
        with dsl.If(evaluated.outputs["Output"] == "held", name="gates-held"):
            extension = extend_model(fitted=trained.outputs["fitted"], holdout=split.outputs["holdout"])
            extended = extension.outputs["extended"]
            registered = register_model(
                extended=extended,
                evaluation=evaluated.outputs["evaluation"],
                verdict=evaluated.outputs["verdict"],
                validation=validated.outputs["results"],
                environment=trained.outputs["environment"],
                search=tuned.outputs["search"],
                name=model_name,
                registry=registry,
                run_id=dsl.PIPELINE_JOB_ID_PLACEHOLDER,
                data=data,
                data_version=ingested.outputs["Output"],
                columns=columns,
                prepare=prepare,
                expectations=expectations,
                split_method=split_method,
                split_column=split_column,
                split_seed=split_seed,
                holdout_fraction=holdout_fraction,
                params=best,
                pipeline=name,
                pipeline_spec=pipeline_spec,
                trigger=trigger,
                approve=approve,
            )
            registered.set_caching_options(False).set_retry(3, backoff_duration="10s")
            _give_store(registered)
            scored = score_table(extended=extended, table=table, model_version=registered.outputs["Output"])
            scored.set_cpu_request("1").set_memory_request("2G").set_memory_limit("8G")
            deployed = deploy_model(
                model_version=registered.outputs["Output"],
                registry=registry,
                service=service,
                enabled=deploy,
                namespace=namespace,
                policy=rollout,
                prometheus=prometheus,
                preset=preset,
                on_rollback=on_rollback,
            ).after(scored)
            # A rollout that a lost pod had begun is gone on with; one that has ended is not begun again.
            deployed.set_caching_options(False).set_retry(2, backoff_duration="60s")
        with dsl.Else(name="gates-refused"):
            refuse_model(verdict=evaluated.outputs["verdict"])

    return dsl.pipeline(name=name, display_name=display_name, description=description)(pipeline)


def _give_store(step: dsl.PipelineTask) -> None:
    """Let a step read and write the object store: by reference, so that no key stands in the compiled YAML.

    Runs on one machine leave this out, and find the same variables in their own environment.
    """
    kubernetes.use_secret_as_env(step, "model-store", {name: name for name in _STORE_KEYS}, optional=True)
    kubernetes.use_config_map_as_env(step, "mlflywheel-store", {name: name for name in _STORE_SETTINGS}, optional=True)
