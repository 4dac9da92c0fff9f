"""`TopicFingerprints`: campaigns in, fingerprints, similar campaigns and recommended keywords out."""

import hashlib
import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Protocol, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import scipy.sparse as sp
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    FieldSerializationInfo,
    field_serializer,
    field_validator,
    model_validator,
)

from mlflywheel.errors import ModelError
from mlflywheel.events import ProgressCallback, ignore_progress
from mlflywheel.models.arrays import check_texts, read_array, read_json
from mlflywheel.models.contract import Column, DeviceName, Evaluation, Measurement, Model, RowScores, Settings
from mlflywheel.models.topic_fingerprints.attribution import Decomposition, TermContributions
from mlflywheel.models.topic_fingerprints.device import Device, choose_device
from mlflywheel.models.topic_fingerprints.lda import Lda, LdaParams
from mlflywheel.models.topic_fingerprints.naming import Topic, name_topics
from mlflywheel.models.topic_fingerprints.neighbours import (
    NO_DIRECTION,
    NeighbourIndex,
    Neighbours,
    embed_cosine,
    embed_hellinger,
)
from mlflywheel.models.topic_fingerprints.preparation import COLUMNS, PrepareConfig, prepare_campaigns
from mlflywheel.models.topic_fingerprints.recommendation import KeywordCatalogue, Recommendation, recommend
from mlflywheel.models.topic_fingerprints.rotated_lsa import RotatedLsa, RotatedLsaParams
from mlflywheel.models.topic_fingerprints.text import (
    Bags,
    Counts,
    TextOptions,
    Vocabulary,
    count_features,
    learn_vocabulary,
    read_bags,
    read_campaigns,
)

if TYPE_CHECKING:
    from gensim.corpora import Dictionary

_TOPICS_SHOWN = 5
_TERMS_SHOWN = 3
_PREDICT_BLOCK = 4096
# All topics of all terms are held at once.
_EXPLAIN_BLOCK = 256
# Set once for both algorithms: two places for one number would leave one of them without effect.
_SHARED_PARAMS = {"num_topics", "seed"}


class FitParams(Settings):
    """Parameters of `TopicFingerprints.fit`."""

    algorithm: Literal["rotated-lsa", "lda"] = Field("rotated-lsa", description="how topics are found")
    num_topics: int = Field(50, ge=2, le=100, description="topics, the length of a fingerprint")
    seed: int = Field(0, ge=0, lt=2**32, description="seed of everything random")
    neighbours: int = Field(10, ge=1, le=1000, description="similar campaigns listed for each campaign")
    recommendations: int = Field(10, ge=0, le=1000, description="keywords recommended to each campaign")
    text: TextOptions = Field(default_factory=TextOptions, description="how terms become tokens")
    rotated_lsa: RotatedLsaParams = Field(default_factory=RotatedLsaParams, description="settings of rotated-lsa")
    lda: LdaParams = Field(default_factory=LdaParams, description="settings of lda")

    @field_validator("rotated_lsa", "lda", mode="before")
    @classmethod
    def _refuse_shared(cls, value: Any) -> Any:
        found = _SHARED_PARAMS & set(value if isinstance(value, Mapping) else ())
        if found:
            raise ValueError(f"{', '.join(sorted(found))} must be set at the top level")
        return value

    @field_serializer("rotated_lsa", "lda")
    def _leave_out_shared(self, value: Settings, info: FieldSerializationInfo) -> dict[str, Any]:
        return value.model_dump(mode=info.mode, exclude=_SHARED_PARAMS, exclude_unset=info.exclude_unset)


class CampaignRequest(BaseModel):
    """One campaign to score."""

    model_config = ConfigDict(extra="forbid")

    campaign_id: str = Field("", description="if it is one of the catalogue, it is not listed as its own neighbour")
    terms: list[str] = Field(max_length=200_000, description="keywords and search terms, as the advertiser wrote them")
    weights: list[Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)]] | None = Field(
        None, description="one weight a term; 1 each if left out"
    )

    @model_validator(mode="after")
    def _check_terms(self) -> Self:
        try:
            self.campaign_id.encode()
            "".join(self.terms).encode()
        except UnicodeEncodeError as error:
            raise ValueError("a character is half of a surrogate pair: send valid Unicode") from error
        if self.weights is not None and len(self.weights) != len(self.terms):
            raise ValueError(
                f"{len(self.weights)} weights for {len(self.terms)} terms: give one weight a term, or none at all"
            )
        return self


class TopicShare(BaseModel):
    """A topic, its share of a fingerprint, and the campaign's own terms that brought most of it."""

    id: int
    name: str
    weight: float
    terms: list[str] = Field(description="at most three, as `explain` orders and writes them")


class SimilarCampaign(BaseModel):
    """A campaign of the catalogue and its similarity, from -1 to 1."""

    campaign_id: str
    similarity: float


class Evidence(BaseModel):
    """Why a keyword is recommended: the similar campaigns that use it, and the shared topics that it belongs to."""

    neighbours: list[str]
    topics: list[int]


class RecommendedKeyword(BaseModel):
    """A keyword that similar campaigns use and this one does not."""

    term: str
    score: float
    evidence: Evidence


class CampaignResponse(BaseModel):
    """The answer for one campaign."""

    campaign_id: str
    fingerprint: list[float]
    topics: list[TopicShare]
    neighbours: list[SimilarCampaign]
    recommended: list[RecommendedKeyword]
    unknown_share: float | None = Field(description="share of the words that the model has never seen")
    note: str | None = Field(description="why an answer is empty, if it is")


class Topics(Protocol):
    """What both algorithms offer. Matrices are CSR over the vocabulary; see `RotatedLsa` for shapes and meanings."""

    @property
    def num_topics(self) -> int:
        """Number of topics."""

    @property
    def num_terms(self) -> int:
        """Number of terms: columns of the counts."""

    def transform(self, counts: sp.csr_matrix) -> np.ndarray:
        """Return fingerprints."""

    def topic_term(self) -> np.ndarray:
        """Return p(term | topic)."""

    def term_topic(self) -> np.ndarray:
        """Return p(topic | term)."""

    def decompose(self, counts: sp.csr_matrix) -> Decomposition:
        """Return fingerprints with what each count brings to them."""

    def write(self, folder: Path) -> None:
        """Write data files."""


class TopicFingerprints(Model):
    """Topics learned from campaigns, and the catalogue of campaigns that neighbours are looked up in.

    Args:
        params: The parameters of the fit.
        vocabulary: Features, in column order.
        topics: The fitted algorithm.
        named: Each topic's name and terms.
        center: What similarity is measured from, float32 (topics,): the mean fingerprint of the training campaigns.
        catalogue: `campaign_id`, `terms`, `weights` and attributes of the campaigns to look up, sorted by id.
        fingerprints: Their fingerprints, float32 (campaigns, topics).
        known: Whether the campaign has a known term, bool (campaigns,); without one it is nobody's neighbour.
        device: What large batches are computed on, None for the CPU; see `to_device`.
    """

    format_name = "mlflywheel-topic-fingerprints"
    format_version = "1"
    columns: ClassVar[tuple[Column, ...]] = COLUMNS
    Params = FitParams
    Config = PrepareConfig
    Request = CampaignRequest
    Response = CampaignResponse

    def __init__(
        self,
        params: FitParams,
        vocabulary: Vocabulary,
        topics: Topics,
        named: tuple[Topic, ...],
        center: np.ndarray,
        catalogue: pa.Table,
        fingerprints: np.ndarray,
        known: np.ndarray,
        device: Device | None = None,
    ) -> None:
        self.params = params
        self.vocabulary = vocabulary
        self.topics = topics
        self.named = named
        self.center = center
        self.catalogue = catalogue
        self.fingerprints = fingerprints
        self.known = known
        self.device = device

    def use_device(self, wanted: DeviceName) -> tuple[Self, str]:
        """Return the model that computes large batches on a GPU or not; see `to_device` and `device.choose_device`."""
        device = choose_device(wanted)
        return self.to_device(device), str(device)

    def to_device(self, device: Device) -> Self:
        """Return the same model, which computes large batches on a device from `choose_device`.

        That is the search for neighbours, whose answers stay the same, and in `predict` the fingerprints of rotated
        LSA, which may differ in the last bit of float32. LDA's inference stays on the CPU. A device is not saved with
        the model.

        Raises:
            UsageError: On the first search, if the catalogue does not fit on the device and it has no fallback.
        """
        return type(self)(
            self.params,
            self.vocabulary,
            self.topics,
            self.named,
            self.center,
            self.catalogue,
            self.fingerprints,
            self.known,
            device,
        )

    @classmethod
    def prepare(cls, raw: pa.Table, config: Settings, progress: ProgressCallback = ignore_progress) -> pa.Table:
        """Gather rows of terms into campaigns; see `preparation.prepare_campaigns`."""
        return prepare_campaigns(raw, PrepareConfig.model_validate(config.model_dump()), progress)

    @classmethod
    def fit(cls, table: pa.Table, params: Settings, progress: ProgressCallback = ignore_progress) -> Self:
        """Learn the vocabulary and the topics, and take the campaigns into the catalogue.

        Args:
            table: Prepared campaigns.
            params: `FitParams`.
            progress: Called with the phases of the algorithm.

        Raises:
            ModelError: No campaign has a usable term.
        """
        fit_params = FitParams.model_validate(params.model_dump())
        # Metadata that a reader has left in the schema would change the saved model's hash.
        table = table.sort_by("campaign_id").combine_chunks().replace_schema_metadata(None)
        progress("vocabulary", 0, 1)
        vocabulary, counts = learn_vocabulary(read_campaigns(table), fit_params.text)
        progress("vocabulary", 1, 1)
        topics = fit_topics(counts.matrix, fit_params, progress)
        named = name_topics(vocabulary.words, topics.topic_term(), topics.term_topic())
        fingerprints = topics.transform(counts.matrix)
        known = np.diff(counts.matrix.indptr) > 0
        center = fingerprints[known].mean(axis=0, dtype=np.float64).astype(np.float32)
        if not embed_cosine(fingerprints[known], center).any():
            # Campaigns that are all the same have no direction around their mean.
            center = np.zeros_like(center)
        return cls(fit_params, vocabulary, topics, named, center, table, fingerprints, known)

    @property
    def num_topics(self) -> int:
        """Number of topics really fitted: at most the parameter, fewer on a small corpus."""
        return self.topics.num_topics

    def count(self, table: pa.Table) -> tuple[Bags, Counts]:
        """Count the features of prepared campaigns."""
        bags = read_campaigns(table)
        return bags, count_features(bags, self.vocabulary, self.params.text)

    def embed(self, fingerprints: np.ndarray, known: np.ndarray) -> np.ndarray:
        """Return the unit vectors that similarity is measured between; zero where a campaign has no known term."""
        vectors = (
            embed_hellinger(fingerprints) if self.params.algorithm == "lda" else embed_cosine(fingerprints, self.center)
        )
        return np.where(known[:, None], vectors, np.float32(0.0))

    @cached_property
    def _scoring_topics(self) -> Topics:
        """The topics of `predict`. What is saved is computed without a device, so that the hash does not tell of it."""
        if self.device is not None and isinstance(self.topics, RotatedLsa):
            return self.topics.on_device(self.device)
        return self.topics

    @cached_property
    def index(self) -> NeighbourIndex:
        """The search over the catalogue's campaigns that have a known term."""
        ids = np.asarray(self.catalogue["campaign_id"].to_pylist(), dtype=object)
        vectors = self.embed(self.fingerprints, self.known)[self.known]
        return NeighbourIndex(ids[self.known].tolist(), vectors, device=self.device)

    @cached_property
    def keywords(self) -> KeywordCatalogue:
        """The catalogue's keywords, in the index's campaign order."""
        terms = self.catalogue["terms"].filter(pa.array(self.known)).to_pylist()
        built = KeywordCatalogue.build(self.index.ids, terms)
        bags = read_bags(pa.array([[keyword] for keyword in built.keywords], pa.list_(pa.string())))
        counts = count_features(bags, self.vocabulary, self.params.text)
        return built.with_topics(self.topics.transform(counts.matrix))

    def predict(self, table: pa.Table, progress: ProgressCallback = ignore_progress) -> pa.Table:
        """Score campaigns.

        Args:
            table: `campaign_id` string, `terms` list<string>, optional `weights` list<float>.
            progress: Called with the phase `scoring`.

        Returns:
            `campaign_id`; `fingerprint` fixed_size_list<float>; `topics` (id, name, weight, terms), the largest first,
            `terms` being at most three of the campaign's own that brought most of the weight, as `explain` says;
            `neighbours` (campaign_id, similarity), the nearest first; `recommended` (term, score, evidence);
            `unknown_share` float; `note`, null unless the answer is empty for a reason.
        """
        blocks = []
        for start in range(0, max(1, table.num_rows), _PREDICT_BLOCK):
            progress("scoring", start, table.num_rows)
            blocks.append(self._predict_block(table.slice(start, _PREDICT_BLOCK)))
        progress("scoring", table.num_rows, table.num_rows)
        return pa.concat_tables(blocks).combine_chunks()

    def _predict_block(self, table: pa.Table) -> pa.Table:
        bags, counts = self.count(table)
        parts = self._scoring_topics.decompose(counts.matrix)
        fingerprints = parts.shares
        known = np.diff(counts.matrix.indptr) > 0
        ids = table["campaign_id"].to_pylist()
        vectors = self.embed(fingerprints, known)
        found = self.index.search(vectors, self.params.neighbours, ids)
        reasons = np.select(
            [np.diff(bags.matrix.indptr) == 0, ~known], ["no terms", "no known terms"], "like the average campaign"
        )
        return pa.table(
            {
                "campaign_id": pa.array(ids, pa.string()),
                "fingerprint": pa.FixedSizeListArray.from_arrays(pa.array(fingerprints.ravel()), self.num_topics),
                "topics": self._list_topics(TermContributions(bags, counts, parts), fingerprints, known),
                "neighbours": self._list_neighbours(found),
                "recommended": self._list_recommended(bags, found, fingerprints),
                "unknown_share": pa.array(counts.unknown_share, pa.float32(), mask=np.isnan(counts.unknown_share)),
                "note": pa.array(reasons, pa.string(), mask=vectors.any(axis=1)),
            }
        )

    def recommend(
        self, bags: Bags, found: Neighbours, fingerprints: np.ndarray, limit: int
    ) -> list[list[Recommendation]]:
        """Recommend keywords of campaigns' neighbours, the best first.

        Args:
            bags: The campaigns' own terms, which are not recommended.
            found: Their neighbours.
            fingerprints: Their fingerprints, float32 (campaigns, topics).
            limit: Most keywords a campaign.
        """
        terms = bags.terms.take(pa.array(bags.matrix.indices)).to_pylist()
        return recommend(
            self.keywords,
            [terms[start:end] for start, end in pairwise(bags.matrix.indptr)],
            # Where there are fewer neighbours the similarity is NaN, so whoever stands there has no say.
            np.maximum(found.positions, 0),
            found.similarity,
            fingerprints,
            limit=limit,
        )

    def _list_recommended(self, bags: Bags, found: Neighbours, fingerprints: np.ndarray) -> pa.Array:
        if not self.params.recommendations:
            return pa.array([[]] * len(fingerprints), _RECOMMENDED)
        recommended = self.recommend(bags, found, fingerprints, self.params.recommendations)
        return pa.array(
            [
                [
                    {
                        "term": item.term,
                        "score": item.score,
                        "evidence": {"neighbours": item.neighbours, "topics": item.topics},
                    }
                    for item in row
                ]
                for row in recommended
            ],
            _RECOMMENDED,
        )

    def _list_topics(self, contributions: TermContributions, fingerprints: np.ndarray, known: np.ndarray) -> pa.Array:
        """List each campaign's largest topics: at most five, and none below the even share but the first."""
        order = np.argsort(-fingerprints, axis=1, kind="stable")[:, :_TOPICS_SHOWN]
        shares = np.take_along_axis(fingerprints, order, axis=1)
        shown = (shares > 1.0 / self.num_topics) | (np.arange(order.shape[1]) == 0)
        shown &= known[:, None]
        offsets = np.concatenate([[0], np.cumsum(shown.sum(axis=1))])
        ids = order[shown]
        names = pc.take(pa.array([topic.name for topic in self.named]), pa.array(ids))
        terms = contributions.list_largest(order, shown, _TERMS_SHOWN)
        values = pa.StructArray.from_arrays(
            [pa.array(ids, pa.int32()), names, pa.array(shares[shown], pa.float32()), terms],
            ["id", "name", "weight", "terms"],
        )
        return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), values)

    def _list_neighbours(self, found: Neighbours) -> pa.Array:
        shown = found.positions >= 0
        offsets = np.concatenate([[0], np.cumsum(shown.sum(axis=1))])
        ids = pc.take(pa.array(self.index.ids, pa.string()), pa.array(found.positions[shown]))
        values = pa.StructArray.from_arrays([ids, pa.array(found.similarity[shown])], ["campaign_id", "similarity"])
        return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), values)

    def evaluate(self, table: pa.Table, progress: ProgressCallback = ignore_progress) -> Evaluation:
        """Measure topics on the training campaigns and neighbours of held-out ones; see `evaluation`."""
        from mlflywheel.models.topic_fingerprints.evaluation import evaluate_fingerprints

        return evaluate_fingerprints(self, table, progress)

    def measure(
        self, table: pa.Table, metrics: Collection[str], progress: ProgressCallback = ignore_progress
    ) -> tuple[Measurement, ...]:
        """Measure some overall metrics; see `evaluation`."""
        from mlflywheel.models.topic_fingerprints.evaluation import measure_fingerprints

        return measure_fingerprints(self, table, metrics, progress)

    def score_rows(self, table: pa.Table, progress: ProgressCallback = ignore_progress) -> RowScores:
        """Measure every campaign by itself; see `evaluation`."""
        from mlflywheel.models.topic_fingerprints.evaluation import score_rows

        return score_rows(self, table)

    def explain(self, table: pa.Table) -> pa.Table:
        """Attribute every share of the fingerprints to the campaigns' terms.

        Returns:
            One row for each campaign and topic: `campaign_id`, `topic_id`, `topic`, `share`, `base` (what no term
            brings: the prior), and `terms`, a list of (term, contribution), largest first; base plus contributions is
            the share.
        """
        ids, shares, bases, terms, values = [], [], [], [], []
        lengths: list[np.ndarray] = []
        campaigns = table["campaign_id"].to_pylist()
        for campaign, (base, own, contributions) in zip(campaigns, self._attribute_to_terms(table), strict=True):
            by_topic = contributions.T
            order = np.argsort(-by_topic, axis=1, kind="stable")
            ordered = np.take_along_axis(by_topic, order, axis=1)
            brings = ordered != 0
            ids += [campaign] * len(base)
            bases.append(base)
            shares.append(base + contributions.sum(axis=0))
            terms.append(own.take(pa.array(order[brings])))
            values.append(ordered[brings])
            lengths.append(brings.sum(axis=1))
        return pa.table(
            {
                "campaign_id": pa.array(ids, pa.string()),
                "topic_id": pa.array([topic.id for topic in self.named] * len(shares), pa.int32()),
                "topic": pa.array([topic.name for topic in self.named] * len(shares), pa.string()),
                "share": _join(shares),
                "base": _join(bases),
                "terms": _list_contributions(terms, values, _join(lengths)),
            }
        )

    def explain_similarity(self, table: pa.Table, campaign_id: str) -> pa.Table:
        """Attribute the similarity between campaigns and one campaign of the catalogue to the campaigns' terms.

        The cosine of centred fingerprints is linear in the fingerprint, so each term's contribution is exact. The
        Hellinger affinity of LDA is not; it is divided by topic, and inside a topic by the terms' parts of the share.

        Args:
            table: Prepared campaigns.
            campaign_id: A campaign of the catalogue.

        Returns:
            `campaign_id`, `similarity`, `base`, `terms` (term, contribution), which add up to the similarity.

        Raises:
            ModelError: The catalogue has no such campaign with a known term.
        """
        vector = self.index.find(campaign_id)
        if vector is None:
            raise ModelError(
                f"campaign {campaign_id}",
                "not in the catalogue, or without a known term",
                "similarity is explained to a catalogue campaign",
                "take an id from a `neighbours` list",
            )
        similarities, bases, terms, values = [], [], [], []
        for base, own, contributions in self._attribute_to_terms(table):
            base_part, parts = 0.0, np.zeros(len(own))
            # Without a known term a campaign has the prior's fingerprint, which is compared with nobody's.
            if contributions.any():
                base_part, parts = self._attribute_similarity(base, contributions, vector.astype(np.float64))
            order = np.argsort(-parts, kind="stable")
            similarities.append(base_part + parts.sum())
            bases.append(base_part)
            terms.append(own.take(pa.array(order)))
            values.append(parts[order])
        return pa.table(
            {
                "campaign_id": table["campaign_id"].cast(pa.string()),
                "similarity": pa.array(similarities, pa.float64()),
                "base": pa.array(bases, pa.float64()),
                "terms": _list_contributions(terms, values, np.array([len(part) for part in values], dtype=np.int64)),
            }
        )

    def _attribute_similarity(
        self, base: np.ndarray, contributions: np.ndarray, other: np.ndarray
    ) -> tuple[float, np.ndarray]:
        share = base + contributions.sum(axis=0)
        if self.params.algorithm == "lda":
            # sqrt(share) other, divided among what makes up the share.
            factor = np.where(share > 0, np.sqrt(share) * other / np.where(share > 0, share, 1.0), 0.0)
            factor /= np.sqrt(share.sum())
            return float(base @ factor), contributions @ factor
        centred = share - self.center
        length = float(np.sqrt((centred * centred).sum()))
        if length <= NO_DIRECTION:
            return 0.0, np.zeros(len(contributions))
        factor = other / length
        return float((base - self.center) @ factor), contributions @ factor

    def _attribute_to_terms(self, table: pa.Table) -> Iterator[tuple[np.ndarray, pa.Array, np.ndarray]]:
        """Attribute the shares of campaign after campaign to its terms.

        Yields:
            What no term brings, (topics,); the campaign's terms; and what they bring, float64 (terms, topics).
        """
        for start in range(0, table.num_rows, _EXPLAIN_BLOCK):
            bags, counts = self.count(table.slice(start, _EXPLAIN_BLOCK))
            parts = self.topics.decompose(counts.matrix)
            topics = np.broadcast_to(np.arange(self.num_topics), parts.shares.shape)
            contributions = TermContributions(bags, counts, parts).contribute(topics)
            for base, (low, high) in zip(parts.base, pairwise(bags.matrix.indptr.tolist()), strict=True):
                yield base, bags.terms.take(pa.array(bags.matrix.indices[low:high])), contributions[low:high]

    def extend(self, table: pa.Table, progress: ProgressCallback = ignore_progress) -> Self:
        """Return the same topics over a catalogue that also holds these campaigns; an id that it holds is replaced.

        Attributes that the catalogue does not have are left out, and those that the campaigns do not have are null.
        """
        table = table.select([name for name in table.column_names if name in self.catalogue.column_names])
        kept = pc.invert(pc.is_in(self.catalogue["campaign_id"], value_set=table["campaign_id"].combine_chunks()))
        joined = pa.concat_tables([self.catalogue.filter(kept), table], promote_options="permissive")
        joined = joined.sort_by("campaign_id").combine_chunks().replace_schema_metadata(None)
        progress("catalogue", 0, 1)
        _, counts = self.count(joined)
        fingerprints = self.topics.transform(counts.matrix)
        progress("catalogue", 1, 1)
        known = np.diff(counts.matrix.indptr) > 0
        return type(self)(
            self.params, self.vocabulary, self.topics, self.named, self.center, joined, fingerprints, known, self.device
        )

    def describe(self) -> dict[str, str | int | float | bool]:
        """Return the algorithm, the sizes and the hash of the vocabulary."""
        return {
            "algorithm": self.params.algorithm,
            "num_topics": self.num_topics,
            "vocabulary_terms": len(self.vocabulary),
            "catalogue_campaigns": self.catalogue.num_rows,
            "seed": self.params.seed,
            **self.versions(),
        }

    @cached_property
    def dictionary_hash(self) -> str:
        """`sha256:` over the vocabulary in column order: models of one hash count the same features."""
        return f"sha256:{hashlib.sha256(json.dumps(self.vocabulary.words).encode()).hexdigest()}"

    def versions(self) -> dict[str, str]:
        """Return `dictionary_hash`."""
        return {"dictionary_hash": self.dictionary_hash}

    @classmethod
    def example_request(cls) -> dict[str, Any]:
        """Return a small campaign."""
        return {"campaign_id": "example", "terms": ["emergency plumber", "water heater repair", "drain cleaning"]}

    @classmethod
    def to_table(cls, instances: Sequence[BaseModel]) -> pa.Table:
        """Turn requests into prepared campaigns."""
        requests = [
            instance if isinstance(instance, CampaignRequest) else CampaignRequest.model_validate(instance.model_dump())
            for instance in instances
        ]
        return pa.table(
            {
                "campaign_id": pa.array([request.campaign_id for request in requests], pa.string()),
                "terms": pa.array([request.terms for request in requests], pa.list_(pa.string())),
                "weights": pa.array(
                    [
                        [1.0] * len(request.terms) if request.weights is None else request.weights
                        for request in requests
                    ],
                    pa.list_(pa.float32()),
                ),
            }
        )

    def to_gensim(self) -> "tuple[Dictionary, tuple[Any, ...]]":
        """Return plain gensim models: the dictionary, and (TfidfModel, LsiModel) or (LdaModel,).

        `Dictionary.doc2bow` takes our tokens (words and bigrams of each term), not raw text.
        """
        from gensim.corpora import Dictionary

        id2word = dict(enumerate(self.vocabulary.words))
        dictionary = Dictionary()
        dictionary.token2id = {word: column for column, word in id2word.items()}
        dictionary.id2token = id2word
        if isinstance(self.topics, RotatedLsa):
            return dictionary, self.topics.to_gensim(id2word)
        assert isinstance(self.topics, Lda)
        return dictionary, (self.topics.to_gensim(id2word),)

    def write(self, folder: Path) -> None:
        """Write parameters and names as JSON, tables as Parquet, arrays as npy."""
        description = {
            "params": self.params.model_dump(mode="json"),
            "topics": [
                {"id": topic.id, "name": topic.name, "terms": topic.terms, "weights": topic.weights}
                for topic in self.named
            ],
        }
        (folder / "model.json").write_text(json.dumps(description, indent=1) + "\n", encoding="utf-8")
        # Arrow's own schema would tell a table that was read from Parquet from one that was not, and so would the hash.
        vocabulary = pa.table({"feature": self.vocabulary.features})
        pq.write_table(vocabulary, folder / "vocabulary.parquet", store_schema=False)
        pq.write_table(self.catalogue, folder / "catalogue.parquet", store_schema=False)
        np.save(folder / "fingerprints.npy", self.fingerprints, allow_pickle=False)
        np.save(folder / "known.npy", self.known, allow_pickle=False)
        np.save(folder / "center.npy", self.center, allow_pickle=False)
        (folder / "topics").mkdir()
        self.topics.write(folder / "topics")

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read what `write` wrote."""
        description = read_json(folder / "model.json")
        params = FitParams.model_validate(description["params"])
        features = _read_parquet(folder / "vocabulary.parquet")["feature"].combine_chunks()
        if not pa.types.is_string(features.type):
            raise ValueError("vocabulary.parquet holds no texts")
        vocabulary = Vocabulary(features)
        catalogue = _read_parquet(folder / "catalogue.parquet").combine_chunks()
        algorithms: dict[str, Callable[[Path], Topics]] = {"rotated-lsa": RotatedLsa.read, "lda": Lda.read}
        topics = algorithms[params.algorithm](folder / "topics")
        named = tuple(
            Topic(int(t["id"]), t["name"], check_texts(t["terms"], "terms"), tuple(map(float, t["weights"])))
            for t in description["topics"]
        )
        check_texts([topic.name for topic in named], "names of topics")
        rows = catalogue.num_rows
        count = topics.num_topics
        if [topic.id for topic in named] != list(range(count)):
            raise ValueError(f"{len(named)} named topics of {count}")
        # Compiled code reads a row of the topics for each term's column.
        if not len(vocabulary) == len(set(vocabulary.words)) == topics.num_terms:
            raise ValueError(f"the vocabulary of {len(vocabulary)} features is not that of the topics")
        if vocabulary.features.null_count:
            raise ValueError("a feature of the vocabulary is missing")
        _check_catalogue(catalogue)
        center = read_array(folder / "center.npy", np.float32, (count,))
        fingerprints = read_array(folder / "fingerprints.npy", np.float32, (rows, count))
        if not (np.isfinite(center).all() and np.isfinite(fingerprints).all()):
            raise ValueError("a fingerprint holds what is no number")
        return cls(
            params,
            vocabulary,
            topics,
            named,
            center,
            catalogue,
            fingerprints,
            read_array(folder / "known.npy", np.bool_, (rows,)),
        )


def fit_topics(
    counts: sp.csr_matrix, params: FitParams, progress: ProgressCallback = ignore_progress
) -> "RotatedLsa | Lda":
    """Fit the algorithm that the parameters name."""
    own = {"num_topics": params.num_topics, "seed": params.seed}
    if params.algorithm == "lda":
        return Lda.fit(counts, params.lda.model_copy(update=own), progress)
    return RotatedLsa.fit(counts, params.rotated_lsa.model_copy(update=own), progress)


def _read_parquet(path: Path) -> pa.Table:
    # Not `read_table`, which takes `key=value` folders on the way for columns.
    with pq.ParquetFile(path) as file:
        table = file.read()
    table.validate(full=True)
    return table


def _check_catalogue(catalogue: pa.Table) -> None:
    """Raise ValueError if a catalogue has not the columns that every campaign has, or a campaign has no id."""
    needed = {"campaign_id": pa.string(), "terms": pa.list_(pa.string()), "weights": pa.list_(pa.float32())}
    for name, kind in needed.items():
        if name not in catalogue.column_names or catalogue[name].type != kind:
            raise ValueError(f"catalogue.parquet has no column {name} of type {kind}")
        if catalogue[name].null_count:
            raise ValueError(f"catalogue.parquet has no {name} in some rows")
    lengths = pc.list_value_length(catalogue["terms"]), pc.list_value_length(catalogue["weights"])
    if not pc.all(pc.equal(*lengths)).as_py() and catalogue.num_rows:
        raise ValueError("catalogue.parquet has not one weight a term")


_RECOMMENDED = pa.list_(
    pa.struct(
        [
            ("term", pa.string()),
            ("score", pa.float32()),
            ("evidence", pa.struct([("neighbours", pa.list_(pa.string())), ("topics", pa.list_(pa.int32()))])),
        ]
    )
)


def _join(arrays: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate(arrays) if arrays else np.empty(0)


def _list_contributions(terms: Sequence[pa.Array], values: Sequence[np.ndarray], lengths: np.ndarray) -> pa.Array:
    """Build lists of (term, contribution) from the lists' joined terms and values."""
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    pairs = pa.StructArray.from_arrays(
        [
            pa.concat_arrays(terms) if terms else pa.array([], pa.string()),
            pa.array(_join(values), pa.float64()),
        ],
        ["term", "contribution"],
    )
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pairs)
