"""Linting rendered Kubernetes manifests: what KServe refuses or ignores, and what costs availability or money.

KServe's CRDs accept much that its webhook refuses, and its webhook much that then fails or is ignored. These rules
find it without a cluster. `docs/lint-rules.md` lists them with their sources.
"""

from mlflywheel.lint.documents import Document, read_paths, read_text
from mlflywheel.lint.findings import SEVERITIES, Finding, Rule, Severity
from mlflywheel.lint.linter import IGNORE_ANNOTATION, describe_rules, lint_documents, lint_paths
from mlflywheel.lint.rules import RULES

__all__ = [
    "IGNORE_ANNOTATION",
    "RULES",
    "SEVERITIES",
    "Document",
    "Finding",
    "Rule",
    "Severity",
    "describe_rules",
    "lint_documents",
    "lint_paths",
    "read_paths",
    "read_text",
]
