"""`mlflywheel run` on real terms, where they lie beside the repository."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from command_line import run


@pytest.mark.parametrize(
    ("name", "options", "entities"),
    [
        ("onet27_campaign_terms.csv.gz", [], 3213),
        (
            "farm_ads.csv.gz",
            ["--map", "campaign_id=ad_id", "--map", "term=tokens", "--map", "vertical=label", "--split-terms"],
            4143,
        ),
    ],
)
def test_pipeline_runs_on_real_terms(
    name: str, options: list[str], entities: int, tmp_path: Path, shared_folder: Path
) -> None:
    data = shared_folder / "data" / "campaign_topics" / name
    finished = run(tmp_path, "--data", str(data), *options, "--json", "--quiet")
    assert finished.code == 0, finished.errors
    summary = json.loads(finished.output)
    assert summary["data"]["entities"] == entities
    metrics = summary["metrics"]
    assert metrics["neighbour_purity_at_10"] >= metrics["reference_neighbour_purity_at_10"] - 0.02
    assert pq.read_metadata(summary["artifacts"]["scores"]).num_rows == entities
