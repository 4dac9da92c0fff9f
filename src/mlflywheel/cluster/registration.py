"""Registering a trained model: its files, its metrics, its dossier, and everything that it was made from."""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflywheel import __version__, images
from mlflywheel.cluster.connection import open_registry
from mlflywheel.errors import DataError
from mlflywheel.models.contract import Evaluation, Model, load_model, verify_model_folder
from mlflywheel.models.parameters import flatten
from mlflywheel.registry import ModelRegistry, ModelVersion, State, to_serving_uri
from mlflywheel.registry.dossier import ADDRESS_KEY, CARD_KEY, HASH_KEY, SCHEMA, Dossier, write_dossier
from mlflywheel.storage import s3_endpoint, without_credentials

# Where servers find the object store and its keys, if that is not where this pod finds them.
_ENDPOINT_VARIABLE = "MLFLYWHEEL_S3_ENDPOINT"
_SECRET_VARIABLE = "MLFLYWHEEL_S3_SECRET"
# What Kubeflow Pipelines installs since 2.16; before that it was minio-service.kubeflow:9000.
_MINIO_ENDPOINT = "http://seaweedfs.kubeflow:9000"
KUBEFLOW_SECRET = "mlpipeline-minio-artifact"
# A local run has a folder named by its own id; kfp.local invents another one that stands nowhere.
RUN_ID_VARIABLE = "MLFLYWHEEL_RUN_ID"


@dataclass(frozen=True)
class Origin:
    """What a run was asked for.

    Args:
        run_id: The run; registering it again returns its version.
        data: Where the data came from; it is recorded without its credentials.
        data_version: Hash of the data.
        columns: Our column names to the table's, a JSON object.
        prepare: Preparation settings, a JSON object; scoring other data with this version prepares it the same way.
        expectations: The validation suite, JSON.
        split_method: `random`, `grouped` or `temporal`.
        split_column: Its group or time column.
        split_seed: Its seed.
        holdout_fraction: Share of the rows that only the evaluation saw.
        params: Parameters of the fit, a JSON object.
        pipeline: Name of the pipeline.
        pipeline_spec: Hash of its compiled YAML.
        trigger: `manual`, `scheduled` or `ci`.
    """

    run_id: str
    data: str
    data_version: str
    columns: str = "{}"
    prepare: str = "{}"
    expectations: str = ""
    split_method: str = "random"
    split_column: str = ""
    split_seed: int = 0
    holdout_fraction: float = 0.2
    params: str = "{}"
    pipeline: str = ""
    pipeline_spec: str = ""
    trigger: str = "manual"


@dataclass(frozen=True)
class Findings:
    """Files that the steps before left, JSON all of them.

    Args:
        evaluation: What evaluate_model measured.
        verdict: What the gates said.
        environment: What train_model ran in.
        validation: What validate_data found; None where the pipeline does not validate.
        search: What tune_model tried; None where it does not tune.
    """

    evaluation: Path
    verdict: Path
    environment: Path
    validation: Path | None = None
    search: Path | None = None


def register(
    folder: Path,
    uri: str,
    findings: Findings,
    origin: Origin,
    *,
    name: str,
    registry: str,
    dossier: Path,
    dossier_uri: str,
    card_uri: str = "",
    approve: bool = False,
) -> ModelVersion:
    """Write the dossier of a model folder, and register the folder as a version, once for each run.

    The model is loaded and answers its own example before anything is registered.

    Args:
        folder: The model's files, checked against their manifest before anything is registered.
        uri: Where others read them; `minio://` becomes `s3://` with endpoint and secret reference. The endpoint is
            `MLFLYWHEEL_S3_ENDPOINT`, else what `mlflywheel.storage` reads from, else Kubeflow's own MinIO; the secret's
            name is `MLFLYWHEEL_S3_SECRET`, else Kubeflow's.
        findings: What the steps before left.
        origin: What the run was asked for.
        name: Registered name.
        registry: Path of an embedded registry, or URL of a Kubeflow Model Registry.
        dossier: Where to write the dossier.
        dossier_uri: Where others read it.
        card_uri: Where others read the model card, which is written from the version (`mlflywheel.reports.card`).
        approve: Whether to approve the version, in the name of the run; only where a gate was judged and all held. A
            version that a person has decided about is left as it is.

    Raises:
        DataError: A file of the steps before cannot be read.
        ModelFilesError: The folder does not hold what was saved.
        RegistryError: The registry refused.
    """
    manifest = verify_model_folder(folder)
    paths = {step: getattr(findings, step) for step in Findings.__dataclass_fields__}
    found = {step: {} if path is None else _read_json(path) for step, path in paths.items()}
    environment = found["environment"]
    written = compose_dossier(load_model(folder), name, manifest, origin, found)
    dossier_hash = write_dossier(written, dossier)
    endpoint, secret = describe_store(uri)
    opened = open_registry(registry)
    version = opened.ensure_version(
        name,
        uri,
        key=origin.run_id,
        format_name=manifest["format"]["name"],
        format_version=manifest["format"]["version"],
        hash=manifest["hash"],
        metrics=_read_metrics(found["evaluation"]),
        parameters=manifest["facts"],
        lineage={
            "run_id": origin.run_id,
            "data_uri": without_credentials(origin.data),
            "data_version": origin.data_version,
            "params": _sort_keys(origin.params),
            "prepare": _sort_keys(origin.prepare),
            "model_class": manifest["model"],
            "code_version": __version__,
            "image": images.COMPONENTS,
            "python": environment["python"],
            "platform": environment["platform"],
            "environment": environment["packages_hash"],
            HASH_KEY: dossier_hash,
            **(
                _find_addresses(opened, name, origin.run_id, dossier_hash)
                or {
                    key: _serving_uri(address)
                    for key, address in ((ADDRESS_KEY, dossier_uri), (CARD_KEY, card_uri))
                    if address
                }
            ),
        },
        endpoint=endpoint,
        secret=secret,
    )
    return _approve(opened, version, found["verdict"], origin.run_id) if approve else version


def compose_dossier(
    model: Model, name: str, manifest: Mapping[str, Any], origin: Origin, found: Mapping[str, Any]
) -> Dossier:
    """Put together what is known of a version; `mlflywheel.registry.dossier` says what its keys mean.

    Args:
        model: The version's model.
        name: Registered name.
        manifest: Of its folder.
        origin: What the run was asked for.
        found: Content of the files in `Findings`, by their names.

    Returns:
        The same document for the same run, however often it is asked for.
    """
    evaluation, environment = found["evaluation"], found["environment"]
    params = json.loads(origin.params.strip() or "{}")
    settings = type(model).Params.parse(params, "model parameters").model_dump(mode="json")
    return Dossier(
        schema=SCHEMA,
        run={
            "id": origin.run_id,
            "pipeline": origin.pipeline,
            "pipeline_spec": origin.pipeline_spec,
            "trigger": origin.trigger,
        },
        model={
            "name": name,
            "class": manifest["model"],
            "format": manifest["format"],
            "hash": manifest["hash"],
            "facts": manifest["facts"],
            "contract": _describe_contract(model),
        },
        data={
            "uri": without_credentials(origin.data),
            "version": origin.data_version,
            "columns": json.loads(origin.columns.strip() or "{}"),
            "prepare": json.loads(origin.prepare.strip() or "{}"),
            "rows": found["validation"].get("counts", {}),
            "split": {
                "method": origin.split_method,
                "column": origin.split_column,
                "seed": origin.split_seed,
                "holdout_fraction": origin.holdout_fraction,
            },
            "validation": _describe_validation(found["validation"], origin.expectations),
        },
        training={"params": params, "settings": settings, "search": found["search"].get("facts")},
        evaluation={
            "plan": evaluation.get("plan"),
            "champion": evaluation.get("champion"),
            "measurements": evaluation["measurements"],
            "gates": found["verdict"],
        },
        reproducibility={**environment, "seeds": {"split": origin.split_seed, **dict(_find_seeds(settings))}},
    )


def _describe_contract(model: Model) -> dict[str, Any]:
    from mlflywheel.evaluation.contract import describe_contract

    example = model.Request.model_validate(model.example_request())
    answer = model.predict(model.to_table([example]))
    return describe_contract(type(model), answer.schema)


def _describe_validation(results: Mapping[str, Any], expectations: str) -> dict[str, Any]:
    rules = results.get("rules", [])
    suite = json.loads(expectations) if expectations.strip() else None
    return {
        "status": results.get("status"),
        "expectations": len(rules),
        "passed": sum(rule["status"] == "passed" for rule in rules),
        "failed": [
            {"name": rule["name"], "severity": rule["severity"]} for rule in rules if rule["status"] == "failed"
        ],
        "skipped": [rule["name"] for rule in rules if rule["status"] == "skipped"],
        "checker": results.get("checker"),
        "suite": suite,
        "suite_hash": None if suite is None else _hash_json(suite),
    }


def _find_seeds(settings: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in flatten(settings).items():
        last = name.rpartition(".")[2]
        if last == "seed" or last.endswith("_seed"):
            yield name, value


def _find_addresses(registry: ModelRegistry, name: str, key: str, dossier_hash: str) -> dict[str, str]:
    """Return where the same dossier and its card lie already; nothing where they are new.

    A run that is retried as a whole gets other addresses for its outputs, and the lineage may not change.
    """
    if not any(model.name == name for model in registry.list_models()):
        return {}
    for version in registry.list_versions(name):
        if version.key == key and version.lineage.get(HASH_KEY) == dossier_hash:
            return {kind: version.lineage[kind] for kind in (ADDRESS_KEY, CARD_KEY) if kind in version.lineage}
    return {}


def _serving_uri(uri: str) -> str:
    endpoint, secret = describe_store(uri)
    return to_serving_uri(uri, endpoint, secret).uri


def _approve(registry: ModelRegistry, version: ModelVersion, gates: Any, run_id: str) -> ModelVersion:
    judged = [gate["holds"] for gate in gates if gate["holds"] is not None]
    is_undecided = version.state == State.CANDIDATE and len(registry.history(version.name, version.version)) == 1
    if not (judged and all(judged) and is_undecided):
        return version
    return registry.set_state(
        version.name, version.version, State.APPROVED, by=f"run {run_id}", reason="every gate held"
    )


def _read_metrics(evaluation: Mapping[str, Any]) -> dict[str, float]:
    return Evaluation.from_dict(evaluation).metrics()


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(
            str(path),
            f"{getattr(error, 'strerror', None) or error}",
            "JSON of an earlier step is needed",
            "run the pipeline again",
        ) from None


def _hash_json(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def _sort_keys(text_json: str) -> str:
    return json.dumps(json.loads(text_json.strip() or "{}"), sort_keys=True)


def describe_store(uri: str) -> tuple[str, str]:
    """Return the endpoint and the secret's name that a server needs to read the address; empty where it needs none."""
    scheme = uri.partition("://")[0]
    if scheme not in ("minio", "s3"):
        return "", ""
    endpoint = os.environ.get(_ENDPOINT_VARIABLE) or s3_endpoint(scheme) or ""
    secret = os.environ.get(_SECRET_VARIABLE, "")
    if scheme == "minio":
        return endpoint or _MINIO_ENDPOINT, secret or KUBEFLOW_SECRET
    return endpoint, secret
