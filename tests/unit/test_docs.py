"""The documentation against the code: links, component rows, commands and names."""

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mlflywheel import components
from mlflywheel.cli import app
from mlflywheel.commands.models import models_app
from mlflywheel.commands.rollout import rollout_app
from mlflywheel.commands.submit import schedules_app
from mlflywheel.models.contract import load_model_class
from mlflywheel.pipelines.catalog import PIPELINES, Pipeline

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(
    path for path in ROOT.rglob("*.md") if not {".venv", "runs", "build", "src"} & set(path.relative_to(ROOT).parts)
)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    links = [link.split("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text)]
    missing = [link for link in links if link and "://" not in link and not (page.parent / link).exists()]
    assert missing == []


def test_every_component_has_a_row() -> None:
    rows = re.findall(r"^\| `(\w+)` \|", (ROOT / "components" / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(rows) == sorted(components.__all__)


@pytest.mark.parametrize("pipeline", PIPELINES, ids=lambda pipeline: pipeline.name)
def test_every_pipeline_has_a_page_that_names_its_columns(pipeline: Pipeline) -> None:
    text = (ROOT / "pipelines" / pipeline.package / "README.md").read_text(encoding="utf-8")
    for column in load_model_class(pipeline.model).columns:
        assert f"`{column.name}`" in text


def test_commands_in_the_pages_exist() -> None:
    known = {command.name or command.callback.__name__ for command in app.registered_commands}
    for name, group in (("models", models_app), ("rollout", rollout_app), ("schedules", schedules_app)):
        known |= {f"{name} {command.name or command.callback.__name__}" for command in group.registered_commands}
    used = set()
    for page in PAGES:
        for block in re.findall(r"```\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
            for line in block.splitlines():
                match = re.match(r"(?:\.venv/bin/)?mlflywheel ((?:models|rollout|schedules) \w+|\w+)", line)
                if match:
                    used.add(match.group(1))
                    options = [word for word in line.split() if word.startswith("--")]
                    help_text = CliRunner().invoke(app, [*match.group(1).split(), "--help"]).output
                    assert [option for option in options if option not in help_text] == [], line
    assert used <= known
    assert {"run", "score", "models show", "rollout start"} <= used


def test_make_targets_in_the_pages_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([\w-]+):", makefile, re.MULTILINE))
    named = set(re.findall(r"`?make ([\w-]+)`?$", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE))
    assert {"run", "test"} <= named <= targets


def test_decisions_are_numbered_without_gaps() -> None:
    numbers = sorted(int(path.name[:4]) for path in (ROOT / "docs" / "adr").glob("*.md"))
    assert numbers == list(range(1, len(numbers) + 1))
