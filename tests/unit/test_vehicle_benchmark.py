"""What the benchmark of vehicle prices computes and writes. The figures themselves are not tested."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from benchmarks.vehicle_prices import run


def test_folds_are_even_and_the_same_each_time() -> None:
    folds = run.draw_folds(103)
    assert np.bincount(folds).tolist() == [21, 21, 21, 20, 20]
    assert np.array_equal(folds, run.draw_folds(103))


def test_metrics_of_a_method() -> None:
    found = run.summarise(np.array([100.0, 200.0, 400.0]), np.array([110.0, 150.0, 400.0]))
    assert found["mae"] == pytest.approx(20.0)
    assert found["mdape"] == pytest.approx(0.1)
    assert found["within_10_percent"] == pytest.approx(2 / 3)
    assert found["bias"] == pytest.approx(0.0)


def test_slices_have_enough_listings_and_are_no_copy_of_all() -> None:
    rows = 500
    table = pa.table(
        {
            "make": ["a"] * 300 + ["b"] * 200,
            "fuel": ["x"] * rows,
            "gear": ["m"] * 450 + [None] * 50,
            "year": [2020.0] * rows,
        }
    )
    found = dict(run.list_slices(table, np.full(rows, 7_000.0)))
    assert {name: int(chosen.sum()) for name, chosen in found.items()} == {"make=a": 300, "make=b": 200, "gear=m": 450}


def test_a_quick_run_measures_every_side(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    out = tmp_path / "quick.json"
    sample = tmp_path / "listings.csv"
    from mlflywheel.samples.vehicle_prices import write_sample

    write_sample(sample, listings=350)
    assert run.main(["--quick", "--data", str(sample), "--out", str(out)]) == 0
    result: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    assert result["data"] == "listings.csv"
    assert set(result["quality"]["methods"]) == {run.OURS, run.PLAIN, run.PLAIN_L1, run.RIDGE, run.MEDIAN}
    assert all(found["mdape"] < 0.6 for found in result["quality"]["methods"].values())
    assert result["duplicates"]["rows"] > result["rows"]
    for key, sides in (("fit", 2), ("batch", 3), ("single", 3)):
        seconds = result["cost"][f"{key}_cpu_seconds"]
        assert len(seconds) == sides
        assert all(len(runs) == 2 and min(runs) > 0 for runs in seconds.values())
    assert result["cost"]["largest_difference_of_onnx"] < 1e-4
    page = tmp_path / "page.md"
    page.write_text(f"before\n{run._START}\nstale\n{run._END}\nafter\n", encoding="utf-8")
    run.write_table(result, page)
    text = page.read_text(encoding="utf-8")
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "stale" not in text
    assert "| one listing, ms |" in text
    # Not of the real file.
    assert "measured before" not in text


def test_partial_runs_do_not_replace_the_committed_results(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run.main(["--quick"])
    assert "--out" in capsys.readouterr().err


def test_page_shows_the_committed_results() -> None:
    text = run.RESULTS.read_text(encoding="utf-8")
    assert run.format_markdown(json.loads(text)) in (run.FOLDER.parent / "README.md").read_text(encoding="utf-8")
    assert str(Path.home()) not in text
    assert str(run.ROOT) not in text
