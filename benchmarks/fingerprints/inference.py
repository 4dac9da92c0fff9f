"""Fingerprints of new campaigns: many at once, and one at a time."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import scipy.sparse as sp

from benchmarks.fingerprints.corpora import TOPICS, count_words, draw_corpus, read_onet, to_bows
from benchmarks.fingerprints.measuring import Findings, Ratio, Sample, Score, Setting, time_each, time_pairs
from mlflywheel.models.topic_fingerprints.lda import Lda, LdaParams
from mlflywheel.models.topic_fingerprints.rotated_lsa import RotatedLsa, RotatedLsaParams

_BATCH = "CPU seconds of a batch"
_PEER = "gensim get_document_topics, one campaign a call"
# gensim's own: 50 iterations, until gamma changes by less than 0.001.
_GENSIM_SETTINGS = {"tolerance": 1e-3, "max_iterations": 50}


def measure(setting: Setting) -> Findings:
    """Measure everything that belongs to inference."""
    found = Findings()
    drawn = draw_corpus(setting.choose(4000, 400), 200, setting.choose(20_000, 1500))
    number = setting.choose(2000, 60)
    cases = {
        f"synthetic, {tokens} tokens": draw_corpus(number, tokens, seed=2, topics=drawn.topics).counts
        for tokens in (200, 50, 20)
    }
    _compare(found, setting, drawn.counts, cases)
    onet = read_onet(setting.data_folder)
    if onet is None:
        found.skip("inference/onet", "no O*NET terms in the data folder")
    elif setting.denormals == "flushed":
        counts = count_words(onet.terms, bigrams=True)[1].matrix
        counts = counts[np.diff(counts.indptr) > 0]
        chosen = np.random.default_rng(0).random(counts.shape[0]) < 0.8
        test = counts[~chosen]
        typical = int(np.median(np.diff(test.indptr)))
        _compare(found, setting, counts[chosen], {f"O*NET words and pairs, median {typical} distinct": test})
    return found


def _compare(found: Findings, setting: Setting, train: sp.csr_matrix, cases: dict[str, sp.csr_matrix]) -> None:
    lda = Lda.fit(train, LdaParams(num_topics=TOPICS, engine="numba"))
    gensim = lda.to_gensim({column: str(column) for column in range(train.shape[1])})
    gensim.iterations, gensim.gamma_threshold = 50, 1e-3
    counts = gensim.state.sstats
    same = Lda(lda.params.model_copy(update=_GENSIM_SETTINGS), counts)
    rotated = RotatedLsa.fit(train, RotatedLsaParams(num_topics=TOPICS))
    few = train[:20]
    for model in (lda, same, rotated):
        model.transform(few)
    for case, test in cases.items():
        bows = to_bows(test)

        methods: list[tuple[str, str, Callable[[sp.csr_matrix], Any]]] = [
            ("lda-same", "Lda, gensim's settings", same.transform),
            ("lda", "Lda, defaults (tighter: 1e-4, 500 iterations)", lda.transform),
            ("rotated-lsa", "RotatedLsa", rotated.transform),
        ]
        if setting.denormals != "flushed":
            methods = methods[:1]
        for name, ours, transform in methods:
            mine, theirs, _, _ = time_pairs(
                partial(transform, test), partial(_infer_by_gensim, gensim, bows), setting.choose(5, 1)
            )
            note = f"{test.shape[0]:,} campaigns; {test.shape[0] / mine.median:,.0f} a CPU second against "
            note += f"{test.shape[0] / theirs.median:,.0f}"
            found.ratios.append(
                Ratio(f"inference/{name}", case, _BATCH, ours, _PEER, mine, theirs, setting.denormals, note)
            )
        if setting.denormals != "flushed":
            continue
        mine, theirs, _, _ = time_pairs(
            partial(rotated.transform, test), partial(lda.transform, test), setting.choose(5, 1)
        )
        found.ratios.append(
            Ratio("inference/rotated-lsa-lda", case, _BATCH, "RotatedLsa", "Lda, defaults", mine, theirs, "flushed")
        )
        _compare_single(found, setting, case, test, bows, gensim, methods)
        _compare_results(found, setting, case, test, lda, counts)


def _infer_by_gensim(gensim: Any, bows: list[Any]) -> None:
    for bow in bows:
        gensim.get_document_topics(bow, minimum_probability=0)


def _compare_single(
    found: Findings,
    setting: Setting,
    case: str,
    test: sp.csr_matrix,
    bows: list[Any],
    gensim: Any,
    methods: list[tuple[str, str, Callable[[sp.csr_matrix], Any]]],
) -> None:
    number = min(setting.choose(500, 20), test.shape[0])
    singles = [test[row] for row in range(number)]
    for name, ours, transform in methods:
        medians: tuple[list[float], list[float]] = ([], [])
        tails: tuple[list[float], list[float]] = ([], [])
        for _ in range(setting.choose(5, 1)):
            for which, seconds in enumerate(
                (
                    time_each(transform, singles),
                    time_each(lambda bow: gensim.get_document_topics(bow, minimum_probability=0), bows[:number]),
                )
            ):
                medians[which].append(1e3 * float(np.percentile(seconds, 50)))
                tails[which].append(1e3 * float(np.percentile(seconds, 99)))
        for label, (mine, theirs) in (("p50", medians), ("p99", tails)):
            found.ratios.append(
                Ratio(
                    f"inference/{name}-single-{label}",
                    case,
                    f"CPU milliseconds of one campaign, {label}",
                    ours,
                    _PEER,
                    Sample(tuple(mine)),
                    Sample(tuple(theirs)),
                    "flushed",
                )
            )


def _compare_results(
    found: Findings, setting: Setting, case: str, test: sp.csr_matrix, lda: Lda, counts: np.ndarray
) -> None:
    """Say how well the compiled engine agrees with gensim from the same start, and a campaign alone with its batch."""
    few = test[: setting.choose(1000, 30)]
    by_gensim = Lda(lda.params.model_copy(update={"engine": "gensim"}), counts).transform(few)
    by_numba = lda.transform(few)
    close = np.abs(by_gensim - by_numba).max(axis=1) <= 1e-4
    found.scores.append(
        Score(
            "inference/agreement",
            case,
            "share of campaigns within 1e-4 of gensim's engine, same start",
            Sample((float(close.mean()),)),
            denormals="flushed",
        )
    )
    alone = [bool((lda.transform(few[row])[0] == by_numba[row]).all()) for row in range(few.shape[0])]
    found.scores.append(
        Score(
            "inference/batch-equals-single",
            case,
            "share of campaigns with the same bits alone and in a batch, Lda",
            Sample((float(np.mean(alone)),)),
        )
    )
