"""What the benchmarks compute from figures: spread, goals and chart data. The figures themselves are not tested."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.fingerprints import chart
from benchmarks.fingerprints.corpora import draw_corpus, to_bows
from benchmarks.fingerprints.goals import GOALS, judge
from benchmarks.fingerprints.measuring import Ratio, Sample, Score, time_pairs
from benchmarks.fingerprints.run import RESULTS, ROOT, main
from benchmarks.fingerprints.tables import END, START, format_markdown
from benchmarks.tuning import run as tuning


def _ratio(id: str, case: str, ours: tuple[float, ...], peer: tuple[float, ...], denormals: str = "") -> dict[str, Any]:
    return Ratio(id, case, "CPU seconds", "ours", "peer", Sample(ours), Sample(peer), denormals).to_json()


def _score(id: str, case: str, method: str, value: float) -> dict[str, Any]:
    return Score(id, case, method, Sample((value,)), value - 0.1, value + 0.1).to_json()


def _judged(results: dict[str, Any], id: str) -> list[dict[str, Any]]:
    texts = [goal.text for goal in GOALS if goal.id == id]
    return [entry for entry in judge(results) if entry["goal"] in texts]


def test_ratio_is_taken_pair_by_pair() -> None:
    row = _ratio("text/gensim", "x", (1.0, 2.0, 4.0), (10.0, 10.0, 100.0))
    assert row["peer_over_ours"] == {"median": 10.0, "min": 5.0, "max": 25.0, "runs": [10.0, 5.0, 25.0]}


def test_pairs_change_who_goes_first() -> None:
    calls: list[str] = []
    ours, peer, _, _ = time_pairs(lambda: calls.append("ours"), lambda: calls.append("peer"), 3)
    assert calls == ["ours", "peer", "peer", "ours", "ours", "peer"]
    assert len(ours.runs) == len(peer.runs) == 3


def test_goal_on_speed_is_judged_for_each_case() -> None:
    ratios = [_ratio("text/gensim", "a", (1.0,), (25.0,)), _ratio("text/gensim", "b", (1.0,), (19.0,))]
    judged = _judged({"ratios": ratios, "scores": []}, "text/gensim")
    assert [tuple(entry[name] for name in ("case", "figure", "met")) for entry in judged] == [
        ("a", 25.0, True),
        ("b", 19.0, False),
    ]


def test_goal_on_a_share_of_the_peer_turns_the_ratio_round() -> None:
    judged = _judged({"ratios": [_ratio("text/memory", "a", (1.0,), (8.0,))], "scores": []}, "text/memory")
    assert [(entry["figure"], entry["met"]) for entry in judged] == [(0.125, False)]


def test_goal_compares_two_methods_of_one_case() -> None:
    scores = [
        _score("training/perplexity", "O*NET words", "Lda, defaults", 700.0),
        _score("training/perplexity", "O*NET words", "tomotopy, 300 iterations", 1000.0),
        _score("training/perplexity", "synthetic, 5", "tomotopy, 300 iterations", 1.0),
    ]
    judged = _judged({"ratios": [], "scores": scores}, "training/perplexity")
    assert [entry["figure"] for entry in judged if entry["figure"] is not None] == [0.7]


def test_figures_with_denormals_kept_meet_no_goal() -> None:
    kept = _ratio("training/lda-engine", "x", (1.0,), (50.0,), "kept")
    assert [entry["met"] for entry in _judged({"ratios": [kept], "scores": []}, "training/lda-engine")] == [None]


def test_goal_at_20_tokens_does_not_take_200() -> None:
    ratios = [_ratio("inference/lda-same", f"synthetic, {n} tokens", (1.0,), (float(n),), "flushed") for n in (200, 20)]
    judged = [entry for entry in judge({"ratios": ratios, "scores": []}) if "50 tokens and fewer" in entry["goal"]]
    assert [entry["figure"] for entry in judged] == [20.0]


def test_chart_shows_each_set_and_the_goal_beside_a_speed() -> None:
    results = {
        "ratios": [_ratio("text/memory", "campaigns of 40 terms", (1.0, 2.0), (8.0, 24.0))],
        "scores": [
            _score("quality/purity", "occupations", "lda", 0.7),
            _score("quality/npmi", "occupations", "lda", 0.2),
        ],
    }
    purities, speeds = chart.read_purities(results), chart.read_speeds(results)
    assert [(point.value, point.low, point.high) for point in purities["occupations"]] == [(0.7, 0.6, 0.8)]
    assert [(point.value, point.low, point.high, point.goal) for point in speeds] == [(10.0, 8.0, 12.0, 10.0)]


def test_drawn_corpus_is_seeded_and_has_the_asked_size() -> None:
    first, second = draw_corpus(30, 50, 200), draw_corpus(30, 50, 200)
    assert (first.counts != second.counts).nnz == 0
    assert first.counts.sum(axis=1).tolist() == [[50.0]] * 30
    # A campaign's words follow its topics: their expected chance is far above that of words drawn evenly.
    expected = first.mixtures @ first.topics
    likely = np.asarray(first.counts.multiply(expected).sum()) / first.counts.sum()
    assert likely > 5 / 200


def test_bags_of_words_hold_the_counts() -> None:
    counts = draw_corpus(3, 20, 50).counts
    bows = to_bows(counts)
    assert [sum(count for _, count in bow) for bow in bows] == [20.0, 20.0, 20.0]
    assert dict(bows[1]) == {int(c): float(counts[1, c]) for c in counts[1].indices}


def test_a_quick_run_writes_results_that_can_be_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    out = tmp_path / "quick.json"
    assert main(["--quick", "--only", "text", "--out", str(out), "--data-folder", str(tmp_path)]) == 0
    results = json.loads(out.read_text(encoding="utf-8"))
    assert results["quick"] is True
    assert {"id": "text/onet", "reason": "no O*NET terms in the data folder"} in results["skipped"]
    assert all(row["peer_over_ours"]["min"] > 0 for row in results["ratios"])
    page = tmp_path / "page.md"
    page.write_text(f"before\n{START}stale text\n{END}after\n", encoding="utf-8")
    assert chart.main(["--results", str(out), "--images", str(tmp_path), "--page", str(page)]) == 0
    written = page.read_text(encoding="utf-8")
    assert written.startswith("before\n")
    assert written.endswith("after\n")
    assert "stale text" not in written
    assert "| read_bags and learn_vocabulary, words |" in written
    assert (tmp_path / "benchmarks-speed.svg").read_text(encoding="utf-8").startswith("<?xml")


def test_partial_runs_do_not_replace_the_committed_results(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--quick"])
    assert "--out" in capsys.readouterr().err


def test_readme_shows_the_committed_results() -> None:
    results = json.loads(RESULTS.read_text(encoding="utf-8"))
    assert format_markdown(results) in chart.PAGE.read_text(encoding="utf-8")


def test_committed_goals_follow_from_the_committed_figures() -> None:
    results = json.loads(RESULTS.read_text(encoding="utf-8"))
    assert results["quick"] is False
    assert results["goals"] == judge(results)
    text = RESULTS.read_text(encoding="utf-8")
    assert str(Path.home()) not in text
    assert str(ROOT) not in text


def test_cost_of_a_search_is_measured_and_written(tmp_path: Path) -> None:
    result: dict[str, Any] = {
        "command": "c",
        "machine": "m",
        "measured": "d",
        "versions": {"optuna": "5"},
        "cost": tuning.measure_cost(3, 1),
        "studies": [],
    }
    assert set(map(len, result["cost"]["seconds"].values())) == {1}
    page = tmp_path / "README.md"
    page.write_text("before\n<!-- tuning: written by benchmarks.tuning.run -->\nold\n<!-- end of tuning -->\nafter\n")
    tuning.write_tables(result, page)
    text = page.read_text(encoding="utf-8")
    assert "old" not in text
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "| local executor, 2 at once |" in text
