"""Training: the LDA engine beside gensim's, LDA beside tomotopy, and rotated LSA beside other factorisations."""

import math
import time
from functools import partial
from typing import Any

import numpy as np
import scipy.sparse as sp

from benchmarks.fingerprints.corpora import TOPICS, Drawn, count_words, draw_corpus, read_onet, to_bows
from benchmarks.fingerprints.measuring import Findings, Ratio, Sample, Score, Setting, time_once, time_pairs
from mlflywheel.models.topic_fingerprints.lda import Lda, LdaParams
from mlflywheel.models.topic_fingerprints.neighbours import embed_hellinger
from mlflywheel.models.topic_fingerprints.rotated_lsa import RotatedLsa, RotatedLsaParams

_SECONDS = "CPU seconds of training"
_TUNED = "gensim LdaModel, tuned: chunks of 2,000 (at most a quarter of the corpus), 5 passes"
_PARAMS = LdaParams(num_topics=TOPICS)


def measure(setting: Setting) -> Findings:
    """Measure everything that belongs to training."""
    found = Findings()
    drawn = draw_corpus(setting.choose(8000, 400), 200, setting.choose(20_000, 1500))
    held_out = draw_corpus(setting.choose(2000, 100), 200, seed=1, topics=drawn.topics)
    _warm_up(drawn)
    cases = [(f"synthetic, {drawn.counts.shape[0]:,} campaigns", drawn.counts, held_out.counts)]
    onet = read_onet(setting.data_folder)
    if onet is None:
        found.skip("training/onet", "no O*NET terms in the data folder")
    else:
        counts = count_words(onet.terms, bigrams=False)[1].matrix
        counts = counts[np.diff(counts.indptr) > 0]
        chosen = np.random.default_rng(0).random(counts.shape[0]) < 0.8
        cases.append(("O*NET words", counts[chosen], counts[~chosen]))
    for case, train, test in cases:
        _compare_lda(found, setting, case, train, test, held_out if train is drawn.counts else None)
    if setting.denormals == "flushed":
        _compare_rotated_lsa(found, setting, "synthetic", drawn.counts)
        if onet is not None:
            with_pairs = count_words(onet.terms, bigrams=True)[1].matrix
            _compare_rotated_lsa(found, setting, "O*NET words and pairs", with_pairs)
    return found


def _warm_up(drawn: Drawn) -> None:
    few = drawn.counts[:60]
    lda = Lda.fit(few, LdaParams(num_topics=5, engine="numba"))
    lda.perplexity(few)
    _train_gensim(to_bows(few), few.shape[1], None, 60, 1, 0)
    RotatedLsa.fit(few, RotatedLsaParams(num_topics=5))


def _compare_lda(
    found: Findings, setting: Setting, case: str, train: sp.csr_matrix, test: sp.csr_matrix, truth: Drawn | None
) -> None:
    rows, terms = train.shape
    chunk = min(2000, math.ceil(rows / 4))
    start = np.random.default_rng(0).gamma(100.0, 0.01, (TOPICS, terms)).astype(np.float32)
    # The same order of campaigns for both, random: sorted ones would hurt gensim.
    bows = to_bows(train[np.random.default_rng(0).permutation(rows)])
    same = _PARAMS.model_copy(update={"engine": "numba", "passes": 5, "offset": 1.0, "chunk_size": chunk})
    # Kept denormals and many campaigns make gensim take a minute a run.
    runs = setting.choose(1 if truth is not None and setting.denormals == "kept" else 3, 1)
    ours, peer, lda, gensim = time_pairs(
        lambda: Lda.fit(train, same, start=start),
        lambda: _train_gensim(bows, terms, start, chunk, 5, 0),
        runs,
    )
    found.ratios.append(
        Ratio(
            "training/lda-engine",
            case,
            _SECONDS,
            "Lda, numba engine, random start, 5 passes",
            "gensim LdaModel, same start, chunks and passes",
            ours,
            peer,
            setting.denormals,
        )
    )
    tuned_perplexity = _score(gensim, test)
    for method, value in (("Lda, same settings", lda.perplexity(test)), ("gensim, same settings", tuned_perplexity)):
        found.scores.append(
            Score("training/engine-perplexity", case, method, Sample((value,)), denormals=setting.denormals)
        )
    if setting.denormals != "flushed":
        return
    fit_times, shares, recalls = [], [], []
    for seed in range(runs):
        params = _PARAMS.model_copy(update={"seed": seed})
        seconds, lda = time_once(partial(Lda.fit, train, params))
        fit_times.append(seconds)
        shares.append(lda.perplexity(test))
        if truth is not None:
            recalls.append(_recall(lda.transform(test), truth.mixtures))
    default = Sample(tuple(fit_times))
    found.ratios.append(
        Ratio(
            "training/lda-tuned",
            case,
            _SECONDS,
            "Lda, defaults (seeded start, 2 passes)",
            _TUNED,
            default,
            peer,
            setting.denormals,
            "the peer's runs are those of training/lda-engine",
        )
    )
    _add_perplexity(found, case, "Lda, defaults", Sample(tuple(shares)))
    _add_perplexity(found, case, _TUNED, Sample((tuned_perplexity,)))
    if truth is not None:
        oracle = Lda(_PARAMS, truth.topics * train.sum()).transform(test)
        found.scores.append(Score("training/recall", case, "Lda, defaults", Sample(tuple(recalls))))
        found.scores.append(Score("training/recall", case, "true topics", Sample((_recall(oracle, truth.mixtures),))))
        tuned = Lda(_PARAMS, gensim.state.sstats).transform(test)
        found.scores.append(Score("training/recall", case, _TUNED, Sample((_recall(tuned, truth.mixtures),))))
    _compare_tomotopy(found, setting, case, train, test, default)


def _compare_tomotopy(
    found: Findings, setting: Setting, case: str, train: sp.csr_matrix, test: sp.csr_matrix, default: Sample
) -> None:
    try:
        import tomotopy
    except ImportError:
        found.skip("training/tomotopy", "tomotopy is not installed")
        return
    documents = [[str(column) for column, count in bow for _ in range(round(count))] for bow in to_bows(train) if bow]
    times, perplexities = [], []
    pairs = Sample(default.runs[:2])
    for seed in range(len(pairs.runs)):
        model = tomotopy.LDAModel(k=TOPICS, alpha=1.0 / TOPICS, eta=0.01, seed=seed + 1)
        for words in documents:
            model.add_doc(words)
        # Its sampler runs in a thread of its own, whose time the process clock has too.
        started = time.process_time()
        model.train(setting.choose(300, 20), workers=1)
        times.append(time.process_time() - started)
        columns = np.array([int(word) for word in model.used_vocabs])
        counts = np.zeros((TOPICS, train.shape[1]))
        for topic, total in enumerate(model.get_count_by_topics()):
            counts[topic, columns] = model.get_topic_word_dist(topic) * total
        # Scored with our prior and with the one that it has learned; it is given the better of the two.
        priors = (1.0 / TOPICS, float(np.mean(model.alpha)))
        perplexities.append(
            min(Lda(_PARAMS.model_copy(update={"alpha": prior}), counts).perplexity(test) for prior in priors)
        )
    found.ratios.append(
        Ratio(
            "training/lda-tomotopy",
            case,
            _SECONDS,
            "Lda, defaults (seeded start, 2 passes)",
            "tomotopy LDAModel, 300 iterations, 1 worker",
            pairs,
            Sample(tuple(times)),
            "flushed",
            "reading its documents is not counted",
        )
    )
    _add_perplexity(found, case, "tomotopy, 300 iterations", Sample(tuple(perplexities)))


def _compare_rotated_lsa(found: Findings, setting: Setting, case: str, counts: sp.csr_matrix) -> None:
    from gensim.models import LsiModel
    from gensim.utils import FakeDict
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfTransformer

    counts = counts[np.diff(counts.indptr) > 0]
    weighted = sp.csr_matrix(TfidfTransformer(sublinear_tf=True).fit_transform(counts))
    weighted_bows, bows, terms = to_bows(weighted), to_bows(counts), counts.shape[1]
    chunk = min(2000, math.ceil(counts.shape[0] / 4))
    peers = (
        ("lsi", "gensim LsiModel(50)", lambda: LsiModel(weighted_bows, TOPICS, FakeDict(terms), random_seed=0)),
        ("svd", "scikit-learn TruncatedSVD(50)", lambda: TruncatedSVD(TOPICS, random_state=0).fit_transform(weighted)),
        ("lda", _TUNED, lambda: _train_gensim(bows, terms, None, chunk, 5, 0)),
    )
    for name, peer, action in peers:
        runs = setting.choose(1 if name == "lda" and counts.shape[0] > 5000 else 3, 1)
        ours, theirs, _, _ = time_pairs(lambda: RotatedLsa.fit(counts, RotatedLsaParams()), action, runs)
        found.ratios.append(
            Ratio(
                f"training/rotated-lsa-{name}",
                case,
                _SECONDS,
                "RotatedLsa, defaults",
                peer,
                ours,
                theirs,
                setting.denormals,
                "ours weighs terms and rotates too; LsiModel and TruncatedSVD get weighted terms",
            )
        )


def _train_gensim(
    bows: list[list[tuple[int, float]]], terms: int, start: np.ndarray | None, chunk: int, passes: int, seed: int
) -> Any:
    from gensim.models import LdaModel
    from gensim.utils import FakeDict

    model = LdaModel(
        id2word=FakeDict(terms),
        num_topics=TOPICS,
        chunksize=chunk,
        passes=passes,
        eval_every=None,
        dtype=np.float32,
        random_state=seed,
    )
    if start is not None:
        model.state.sstats[...] = start
        model.sync_state()
    model.update(bows)
    return model


def _score(gensim: Any, test: sp.csr_matrix) -> float:
    """Score gensim's topics by the routine that scores ours, so that only the topics differ."""
    return Lda(_PARAMS, gensim.state.sstats).perplexity(test)


def _add_perplexity(found: Findings, case: str, method: str, sample: Sample) -> None:
    found.scores.append(Score("training/perplexity", case, method, sample, denormals="flushed"))


def _recall(shares: np.ndarray, mixtures: np.ndarray) -> float:
    """Return which part of the 10 nearest campaigns by true mixture is found by fingerprint."""
    nearest = []
    for vectors in (embed_hellinger(shares), embed_hellinger(mixtures)):
        similarity = vectors @ vectors.T
        np.fill_diagonal(similarity, -9.0)
        nearest.append(np.argpartition(-similarity, 10, axis=1)[:, :10])
    found = (nearest[0][:, :, None] == nearest[1][:, None, :]).any(axis=2)
    return float(found.mean())
