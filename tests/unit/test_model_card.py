"""The model card: it says what is recorded, names what is missing, and no text of the data becomes markup."""

import json
from collections.abc import Callable, Mapping
from copy import deepcopy
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from markdown_it import MarkdownIt

from mlflywheel.evaluation.contract import describe_contract
from mlflywheel.evaluation.plan import read_plan
from mlflywheel.models.contract import Measurement, load_model_class
from mlflywheel.registry.records import ModelVersion, State, Transition
from mlflywheel.reports.card import list_brief, list_objections, render_card, render_card_html, write_card
from mlflywheel.reports.card_parts import build_parts

AT = datetime(2026, 11, 21, 12, 30, tzinfo=UTC)
PLAN = read_plan("schema: 1\nslices: {columns: [fuel]}\nfairness: {groups: [region, {age: [5, 10]}]}")
# Order of Mitchell et al. 2019, section 4; then what they do not have.
TITLES = [
    "In brief", "Model details", "Intended use", "Factors", "Metrics and gates", "Evaluation data", "Training data",
    "Quantitative analyses", "Ethical considerations", "Caveats and recommendations", "Reproducibility", "Sign-off",
    "Contract with callers",
]  # fmt: skip


def make_version(**changes: Any) -> ModelVersion:
    values: dict[str, Any] = {
        "name": "prices", "key": "run-7", "uri": "s3://models/prices/2", "format_name": "vehicle-price",
        "format_version": "1", "hash": "sha256:1", "version": "2", "state": State.APPROVED, "created_at": AT,
        "metrics": {"mape": 0.081},
    }  # fmt: skip
    return ModelVersion(**values | changes)


HISTORY = (
    Transition(from_state=None, to_state=State.CANDIDATE, at=AT, by="pipeline"),
    Transition(from_state=State.CANDIDATE, to_state=State.APPROVED, at=AT, by="ann@desk", reason="gates hold"),
)


def measure(metric: str, value: float | None, slice: str = "all", about: Any = "model", **more: Any) -> dict[str, Any]:
    return dict(vars(Measurement(metric, value, slice, about=about, **{"count": 900, **more})))


def gate(metric: str, holds: bool | None, slice: str = "all", **more: Any) -> dict[str, Any]:
    given = {"metric": metric, "slice": slice, "value": 0.081, "relation": "<=", "limit": 0.1, "holds": holds}
    return given | {"judged": None, "count": 900, "reason": f"reason of {metric}"} | more


@pytest.fixture
def dossier() -> dict[str, Any]:
    model = load_model_class("vehicle-price")
    measurements = [
        measure("mape", 0.081, low=0.078, high=0.085),
        measure("reference_ridge_mape", 0.112),
        measure("median_bias", None, note="no rows with a price"),
        measure("absolute_relative_error", 0.08, about="slices"),
        measure("absolute_relative_error", 0.164, "fuel=Electric", "slices", low=0.15, high=0.18),
        measure("absolute_relative_error", 0.079, "fuel=Diesel", "slices", low=0.07, high=0.09),
        measure("slice_effect_absolute_relative_error", 0.083, "fuel=Electric", "slices", low=0.05, high=0.11),
        measure("selection_rate_gap", 0.12, "between=region", "groups", low=0.05, high=0.2, note="north and south"),
        measure("equal_opportunity_gap", 0.03, "between=region", "groups", low=-0.05, high=0.1),
        measure("champion_loss_absolute_relative_error", -0.002, about="champion", low=-0.005, high=0.001),
        measure("feature_importance", 0.21, "feature=year", "explanations", low=0.2, high=0.22),
        measure("feature_importance", 0.4, "feature=power_hp", "explanations", low=0.3, high=0.5),
        measure("breaking_contract_changes", 0.0, about="contract"),
    ]
    gates = [
        gate("mape", True),
        gate("median_bias", None, value=None),
        gate("selection_rate_gap", True, "between=region"),
        gate("absolute_relative_error", True, "fuel=Electric", value=0.164, limit=0.2),
    ]
    return {
        "schema": 1,
        "run": {"id": "run-7", "pipeline": "prices", "pipeline_spec": "sha256:5", "trigger": "scheduled"},
        "model": {
            "name": "prices", "class": "mlflywheel.models.vehicle_price.model:VehiclePrice", "facts": {"trees": 400},
            "format": {"name": "vehicle-price", "version": "1"}, "hash": "sha256:1",
            "contract": describe_contract(model),
        },
        "data": {
            "uri": "s3://user:secret@bucket/listings.parquet", "version": "sha256:2", "columns": {}, "prepare": {},
            "rows": {"rows": 10500, "prepared": 10000},
            "split": {"method": "grouped", "column": "seller", "seed": 3, "holdout_fraction": 0.2},
            "validation": {"status": "passed", "expectations": 12, "passed": 11,
                           "failed": [{"name": "price_is_positive", "severity": "warning"}], "skipped": []},
        },
        "training": {"params": {"trees": 400}, "settings": {"trees": 400, "intervals": {"coverage": 0.9}},
                     "search": None},
        "evaluation": {"plan": PLAN.model_dump(mode="json"), "champion": "prices@1", "measurements": measurements,
                       "gates": gates},
        "reproducibility": {"code": {"commit": "a07e", "dirty": True, "version": "0.1.0"}, "packages": {"numpy": "2"},
                            "lock_hash": "sha256:3", "python": "3.12.1", "unknown": {"image": "not in a container"},
                            "hardware": {"cpu": "Some CPU", "cores": 2}, "seeds": {"split": 3}},
    }  # fmt: skip


class Reader(HTMLParser):
    """Collects the elements, the text of tables, and what refers to anything outside."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.open: list[str] = []
        self.text: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes.extend(attrs)

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def read_markdown(text: str) -> str:
    return MarkdownIt("commonmark", {"html": True, "linkify": False}).enable("table").render(text)


def part_of(card: str, title: str) -> str:
    return card.split(f"\n## {title}\n")[1].split("\n## ")[0]


def test_the_parts_stand_in_the_order_of_model_cards(dossier: dict[str, Any]) -> None:
    card = render_card(make_version(), dossier, HISTORY)
    assert [line[3:] for line in card.splitlines() if line.startswith("## ")] == TITLES
    assert [part.title for part in build_parts(make_version(), None, HISTORY)] == TITLES
    assert card.startswith("# prices@2: model card\n")


def test_every_part_says_what_is_recorded(dossier: dict[str, Any]) -> None:
    card = render_card(make_version(description="For the pricing desk."), dossier, HISTORY)
    said = {
        "In brief": ("prices@2 is approved", "Decided by ann@desk on 2026-11-21: gates hold."),
        "Model details": ("on a schedule", "`mlflywheel.models.vehicle_price.model:VehiclePrice`", "| Trees | `400` |"),
        "Intended use": ("Prices of vehicles by boosted trees", "For the pricing desk.", "mileage_km"),
        "Factors": ("region; age in bands that end at 5, 10", "fewer than 50 rows", "measured: fuel."),
        "Metrics and gates": ("3 of 4 gates held, and 1 had nothing to judge", "reason of median_bias"),
        "Evaluation data": ("20 % of them: a grouped split by seller with seed 3",),
        "Training data": ("`s3://bucket/listings.parquet`", "11 of 12 expectations hold", "price_is_positive (warning)",
                          "| intervals.coverage | `0.9` |", "No search for parameters was made."),
        "Quantitative analyses": ("ridge 0.112", "0.078 to 0.085", "fuel=Electric", "north and south",
                                  "Against prices@1"),
        "Ethical considerations": ("gates judge: selection_rate_gap (between=region)", "Kleinberg et al. 2016"),
        "Caveats and recommendations": ("Gate skipped: median_bias", "no rows with a price",
                                        "changes that were not committed, on top of a07e", "mlflywheel testscore"),
        "Reproducibility": ("`a07e`", "`sha256:3`", "mlflywheel rebuild prices@2", "image (not in a container)"),
        "Sign-off": ("| 2026-11-21 12:30 | approved | ann@desk | gates hold |",),
        "Contract with callers": ("`mileage_km`", "number or null", "list of Driver", '"make": "Volkswagen"'),
    }  # fmt: skip
    assert list(said) == TITLES
    for title, texts in said.items():
        for text in texts:
            assert text in part_of(card, title), title
    assert "secret" not in card


def test_the_weakest_slice_and_the_strongest_feature_come_first(dossier: dict[str, Any]) -> None:
    analyses = part_of(render_card(make_version(), dossier, HISTORY), "Quantitative analyses")
    declared = analyses.split("Slices on the worse side")[1].split("###")[0]
    assert "fuel=Electric" in declared
    # The gate says that less is better, so the better slice is not among the weak ones.
    assert "fuel=Diesel" not in declared
    features = analyses.split("### What it goes by")[1]
    assert features.index("power_hp") < features.index("year")


def test_slices_that_are_not_shown_to_be_worse_are_not_said_to_be(dossier: dict[str, Any]) -> None:
    for one in dossier["evaluation"]["measurements"]:
        if one["metric"].startswith("slice_effect_"):
            one["low"] = -0.01
    analyses = part_of(render_card(make_version(), dossier, HISTORY), "Quantitative analyses")
    assert "showed no slice to be worse than the rest" in analyses
    assert not any("It is worse where" in text for text in list_objections(make_version(), dossier))


def test_slices_of_a_metric_without_a_worse_side_or_with_few_rows_are_not_ranked(dossier: dict[str, Any]) -> None:
    gates, measured = dossier["evaluation"]["gates"], dossier["evaluation"]["measurements"]
    measured.append(measure("absolute_relative_error", 0.9, "fuel=Gas", "slices", count=12))
    assert "fuel=Gas" not in part_of(render_card(make_version(), dossier, HISTORY), "Quantitative analyses")
    gates.append(gate("absolute_relative_error", True, "fuel=Electric", relation=">="))
    assert "by metrics that a gate judges" not in render_card(make_version(), dossier, HISTORY)


def test_only_a_criterion_with_a_gate_is_said_to_decide(dossier: dict[str, Any]) -> None:
    groups = part_of(render_card(make_version(), dossier, HISTORY), "Quantitative analyses").split("### Between groups")
    rows = {
        line.split("|")[2].strip(): line.split("|")[5].strip() for line in groups[1].splitlines() if "region" in line
    }
    assert rows == {"`selection_rate_gap`": "yes", "`equal_opportunity_gap`": "no"}
    dossier["evaluation"]["gates"] = [gate("mape", True)]
    ethics = part_of(render_card(make_version(), dossier, HISTORY), "Ethical considerations")
    assert "measured, and no gate judges them" in ethics


def test_a_version_without_a_dossier_says_what_is_missing_and_how_to_get_it() -> None:
    version = make_version(state=State.CANDIDATE, lineage={})
    card = render_card(version, None, HISTORY[:1])
    for title in ("Evaluation data", "Training data", "Reproducibility", "Contract with callers"):
        assert "> **Missing.**" in part_of(card, title)
        assert "run the pipeline again" in part_of(card, title)
    assert '`mlflywheel models approve prices@2 --reason "..."`' in part_of(card, "Sign-off")
    # What the registry itself knows is there.
    assert "| `mape` | 0.081 |" in card
    assert list_brief(None) == []
    assert list_objections(version, None) == (
        "prices@2 has no dossier: how it was evaluated and made is not recorded.",
    )


def test_what_stands_against_a_version_is_listed_refused_gates_first(dossier: dict[str, Any]) -> None:
    found = list_objections(make_version(), dossier)
    assert [text.split(";")[0] for text in found[:2]] == [
        "Gate skipped: median_bias",
        "It is worse where fuel=Electric: absolute_relative_error by 0.083 (0.050 to 0.110), 900 rows.",
    ]
    dossier["evaluation"]["gates"] += [gate("bias", None, "fuel=A"), gate("bias", None, "fuel=B")]
    assert "2 gates skipped: bias on fuel=A, fuel=B." in list_objections(make_version(), dossier)
    dossier["evaluation"]["gates"].append(gate("mape", False, "fuel=Gas"))
    assert list_objections(make_version(), dossier)[0].startswith("Gate refused: mape on fuel=Gas; ")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda d: d["evaluation"].update(gates=[]), "No gate judged it."),
        (lambda d: d["evaluation"].update(champion=None), "It was compared with no version in use."),
        (lambda d: d["data"].update(validation=None), "Its data was not validated."),
        (lambda d: d["evaluation"].update(measurements=[]), "Groups were not compared."),
        (lambda d: d["reproducibility"]["unknown"].update(commit="no git"), "Not known for a rebuild: commit, no git."),
        (
            lambda d: d["evaluation"]["measurements"].append(
                measure("breaking_contract_changes", 2.0, "x=y", "contract", note="request/age is gone")
            ),
            "It breaks 2 parts of the contract with callers: request/age is gone.",
        ),
        (
            lambda d: d["evaluation"]["measurements"].append(
                measure("selection_rate_gap_rise", 0.1, "between=region", "groups", low=0.02, high=0.2)
            ),
            "A gap has grown against the version in use: selection_rate_gap_rise by region, 0.100 (0.020 to 0.200).",
        ),
    ],
)
def test_an_objection_appears_with_its_cause(
    dossier: dict[str, Any], change: Callable[[dict[str, Any]], None], told: str
) -> None:
    assert told not in list_objections(make_version(), dossier)
    change(dossier)
    assert told in list_objections(make_version(), dossier)


def test_a_test_score_is_shown_with_what_it_lacks(dossier: dict[str, Any]) -> None:
    testscore = {
        "score": 1.5, "sections": {"data": 1.5, "model": 4.0},
        "tests": [{"id": "D1", "title": "Feature expectations", "points": 1.0, "missing": ""},
                  {"id": "D5", "title": "Privacy", "points": 0.0, "missing": "record a review"}],
    }  # fmt: skip
    card = render_card(make_version(), dossier, HISTORY, testscore)
    assert "ML Test Score: 1.50, the lowest of its four sections (data 1.5, model 4)" in card
    caveats = part_of(card, "Caveats and recommendations")
    assert "- D5, Privacy: record a review." in caveats
    assert "D1" not in caveats
    assert "mlflywheel testscore" not in card


def test_the_same_input_gives_the_same_card(dossier: dict[str, Any], tmp_path: Path) -> None:
    for folder in ("a", "b"):
        write_card(tmp_path / folder / "card.md", tmp_path / folder / "card.html", make_version(), dossier, HISTORY)
    for name, render in (("card.md", render_card), ("card.html", render_card_html)):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
        assert (tmp_path / "a" / name).read_text("utf-8") == render(make_version(), dossier, HISTORY)
    # As read back from the registry's storage.
    assert render_card(make_version(), json.loads(json.dumps(dossier)), HISTORY) == render_card(
        make_version(), dossier, HISTORY
    )


def test_classes_of_nowhere_are_not_imported(dossier: dict[str, Any]) -> None:
    for name in ("antigravity:Anything", "mlflywheel.models.nowhere:Model", "mlflywheel.models.contract:MANIFEST", ""):
        dossier["model"]["class"] = name
        use = part_of(render_card(make_version(), dossier, HISTORY), "Intended use")
        assert "What the model is for is not known here" in use


# No text of the data becomes markup.

EVIL = (
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "](javascript:alert(1)) [x](javascript:alert(1))",
    "![x](https://evil.example/x.png)",
    "<https://evil.example>",
    "a | b | c",
    "`</code><script>alert(1)</script>`",
    "``` \n# heading\n- item\n| x |\n---\n> quote",
    "*bold* __bold__ ~~gone~~ &lt;b&gt; \\*",
    "</td></tr></table></section></style><b>",
    "tail\\",
    "\x00\x1b[31m\u202e",
)


def poison(value: Any, evil: str) -> Any:
    """Put a text into every text of a document but the few that choose what is drawn."""
    if isinstance(value, Mapping):
        kept = {"about", "relation", "trigger", "class", "type", "$ref"}
        return {
            (f"{name}{evil}" if name in ("trees", "mileage_km", "rows") else name): (
                one if name in kept else f"feature={evil}" if one == "feature=year" else poison(one, evil)
            )
            for name, one in value.items()
        }
    if isinstance(value, list):
        return [poison(one, evil) for one in value]
    return f"{value} {evil}" if isinstance(value, str) else value


def keep_between(dossier: dict[str, Any], evil: str) -> dict[str, Any]:
    poisoned = poison(deepcopy(dossier), evil)
    assert isinstance(poisoned, dict)
    return poisoned


@pytest.mark.parametrize("evil", EVIL)
def test_no_text_of_the_data_becomes_markup(dossier: dict[str, Any], evil: str) -> None:
    version = make_version(
        description=evil, uri=f"s3://b/{evil}", key=evil, hash=evil, format_name=evil, version=f"2{evil}"
    )
    history = (*HISTORY, Transition(from_state=State.APPROVED, to_state=State.LIVE, at=AT, by=evil, reason=evil))
    clean, poisoned = dossier, keep_between(dossier, evil)
    pages = [render_card_html(make_version(), clean, HISTORY), render_card_html(version, poisoned, history)]
    before, after = (Reader(page) for page in pages)
    assert set(after.tags) == set(before.tags)
    allowed = ("script", "img", "iframe", "object", "form", "base", "link")
    assert not [tag for tag in after.tags if tag in allowed]
    assert not [name for name, _ in after.attributes if name.startswith("on")]
    assert all((value or "").startswith("#") for name, value in after.attributes if name in ("href", "src"))
    pages[1].encode("utf-8")

    before, after = (
        Reader(read_markdown(card))
        for card in (render_card(make_version(), clean, HISTORY), render_card(version, poisoned, history))
    )
    assert set(after.tags) <= set(before.tags)
    assert "a" not in after.tags
    assert after.tags.count("h1") == 1
    assert after.tags.count("h2") == before.tags.count("h2")
    # Every row of a table has as many cells as its headings: nothing opened another one. Readers cut and fill rows.
    width = 0
    for line in render_card(version, poisoned, history).splitlines():
        pipes = line.count("|") if line.startswith("|") else 0
        assert width in (0, pipes) or not pipes, line
        width = pipes


def test_what_is_escaped_is_still_read_as_it_was(dossier: dict[str, Any]) -> None:
    text = "a < b | *c* [d](e) `f` _g_ #1 1. h_i http://j"
    drawn = "".join(Reader(read_markdown(render_card(make_version(description=text), dossier, HISTORY))).text)
    assert f"At its registration: {text}" in drawn
    page = "".join(Reader(render_card_html(make_version(description=text), dossier, HISTORY)).text)
    assert f"At its registration: {text}" in page


def test_the_page_has_no_script_and_may_ask_nothing(dossier: dict[str, Any]) -> None:
    page = render_card_html(make_version(), dossier, HISTORY)
    (policy,) = [value for name, value in Reader(page).attributes if name == "content" and "-src" in str(value)]
    assert policy == "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
    assert "<script" not in page
    assert "@media print" in page
