"""The report is judged by what a browser would read: facts in the parsed page, never by its exact text."""

import base64
import hashlib
import itertools
import json
import math
import random
import re
from html.parser import HTMLParser
from typing import Any

import pytest

from mlflywheel.models.contract import Evaluation, Measurement, Section
from mlflywheel.reports import Report, render_report
from mlflywheel.reports.formats import NOTHING, format_pair
from mlflywheel.reports.scatter import LAYOUTS, Circle, place_labels

VOID = {"meta", "br", "wbr"}
HOSTILE = '</script><script>alert(1)</script><img src=x onerror="alert(2)">\'&\u2028\x00\ud800'


class Element:
    """A parsed element: name, attributes, children, and the text of everything below it."""

    def __init__(self, name: str, attributes: dict[str, str | None], parent: "Element | None") -> None:
        self.name, self.attributes, self.parent = name, attributes, parent
        self.children: list[Element | str] = []

    @property
    def text(self) -> str:
        return "".join(child if isinstance(child, str) else child.text for child in self.children)

    @property
    def classes(self) -> set[str]:
        return set((self.attributes.get("class") or "").split())

    def all(self, name: str | None = None, class_: str | None = None) -> list["Element"]:
        found = []
        for child in self.children:
            if isinstance(child, Element):
                if (name is None or child.name == name) and (class_ is None or class_ in child.classes):
                    found.append(child)
                found.extend(child.all(name, class_))
        return found

    def one(self, name: str | None = None, class_: str | None = None) -> "Element":
        found = self.all(name, class_)
        assert len(found) == 1, f"{len(found)} elements {name} {class_}"
        return found[0]


class Page(HTMLParser):
    """A strict reading of the page: an element that is closed out of order is an error."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.root = self.current = Element("page", {}, None)
        self.feed(text)
        self.close()
        assert self.current is self.root, f"<{self.current.name}> is never closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = Element(tag, dict(attrs), self.current)
        self.current.children.append(element)
        if tag not in VOID:
            self.current = element

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.current.children.append(Element(tag, dict(attrs), self.current))

    def handle_endtag(self, tag: str) -> None:
        assert self.current.name == tag, f"</{tag}> closes <{self.current.name}>"
        assert self.current.parent is not None
        self.current = self.current.parent

    def handle_data(self, data: str) -> None:
        self.current.children.append(data)


def read(report: Report) -> Element:
    return Page(render_report(report)).root


def part(page: Element, title: str) -> Element:
    return next(s for s in page.all("section") if s.one("h2").text == title)


def rows(element: Element) -> list[list[str]]:
    return [[cell.text for cell in row.children if isinstance(cell, Element)] for row in element.one("tbody").all("tr")]


def summarize(**changes: Any) -> dict[str, Any]:
    summary: dict[str, Any] = {
        "schema": 1,
        "pipeline": "ad-campaigns",
        "run_id": "20261121-0418",
        "status": "succeeded",
        "error": None,
        "data": {"uri": "terms.csv", "version": "sha256:" + "ab12" * 16, "rows": 143120, "entities": 3185},
        "parameters": {"params": '{"seed": 41, "topics": 50}', "held_out_share": 0.2},
        "metrics": {"neighbour_purity_at_10": 0.9123},
        "gates": [],
        "model": {"name": "ad-campaigns", "version": "3", "uri": "registry/3"},
        "artifacts": {"report": "report.html", "scores": "out/scores 1.parquet"},
        "seconds": {"training": 1.2},
    }
    return summary | changes


def evaluate(*sections: Section, measurements: tuple[Measurement, ...] = ()) -> Evaluation:
    return Evaluation(
        measurements or (Measurement("neighbour_purity_at_10", 0.9123, "all", 637, 0.905, 0.919),), sections
    )


def draw(kind: Any, data: dict[str, Any]) -> Element:
    page = read(Report("A run", summarize(), evaluate(Section(kind, "The section", "How to read it.", data))))
    return part(page, "The section")


def make_map(dots: int = 40, bubbles: int = 12, seed: int = 0) -> dict[str, Any]:
    rng = random.Random(seed)
    groups = ["health", "retail", "travel"]
    return {
        "dots": [
            {
                "x": rng.gauss(0, 1),
                "y": rng.gauss(0, 1),
                "group": groups[i % 3],
                "label": f"campaign {i} of a seller of things",
            }
            for i in range(dots)
        ],
        "bubbles": [
            {
                "x": rng.gauss(0, 1),
                "y": rng.gauss(0, 1),
                "size": 1 + i,
                "label": f"topic {i}, words",
                "group": groups[i % 3],
                "detail": [f"term {i}"],
            }
            for i in range(bubbles)
        ],
        "groups": groups,
        "dot_noun": "campaign",
        "bubble_noun": "topic",
    }


ERROR = {
    "where": "terms.csv",
    "seen": "no column term",
    "needed": "a column term is needed",
    "fix": "name it with --map term=keyword",
    "message": "terms.csv: no column term; a column term is needed. Fix: name it with --map term=keyword.",
}
GATES = [
    {"metric": "topic_npmi", "slice": "all", "value": 0.5, "limit": 0.05, "holds": True},
    {
        "metric": "unknown_share",
        "slice": "vertical=Legal",
        "value": 0.10004,
        "limit": 0.1,
        "holds": False,
        "relation": "<=",
        "reason": "18 campaigns",
    },
]


def full_report() -> Report:
    sections = (
        Section("scatter", "Map", "Text.", make_map()),
        Section("table", "Topics", "Text.", {"columns": [{"name": "Topic", "kind": "text"}], "rows": [["a"], ["b"]]}),
        Section("bars", "Methods", "Text.", {"bars": [{"label": "ours", "value": 0.9}], "reference": {"value": 0.8}}),
        Section("cards", "Examples", "Text.", {"cards": [{"title": "One", "blocks": [{"heading": "H", "items": []}]}]}),
        Section("text", "Words", "Text.", {"paragraphs": ["One.", "Two."]}),
    )
    measurements = (
        Measurement("purity", 0.91, "all", 637, 0.9, 0.92),
        Measurement("purity", 0.8, "vertical=Legal", 18, 0.7, 0.9),
    )
    rule: dict[str, Any] = {
        "name": "r",
        "table": "t",
        "severity": "error",
        "status": "passed",
        "description": "",
        "observed": None,
        "unexpected_count": 0,
        "count": 9,
        "examples": [],
        "reason": "",
    }
    steps: list[dict[str, Any]] = [{"name": "training", "status": "succeeded", "seconds": 1.5, "error": None}]
    return Report("A run", summarize(gates=GATES), Evaluation(measurements, sections), {"rules": [rule]}, steps)


def test_run_that_failed_first_shows_its_fix_before_everything_else() -> None:
    summary = {
        "schema": 1,
        "pipeline": "ad-campaigns",
        "run_id": "r1",
        "status": "failed",
        "error": ERROR,
        "data": {},
        "parameters": {},
        "metrics": {},
        "gates": [],
        "model": None,
        "artifacts": {},
        "seconds": {},
    }
    steps: list[dict[str, Any]] = [
        {"name": "ingestion", "status": "failed", "seconds": 0.3, "error": ERROR},
        {"name": "validation", "status": "skipped", "seconds": None, "error": None},
    ]
    page = read(Report("A run", summary, steps=steps))
    main = page.one("main")
    blocks = [child for child in main.children if isinstance(child, Element)]
    assert [blocks[0].name, blocks[1].classes] == ["header", {"failure"}]
    assert blocks[1].one("h2").text == "Step ingestion failed"
    assert ERROR["fix"] in blocks[1].one(class_="fix").text
    assert all(ERROR[key] in blocks[1].text for key in ("where", "seen", "needed"))
    assert blocks[0].one(class_="badge").text == "✕Failed"
    assert [section.one("h2").text for section in page.all("section")] == ["Steps", "Reproducibility"]
    assert "Skipped" in part(page, "Steps").text


def test_run_without_anything_still_has_a_page() -> None:
    page = read(Report("A run", {"status": "failed"}))
    assert page.one("h1").text == "A run"
    assert "No error was recorded" in page.one(class_="failure").text


def test_error_that_is_no_mapping_is_shown_as_its_message() -> None:
    page = read(Report("A run", summarize(status="failed", error="killed by signal 9")))
    assert "killed by signal 9" in page.one(class_="failure").text


def test_gate_refusal_names_the_gate_with_enough_digits() -> None:
    page = read(Report("A run", summarize(status="gate_refused", gates=GATES, model=None), evaluate()))
    assert page.one("header").one(class_="badge").text == "✕Gate refused"
    assert "unknown_share for vertical=Legal is 0.10004; ≤ 0.10000 is needed" in page.one(class_="failure").text
    assert "No model version was registered" in page.one(class_="failure").text


def test_success_has_no_alarm() -> None:
    page = read(full_report())
    assert page.one("header").one(class_="badge").text == "✓Succeeded"
    assert page.all(class_="failure") == []


def test_header_shows_model_data_version_time_and_the_seed_inside_json_parameters() -> None:
    header = read(full_report()).one("header")
    facts = {div.one("dt").text: div.one("dd") for div in header.one("dl").all("div")}
    assert facts["Model"].text == "ad-campaigns@3"
    assert facts["Data version"].one("code").attributes["data-copy"] == "sha256:" + "ab12" * 16
    assert facts["Data version"].text == "sha256:ab12ab12ab12…"
    assert facts["Data"].text == "3,185 entities, 143,120 rows"
    assert facts["Run time"].text == "1.50\N{NO-BREAK SPACE}s"
    assert facts["Seed"].text == "41"


def test_gates_put_the_refused_first() -> None:
    section = part(read(full_report()), "Gates")
    assert [row[0] for row in rows(section)] == ["unknown_share18 campaigns", "topic_npmi"]
    assert rows(section)[0][2:4] == ["0.10004", "≤ 0.10000"]
    assert ["bad" in row.classes for row in section.one("tbody").all("tr")] == [True, False]
    assert "1 of 2 gates refused" in section.text


def test_value_and_limit_are_told_apart() -> None:
    assert format_pair(0.8499999, 0.85) == ("0.8499999", "0.8500000")
    assert format_pair(0.85, 0.85) == ("0.850", "0.850")
    assert format_pair(0.5, 0.05) == ("0.500", "0.050")


def test_reference_stands_beside_its_metric_and_not_alone() -> None:
    found = (
        Measurement("purity", 0.91, "all", 10),
        Measurement("reference_purity", 0.87, "all", 10),
        Measurement("reference_lda_purity", 0.77, "all", 10),
        Measurement("npmi", None, "all", 0, note="no topics"),
    )
    tiles = part(read(Report("A run", summarize(), Evaluation(found))), "Headline metrics").all("li", "tile")
    assert [tile.one("h3").text for tile in tiles] == ["Purity", "NPMI"]
    compared = [p.text for p in tiles[0].all("p", "compared")]
    assert compared == ["Reference0.870+0.040", "Reference LDA0.770+0.140"]
    assert tiles[1].one("strong").text == NOTHING
    assert "no topics" in tiles[1].text


def test_metrics_come_from_the_summary_when_nothing_was_evaluated() -> None:
    tiles = part(read(Report("A run", summarize())), "Headline metrics").all("li", "tile")
    assert [(tile.one("h3").text, tile.one("strong").text) for tile in tiles] == [("Neighbour purity at 10", "0.912")]


def test_slices_are_grouped_by_column_and_ordered_by_size() -> None:
    found = (
        Measurement("purity", 0.9, "all", 60),
        Measurement("purity", 0.8, "vertical=Legal", 10, 0.7, 0.9),
        Measurement("purity", 0.95, "vertical=Sales", 50, 0.9, 0.99),
        Measurement("recall", None, "vertical=Legal", 10, note="too few"),
        Measurement("purity", 0.7, "size=small", 9),
    )
    section = part(read(Report("A run", summarize(), Evaluation(found))), "Metrics by slice")
    assert [h.text for h in section.all("h3")] == ["By vertical", "By size"]
    body = next(t for t in section.all("table") if t.one("caption").text == "Metrics by vertical")
    cells = rows(body)
    assert [row[:2] for row in cells] == [["Sales", "50"], ["Legal", "10"]]
    assert cells[1][2] == "0.800 (0.700 to 0.900)"
    assert cells[1][3] == f"{NOTHING}too few"
    assert cells[0][3] == NOTHING
    ranges = body.all("i", "range")
    assert len(ranges) == 2
    # Sales lies to the right of Legal on the axis that they share, and both carry the tick of the overall value.
    starts = [float(re.findall(r"--a:([\d.]+)%", r.attributes["style"] or "")[0]) for r in ranges]
    assert starts[0] > starts[1]
    ticks = {i.attributes["style"] for i in body.all("i", "tick")}
    assert len(ticks) == 1
    assert len(body.all("i", "tick")) == 2


def test_validation_puts_failed_errors_first_and_folds_examples() -> None:
    def rule(name: str, status: str, severity: str = "error", **more: Any) -> dict[str, Any]:
        return {
            "name": name,
            "table": "terms",
            "severity": severity,
            "status": status,
            "description": "d",
            "observed": 3,
            "unexpected_count": None,
            "count": None,
            "examples": [],
            "reason": "",
            **more,
        }

    validation = {
        "rules": [
            rule("ok", "passed"),
            rule("skip", "skipped", reason="no column"),
            rule("warn", "failed", "warning"),
            rule("bad", "failed", unexpected_count=12, count=9000, examples=["x y", {"term": "<b>"}]),
        ]
    }
    section = part(read(Report("A run", summarize(), validation=validation)), "Data validation")
    names = [th.all("code")[0].text for th in section.one("tbody").all("th")]
    assert names == ["bad", "warn", "skip", "ok"]
    assert rows(section)[0][-1] == "12 of 9,000"
    details = section.one("details")
    assert "open" not in details.attributes
    assert [li.text for li in details.all("li")] == ["x y", '{"term": "<b>"}']
    assert "no column" in rows(section)[2][0]
    assert "1 of 4 rules passed, 2 failed" in section.text


def test_steps_with_starts_are_drawn_in_time_and_others_by_length() -> None:
    steps: list[dict[str, Any]] = [
        {"name": "a", "status": "succeeded", "seconds": 1.0, "error": None, "started": 100.0},
        {"name": "b", "status": "failed", "seconds": 3.0, "error": {"message": "no"}, "started": 101.0},
    ]
    section = part(read(Report("A run", summarize(), steps=steps)), "Steps")
    assert [i.attributes["style"] for i in section.all("i", "length")] == [
        "--a:0.00%;--b:25.00%",
        "--a:25.00%;--b:100.00%",
    ]
    assert "4.00\N{NO-BREAK SPACE}s from start to end" in section.text
    assert "failed" in section.all("span", "track")[1].classes
    bare = [{k: v for k, v in step.items() if k != "started"} for step in steps]
    section = part(read(Report("A run", summarize(), steps=bare)), "Steps")
    assert [i.attributes["style"] for i in section.all("i", "length")] == [
        "--a:0.00%;--b:33.33%",
        "--a:0.00%;--b:100.00%",
    ]
    assert "in all steps together" in section.text


def test_configuration_files_are_folded_and_short_parameters_are_not() -> None:
    gates = json.dumps({"gates": [{"metric": "purity", "limit": 0.85}]})
    page = read(Report("A run", summarize(parameters={"gates": gates, "model": {"topics": 50}, "map": ""})))
    section = part(page, "Parameters")
    assert json.loads(section.one("details").one("pre").text) == json.loads(gates)
    assert [row[0] for row in rows(section)] == ["gates", "model.topics", "map"]
    assert rows(section)[1][1] == "50"


@pytest.mark.parametrize(
    "target",
    ["javascript:alert(1)", "https://example.org/x", "//example.org/x", "/etc/passwd", "s3://b/k", "\\\\host\\x"],
)
def test_artifact_that_is_not_a_relative_path_is_no_link(target: str) -> None:
    page = read(Report("A run", summarize(artifacts={"a": target, "b": "out/scores 1.parquet"})))
    section = part(page, "Artifacts")
    assert [link.attributes["href"] for link in section.all("a")] == ["out/scores%201.parquet"]
    assert rows(section)[0][1] == target


def test_summary_facts_without_a_place_of_their_own_are_listed() -> None:
    page = read(Report("A run", summarize(environment={"python": "3.11.14"}, image="ghcr.io/x@sha256:00")))
    facts = dict(row for row in rows(part(page, "Reproducibility")))
    assert facts["Environment.python"] == "3.11.14"
    assert facts["Image"] == "ghcr.io/x@sha256:00"
    assert facts["Data version"] == "sha256:" + "ab12" * 16


def test_table_aligns_numbers_draws_shares_and_says_why_a_value_is_missing() -> None:
    kinds = ["text", "number", "share", "interval", "list"]
    section = draw(
        "table",
        {
            "columns": [{"name": kind, "kind": kind} for kind in kinds],
            "rows": [
                ["a", 1234.6, 0.5, [0.9, 0.8, 0.95], [{"text": "tea", "weight": 2}, {"text": "pot", "weight": 1}]],
                ["b", {"value": None, "note": "no rows"}, None, {"value": None, "note": "too few"}, []],
            ],
        },
    )
    heads = section.one("thead").all("th")
    assert ["end" in head.classes for head in heads] == [False, True, True, True, False]
    assert {head.attributes["scope"] for head in heads} == {"col"}
    assert rows(section)[0][:2] == ["a", "1,235"]
    assert rows(section)[0][2] == "50.0\N{NO-BREAK SPACE}%"
    assert rows(section)[0][3] == "0.900 (0.800 to 0.950)"
    assert rows(section)[1] == ["b", f"{NOTHING}no rows", NOTHING, f"{NOTHING}too few", NOTHING]
    assert [li.attributes["style"] for li in section.one("ul").all("li")] == ["--w:100.00%", "--w:50.00%"]
    assert "data-sortable" in section.one("table").attributes
    first = section.one("tbody").all("tr")[0]
    assert [c.attributes.get("data-sort") for c in first.children if isinstance(c, Element)] == [
        "a",
        "1234.6",
        "0.5",
        "0.9",
        "tea, pot",
    ]


def test_table_offers_a_filter_only_when_it_is_long_and_keeps_every_row_without_scripts() -> None:
    def count(n: int) -> Element:
        return draw(
            "table", {"columns": [{"name": "n", "kind": "number"}], "rows": [[i] for i in range(n)], "sortable": False}
        )

    assert "data-filter" not in count(15).one(class_="table").attributes
    long = count(16)
    assert "data-filter" in long.one(class_="table").attributes
    assert "data-sortable" not in long.one("table").attributes
    assert len(rows(long)) == 16
    assert all("hidden" not in tr.attributes for tr in long.all("tr"))


def test_map_draws_every_point_in_every_layout() -> None:
    section = draw("scatter", make_map(dots=40, bubbles=12))
    drawings = section.all("svg")
    assert [svg.classes for svg in drawings] == [{layout.name} for layout in LAYOUTS]
    for svg in drawings:
        assert sum((path.attributes["d"] or "").count("M") for path in svg.all("path")) == 40
        assert len(svg.all("circle")) == 12
        assert "40 campaigns and 12 topics" in (svg.attributes["aria-label"] or "")
        assert all("topic" in (c.attributes["aria-label"] or "") and c.one("title").text for c in svg.all("circle"))
        assert [c.attributes["tabindex"] for c in svg.all("circle")].count("0") == 1
    legend = section.one(class_="legend").all("li")
    assert [li.text for li in legend] == ["health14", "retail13", "travel13"]
    data = json.loads(section.one("script", "map-data").text)
    assert len(data["dots"]["label"]) == len(data["dots"]["x"]) == 40
    assert min(data["dots"]["x"] + data["dots"]["y"]) >= 0
    assert max(data["dots"]["x"] + data["dots"]["y"]) <= 1
    assert len(rows(section.one("details"))) == 12


def test_map_puts_up_on_top_and_the_script_where_the_drawing_is() -> None:
    section = draw("scatter", {"dots": [{"x": 0, "y": 0}, {"x": 1, "y": 1}], "bubbles": []})
    layout = LAYOUTS[0]
    path = section.all("svg")[0].one("path").attributes["d"]
    places = [tuple(map(float, place)) for place in re.findall(r"M([\d.]+) ([\d.]+)h0", path or "")]
    bottom, right = layout.height - layout.margin, layout.width - layout.margin
    assert places == [(layout.margin, bottom), (right, layout.margin)]
    data = json.loads(section.one("script").text)["dots"]
    assert list(zip(data["x"], data["y"], strict=True)) == [(0, 1), (1, 0)]
    assert section.all(class_="legend") == []


def test_map_leaves_out_points_without_coordinates() -> None:
    data = make_map(dots=5, bubbles=2)
    data["dots"][0]["x"] = math.nan
    data["bubbles"][0]["y"] = None
    section = draw("scatter", data)
    assert len(json.loads(section.one("script").text)["dots"]["x"]) == 4
    assert len(section.all("svg")[0].all("circle")) == 1


def test_map_without_points_or_spread_is_drawn() -> None:
    assert "no points" in (draw("scatter", {}).all("svg")[0].attributes["aria-label"] or "")
    section = draw("scatter", {"bubbles": [{"x": 3, "y": 3, "label": "one"}]})
    circle = section.all("svg")[0].one("circle")
    assert float(circle.attributes["cx"] or 0) == LAYOUTS[0].width / 2


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
def test_labels_never_cover_each_other_and_stay_in_the_frame(layout: Any) -> None:
    rng = random.Random(5)
    circles = [
        Circle(
            rng.uniform(0, layout.width),
            rng.uniform(0, layout.height),
            rng.uniform(3, layout.radius_max),
            f"some words, {i}",
        )
        for i in range(60)
    ]
    placed = place_labels(circles, layout)
    assert len(placed) >= 20
    for position, label in enumerate(placed):
        assert label.box.left >= 0
        assert label.box.right <= layout.width
        assert label.box.top >= 0
        assert label.box.bottom <= layout.height
        assert not any(label.box.overlaps(other.box) for other in placed[position + 1 :])


def test_largest_bubble_keeps_its_label_in_a_crowd() -> None:
    circles = [Circle(300.0, 300.0, 20.0 - i * 0.2, f"label {i}") for i in range(50)]
    placed = place_labels(circles, LAYOUTS[0])
    assert placed[0].index == 0
    assert len(placed) < 50


def test_bars_start_at_zero_and_share_one_axis_with_the_reference() -> None:
    section = draw(
        "bars",
        {
            "groups": [
                {"name": "Purity", "bars": [{"label": "ours", "value": 0.8, "low": 0.7, "high": 0.9, "count": 12}]},
                {
                    "name": "Other",
                    "bars": [{"label": "theirs", "value": 0.4}, {"label": "none", "value": None, "note": "n/a"}],
                },
            ],
            "reference": {"value": 0.5, "label": "gate"},
            "low": 0,
            "high": 1,
        },
    )
    assert [i.attributes["style"] for i in section.all("i", "length")] == [
        "--a:0.00%;--b:80.00%",
        "--a:0.00%;--b:40.00%",
    ]
    assert [i.attributes["style"] for i in section.all("i", "range")] == ["--a:70.00%;--b:90.00%"]
    assert {i.attributes["style"] for i in section.all("i", "tick")} == {"--v:50.00%"}
    assert [th.text for th in section.all("th") if th.attributes["scope"] == "rowgroup"] == ["Purity", "Other"]
    assert "0.700 to 0.900, n = 12" in section.text
    assert f"{NOTHING}n/a" in section.text
    assert section.one("p", "key").text == "gate 0.500"


def test_lengths_are_proportional_to_values() -> None:
    section = draw("bars", {"bars": [{"label": "a", "value": 0.8}, {"label": "b", "value": 0.4}]})
    ends = [
        re.findall(r"--a:([\d.]+)%;--b:([\d.]+)%", i.attributes["style"] or "")[0] for i in section.all("i", "length")
    ]
    assert [start for start, _ in ends] == ["0.00", "0.00"]
    assert float(ends[0][1]) == pytest.approx(2 * float(ends[1][1]), abs=0.01)


def test_negative_bars_grow_left_of_zero() -> None:
    section = draw("bars", {"bars": [{"label": "a", "value": -1.0}, {"label": "b", "value": 1.0}]})
    assert [i.attributes["style"] for i in section.all("i", "length")] == [
        "--a:5.36%;--b:50.00%",
        "--a:50.00%;--b:94.64%",
    ]


def test_cards_show_chips_and_blocks_with_shares_on_one_scale() -> None:
    def card(share: float) -> dict[str, Any]:
        return {
            "title": "Tea shop",
            "subtitle": "c1",
            "chips": ["tea", {"text": "pot", "weight": 1.0}],
            "blocks": [
                {"heading": "Topics", "unit": "share", "items": [{"text": "drinks", "value": share, "note": "most"}]},
                {"heading": "Similar", "items": [{"text": "Coffee shop", "value": 0.98}]},
                {"heading": "Keywords", "items": []},
            ],
        }

    section = draw("cards", {"cards": [card(0.2), card(0.1)]})
    cards = section.all("article")
    assert [li.text for li in cards[0].one("ul", "chips").all("li")] == ["tea", "pot"]
    assert [h.text for h in cards[0].all("h4")] == ["Topics", "Similar", "Keywords"]
    assert [li.text for li in cards[0].all("ul", "items")[0].all("li")] == ["drinks20.0\N{NO-BREAK SPACE}%most"]
    assert [c.one(class_="bar").one("span").attributes["style"] for c in cards] == ["--v:100.00%", "--v:50.00%"]
    assert "none" in cards[0].text


def test_text_is_drawn_as_paragraphs() -> None:
    section = draw("text", {"paragraphs": ["One.", "Two."]})
    assert [p.text for p in section.all("p")] == ["How to read it.", "One.", "Two."]


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        ("table", {"columns": [{"name": "a", "kind": "text"}], "rows": [["1", "2"]]}),
        ("table", {"columns": [{"name": "a", "kind": "picture"}], "rows": []}),
        ("table", {}),
        ("bars", {"bars": [{"value": 1}]}),
        ("cards", {"cards": ["text"]}),
        ("scatter", {"dots": [{"x": 1}]}),
        ("heatmap", {}),
    ],
)
def test_section_of_another_shape_is_named_and_costs_no_other_part(kind: Any, data: dict[str, Any]) -> None:
    sections = (Section(kind, "Broken", "", data), Section("text", "Whole", "", {"paragraphs": ["here"]}))
    page = read(Report("A run", summarize(gates=GATES), evaluate(*sections)))
    assert f"does not have the shape of the kind {kind}" in part(page, "Broken").one("p", "defect").text
    assert "here" in part(page, "Whole").text
    assert part(page, "Gates")


def hostile_report() -> Report:
    """Put the hostile text wherever data can stand."""
    h = HOSTILE
    point = {"x": 0.1, "y": 0.2, "label": h, "group": h}
    sections = (
        Section(
            "scatter",
            h,
            h,
            {
                "dots": [point],
                "bubbles": [{**point, "detail": [h], "size": 1}],
                "groups": [h],
                "dot_noun": h,
                "bubble_noun": h,
            },
        ),
        Section(
            "table",
            h,
            h,
            {
                "columns": [{"name": h, "kind": "text"}, {"name": h, "kind": "list"}, {"name": h, "kind": "number"}],
                "rows": [[h, [h, {"text": h, "weight": 1}], h]] * 20,
            },
        ),
        Section(
            "bars",
            h,
            h,
            {
                "groups": [{"name": h, "bars": [{"label": h, "value": 1, "note": h}]}],
                "reference": {"value": 1, "label": h},
            },
        ),
        Section(
            "cards",
            h,
            h,
            {
                "cards": [
                    {
                        "title": h,
                        "subtitle": h,
                        "chips": [h],
                        "blocks": [{"heading": h, "items": [{"text": h, "value": 1, "note": h}]}],
                    }
                ]
            },
        ),
        Section("text", h, h, {"paragraphs": [h]}),
        Section("table", h, h, {"columns": [{"name": h, "kind": h}], "rows": []}),
    )
    measurements = (Measurement(h, 1.0, "all", 1, note=h), Measurement(h, 1.0, f"{h}={h}", 1, 0.5, 1.5, note=h))
    rule = dict.fromkeys(
        ("name", "table", "severity", "status", "description", "observed", "unexpected_count", "count", "reason"), h
    )
    summary = summarize(
        pipeline=h,
        run_id=h,
        status=h,
        error={"where": h, "seen": h, "needed": h, "fix": h, "message": h},
        data={"uri": h, "version": h, "rows": h},
        parameters={h: h, "seed": h, "deep": {h: [h]}, "long": h * 20},
        gates=[{"metric": h, "slice": h, "value": h, "limit": h, "holds": False, "relation": h, "reason": h}],
        model={"name": h, "version": h, "uri": h},
        artifacts={h: h},
        environment={h: h},
    )
    steps: list[dict[str, Any]] = [
        {"name": h, "status": h, "seconds": 1.0, "error": h},
        {"name": h, "status": "failed", "seconds": h, "error": {"message": h + "2"}},
    ]
    return Report(h, summary, Evaluation(measurements, sections), {"rules": [{**rule, "examples": [h, {h: h}]}]}, steps)


def test_hostile_names_stay_text_everywhere() -> None:
    text = render_report(hostile_report())
    text.encode("utf-8")
    page = Page(text).root
    assert page.all("img") == []
    assert [script.attributes.get("type") for script in page.all("script")] == ["application/json", None]
    assert not [name for element in page.all() for name in element.attributes if name.startswith("on")]
    assert "alert(" not in page.all("script")[1].text
    styles = " ".join(element.attributes.get("style") or "" for element in page.all())
    assert "alert" not in styles
    label = json.loads(page.one("script", "map-data").text)["dots"]["label"][0]
    assert label.startswith("</script><script>alert(1)</script><img src=x onerror=")
    assert not re.search("[\x00-\x08\ud800-\udfff]", text)
    shown = page.one("main").text
    assert shown.count("</script><script>alert(1)</script>") > 60


@pytest.mark.parametrize("make", [full_report, hostile_report])
def test_page_asks_for_nothing_outside_itself(make: Any) -> None:
    text = render_report(make())
    page = Page(text).root
    for element in page.all():
        assert element.name not in {"link", "iframe", "object", "embed", "base", "form"}
        assert not {"src", "srcset", "xlink:href", "action", "poster"} & set(element.attributes)
        href = element.attributes.get("href")
        assert href is None or not re.match(r"[a-z][a-z0-9+.-]*:|//", href, re.IGNORECASE), href
    sheet = page.one("style").text
    assert not re.search(r"url\(|@import|https?:", sheet)
    script = page.all("script")[-1].text
    assert not re.search(r"https?:|fetch\(|XMLHttp|import\(|localStorage|innerHTML|eval\(|document\.cookie", script)


def test_policy_forbids_every_request_and_allows_only_the_pages_own_script() -> None:
    page = read(full_report())
    policy = next(m.attributes["content"] for m in page.all("meta") if m.attributes.get("http-equiv"))
    digest = base64.b64encode(hashlib.sha256(page.all("script")[-1].text.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in (policy or "")
    assert "default-src 'none'" in (policy or "")


def test_page_can_be_read_by_a_screen_reader() -> None:
    page = read(full_report())
    assert page.one("html").attributes["lang"] == "en"
    levels = [int(e.name[1]) for e in page.one("main").all() if re.fullmatch("h[1-6]", e.name)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    for table in page.all("table"):
        assert table.one("caption").text
        assert all(th.attributes.get("scope") for th in table.all("th"))
    for svg in page.all("svg"):
        assert svg.attributes.get("aria-label") or svg.attributes.get("aria-hidden")
    ids = [e.attributes["id"] for e in page.all() if "id" in e.attributes]
    assert len(ids) == len(set(ids))
    assert [a.attributes["href"] for a in page.one("nav").all("a")] == [f"#{i}" for i in ids]


def test_controls_exist_only_where_scripts_make_them() -> None:
    page = read(full_report())
    assert page.all("button") == []
    assert page.all("input") == []


def test_three_thousand_dots_stay_under_a_megabyte() -> None:
    report = Report("A run", summarize(), evaluate(Section("scatter", "Map", "", make_map(dots=3000, bubbles=50))))
    assert len(render_report(report).encode()) < 1_000_000


def test_same_report_is_the_same_page() -> None:
    assert render_report(full_report()) == render_report(full_report())
