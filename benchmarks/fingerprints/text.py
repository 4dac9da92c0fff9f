"""From terms to counts, beside gensim's and scikit-learn's way, and the memory that the counts take."""

import sys
import tracemalloc
from functools import partial

import numpy as np
import pyarrow as pa
import scipy.sparse as sp

from benchmarks.fingerprints.corpora import read_onet, to_bows
from benchmarks.fingerprints.measuring import Findings, Ratio, Sample, Score, Setting, time_pairs
from mlflywheel.models.topic_fingerprints.text import Counts, TextOptions, learn_vocabulary, read_bags

_SECONDS = "CPU seconds from terms to counts"


def measure(setting: Setting) -> Findings:
    """Measure everything that belongs to text."""
    pa.set_cpu_count(1)
    found = Findings()
    pool = _draw_terms(setting.choose(100_000, 500))
    cases = {
        "short distinct texts": [[text] for text in _draw_terms(setting.choose(200_000, 600))],
        "campaigns of 40 terms that repeat": _draw_campaigns(pool, setting.choose(20_000, 100)),
    }
    onet = read_onet(setting.data_folder, smallest=1)
    if onet is None:
        found.skip("text/onet", "no O*NET terms in the data folder")
    else:
        cases["O*NET campaigns"] = onet.terms
    for case, campaigns in cases.items():
        _compare(found, setting, f"{case}, {len(campaigns):,}", campaigns)
    _compare_memory(found, cases["campaigns of 40 terms that repeat"])
    return found


def _draw_terms(number: int) -> list[str]:
    """Return texts of 2 to 6 words from a Zipf-distributed vocabulary of 20,000, all lower case and plain."""
    rng = np.random.default_rng(0)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    words = np.array(["".join(rng.choice(letters, size)) for size in rng.integers(3, 10, 20_000)])
    chances = 1.0 / np.arange(1, len(words) + 1)
    sizes = rng.integers(2, 7, number)
    drawn = words[rng.choice(len(words), sizes.sum(), p=chances / chances.sum())]
    return [" ".join(part) for part in np.split(drawn, np.cumsum(sizes)[:-1])]


def _draw_campaigns(pool: list[str], number: int) -> list[list[str]]:
    rng = np.random.default_rng(1)
    chances = 1.0 / np.arange(1, len(pool) + 1) ** 0.8
    drawn = rng.choice(len(pool), (number, 40), p=chances / chances.sum())
    return [[pool[term] for term in row] for row in drawn]


def _count(campaigns: pa.Array, bigrams: bool) -> Counts:
    return learn_vocabulary(read_bags(campaigns), TextOptions(bigrams=bigrams))[1]


def _count_by_gensim(campaigns: list[list[str]]) -> list[list[tuple[int, int]]]:
    from gensim.corpora import Dictionary
    from gensim.utils import simple_preprocess

    # One text a campaign: faster for gensim than term by term.
    documents = [simple_preprocess(" ".join(terms)) for terms in campaigns]
    dictionary = Dictionary(documents)
    return [dictionary.doc2bow(words) for words in documents]


def _count_by_sklearn(campaigns: list[list[str]]) -> sp.csr_matrix:
    from sklearn.feature_extraction.text import CountVectorizer

    return CountVectorizer(stop_words="english", min_df=2).fit_transform([" ".join(terms) for terms in campaigns])


def _compare(found: Findings, setting: Setting, case: str, campaigns: list[list[str]]) -> None:
    column = pa.array(campaigns, pa.list_(pa.string()))
    gensim = "gensim simple_preprocess, Dictionary, doc2bow"
    vectorizer = "scikit-learn CountVectorizer, stop words, min_df=2"
    few = campaigns[:50]
    _count(pa.array(few, pa.list_(pa.string())), True), _count_by_gensim(few), _count_by_sklearn(few)
    for name, ours, bigrams, peer, action in (
        ("gensim", "read_bags and learn_vocabulary, words", False, gensim, _count_by_gensim),
        ("gensim-pairs", "the same with pairs of words", True, gensim, _count_by_gensim),
        ("sklearn", "read_bags and learn_vocabulary, words", False, vectorizer, _count_by_sklearn),
    ):
        mine, theirs, _, _ = time_pairs(
            partial(_count, column, bigrams),
            partial(action, campaigns),
            setting.choose(3, 1),
        )
        found.ratios.append(
            Ratio(
                f"text/{name}",
                case,
                _SECONDS,
                ours,
                peer,
                mine,
                theirs,
                note="ours starts from an Arrow column, the peers from lists; ours also folds Unicode and accents and "
                "strips match-type marks",
            )
        )


def _compare_memory(found: Findings, campaigns: list[list[str]]) -> None:
    counts = _count(pa.array(campaigns, pa.list_(pa.string())), False).matrix
    tracemalloc.start()
    bows = _count_by_gensim_ids(counts)
    lists = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert len(bows) == counts.shape[0]
    arrays = counts.data.nbytes + counts.indices.nbytes + counts.indptr.nbytes
    case = f"campaigns of 40 terms that repeat, {len(campaigns):,}"
    found.ratios.append(
        Ratio(
            "text/memory",
            case,
            "bytes of the counts",
            "CSR, float32 and int32",
            "gensim's lists of tuples",
            Sample((float(arrays),)),
            Sample((float(lists),)),
            note=f"the same {counts.nnz:,} counts; ids of terms are shared objects, as in gensim's Dictionary",
        )
    )
    found.scores.append(Score("text/tuple-bytes", case, "bytes of one tuple", Sample((float(sys.getsizeof((1, 2))),))))


def _count_by_gensim_ids(counts: sp.csr_matrix) -> list[list[tuple[int, int]]]:
    """Return the counts as gensim holds them: one integer object for each id of the dictionary, not one a tuple."""
    ids = list(range(counts.shape[1]))
    return [[(ids[column], int(count)) for column, count in bow] for bow in to_bows(counts)]
