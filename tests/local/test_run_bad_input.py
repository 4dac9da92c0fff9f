"""`mlflywheel run` on input that cannot be used: one clear line, the right exit code, and a summary all the same."""

import gzip
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import count
from pathlib import Path

import pytest
from command_line import Finished, run

#: What happened, the exit code, and what the message has to name.
Refusal = tuple[Finished, int, str]
#: One of each kind: no such thing, no text, no whole file, rules that are broken, a wrong option.
BAD_INPUTS = (
    "missing file",
    "wrong encoding",
    "truncated gzip",
    "missing ids",
    "clicks over impressions",
    "personal data",
    "wrong mapping",
)
#: More of them. What reading a table refuses, unit tests ask without a run.
MORE = (
    "empty file",
    "header only",
    "wrong columns",
    "directory",
    "unreadable uri",
    "10 MB term",
    "text as number",
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
def attempt_all(tmp_path_factory: pytest.TempPathFactory) -> Callable[[tuple[str, ...]], dict[str, Refusal]]:
    """Run several cases, two at a time; what was run before is not run again."""
    folder = tmp_path_factory.mktemp("bad")
    cases, numbers = _cases(folder), count(1)

    def attempt(numbered: tuple[int, tuple[str, ...]]) -> Finished:
        number, arguments = numbered
        located = [str(folder / a) if (folder / a).exists() and "." in a else a for a in arguments]
        return run(folder / f"run-{number}", *located)

    @cache
    def attempt_each(names: tuple[str, ...]) -> dict[str, Refusal]:
        asked = {name: cases[name] for name in names}
        typed = list(dict.fromkeys(tuple(arguments) for arguments, _, _ in asked.values()))
        first = next(numbers)
        with ThreadPoolExecutor(2) as pool:
            finished = dict(zip(typed, pool.map(attempt, enumerate(typed, start=first * 100)), strict=True))
        return {name: (finished[tuple(arguments)], code, named) for name, (arguments, code, named) in asked.items()}

    return attempt_each


@pytest.mark.parametrize("case", [*BAD_INPUTS, *(pytest.param(case, marks=pytest.mark.long) for case in MORE)])
def test_bad_input_is_one_clear_line(case: str, attempt_all: Callable[[tuple[str, ...]], dict[str, Refusal]]) -> None:
    finished, code, named = attempt_all(BAD_INPUTS if case in BAD_INPUTS else MORE)[case]
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
