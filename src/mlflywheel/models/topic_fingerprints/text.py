"""From keywords to counts: cleaning, tokenising and counting terms, vectorised over distinct terms.

A term repeats in many campaigns, so each distinct term is tokenised once. Counting is then one product of two sparse
matrices, campaigns x terms and terms x features. Bigrams are built inside a term and never across two.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import scipy.sparse as sp
from pydantic import Field

from mlflywheel.errors import MissingExtraError
from mlflywheel.models.contract import Settings

# Scripts that are written without spaces: every character is a token, and pairs of them are the bigrams.
_UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
_UNSPACED_SET = "[" + _UNSPACED + "]"


class TextOptions(Settings):
    """How terms become tokens."""

    tokenizer: Literal["words", "spacy"] = Field(
        "words", description="`words`, or spaCy's tokeniser and lemmas (extra)"
    )
    language: str = Field("en", description="spaCy's language code; unused by `words`")
    stop_words: Literal["english", "none"] | tuple[str, ...] = Field("english", description="words that carry no topic")
    bigrams: bool = Field(True, description="also count pairs of neighbouring words inside a term")
    fold_accents: bool = Field(True, description="count `café` and `cafe` as one word")
    minimum_campaigns: int = Field(2, ge=1, description="drop features that fewer campaigns use")


def clean_terms(terms: pa.Array | pa.ChunkedArray) -> pa.Array:
    """Return terms as a person would write them: one case, one form of each character, no match-type marks.

    Removes the marks of advertising exports (`[exact]`, `"phrase"`, `+broad`, a leading minus), folds Unicode
    compatibility forms (NFKC), lower-cases and collapses white space. Null and blank terms become null.

    Args:
        terms: Strings.

    >>> clean_terms(pa.array(["[Water  Heater]", '"best plumber"', "+Emergency +plumber", "  "])).to_pylist()
    ['water heater', 'best plumber', 'emergency plumber', None]
    """
    array = terms.combine_chunks() if isinstance(terms, pa.ChunkedArray) else terms
    distinct = pc.dictionary_encode(array.cast(pa.large_string()))
    text = pc.utf8_lower(pc.utf8_normalize(distinct.dictionary, form="NFKC"))
    text = pc.replace_substring_regex(text, r"[\s\x00-\x1f\x{FEFF}\x{200B}]+", " ")
    text = pc.utf8_trim_whitespace(text)
    text = pc.replace_substring_regex(text, r"^-?\[\s*([^\[\]]*?)\s*\]$", r"\1")
    text = pc.replace_substring_regex(text, r'^-?["“”]\s*([^"“”]*?)\s*["“”]$', r"\1")
    text = pc.replace_substring_regex(text, r"(^|\s)[+\-]+([^\s+\-])", r"\1\2")
    text = pc.utf8_trim_whitespace(text)
    text = pc.if_else(pc.equal(pc.utf8_length(text), 0), pa.scalar(None, pa.large_string()), text)
    return pc.take(text, distinct.indices).cast(pa.string())


def tokenize_terms(terms: pa.Array, options: TextOptions) -> tuple[np.ndarray, pa.Array]:
    """Split terms into tokens.

    Args:
        terms: Strings without nulls, each at most 2 GiB.
        options: The tokenizer, and how it treats accents.

    Returns:
        The term's position for each token, int64, ascending; and the tokens in their order inside the term.
    """
    if options.tokenizer == "spacy":
        return _tokenize_with_spacy(terms, options)
    text = pc.utf8_lower(pc.utf8_normalize(terms.cast(pa.large_string()), form="NFKC"))
    if options.fold_accents:
        # Only Latin, Greek and Cyrillic accents: marks of Indic scripts are vowels.
        text = pc.replace_substring_regex(pc.utf8_normalize(text, form="NFKD"), r"[\x{0300}-\x{036F}]+", "")
        text = pc.utf8_normalize(text, form="NFC")
    text = pc.replace_substring_regex(text, r"['’ʼ`](s\b)?", "")
    text = pc.replace_substring_regex(text, r"[^\p{L}\p{M}\p{N}]+", " ")
    text = pc.replace_substring_regex(text, "(" + _UNSPACED_SET + r"\p{M}*)", r" \1 ")
    lists = pc.utf8_split_whitespace(text)
    return _filter_tokens(pc.list_parent_indices(lists).to_numpy(), pc.list_flatten(lists), options)


def _filter_tokens(owner: np.ndarray, tokens: pa.Array, options: TextOptions) -> tuple[np.ndarray, pa.Array]:
    """Drop blanks, stop words and single letters; a single character of an unspaced script is a word."""
    long_enough = pc.greater_equal(pc.utf8_length(tokens), 2)
    keep = pc.or_(long_enough, pc.match_substring_regex(tokens, "^" + _UNSPACED_SET))
    stop_words = stop_words_of(options)
    if stop_words:
        keep = pc.and_(keep, pc.invert(pc.is_in(tokens, value_set=pa.array(sorted(stop_words), tokens.type))))
    kept = keep.to_numpy(zero_copy_only=False)
    return owner[kept].astype(np.int64), tokens.filter(keep)


def stop_words_of(options: TextOptions) -> Collection[str]:
    """Return the stop words that the options choose, accents folded as the tokens are."""
    if options.stop_words == "none":
        return ()
    if options.stop_words == "english":
        from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

        return frozenset(ENGLISH_STOP_WORDS)
    words = pa.array([word.lower() for word in options.stop_words], pa.large_string())
    if options.fold_accents:
        words = pc.replace_substring_regex(pc.utf8_normalize(words, form="NFKD"), r"[\x{0300}-\x{036F}]+", "")
    return set(words.to_pylist())


def _tokenize_with_spacy(terms: pa.Array, options: TextOptions) -> tuple[np.ndarray, pa.Array]:
    pipeline = _load_spacy(options.language)
    owner: list[int] = []
    tokens: list[str] = []
    for position, document in enumerate(pipeline.pipe(terms.to_pylist(), batch_size=2000)):
        for token in document:
            lemma = (token.lemma_ or token.text).lower()
            if any(character.isalnum() for character in lemma):
                owner.append(position)
                tokens.append(lemma)
    array = pa.array(tokens, pa.large_string())
    if options.fold_accents:
        array = pc.replace_substring_regex(pc.utf8_normalize(array, form="NFKD"), r"[\x{0300}-\x{036F}]+", "")
        array = pc.utf8_normalize(array, form="NFC")
    return _filter_tokens(np.asarray(owner, dtype=np.int64), array, options)


def _load_spacy(language: str) -> Any:
    """Build a blank pipeline with table lemmas: it needs no downloaded model, so it is the same everywhere."""
    try:
        import spacy
        import spacy_lookups_data  # noqa: F401  # registers the lemma tables
    except ImportError:
        raise MissingExtraError.of("spacy", "spacy", "tokenizer=spacy") from None
    pipeline = spacy.blank(language)
    pipeline.add_pipe("lemmatizer", config={"mode": "lookup"})
    pipeline.initialize()
    return pipeline


def expand_features(owner: np.ndarray, tokens: pa.Array, bigrams: bool) -> tuple[np.ndarray, pa.Array]:
    """Add the pairs of neighbouring tokens of the same term to the tokens.

    Returns:
        The term's position for each feature, int64, and the features.

    >>> owner, features = expand_features(np.array([0, 0, 1]), pa.array(["water", "heater", "leak"]), True)
    >>> list(zip(owner.tolist(), features.to_pylist()))
    [(0, 'water'), (0, 'heater'), (1, 'leak'), (0, 'water heater')]
    """
    if not bigrams or len(tokens) < 2:
        return owner, tokens
    same = owner[1:] == owner[:-1]
    mask = pa.array(same)
    left, right = tokens[:-1].filter(mask), tokens[1:].filter(mask)
    pairs = pc.binary_join_element_wise(left, right, pa.scalar(" ", tokens.type))
    return np.concatenate([owner, owner[:-1][same]]), pa.concat_arrays([tokens, pairs])


@dataclass(frozen=True)
class Bags:
    """Campaigns as weighted bags of distinct terms.

    Args:
        matrix: Weights, CSR float32 of shape (campaigns, distinct terms).
        terms: The distinct terms, cleaned.
    """

    matrix: sp.csr_matrix
    terms: pa.Array


def read_bags(terms: pa.Array | pa.ChunkedArray, weights: pa.Array | pa.ChunkedArray | None = None) -> Bags:
    """Gather campaigns' term lists into a sparse matrix over distinct cleaned terms.

    Equal terms of a campaign (after cleaning) are added up; null and blank terms are left out.

    Args:
        terms: `list<string>`, one list a campaign; a null list is an empty campaign.
        weights: `list<float>` of the same lengths; 1 for each term when absent.
    """
    lists = terms.combine_chunks() if isinstance(terms, pa.ChunkedArray) else terms
    rows = pc.list_parent_indices(lists).to_numpy().astype(np.int64)
    cleaned = clean_terms(pc.list_flatten(lists).cast(pa.large_string()))
    values = np.ones(len(rows), dtype=np.float32)
    if weights is not None:
        flat = pc.list_flatten(weights.combine_chunks() if isinstance(weights, pa.ChunkedArray) else weights)
        values = pc.fill_null(flat.cast(pa.float32()), 0.0).to_numpy(zero_copy_only=False)
    valid = cleaned.is_valid().to_numpy(zero_copy_only=False)
    encoded = pc.dictionary_encode(cleaned.drop_null())
    # Alphabetical columns: a campaign's terms are then added in one order, alone or among others.
    order = pc.sort_indices(encoded.dictionary).to_numpy()
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.arange(len(order))
    columns = rank[encoded.indices.to_numpy()]
    matrix = sp.csr_matrix((values[valid], (rows[valid], columns)), shape=(len(lists), len(order)), dtype=np.float32)
    matrix.sum_duplicates()
    return Bags(matrix, pc.take(encoded.dictionary, pa.array(order)))


class Vocabulary:
    """The features that a model knows, in a fixed order.

    Args:
        features: Distinct words and bigrams; the position is the column in every matrix of the model.
    """

    def __init__(self, features: Sequence[str] | pa.Array) -> None:
        self.features = features if isinstance(features, pa.Array) else pa.array(features, pa.large_string())

    def __len__(self) -> int:
        return len(self.features)

    @property
    def words(self) -> list[str]:
        """The features as a list."""
        return list(self.features.to_pylist())


@dataclass(frozen=True)
class Counts:
    """Feature counts of campaigns, and how much of their text the vocabulary knows.

    Args:
        matrix: CSR float32 (campaigns, features), columns sorted within a row.
        unknown_share: float64 (campaigns,): weight of the words (not bigrams) that are not in the vocabulary, divided
            by the weight of all words; NaN for a campaign without words.
        term_features: CSR float32 (distinct terms, features): which features a term brings.
    """

    matrix: sp.csr_matrix
    unknown_share: np.ndarray
    term_features: sp.csr_matrix


def learn_vocabulary(bags: Bags, options: TextOptions) -> tuple[Vocabulary, Counts]:
    """Count all features of the campaigns, and keep those that enough campaigns use.

    Feature order is alphabetical, so the same campaigns in another order give the same vocabulary.
    """
    owner, tokens = tokenize_terms(bags.terms, options)
    rows, features = expand_features(owner, tokens, options.bigrams)
    encoded = pc.dictionary_encode(features.cast(pa.large_string()))
    order = pc.sort_indices(encoded.dictionary).to_numpy()
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.arange(len(order))
    term_features = _csr(rows, rank[encoded.indices.to_numpy()], (len(bags.terms), len(order)))
    matrix = _canonical(bags.matrix @ term_features)
    campaigns_per_feature = np.bincount(matrix.indices, minlength=matrix.shape[1])
    # A corpus of one campaign would otherwise have no vocabulary at all.
    kept = np.flatnonzero(campaigns_per_feature >= min(options.minimum_campaigns, max(1, bags.matrix.shape[0])))
    vocabulary = Vocabulary(pc.take(encoded.dictionary, pa.array(order[kept])))
    return vocabulary, count_features(bags, vocabulary, options, owner, tokens)


def count_features(
    bags: Bags,
    vocabulary: Vocabulary,
    options: TextOptions,
    owner: np.ndarray | None = None,
    tokens: pa.Array | None = None,
) -> Counts:
    """Count the known features of campaigns.

    Args:
        bags: Campaigns.
        vocabulary: Known features.
        options: The options that the vocabulary was learned with.
        owner: First of the two things that `tokenize_terms` gave for the bags' terms, to spare doing it again.
        tokens: The second; both or neither.
    """
    if owner is None or tokens is None:
        owner, tokens = tokenize_terms(bags.terms, options)
    rows, features = expand_features(owner, tokens, options.bigrams)
    known = vocabulary.features
    columns = pc.index_in(features.cast(known.type), value_set=known)
    found = columns.is_valid().to_numpy(zero_copy_only=False)
    ids = columns.drop_null().to_numpy().astype(np.int64)
    term_features = _csr(rows[found], ids, (len(bags.terms), len(vocabulary)))
    words_per_term = np.bincount(owner, minlength=len(bags.terms)).astype(np.float64)
    known_words = np.bincount(owner[found[: len(owner)]], minlength=len(bags.terms)).astype(np.float64)
    all_weight = bags.matrix @ words_per_term
    known_weight = bags.matrix @ known_words
    unknown = np.full(bags.matrix.shape[0], np.nan)
    some = all_weight > 0
    unknown[some] = 1.0 - known_weight[some] / all_weight[some]
    return Counts(_canonical(bags.matrix @ term_features), unknown, term_features)


def _csr(rows: np.ndarray, columns: np.ndarray, shape: tuple[int, int]) -> sp.csr_matrix:
    matrix = sp.csr_matrix((np.ones(len(rows), dtype=np.float32), (rows, columns)), shape=shape)
    matrix.sum_duplicates()
    return matrix


def _canonical(matrix: sp.csr_matrix) -> sp.csr_matrix:
    """Sort columns within rows: sums over a row then run in one order, for one row as for many."""
    result = sp.csr_matrix(matrix, dtype=np.float32)
    result.eliminate_zeros()
    result.sort_indices()
    return result
