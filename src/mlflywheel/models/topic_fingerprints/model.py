"""`TopicFingerprints`: campaigns in, fingerprints, similar campaigns and recommended keywords out."""

import json
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import scipy.sparse as sp
from pydantic import BaseModel, ConfigDict, Field, field_validator

from mlflywheel.errors import ModelError
from mlflywheel.events import ProgressCallback, ignore_progress
from mlflywheel.models.contract import Column, Evaluation, Model, Settings
from mlflywheel.models.topic_fingerprints.lda import Lda, LdaParams
from mlflywheel.models.topic_fingerprints.naming import Topic, name_topics
from mlflywheel.models.topic_fingerprints.neighbours import (
    NeighbourIndex,
    Neighbours,
    embed_cosine,
    embed_hellinger,
)
from mlflywheel.models.topic_fingerprints.preparation import COLUMNS, PrepareConfig, prepare_campaigns
from mlflywheel.models.topic_fingerprints.recommendation import KeywordCatalogue, recommend
from mlflywheel.models.topic_fingerprints.rotated_lsa import RotatedLsa, RotatedLsaParams
from mlflywheel.models.topic_fingerprints.text import (
    Bags,
    Counts,
    TextOptions,
    Vocabulary,
    count_features,
    learn_vocabulary,
    read_bags,
)

if TYPE_CHECKING:
    from gensim.corpora import Dictionary

_TOPICS_SHOWN = 5
_PREDICT_BLOCK = 4096
_ATTRIBUTE_SKIP = ("campaign_id", "terms", "weights")


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
    def _refuse_hidden(cls, value: Any) -> Any:
        """Two places for one number would leave one of them without effect."""
        hidden = {"num_topics", "seed"} & set(value if isinstance(value, Mapping) else ())
        if hidden:
            raise ValueError(f"{', '.join(sorted(hidden))} must be set at the top level")
        return value


class CampaignRequest(BaseModel):
    """One campaign to score."""

    model_config = ConfigDict(extra="forbid")

    campaign_id: str = Field("", description="if it is one of the catalogue, it is not listed as its own neighbour")
    terms: list[str] = Field(max_length=200_000, description="keywords and search terms, as the advertiser wrote them")
    weights: list[float] | None = Field(None, description="one weight a term; 1 each if left out")


class TopicShare(BaseModel):
    """A topic and its share of a fingerprint."""

    id: int
    name: str
    weight: float


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
    def num_topics(self) -> int: ...  # noqa: D102
    def transform(self, counts: sp.csr_matrix) -> np.ndarray: ...  # noqa: D102
    def topic_term(self) -> np.ndarray: ...  # noqa: D102
    def term_topic(self) -> np.ndarray: ...  # noqa: D102
    def attribute(self, counts_row: sp.csr_matrix) -> tuple[np.ndarray, np.ndarray, np.ndarray]: ...  # noqa: D102
    def write(self, folder: Path) -> None: ...  # noqa: D102


class TopicFingerprints(Model):
    """Topics learned from campaigns, and the catalogue of campaigns that neighbours are looked up in.

    Args:
        params: The parameters of the fit.
        vocabulary: Features, in column order.
        topics: The fitted algorithm.
        named: Each topic's name and terms.
        center: Mean fingerprint of the training campaigns, float32 (topics,); similarity is measured from it.
        catalogue: `campaign_id`, `terms`, `weights` and attributes of the campaigns to look up, sorted by id.
        fingerprints: Their fingerprints, float32 (campaigns, topics).
        known: Whether the campaign has a known term, bool (campaigns,); without one it is nobody's neighbour.
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
    ) -> None:
        self.params = params
        self.vocabulary = vocabulary
        self.topics = topics
        self.named = named
        self.center = center
        self.catalogue = catalogue
        self.fingerprints = fingerprints
        self.known = known

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
        fit_params = FitParams.model_validate(params.model_dump(exclude_unset=True))
        table = table.sort_by("campaign_id").combine_chunks()
        progress("vocabulary", 0, 1)
        vocabulary, counts = learn_vocabulary(read_bags(table["terms"], table["weights"]), fit_params.text)
        progress("vocabulary", 1, 1)
        topics = fit_topics(counts.matrix, fit_params, progress)
        named = name_topics(vocabulary.words, topics.topic_term(), topics.term_topic())
        fingerprints = topics.transform(counts.matrix)
        known = np.diff(counts.matrix.indptr) > 0
        mean = fingerprints[known].mean(axis=0, dtype=np.float64).astype(np.float32)
        return cls(fit_params, vocabulary, topics, named, mean, table, fingerprints, known)

    @property
    def num_topics(self) -> int:
        """Number of topics really fitted: at most the parameter, fewer on a small corpus."""
        return self.topics.num_topics

    def count(self, table: pa.Table) -> tuple[Bags, Counts]:
        """Count the features of prepared campaigns."""
        bags = read_bags(table["terms"], table["weights"] if "weights" in table.column_names else None)
        return bags, count_features(bags, self.vocabulary, self.params.text)

    def embed(self, fingerprints: np.ndarray, known: np.ndarray) -> np.ndarray:
        """Return the unit vectors that similarity is measured between; zero where a campaign has no known term."""
        vectors = (
            embed_hellinger(fingerprints) if self.params.algorithm == "lda" else embed_cosine(fingerprints, self.center)
        )
        return np.where(known[:, None], vectors, np.float32(0.0))

    @cached_property
    def index(self) -> NeighbourIndex:
        """The search over the catalogue's campaigns that have a known term."""
        ids = np.asarray(self.catalogue["campaign_id"].to_pylist(), dtype=object)
        return NeighbourIndex(ids[self.known].tolist(), self.embed(self.fingerprints, self.known)[self.known])

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
            `campaign_id`; `fingerprint` fixed_size_list<float>; `topics` (id, name, weight), the largest first;
            `neighbours` (campaign_id, similarity), the nearest first; `recommended` (term, score, evidence);
            `unknown_share` float; `note`, null unless the answer is empty for a reason.
        """
        table = table.combine_chunks()
        blocks = []
        for start in range(0, max(1, table.num_rows), _PREDICT_BLOCK):
            progress("scoring", start, table.num_rows)
            blocks.append(self._predict_block(table.slice(start, _PREDICT_BLOCK)))
        progress("scoring", table.num_rows, table.num_rows)
        return pa.concat_tables(blocks).combine_chunks()

    def _predict_block(self, table: pa.Table) -> pa.Table:
        bags, counts = self.count(table)
        fingerprints = self.topics.transform(counts.matrix)
        known = np.diff(counts.matrix.indptr) > 0
        ids = table["campaign_id"].to_pylist()
        found = self.index.search(self.embed(fingerprints, known), self.params.neighbours, ids)
        recommended = recommend(
            self.keywords,
            [bags.terms.take(pa.array(row.indices)).to_pylist() for row in bags.matrix],
            found.positions,
            found.similarity,
            fingerprints,
            limit=self.params.recommendations,
        )
        empty = np.diff(bags.matrix.indptr) == 0
        notes = [
            "no terms" if none else None if some else "no known terms" for none, some in zip(empty, known, strict=True)
        ]
        return pa.table(
            {
                "campaign_id": pa.array(ids, pa.string()),
                "fingerprint": pa.FixedSizeListArray.from_arrays(pa.array(fingerprints.ravel()), self.num_topics),
                "topics": self._list_topics(fingerprints, known),
                "neighbours": self._list_neighbours(found),
                "recommended": pa.array(
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
                ),
                "unknown_share": pa.array(counts.unknown_share, pa.float32(), mask=np.isnan(counts.unknown_share)),
                "note": pa.array(notes, pa.string()),
            }
        )

    def _list_topics(self, fingerprints: np.ndarray, known: np.ndarray) -> pa.Array:
        """List each campaign's largest topics: at most five, and none below the even share but the first."""
        order = np.argsort(-fingerprints, axis=1, kind="stable")[:, :_TOPICS_SHOWN]
        shares = np.take_along_axis(fingerprints, order, axis=1)
        shown = (shares > 1.0 / self.num_topics) | (np.arange(order.shape[1]) == 0)
        shown &= known[:, None]
        offsets = np.concatenate([[0], np.cumsum(shown.sum(axis=1))])
        ids = order[shown]
        names = pc.take(pa.array([topic.name for topic in self.named]), pa.array(ids))
        values = pa.StructArray.from_arrays(
            [pa.array(ids, pa.int32()), names, pa.array(shares[shown], pa.float32())], ["id", "name", "weight"]
        )
        return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), values)

    def _list_neighbours(self, found: Neighbours) -> pa.Array:
        shown = found.positions >= 0
        offsets = np.concatenate([[0], np.cumsum(shown.sum(axis=1))])
        ids = pc.take(pa.array(self.index.ids, pa.string()), pa.array(found.positions[shown]))
        values = pa.StructArray.from_arrays([ids, pa.array(found.similarity[shown])], ["campaign_id", "similarity"])
        return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), values)

    def evaluate(self, table: pa.Table, progress: ProgressCallback = ignore_progress) -> Evaluation:
        """Measure topics, neighbours and recommendations on held-out campaigns; see `evaluation`."""
        from mlflywheel.models.topic_fingerprints.evaluation import evaluate_fingerprints

        return evaluate_fingerprints(self, table, progress)

    def explain(self, table: pa.Table) -> pa.Table:
        """Attribute every share of the fingerprints to the campaigns' terms.

        Returns:
            One row for each campaign and topic: `campaign_id`, `topic_id`, `topic`, `share`, `base` (what no term
            brings: the prior), and `terms`, a list of (term, contribution), largest first; base plus contributions is
            the share.
        """
        bags, counts = self.count(table)
        rows: list[dict[str, Any]] = []
        for position, campaign in enumerate(table["campaign_id"].to_pylist()):
            base, terms, contributions = self._attribute_to_terms(bags, counts, position)
            shares = base + contributions.sum(axis=0)
            for topic in self.named:
                order = np.argsort(-contributions[:, topic.id], kind="stable")
                rows.append(
                    {
                        "campaign_id": campaign,
                        "topic_id": topic.id,
                        "topic": topic.name,
                        "share": shares[topic.id],
                        "base": base[topic.id],
                        "terms": [
                            {"term": terms[term], "contribution": contributions[term, topic.id]}
                            for term in order
                            if contributions[term, topic.id] != 0
                        ],
                    }
                )
        return pa.Table.from_pylist(rows, schema=_EXPLANATION)

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
        if campaign_id not in self.index.ids:
            raise ModelError(
                f"campaign {campaign_id}",
                "not in the catalogue",
                "similarity is explained to a catalogue campaign",
                "take an id from a `neighbours` list",
            )
        other = self.index.vectors[self.index.ids.index(campaign_id)].astype(np.float64)
        bags, counts = self.count(table)
        rows = []
        for position, campaign in enumerate(table["campaign_id"].to_pylist()):
            base, terms, contributions = self._attribute_to_terms(bags, counts, position)
            base_part, parts = self._attribute_similarity(base, contributions, other)
            order = np.argsort(-parts, kind="stable")
            rows.append(
                {
                    "campaign_id": campaign,
                    "similarity": base_part + parts.sum(),
                    "base": base_part,
                    "terms": [{"term": terms[term], "contribution": parts[term]} for term in order],
                }
            )
        return pa.Table.from_pylist(rows, schema=_SIMILARITY)

    def _attribute_similarity(
        self, base: np.ndarray, contributions: np.ndarray, other: np.ndarray
    ) -> tuple[float, np.ndarray]:
        share = base + contributions.sum(axis=0)
        if not len(contributions):
            return 0.0, np.empty(0)
        if self.params.algorithm == "lda":
            # sqrt(share) other, divided among what makes up the share.
            factor = np.where(share > 0, np.sqrt(share) * other / np.where(share > 0, share, 1.0), 0.0)
            factor /= np.sqrt(share.sum())
            return float(base @ factor), contributions @ factor
        centred = share - self.center
        factor = other / max(float(np.sqrt((centred * centred).sum())), 1e-12)
        return float((base - self.center) @ factor), contributions @ factor

    def _attribute_to_terms(
        self, bags: Bags, counts: Counts, position: int
    ) -> tuple[np.ndarray, list[str], np.ndarray]:
        """Divide each feature's contribution among the campaign's terms that bring it, by how much of it they bring."""
        features, contributions, base = self.topics.attribute(counts.matrix[position])
        row = bags.matrix[position]
        brought = sp.diags(row.data.astype(np.float64)) @ counts.term_features[row.indices][:, features]
        total = np.asarray(brought.sum(axis=0)).ravel()
        share = sp.csr_matrix(brought) @ sp.diags(1.0 / np.where(total > 0, total, 1.0))
        return base, bags.terms.take(pa.array(row.indices)).to_pylist(), np.asarray(share @ contributions)

    def extend(self, table: pa.Table, progress: ProgressCallback = ignore_progress) -> Self:
        """Return the same topics over a catalogue that also holds these campaigns; an id that it holds is replaced."""
        table = table.select([name for name in table.column_names if name in self.catalogue.column_names])
        kept = pc.invert(pc.is_in(self.catalogue["campaign_id"], value_set=table["campaign_id"].combine_chunks()))
        joined = pa.concat_tables([self.catalogue.filter(kept), table], promote_options="permissive")
        joined = joined.sort_by("campaign_id").combine_chunks()
        progress("catalogue", 0, 1)
        _, counts = self.count(joined)
        fingerprints = self.topics.transform(counts.matrix)
        progress("catalogue", 1, 1)
        known = np.diff(counts.matrix.indptr) > 0
        return type(self)(
            self.params, self.vocabulary, self.topics, self.named, self.center, joined, fingerprints, known
        )

    def describe(self) -> dict[str, str | int | float | bool]:
        """Return the algorithm and the sizes."""
        return {
            "algorithm": self.params.algorithm,
            "num_topics": self.num_topics,
            "vocabulary_terms": len(self.vocabulary),
            "catalogue_campaigns": self.catalogue.num_rows,
            "seed": self.params.seed,
        }

    @classmethod
    def example_request(cls) -> dict[str, Any]:
        """Return a small campaign."""
        return {"campaign_id": "example", "terms": ["emergency plumber", "water heater repair", "drain cleaning"]}

    @classmethod
    def to_table(cls, instances: Sequence[BaseModel]) -> pa.Table:
        """Turn requests into prepared campaigns."""
        requests = [CampaignRequest.model_validate(instance.model_dump()) for instance in instances]
        return pa.table(
            {
                "campaign_id": pa.array([request.campaign_id for request in requests], pa.string()),
                "terms": pa.array([request.terms for request in requests], pa.list_(pa.string())),
                "weights": pa.array(
                    [request.weights or [1.0] * len(request.terms) for request in requests], pa.list_(pa.float32())
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
            "params": self.params.model_dump(mode="json", exclude_unset=True),
            "topics": [
                {"id": topic.id, "name": topic.name, "terms": topic.terms, "weights": topic.weights}
                for topic in self.named
            ],
        }
        (folder / "model.json").write_text(json.dumps(description, indent=1) + "\n", encoding="utf-8")
        pq.write_table(pa.table({"feature": self.vocabulary.features}), folder / "vocabulary.parquet")
        pq.write_table(self.catalogue, folder / "catalogue.parquet")
        np.save(folder / "fingerprints.npy", self.fingerprints, allow_pickle=False)
        np.save(folder / "known.npy", self.known, allow_pickle=False)
        np.save(folder / "center.npy", self.center, allow_pickle=False)
        (folder / "topics").mkdir()
        self.topics.write(folder / "topics")

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read what `write` wrote."""
        description = json.loads((folder / "model.json").read_text(encoding="utf-8"))
        params = FitParams.parse(description["params"], str(folder / "model.json"))
        algorithms: dict[str, Callable[[Path], Topics]] = {"rotated-lsa": RotatedLsa.read, "lda": Lda.read}
        return cls(
            params,
            Vocabulary(pq.read_table(folder / "vocabulary.parquet")["feature"].combine_chunks()),
            algorithms[params.algorithm](folder / "topics"),
            tuple(Topic(t["id"], t["name"], tuple(t["terms"]), tuple(t["weights"])) for t in description["topics"]),
            np.load(folder / "center.npy", allow_pickle=False),
            pq.read_table(folder / "catalogue.parquet").combine_chunks(),
            np.load(folder / "fingerprints.npy", allow_pickle=False),
            np.load(folder / "known.npy", allow_pickle=False),
        )

    @property
    def attributes(self) -> list[str]:
        """Names of the catalogue's attribute columns."""
        return [name for name in self.catalogue.column_names if name not in _ATTRIBUTE_SKIP]


def fit_topics(
    counts: sp.csr_matrix, params: FitParams, progress: ProgressCallback = ignore_progress
) -> "RotatedLsa | Lda":
    """Fit the algorithm that the parameters name."""
    own = {"num_topics": params.num_topics, "seed": params.seed}
    if params.algorithm == "lda":
        return Lda.fit(counts, params.lda.model_copy(update=own), progress)
    return RotatedLsa.fit(counts, params.rotated_lsa.model_copy(update=own), progress)


_RECOMMENDED = pa.list_(
    pa.struct(
        [
            ("term", pa.string()),
            ("score", pa.float32()),
            ("evidence", pa.struct([("neighbours", pa.list_(pa.string())), ("topics", pa.list_(pa.int32()))])),
        ]
    )
)
_CONTRIBUTIONS = pa.list_(pa.struct([("term", pa.string()), ("contribution", pa.float64())]))
_EXPLANATION = pa.schema(
    [
        ("campaign_id", pa.string()),
        ("topic_id", pa.int32()),
        ("topic", pa.string()),
        ("share", pa.float64()),
        ("base", pa.float64()),
        ("terms", _CONTRIBUTIONS),
    ]
)
_SIMILARITY = pa.schema(
    [("campaign_id", pa.string()), ("similarity", pa.float64()), ("base", pa.float64()), ("terms", _CONTRIBUTIONS)]
)
