"""Who runs the trials of a search, and what trial pods need to read the training rows."""

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from mlflywheel.cluster.registration import KUBEFLOW_SECRET, describe_store
from mlflywheel.errors import UsageError
from mlflywheel.events import ProgressCallback, ignore_progress
from mlflywheel.models.contract import load_model_class
from mlflywheel.tuning.experiment import Experiment
from mlflywheel.tuning.model_search import Tuned, identify_search, tune_model
from mlflywheel.tuning.search import Tuner
from mlflywheel.tuning.trial import TrialInput

#: Folder of local searches, which outlives a run: set by whoever starts the run.
SEARCHES_VARIABLE = "MLFLYWHEEL_SEARCHES"
EXECUTORS = ("local", "katib")
CLEANUPS = ("never", "on_success", "always")


def make_tuner(
    executor: str,
    searches: Path,
    *,
    key: str | None = None,
    any_command: bool = False,
    restart: bool = False,
    namespace: str | None = None,
    context: str | None = None,
    timeout_seconds: float | None = None,
    cleanup: str = "never",
) -> Tuner:
    """Return the executor of a name.

    Args:
        executor: `local` or `katib`.
        searches: Folder of local searches.
        key: What identifies a local search; its spec if left out.
        any_command: Whether local trials may run another program than this package.
        restart: Whether a local search begins anew.
        namespace: Namespace of the cluster; the pod's or the kubeconfig's own if left out.
        context: Context of the kubeconfig.
        timeout_seconds: How long to wait for the cluster; None for ever.
        cleanup: When the cluster's Experiment is deleted.

    Raises:
        UsageError: There is no such executor, or it has no such option.
    """
    if executor == "local":
        _refuse(executor, namespace=namespace, context=context, timeout_seconds=timeout_seconds)
        if cleanup != "never":
            _refuse(executor, cleanup=cleanup)
        from mlflywheel.tuning.local import LocalTuner

        return LocalTuner(searches, key=key, any_command=any_command, restart=restart)
    if executor == "katib":
        _refuse(executor, any_command=any_command or None, restart=restart or None)
        from mlflywheel.cluster.katib import Cleanup, KatibTuner

        if cleanup not in CLEANUPS:
            raise UsageError(
                f"--cleanup {cleanup}", "not known", f"there is {', '.join(CLEANUPS)}", "choose one of these"
            )
        policy = cast(Cleanup, cleanup)
        return KatibTuner(namespace=namespace, context=context, timeout_seconds=timeout_seconds, cleanup=policy)
    raise UsageError(f"executor {executor}", "not known", f"there is {' and '.join(EXECUTORS)}", "choose one of these")


def _refuse(executor: str, **options: Any) -> None:
    for name, value in options.items():
        if value is not None:
            option = name.replace("_", "-").removesuffix("-seconds")
            raise UsageError(
                f"--{option}",
                f"given with --executor {executor}",
                "it means nothing to this executor",
                "leave it out, or choose the other executor",
            )


@contextmanager
def searches_folder() -> Iterator[Path]:
    """Yield the folder of local searches: the one that the environment names, else one that is thrown away."""
    named = os.environ.get(SEARCHES_VARIABLE)
    if named:
        yield Path(named)
        return
    with tempfile.TemporaryDirectory(prefix="mlflywheel-searches-") as folder:
        yield Path(folder)


def describe_access(uri: str, secret: str = "") -> Mapping[str, Any]:
    """Return the environment variables with which a trial pod reads an address of an object store.

    Args:
        uri: The address; one that needs no keys needs no variables.
        secret: The Kubernetes secret with the keys, as NAME (its keys are the variables' names) or
            NAME:ACCESS_KEY:SECRET_KEY (the names of its two keys); Kubeflow's own if left out.

    Returns:
        Name to value, or to a `valueFrom` mapping.

    Raises:
        UsageError: The secret is written otherwise.

    >>> describe_access("/data/train.parquet")
    {}
    """
    scheme = uri.partition("://")[0]
    if scheme not in ("minio", "s3"):
        return {}
    endpoint, known_secret = describe_store(uri)
    name, *keys = (secret or known_secret).split(":")
    if not name and scheme == "s3":
        # Without a secret the pods' own identity reads the store.
        keys = []
    elif not keys:
        keys = ["accesskey", "secretkey"] if name == KUBEFLOW_SECRET else ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"]
    if name and len(keys) != 2:
        raise UsageError(
            f"secret {secret}", f"{len(keys)} names of keys", "two are needed", "write NAME:ACCESS_KEY:SECRET_KEY"
        )
    variables: dict[str, Any] = {
        variable: {"secretKeyRef": {"name": name, "key": key}}
        for variable, key in zip(("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"), keys, strict=False)
    }
    if endpoint:
        variables["MINIO_ENDPOINT" if scheme == "minio" else "AWS_ENDPOINT_URL_S3"] = endpoint
    return variables


def tune(
    experiment: str,
    executor: str,
    train: Path,
    uri: str,
    *,
    model: str,
    params: str = "{}",
    split: tuple[str, str, int] = ("random", "", 0),
    validation_fraction: float = 0.25,
    confirmations: int = 5,
    secret: str = "",
    timeout_seconds: float | None = None,
    cleanup: str = "never",
    progress: ProgressCallback = ignore_progress,
) -> tuple[Experiment, Tuned]:
    """Search for a model's parameters, as the `tuning` component does.

    Args:
        experiment: The Experiment as YAML or JSON.
        executor: `local` or `katib`.
        train: The prepared training rows in this place.
        uri: The same rows where trial pods read them.
        model: Model class, by entry point name or as module:Class.
        params: JSON object of the parameters that the search begins from.
        split: Method, column and seed with which the training rows were split off.
        validation_fraction: Share of the training rows to judge trials on.
        confirmations: Splits of other rows on which the best trial is compared once more; 0 for none.
        secret: The object store's keys, as `describe_access` takes them.
        timeout_seconds: How long to wait for the cluster.
        cleanup: When the cluster's Experiment is deleted.
        progress: Progress callback.

    Raises:
        UsageError: The Experiment, the executor or a parameter cannot be meant.
        ModelError: The objective has no value on these rows.
        TuningError: The search failed, or no trial succeeded.
    """
    import pyarrow.parquet as pq

    from mlflywheel.data.versions import version_table
    from mlflywheel.tuning.reader import read_experiment

    read = read_experiment(experiment)
    start = load_model_class(model).Params.parse(params, "model parameters").model_dump(mode="json", exclude_unset=True)
    method, column, seed = split
    on_cluster = executor == "katib"
    given = TrialInput.parse(
        {
            "data": uri if on_cluster else str(train),
            "model": model,
            "metrics": read.objective.metrics,
            "params": start,
            "split_method": method,
            "split_column": column,
            "split_seed": seed,
            "validation_fraction": validation_fraction,
        },
        "tuning",
    )
    if on_cluster and "://" not in uri:
        raise UsageError(
            "training rows", uri, "trial pods read them from an object store", "use a pipeline root that pods can read"
        )
    table = pq.read_table(train)
    with searches_folder() as searches:
        key = identify_search(read, given, version_table(table).hash)
        tuner = (
            make_tuner("katib", searches, timeout_seconds=timeout_seconds, cleanup=cleanup)
            if on_cluster
            else make_tuner(executor, searches, key=key)
        )
        secrets = describe_access(uri, secret) if on_cluster else {}
        return read, tune_model(read, tuner, given, table, secrets, progress, confirmations=confirmations)
