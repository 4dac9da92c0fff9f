"""Applying the rules to a set of manifests."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from mlflywheel.lint.documents import Document, read_paths
from mlflywheel.lint.fields import Field, show
from mlflywheel.lint.findings import GROUPS, Fault, Finding, Rule
from mlflywheel.lint.manifests import Budget, Component, Container, Graph, Manifest, Manifests, Service
from mlflywheel.lint.rules import RULES

#: Ids of rules that do not hold for the object, separated by commas. Errors stay.
IGNORE_ANNOTATION = "mlflywheel.io/lint-ignore"

_HEADINGS = {
    "reading": "Reading",
    "fails": "Refused, failing later, or ignored",
    "availability": "Availability",
    "cost": "Cost",
    "security": "Security",
}


def lint_paths(paths: Sequence[Path | Literal["-"]]) -> list[Finding]:
    """Lint files and folders of rendered manifests as one set.

    Args:
        paths: Files; folders, of which every .yaml, .yml and .json file below is read; or `-`, standard input.

    Returns:
        The findings, by document and line. What cannot be read is a finding too.

    Raises:
        UsageError: A path does not exist.
    """
    return _lint(read_paths(paths), ", ".join(map(str, paths)) or "nothing")


def lint_documents(documents: Iterable[Document]) -> list[Finding]:
    """Lint documents as one set: what one object is to another is looked at too.

    Args:
        documents: What `read_paths` or `read_text` yields, or documents made in memory.

    Returns:
        The findings, by document and line, without those that an object's annotation ignores.

    >>> service = {"apiVersion": "serving.kserve.io/v1beta1", "kind": "InferenceService", "metadata": {"name": "Bad"}}
    >>> sorted(finding.rule for finding in lint_documents([Document(service)]))
    ['deployment-mode-missing', 'one-implementation', 'service-name']
    """
    return _lint(documents, "documents")


def _lint(documents: Iterable[Document], where: str) -> list[Finding]:
    manifests = Manifests(documents)
    order = {id(document): index for index, document in enumerate(manifests.documents)}
    found: list[tuple[int, Finding]] = []
    for document in manifests.documents:
        found += [(order[id(document)], problem) for problem in document.problems]
    for document in manifests.skipped:
        found.append((order[id(document)], _skip(document)))
    if not manifests.objects and not any(problem.severity == "error" for _, problem in found):
        reason = "there is no Kubernetes object in what was read"
        fix = "name rendered manifests, such as the output of kubectl kustomize"
        found.append((0, Finding("no-manifests", RULES["no-manifests"].severity, where, reason, fix, where)))
    faults = [(rule, fault) for rule in RULES.values() for fault in _check(rule, manifests)]
    for manifest in manifests.objects:
        _check_texts(manifest)
        faults += [(RULES["lint-ignore"], fault) for fault in _check_ignored(manifest)]
        for path, reason in manifest.wrong.items():
            field = Field(manifest, path, None)
            faults.append((RULES["wrong-type"], Fault(field, reason, "write it as the CRD has it")))
    ignored = {id(manifest): _read_ignored(manifest) for manifest in manifests.objects}
    for rule, fault in faults:
        holder = fault.field.manifest
        # Views only ever make fields of manifests.
        if isinstance(holder, Manifest) and not _is_ignored(rule, ignored[id(holder)]):
            found.append((order[id(holder.document)], _build(rule, fault, holder)))
    ranks = {name: rank for rank, name in enumerate(RULES)}
    unique = sorted(dict.fromkeys(found), key=lambda pair: (pair[0], pair[1].line or 0, ranks[pair[1].rule]))
    return [finding for _, finding in unique]


def describe_rules() -> str:
    """Return the page of all rules in Markdown, which is `docs/lint-rules.md`."""
    lines = [
        "# What `mlflywheel lint` finds",
        "",
        "The linter reads rendered manifests (`kubectl kustomize DIR | mlflywheel lint -`, or `lint FILE|DIR`) as",
        "one set. An **error** does not work, or is lost without a word; a **warning** costs availability, money or",
        "safety; a **note** is worth knowing. Errors make the exit code 1.",
        "",
        f"The annotation `{IGNORE_ANNOTATION}: rule-a,rule-b` on an object silences its warnings and notes of these",
        "rules, never errors. Sources are files of KServe 0.20 and its documentation, unless they say otherwise. What",
        "the CRDs check themselves is not repeated here, but for the types of fields that a rule reads.",
        "",
        "[The same objects shown to KServe's webhooks](lint-agreement.md) say where both agree. This page is",
        "`mlflywheel.lint.describe_rules()`.",
    ]
    for group in GROUPS:
        lines += ["", f"## {_HEADINGS[group]}", "", "| rule | severity | finds | source |", "|---|---|---|---|"]
        for rule in RULES.values():
            if rule.group == group:
                cells = (f"`{rule.id}`", rule.severity, rule.description, rule.source)
                lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _check(rule: Rule, manifests: Manifests) -> Iterator[Fault]:
    if rule.check is None:
        return
    subjects: dict[type, Sequence[Any]] = {
        Manifests: (manifests,),
        Manifest: manifests.objects,
        Service: manifests.services,
        Component: manifests.components,
        Container: manifests.containers,
        Graph: manifests.graphs,
        Budget: manifests.budgets,
    }
    for subject in subjects[rule.subject or Manifests]:
        yield from rule.check(subject)


def _check_texts(manifest: Manifest) -> None:
    """Look at labels and annotations, which YAML turns into numbers and truth values easily."""
    for name in ("labels", "annotations"):
        for _, field in manifest.metadata[name].entries():
            field.text()


def _check_ignored(manifest: Manifest) -> Iterator[Fault]:
    for name in sorted(_read_ignored(manifest)):
        field = manifest.annotations[IGNORE_ANNOTATION]
        if name not in RULES:
            yield Fault(field, f"there is no rule {show(name)}", "correct the id; docs/lint-rules.md lists them")
        elif RULES[name].severity == "error":
            yield Fault(field, f"findings of {name} are errors, which cannot be ignored", "mend it, and remove the id")


def _read_ignored(manifest: Manifest) -> frozenset[str]:
    text = manifest.annotation(IGNORE_ANNOTATION) or ""
    return frozenset(name for part in text.split(",") if (name := part.strip()))


def _is_ignored(rule: Rule, names: frozenset[str]) -> bool:
    return rule.severity != "error" and rule.id != "lint-ignore" and rule.id in names


def _build(rule: Rule, fault: Fault, manifest: Manifest) -> Finding:
    path = fault.field.path
    return Finding(
        rule.id,
        rule.severity,
        manifest.format_place(path),
        fault.reason,
        fault.fix,
        manifest.document.file,
        manifest.find_line(path),
    )


def _skip(document: Document) -> Finding:
    place = document.file if document.line is None else f"{document.file}:{document.line}"
    return Finding(
        "not-a-manifest",
        RULES["not-a-manifest"].severity,
        place,
        f"{show(document.value)} without apiVersion and kind is no Kubernetes object",
        "lint rendered manifests only",
        document.file,
        document.line,
    )
