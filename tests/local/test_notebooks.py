"""The notebooks of examples/: each runs from its first cell to its last, and what is committed is what it prints."""

import re
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
NAMES = ["from-data-frame-to-canary", "own-component", "reading-the-report", "tuning"]
#: Enough for tables; pictures and logs belong into reports.
MAXIMUM_BYTES = 30_000
_LONG = pytest.mark.long
# What differs between two machines: durations, identifiers and the last bits of sums.
_VARYING = re.compile(r"\d+(\.\d+)?|[0-9a-f]{8,}")


def _read(name: str) -> Any:
    return nbformat.read(EXAMPLES / f"{name}.ipynb", as_version=4)


def _texts(notebook: Any) -> list[str]:
    """Return what each cell of code printed and returned, as text."""
    return [
        "".join(output.get("text", "") + output.get("data", {}).get("text/plain", "") for output in cell["outputs"])
        for cell in notebook["cells"]
        if cell["cell_type"] == "code"
    ]


def _mask(text: str) -> str:
    """Return a text without numbers, and without the width that they gave to tables."""
    return re.sub(r"[\s-]+", " ", _VARYING.sub("#", text))


def test_every_notebook_is_tested() -> None:
    assert sorted(path.stem for path in EXAMPLES.glob("*.ipynb")) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_committed_outputs_are_complete_and_small(name: str) -> None:
    cells = [cell for cell in _read(name)["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert {output["output_type"] for cell in cells for output in cell["outputs"]} <= {"stream", "execute_result"}
    text = (EXAMPLES / f"{name}.ipynb").read_text(encoding="utf-8")
    assert len(text) < MAXIMUM_BYTES
    assert re.findall(r"/(?:tmp|home|root|Users|private)/[^\s\"]*", text) == []


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name == "own-component" else [_LONG]) for name in NAMES]
)
def test_notebook_runs_and_prints_what_is_committed(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A cluster that somebody works with is none of a test's business.
    monkeypatch.delenv("KF_PIPELINES_ENDPOINT", raising=False)
    monkeypatch.delenv("MLFLYWHEEL_REGISTRY", raising=False)
    committed, notebook = _read(name), _read(name)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert [_mask(text) for text in _texts(notebook)] == [_mask(text) for text in _texts(committed)]
