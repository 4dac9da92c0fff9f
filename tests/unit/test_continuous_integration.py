"""The workflow for GitHub against what it calls: targets, programs, versions and pins."""

import re
import tomllib
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
PATH = ROOT / ".github" / "workflows" / "ci.yml"
TEXT = PATH.read_text(encoding="utf-8")
WORKFLOW: dict[Any, Any] = yaml.safe_load(TEXT)
STEPS = [step for job in WORKFLOW["jobs"].values() for step in job["steps"]]


def test_it_may_only_read_and_every_job_ends() -> None:
    assert WORKFLOW["permissions"] == {"contents": "read"}
    assert all("permissions" not in job and job["timeout-minutes"] <= 90 for job in WORKFLOW["jobs"].values())
    checkouts = [step for step in STEPS if step.get("uses", "").startswith("actions/checkout@")]
    assert len(checkouts) == len(WORKFLOW["jobs"])
    assert all(step["with"]["persist-credentials"] is False for step in checkouts)


def test_actions_are_pinned_by_commit_and_one_version_each() -> None:
    used = {step["uses"] for step in STEPS if "uses" in step}
    assert all(re.fullmatch(r"actions/[\w-]+@[0-9a-f]{40}", one) for one in used)
    assert len({one.split("@")[0] for one in used}) == len(used)


def test_it_tests_the_supported_versions_of_python_by_the_script() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    versions = re.findall(r"Python :: (3\.\d+)", "\n".join(project["classifiers"]))
    job = WORKFLOW["jobs"]["test"]
    assert job["strategy"]["matrix"]["python"] == versions
    assert ".ci/run" in [step.get("run") for step in job["steps"]]


def test_targets_and_files_that_it_names_exist() -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    lines = [line.strip() for step in STEPS for line in step.get("run", "").splitlines()]
    named = {word for line in lines if line.startswith("make ") for word in line.split()[1:] if "=" not in word}
    assert {"test-cluster", "image", "up", "down"} <= named <= targets
    paths = {word for line in lines for word in line.split() if word.startswith(("manifests/", "tests/", ".ci/"))}
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_what_is_cached_changes_with_what_it_is_built_from() -> None:
    patterns = set(re.findall(r"'(tests/[^']+)'", TEXT))
    assert patterns == {"tests/cluster/cluster_tools.py", "tests/cluster/tools/go.*", "tests/cluster/kserve_tools/go.*"}
    assert all(list(ROOT.glob(pattern)) for pattern in patterns)
