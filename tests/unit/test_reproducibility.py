"""What a training ran in, what differs elsewhere, and the identity of a compiled pipeline."""

import difflib
import getpass
import json
import platform
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator, Mapping
from copy import deepcopy
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes.client import ApiClient, Configuration

from mlflywheel.cluster.kubernetes_client import Connection
from mlflywheel.cluster.surroundings import describe_surroundings
from mlflywheel.errors import UsageError
from mlflywheel.pipelines.catalog import PIPELINES, Pipeline
from mlflywheel.reproducibility import (
    Difference,
    compare_environments,
    compare_models,
    declare_hash,
    describe_environment,
    find_trigger,
    hash_specification,
    read_declared_hash,
)
from mlflywheel.reproducibility.environment import COMMIT_VARIABLE, hash_source


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A package in a folder `src` of a checkout that git does not know yet."""
    folder = tmp_path / "checkout" / "src" / "package"
    (folder / "inner").mkdir(parents=True)
    (folder / "errors.py").write_text("ONE = 1\n", encoding="utf-8")
    (folder / "inner" / "words.json").write_text("[]\n", encoding="utf-8")
    (folder.parent.parent / "pyproject.toml").write_text("", encoding="utf-8")
    return folder


def git(package: Path, *words: str) -> str:
    identity = ["-c", "user.name=tester", "-c", "user.email=tester@example.org", "-c", "commit.gpgsign=false"]
    command = ["git", "-C", str(package.parent.parent), *identity, *words]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def committed(package: Path) -> Path:
    if shutil.which("git") is None:
        pytest.skip("no git")
    git(package, "init", "-q")
    git(package, "add", "src")
    git(package, "commit", "-q", "-m", "first")
    return package


class TestEnvironment:
    def test_two_calls_give_one_description(self) -> None:
        assert describe_environment() == describe_environment()

    def test_it_names_packages_python_and_processor(self) -> None:
        found = describe_environment()
        assert found["packages"]["numpy"] == version("numpy")
        assert found["python"] == platform.python_version()
        assert found["hardware"]["architecture"] == platform.machine()
        assert found["hardware"]["cores"] >= 1
        assert found["hardware"]["memory_bytes"] > 10**8
        assert found["cluster"] is None
        assert found["unknown"]["cluster"] == "not in a cluster"

    def test_nothing_in_it_tells_whose_machine_it_is(self) -> None:
        found = describe_environment()
        texts = list(walk_texts(found))
        assert not [text for text in texts if text.startswith(("/", "~")) or "\\" in text]
        for name in (getpass.getuser(), socket.gethostname()):
            assert name not in texts

    def test_thread_variables_stand_in_it_as_they_are_set(self) -> None:
        variables = describe_environment(variables={"OMP_NUM_THREADS": "3"})["threads"]["variables"]
        assert variables["OMP_NUM_THREADS"] == "3"
        assert variables["OPENBLAS_NUM_THREADS"] is None

    def test_pools_of_loaded_libraries_are_counted(self) -> None:
        import numpy as np
        from threadpoolctl import threadpool_limits

        assert np.ones((2, 2)) @ np.ones(2) is not None
        with threadpool_limits(limits=1):
            pools = describe_environment()["threads"]["pools"]
        assert pools
        assert {pool["threads"] for pool in pools} == {1}
        assert "filepath" not in pools[0]

    def test_image_comes_from_its_variables(self) -> None:
        variables = {"MLFLYWHEEL_IMAGE": "repo/a:1", "MLFLYWHEEL_IMAGE_DIGEST": "sha256:12"}
        assert describe_environment(variables=variables)["image"] == {"reference": "repo/a:1", "digest": "sha256:12"}
        without = describe_environment(variables={})
        assert without["image"] is None
        assert "MLFLYWHEEL_IMAGE_DIGEST" in without["unknown"]["image"]

    def test_what_the_cluster_says_of_the_pod_comes_first(self) -> None:
        cluster = {"cluster": {"version": "v1.33"}, "image": {"reference": "repo/b:2", "digest": None}, "unknown": {}}
        found = describe_environment(variables={"MLFLYWHEEL_IMAGE": "repo/a:1"}, cluster=cluster)
        assert found["image"] == {"reference": "repo/b:2", "digest": None}
        assert found["cluster"] == {"version": "v1.33"}
        assert set(found["unknown"]) & {"cluster", "image.digest"} == {"image.digest"}


class TestCode:
    def test_source_hash_sees_a_changed_byte_and_a_new_file(self, package: Path) -> None:
        first = hash_source(package)
        (package / "errors.py").write_text("ONE = 2\n", encoding="utf-8")
        second = hash_source(package)
        (package / "more.py").write_text("", encoding="utf-8")
        assert len({first, second, hash_source(package)}) == 3

    def test_source_hash_leaves_out_caches_and_pages(self, package: Path) -> None:
        first = hash_source(package)
        (package / "__pycache__").mkdir()
        (package / "__pycache__" / "errors.py").write_text("x", encoding="utf-8")
        (package / "README.md").write_text("x", encoding="utf-8")
        assert hash_source(package) == first

    def test_symlinked_folder_of_a_checkout_counts_as_the_folder_of_a_wheel(
        self, package: Path, tmp_path: Path
    ) -> None:
        wheel = tmp_path / "wheel"
        shutil.copytree(package, wheel)
        moved = tmp_path / "inner"
        (package / "inner").rename(moved)
        (package / "inner").symlink_to(moved)
        assert hash_source(package) == hash_source(wheel)

    def test_clean_checkout_gives_its_commit(self, committed: Path) -> None:
        code = describe_environment(committed, variables={})["code"]
        assert code["commit"] == git(committed, "rev-parse", "HEAD")
        assert code["dirty"] is False

    def test_changed_file_makes_the_checkout_dirty(self, committed: Path) -> None:
        (committed / "errors.py").write_text("ONE = 2\n", encoding="utf-8")
        assert describe_environment(committed, variables={})["code"]["dirty"] is True

    def test_commit_of_somebody_else_s_checkout_is_not_ours(self, committed: Path) -> None:
        installed = committed.parent.parent / "venv" / "package"
        shutil.copytree(committed, installed)
        found = describe_environment(installed, variables={})
        assert found["code"]["commit"] is None
        assert found["unknown"]["commit"].startswith("not installed from a git checkout")

    @pytest.mark.parametrize(("text", "dirty"), [("abc123", False), ("abc123-dirty", True)])
    def test_image_brings_its_commit_as_a_variable(self, text: str, dirty: bool, package: Path) -> None:
        code = describe_environment(package, variables={COMMIT_VARIABLE: text})["code"]
        assert (code["commit"], code["dirty"]) == ("abc123", dirty)


class TestLock:
    @pytest.fixture
    def requirements(self, package: Path) -> Path:
        folder = package.parent.parent / "requirements"
        folder.mkdir()
        return folder

    def test_largest_lock_that_is_installed_is_the_one(self, package: Path, requirements: Path) -> None:
        numpy, scipy = f"numpy=={version('numpy')} \\\n    --hash=sha256:0", f"scipy=={version('scipy')}"
        (requirements / "small.txt").write_text(f"{numpy}\n", encoding="utf-8")
        (requirements / "large.txt").write_text(
            f"{numpy}\n    # via x\n{scipy}\nno-such-package==1 ; sys_platform == 'nowhere' \\\n    --hash=sha256:1\n",
            encoding="utf-8",
        )
        (requirements / "other.txt").write_text(f"{numpy}\n{scipy}\nsix==0.0.1\n", encoding="utf-8")
        found = describe_environment(package)
        assert found["lock"]["name"] == "large.txt"
        assert "pyarrow" in found["lock"]["not_in_it"]
        assert "numpy" not in found["lock"]["not_in_it"]
        assert found["lock_hash"].startswith("sha256:")

    def test_lock_of_other_versions_is_none(self, package: Path, requirements: Path) -> None:
        (requirements / "other.txt").write_text("numpy==0.0.1\n", encoding="utf-8")
        found = describe_environment(package)
        assert (found["lock_hash"], found["lock"]) == (None, None)
        assert "lock_hash" in found["unknown"]


class TestTrigger:
    @pytest.mark.parametrize(
        ("given", "variables", "expected"),
        [
            ("", {}, "manual"),
            ("", {"CI": "false"}, "manual"),
            ("", {"CI": "1"}, "ci"),
            ("", {"CI": "1", "MLFLYWHEEL_TRIGGER": "scheduled"}, "scheduled"),
            ("manual", {"CI": "1"}, "manual"),
        ],
    )
    def test_whoever_says_more_comes_first(self, given: str, variables: dict[str, str], expected: str) -> None:
        assert find_trigger(given, variables) == expected

    def test_other_word_is_refused(self) -> None:
        with pytest.raises(UsageError, match="one of manual, scheduled, ci is needed"):
            find_trigger("nightly", {})


class _Answers(BaseHTTPRequestHandler):
    found: Mapping[str, tuple[int, Any]] = {}

    def do_GET(self) -> None:
        refused = {"kind": "Status", "message": "nodes is forbidden", "details": {"kind": "nodes"}}
        status, body = self.found.get(self.path, (403, refused))
        text = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: Any) -> None:
        """Stay silent."""


@pytest.fixture
def connection() -> Iterator[Connection]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Answers)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    configuration = Configuration(host=f"http://127.0.0.1:{server.server_port}")
    configuration.retries = False
    with ApiClient(configuration) as api:
        yield Connection(api, "team", "a test")
        api.rest_client.pool_manager.clear()
    server.shutdown()
    thread.join()
    server.server_close()


STATUSES = (
    {"name": "wait", "image": "argo:1", "imageID": "argo@sha256:aa"},
    {"name": "main", "image": "repo/components:0.1.0", "imageID": "docker.io/repo/components@sha256:bb"},
)
POD = {"spec": {"nodeName": "node-7"}, "status": {"containerStatuses": STATUSES}}
NODE = {"metadata": {"labels": {"kubernetes.io/arch": "amd64", "kubernetes.io/hostname": "node-7"}}}


class TestSurroundings:
    def test_pod_learns_its_image_and_kind_of_node(
        self, connection: Connection, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("KFP_POD_NAME", "run-1-train")
        answers = {
            "/version": (200, {"gitVersion": "v1.33.1"}),
            "/api/v1/namespaces/team/pods/run-1-train": (200, POD),
            "/api/v1/nodes/node-7": (200, NODE),
        }
        monkeypatch.setattr(_Answers, "found", answers)
        found = describe_surroundings(connection)
        assert found == {
            "cluster": {"version": "v1.33.1", "namespace": "team", "node": {"kubernetes.io/arch": "amd64"}},
            "image": {"reference": "repo/components:0.1.0", "digest": "sha256:bb"},
            "unknown": {},
        }
        assert "node-7" not in json.dumps(found)

    def test_missing_permission_leaves_a_gap_with_its_reason(
        self, connection: Connection, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("KFP_POD_NAME", "run-1-train")
        monkeypatch.setattr(_Answers, "found", {"/api/v1/namespaces/team/pods/run-1-train": (200, POD)})
        found = describe_surroundings(connection)
        assert found["cluster"] == {"version": None, "namespace": "team", "node": None}
        assert found["image"]["digest"] == "sha256:bb"
        assert found["unknown"]["cluster.node"] == "HTTP 403: nodes is forbidden"

    def test_outside_a_cluster_nobody_is_asked(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
        found = describe_surroundings()
        assert found == {"cluster": None, "image": None, "unknown": {"cluster": "not in a cluster"}}


# As kfp lays it out: a comment on top, a step with a parameter of the same name, and the pipeline's own.
COMPILED = """\
# Inputs:
#    data: str
#    pipeline_spec: str [Default: '']
components:
  comp-register-model:
    inputDefinitions:
      parameters:
        pipeline_spec:
          defaultValue: ''
          parameterType: STRING
deploymentSpec:
  executors:
    exec-register-model:
      container:
        image: example.org/components:1
pipelineInfo:
  name: ad-campaigns
root:
  dag:
    tasks: {}
  inputDefinitions:
    parameters:
      data:
        parameterType: STRING
      pipeline_spec:
        defaultValue: ''
        parameterType: STRING
"""


class TestSpecification:
    @pytest.fixture
    def declared(self) -> str:
        return declare_hash(COMPILED)

    @pytest.mark.parametrize("pipeline", PIPELINES, ids=lambda pipeline: pipeline.name)
    def test_committed_pipeline_carries_its_own_hash(self, pipeline: Pipeline) -> None:
        text = pipeline.compiled.read_text(encoding="utf-8")
        assert read_declared_hash(text) == hash_specification(text)

    def test_hash_is_written_where_a_run_takes_it_from_and_into_the_comment(self, declared: str) -> None:
        found = hash_specification(COMPILED)
        lines = list(difflib.ndiff(COMPILED.splitlines(), declared.splitlines()))
        assert [line[2:] for line in lines if line.startswith("+")] == [
            f"#    pipeline_spec: str [Default: '{found}']",
            f"        defaultValue: {found}",
        ]
        assert read_declared_hash(declared) == hash_specification(declared) == found

    @pytest.mark.parametrize(("old", "new"), [("components:1", "components:2"), ("ad-campaigns", "ads")])
    def test_changed_content_changes_the_hash_and_not_what_the_file_says(
        self, old: str, new: str, declared: str
    ) -> None:
        changed = declared.replace(old, new)
        assert changed != declared
        assert hash_specification(changed) != hash_specification(declared) == read_declared_hash(changed)

    def test_layout_and_comments_have_no_part_in_it(self, declared: str) -> None:
        printed = yaml.safe_dump_all(yaml.safe_load_all(declared), width=60, indent=4)
        assert hash_specification(printed) == hash_specification(COMPILED)

    def test_declaring_again_changes_nothing(self, declared: str) -> None:
        assert declare_hash(declared) == declared

    def test_old_hash_is_replaced(self, declared: str) -> None:
        assert declare_hash(declared.replace(read_declared_hash(declared), "sha256:0")) == declared

    def test_pipeline_without_the_parameter_stays_as_it_is(self) -> None:
        text = "pipelineInfo: {name: a}\nroot: {dag: {tasks: {}}}\n"
        assert declare_hash(text) == text
        assert read_declared_hash(text) == ""

    def test_pipeline_that_another_tool_laid_out_is_refused(self) -> None:
        text = "pipelineInfo: {name: a}\nroot: {dag: {}, inputDefinitions: {parameters: {pipeline_spec: {}}}}\n"
        with pytest.raises(UsageError, match="could not be set"):
            declare_hash(text)

    @pytest.mark.parametrize("text", ["", "a: 1", "[1]", "{"])
    def test_other_yaml_is_no_pipeline(self, text: str) -> None:
        with pytest.raises(UsageError, match="not a compiled pipeline"):
            hash_specification(text)


def walk_texts(value: Any) -> Iterator[str]:
    """Yield every text in JSON values, keys among them."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from walk_texts(item)
    elif isinstance(value, list):
        for item in value:
            yield from walk_texts(item)
    elif isinstance(value, str):
        yield value


def set_at(values: dict[str, Any], path: str, value: Any) -> None:
    *folders, last = path.split("/")
    for name in folders:
        values = values[name]
    values[last] = value


@pytest.fixture(scope="module")
def recorded() -> dict[str, Any]:
    return describe_environment(variables={"OMP_NUM_THREADS": "1", COMMIT_VARIABLE: "abc"})


class TestComparison:
    def test_same_environment_has_no_difference(self, recorded: dict[str, Any]) -> None:
        assert compare_environments(recorded, deepcopy(recorded)) == ()

    @pytest.mark.parametrize(
        ("path", "value", "subject"),
        [
            ("python", "3.0.1", "python"),
            ("platform", "Linux-x86_64-glibc2.1", "platform"),
            ("packages/numpy", "0.1", "package numpy"),
            ("packages/added", "1", "package added"),
            ("code/source", "sha256:0", "code"),
            ("threads/variables/OMP_NUM_THREADS", "2", "threads OMP_NUM_THREADS"),
            ("threads/variables/OPENBLAS_NUM_THREADS", "2", "threads OPENBLAS_NUM_THREADS"),
            ("threads/pools", [{"library": "openblas", "kernels": "Zen", "threads": 1}], "thread pools"),
            ("hardware/architecture", "aarch64", "architecture"),
            ("hardware/flags", ["avx9"], "processor flags"),
            ("hardware/variables", {"OPENBLAS_CORETYPE": "Haswell"}, "OPENBLAS_CORETYPE"),
        ],
    )
    def test_what_can_change_bits_is_said_to(
        self, path: str, value: Any, subject: str, recorded: dict[str, Any]
    ) -> None:
        other = deepcopy(recorded)
        set_at(other, path, value)
        (found,) = (difference for difference in compare_environments(recorded, other) if difference.changes_bits)
        assert found.subject == subject

    @pytest.mark.parametrize(
        ("path", "value", "subject"),
        [
            ("code/commit", "def", "commit"),
            ("code/dirty", True, "commit"),
            ("code/version", "9.9", "version"),
            ("hardware/cpu", "Another", "cpu"),
            ("hardware/cores", 99, "cores"),
            ("image", {"reference": "repo/a:1", "digest": None}, "image reference"),
        ],
    )
    def test_what_cannot_change_bits_is_only_noted(
        self, path: str, value: Any, subject: str, recorded: dict[str, Any]
    ) -> None:
        other = deepcopy(recorded)
        set_at(other, path, value)
        (found,) = compare_environments(recorded, other)
        assert (found.subject, found.changes_bits) == (subject, False)

    @pytest.mark.parametrize("path", ["hardware/memory_bytes", "unknown/cluster", "cluster"])
    def test_what_has_nothing_to_do_with_the_model_is_no_difference(self, path: str, recorded: dict[str, Any]) -> None:
        other = deepcopy(recorded)
        set_at(other, path, 1)
        assert compare_environments(recorded, other) == ()

    def test_pools_are_left_out_where_nothing_was_trained(self, recorded: dict[str, Any]) -> None:
        other = deepcopy(recorded)
        other["threads"]["pools"] = [{"library": "mkl", "threads": 8}]
        assert compare_environments(recorded, other, with_pools=False) == ()

    def test_empty_description_differs_in_everything_and_breaks_nothing(self, recorded: dict[str, Any]) -> None:
        subjects = {found.subject for found in compare_environments({}, recorded)}
        assert {"code", "python", "package numpy"} <= subjects


OTHER_PACKAGE = (Difference("package numpy", "1", "2"),)
NOTED = (Difference("cpu", "a", "b", changes_bits=False),)


class TestVerdict:
    def test_equal_hash_is_the_same_whatever_differs(self) -> None:
        found = compare_models("sha256:a", "sha256:a", {"m": 1.0}, {"m": 2.0}, OTHER_PACKAGE)
        assert found.outcome == "same"

    @pytest.mark.parametrize("differences", [(), NOTED])
    def test_other_hash_without_a_cause_is_different_though_metrics_agree(
        self, differences: tuple[Difference, ...]
    ) -> None:
        found = compare_models("sha256:a", "sha256:b", {"m": 1.0}, {"m": 1.0}, differences)
        assert found.outcome == "different"
        assert "something in the training is not pinned" in found.reason

    @pytest.mark.parametrize(
        ("recorded", "rebuilt", "outcome"),
        [
            (0.8, 0.808, "equivalent"),
            (0.8, 0.792, "equivalent"),
            (0.8, 0.8081, "different"),
            (-1200.0, -1211.9, "equivalent"),
            (-1200.0, -1212.1, "different"),
            (0.002, 0.0029, "equivalent"),
            (0.002, 0.0031, "different"),
            (0.0, 0.0009, "equivalent"),
        ],
    )
    def test_tolerance_is_a_share_of_the_value_and_of_a_tenth_at_least(
        self, recorded: float, rebuilt: float, outcome: str
    ) -> None:
        # Ends of the range are moved inwards by rounding alone.
        found = compare_models("a", "b", {"m": recorded}, {"m": rebuilt}, OTHER_PACKAGE, 0.01 + 1e-12)
        assert found.outcome == outcome

    def test_metric_beyond_the_tolerance_is_named(self) -> None:
        found = compare_models("a", "b", {"x": 1.0, "y": 1.0}, {"x": 1.0, "y": 2.0}, OTHER_PACKAGE)
        assert "package numpy" in found.reason
        assert found.reason.endswith("beyond the tolerance of 0.01 is y")
        assert [pair.holds for pair in found.metrics] == [True, False]

    def test_metrics_of_one_side_are_listed_and_not_compared(self) -> None:
        found = compare_models("a", "b", {"x": 1.0, "old": 1.0}, {"x": 1.0, "new": 1.0}, OTHER_PACKAGE)
        assert found.outcome == "equivalent"
        assert found.unmatched == ("new", "old")

    def test_no_common_metric_is_no_evidence(self) -> None:
        assert compare_models("a", "b", {"x": 1.0}, {"y": 1.0}, OTHER_PACKAGE).outcome == "different"

    @pytest.mark.parametrize("tolerance", [-0.01, 1.0, float("nan")])
    def test_tolerance_that_means_nothing_is_refused(self, tolerance: float) -> None:
        with pytest.raises(UsageError, match="tolerance"):
            compare_models("a", "b", {}, {}, (), tolerance)
