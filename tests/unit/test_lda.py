"""LDA: both engines, from campaigns to fingerprints and back from disk."""

import json
import math
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from types import FunctionType

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment
from scipy.sparse import csr_matrix
from scipy.special import digamma

from mlflywheel.errors import MissingExtraError, ModelError, ModelFilesError
from mlflywheel.models.topic_fingerprints.lda import Lda, LdaParams, seed_topics

ENGINES = ("numba", "gensim")


def draw_campaigns(rows, topics=6, terms=120, length=60, seed=0):
    """Draw campaigns from the model's own assumptions; returns counts, true shares and true topics."""
    generator = np.random.default_rng(seed)
    # Topic k prefers every K-th term.
    topic_term = np.full((topics, terms), 0.1)
    for k in range(topics):
        topic_term[k, k::topics] = 10.0
    topic_term /= topic_term.sum(axis=1, keepdims=True)
    shares = generator.dirichlet(np.full(topics, 0.1), rows)
    counts = np.stack([generator.multinomial(length, share @ topic_term) for share in shares])
    return csr_matrix(counts.astype(np.float32)), shares, topic_term


@pytest.fixture(scope="module")
def campaigns():
    return draw_campaigns(400)


@pytest.fixture(scope="module")
def params():
    return LdaParams(num_topics=6, seeding="nmf", engine="numba")


@pytest.fixture(scope="module")
def fitted(campaigns, params):
    return Lda.fit(campaigns[0], params)


def with_engine(lda, engine):
    return Lda(lda.params.model_copy(update={"engine": engine}), lda._topic_counts)


def mixed_rows(terms, seed=1):
    """Return rows of 0 to 90 terms, in no order of length."""
    generator = np.random.default_rng(seed)
    rows = np.zeros((60, terms), dtype=np.float32)
    for number, row in enumerate(rows):
        chosen = generator.choice(terms, (number * 7) % 90, replace=False)
        row[chosen] = generator.integers(1, 6, len(chosen))
    return csr_matrix(rows)


def test_exp_digamma_agrees_with_scipy():
    from mlflywheel.models.topic_fingerprints.lda_numba import exp_digamma

    x = np.concatenate([np.logspace(-2.5, 7, 2000), [5.999999, 6.0, 6.000001]])
    ours = np.array([exp_digamma(value) for value in x])
    np.testing.assert_allclose(ours, np.exp(digamma(x)), rtol=1e-9)


def test_fit_finds_the_topics_the_campaigns_were_drawn_from(campaigns, fitted):
    counts, shares, topic_term = campaigns
    found = fitted.topic_term()
    cosine = (found / np.linalg.norm(found, axis=1, keepdims=True)) @ (
        topic_term / np.linalg.norm(topic_term, axis=1, keepdims=True)
    ).T
    ours, theirs = linear_sum_assignment(-cosine)
    assert cosine[ours, theirs].min() > 0.98
    error = np.abs(fitted.transform(counts)[:, ours] - shares[:, theirs]).mean()
    assert error < 0.03


def test_varimax_start_finds_the_topics_too(campaigns, fitted):
    lda = Lda.fit(campaigns[0], LdaParams(num_topics=6, seeding="varimax"))
    assert lda.num_topics == 6
    assert lda.perplexity(campaigns[0]) < 1.05 * fitted.perplexity(campaigns[0])


def test_more_topics_than_a_rotation_takes_can_be_fitted(campaigns):
    assert Lda.fit(campaigns[0], LdaParams(num_topics=101, passes=1)).num_topics == 101


def test_both_engines_train_the_same_topics(campaigns, params):
    start = seed_topics(campaigns[0], params)
    by_engine = [
        Lda.fit(campaigns[0], params.model_copy(update={"engine": engine, "passes": 3}), start=start).topic_term()
        for engine in ENGINES
    ]
    assert np.abs(by_engine[0] - by_engine[1]).max() < 1e-5
    assert np.abs(by_engine[0] - start / start.sum(axis=1, keepdims=True)).max() > 1e-4


def test_both_engines_infer_the_same_fingerprints(fitted):
    held_out, _, _ = draw_campaigns(300, seed=5)
    ours = fitted.transform(held_out)
    theirs = with_engine(fitted, "gensim").transform(held_out)
    apart = np.abs(ours - theirs).max(axis=1)
    assert np.mean(apart < 1e-4) >= 0.99


@pytest.mark.parametrize("num_topics", [2, 7, 40])
def test_engines_agree_for_any_number_of_topics(num_topics):
    # 40 topics have a small prior, so most of them settle early and are left out of later iterations.
    generator = np.random.default_rng(num_topics)
    topic_counts = generator.gamma(0.05, 100, (num_topics, 90)).astype(np.float32)
    lda = Lda(LdaParams(num_topics=num_topics, engine="numba"), topic_counts)
    rows = mixed_rows(90)
    apart = np.abs(lda.transform(rows) - with_engine(lda, "gensim").transform(rows)).max(axis=1)
    assert np.mean(apart < 1e-4) >= 0.98


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("num_topics", [1, 5, 33])
def test_a_campaign_has_the_same_fingerprint_alone_and_in_a_batch(engine, num_topics):
    topic_counts = np.random.default_rng(num_topics).gamma(0.1, 50, (num_topics, 90)).astype(np.float32)
    lda = Lda(LdaParams(engine=engine), topic_counts)
    rows = mixed_rows(90)
    batch = lda.transform(rows)
    np.testing.assert_array_equal(batch, np.concatenate([lda.transform(row) for row in rows]))
    np.testing.assert_array_equal(batch[::-1][:20], lda.transform(rows[::-1][:20]))


@pytest.mark.parametrize("engine", ENGINES)
def test_shares_are_positive_and_sum_to_one(fitted, engine):
    shares = with_engine(fitted, engine).transform(mixed_rows(120))
    assert shares.dtype == np.float32
    assert shares.min() > 0
    np.testing.assert_allclose(shares.sum(axis=1), 1.0, atol=1e-6)


@pytest.mark.parametrize("engine", ENGINES)
def test_an_empty_campaign_gets_the_prior(fitted, engine):
    shares = with_engine(fitted, engine).transform(csr_matrix((3, 120), dtype=np.float32))
    np.testing.assert_allclose(shares, np.full((3, 6), 1 / 6), rtol=1e-6)


def test_no_campaigns_give_no_fingerprints(fitted):
    assert fitted.transform(csr_matrix((0, 120), dtype=np.float32)).shape == (0, 6)


def test_concurrent_calls_do_not_disturb_each_other(fitted):
    lda = with_engine(fitted, "gensim")
    rows = mixed_rows(120)
    alone = lda.transform(rows)
    with ThreadPoolExecutor(4) as pool:
        for shares in pool.map(lambda _: lda.transform(rows), range(8)):
            np.testing.assert_array_equal(shares, alone)


def test_gensim_model_has_the_same_topics_and_inference(fitted):
    model = fitted.to_gensim({term: f"term {term}" for term in range(120)})
    np.testing.assert_allclose(model.get_topics(), fitted.topic_term(), rtol=1e-4)
    rows = draw_campaigns(100, seed=6)[0]
    bows = [
        list(zip(rows.indices[low:high].tolist(), rows.data[low:high].tolist(), strict=True))
        for low, high in pairwise(rows.indptr)
    ]

    class Start:
        def gamma(self, shape, scale, size):
            sizes = np.asarray(rows.sum(axis=1)).reshape(-1, 1)
            return np.repeat(1 / 6 + sizes / 6, 6, axis=1).astype(np.float32)

    model.random_state = Start()
    gamma, _ = model.inference(bows)
    theirs = gamma / gamma.sum(axis=1, keepdims=True)
    assert np.mean(np.abs(theirs - fitted.transform(rows)).max(axis=1) < 1e-4) >= 0.99
    assert len(model.show_topic(0, topn=3)) == 3


def test_gensim_model_needs_a_term_for_each_column(fitted):
    with pytest.raises(ModelError, match="columns 0 to 119 are needed"):
        fitted.to_gensim({0: "only one"})


def test_a_fit_can_be_repeated_and_leaves_its_input_alone(campaigns, params, fitted):
    counts = campaigns[0].copy()
    again = Lda.fit(counts, params)
    np.testing.assert_array_equal(again.topic_term(), fitted.topic_term())
    assert (counts != campaigns[0]).nnz == 0


def test_sorted_campaigns_train_as_well_as_shuffled_ones(campaigns, params, fitted):
    by_topic = campaigns[0][np.argsort(campaigns[1].argmax(axis=1), kind="stable")]
    assert Lda.fit(by_topic, params).perplexity(campaigns[0]) < 1.01 * fitted.perplexity(campaigns[0])


def test_a_learning_rate_that_ruins_a_random_start_does_not_ruin_ours(campaigns, params, fitted):
    slow = params.model_copy(update={"decay": 0.7, "offset": 10.0})
    assert Lda.fit(campaigns[0], slow).perplexity(campaigns[0]) < 1.05 * fitted.perplexity(campaigns[0])


@pytest.mark.parametrize("engine", ENGINES)
def test_progress_ends_at_its_total(campaigns, params, engine):
    seen = []
    one_engine = params.model_copy(update={"engine": engine})
    Lda.fit(campaigns[0], one_engine, lambda phase, done, total: seen.append((phase, done, total)))
    assert seen[0] == ("seeding", 0, 1)
    assert seen[-1] == ("training", 800, 800)
    training = [done for phase, done, _ in seen if phase == "training"]
    assert training == sorted(training)


def test_perplexity_of_uniform_topics_is_the_number_of_terms(params):
    lda = Lda(params, np.full((6, 120), 10.0, dtype=np.float32))
    assert lda.perplexity(draw_campaigns(50)[0]) == pytest.approx(120, rel=1e-4)


def test_perplexity_is_lower_than_that_of_term_frequencies(campaigns, fitted):
    held_out, _, _ = draw_campaigns(200, seed=9)
    frequencies = np.asarray(campaigns[0].sum(axis=0), dtype=np.float32)
    one_topic = Lda(fitted.params, frequencies)
    assert fitted.perplexity(held_out) < 0.6 * one_topic.perplexity(held_out)


def test_perplexity_scores_occurrences_of_the_other_half_only(params):
    # Topic 0 has the first half of the terms and topic 1 the second. A campaign shows terms of one topic alone, so
    # each unseen term is one of 10, up to the prior.
    topic_counts = np.kron(np.eye(2), np.full((1, 10), 1e4)).astype(np.float32)
    rows = np.kron(np.eye(2), np.full((1, 10), 3.0)).astype(np.float32)
    assert Lda(params, topic_counts).perplexity(csr_matrix(rows)) == pytest.approx(10.4, abs=0.4)


def test_perplexity_is_undefined_without_a_second_term(fitted):
    one_term_each = csr_matrix((np.full(5, 9.0, np.float32), ([0, 1, 2, 3, 4], [0, 1, 2, 3, 4])), shape=(6, 120))
    assert math.isnan(fitted.perplexity(one_term_each))


@pytest.mark.parametrize("engine", ENGINES)
def test_attribution_adds_up_to_the_shares(fitted, engine):
    lda = with_engine(fitted, engine)
    for row in mixed_rows(120)[:12]:
        contributions, base = attribute(lda, row)
        assert contributions.shape == (row.nnz, 6)
        assert contributions.min(initial=0.0) >= 0
        np.testing.assert_allclose(base + contributions.sum(axis=0), lda.transform(row)[0], atol=1e-6)


@pytest.mark.parametrize("engine", ENGINES)
def test_attribution_has_the_same_bits_alone_and_among_others(fitted, engine):
    lda = with_engine(fitted, engine)
    rows = mixed_rows(120)
    together = lda.decompose(rows)
    np.testing.assert_array_equal(together.shares, lda.transform(rows))
    for place, row in enumerate(rows):
        alone = lda.decompose(row)
        np.testing.assert_array_equal(alone.scale[0], together.scale[place])
        np.testing.assert_array_equal(alone.base[0], together.base[place])
        np.testing.assert_array_equal(alone.weights, together.weights[slice(*rows.indptr[place : place + 2])])


def test_attribution_gives_each_term_its_occurrences(fitted):
    row = draw_campaigns(1, seed=3)[0]
    contributions, base = attribute(fitted, row)
    expected = row.data / (row.data.sum() + 6 * fitted.alpha)
    np.testing.assert_allclose(contributions.sum(axis=1), expected, rtol=2e-2)
    np.testing.assert_allclose(base, base[0], rtol=1e-4)


def test_attribution_names_the_terms_of_the_topic(fitted):
    own_topic = csr_matrix((np.ones(10, np.float32), np.arange(0, 60, 6), [0, 10]), shape=(1, 120))
    contributions, _ = attribute(fitted, own_topic)
    strongest = fitted.transform(own_topic)[0].argmax()
    assert (contributions.argmax(axis=1) == strongest).all()
    assert (fitted.term_topic()[own_topic.indices].argmax(axis=1) == strongest).all()


def attribute(lda, row):
    """Return what each term of one campaign brings to each topic, (m, K), and the base, (K,)."""
    split = lda.decompose(row)
    return split.weights[:, None] * split.features[row.indices] * split.scale, split.base[0]


def test_topic_tables_are_distributions(fitted):
    np.testing.assert_allclose(fitted.topic_term().sum(axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(fitted.term_topic().sum(axis=1), 1, rtol=1e-5)
    assert fitted.topic_term().shape == (6, 120)
    assert fitted.term_topic().shape == (120, 6)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_saved_model_gives_the_same_fingerprints(fitted, tmp_path, engine):
    lda = with_engine(fitted, engine)
    lda.write(tmp_path)
    again = Lda.read(tmp_path)
    assert again.params == lda.params
    np.testing.assert_array_equal(again.transform(mixed_rows(120)), lda.transform(mixed_rows(120)))
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".json", ".npy"]


def test_a_damaged_model_is_refused(fitted, tmp_path):
    def refuse(match):
        with pytest.raises(ModelFilesError, match=match):
            Lda.read(tmp_path)

    refuse("FileNotFoundError")
    fitted.write(tmp_path)
    np.save(tmp_path / "topic_counts.npy", np.zeros((6, 3), np.float32))
    refuse(r"the shape \(6, 3\), and \(6, 120\) is needed")
    np.save(tmp_path / "topic_counts.npy", np.array([{"code": 1}], dtype=object), allow_pickle=True)
    refuse("allow_pickle=False")
    fitted.write(tmp_path)
    facts = json.loads((tmp_path / "lda.json").read_text())
    facts["params"]["unheard_of"] = 1
    (tmp_path / "lda.json").write_text(json.dumps(facts))
    refuse("ValidationError")


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("rows", "num_topics"),
    [
        ([[2, 1, 0, 4]], 1),
        ([[2, 1, 0, 4]] * 30, 4),
        ([[5], [2], [1]], 1),
        ([[1, 0, 0, 0, 0], [0, 1, 0, 0, 0], [0, 0, 0, 0, 0], [0, 0, 0, 2, 1]], 3),
    ],
    ids=["one campaign", "identical campaigns", "one term", "an empty campaign among three"],
)
def test_a_fit_has_no_more_topics_than_campaigns_or_terms(rows, num_topics, engine):
    counts = csr_matrix(np.array(rows, dtype=np.float32))
    lda = Lda.fit(counts, LdaParams(num_topics=50, seeding="nmf", engine=engine))
    assert lda.num_topics == num_topics
    assert lda.alpha == 1 / num_topics
    shares = lda.transform(counts)
    assert np.isfinite(shares).all()
    np.testing.assert_allclose(shares.sum(axis=1), 1, rtol=1e-6)
    assert np.isfinite(lda.topic_term()).all()


def test_a_campaign_with_100000_terms_is_one_of_many():
    topic_counts = np.kron(np.eye(4), np.full((1, 25_000), 3.0)).astype(np.float32)
    lda = Lda(LdaParams(engine="numba"), topic_counts)
    rows = np.zeros((3, 100_000), dtype=np.float32)
    rows[0, [3, 4]] = 1
    rows[1] = 1
    rows[2, 60_000:60_010] = 2
    shares = lda.transform(csr_matrix(rows))
    np.testing.assert_allclose(shares[1], 0.25, atol=1e-3)
    assert shares[0].argmax() == 0
    assert shares[2].argmax() == 2
    np.testing.assert_array_equal(shares[0], lda.transform(csr_matrix(rows[:1]))[0])


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (4, 5)])
def test_a_fit_needs_a_term(shape):
    with pytest.raises(ModelError, match="campaigns without a known term"):
        Lda.fit(csr_matrix(shape, dtype=np.float32), LdaParams(seeding="nmf"))


@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf])
def test_counts_that_are_no_counts_are_refused(fitted, params, value):
    counts = csr_matrix(([1.0, value], ([0, 0], [3, 5])), shape=(1, 120), dtype=np.float32)
    with pytest.raises(ModelError, match="finite and not negative"):
        fitted.transform(counts)
    with pytest.raises(ModelError, match="finite and not negative"):
        Lda.fit(counts, params)


def test_other_terms_than_those_of_the_fit_are_refused(fitted):
    with pytest.raises(ModelError, match="7 columns; the model was fitted on 120 terms"):
        fitted.transform(csr_matrix((1, 7), dtype=np.float32))


def test_a_column_out_of_range_is_refused_and_not_read(fitted):
    counts = csr_matrix((1, 120), dtype=np.float32)
    counts.data = np.ones(1, np.float32)
    counts.indices = np.array([1_000_000], np.int32)
    counts.indptr = np.array([0, 1], np.int32)
    with pytest.raises(ModelError, match="out of range"):
        fitted.transform(counts)


@pytest.mark.parametrize("start", [np.ones((2, 5)), np.ones(120), np.full((2, 120), np.nan), np.full((2, 120), -1)])
def test_a_start_of_another_shape_or_with_bad_values_is_refused(campaigns, params, start):
    with pytest.raises(ModelError, match="start of LDA"):
        Lda.fit(campaigns[0], params, start=start)


def test_unsorted_and_repeated_terms_count_as_their_sum(fitted):
    loose = csr_matrix((np.array([1, 2, 1, 1], np.float32), [50, 3, 50, 7], [0, 4]), shape=(1, 120))
    tidy = csr_matrix((np.array([2, 1, 2], np.float32), [3, 7, 50], [0, 3]), shape=(1, 120))
    np.testing.assert_array_equal(fitted.transform(loose), fitted.transform(tidy))
    assert loose.nnz == 4


def test_any_number_type_is_read_by_the_same_kernel(fitted):
    from mlflywheel.models.topic_fingerprints.lda_numba import infer_rows

    rows = mixed_rows(120)
    wanted = fitted.transform(rows)
    fixed = rows.copy()
    for array in (fixed.data, fixed.indices, fixed.indptr):
        array.flags.writeable = False
    wide = rows.copy()
    wide.indices, wide.indptr = wide.indices.astype(np.int64), wide.indptr.astype(np.int64)
    for same in (fixed, wide, rows.astype(np.float64), rows.astype(np.int32), rows.tocsc()):
        np.testing.assert_array_equal(fitted.transform(same), wanted)
    assert len(infer_rows.signatures) == 1


def test_without_numba_gensim_takes_over(campaigns, params, fitted, monkeypatch):
    monkeypatch.setitem(sys.modules, "numba", None)
    monkeypatch.delitem(sys.modules, "mlflywheel.models.topic_fingerprints.lda_numba")
    lda = Lda.fit(campaigns[0], params.model_copy(update={"engine": "auto"}))
    assert np.abs(lda.topic_term() - fitted.topic_term()).max() < 1e-5
    assert "mlflywheel.models.topic_fingerprints.lda_numba" not in sys.modules
    with pytest.raises(MissingExtraError, match=r"mlflywheel\[fast\]"):
        Lda.fit(campaigns[0], params)


def test_a_kernel_without_a_place_for_its_cache_is_compiled_all_the_same():
    from mlflywheel.models.topic_fingerprints.lda_numba import _exp_digamma, compile_kernel

    # numba finds no cache folder for a source file that does not exist, as in a read-only container.
    code = _exp_digamma.__code__.replace(co_filename=str(Path("no such folder") / "kernel.py"))
    kernel = compile_kernel(FunctionType(code, _exp_digamma.__globals__))
    assert kernel(3.0) == pytest.approx(math.exp(digamma(3.0)), rel=1e-9)


def test_a_result_that_is_not_a_number_is_refused_by_the_gensim_engine(fitted):
    broken = with_engine(fitted, "gensim")
    broken._expected = np.full_like(broken._expected, np.nan)
    with pytest.raises(ModelError, match="not a number"):
        broken.transform(mixed_rows(120))
