"""`mlflywheel doctor`: what would get in the way here or on a cluster, and how to mend it."""

import json
import os
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from mlflywheel.client import Client
from mlflywheel.cluster.connection import REGISTRY_VARIABLE
from mlflywheel.cluster.findings import Finding
from mlflywheel.console import Terminal
from mlflywheel.errors import UsageError
from mlflywheel.options import AsJson, Registry, Runs
from mlflywheel.runs.folder import DEFAULT_RUNS

_MARKS = {"ok": ("✓", "green"), "note": ("–", "yellow"), "problem": ("✗", "red")}
_NARROWEST = 22


def run_doctor(
    runs: Runs = DEFAULT_RUNS,
    registry: Registry = None,
    cluster: Annotated[
        bool, typer.Option("--cluster", help="Look at a cluster, not at this installation; nothing in it is changed.")
    ] = False,
    namespace: Annotated[
        str | None, typer.Option("--namespace", "-n", help="The team's namespace.", show_default=False)
    ] = None,
    context: Annotated[
        str | None, typer.Option("--context", help="Context of the kubeconfig.", show_default=False)
    ] = None,
    host: Annotated[
        str | None,
        typer.Option(
            "--host", help="URL of Kubeflow Pipelines; its service in the cluster if left out.", show_default=False
        ),
    ] = None,
    service_account: Annotated[
        str | None,
        typer.Option("--service-account", help="Account whose rights are judged beside yours.", show_default=False),
    ] = None,
    storage: Annotated[
        str | None,
        typer.Option(
            "--storage", help="Folder in the object store; a small object is written and deleted.", show_default=False
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Look at this installation or at a cluster, and say what would get in the way and how to mend it.

    The exit code is 1 if there is a problem. What is optional, or cannot be seen with your rights, is a note.

    \b
    mlflywheel doctor
    mlflywheel doctor --cluster -n team --service-account default-editor
    mlflywheel doctor --cluster -n team --host http://127.0.0.1:8888 --storage s3://bucket/team --json
    """
    from mlflywheel.doctor import examine, examine_cluster

    if cluster:
        from mlflywheel.cluster.pipelines_access import HOST_VARIABLE

        findings = examine_cluster(
            namespace,
            context=context,
            service_account=service_account,
            host=host or os.environ.get(HOST_VARIABLE),
            registry=registry or os.environ.get(REGISTRY_VARIABLE),
            storage=storage,
        )
    else:
        _refuse_alone(namespace=namespace, context=context, host=host, service_account=service_account, storage=storage)
        findings = list(examine(runs, Client(runs, registry).registry))
    problems = sum(finding.status == "problem" for finding in findings)
    if as_json:
        print(json.dumps({"problems": problems, "findings": [finding.to_dict() for finding in findings]}))
    else:
        _print(Terminal(), findings, has_headings=cluster)
    if problems:
        raise typer.Exit(1)


def _refuse_alone(**options: str | None) -> None:
    for name, value in options.items():
        if value is not None:
            option = f"--{name.replace('_', '-')}"
            raise UsageError(option, "given without --cluster", "it says what of a cluster to look at", "add --cluster")


def _print(console: Console, findings: list[Finding], has_headings: bool) -> None:
    width = max(_NARROWEST, *(len(finding.subject) + 2 for finding in findings)) if findings else _NARROWEST
    groups = list(dict.fromkeys(finding.group for finding in findings))
    for group in groups:
        if has_headings:
            console.print(Text(group, "bold"), soft_wrap=True)
        for finding in findings:
            if finding.group == group:
                mark, colour = _MARKS[finding.status]
                console.print(Text(mark, colour) + Text(f" {finding.subject:<{width}}{finding.text}"), soft_wrap=True)
                if finding.fix:
                    console.print(Text(f"  Fix: {finding.fix}"), soft_wrap=True)
    if has_headings:
        counts = [sum(finding.status == status for finding in findings) for status in ("problem", "note")]
        words = (("problem", "problems"), ("note", "notes"))
        shown = [f"{count} {pair[count != 1]}" for count, pair in zip(counts, words, strict=True)]
        console.print(", ".join(shown), soft_wrap=True)
