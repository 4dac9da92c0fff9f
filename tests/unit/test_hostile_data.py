"""Tables and documents that somebody hostile wrote: they are refused in time, and what they say is never done."""

import gzip
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from rich.table import Table
from rich.text import Text
from test_reports import hostile_report
from typer.testing import CliRunner

from mlflywheel.cli import app
from mlflywheel.console import Terminal
from mlflywheel.data.ingestion import ingest, read_mapping
from mlflywheel.data.validation.masking import mask_value
from mlflywheel.data.validation.suite import read_suite
from mlflywheel.decisions.canary.policy import read_policy
from mlflywheel.decisions.gates import read_gates
from mlflywheel.errors import DataError, MlflywheelError, RegistryError, UsageError
from mlflywheel.evaluation import read_plan
from mlflywheel.lint import lint_paths
from mlflywheel.models.contract import Column
from mlflywheel.models.parameters import read_assignments
from mlflywheel.models.topic_fingerprints import TopicFingerprints
from mlflywheel.models.topic_fingerprints.text import TextOptions, clean_terms, tokenize_terms
from mlflywheel.registry import EmbeddedRegistry
from mlflywheel.registry.dossier import check_dossier
from mlflywheel.reports import render_report
from mlflywheel.samples.ad_campaigns import generate_ad_campaigns
from mlflywheel.tuning.reader import read_experiment

COLUMNS = (
    Column("campaign_id", "id", required=True),
    Column("term", "text", required=True),
    Column("clicks", "number"),
)
HEAD = b"campaign_id,term,clicks\n"
ROOT = Path(__file__).resolve().parents[2]


class TooSlowError(Exception):
    """It took longer than anything here may."""


@pytest.fixture(autouse=True)
def _within_seconds() -> Iterator[None]:
    """What grows without end fails here, and not in an hour."""

    def stop(number: int, frame: Any) -> None:
        raise TooSlowError

    previous = signal.signal(signal.SIGALRM, stop)
    signal.alarm(30)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, previous)


def refuse_table(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    with pytest.raises(DataError) as refused:
        ingest(str(path), COLUMNS, {})
    return str(refused.value)


def gzipped(head: bytes, piece: bytes, times: int) -> bytes:
    packed = gzip.compress(head)
    # Members of gzip stand behind each other, so that a bomb is made of one that is packed once.
    return packed + gzip.compress(piece) * times


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (HEAD + b"a,b\x00c,1\n", "is NUL"),
        (HEAD + b"a,\xe9,1\n", "not UTF-8"),
        (HEAD + b"a,b,1" + b",1" * 300_000 + b"\n", "300003 values"),
        (HEAD + b'a,"' + b"x\n" * 200_000, "goes on for 199999 lines"),
        (b",".join(b"c%d" % number for number in range(200_000)) + b"\n" + b"1," * 199_999 + b"1\n", "200,000 columns"),
        (HEAD + b"a,b," + b"9" * 5_000 + b"x\n", "a number is needed"),
    ],
    ids=["nul", "encoding", "wide row", "open quote", "wide header", "long number"],
)
def test_a_table_that_is_none_is_refused(tmp_path: Path, content: bytes, part: str) -> None:
    started = time.monotonic()
    assert part in refuse_table(tmp_path / "table.csv", content)
    assert time.monotonic() - started < 10


def test_a_gzip_bomb_is_refused_before_it_has_gone_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # As it is with sixteen times as much; what is unsuspicious is large, so that no table is refused.
    monkeypatch.setattr("mlflywheel.data.ingestion._UNSUSPICIOUS_BYTES", 2**24)
    for piece in (b"\0" * 2**22, b"a,b,1\n" * 2**20):
        bomb = gzipped(HEAD, piece, 40)
        assert len(bomb) < 2**20
        assert "more than 200 times as many" in refuse_table(tmp_path / "bomb.csv.gz", bomb)


def test_a_table_that_repeats_itself_is_no_bomb(tmp_path: Path) -> None:
    path = tmp_path / "table.csv.gz"
    path.write_bytes(gzip.compress(HEAD + b"a,b,1\n" * 200_000))
    assert ingest(str(path), COLUMNS, {}).table.num_rows == 200_000


def test_a_terminal_is_not_told_what_to_do(tmp_path: Path) -> None:
    message = refuse_table(tmp_path / "table.csv", "camp\x1b[31m\x1b]0;owned\x07\u202e,te\x9b2Jrm\na,b\n".encode())
    assert r"camp\x1b[31m\x1b]0;owned\x07\u202e" in message
    assert not any(ord(character) < 32 or 0x7F <= ord(character) < 0xA0 for character in message)


# Documents


def laughs(lines: int = 10) -> str:
    """A list of lists of lists by aliases: nine times as many values with each line."""
    names = "abcdefghij"[:lines]
    pairs = zip(["x", *(f"*{name}" for name in names)], names, strict=False)
    return ", ".join(f"&{name} [{', '.join([inner] * 9)}]" for inner, name in pairs)


READERS: dict[str, Callable[[str], Any]] = {
    "gates.yaml": read_gates,
    "evaluation.yaml": read_plan,
    "rollout.yaml": read_policy,
    "experiment.yaml": read_experiment,
}
DOCUMENTS = {
    "laughs where a number belongs": f"schema: [{laughs()}]\n",
    "laughs where a list belongs": f"schema: 1\ngates: {{x: [{laughs()}]}}\nsteps: {{x: 1}}\n",
    "deep lists": "[" * 2_000,
    "deep mappings": "{a: " * 2_000,
    "a loop": "&a {schema: 1, gates: *a}",
    "a command": '!!python/object/apply:os.mkdir ["{trap}"]',
    "a class": "!!python/name:os.system",
    "digits": "schema: " + "9" * 10_000,
    "NUL": "schema: \0",
    "a date that is none": "schema: 9999-99-99",
    "many names": "".join(f"k{number}: 1\n" for number in range(300)),
}


@pytest.mark.parametrize("name", READERS)
def test_a_yaml_bomb_is_refused(name: str, tmp_path: Path) -> None:
    trap = tmp_path / "executed"
    for what, text in DOCUMENTS.items():
        with pytest.raises(MlflywheelError) as refused:
            pytest.fail(f"{what}: {READERS[name](text.replace('{trap}', str(trap)))}")
        assert len(str(refused.value)) < 1000, what
    assert not trap.exists()


def test_lint_reads_bombs_as_findings(tmp_path: Path) -> None:
    for number, text in enumerate(DOCUMENTS.values()):
        (tmp_path / f"{number}.yaml").write_text(text.replace("{trap}", str(tmp_path / "executed")), encoding="utf-8")
    (tmp_path / "kind.yaml").write_text(
        f"apiVersion: serving.kserve.io/v1beta1\nkind: InferenceService\nmetadata: {{name: a}}\nspec: [{laughs()}]\n"
    )
    assert {finding.file for finding in lint_paths([tmp_path])}
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        '{"schema":' * 100_000,
        "9" * 6_000,
        '{"schema": 1, "rows": [{"type": "expect_column_to_exist", "kwargs": {"row_condition": "exit()"}}]}',
        '{"schema": 1, "rows": [{"type": "expect_column_to_exist", "kwargs": {"condition_parser": "pandas"}}]}',
        '{"schema": 1, "rows": [{"type": "expect_queried_table_row_count_to_be", "kwargs": {"query": "DROP"}}]}',
        '{"schema": 1, "rows": [{"type": "os.system", "kwargs": {}}]}',
        '{"schema": 1, "rows": [{"type": "expect_my_own", "kwargs": {}, "module": "os"}]}',
        '{"schema": 1, "rows": [{"type": "__class__", "kwargs": {}}]}',
    ],
    ids=lambda text: text[-60:],
)
def test_a_suite_names_no_code(text: str) -> None:
    with pytest.raises(UsageError):
        read_suite(text, "expectations.json")


# Time


def grows_less_than_squared(work: Callable[[int], Any], small: int) -> bool:
    """Whether eight times as much takes less than 40 times as long; squared would be 64."""
    seconds = []
    for size in (small, 8 * small):
        best = 1e9
        for _ in range(3):
            started = time.process_time()
            work(size)
            best = min(best, time.process_time() - started)
        seconds.append(best)
    return seconds[1] < 40 * max(seconds[0], 1e-3)


@pytest.mark.parametrize("text", ["a-", "+1 ", "(", "@a", "0" * 9 + " ", "a" * 31 + ".", "\u0301", "a@b.", "#c+"])
def test_terms_are_split_in_a_time_that_grows_with_their_length(text: str) -> None:
    def split(size: int) -> None:
        tokenize_terms(clean_terms(pa.array([text * (size // len(text))])), TextOptions())

    assert grows_less_than_squared(split, 2_000)


@pytest.mark.parametrize("text", ["+1 ", "(0", "a@", "0 ", "00", "123-", "@", "-" * 8])
def test_personal_data_is_masked_in_a_time_that_grows_with_the_text(text: str) -> None:
    assert grows_less_than_squared(lambda size: mask_value(text * (size // len(text))), 2_000)


# Compiled pipelines and reports


def test_no_compiled_pipeline_installs_anything_when_it_runs() -> None:
    compiled = sorted((ROOT / "pipelines").glob("*/pipeline.yaml"))
    assert len(compiled) >= 3
    for path in compiled:
        for document in yaml.load_all(path.read_bytes(), Loader=yaml.CSafeLoader):
            for name, executor in document.get("deploymentSpec", {}).get("executors", {}).items():
                container = executor.get("container", {})
                text = " ".join([*container.get("command", ()), *container.get("args", ())])
                assert text, name
                assert not any(word in text for word in ("pip install", "curl ", "wget ", "git clone", "apt-get")), name


BROWSER = next((found for name in ("chromium", "google-chrome") if (found := shutil.which(name))), None)


@pytest.mark.skipif(BROWSER is None, reason="no Chromium. Fix: apt-get install chromium")
def test_a_browser_runs_nothing_that_a_report_quotes(tmp_path: Path) -> None:
    def look(name: str, text: str) -> str:
        page = tmp_path / name
        page.write_text(text, encoding="utf-8")
        finished = subprocess.run(
            [
                str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
                "--disable-background-networking", "--disable-component-update", "--disable-sync",
                f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=4000", "--dump-dom", page.as_uri(),
            ],
            capture_output=True, text=True, timeout=60, check=True,
        )  # fmt: skip
        return finished.stdout

    planted = "<script>document.documentElement.setAttribute('data-owned', 'yes')</script>"
    text = render_report(hostile_report()).replace("alert(1)", "document.documentElement.dataset.owned='yes'")
    text = text.replace("alert(2)", "document.documentElement.dataset.owned='yes'")
    # And a script that does get into the page is stopped by its policy.
    seen = look("report.html", text.replace("</main>", planted + "</main>", 1))
    assert "</main>" in seen
    assert "setAttribute('data-owned'" in seen
    assert not re.search(r"<html[^>]*data-owned", seen)
    assert re.search(r"<html[^>]*data-owned", look("without-policy.html", f"<!doctype html><main>{planted}</main>"))


def test_a_dossier_of_brackets_is_refused() -> None:
    for text in (b"[" * 100_000, b'{"schema": NaN}', b"\xff", b'{"schema": 1, "run": []}'):
        with pytest.raises(RegistryError):
            check_dossier(text, "dossier.json")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[" * 100_000, "nested too deeply"),
        ('{"a":' * 100_000, "nested too deeply"),
        ('{"num_topics": 1' + "0" * 10_000 + "}", "Exceeds the limit"),
        ("{", "Expecting property name"),
    ],
)
def test_parameters_that_are_no_json_are_refused_in_words(text: str, told: str) -> None:
    for read in (lambda: TopicFingerprints.Params.parse(text, "--params"), lambda: read_mapping(text, "--params")):
        with pytest.raises(UsageError, match=f"--params: not JSON .{told}"):
            read()
    # An assignment that is no JSON is text.
    assert read_assignments("--param", [f"name={text}"]) == {"name": text}


# The terminal

HOSTILE = "red\x1b[31m\x9b2J\x1b]0;mine\x07"


def run_command(*arguments: str) -> str:
    done = CliRunner().invoke(app, arguments, env={"COLUMNS": "200"})
    assert done.exit_code == 0, done.output
    return done.output


def test_names_and_terms_of_data_do_nothing_to_a_terminal(tmp_path: Path) -> None:
    raw = generate_ad_campaigns(campaigns=40)
    ids = [f"{HOSTILE}{name}" for name in raw["campaign_id"].to_pylist()]
    raw = raw.set_column(raw.schema.get_field_index("campaign_id"), "campaign_id", pa.array(ids))
    pq.write_table(raw, tmp_path / "terms.parquet")
    model = TopicFingerprints.fit(
        TopicFingerprints.prepare(raw, TopicFingerprints.Config()), TopicFingerprints.Params(num_topics=3)
    )
    model.save(tmp_path / "model")
    EmbeddedRegistry(tmp_path / "registry.sqlite").ensure_version(
        "ads", f"s3://models/{HOSTILE}", key=HOSTILE, format_name=HOSTILE, format_version="1", hash="sha256:0",
        parameters={HOSTILE: HOSTILE}, lineage={HOSTILE: HOSTILE},
    )  # fmt: skip
    here = ("--runs", str(tmp_path))
    told = {
        "explain": run_command("explain", str(tmp_path / "model"), "--data", str(tmp_path / "terms.parquet"), *here),
        "list": run_command("models", "list", *here),
        "show": run_command("models", "show", "ads@1", *here),
        "approve": run_command("models", "approve", "ads@1", "--reason", HOSTILE, "--by", HOSTILE, *here),
    }
    for name, text in told.items():
        assert "red\\x1b[31m" in text, name
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", text), name


def test_a_console_for_people_keeps_its_own_colours(capsys: pytest.CaptureFixture[str]) -> None:
    console = Terminal(force_terminal=True, color_system="standard", width=80)
    table = Table("name")
    table.add_row(Text(HOSTILE, "green"))
    console.print(table, f"plain {HOSTILE}")
    told = capsys.readouterr().out
    assert "\x1b[32mred\\x1b[31m" in told
    assert "\x1b[31m" not in told.replace("\\x1b[31m", "")
    assert "\x9b" not in told
