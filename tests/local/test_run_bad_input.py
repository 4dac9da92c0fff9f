"""`mlflywheel run` on input that cannot be used: one clear line, the right exit code, and a summary all the same."""

import gzip
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from command_line import Finished, run

BAD_INPUTS = (
    "missing file",
    "empty file",
    "header only",
    "wrong columns",
    "wrong encoding",
    "truncated gzip",
    "directory",
    "unreadable uri",
    "missing ids",
    "clicks over impressions",
    "personal data",
    "10 MB term",
    "text as number",
    "wrong mapping",
)


def _cases(folder: Path) -> dict[str, tuple[list[str], int, str]]:
    """Bad inputs: what is typed, the exit code, and what the message has to name."""
    good = "campaign_id,term,clicks,impressions\n" + "".join(f"c{n % 7},term {n},1,2\n" for n in range(40))
    files: dict[str, bytes] = {
        "empty.csv": b"",
        "header.csv": b"campaign_id,term\n",
        "columns.csv": b"id,text\n1,a\n",
        "latin.csv": "campaign_id,term\na,caf\u00e9\n".encode("latin-1"),
        "truncated.csv.gz": gzip.compress(good.encode() * 200)[:300],
        "rules.csv": good.encode() + b",no campaign,1,2\nc1,clicked unseen,9,2\nc1,write to jane.doe@example.com,1,2\n",
        "long.csv": good.encode() + b"c1," + b"a" * 10_000_000 + b",1,2\n",
        "number.csv": good.encode() + b"c1,term,many,2\n",
    }
    for name, content in files.items():
        (folder / name).write_bytes(content)
    (folder / "folder.csv").mkdir()
    return {
        "missing file": (["--data", "missing.csv"], 1, "missing.csv"),
        "empty file": (["--data", "empty.csv"], 1, "empty.csv"),
        "header only": (["--data", "header.csv"], 1, "header.csv"),
        "wrong columns": (["--data", "columns.csv"], 1, "no column campaign_id"),
        "wrong encoding": (["--data", "latin.csv"], 1, "iconv"),
        "truncated gzip": (["--data", "truncated.csv.gz"], 1, "truncated.csv.gz"),
        "directory": (["--data", "folder.csv"], 1, "folder.csv"),
        "unreadable uri": (["--data", "http://127.0.0.1:9/terms.csv"], 1, "127.0.0.1:9"),
        # One run for the three: Great Expectations takes seconds to import, and tells every rule that is broken.
        "missing ids": (["--data", "rules.csv"], 1, "campaign_id_present: 1 of 43 rows"),
        "clicks over impressions": (["--data", "rules.csv"], 1, "clicks_at_most_impressions: 1 of 43 rows"),
        "personal data": (["--data", "rules.csv"], 1, "term_without_email: 1 of 43 rows"),
        "10 MB term": (["--data", "long.csv"], 1, "term_length"),
        "text as number": (["--data", "number.csv"], 1, "many"),
        "wrong mapping": (["--data", "columns.csv", "--map", "campaign_id=nope"], 1, "nope"),
    }


@pytest.fixture(scope="module")
def refusals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Finished, int, str]]:
    folder = tmp_path_factory.mktemp("bad")
    cases = _cases(folder)

    def attempt(numbered: tuple[int, tuple[str, ...]]) -> Finished:
        number, arguments = numbered
        located = [str(folder / a) if (folder / a).exists() and "." in a else a for a in arguments]
        return run(folder / f"run-{number}", *located)

    typed = list(dict.fromkeys(tuple(arguments) for arguments, _, _ in cases.values()))
    with ThreadPoolExecutor(2) as pool:
        finished = dict(zip(typed, pool.map(attempt, enumerate(typed)), strict=True))
    return {name: (finished[tuple(arguments)], code, named) for name, (arguments, code, named) in cases.items()}


@pytest.mark.parametrize("case", BAD_INPUTS)
def test_bad_input_is_one_clear_line(case: str, refusals: dict[str, tuple[Finished, int, str]]) -> None:
    finished, code, named = refusals[case]
    assert finished.code == code, finished.errors
    message = finished.errors.strip().splitlines()[-1]
    assert message.startswith("error: ")
    assert named in message
    assert "Fix: " in message
    assert "Traceback" not in finished.errors
    assert "jane.doe" not in finished.errors
    summary = finished.summary
    assert summary["status"] == "failed"
    assert summary["error"]["exit_code"] == code
    assert summary["model"] is None
    assert "training" not in summary["seconds"]
    assert "Fix" in finished.report
