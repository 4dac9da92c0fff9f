"""Made-up campaigns of small businesses: the terms that they bid on and were searched with.

Each campaign belongs to one of 31 verticals and mixes the niches of it. The vocabulary is written by hand for three
locales (`ad_campaigns_vocabulary.json`); everything else is drawn. What makes real exports hard is drawn too: cities
and modifiers that all verticals share, terms that related verticals share, searches that were matched by mistake,
misspellings, missing accents, match-type marks, repeated and empty rows, thin and huge campaigns, and campaigns filed
under a wrong vertical. `ground_truth` returns what was drawn before that noise.

The draws use the raw output of PCG64, which NumPy promises never to change, and not the methods of a `Generator`, which
it may improve. So a seed gives the same table, and the same CSV text, with every version of Python and NumPy (powers
and exponentials may differ in their last bit, but are rounded to whole counts and cents). The bytes of a `.csv.gz` or
Parquet file also depend on the version of zlib or pyarrow that compresses them.

How hard it is: with TF-IDF and 100 SVD components on unigrams, .91 of a campaign's 10 nearest others carry the same
vertical in the default table, where 1.00 would tell no two methods apart.
"""

import json
import unicodedata
from dataclasses import dataclass
from datetime import date
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mlflywheel.errors import UsageError
from mlflywheel.samples.drawing import Floats, Ints, choose, draw_normals, draw_uniforms, draw_words, write_table

DEFAULT_AS_OF = date(2026, 10, 31)
#: Tiers by rising budget, and the share of campaigns in each.
TIERS = ("small", "medium", "large")
_TIER_SHARES = (0.6, 0.3, 0.1)
_MEDIAN_TERMS = (28.0, 38.0, 55.0)
_THIN_SHARES = (0.06, 0.02, 0.01)
_HUGE_SHARES = (0.0, 0.004, 0.02)
_MEDIAN_IMPRESSIONS = (35.0, 80.0, 240.0)

SCHEMA = pa.schema(
    [
        ("campaign_id", pa.string()),
        ("term", pa.string()),
        ("kind", pa.string()),
        ("impressions", pa.int64()),
        ("clicks", pa.int64()),
        ("cost", pa.float64()),
        ("vertical", pa.string()),
        ("advertiser_tier", pa.string()),
        ("locale", pa.string()),
        ("as_of", pa.string()),
    ]
)

_CROSS_VERTICAL_SHARE = 0.1
_MESSY_SHARE = 0.18
_WRONG_VERTICAL_SHARE = 0.015
_WRONG_LOCALE_SHARE = 0.005
_DUPLICATE_SHARE = 0.003
_EMPTY_SHARE = 0.0004
#: Share of Spanish campaigns' terms that are English, and the reverse in the United States.
_OTHER_LANGUAGE_SHARES = {"en-US": ("es-US", 0.012), "es-US": ("en-US", 0.14)}


def generate_ad_campaigns(campaigns: int = 3000, seed: int = 7, as_of: date = DEFAULT_AS_OF) -> pa.Table:
    """Draw a table of campaigns, one row a term.

    Columns: `campaign_id` (`c-000123`), `term` (may be empty, may repeat), `kind` (`keyword` or `search_term`),
    `impressions` and `clicks` (counts, clicks never above impressions), `cost` (US dollars, two decimals), `vertical`
    (31 names), `advertiser_tier` (`small`, `medium`, `large`), `locale` (`en-US`, `en-GB`, `es-US`) and `as_of`
    (ISO date, the same in every row). A campaign has 31 terms in the median.

    Args:
        campaigns: How many campaigns, at least 1. The default gives about 110,000 rows.
        seed: Not negative; equal seeds give equal tables.
        as_of: The date in the column `as_of`.

    Raises:
        UsageError: `campaigns` is below 1, or `seed` is negative.

    >>> table = generate_ad_campaigns(campaigns=40)
    >>> table.column_names[:4], len(set(table["campaign_id"].to_pylist()))
    (['campaign_id', 'term', 'kind', 'impressions'], 40)
    """
    vocabulary = _load_vocabulary()
    plan = _draw_plan(vocabulary, campaigns, seed)
    owner, terms, is_search, prominence = _draw_terms(vocabulary, plan, seed)
    impressions, clicks, cost = _draw_traffic(vocabulary, plan, owner, is_search, prominence, seed)

    rows: Ints = np.arange(len(owner), dtype=np.int64)
    repeated = rows[draw_uniforms(seed, "duplicates", len(rows)) < _DUPLICATE_SHARE]
    rows = np.sort(np.concatenate([rows, repeated]), kind="stable")

    ids = np.array([_campaign_id(i) for i in range(campaigns)], dtype=object)
    columns: dict[str, Any] = {
        "campaign_id": ids[owner[rows]],
        "term": np.array(terms, dtype=object)[rows],
        "kind": np.where(is_search, "search_term", "keyword").astype(object)[rows],
        "impressions": impressions[rows],
        "clicks": clicks[rows],
        "cost": cost[rows],
        "vertical": np.array(vocabulary.verticals, dtype=object)[plan.labelled_vertical][owner[rows]],
        "advertiser_tier": np.array(TIERS, dtype=object)[plan.tier][owner[rows]],
        "locale": np.array(vocabulary.locales, dtype=object)[plan.labelled_locale][owner[rows]],
        "as_of": [as_of.isoformat()] * len(rows),
    }
    return pa.table({name: pa.array(columns[name], type=SCHEMA.field(name).type) for name in SCHEMA.names})


def ground_truth(campaigns: int = 3000, seed: int = 7) -> pa.Table:
    """Return what each campaign was drawn from, before noise: one row a campaign, in order of `campaign_id`.

    Columns: `campaign_id`, `vertical` (the true one, which differs from the table's in 1.5 % of the campaigns), `niche`
    (the one with the largest share in the campaign) and `second_vertical` (null for the 90 % that have none).

    Raises:
        UsageError: `campaigns` is below 1, or `seed` is negative.

    >>> ground_truth(campaigns=40).num_rows
    40
    """
    vocabulary = _load_vocabulary()
    plan = _draw_plan(vocabulary, campaigns, seed)
    main = plan.niche_mix.argmax(axis=1)
    names = vocabulary.verticals
    return pa.table(
        {
            "campaign_id": pa.array([_campaign_id(i) for i in range(campaigns)], pa.string()),
            "vertical": pa.array([names[v] for v in plan.vertical], pa.string()),
            "niche": pa.array([vocabulary.niches[v][n] for v, n in zip(plan.vertical, main, strict=True)], pa.string()),
            "second_vertical": pa.array(
                [names[v] if share > 0 else None for v, share in zip(plan.second, plan.second_share, strict=True)],
                pa.string(),
            ),
        }
    )


def write_sample(path: str | Path, campaigns: int = 3000, seed: int = 7, as_of: date = DEFAULT_AS_OF) -> Path:
    """Write the table of `generate_ad_campaigns` to a file, all or nothing.

    Args:
        path: Ends in `.csv`, `.csv.gz` or `.parquet`; missing folders are made, an existing file is replaced.
        campaigns: How many campaigns, at least 1.
        seed: Not negative; equal seeds give equal bytes on one machine (see the module's text).
        as_of: The date in the column `as_of`.

    Returns:
        The path written.

    Raises:
        UsageError: Another suffix, `campaigns` below 1, or a negative `seed`.
    """
    return write_table(path, generate_ad_campaigns(campaigns, seed, as_of), {"cost": 2})


@dataclass(frozen=True)
class _Vocabulary:
    """The vocabulary as one flat list of phrases, so that draws from many lists are one NumPy operation.

    A list number indexes `starts` and `lengths`. The tables of list numbers hold -1 where a vertical has fewer niches,
    which is never read: niche shares there are 0.
    """

    verticals: list[str]
    niches: list[list[str]]
    locales: list[str]
    vertical_shares: Floats
    locale_shares: Floats
    cost_per_click: Floats
    related: list[list[int]]
    phrases: list[str]
    starts: Ints
    lengths: Ints
    head_lists: Ints  # [vertical, locale]
    niche_lists: Ints  # [vertical, niche, locale]
    locale_lists: dict[str, Ints]  # by name (`modifiers`, `cities`, ...): [locale]
    urgent: npt.NDArray[np.bool_]  # [vertical]: whether people search it in an emergency
    brands: list[str]
    brand_patterns: list[str]


@cache
def _load_vocabulary() -> _Vocabulary:
    text = files("mlflywheel.samples").joinpath("ad_campaigns_vocabulary.json").read_text(encoding="utf-8")
    raw: dict[str, Any] = json.loads(text)
    locales = list(raw["locales"])
    verticals = [v["name"] for v in raw["verticals"]]
    phrases: list[str] = []
    starts: list[int] = []
    lengths: list[int] = []

    def add(items: list[str]) -> int:
        starts.append(len(phrases))
        lengths.append(len(items))
        phrases.extend(items)
        return len(starts) - 1

    most_niches = max(len(v["niches"]) for v in raw["verticals"])
    head_lists = np.full((len(verticals), len(locales)), -1, dtype=np.int64)
    niche_lists = np.full((len(verticals), most_niches, len(locales)), -1, dtype=np.int64)
    for v, vertical in enumerate(raw["verticals"]):
        for k, locale in enumerate(locales):
            head_lists[v, k] = add(vertical["head_terms"][locale])
            for n, niche in enumerate(vertical["niches"]):
                niche_lists[v, n, k] = add(niche["terms"][locale])
    locale_lists = {
        kind: np.array([add(raw["locales"][locale][kind]) for locale in locales], dtype=np.int64)
        for kind in ("modifiers", "off_intent", "city_patterns", "cities", "generic")
    }
    locale_lists["modifiers in a hurry"] = np.array(
        [add(words["urgent_modifiers"] + words["modifiers"]) for words in raw["locales"].values()], dtype=np.int64
    )
    return _Vocabulary(
        verticals=verticals,
        niches=[[niche["name"] for niche in v["niches"]] for v in raw["verticals"]],
        locales=locales,
        vertical_shares=np.array([v["share"] for v in raw["verticals"]], dtype=np.float64),
        locale_shares=np.array([raw["locales"][locale]["share"] for locale in locales], dtype=np.float64),
        cost_per_click=np.array([v["cost_per_click_usd"] for v in raw["verticals"]], dtype=np.float64),
        related=[[verticals.index(name) for name in v["related"]] for v in raw["verticals"]],
        phrases=phrases,
        starts=np.array(starts, dtype=np.int64),
        lengths=np.array(lengths, dtype=np.int64),
        head_lists=head_lists,
        niche_lists=niche_lists,
        locale_lists=locale_lists,
        urgent=np.array([v["urgent"] for v in raw["verticals"]], dtype=np.bool_),
        brands=raw["brands"],
        brand_patterns=raw["brand_patterns"],
    )


@dataclass(frozen=True)
class _Plan:
    """What is drawn once a campaign; every array has one entry, or one row, a campaign."""

    vertical: Ints
    labelled_vertical: Ints
    second: Ints
    second_share: Floats
    niche_mix: Floats  # [campaign, niche], rows sum to 1
    second_mix: Floats
    locale: Ints
    labelled_locale: Ints
    tier: Ints
    terms: Ints
    stray_share: Floats
    generic_share: Floats
    city_share: Floats
    modifier_share: Floats


def _draw_plan(vocabulary: _Vocabulary, campaigns: int, seed: int) -> _Plan:
    if campaigns < 1:
        raise UsageError("campaigns", str(campaigns), "at least 1 is needed", "ask for 1 campaign or more")
    if seed < 0:
        raise UsageError("seed", str(seed), "0 or more is needed", "take a seed that is not negative")

    def draw(name: str) -> Floats:
        return draw_uniforms(seed, name, campaigns)

    # Evenly spaced draws in random order give each vertical its share even in a small sample.
    places = np.argsort(draw("order"), kind="stable")
    vertical = choose(vocabulary.vertical_shares, (places + draw("place")) / campaigns)
    locale = choose(vocabulary.locale_shares, draw("locale"))
    tier = choose(np.array(_TIER_SHARES), draw("tier"))

    any_other = _other(draw("other vertical"), vertical, len(vocabulary.verticals))
    related = _choose_related(vocabulary, vertical, draw("related vertical"))
    second = np.where(draw("second is related") < 0.7, related, any_other)
    second_share = np.where(draw("cross") < _CROSS_VERTICAL_SHARE, 0.12 + 0.28 * draw("second share"), 0.0)

    median = np.array(_MEDIAN_TERMS)[tier]
    terms = np.rint(median * np.exp(0.42 * draw_normals(seed, "terms", campaigns))).astype(np.int64).clip(6, 180)
    size = draw("size")
    thin = size < np.array(_THIN_SHARES)[tier]
    huge = size > 1 - np.array(_HUGE_SHARES)[tier]
    terms = np.where(thin, 1 + np.floor(4 * draw("thin")).astype(np.int64), terms)
    terms = np.where(huge, 400 + np.floor(500 * draw("huge")).astype(np.int64), terms)

    messy = draw("messy") < _MESSY_SHARE
    stray = np.where(messy, 0.45 + 0.3 * draw("stray"), 0.04 + 0.22 * draw("stray"))
    return _Plan(
        vertical=vertical,
        labelled_vertical=np.where(draw("wrong vertical") < _WRONG_VERTICAL_SHARE, related, vertical),
        second=second,
        second_share=second_share,
        niche_mix=_draw_mix(vocabulary, vertical, seed, "niches"),
        second_mix=_draw_mix(vocabulary, second, seed, "second niches"),
        locale=locale,
        labelled_locale=np.where(
            draw("wrong locale") < _WRONG_LOCALE_SHARE,
            _other(draw("other locale"), locale, len(vocabulary.locales)),
            locale,
        ),
        tier=tier,
        terms=terms,
        stray_share=stray,
        generic_share=0.25 * draw("generic") ** 2,
        city_share=0.5 * draw("city") ** 2,
        modifier_share=0.15 + 0.45 * draw("modifier"),
    )


def _draw_mix(vocabulary: _Vocabulary, vertical: Ints, seed: int, name: str) -> Floats:
    """Draw shares of the vertical's niches: squared normals over their sum are a Dirichlet with 1/2 everywhere."""
    most = vocabulary.niche_lists.shape[1]
    squares: Floats = draw_normals(seed, name, len(vertical) * most).reshape(-1, most) ** 2 + 1e-9
    squares = np.where(vocabulary.niche_lists[vertical, :, 0] >= 0, squares, 0.0)
    mix: Floats = squares / squares.sum(axis=1, keepdims=True)
    return mix


def _draw_terms(
    vocabulary: _Vocabulary, plan: _Plan, seed: int
) -> tuple[Ints, list[str], npt.NDArray[np.bool_], Floats]:
    """Draw each campaign's terms, without repeats, in random order.

    Returns:
        Campaign number, text, whether it is a search term, and prominence (above 0 and up to 1; a head term has 1),
        all of one length and grouped by campaign.
    """
    # Repeats are dropped, so more is drawn than is kept.
    drawn = np.ceil(plan.terms * 1.3 + 6).astype(np.int64)
    owner = np.repeat(np.arange(len(drawn), dtype=np.int64), drawn)
    count = len(owner)

    def draw(name: str) -> Floats:
        return draw_uniforms(seed, name, count)

    is_search = draw("kind") < 0.45
    vertical = plan.vertical[owner]
    mix = plan.niche_mix[owner]
    from_second = draw("from second") < plan.second_share[owner]
    vertical = np.where(from_second, plan.second[owner], vertical)
    mix = np.where(from_second[:, None], plan.second_mix[owner], mix)

    # A stray term was matched, or added, by mistake: mostly from a related vertical, and more often a search.
    stray = draw("stray term") < plan.stray_share[owner] * np.where(is_search, 1.4, 0.6)
    strays = np.where(
        draw("stray is related") < np.where(is_search, 0.4, 0.7),
        _choose_related(vocabulary, plan.vertical[owner], draw("stray related")),
        _other(draw("stray other"), plan.vertical[owner], len(vocabulary.verticals)),
    )
    vertical = np.where(stray, strays, vertical)
    even = (vocabulary.niche_lists[vertical, :, 0] >= 0).astype(np.float64)
    mix = np.where(stray[:, None], even, mix)

    locale = plan.locale[owner]
    switch = draw("language")
    for source, (target, share) in _OTHER_LANGUAGE_SHARES.items():
        here = (plan.locale[owner] == vocabulary.locales.index(source)) & (switch < share)
        locale = np.where(here, vocabulary.locales.index(target), locale)

    niche = _choose_rows(mix, draw("niche"))
    lists = vocabulary.niche_lists[vertical, niche, locale]
    lists = np.where(draw("head") < 0.16, vocabulary.head_lists[vertical, locale], lists)
    generic = draw("generic term") < plan.generic_share[owner]
    lists = np.where(generic, vocabulary.locale_lists["generic"][locale], lists)

    def pick(name: str, number: Ints) -> tuple[Ints, Ints]:
        return _pick(vocabulary, number, owner, draw(name), seed)

    phrase, rank = pick("phrase", lists)
    calm = vocabulary.locale_lists["modifiers"][locale]
    hurried = vocabulary.locale_lists["modifiers in a hurry"][locale]
    modifier, _ = pick("modifier word", np.where(vocabulary.urgent[vertical], hurried, calm))
    off_intent, _ = pick("off intent", vocabulary.locale_lists["off_intent"][locale])
    city_pattern, _ = pick("city pattern", vocabulary.locale_lists["city_patterns"][locale])
    # A business works in one town, and some in its neighbours.
    cities = vocabulary.locale_lists["cities"][plan.locale]
    home = _choose_zipf(vocabulary.lengths[cities], draw_uniforms(seed, "home", len(drawn)))
    near = _choose_zipf(vocabulary.lengths[cities][owner], draw("near"))
    city = vocabulary.starts[cities][owner] + np.where(draw("away") < 0.15, near, home[owner])

    form = draw("form")
    with_city = form < plan.city_share[owner]
    modifier_end = plan.city_share + plan.modifier_share * (1 - plan.city_share)
    with_modifier = ~with_city & (form < modifier_end[owner])
    with_off_intent = ~with_city & ~with_modifier & is_search & (draw("intent") < 0.12)
    pattern = np.where(with_city, city_pattern, np.where(with_modifier, modifier, off_intent))
    decorated = (with_city | with_modifier | with_off_intent) & ~generic

    # An advertiser's own name is bid on, and rivals' names are searched.
    branded = draw("branded") < 0.025
    own = np.floor(draw_uniforms(seed, "own brand", len(drawn)) * len(vocabulary.brands)).astype(np.int64)
    rival = np.floor(draw("rival brand") * len(vocabulary.brands)).astype(np.int64)
    brand = np.where(is_search & (draw("rival") < 0.5), rival, own[owner])
    brand_pattern = _choose_zipf(np.full(count, len(vocabulary.brand_patterns), dtype=np.int64), draw("brand pattern"))

    phrases = vocabulary.phrases
    added_words = {
        p: set(phrases[p].replace("{term}", "").replace("{city}", "").split()) for p in np.unique(pattern).tolist()
    }
    texts: list[str] = []
    columns = (phrase, pattern, decorated, city, branded, brand, brand_pattern)
    for p, q, is_decorated, c, is_branded, b, bp in zip(*(column.tolist() for column in columns), strict=True):
        text = phrases[p]
        if is_branded:
            text = vocabulary.brand_patterns[bp].replace("{brand}", vocabulary.brands[b]).replace("{term}", text)
            text = text.replace("{city}", phrases[c])
        elif is_decorated and added_words[q].isdisjoint(text.split()):
            text = phrases[q].replace("{term}", text).replace("{city}", phrases[c])
        texts.append(text)
    spanish = (locale == vocabulary.locales.index("es-US")) & ~branded
    texts = _roughen(texts, is_search, spanish, seed)

    keep: list[int] = []
    seen: set[str] = set()
    current = -1
    for i, (campaign, text) in enumerate(zip(owner.tolist(), texts, strict=True)):
        if campaign != current:
            current, seen, left = campaign, set(), int(plan.terms[campaign])
        if left and text not in seen:
            seen.add(text)
            keep.append(i)
            left -= 1
    kept = np.array(keep, dtype=np.int64)
    prominence = (np.where(decorated, 0.4, 1.0) / (1.0 + rank)).astype(np.float64)
    return owner[kept], [texts[i] for i in keep], is_search[kept], prominence[kept]


def _draw_traffic(
    vocabulary: _Vocabulary,
    plan: _Plan,
    owner: Ints,
    is_search: npt.NDArray[np.bool_],
    prominence: Floats,
    seed: int,
) -> tuple[Ints, Ints, Floats]:
    """Draw impressions (log-normal), clicks (1 to 8 % of them) and cost in US dollars for each row."""
    count = len(owner)
    median = np.array(_MEDIAN_IMPRESSIONS)[plan.tier[owner]] * (0.3 + 1.7 * prominence) * np.where(is_search, 0.3, 1.0)
    impressions = np.floor(median * np.exp(1.3 * draw_normals(seed, "impressions", count))).astype(np.int64)
    # A search that nobody saw the ad on is not in an export; a keyword that never showed is.
    impressions = np.maximum(impressions, is_search.astype(np.int64))
    rate = (0.035 * np.exp(0.45 * draw_normals(seed, "click rate", count))).clip(0.01, 0.08)
    clicks = np.floor(impressions * rate + draw_uniforms(seed, "clicks", count)).astype(np.int64)
    clicks = np.minimum(clicks, impressions)
    price = vocabulary.cost_per_click[plan.vertical[owner]] * np.exp(0.35 * draw_normals(seed, "price", count))
    cents = np.rint(100 * clicks * price)
    return impressions, clicks, cents / 100


def _roughen(
    texts: list[str], is_search: npt.NDArray[np.bool_], spanish: npt.NDArray[np.bool_], seed: int
) -> list[str]:
    """Write terms the way exports hold them: misspelled, unaccented, marked, capitalised, unevenly spaced, empty."""
    count = len(texts)
    typo = is_search & (draw_uniforms(seed, "typo", count) < 0.07)
    bare = spanish & (draw_uniforms(seed, "accents", count) < np.where(is_search, 0.5, 0.12))
    case = draw_uniforms(seed, "case", count)
    match = np.where(is_search, 0.0, draw_uniforms(seed, "match", count))
    space = draw_uniforms(seed, "space", count)
    detail = draw_uniforms(seed, "detail", count)
    empty = draw_uniforms(seed, "empty", count) < _EMPTY_SHARE
    result: list[str] = []
    for text, t, a, c, m, s, d, e in zip(
        texts,
        typo.tolist(),
        bare.tolist(),
        case.tolist(),
        match.tolist(),
        space.tolist(),
        detail.tolist(),
        empty.tolist(),
        strict=True,
    ):
        if a:
            text = _strip_accents(text)
        if t:
            text = _misspell(text, d)
        if c < 0.09:
            text = text.title().replace("'S", "'s")
        elif c < 0.11:
            text = text.upper()
        if m > 0.82:
            text = f"[{text}]"
        elif m > 0.62:
            text = f'"{text}"' if d < 0.97 else f"\u201c{text}\u201d"
        elif m > 0.54:
            text = " ".join(f"+{word}" for word in text.split())
        if s < 0.004:
            text = unicodedata.normalize("NFD", text)
        elif s < 0.007:
            text = text.replace("'", "\u2019").replace(" ", "\u00a0", 1)
        elif s < 0.012:
            text = f"{text} " if d < 0.5 else text.replace(" ", "  ", 1)
        if e:
            text = "" if d < 0.7 else " "
        result.append(text)
    return result


_ACUTE = str.maketrans("áéíóúü", "aeiouu")


def _strip_accents(text: str) -> str:
    """Drop acute accents and the diaeresis. The ñ stays: it is a letter of its own on a Spanish keyboard."""
    return text.translate(_ACUTE)


def _misspell(text: str, u: float) -> str:
    """Make one slip in a word of 6 letters or more; the kind and the place follow from u in [0, 1).

    Slips: two inner letters swapped, a letter doubled, a double letter halved, the last letter lost, a space lost.
    Letters are never replaced, so that a harmless word does not turn into another one.

    >>> _misspell("emergency plumber", 0.05), _misspell("sink", 0.05)
    ('emmergency plumber', 'sink')
    """
    words = text.split(" ")
    long_words = [i for i, word in enumerate(words) if len(word) >= 6 and word.isalpha()]
    if not long_words:
        return text
    # Digits of u far from its head, since the head has already decided other things.
    choice = int(u * 2**40) % 1_000_003
    choice, kind = divmod(choice, 5)
    choice, which = divmod(choice, len(long_words))
    at = long_words[which]
    word = words[at]
    place = 1 + choice % (len(word) - 3)
    doubles = [i for i in range(1, len(word)) if word[i] == word[i - 1]]
    if kind == 0 and at + 1 < len(words):
        words[at : at + 2] = [word + words[at + 1]]
    elif kind == 1 and doubles:
        words[at] = word[: doubles[0]] + word[doubles[0] + 1 :]
    elif kind == 2:
        words[at] = word[:-1]
    elif kind == 3:
        words[at] = word[:place] + word[place] + word[place:]
    else:
        words[at] = word[:place] + word[place + 1] + word[place] + word[place + 2 :]
    return " ".join(words)


def _campaign_id(number: int) -> str:
    return f"c-{number:06d}"


def _choose_rows(weights: Floats, u: Floats) -> Ints:
    """Choose a column in each row of `weights` [row, column]."""
    ends = np.cumsum(weights, axis=1)
    chosen: Ints = (ends[:, :-1] <= (u * ends[:, -1])[:, None]).sum(axis=1, dtype=np.int64)
    return chosen


def _choose_zipf(lengths: Ints, u: Floats) -> Ints:
    """Choose a place in lists of the given lengths, where place r has a weight of 1 / sqrt(r + 1)."""
    places = np.arange(int(lengths.max()))
    return _choose_rows(np.where(places < lengths[:, None], 1.0 / np.sqrt(places + 1.0), 0.0), u)


def _choose_related(vocabulary: _Vocabulary, vertical: Ints, u: Floats) -> Ints:
    """Choose one of the verticals that the vocabulary calls related."""
    counts = np.array([len(related) for related in vocabulary.related], dtype=np.int64)
    table = np.zeros((len(counts), int(counts.max())), dtype=np.int64)
    for row, related in enumerate(vocabulary.related):
        table[row, : len(related)] = related
    return table[vertical, np.floor(u * counts[vertical]).astype(np.int64)]


def _other(u: Floats, number: Ints, count: int) -> Ints:
    """Choose a number below `count` other than the given one."""
    return (number + 1 + np.floor(u * (count - 1)).astype(np.int64)) % count


def _pick(vocabulary: _Vocabulary, lists: Ints, owner: Ints, u: Floats, seed: int) -> tuple[Ints, Ints]:
    """Pick a phrase from each numbered list: Zipf weights, and each campaign has favourites that it keeps to.

    Returns:
        Phrase numbers, and their places in their lists (0 is the most searched).
    """
    lengths = vocabulary.lengths[lists]
    places = np.arange(int(lengths.max()))
    phrase = vocabulary.starts[lists][:, None] + places
    favoured = _mix_bits(phrase, owner, seed) < 0.5
    weights = (places + 1.0) ** -0.8 * np.where(favoured, 1.0, 0.08)
    place = _choose_rows(np.where(places < lengths[:, None], weights, 0.0), u)
    return vocabulary.starts[lists] + place, place


def _mix_bits(phrase: Ints, owner: Ints, seed: int) -> Floats:
    """Return a uniform for each pair of campaign and phrase, always the same for the same pair.

    The mixing steps are those of SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators",
    OOPSLA 2014).
    """
    starts = draw_words(seed, "favourites", int(owner.max()) + 1)[owner]
    words = phrase.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + starts[:, None]
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    words ^= words >> np.uint64(31)
    return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53
