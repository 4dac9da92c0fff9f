"""`mlflywheel run` on real terms, where they lie beside the repository."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from command_line import run

# O*NET's terms are in tests/unit/test_topic_quality_real.py; this file needs its columns renamed and its texts split.
OPTIONS = ("--map", "campaign_id=ad_id", "--map", "term=tokens", "--map", "vertical=label", "--split-terms")


@pytest.mark.long
def test_pipeline_runs_on_real_terms(tmp_path: Path, shared_folder: Path) -> None:
    data = shared_folder / "data" / "campaign_topics" / "farm_ads.csv.gz"
    finished = run(tmp_path, "--data", str(data), *OPTIONS, "--json", "--quiet")
    assert finished.code == 0, finished.errors
    summary = json.loads(finished.output)
    assert summary["data"]["entities"] == 4143
    metrics = summary["metrics"]
    assert metrics["neighbour_purity_at_10"] >= metrics["reference_neighbour_purity_at_10"] - 0.02
    assert pq.read_metadata(summary["artifacts"]["scores"]).num_rows == 4143
