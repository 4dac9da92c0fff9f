"""The images, built and run: by user 1000, without capabilities, on a read-only root.

`make test-images` runs these tests; elsewhere they are skipped and say why.
"""

import json
import os
import re
import subprocess
from collections.abc import Iterator, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx
import pyarrow.parquet as pq
import pytest
import yaml
from image_container import Container, MountedImage, run_container

from mlflywheel import __version__, images
from mlflywheel.samples.ad_campaigns import generate_ad_campaigns

ROOT = Path(__file__).resolve().parents[2]
PIPELINE = ROOT / "pipelines" / "ad_campaigns" / "pipeline.yaml"
IMAGES = ("components", "predictor")


@pytest.fixture(params=IMAGES)
def image(request: pytest.FixtureRequest) -> MountedImage:
    found = request.getfixturevalue(request.param)
    assert isinstance(found, MountedImage)
    return found


def open_for_everyone(folder: Path) -> Path:
    """A folder that user 1000 of a container can write to."""
    folder.mkdir(parents=True)
    folder.chmod(0o777)
    return folder


def run_component(
    image: MountedImage,
    folder: Path,
    data: Path,
    component: str,
    inputs: Mapping[str, str],
    outputs: Mapping[str, str],
    **parameters: str,
) -> dict[str, Any]:
    """Run a component as KFP's launcher does: the compiled task's own command, with an executor input.

    Args:
        image: What it runs in.
        folder: An empty folder to work in.
        data: What the container sees as /data.
        component: As compiled, such as `train-model`.
        inputs: Artifact types by name; the files are in /data under these names.
        outputs: Artifact types by name; likewise.
        parameters: Its input parameters.

    Returns:
        The executor's output.
    """
    with PIPELINE.open(encoding="utf-8") as file:
        executors = next(yaml.safe_load_all(file))["deploymentSpec"]["executors"]
    container = executors[f"exec-{component}"]["container"]
    assert container["image"] == image.name == images.COMPONENTS

    def describe(artifacts: Mapping[str, str]) -> dict[str, Any]:
        return {
            name: {
                "artifacts": [
                    {
                        "name": name,
                        "uri": f"/data/{name}",
                        "type": {"schemaTitle": f"system.{kind}", "schemaVersion": "0.0.1"},
                        "metadata": {},
                    }
                ]
            }
            for name, kind in artifacts.items()
        }

    written = f"{component}.json"
    executor_input = {
        "inputs": {"parameterValues": parameters, "artifacts": describe(inputs)},
        "outputs": {"artifacts": describe(outputs), "outputFile": f"/data/{written}"},
    }
    words = [word.replace("{{$}}", json.dumps(executor_input)) for word in (*container["command"], *container["args"])]
    folder.mkdir()
    run_container(image, folder, words, mounts={"/data": data})
    found = json.loads((data / written).read_text(encoding="utf-8"))
    assert isinstance(found, dict)
    return found


@pytest.fixture(scope="session")
def trained(components: MountedImage, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what two components made in containers: `table`, `fitted`, `metrics` and `environment`."""
    folder = tmp_path_factory.mktemp("components")
    data = open_for_everyone(folder / "data")
    pq.write_table(generate_ad_campaigns(campaigns=120), data / "rows")
    prepared = run_component(
        components,
        folder / "prepare",
        data,
        "prepare-table",
        {"rows": "Dataset"},
        {"table": "Dataset"},
        model="topic-fingerprints",
        config="{}",
    )
    assert (
        prepared["artifacts"]["table"]["artifacts"][0]["metadata"]["entities"] == pq.read_table(data / "table").num_rows
    )
    (data / "train").hardlink_to(data / "table")
    run_component(
        components,
        folder / "train",
        data,
        "train-model",
        {"train": "Dataset"},
        {"fitted": "Model", "metrics": "Metrics", "environment": "Artifact"},
        model="topic-fingerprints",
        params='{"num_topics": 8}',
    )
    return data


@pytest.fixture(scope="session")
def served(predictor: MountedImage, trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Container]:
    """The predictor's container, ready, with the model that a component trained where KServe mounts it."""
    words = [*predictor.config["Entrypoint"], "--model_name=campaigns", "--model_dir=/mnt/models", "--host=127.0.0.1"]
    running = Container(
        predictor,
        tmp_path_factory.mktemp("predictor"),
        [*words, "--http_port=0", "--grpc_port=0", "--drain_delay_seconds=0"],
        mounts={"/mnt/models:ro": trained / "fitted"},
    )
    try:
        running.wait_for(lambda: find_events(running, "ready"))
        yield running
    finally:
        running.stop()


def find_events(running: Container, name: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in running.log if line.startswith("{")]
    return [line for line in lines if line.get("event") == name]


def list_names(image: MountedImage) -> set[str]:
    with (image.root / "opt" / "venv" / "sbom.cdx.json").open(encoding="utf-8") as file:
        return {component["name"] for component in json.load(file)["components"]}


def test_components_run_through_kfps_executor(trained: Path) -> None:
    output = json.loads((trained / "train-model.json").read_text(encoding="utf-8"))
    metadata = output["artifacts"]["fitted"]["artifacts"][0]["metadata"]
    assert re.fullmatch(r"(sha256:)?[0-9a-f]{64}", metadata["hash"])
    assert output["artifacts"]["metrics"]["artifacts"][0]["metadata"]["num_topics"] == 8
    assert (trained / "fitted").is_dir()


def test_manifest_of_a_training_names_image_commit_and_lock(trained: Path, components: MountedImage) -> None:
    found = json.loads((trained / "environment").read_text(encoding="utf-8"))
    lock = (ROOT / "requirements" / "components.txt").read_bytes()
    commit = components.environment["MLFLYWHEEL_COMMIT"]
    assert re.fullmatch("[0-9a-f]{40}(-dirty)?", commit)
    assert found["image"]["reference"] == images.COMPONENTS
    assert found["code"]["commit"] == commit.removesuffix("-dirty")
    assert found["code"]["dirty"] is commit.endswith("-dirty")
    assert found["lock_hash"] == f"sha256:{sha256(lock).hexdigest()}"
    assert found["lock"]["not_in_it"] == ["mlflywheel"]


def test_trial_runs_as_katib_starts_it(components: MountedImage, trained: Path, tmp_path: Path) -> None:
    logs = open_for_everyone(tmp_path / "logs")
    given = {"data": "/data/table", "model": "topic-fingerprints", "metrics": ["neighbour_purity_at_10"]}
    command = "python -m mlflywheel.tuning.trial num_topics=8"
    log = "/var/log/katib/metrics.log"
    run_container(
        components,
        tmp_path,
        ["sh", "-c", f"{command} 1>{log} 2>&1 && echo completed > /var/log/katib/$$.pid"],
        mounts={"/data:ro": trained, "/var/log/katib": logs},
        variables={"MLFLYWHEEL_TRIAL": json.dumps(given)},
    )
    assert re.search(
        r"^neighbour_purity_at_10=0?\.\d+$", (logs / "metrics.log").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert [file.read_text(encoding="utf-8") for file in logs.glob("*.pid")] == ["completed\n"]


def test_predictor_answers_v1_with_read_only_root_as_user_1000(served: Container) -> None:
    port = find_events(served, "listening")[0]["http_port"]
    answer = httpx.post(
        f"http://127.0.0.1:{port}/v1/models/campaigns:predict",
        json={"instances": [{"terms": ["emergency plumber"]}]},
        timeout=60,
    )
    assert answer.status_code == 200, answer.text
    assert len(answer.json()["predictions"]) == 1


def test_predictor_ends_cleanly_when_the_pod_does(
    predictor: MountedImage, trained: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    running = Container(
        predictor,
        tmp_path_factory.mktemp("ending"),
        [
            *predictor.config["Entrypoint"],
            *("--model_name=campaigns", "--model_dir=/mnt/models", "--host=127.0.0.1", "--drain_delay_seconds=0"),
            *("--http_port=0", "--grpc_port=0"),
        ],
        mounts={"/mnt/models:ro": trained / "fitted"},
    )
    try:
        running.wait_for(lambda: find_events(running, "ready"))
    finally:
        code = running.stop()
    assert code == 0, running.text[-2000:]


def test_container_writes_nowhere_but_tmp(image: MountedImage, tmp_path: Path) -> None:
    code = (
        "import os, json; from pathlib import Path\n"
        "def can(path):\n"
        "    try: Path(path, 'x').write_text(''); return True\n"
        "    except OSError: return False\n"
        "print(json.dumps([os.getuid(), os.getgid(), [p for p in ('/', '/opt/venv', '/var/tmp', '/tmp') if can(p)]]))"
    )
    running = run_container(image, tmp_path, ["python", "-c", code])
    assert json.loads(running.log[-1]) == [1000, 0, ["/tmp"]]


def test_packages_belong_to_root_and_cannot_be_changed_by_the_user(image: MountedImage) -> None:
    found = [
        path
        for path in (image.root / "opt" / "venv").rglob("*")
        if not path.is_symlink() and (path.lstat().st_uid != 0 or path.lstat().st_mode & 0o022)
    ]
    assert found == []


def test_labels_say_what_the_image_was_built_from(image: MountedImage) -> None:
    labels = image.config["Labels"]
    assert image.config["User"] == "1000:0"
    assert labels["org.opencontainers.image.version"] in (__version__, f"{__version__}-gpu")
    assert labels["org.opencontainers.image.revision"] == image.environment["MLFLYWHEEL_COMMIT"]
    assert image.environment["MLFLYWHEEL_IMAGE"] == image.name


def test_bill_of_materials_lists_what_the_lock_pins(image: MountedImage, tmp_path: Path) -> None:
    document = json.loads((image.root / "opt" / "venv" / "sbom.cdx.json").read_text(encoding="utf-8"))
    code = "import sys; from importlib.metadata import distributions; print(*sorted(d.name for d in distributions()))"
    installed = run_container(image, tmp_path, ["python", "-c", code]).log[-1].split()
    normalised = {re.sub("[-_.]+", "-", name).lower() for name in installed} - {"mlflywheel"}
    assert {component["name"] for component in document["components"]} - {"python"} == normalised
    assert all(component["licenses"] for component in document["components"])
    references = {component["bom-ref"] for component in document["components"]}
    references.add(document["metadata"]["component"]["bom-ref"])
    assert {ref for entry in document["dependencies"] for ref in (entry["ref"], *entry["dependsOn"])} <= references


def test_predictor_holds_neither_great_expectations_nor_kfps_compiler(predictor: MountedImage) -> None:
    assert list_names(predictor).isdisjoint(
        {"great-expectations", "kfp", "kfp-kubernetes", "optuna", "onnx", "fairlearn"}
    )


def test_image_keeps_nothing_of_the_machine_that_built_it(buildah: list[str], image: MountedImage) -> None:
    secrets = [path for path in ("etc/pip.conf", "root/.cache", "build") if (image.root / path).exists()]
    assert secrets == []
    history = subprocess.run(
        [*buildah, "inspect", "--type", "image", image.name], capture_output=True, text=True, check=True
    ).stdout
    assert str(ROOT) not in history
    assert not re.search(r"https?://", json.dumps(json.loads(history)["OCIv1"]))
    # uv notes where a wheel came from: a folder of the build, and not one of this machine.
    for note in (image.root / "opt" / "venv").rglob("direct_url.json"):
        assert json.loads(note.read_text(encoding="utf-8"))["url"].startswith("file:///build/")


def test_modules_are_compiled_already(image: MountedImage) -> None:
    library = next((image.root / "opt" / "venv" / "lib").iterdir()) / "site-packages"
    sources = [path for name in ("mlflywheel", "numpy") for path in (library / name).rglob("*.py")]
    compiled = [path for path in sources if list((path.parent / "__pycache__").glob(f"{path.stem}.*.pyc"))]
    assert len(sources) > 100
    assert sorted(set(sources) - set(compiled)) == []
    # Flags 1: by the source's hash, and not looked at again (PEP 552), so that times in a layer do not matter.
    for path in compiled[:20]:
        (cache,) = (path.parent / "__pycache__").glob(f"{path.stem}.*.pyc")
        assert int.from_bytes(cache.read_bytes()[4:8], "little") == 1, os.fspath(path)
