"""The manifests of the pipelines' side as they are written, and pipelines as objects: what needs no kubectl."""

import importlib.util
import ipaddress
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from mlflywheel.cli import app
from mlflywheel.errors import UsageError
from mlflywheel.pipelines.catalog import PIPELINES, Pipeline
from mlflywheel.pipelines.objects import HASH_ANNOTATION, describe_objects, write_objects
from mlflywheel.reproducibility.pinning import read_reference
from mlflywheel.reproducibility.specification import read_declared_hash

ROOT = Path(__file__).resolve().parents[2]
MANIFESTS = ROOT / "manifests"
DIGEST = "sha256:" + "4" * 64
# Where clouds hand out the credentials of a node.
METADATA_SERVICE = ipaddress.ip_address("169.254.169.254")


def documents(folder: Path = MANIFESTS) -> Iterator[tuple[Path, dict[str, Any]]]:
    for path in sorted(folder.rglob("*.yaml")):
        for document in yaml.safe_load_all(path.read_text(encoding="utf-8")):
            if document:
                yield path, document


# Permissions and secrets.


def test_no_role_has_a_wildcard_and_none_is_of_the_cluster() -> None:
    roles = [one for _, one in documents() if one["kind"] == "Role"]
    assert len(roles) >= 5
    for one in roles:
        words = [word for rule in one["rules"] for words in rule.values() for word in words]
        assert not [word for word in words if "*" in word], one["metadata"]["name"]
    assert not [one for _, one in documents() if one["kind"] in ("ClusterRole", "ClusterRoleBinding")]


def test_no_manifest_holds_a_key() -> None:
    secrets = [(path, one) for path, one in documents() if one["kind"] == "Secret"]
    assert [path.name for path, _ in secrets] == ["secret.example.yaml"]
    assert set(secrets[0][1]["stringData"].values()) == {"replace"}
    template = (MANIFESTS / "base" / "model-store.gotemplate").read_text(encoding="utf-8")
    filled = yaml.safe_load(template.replace("{{ .data.", "").replace(" }}", ""))
    # The same form as the example has, with values that kubectl fills in.
    assert filled["data"] == {"AWS_ACCESS_KEY_ID": "accesskey", "AWS_SECRET_ACCESS_KEY": "secretkey"}
    assert filled["metadata"] == secrets[0][1]["metadata"]


def test_steps_find_the_store_that_serving_reads_from() -> None:
    lines = (MANIFESTS / "pipelines" / "store.env").read_text(encoding="utf-8").splitlines()
    settings = dict(line.split("=", 1) for line in lines if not line.startswith("#"))
    example = yaml.safe_load((MANIFESTS / "base" / "secret.example.yaml").read_text(encoding="utf-8"))
    annotations = example["metadata"]["annotations"]
    assert settings["MINIO_ENDPOINT"] == annotations["serving.kserve.io/s3-endpoint"]
    assert settings["AWS_ENDPOINT_URL_S3"] == f"http://{settings['MINIO_ENDPOINT']}"
    assert settings["AWS_REGION"] == annotations["serving.kserve.io/s3-region"]
    assert settings["MLFLYWHEEL_S3_SECRET"] == example["metadata"]["name"]


# Network policies.


def policies(*folder: str) -> list[dict[str, Any]]:
    return [one for _, one in documents(MANIFESTS.joinpath(*folder)) if one["kind"] == "NetworkPolicy"]


def allows(rule: Mapping[str, Any], address: ipaddress.IPv4Address, port: int) -> bool:
    if port not in [one["port"] for one in rule["ports"]]:
        return False
    blocks = [peer["ipBlock"] for peer in rule["to"] if "ipBlock" in peer]
    return any(
        address in ipaddress.ip_network(block["cidr"])
        and not any(address in ipaddress.ip_network(one) for one in block.get("except", []))
        for block in blocks
    )


def test_pods_of_runs_and_trials_get_nothing_in_and_no_credentials_of_the_node() -> None:
    found = policies("pipelines")
    selectors = [{"matchLabels": {"pipelines.kubeflow.org/v2_component": "true"}}]
    selectors.append({"matchExpressions": [{"key": "katib.kubeflow.org/trial", "operator": "Exists"}]})
    for selector in selectors:
        own = [one["spec"] for one in found if one["spec"]["podSelector"] == selector]
        assert [spec for spec in own if spec["policyTypes"] == ["Ingress", "Egress"] and len(spec) == 2]
        assert not any("ingress" in spec for spec in own)
        rules = [rule for spec in own for rule in spec.get("egress", [])]
        # A rule without ports or without peers would allow everything.
        assert all(rule["ports"] and rule["to"] for rule in rules)
        assert not any(allows(rule, METADATA_SERVICE, port) for rule in rules for port in (53, 80, 443))
        assert any(allows(rule, ipaddress.IPv4Address("93.184.216.34"), 443) for rule in rules)
        assert not any(allows(rule, ipaddress.IPv4Address("93.184.216.34"), 80) for rule in rules)
    assert len(found) == sum(one["spec"]["podSelector"] in selectors for one in found)


def test_trials_do_not_reach_the_api_server() -> None:
    ports = [
        port["port"]
        for one in policies("pipelines")
        if "trials" in one["metadata"]["name"]
        for rule in one["spec"].get("egress", [])
        for port in rule["ports"]
        if any("10." in peer.get("ipBlock", {}).get("cidr", "") for peer in rule["to"] if "except" not in peer)
    ]
    assert 6443 not in ports


def test_production_lets_in_nothing_by_itself() -> None:
    isolation, suggestions = policies("namespaces", "production")
    assert isolation["spec"] == {"podSelector": {}, "policyTypes": ["Ingress"]}
    assert suggestions["spec"]["podSelector"] != {}


def test_development_does_not_let_production_in_and_the_other_way_round() -> None:
    for environment, other in (("development", "production"), ("production", "development")):
        text = yaml.safe_dump_all(policies("namespaces", environment))
        assert f"mlflywheel-{other}" not in text
        # A peer without a namespace is the policy's own.
        assert "namespaceSelector: {}" not in text


# The page of the manifests.


def test_every_folder_has_a_row() -> None:
    text = (MANIFESTS / "README.md").read_text(encoding="utf-8")
    folders = {path.parent.relative_to(MANIFESTS).parts[0] for path in MANIFESTS.rglob("kustomization.yaml")}
    assert [name for name in sorted(folders) if f"`{name}" not in text] == []


# Applying.


@pytest.fixture(scope="module")
def installation() -> ModuleType:
    spec = importlib.util.spec_from_file_location("_installation", MANIFESTS / "installation.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["up", "--namespace", ""], "NAMESPACE: ''; the name of a namespace is needed. Fix: make up NAMESPACE=team."),
        (["down", "--namespace", "Team"], "NAMESPACE: 'Team'; the name of a namespace is needed."),
        (["up", "--namespace", "team", "--overlay", "../base"], "OVERLAY: '../base'; one of cpu, gpu, knative,"),
    ],
)
def test_arguments_are_checked_before_anything_is_asked(
    installation: ModuleType,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    told: str,
) -> None:
    monkeypatch.setenv("KUBECTL", "/nowhere/kubectl")
    with pytest.raises(SystemExit) as ended:
        installation.main(arguments)
    assert ended.value.code == 1
    assert capsys.readouterr().err.startswith(told)


def test_missing_kubectl_is_told(
    installation: ModuleType, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECTL", "/nowhere/kubectl")
    with pytest.raises(SystemExit):
        installation.main(["up", "--namespace", "team"])
    assert "kubectl: none on the PATH; one is needed. Fix: install it" in capsys.readouterr().err


def test_make_passes_its_variables_on() -> None:
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert "manifests/installation.py up --namespace '$(NAMESPACE)' --overlay '$(OVERLAY)'" in text
    assert "manifests/installation.py down --namespace '$(NAMESPACE)'" in text


# Schedules.


def test_scheduled_command_is_one_of_ours() -> None:
    (job,) = [one for _, one in documents(MANIFESTS / "schedules") if one["kind"] == "CronJob"]
    (container,) = job["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    program, command, *rest = container["command"]
    answer = CliRunner().invoke(app, [command, "--help"])
    assert program == "mlflywheel"
    assert answer.exit_code == 0
    options = [word for word in rest if word.startswith("--")]
    assert [word for word in options if word not in answer.output] == []
    named = {word[2:-1] for word in rest if word.startswith("$(")}
    assert named <= {one["name"] for one in container["env"]}
    # A recurring run has to say so.
    assert "trigger=scheduled" in rest
    assert {one["name"]: one.get("value") for one in container["env"]}["PIPELINE"] in {one.name for one in PIPELINES}


# Pipelines as objects.


def test_objects_hold_what_was_compiled_under_a_name_of_its_content() -> None:
    pipeline = PIPELINES[1]
    text = pipeline.compiled.read_text(encoding="utf-8")
    of_pipeline, version = describe_objects(pipeline, "team")
    declared = read_declared_hash(text)
    assert version["metadata"]["annotations"] == {HASH_ANNOTATION: declared}
    # An upload by `mlflywheel submit` has the same name.
    assert version["metadata"]["name"] == f"{pipeline.name}-{declared[7:19]}"
    assert version["spec"]["pipelineName"] == of_pipeline["metadata"]["name"] == pipeline.name
    specification, *platform = yaml.safe_load_all(text)
    assert version["spec"]["pipelineSpec"] == specification
    assert [version["spec"][name] for name in ("platformSpec",) if name in version["spec"]] == platform
    assert {one["metadata"]["namespace"] for one in (of_pipeline, version)} == {"team"}


def test_another_image_is_another_version() -> None:
    released, pinned = (
        describe_objects(PIPELINES[0], image=image)[1]
        for image in (None, read_reference(f"registry.example/team/components@{DIGEST}"))
    )
    assert "namespace" not in released["metadata"]
    assert released["metadata"]["name"] != pinned["metadata"]["name"]
    assert f"registry.example/team/components@{DIGEST}" in str(pinned["spec"]["pipelineSpec"])
    assert "ghcr.io/mlflywheel/components" not in str(pinned["spec"])


def test_what_is_written_is_what_was_described(tmp_path: Path) -> None:
    (file,) = write_objects(tmp_path / "objects", PIPELINES[:1])
    assert file == tmp_path / "objects" / "ad-campaigns.yaml"
    assert list(yaml.safe_load_all(file.read_bytes())) == describe_objects(PIPELINES[0])


class Uncompiled(Pipeline):
    """A pipeline whose folder is empty."""

    @property
    def compiled(self) -> Path:
        return Path("nowhere") / "pipeline.yaml"


def test_pipeline_that_is_not_compiled_is_told_and_nothing_is_written(tmp_path: Path) -> None:
    missing = Uncompiled("other", "other", "model", "sample", "rows", 1)
    with pytest.raises(UsageError, match="a compiled pipeline is needed"):
        write_objects(tmp_path / "objects", [PIPELINES[0], missing])
    assert not (tmp_path / "objects").exists()


def test_the_command_line_writes_objects_with_an_image_by_digest(tmp_path: Path) -> None:
    image = f"registry.example/components@sha256:{'a' * 64}"
    called = ["compile", "ad-campaigns", "--objects", str(tmp_path), "-n", "team", "--image", image, "--json"]
    answer = CliRunner().invoke(app, called)
    assert json.loads(answer.output)["objects"] == [str(tmp_path / "ad-campaigns.yaml")]
    pipeline, version = yaml.safe_load_all((tmp_path / "ad-campaigns.yaml").read_text())
    assert (pipeline["metadata"]["namespace"], version["metadata"]["namespace"]) == ("team", "team")
    executors = version["spec"]["pipelineSpec"]["deploymentSpec"]["executors"].values()
    assert {one["container"]["image"] for one in executors} == {image}
