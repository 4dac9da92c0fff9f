"""The page to try a model, in a real browser."""

import html
import re
import shutil
import subprocess
from pathlib import Path
from urllib.parse import quote

import pytest
from running_server import RunningServer

BROWSER = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium. Fix: apt-get install chromium")


def look(url: str, profile: Path) -> str:
    """Return the page's document after its script has run."""
    finished = subprocess.run(
        [
            str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", "--disable-sync",
            f"--user-data-dir={profile}", "--virtual-time-budget=10000", "--dump-dom", url,
        ],
        capture_output=True, text=True, timeout=90, check=False,
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def read_text(document: str) -> str:
    body = re.sub(r"<script.*?</script>|<style.*?</style>", "", document, flags=re.DOTALL)
    return html.unescape(re.sub(r"<[^>]+>", "\n", body))


def test_a_person_sees_topics_neighbours_and_keywords(server: RunningServer, tmp_path: Path) -> None:
    shown = read_text(look(f"{server.url}/try#{quote('emergency plumber|drain cleaning')}", tmp_path / "profile"))
    for heading in ("Topics", "Similar campaigns", "Recommended keywords"):
        assert heading in shown
    assert "drain cleaning" in shown
    assert "answered in" in shown
    assert re.search(r"\d+\.\d %", shown)


def test_what_is_typed_is_text_and_never_markup(server: RunningServer, tmp_path: Path) -> None:
    planted = "<img src=x onerror=document.title='owned'>"
    document = look(f"{server.url}/try#{quote('shoes|' + planted)}", tmp_path / "profile")
    assert "<img" not in document
    assert "owned</title>" not in document
    assert "Similar campaigns" in read_text(document)
