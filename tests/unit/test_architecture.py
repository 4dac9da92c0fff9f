"""The shape of the repository: layers, the wheel, what an import costs, and the locks."""

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from itertools import chain
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "src" / "mlflywheel"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
LOCKS = ("bootstrap", "components", "dev", "predictor", "predictor-gpu")
# Heavy, or hidden by kfp inside a running component.
COSTLY = ("faiss", "gensim", "great_expectations", "kfp", "kubernetes", "numba", "pandas", "scipy", "sklearn", "spacy")


def run_python(code: str, **variables: str) -> str:
    """Run code in a new interpreter, away from the repository so that only the installed package is found."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(sys.executable).parent,
        env=os.environ | variables,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def read_pins(lock: str) -> dict[str, str]:
    text = (ROOT / "requirements" / f"{lock}.txt").read_text(encoding="utf-8")
    return dict(re.findall(r"^([a-z0-9-]+)==([^ ]+)", text, re.MULTILINE))


def list_text_files() -> list[Path]:
    """List the files that git tracks or would track."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, timeout=60).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout, or no git")
    files = [ROOT / name for name in listed.decode().split("\0") if name]
    # Recorded requests hold bytes on purpose that are no text.
    files = [file for file in files if file.is_file() and file.suffix != ".bin"]
    return [file for file in files if b"\0" not in file.read_bytes()[:8000]]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """Names of the files in a wheel that is built from a copy, so that no build output lands in the repository."""
    source = tmp_path_factory.mktemp("wheel") / "source"
    source.mkdir()
    for name in ("components", "pipelines", "serving", "src"):
        shutil.copytree(
            ROOT / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info")
        )
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    subprocess.run(
        [sys.executable, "-c", "from setuptools import build_meta; build_meta.build_wheel('dist')"],
        cwd=source,
        capture_output=True,
        check=True,
        timeout=120,
    )
    (built,) = (source / "dist").glob("*.whl")
    with zipfile.ZipFile(built) as archive:
        return set(archive.namelist())


def test_wheel_adds_one_top_level_name(wheel: set[str]) -> None:
    names = {name.partition("/")[0] for name in wheel}
    assert {name for name in names if not name.endswith(".dist-info")} == {"mlflywheel"}


def test_wheel_holds_every_file_of_the_package_once(wheel: set[str]) -> None:
    folders = [PACKAGE, *(PACKAGE / name for name in ("components", "pipelines", "serving"))]
    found = {
        (Path("mlflywheel") / file.relative_to(PACKAGE)).as_posix()
        for folder in folders
        for file in folder.rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    assert "mlflywheel/pipelines/ad_campaigns/pipeline.yaml" in found
    # An image is built from a checkout.
    needed = {name for name in found if not name.endswith("Containerfile")}
    assert {name for name in wheel if name.startswith("mlflywheel/")} == needed


def test_layers_import_only_what_is_below_them() -> None:
    done = subprocess.run(
        [Path(sys.executable).parent / "lint-imports", "--no-cache"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = "import sys, mlflywheel; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    loaded = set(run_python(code).split())
    assert "mlflywheel" in loaded
    assert loaded.isdisjoint({*COSTLY, "numpy", "pyarrow", "pydantic"})


def test_everything_a_component_imports_can_be_imported_inside_a_pod() -> None:
    modules = set()
    for file in (ROOT / "components").rglob("component.py"):
        for function in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(function, ast.FunctionDef):
                imports = (node for node in ast.walk(function) if isinstance(node, ast.ImportFrom))
                modules |= {node.module for node in imports if node.module and node.module.startswith("mlflywheel")}
    assert "mlflywheel.events" in modules
    # With this variable kfp hides its decorators, as it does in a running component.
    code = f"import importlib; [importlib.import_module(name) for name in {sorted(modules)}]"
    run_python(code + "; from kfp import dsl; assert not hasattr(dsl, 'component')", _KFP_RUNTIME="true")


def test_no_file_names_a_folder_of_somebodys_machine() -> None:
    # KServe mounts every model there, on every machine.
    personal = re.compile(r"(?<![\w.:/-])/(?!mnt/models\b)(?:home|mnt|root|Users|work)/[\w.]")
    found = [
        f"{file.relative_to(ROOT)}:{number}: {line.strip()[:100]}"
        for file in list_text_files()
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1)
        if personal.search(line) or str(ROOT) in line
    ]
    assert found == []


@pytest.mark.parametrize("lock", LOCKS)
def test_lock_names_no_host_and_hashes_every_pin(lock: str) -> None:
    text = (ROOT / "requirements" / f"{lock}.txt").read_text(encoding="utf-8")
    assert "://" not in text
    assert "--index" not in text
    pins = re.findall(
        r"^[a-z0-9-]+(?:\[[a-z,]+\])?==(?:.*\\\n)((?:    --hash=sha256:[0-9a-f]{64}.*\n)*)", text, re.MULTILINE
    )
    assert len(pins) == len(re.findall(r"^[^\s#]", text, re.MULTILINE)) > 0
    assert all(pins)


@pytest.mark.parametrize("image_lock", ["components", "predictor", "predictor-gpu"])
def test_images_have_the_versions_that_the_tests_ran_with(image_lock: str) -> None:
    dev, image = read_pins("dev"), read_pins(image_lock)
    if image_lock == "predictor-gpu":
        # CuPy and CUDA's libraries, half a gigabyte that only a GPU can use, are in that image alone.
        image = {name: version for name, version in image.items() if not re.match("cupy|cuda|nvidia", name)}
    assert {name: version for name, version in image.items() if dev.get(name) != version} == {}


def test_dev_lock_satisfies_every_requirement_of_the_project() -> None:
    """A requirement that was added without `make lock` is missing here."""
    project = PROJECT["project"]
    groups = [*project["optional-dependencies"].values(), *PROJECT["dependency-groups"].values()]
    texts = chain(project["dependencies"], *groups)
    requirements = [requirement for requirement in map(Requirement, texts) if requirement.name != project["name"]]
    # The extra `gpu` is in its image's lock alone.
    pins = read_pins("predictor-gpu") | read_pins("dev")
    unmet = [
        str(requirement)
        for requirement in requirements
        if pins.get(canonicalize_name(requirement.name)) is None
        or not requirement.specifier.contains(pins[canonicalize_name(requirement.name)])
    ]
    assert unmet == []
