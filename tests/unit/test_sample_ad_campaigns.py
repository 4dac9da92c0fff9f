"""The made-up campaigns: the same for a seed everywhere, plausible in their numbers, and hard in known ways."""

import gzip
import hashlib
import json
import re
from collections import Counter
from datetime import date
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pc
import pyarrow.parquet as pq
import pytest

from mlflywheel.errors import UsageError
from mlflywheel.samples import ad_campaigns
from mlflywheel.samples.ad_campaigns import SCHEMA, TIERS, generate_ad_campaigns, ground_truth, write_sample

LOCALES = {"en-US", "en-GB", "es-US"}


@pytest.fixture(scope="module")
def table() -> pa.Table:
    return generate_ad_campaigns()


@pytest.fixture(scope="module")
def rows(table: pa.Table) -> dict[str, list[Any]]:
    return table.to_pydict()


@pytest.fixture(scope="module")
def vocabulary() -> dict[str, Any]:
    text = files("mlflywheel.samples").joinpath("ad_campaigns_vocabulary.json").read_text(encoding="utf-8")
    loaded: dict[str, Any] = json.loads(text)
    return loaded


def phrase_lists(vocabulary: dict[str, Any]) -> list[tuple[str, list[str]]]:
    """Every list of the vocabulary with a name to show when it is at fault."""
    found = []
    for vertical in vocabulary["verticals"]:
        for locale, terms in vertical["head_terms"].items():
            found.append((f"{vertical['name']}, heads, {locale}", terms))
        for niche in vertical["niches"]:
            for locale, terms in niche["terms"].items():
                found.append((f"{vertical['name']}, {niche['name']}, {locale}", terms))
    return found


def test_equal_seeds_give_equal_tables() -> None:
    assert generate_ad_campaigns(80, seed=3).equals(generate_ad_campaigns(80, seed=3))


def test_different_seeds_give_different_terms() -> None:
    first, second = (set(generate_ad_campaigns(80, seed=seed)["term"].to_pylist()) for seed in (3, 4))
    assert len(first & second) < 0.6 * len(first)


def test_table_of_a_seed_never_changes(tmp_path: Path) -> None:
    # The same digest was found with NumPy 2.1 and 2.4, with and without SIMD. Change it only with the vocabulary.
    content = write_sample(tmp_path / "sample.csv", campaigns=60, seed=7).read_bytes()
    assert hashlib.sha256(content).hexdigest() == "3dbecfaa8381be019d3d0be5afab2526c849a40fdba699db83d12471efac8f09"


def test_columns_have_the_declared_names_and_types(table: pa.Table) -> None:
    assert table.schema.equals(SCHEMA)
    assert all(column.null_count == 0 for column in table.columns)


def test_default_size_is_a_few_thousand_campaigns_of_some_thirty_terms(rows: dict[str, list[Any]]) -> None:
    sizes = list(Counter(rows["campaign_id"]).values())
    assert len(sizes) == 3000
    assert 100_000 <= sum(sizes) <= 120_000
    assert 30 <= np.median(sizes) <= 40


def test_clicks_never_exceed_impressions(rows: dict[str, list[Any]]) -> None:
    assert all(0 <= clicks <= shown for clicks, shown in zip(rows["clicks"], rows["impressions"], strict=True))


def test_click_rate_lies_between_one_and_eight_percent(rows: dict[str, list[Any]]) -> None:
    assert 0.01 < sum(rows["clicks"]) / sum(rows["impressions"]) < 0.08


def test_cost_has_two_decimals_and_is_paid_for_clicks_only(rows: dict[str, list[Any]]) -> None:
    assert all(cost == round(cost, 2) for cost in rows["cost"])
    assert all((cost > 0) == (clicks > 0) for cost, clicks in zip(rows["cost"], rows["clicks"], strict=True))


def test_a_click_costs_most_in_law_and_least_in_bicycles(rows: dict[str, list[Any]]) -> None:
    clicks: Counter[str] = Counter()
    cost: Counter[str] = Counter()
    for vertical, count, paid in zip(rows["vertical"], rows["clicks"], rows["cost"], strict=True):
        clicks[vertical] += count
        cost[vertical] += paid
    price = {vertical: cost[vertical] / clicks[vertical] for vertical in clicks}
    assert max(price, key=price.__getitem__) == "personal injury law"
    assert min(price, key=price.__getitem__) == "bicycle shops"


def test_every_vertical_locale_and_tier_occurs(rows: dict[str, list[Any]]) -> None:
    assert len(set(rows["vertical"])) >= 24
    assert set(rows["locale"]) == LOCALES
    assert set(rows["advertiser_tier"]) == set(TIERS)
    assert set(rows["kind"]) == {"keyword", "search_term"}


def test_attributes_are_the_same_in_all_rows_of_a_campaign(rows: dict[str, list[Any]]) -> None:
    columns = ("campaign_id", "vertical", "advertiser_tier", "locale", "as_of")
    assert len(set(zip(*(rows[column] for column in columns), strict=True))) == 3000


def test_no_term_looks_like_an_email_address_or_a_phone_number(rows: dict[str, list[Any]]) -> None:
    assert not [term for term in rows["term"] if "@" in term or re.search(r"(?:\d[\s().-]*){6}", term)]


def test_thin_and_huge_campaigns_exist_and_small_advertisers_are_more_often_thin(rows: dict[str, list[Any]]) -> None:
    sizes = Counter(rows["campaign_id"])
    tier = dict(zip(rows["campaign_id"], rows["advertiser_tier"], strict=True))
    thin = Counter(tier[name] for name, size in sizes.items() if size <= 4)
    of_tier = Counter(tier.values())
    assert 0.02 < thin.total() / len(sizes) < 0.08
    assert thin["small"] / of_tier["small"] > 2 * thin["large"] / of_tier["large"]
    assert 1 <= sum(size >= 400 for size in sizes.values()) <= 30


def test_repeated_and_empty_rows_are_a_few(table: pa.Table, rows: dict[str, list[Any]]) -> None:
    copies = table.num_rows - table.group_by(table.column_names).aggregate([]).num_rows
    by_key = table.num_rows - len(set(zip(rows["campaign_id"], rows["term"], strict=True)))
    empty = sum(not term.strip() for term in rows["term"])
    assert 0.002 < copies / table.num_rows < 0.004
    assert by_key - copies < 10  # Two empty terms in one campaign are no copies of one row.
    assert 0 < empty / table.num_rows < 0.001


def test_terms_carry_the_noise_of_an_export(rows: dict[str, list[Any]]) -> None:
    keywords = [t for t, kind in zip(rows["term"], rows["kind"], strict=True) if kind == "keyword"]
    searches = [t for t, kind in zip(rows["term"], rows["kind"], strict=True) if kind == "search_term"]
    for mark in ("[", '"', "+"):
        assert 0.03 < sum(term.startswith(mark) for term in keywords) / len(keywords) < 0.3
        assert not any(term.startswith(mark) for term in searches)
    assert 0.05 < sum(term != term.lower() for term in rows["term"]) / len(rows["term"]) < 0.2
    assert any("\u0301" in term for term in rows["term"])  # A combining accent: not in composed form.
    assert any("\u00a0" in term for term in rows["term"])


def test_spanish_is_written_with_and_without_accents(rows: dict[str, list[Any]]) -> None:
    terms = [t.lower() for t, locale in zip(rows["term"], rows["locale"], strict=True) if locale == "es-US"]
    with_accent = sum("plomería" in term for term in terms)
    without = sum("plomeria" in term for term in terms)
    assert with_accent > without > 0


def test_few_head_terms_carry_many_rows_and_most_terms_are_rare(rows: dict[str, list[Any]]) -> None:
    counts = Counter(term.lower() for term in rows["term"])
    head = sum(count for _, count in counts.most_common(len(counts) // 100))
    assert head > 0.1 * len(rows["term"])
    assert sum(count == 1 for count in counts.values()) > 0.5 * len(counts)


def test_truth_differs_from_the_filed_vertical_in_few_campaigns(rows: dict[str, list[Any]]) -> None:
    truth = ground_truth(3000, 7).to_pydict()
    filed = dict(zip(rows["campaign_id"], rows["vertical"], strict=True))
    wrong = sum(filed[c] != v for c, v in zip(truth["campaign_id"], truth["vertical"], strict=True))
    assert sorted(filed) == truth["campaign_id"]
    assert 0.005 < wrong / 3000 < 0.03


def test_truth_names_niches_of_the_vertical_and_a_second_one_for_a_tenth(vocabulary: dict[str, Any]) -> None:
    truth = ground_truth(3000, 7).to_pydict()
    niches = {v["name"]: {n["name"] for n in v["niches"]} for v in vocabulary["verticals"]}
    pairs = set(zip(truth["vertical"], truth["niche"], strict=True))
    assert pairs == {(vertical, niche) for vertical in niches for niche in niches[vertical]}
    second = [name for name in truth["second_vertical"] if name is not None]
    assert 0.07 < len(second) / 3000 < 0.13
    assert all(a != b for a, b in zip(truth["vertical"], truth["second_vertical"], strict=True))


def test_terms_come_from_the_true_niche_more_than_from_its_siblings(rows: dict[str, list[Any]]) -> None:
    truth = ground_truth(3000, 7).to_pydict()
    niche = dict(zip(truth["campaign_id"], zip(truth["vertical"], truth["niche"], strict=True), strict=True))
    hits = Counter(niche[c] for c, t in zip(rows["campaign_id"], rows["term"], strict=True) if t == "drain cleaning")
    assert hits.most_common(1)[0][0] == ("plumbing", "drain cleaning")


def test_neighbours_share_the_vertical_mostly_and_not_always(rows: dict[str, list[Any]]) -> None:
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.preprocessing import normalize

    terms: dict[str, list[str]] = {}
    for campaign, term in zip(rows["campaign_id"], rows["term"], strict=True):
        terms.setdefault(campaign, []).append(term)
    filed = dict(zip(rows["campaign_id"], rows["vertical"], strict=True))
    verticals = np.array([filed[campaign] for campaign in terms])
    matrix = TfidfVectorizer(sublinear_tf=True, stop_words="english", min_df=2).fit_transform(
        " ".join(texts) for texts in terms.values()
    )
    vectors = normalize(TruncatedSVD(100, random_state=0).fit_transform(matrix))
    similarities = vectors @ vectors.T
    np.fill_diagonal(similarities, -np.inf)
    nearest = np.argpartition(-similarities, 10, axis=1)[:, :10]
    purity = (verticals[nearest] == verticals[:, None]).mean()
    assert 0.85 < purity < 0.95


@pytest.mark.parametrize("name", ["sample.csv", "sample.csv.gz", "sample.parquet"])
def test_two_writes_give_equal_bytes(tmp_path: Path, name: str) -> None:
    first = write_sample(tmp_path / "a" / name, campaigns=40)
    second = write_sample(str(tmp_path / "b" / f"other-{name}"), campaigns=40)
    assert first.read_bytes() == second.read_bytes()
    assert [path.name for path in first.parent.iterdir()] == [name]


def test_csv_gzip_and_parquet_hold_the_same_rows(tmp_path: Path) -> None:
    expected = generate_ad_campaigns(60, seed=5)
    parquet = pq.read_table(write_sample(tmp_path / "sample.parquet", campaigns=60, seed=5))
    options = pc.ConvertOptions(column_types=SCHEMA, strings_can_be_null=False)
    text = pc.read_csv(write_sample(tmp_path / "sample.csv", campaigns=60, seed=5), convert_options=options)
    packed = write_sample(tmp_path / "sample.csv.gz", campaigns=60, seed=5).read_bytes()
    assert parquet.equals(expected)
    assert text.equals(expected)
    assert gzip.decompress(packed) == (tmp_path / "sample.csv").read_bytes()


def test_csv_writes_cost_with_two_decimals(tmp_path: Path) -> None:
    path = write_sample(tmp_path / "sample.csv", campaigns=20)
    costs = pc.read_csv(path, convert_options=pc.ConvertOptions(column_types={"cost": pa.string()}))["cost"]
    assert all(re.fullmatch(r"\d+\.\d\d", cost) for cost in costs.to_pylist())


def test_date_is_the_one_asked_for() -> None:
    assert set(generate_ad_campaigns(5, as_of=date(2026, 2, 28))["as_of"].to_pylist()) == {"2026-02-28"}
    assert set(generate_ad_campaigns(5)["as_of"].to_pylist()) == {"2026-10-31"}


def test_another_suffix_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"\.csv, \.csv\.gz or \.parquet"):
        write_sample(tmp_path / "new" / "sample.xlsx")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(("campaigns", "seed", "where"), [(0, 7, "campaigns"), (10, -1, "seed")])
def test_impossible_numbers_are_refused(campaigns: int, seed: int, where: str) -> None:
    for call in (generate_ad_campaigns, ground_truth):
        with pytest.raises(UsageError, match=f"^{where}: "):
            call(campaigns, seed)


def test_one_campaign_is_enough() -> None:
    assert set(generate_ad_campaigns(1)["campaign_id"].to_pylist()) == {"c-000000"}


def test_every_vertical_has_every_locale_and_three_to_five_niches(vocabulary: dict[str, Any]) -> None:
    assert set(vocabulary["locales"]) == LOCALES
    for vertical in vocabulary["verticals"]:
        assert set(vertical["head_terms"]) == LOCALES, vertical["name"]
        assert 3 <= len(vertical["niches"]) <= 5, vertical["name"]
        for niche in vertical["niches"]:
            assert set(niche["terms"]) == LOCALES, (vertical["name"], niche["name"])
            assert all(8 <= len(terms) <= 14 for terms in niche["terms"].values()), (vertical["name"], niche["name"])


def test_no_phrase_stands_twice_in_a_list(vocabulary: dict[str, Any]) -> None:
    repeated = {name: [t for t, n in Counter(terms).items() if n > 1] for name, terms in phrase_lists(vocabulary)}
    assert not {name: terms for name, terms in repeated.items() if terms}


def test_phrases_are_lower_case_words_of_their_language(vocabulary: dict[str, Any]) -> None:
    for name, terms in phrase_lists(vocabulary):
        letters = "a-z0-9áéíóúüñ" if name.endswith("es-US") else "a-z0-9"
        assert all(re.fullmatch(rf"[{letters}]+(?:[' -][{letters}]+)*", term) for term in terms), name


@pytest.mark.parametrize(
    ("american", "british"), [("tire", "tyre"), ("color", "colour"), ("attorney", "solicitor"), ("movers", "removals")]
)
def test_each_english_keeps_its_own_words(vocabulary: dict[str, Any], american: str, british: str) -> None:
    words = {
        locale: {
            word.rstrip("s")
            for name, terms in phrase_lists(vocabulary)
            if name.endswith(locale)
            for term in terms
            for word in term.split()
        }
        for locale in ("en-US", "en-GB")
    }
    american, british = american.rstrip("s"), british.rstrip("s")
    assert american in words["en-US"] - words["en-GB"]
    assert british in words["en-GB"]


def test_related_verticals_share_words(vocabulary: dict[str, Any]) -> None:
    terms = {
        vertical["name"]: {word for niche in vertical["niches"] for t in niche["terms"]["en-US"] for word in t.split()}
        for vertical in vocabulary["verticals"]
    }
    assert "roof" in terms["roofing"] & terms["solar"]
    assert "dog" in terms["veterinary"] & terms["pet grooming"]
    assert "heater" in terms["plumbing"] & terms["heating and cooling"]
    for vertical in vocabulary["verticals"]:
        for name in vertical["related"]:
            assert terms[vertical["name"]] & terms[name], (vertical["name"], name)


def test_a_slip_keeps_the_letters_of_the_word() -> None:
    word = "accountant"
    slips = {ad_campaigns._misspell(word, u) for u in np.linspace(0, 0.999, 400)}
    assert len(slips) > 10
    assert all(set(slip) <= set(word) and abs(len(slip) - len(word)) <= 1 and slip[0] == "a" for slip in slips)
    assert ad_campaigns._misspell("sink", 0.5) == "sink"
