"""The tutorial and the how-to pages to the letter: their commands are run, and print what the pages show.

How a page says what is to be run:

- A block marked `bash` is run. A page's blocks are run in order by one shell, with `set -e`; the tutorial begins in an
  empty folder, and the other pages go on in the folder that it leaves.
- `<!-- not run: REASON -->` above a block says that it needs something else. Its commands and options have to exist.
- `<!-- exit code: N -->` above a block says that its last command ends so.
- A block marked `text` behind it shows what it prints: its lines have to occur in this order. Every number may be
  another one, `...` stands for anything, and columns may be aligned otherwise.
- The ports 8080 and 8081 are replaced by free ones, here and there alike.
"""

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mlflywheel.cli import app

DOCS = Path(__file__).resolve().parents[2] / "docs"
HOW_TO = sorted(path.name for path in (DOCS / "how-to").glob("*.md"))
#: Blocks that need what a test has not: a cluster, a clone to change, or minutes.
NOT_RUN = {
    "gates-and-fairness.md": 1,
    "roll-back.md": 2,
    "tune.md": 2,
    "tutorial.md": 3,
}
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$|^<!-- (not run|exit code): ([^>\n]+?) -->$", re.MULTILINE | re.DOTALL)
_END_OF_BLOCK = "end of block"
_PAGE_SECONDS = 500


@dataclass
class Block:
    """A block of commands, and what the page says of it."""

    commands: str
    shown: str = ""
    exit_code: int = 0
    not_run: str = ""


def read_blocks(page: Path) -> list[Block]:
    blocks: list[Block] = []
    marks: dict[str, str] = {}
    for match in _BLOCK.finditer(page.read_text(encoding="utf-8")):
        language, content, mark, value = match.groups()
        if mark:
            marks[mark] = value
        elif language == "bash":
            code = int(marks.pop("exit code", 0))
            blocks.append(Block(content, exit_code=code, not_run=marks.pop("not run", "")))
        elif language == "text":
            blocks[-1].shown = content
    assert not marks, f"{page.name}: a mark without a block: {marks}"
    return blocks


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def run_page(page: Path, folder: Path) -> list[tuple[Block, str]]:
    """Run a page's blocks in one shell; return each with what it printed."""
    blocks = [block for block in read_blocks(page) if not block.not_run]
    script = ["set -e"]
    for number, block in enumerate(blocks):
        script += ["set +e", block.commands, "code=$?", "set -e"] if block.exit_code else [block.commands]
        if block.exit_code:
            script.append(f"[ $code = {block.exit_code} ] || {{ echo block {number}: exit code $code; exit 1; }}")
        script.append(f"echo; echo {_END_OF_BLOCK} {number}")
    text = "\n".join(script)
    for port in ("8080", "8081"):
        text = text.replace(port, str(free_port()))
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
        "COLUMNS": "200",
    }
    child = subprocess.Popen(
        ["bash", "-c", text],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # A group of its own: what the page leaves in the background ends with it.
        start_new_session=True,
    )
    try:
        printed, _ = child.communicate(timeout=_PAGE_SECONDS)
    finally:
        try:
            os.killpg(child.pid, signal.SIGTERM)
            left = True
        except ProcessLookupError:
            left = False
    assert child.returncode == 0, f"{page.name}\n{printed}"
    assert not left, f"{page.name} leaves a process in the background"
    parts = re.split(rf"^{_END_OF_BLOCK} \d+\n", printed, flags=re.MULTILINE)
    return list(zip(blocks, parts, strict=False))


def mask(line: str) -> str:
    """Return a line without what differs between two runs: numbers, dates, hashes and the width of columns."""
    return " ".join(re.sub(r"\b[0-9a-f]{12,}\b|\d[\d.,:%e-]*", "#", line).split())


def missing_lines(shown: str, printed: str) -> list[str]:
    """Return the shown lines that were not printed, in this order."""
    rest = iter([mask(line) for line in printed.splitlines()])
    missing = []
    for line in filter(None, shown.splitlines()):
        pattern = ".*".join(re.escape(mask(part)) for part in line.split("..."))
        if not any(re.fullmatch(pattern, other) for other in rest):
            missing.append(line)
    return missing


def test_shown_lines_are_found_whatever_their_numbers() -> None:
    printed = "auc   0.7862  0.7339\n7 of 7 gates hold\nerror: it failed"
    assert missing_lines("auc  0.1  0.2\n7 of 7 gates ...", printed) == []
    assert missing_lines("7 of 7 gates hold\nauc 0.1 0.2", printed) == ["auc 0.1 0.2"]
    assert missing_lines("log_loss 0.1 0.2", printed) == ["log_loss 0.1 0.2"]


def test_blocks_that_are_not_run_are_known() -> None:
    pages = [DOCS / "tutorial.md", *(DOCS / "how-to" / name for name in HOW_TO)]
    counted = {page.name: sum(bool(block.not_run) for block in read_blocks(page)) for page in pages}
    assert {name: count for name, count in counted.items() if count} == NOT_RUN


def test_commands_that_are_not_run_exist() -> None:
    pages = [DOCS / "tutorial.md", *(DOCS / "how-to" / name for name in HOW_TO)]
    lines = [
        line
        for page in pages
        for block in read_blocks(page)
        if block.not_run
        for line in block.commands.replace("\\\n", "").splitlines()
        if line.startswith("mlflywheel ")
    ]
    assert len(lines) >= sum(NOT_RUN.values()) - 1
    for line in lines:
        words = shlex.split(line)[1:]
        command = words[:2] if words[0] in ("models", "rollout") else words[:1]
        told = CliRunner().invoke(app, [*command, "--help"])
        assert told.exit_code == 0, line
        assert [word for word in words if word.startswith("-") and word not in told.output] == [], line


@pytest.fixture(scope="module")
def tutorial(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[tuple[Block, str]]]:
    folder = tmp_path_factory.mktemp("tutorial")
    done = run_page(DOCS / "tutorial.md", folder)
    return folder / "credit", done


def check(done: list[tuple[Block, str]]) -> None:
    for block, printed in done:
        assert missing_lines(block.shown, printed) == [], printed


@pytest.mark.long
def test_tutorial_prints_what_it_shows(tutorial: tuple[Path, list[tuple[Block, str]]]) -> None:
    folder, done = tutorial
    check(done)
    assert sum(bool(block.shown) for block, _ in done) >= 6
    assert (folder / "runs" / "registry.sqlite").is_file()


@pytest.mark.long
@pytest.mark.parametrize("name", HOW_TO)
def test_how_to_prints_what_it_shows(name: str, tutorial: tuple[Path, list[tuple[Block, str]]]) -> None:
    check(run_page(DOCS / "how-to" / name, tutorial[0]))
