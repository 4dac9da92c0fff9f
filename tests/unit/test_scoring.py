"""Scoring: what stands in a table of scores, and that a file of scores is whole or absent."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small_model import FittedCampaigns

from mlflywheel.scoring import score, write_scores


@pytest.fixture(scope="module")
def scores(fitted_campaigns: FittedCampaigns) -> pa.Table:
    return score(fitted_campaigns.model, fitted_campaigns.holdout, "ad-campaigns@3")


def test_every_row_is_scored_in_order_by_the_named_version(scores: pa.Table, fitted_campaigns: FittedCampaigns) -> None:
    assert scores["campaign_id"].to_pylist() == fitted_campaigns.holdout["campaign_id"].to_pylist()
    assert set(scores["model_version"].to_pylist()) == {"ad-campaigns@3"}


def test_scores_are_the_prediction_with_the_version_behind_it(
    scores: pa.Table, fitted_campaigns: FittedCampaigns
) -> None:
    predicted = fitted_campaigns.model.predict(fitted_campaigns.holdout)
    assert scores.column_names == [*predicted.column_names, "model_version"]
    assert scores.drop_columns("model_version").equals(predicted)


def test_fingerprint_has_one_share_a_topic(scores: pa.Table) -> None:
    assert scores.schema.field("fingerprint").type == pa.list_(pa.float32(), 8)
    shares = scores["fingerprint"].combine_chunks().flatten().to_numpy().reshape(-1, 8)
    np.testing.assert_allclose(shares.sum(axis=1), 1.0, rtol=1e-5)


def test_empty_table_gives_empty_scores(scores: pa.Table, fitted_campaigns: FittedCampaigns) -> None:
    empty = score(fitted_campaigns.model, fitted_campaigns.holdout.slice(0, 0), "ad-campaigns@3")
    assert empty.num_rows == 0
    assert empty.schema == scores.schema


def test_written_scores_read_back_equal(scores: pa.Table, tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "scores.parquet"
    write_scores(scores, path)
    assert pq.read_table(path).equals(scores)
    assert [file.name for file in path.parent.iterdir()] == ["scores.parquet"]


def test_failed_write_keeps_the_older_file_and_leaves_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "scores.parquet"
    write_scores(pa.table({"a": [1]}), path)
    older = path.read_bytes()
    unwritable = pa.table({"a": pa.array([None], pa.month_day_nano_interval())})
    with pytest.raises(pa.ArrowNotImplementedError):
        write_scores(unwritable, path)
    assert path.read_bytes() == older
    assert [file.name for file in tmp_path.iterdir()] == ["scores.parquet"]


def test_target_that_cannot_be_replaced_leaves_no_half_file(tmp_path: Path) -> None:
    (tmp_path / "scores.parquet").mkdir()
    with pytest.raises(IsADirectoryError):
        write_scores(pa.table({"a": [1]}), tmp_path / "scores.parquet")
    assert [file.name for file in tmp_path.iterdir()] == ["scores.parquet"]
