"""The documentation site: its navigation, what it takes from the code, and, built, its links."""

import importlib.util
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from urllib.parse import unquote, urlsplit

import pytest
import typer

from mlflywheel import components
from mlflywheel.cli import app
from mlflywheel.pipelines.catalog import PIPELINES

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(
    path.relative_to(ROOT)
    for pattern in (
        "docs/**/*.md",
        "manifests/**/*.md",
        "pipelines/**/*.md",
        "components/README.md",
        "benchmarks/README.md",
    )
    for path in ROOT.glob(pattern)
)


def _load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / "_extensions" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _commands(command: object, path: str = "mlflywheel") -> list[str]:
    children = getattr(command, "commands", {})
    return [path, *(name for key, child in children.items() for name in _commands(child, f"{path} {key}"))]


def test_a_list_of_links_becomes_the_navigation() -> None:
    made = _load("repository_pages").make_toctrees(
        "# Title\n\n## Guides\n\n- [One](one.md): first\n- [Two](a/two.md#part)\n- [Records](adr)\n"
    )
    assert "```{toctree}\n:hidden:\n:caption: Guides\n\none.md\n```" in made
    assert "```{toctree}\n:glob:\n:maxdepth: 1\n\nadr/*\n```" in made
    assert "- [One](one.md): first" in made


def test_every_page_stands_in_the_navigation() -> None:
    pages = _load("repository_pages")
    listed = {Path(f"{pages.NAVIGATION[0]}.md")}
    for name in pages.NAVIGATION:
        folder = (ROOT / name).parent
        for target in re.findall(
            r"^- \[[^\]]+\]\(([^)#\s]+)\)", (ROOT / f"{name}.md").read_text("utf-8"), re.MULTILINE
        ):
            found = sorted((folder / target).glob("*.md")) if (folder / target).is_dir() else [folder / target]
            listed |= {path.resolve().relative_to(ROOT) for path in found}
    assert sorted(set(PAGES) - listed) == [], "Fix: list them in docs/index.md"


def test_reference_has_every_command_with_its_options() -> None:
    text = _load("generated_reference").describe_commands()
    assert re.findall(r"^#+ (.+)$", text, re.MULTILINE) == _commands(typer.main.get_command(app))
    assert "| `--map OURS=THEIRS` | Our column name" in text


def test_reference_has_every_component_with_all_it_takes_and_gives() -> None:
    text = _load("generated_reference").describe_components()
    assert re.findall(r"^## (.+)$", text, re.MULTILINE) == components.__all__
    rows = re.findall(r"^\| `(\w+)` \| .* \| (.*) \|$", text, re.MULTILINE)
    assert {"fitted", "holdout_fraction", "gate_table", "Output"} <= {name for name, _ in rows}
    assert [name for name, description in rows if not description] == []


def test_reference_has_the_parameters_of_every_pipeline() -> None:
    text = _load("generated_reference").describe_pipelines()
    assert re.findall(r"^## (.+)$", text, re.MULTILINE) == [pipeline.name for pipeline in PIPELINES]
    assert text.count("| `holdout_fraction` | float | `0.2` | Share of") == len(PIPELINES)


class _Links(HTMLParser):
    """Collects where a page's links lead, what it loads, and which parts of it can be linked to."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.ids: set[str] = set()
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.ids.add(values.get("id") or "")
        target = values.get("src") if tag in ("img", "script", "iframe", "source") else values.get("href")
        if target:
            (self.links if tag == "a" else self.loaded).append(target)


def _build(target: Path, seed: str) -> Path:
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-c", "docs", "-d", f"{target}-trees", "."]
    # Like on a machine that does not know where the repository is published.
    environment = {name: value for name, value in os.environ.items() if name != "MLFLYWHEEL_REPOSITORY_URL"}
    done = subprocess.run(
        [*command, str(target)],
        cwd=ROOT,
        env={**environment, "PYTHONHASHSEED": seed, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return target


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built without a warning."""
    return _build(tmp_path_factory.mktemp("documentation") / "site", seed="1")


@pytest.mark.long
def test_every_page_is_built(site: Path) -> None:
    assert [page for page in PAGES if not (site / page.with_suffix(".html")).is_file()] == []
    client = (site / "docs" / "reference" / "python" / "client.html").read_text(encoding="utf-8")
    assert 'id="mlflywheel.client.Client.run"' in client


@pytest.mark.long
def test_no_link_of_the_site_is_dead(site: Path) -> None:
    pages = {page: _Links(page) for page in sorted(site.rglob("*.html"))}
    dead = []
    for page, found in pages.items():
        for target in [*found.links, *found.loaded]:
            parts = urlsplit(target)
            if parts.scheme:
                continue
            path = (page.parent / unquote(parts.path)).resolve() if parts.path else page
            fragment = unquote(parts.fragment)
            if not path.is_file() or (path in pages and fragment and fragment not in pages[path].ids):
                dead.append(f"{page.relative_to(site)}: {target}")
    assert len(pages) > len(PAGES)
    assert dead == []


@pytest.mark.long
def test_pages_load_nothing_from_elsewhere(site: Path) -> None:
    loaded = {target for page in site.rglob("*.html") for target in _Links(page).loaded}
    assert any(target.endswith(".css") or ".css?" in target for target in loaded)
    assert [target for target in loaded if urlsplit(target).netloc] == []
    styles = "".join(path.read_text(encoding="utf-8") for path in site.rglob("*.css"))
    assert re.findall(r"(?:@import\s+|url\(\s*)[\"']?(?:https?:)?//[^\"')\s]+", styles) == []


@pytest.mark.long
def test_the_same_pages_are_built_again(site: Path, tmp_path: Path) -> None:
    again = _build(tmp_path / "again", seed="2")
    built = {path.relative_to(site): path.read_bytes() for path in site.rglob("*") if path.is_file()}
    repeated = {path.relative_to(again): path.read_bytes() for path in again.rglob("*") if path.is_file()}
    assert sorted(built) == sorted(repeated)
    assert [name for name, content in built.items() if repeated[name] != content] == []
