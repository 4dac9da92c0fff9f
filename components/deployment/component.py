"""Roll a registered version out beside the one in use."""

from kfp import dsl

from mlflywheel import images


@dsl.component(base_image=images.COMPONENTS, install_kfp_package=False)
def deploy_model(
    model_version: str,
    registry: str,
    service: str,
    rollout: dsl.Output[dsl.Artifact],
    metrics: dsl.Output[dsl.Metrics],
    report: dsl.Output[dsl.HTML],
    enabled: bool = True,
    namespace: str = "",
    policy: str = "",
    prometheus: str = "",
    preset: str = "",
    evidence: str = "",
    timeout_seconds: float = 172800.0,
    on_rollback: str = "fail",
) -> str:
    """Give a registered version traffic of an InferenceService step by step, and let evidence decide.

    A step that was killed or retried goes on with the version's rollout where it stands.

    Args:
        model_version: NAME@VERSION, as register_model returns it.
        registry: Path of an embedded registry, or URL of a Kubeflow Model Registry.
        service: Name of the InferenceService; it has to serve a version already.
        rollout: The rollout's record with its history and evidence, as JSON.
        metrics: How long and to how many requests the version was exposed, and the shares of bad events.
        report: The rollout as a page.
        enabled: Whether to deploy at all; if not, nothing is asked or changed.
        namespace: Namespace of the service; the pod's or the kubeconfig's own if empty.
        policy: What the rollout may cost and has to show, as YAML; the default policy if empty.
        prometheus: Address of the Prometheus that counts the service's requests.
        preset: Whose metrics it has: mlflywheel, kserve, knative and others; by the service's mode if empty.
        evidence: URI of windows as JSON, in place of Prometheus.
        timeout_seconds: How long to wait for the end; after it the rollout stays as it stands.
        on_rollback: Whether a rollback fails the run (fail) or only stands in the verdict (report).

    Returns:
        "promoted", "rolled back", "already in use" or "not asked for".
    """
    from pathlib import Path

    from mlflywheel.reports.rollout import write_rollout, write_skipped_rollout

    if not enabled:
        return write_skipped_rollout(Path(rollout.path), Path(report.path))

    from mlflywheel.cluster.deployment import deploy, describe_source
    from mlflywheel.events import step

    with step("deployment") as running:
        deployed = deploy(
            model_version,
            registry,
            service,
            namespace=namespace or None,
            policy=policy,
            source=describe_source(prometheus, preset, evidence),
            timeout_seconds=timeout_seconds,
            on_rollback=on_rollback,
            progress=running,
        )
        write_rollout(deployed.verdict, deployed.record, Path(rollout.path), Path(report.path))
        for name, value in deployed.metrics().items():
            metrics.log_metric(name, value)
        running.record(rollout=deployed.facts(), artifacts={"rollout": rollout.path})
        deployed.raise_if_refused(on_rollback)
    return deployed.verdict
