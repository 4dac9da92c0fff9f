"""From keywords to counts: cleaning, tokenising and counting terms, vectorised over distinct terms.

A term repeats in many campaigns, so each distinct term is tokenised once. Counting is then one product of two sparse
matrices, campaigns x terms and terms x features. Bigrams are built inside a term and never across two.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import scipy.sparse as sp
from pydantic import Field

from mlflywheel.errors import DataError, MissingExtraError, UsageError
from mlflywheel.models.contract import Settings

# Scripts that are written without spaces: every character is a token, and pairs of them are the bigrams.
_UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
# With its vowel marks, and the sign that lengthens a Japanese vowel, which Unicode files under no script.
_UNSPACED_CHARACTER = f"([{_UNSPACED}]" + r"[\p{M}\x{30FC}]*)"
# A Hangul syllable can be a word too (flower, car). A single letter or digit is not.
_WORD_BY_ITSELF = f"^[{_UNSPACED}" + r"\p{Hangul}]"
# Accents of Latin, Greek and Cyrillic letters. The marks of other scripts are vowels.
_ACCENTS = r"[\x{0300}-\x{036F}]+"
# White space that is not the plain space, which needs no replacing in most terms.
_OTHER_SPACE = r"[\p{Cc}\x{00A0}\x{1680}\x{2000}-\x{200B}\x{2028}\x{2029}\x{202F}\x{205F}\x{3000}\x{FEFF}]+"
# Soft hyphens and marks of writing direction. Joiners stay: Indic spelling needs them.
_INVISIBLE = r"[\x{00AD}\x{200E}\x{200F}\x{202A}-\x{202E}\x{2060}-\x{2064}\x{2066}-\x{2069}]+"
_MATCH_TYPE_MARKS = (
    (r"^-?\[\s*([^\[\]]*?)\s*\]$", r"\1"),
    (r'^-?["“”]\s*([^"“”]*?)\s*["“”]$', r"\1"),
    (r"(^|\s)[+\-]+([^\s+\-])", r"\1\2"),
)
_MATCH_TYPE_MARK = r'[\[\]"“”+\-]'
# Below so many features, looking them up one by one is faster than building Arrow's hash table of the vocabulary.
_FEW_FEATURES = 5000


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
    maximum_share: float = Field(1.0, gt=0, le=1, description="drop features that a larger share of campaigns uses")


def encode_sorted(values: pa.Array) -> tuple[np.ndarray, pa.Array]:
    """Number values by their place among the distinct ones.

    Args:
        values: Without nulls, of a type that can be sorted.

    Returns:
        The place of each value, int64, and the distinct values, ascending.

    >>> codes, distinct = encode_sorted(pa.array(["b", "a", "b"]))
    >>> codes.tolist(), distinct.to_pylist()
    ([1, 0, 1], ['a', 'b'])
    """
    encoded = pc.dictionary_encode(values)
    order = pc.sort_indices(encoded.dictionary).to_numpy()
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.arange(len(order))
    return rank[encoded.indices.to_numpy()], pc.take(encoded.dictionary, pa.array(order))


def clean_terms(terms: pa.Array | pa.ChunkedArray) -> pa.Array:
    """Return terms as a person would write them: one case, one form of each character, no match-type marks.

    Removes the marks of advertising exports (`[exact]`, `"phrase"`, `+broad`, a leading minus), folds Unicode
    compatibility forms (NFKC), lower-cases and collapses white space. Null and blank terms become null. Cleaning what
    is clean changes nothing.

    Args:
        terms: Strings.

    >>> clean_terms(pa.array(["[Water  Heater]", '"best plumber"', "+Emergency +plumber", "  "])).to_pylist()
    ['water heater', 'best plumber', 'emergency plumber', None]
    """
    encoded = pc.dictionary_encode(_to_array(terms).cast(pa.large_string()))
    return pc.take(_clean_distinct(encoded.dictionary), encoded.indices).cast(pa.string())


def _clean_distinct(terms: pa.Array) -> pa.Array:
    """Clean distinct terms; blank ones become null."""
    text = _normalize(terms)
    if not _is_ascii(text):
        text = pc.replace_substring_regex(text, _INVISIBLE, "")
    text = pc.replace_substring_regex(pc.replace_substring_regex(text, _OTHER_SPACE, " "), "  +", " ")
    text = pc.utf8_trim_whitespace(text)
    marked = pc.match_substring_regex(text, _MATCH_TYPE_MARK)
    text = pc.replace_with_mask(text, marked, _strip_marks(text.filter(marked)))
    return pc.if_else(pc.equal(pc.utf8_length(text), 0), pa.scalar(None, pa.large_string()), text)


def _strip_marks(text: pa.Array) -> pa.Array:
    before = None
    # Marks can stand inside each other, as in `"+broad"`; what is inside is always shorter, so this ends.
    while before is None or not text.equals(before):
        before = text
        for pattern, replacement in _MATCH_TYPE_MARKS:
            text = pc.replace_substring_regex(text, pattern, replacement)
        text = pc.utf8_trim_whitespace(text)
    return text


def _normalize(text: pa.Array) -> pa.Array:
    """Lower-case and fold compatibility forms; twice, since a lower-case letter may merge with the accent behind it."""
    return pc.utf8_normalize(pc.utf8_lower(pc.utf8_normalize(text, form="NFKC")), form="NFKC")


def tokenize_terms(terms: pa.Array, options: TextOptions) -> tuple[np.ndarray, pa.Array]:
    """Split terms into tokens.

    Args:
        terms: Strings without nulls, each at most 2 GiB.
        options: The tokeniser and what it leaves out.

    Returns:
        The term's position for each token, int64, ascending; and the tokens in their order inside the term.

    >>> owner, tokens = tokenize_terms(pa.array(["Plumber's café in Zürich", "給湯器"]), TextOptions())
    >>> list(zip(owner.tolist(), tokens.to_pylist()))
    [(0, 'plumber'), (0, 'cafe'), (0, 'zurich'), (1, '給'), (1, '湯'), (1, '器')]
    """
    if options.tokenizer == "spacy":
        owner, tokens = _split_with_spacy(terms, options)
    else:
        text = _fold(terms.cast(pa.large_string()), options)
        if not _is_ascii(text):
            text = pc.replace_substring_regex(text, _UNSPACED_CHARACTER, r" \1 ")
        lists = split_words(text)
        owner, tokens = pc.list_parent_indices(lists).to_numpy(), pc.list_flatten(lists)
    # Blanks have length 0.
    keep = pc.greater_equal(pc.utf8_length(tokens), 2)
    if not _is_ascii(tokens):
        keep = pc.or_(keep, pc.match_substring_regex(tokens, _WORD_BY_ITSELF))
    stop_words = sorted(stop_words_of(options))
    keep = pc.and_(keep, pc.invert(pc.is_in(tokens, value_set=pa.array(stop_words, tokens.type))))
    return owner[keep.to_numpy(zero_copy_only=False)].astype(np.int64), tokens.filter(keep)


def split_words(text: pa.Array) -> pa.Array:
    """Split strings at white space, into lists of strings.

    Not with `utf8_split_whitespace`, which looks past the end of the last string when that ends in a space (pyarrow
    26): now and then the space becomes part of the word before it.
    """
    return pc.ascii_split_whitespace(pc.replace_substring_regex(text, _OTHER_SPACE, " "))


def _fold(text: pa.Array, options: TextOptions) -> pa.Array:
    """Give every word one spelling, and put a space for what is not part of one."""
    text = _normalize(text)
    if options.fold_accents:
        text = pc.replace_substring_regex(pc.utf8_normalize(text, form="NFKD"), _ACCENTS, "")
        text = pc.utf8_normalize(text, form="NFC")
    # Compiling the pattern for all scripts takes longer than scoring a campaign.
    letters = "a-z0-9"
    if not _is_ascii(text):
        letters = r"\p{L}\p{M}\p{N}"
        text = pc.replace_substring_regex(text, r"\p{Cf}+", "")
    # Plain spaces are left alone: most terms have nothing else between their words.
    text = pc.replace_substring_regex(text, f"[^ {letters}'’ʼ`]+", " ")
    quoted = pc.match_substring_regex(text, "['’ʼ`]")
    return pc.replace_with_mask(text, quoted, _drop_apostrophes(text.filter(quoted)))


def _drop_apostrophes(text: pa.Array) -> pa.Array:
    text = pc.replace_substring_regex(text, "['’ʼ`]s['’ʼ`]*( |$)", r"\1")
    return pc.replace_substring_regex(text, "['’ʼ`]+", "")


def _is_ascii(text: pa.Array) -> bool:
    return bool(pc.all(pc.string_is_ascii(text), min_count=0).as_py())


def stop_words_of(options: TextOptions) -> Collection[str]:
    """Return the stop words that the options choose, folded as tokens are."""
    if options.stop_words == "none":
        return ()
    if options.stop_words == "english":
        from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

        return frozenset(ENGLISH_STOP_WORDS)
    return set(_fold(pa.array(options.stop_words, pa.large_string()), options).to_pylist())


def _split_with_spacy(terms: pa.Array, options: TextOptions) -> tuple[np.ndarray, pa.Array]:
    owner: list[int] = []
    lemmas: list[str] = []
    texts = _normalize(terms.cast(pa.large_string())).to_pylist()
    for position, document in enumerate(_load_spacy(options.language).pipe(texts, batch_size=2000)):
        for token in document:
            lemma = token.lemma_ or token.text
            if any(character.isalnum() for character in lemma):
                owner.append(position)
                lemmas.append(lemma)
    return np.asarray(owner, dtype=np.int64), _fold(pa.array(lemmas, pa.large_string()), options)


@cache
def _load_spacy(language: str) -> Any:
    """Build a blank pipeline with table lemmas: it needs no downloaded model, so it is the same everywhere.

    Terms are lower-case, and so German nouns, which its table writes with a capital, stay as they are.
    """
    try:
        import spacy
        import spacy_lookups_data  # noqa: F401  # registers the lemma tables
    except ImportError:
        raise MissingExtraError.of("spacy", "spacy", "tokenizer=spacy") from None
    try:
        pipeline = spacy.blank(language)
        pipeline.add_pipe("lemmatizer", config={"mode": "lookup"})
        pipeline.initialize()
    except (ImportError, ValueError) as error:
        # An unknown language, one whose tokeniser is a package of its own, or one without a table of lemmas.
        raise UsageError(
            f"text.language={language}",
            str(error).splitlines()[0],
            "a language with spaCy's own tokeniser and lemma table is needed",
            "choose tokenizer=words, or a language such as en, de or es",
        ) from error
    # The limit protects parsers, which a blank pipeline has not.
    pipeline.max_length = 2**31
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

    Equal terms of a campaign (after cleaning) are added up. Null and blank terms, and terms of weight 0, are left out.

    Args:
        terms: `list<string>`, one list a campaign; a null list is an empty campaign.
        weights: `list<float>` of the same lengths; 1 for each term where the list is null or there are no lists.

    Raises:
        DataError: A list of weights has another length than its terms, or a weight is negative or not finite.

    >>> read_bags(pa.array([["[Tea]", "tea", "milk"], None])).matrix.toarray().tolist()
    [[1.0, 2.0], [0.0, 0.0]]
    """
    lists = _to_array(terms)
    lengths = _list_lengths(lists)
    rows = np.repeat(np.arange(len(lists)), lengths)
    values = np.ones(len(rows), dtype=np.float32) if weights is None else _read_weights(_to_array(weights), lengths)
    # Each distinct term is cleaned once, and columns are given to distinct terms: a term repeats in many campaigns.
    encoded = pc.dictionary_encode(pc.list_flatten(lists).cast(pa.large_string()))
    kept = encoded.indices.is_valid().to_numpy(zero_copy_only=False) & (values > 0)
    codes = encoded.indices.filter(pa.array(kept)).to_numpy()
    cleaned = _clean_distinct(encoded.dictionary)
    some = np.zeros(len(cleaned), dtype=bool)
    some[codes] = True
    some &= cleaned.is_valid().to_numpy(zero_copy_only=False)
    # Alphabetical columns: a campaign's terms are then added in one order, alone or among others.
    column_of = np.full(len(cleaned), -1, dtype=np.int64)
    column_of[some], distinct = encode_sorted(cleaned.filter(pa.array(some)).cast(pa.string()))
    columns = column_of[codes]
    used = np.flatnonzero(kept)[columns >= 0]
    columns = columns[columns >= 0]
    matrix = sp.csr_matrix((values[used], (rows[used], columns)), shape=(len(lists), len(distinct)), dtype=np.float32)
    return Bags(matrix, distinct)


def _read_weights(lists: pa.Array, lengths: np.ndarray) -> np.ndarray:
    """Return the weights of all terms, float32, null as 0."""
    given = lists.is_valid().to_numpy(zero_copy_only=False)
    found = np.where(given, _list_lengths(lists), lengths) if len(lists) == len(lengths) else np.empty(0)
    if not np.array_equal(found, lengths):
        seen = f"{len(lists)} lists for {len(lengths)} campaigns"
        if len(found):
            row = int(np.flatnonzero(found != lengths)[0])
            seen = f"{found[row]} weights for {lengths[row]} terms in row {row}"
        raise DataError("weights", seen, "one weight a term is needed", "prepare the campaigns again")
    values = np.ones(int(lengths.sum()), dtype=np.float32)
    flat = pc.fill_null(pc.list_flatten(lists).cast(pa.float32()), 0.0).to_numpy(zero_copy_only=False)
    values[np.repeat(given, lengths)] = flat
    if not (np.isfinite(values) & (values >= 0)).all():
        raise DataError(
            "weights", "a weight is negative or not finite", "weights of 0 and more are needed", "correct the weights"
        )
    return values


def read_campaigns(table: pa.Table) -> Bags:
    """Gather the terms of prepared campaigns; see `read_bags`.

    Args:
        table: With `terms`, and `weights` unless every term counts as 1.

    Raises:
        DataError: There is no column `terms`, or the weights do not fit.
    """
    if "terms" not in table.column_names:
        raise DataError(
            "campaigns",
            f"columns {', '.join(table.column_names)}",
            "prepared campaigns with a column terms are needed",
            "run the preparation step on raw rows first",
        )
    return read_bags(table["terms"], table["weights"] if "weights" in table.column_names else None)


def count_terms(table: pa.Table) -> np.ndarray:
    """Return the number of terms of each prepared campaign, int64, as they stand in the table."""
    return _list_lengths(_to_array(table["terms"]))


def _to_array(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def _list_lengths(lists: pa.Array) -> np.ndarray:
    # Not from offsets: a null list may cover values that flattening leaves out.
    return np.asarray(pc.fill_null(pc.list_value_length(lists), 0), dtype=np.int64)


class Vocabulary:
    """The features that a model knows, in a fixed order.

    Args:
        features: Distinct words and bigrams; the position is the column in every matrix of the model.
    """

    def __init__(self, features: Sequence[str] | pa.Array) -> None:
        self.features = pa.array(features, pa.large_string())

    def __len__(self) -> int:
        return len(self.features)

    @cached_property
    def words(self) -> list[str]:
        """The features as a list."""
        return list(self.features.to_pylist())

    @cached_property
    def _columns(self) -> dict[str, int]:
        return {feature: column for column, feature in enumerate(self.words)}

    def find(self, features: pa.Array) -> tuple[np.ndarray, np.ndarray]:
        """Look features up.

        Returns:
            Whether each feature is known, bool (features,), and the columns of those that are, int64.

        >>> known, columns = Vocabulary(["heater", "water"]).find(pa.array(["water", "tea"]))
        >>> known.tolist(), columns.tolist()
        ([True, False], [1])
        """
        if len(features) < _FEW_FEATURES:
            found = pa.array([self._columns.get(feature) for feature in features.to_pylist()], pa.int64())
        else:
            found = pc.index_in(features.cast(self.features.type), value_set=self.features)
        known = found.is_valid().to_numpy(zero_copy_only=False)
        return known, found.drop_null().to_numpy().astype(np.int64)


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
    """Count all features of the campaigns, and keep those that enough campaigns use, but not too many.

    Feature order is alphabetical, so the same campaigns in another order give the same vocabulary.
    """
    tokenized = tokenize_terms(bags.terms, options)
    rows, features = expand_features(*tokenized, options.bigrams)
    columns, distinct = encode_sorted(features)
    matrix = _canonical(bags.matrix @ _csr(rows, columns, (len(bags.terms), len(distinct))))
    campaigns_per_feature = np.bincount(matrix.indices, minlength=len(distinct))
    # A corpus of one campaign would otherwise have no vocabulary at all.
    campaigns = int(np.count_nonzero(np.diff(matrix.indptr)))
    kept = campaigns_per_feature >= min(options.minimum_campaigns, max(1, campaigns))
    kept &= campaigns_per_feature <= options.maximum_share * campaigns
    vocabulary = Vocabulary(distinct.filter(pa.array(kept)))
    return vocabulary, count_features(bags, vocabulary, options, tokenized)


def count_features(
    bags: Bags,
    vocabulary: Vocabulary,
    options: TextOptions,
    tokenized: tuple[np.ndarray, pa.Array] | None = None,
) -> Counts:
    """Count the known features of campaigns.

    Args:
        bags: Campaigns.
        vocabulary: Known features.
        options: The options that the vocabulary was learned with.
        tokenized: What `tokenize_terms` gave for the bags' terms, to spare doing it again.
    """
    owner, tokens = tokenized or tokenize_terms(bags.terms, options)
    rows, features = expand_features(owner, tokens, options.bigrams)
    known, columns = vocabulary.find(features)
    term_features = _csr(rows[known], columns, (len(bags.terms), len(vocabulary)))
    # Single words come first among the features, pairs behind them.
    words_per_term = np.bincount(owner, minlength=len(bags.terms)).astype(np.float64)
    known_words = np.bincount(owner[known[: len(owner)]], minlength=len(bags.terms)).astype(np.float64)
    all_weight, known_weight = bags.matrix @ words_per_term, bags.matrix @ known_words
    unknown = np.full(bags.matrix.shape[0], np.nan)
    some = all_weight > 0
    unknown[some] = 1.0 - known_weight[some] / all_weight[some]
    return Counts(_canonical(bags.matrix @ term_features), unknown, term_features)


def _csr(rows: np.ndarray, columns: np.ndarray, shape: tuple[int, int]) -> sp.csr_matrix:
    return sp.csr_matrix((np.ones(len(rows), dtype=np.float32), (rows, columns)), shape=shape)


def _canonical(matrix: sp.csr_matrix) -> sp.csr_matrix:
    """Sort columns within rows: sums over a row then run in one order, for one row as for many."""
    result = sp.csr_matrix(matrix, dtype=np.float32)
    result.eliminate_zeros()
    result.sort_indices()
    return result
