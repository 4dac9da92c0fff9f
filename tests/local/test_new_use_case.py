"""`docs/new-use-case.md` to the letter: its files are written, its commands are run, and its model answers."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from rendered_manifests import MANIFESTS, kustomize, runtime_of, server_of, service_of

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "new-use-case.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"^`([\w./-]+)`:\n\n```\w+\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL))
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
COMMANDS = [line for language, block in BLOCKS if not language for line in block.splitlines()]
SERVE, ASK = COMMANDS[-2:]


@dataclass(frozen=True)
class Followed:
    """What following the page left behind.

    Args:
        folder: Where the files were written and the commands were run.
        environment: Variables that make its commands find the installed package.
        printed: Command: what it printed.
    """

    folder: Path
    environment: dict[str, str]
    printed: dict[str, str]


@pytest.fixture(scope="module")
def followed(tmp_path_factory: pytest.TempPathFactory) -> Followed:
    folder = tmp_path_factory.mktemp("new-use-case")
    for name, content in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content, encoding="utf-8")
    installed = folder / "installed"
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(installed),
        "OMP_NUM_THREADS": "1",
        "COLUMNS": "200",
        # A folder of its own and no network: this environment has what the package depends on. 0 means: no isolation.
        "PIP_TARGET": str(installed),
        "PIP_NO_DEPS": "1",
        "PIP_NO_INDEX": "1",
        "PIP_NO_BUILD_ISOLATION": "0",
    }
    printed = {}
    for command in COMMANDS[:-2]:
        done = subprocess.run(
            shlex.split(command), cwd=folder, env=environment, capture_output=True, text=True, timeout=400, check=False
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        printed[command] = done.stdout
    return Followed(folder, environment, printed)


def test_page_has_the_files_that_it_speaks_of() -> None:
    assert set(FILES) == {
        "pyproject.toml",
        "flat_rents/__init__.py",
        "flat_rents/pipeline.py",
        "flat_rents/expectations.json",
        "flat_rents/gates.yaml",
        "tests/test_flat_rents.py",
        "make_sample.py",
        "manifests/flat-rents/model/model.env",
    }
    # Small enough to be read.
    assert len(FILES["flat_rents/__init__.py"].splitlines()) < 120
    assert all(len(line) <= 120 for text in FILES.values() for line in text.splitlines())


def test_tests_on_the_page_pass(followed: Followed) -> None:
    assert "4 passed" in followed.printed["python -m pytest tests"]


def test_run_registers_the_model_and_its_gates_hold(followed: Followed) -> None:
    (path,) = followed.folder.glob("runs/flat-rents/*/summary.json")
    summary = json.loads(path.read_text(encoding="utf-8"))
    assert summary["status"] == "succeeded"
    assert (summary["model"]["name"], summary["model"]["version"]) == ("flat-rents", "1")
    assert summary["metrics"]["mape"] < 0.15 < summary["metrics"]["reference_mape"]
    # One overall, and one for each of the four districts.
    assert [gate["holds"] for gate in summary["gates"]] == [True] * 5
    assert (path.parent / "report.html").is_file()
    assert "flat_rents:FlatRent" in followed.printed["mlflywheel models show flat-rents"]


def test_scores_of_the_command_are_those_of_the_run(followed: Followed) -> None:
    scores = pq.read_table(followed.folder / "scores.parquet")
    (path,) = followed.folder.glob("runs/flat-rents/*/scores.parquet")
    assert scores.num_rows == 600
    assert scores == pq.read_table(path)
    assert set(scores["model_version"].to_pylist()) == {"flat-rents@1"}


def test_steps_that_load_the_model_run_in_its_image(followed: Followed) -> None:
    text = (followed.folder / "flat_rents" / "pipeline.yaml").read_text(encoding="utf-8")
    executors = yaml.safe_load(text)["deploymentSpec"]["executors"]
    images = {name.removeprefix("exec-"): one["container"]["image"] for name, one in executors.items()}
    assert {name for name, image in images.items() if image != "registry.example/flat-rents:1.0"} == {
        "split-table",
        "refuse-model",
    }


@pytest.fixture
def served(followed: Followed) -> Iterator[str]:
    """The server of the page on a free port; where it answers."""
    words = shlex.split(SERVE)
    words[words.index("--port") + 1] = "0"
    child = subprocess.Popen(
        [*words, "--grpc-port", "0", "--json"],
        cwd=followed.folder,
        env=followed.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        assert child.stdout is not None
        lines = ""
        for line in child.stdout:
            lines += line
            if lines.rstrip().endswith("}"):
                break
        yield json.loads(lines)["url"]
    finally:
        child.send_signal(signal.SIGINT)
        child.communicate(timeout=60)


def test_served_model_answers_the_request_of_the_page(served: str, followed: Followed) -> None:
    _, address, option, body = shlex.split(ASK)
    assert option == "-d"
    path = address.removeprefix("http://127.0.0.1:8080")
    with urllib.request.urlopen(urllib.request.Request(served + path, body.encode()), timeout=30) as answer:
        found: dict[str, Any] = json.load(answer)
    assert found["model_version"] == "1"
    (prediction,) = found["predictions"]
    assert prediction["flat_id"] == "f-1"
    assert prediction["note"] is None
    # Rents of the sample's harbour are around 21 a square metre.
    assert prediction["rent"] == pytest.approx(60 * 21, rel=0.05)
    with urllib.request.urlopen(f"{served}/try", timeout=30) as page:
        assert '"district": "north"' in page.read().decode()


def test_manifests_of_the_page_serve_the_format_in_its_image(tmp_path: Path) -> None:
    shutil.copytree(MANIFESTS, tmp_path / "manifests")
    shutil.copytree(MANIFESTS / "vehicle-prices", tmp_path / "manifests" / "flat-rents")
    name = "manifests/flat-rents/model/model.env"
    (tmp_path / name).write_text(FILES[name], encoding="utf-8")
    (images,) = re.findall(r"^```yaml\n(images:.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    overlay = tmp_path / "manifests" / "flat-rents" / "cpu"
    with (overlay / "kustomization.yaml").open("a", encoding="utf-8") as file:
        file.write(images)
    documents = kustomize(overlay)
    model = service_of(documents)["spec"]["predictor"]["model"]
    assert (
        model["modelFormat"]["name"] == runtime_of(documents)["spec"]["supportedModelFormats"][0]["name"] == "flat-rent"
    )
    assert model["storageUri"] == "s3://team/models/flat-rents/1/"
    assert server_of(documents)["image"] == "registry.example/flat-rents-predictor:1.0"
