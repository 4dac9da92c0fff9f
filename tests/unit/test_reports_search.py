"""The charts of a search, judged by what a browser would draw: places of marks and lines, never by exact markup."""

import itertools
import json
import math
import random
import re
from typing import Any

import pytest
from test_reports import HOSTILE, Element, Page, draw, evaluate, part, read, summarize

from mlflywheel.models.contract import Section
from mlflywheel.reports import Report, lines, parallel, render_report
from mlflywheel.reports.axes import Axis, choose_range


def make_lines(count: int = 20, seed: int = 0) -> dict[str, Any]:
    rng = random.Random(seed)
    values = [rng.uniform(0.7, 0.9) for _ in range(count)]
    return {
        "series": [
            {"name": "Succeeded", "style": "dots", "points": [[i, v] for i, v in enumerate(values)]},
            {"name": "Failed", "style": "dots", "mark": "cross", "points": [[count, None]], "labels": ["it failed"]},
            {"name": "Best", "style": "steps", "points": [[i, max(values[: i + 1])] for i in range(count)]},
        ],
        "references": [{"value": 0.8, "label": "defaults"}, {"value": 0.801, "label": "goal"}],
        "x_label": "trial",
        "y_label": "accuracy",
    }


def make_parallel(count: int = 20, seed: int = 0, axes: int = 3) -> dict[str, Any]:
    rng = random.Random(seed)
    known = [
        {"name": "rate", "kind": "number", "log": True, "low": 1e-4, "high": 1e-1},
        {"name": "depth", "kind": "number"},
        {"name": "kind", "kind": "category", "values": ["a", "b", "unused"]},
    ]
    names = [known[i] if i < 3 else {"name": f"p{i}", "kind": "number"} for i in range(axes)]
    drawn = [
        {
            "label": f"Trial {number}",
            "values": [10 ** rng.uniform(-4, -1), rng.randint(1, 9), rng.choice("ab"), *[rng.random()] * 9][:axes],
            "score": rng.random(),
        }
        for number in range(count)
    ]
    if drawn:
        max(drawn, key=lambda line: line["score"])["best"] = True
    return {"axes": names, "lines": drawn, "score_label": "accuracy"}


def drawings(section: Element) -> list[Element]:
    return section.one(class_="drawings").all("svg")


def places(svg: Element) -> list[tuple[float, float]]:
    numbers = [float(number) for number in (svg.attributes["data-places"] or "").split()]
    return list(zip(numbers[::2], numbers[1::2], strict=True))


def corners(path: Element) -> list[tuple[float, float]]:
    numbers = [float(number) for number in re.findall(r"-?[\d.]+", path.attributes["d"] or "")]
    return list(zip(numbers[::2], numbers[1::2], strict=True))


def strands(svg: Element) -> list[Element]:
    return svg.one(class_="strands").all("path")


def key(section: Element) -> list[str]:
    return [item.text for item in section.one(class_="chart-key").all("li")]


def size(svg: Element) -> tuple[float, float]:
    numbers = (svg.attributes["viewbox"] or "").split()
    return float(numbers[2]), float(numbers[3])


def test_lines_put_every_point_into_every_layout_and_its_tooltip() -> None:
    section = draw("lines", make_lines())
    assert [svg.classes for svg in drawings(section)] == [{layout.name} for layout in lines.LAYOUTS]
    data = json.loads(section.one("script", "chart-data").text)
    assert len(data["points"]) == 21
    assert data["points"][-1] == [1, "20", "none", "it failed"]
    for svg in drawings(section):
        width, height = size(svg)
        assert len(places(svg)) == 21
        assert all(0 < x < width and 0 < y < height for x, y in places(svg))
        assert "Succeeded, 20 points from 0." in (svg.attributes["aria-label"] or "")
        assert "level goal at 0.801" in (svg.attributes["aria-label"] or "")


def test_up_is_more_and_right_is_later() -> None:
    data = {"series": [{"name": "s", "style": "dots", "points": [[0, 1.0], [1, 2.0], [2, 1.0]]}]}
    for svg in drawings(draw("lines", data)):
        (x0, y0), (x1, y1), (x2, y2) = places(svg)
        assert x0 < x1 < x2
        assert y1 < y0 == y2


def test_statuses_differ_in_shape_and_points_without_a_value_lie_below_the_others() -> None:
    section = draw("lines", make_lines())
    for svg in drawings(section):
        marks = svg.one(class_="marks").all("path")
        shapes = [re.sub(r"[\d. -]+", "", mark.attributes["d"] or "")[-4:] for mark in marks]
        assert len(set(shapes)) == 2
        *valued, missing = places(svg)
        assert missing[1] > max(y for _, y in valued)
    assert key(section) == ["Succeeded", "Failed", "Best", "defaults 0.800", "goal 0.801"]


def test_series_of_dots_get_marks_of_their_own_unless_told() -> None:
    series = [{"name": f"s{i}", "style": "dots", "points": [[0, i]]} for i in range(4)]
    svg = drawings(draw("lines", {"series": series}))[0]
    marks = [mark.attributes["d"] for mark in svg.one(class_="marks").all("path")]
    assert len({re.sub(r"[\d. -]+", "", mark or "") for mark in marks}) == 4


def test_steps_go_across_before_they_go_up_and_gaps_break_them() -> None:
    points = [[0, 1.0], [1, 1.0], [2, 2.0], [3, None], [4, 2.0], [5, 3.0]]
    path = drawings(draw("lines", {"series": [{"name": "s", "style": "steps", "points": points}]}))[0]
    d = path.one(class_="strokes").one("path").attributes["d"] or ""
    assert re.sub(r"[\d. -]+", "", d) == "MHVMHV"


def test_labels_of_near_levels_do_not_cover_each_other() -> None:
    for svg in drawings(draw("lines", make_lines())):
        heights = [float(text.attributes["y"] or 0) for text in svg.one(class_="levels").all("text")]
        assert len(heights) == 2
        assert abs(heights[0] - heights[1]) >= 14
        assert len({path.attributes["stroke-dasharray"] for path in svg.one(class_="levels").all("path")}) == 2


def test_far_value_lies_at_the_edge_and_is_said() -> None:
    data = make_lines()
    data["series"][0]["points"][5][1] = 1e7
    section = draw("lines", data)
    assert "1 point beyond the axis at its edge, with an arrow" in key(section)
    for svg in drawings(section):
        heights = [y for _, y in places(svg)[:20]]
        assert heights[5] == min(heights)
        assert max(heights) - sorted(heights)[1] > 100


def test_far_level_does_not_stretch_the_axis() -> None:
    data = make_lines()
    data["references"] = [{"value": 1e6, "label": "goal"}]
    section = draw("lines", data)
    assert key(section)[-1] == "goal 1,000,000, above the axis"
    assert drawings(section)[0].one(class_="levels").all("text") == []


@pytest.mark.parametrize("points", [[], [[0, 0.5]], [[0, None]], [[0, 0.5], [1, 0.5]], [[0, math.nan], [1, math.inf]]])
def test_few_points_are_drawn(points: list[Any]) -> None:
    for style in ("dots", "steps", "line"):
        section = draw("lines", {"series": [{"name": "s", "style": style, "points": points}]})
        assert section.all(class_="defect") == []
        assert "nan" not in (drawings(section)[0].text + str(drawings(section)[0].attributes))


@pytest.mark.parametrize("entry", [{"style": "spline"}, {"mark": "star"}, {"tone": "javascript:"}])
def test_unknown_styles_are_named(entry: dict[str, Any]) -> None:
    section = draw("lines", {"series": [{"name": "s", "style": "dots", "points": [[0, 1]], **entry}]})
    assert "is none of" in section.one("p", "defect").text


def test_parallel_draws_a_line_through_every_axis_in_every_layout() -> None:
    section = draw("parallel", make_parallel())
    assert [svg.classes for svg in drawings(section)] == [{layout.name} for layout in parallel.LAYOUTS]
    data = json.loads(section.one("script", "chart-data").text)
    assert data["axes"] == ["rate", "depth", "kind", "accuracy"]
    assert len(data["lines"]) == 20
    assert all(len(line) == 5 for line in data["lines"])
    for svg in drawings(section):
        width, height = size(svg)
        assert len(strands(svg)) == 20
        for strand in strands(svg):
            assert len(corners(strand)) == 4
            assert all(0 < x < width and 0 < y < height for x, y in corners(strand))
        assert "Best is Trial" in (svg.attributes["aria-label"] or "")


def test_best_line_is_marked_and_drawn_last_and_ramp_follows_rank() -> None:
    data = make_parallel()
    section = draw("parallel", data)
    order = [line[0] for line in json.loads(section.one("script", "chart-data").text)["lines"]]
    assert order == [line["label"] for line in sorted(data["lines"], key=lambda line: line["score"])]
    ranks = [strand.attributes.get("style") for strand in strands(drawings(section)[0])]
    assert ranks[0] == "--q:0.00"
    assert "best" in strands(drawings(section)[0])[-1].classes
    data["lower_is_better"] = True
    section = draw("parallel", data)
    drawn = [line[0] for line in json.loads(section.one("script", "chart-data").text)["lines"]]
    assert drawn[:-1] == [label for label in reversed(order) if label != drawn[-1]]
    assert "lower is better" in section.text


def test_log_axis_has_equal_ratios_at_equal_distances() -> None:
    entries = [{"label": str(value), "values": [value], "score": value} for value in (0.001, 0.01, 0.1)]
    section = draw("parallel", {"axes": [{"name": "rate", "kind": "number", "log": True}], "lines": entries})
    heights = [corners(strand)[0][1] for strand in strands(drawings(section)[0])]
    assert heights[0] - heights[1] == pytest.approx(heights[1] - heights[2], abs=1.5)


def test_categories_are_spread_and_keep_their_order_from_the_top() -> None:
    section = draw("parallel", make_parallel())
    ticks = drawings(section)[0].one(class_="ticks").all("text")
    heights = {text.text: float(text.attributes["y"] or 0) for text in ticks}
    assert heights["a"] < heights["b"] < heights["unused"]


def test_line_without_score_or_value_ends_below_the_axes_and_is_dashed() -> None:
    data = make_parallel()
    data["lines"][3]["score"] = None
    data["lines"][4]["values"][1] = None
    section = draw("parallel", data)
    svg = drawings(section)[0]
    lowest = max(y for strand in strands(svg)[2:] for _, y in corners(strand))
    void = [strand for strand in strands(svg) if "void" in strand.classes]
    assert [corners(strand)[-1][1] for strand in void] == [lowest]
    assert "1 without a score" in key(section)
    assert sum(y == lowest for strand in strands(svg) for _, y in corners(strand)) == 2


def test_far_score_does_not_press_the_others_together() -> None:
    data = make_parallel()
    data["lines"][0] = {**data["lines"][0], "score": -1e9, "best": False}
    section = draw("parallel", data)
    heights = sorted(corners(strand)[-1][1] for strand in strands(drawings(section)[0]))
    assert heights[-2] - heights[0] > 100
    assert "1 with a score beyond its axis, drawn at the end of it" in key(section)


@pytest.mark.parametrize("axes", [1, 2, 6, 11])
def test_axes_never_come_closer_than_their_labels_need(axes: int) -> None:
    section = draw("parallel", make_parallel(axes=axes))
    for svg, layout in zip(drawings(section), parallel.LAYOUTS, strict=True):
        across = [x for x, _ in corners(strands(svg)[0])]
        assert min(b - a for a, b in itertools.pairwise(across)) >= layout.gap - 1
        assert svg.attributes["style"] == f"--least:{size(svg)[0]:.0f}px"


@pytest.mark.parametrize("axes", [0, 12])
def test_number_of_axes_is_limited(axes: int) -> None:
    data = make_parallel(axes=min(axes, 11))
    data["axes"] += [{"name": "one more", "kind": "number"}] * (axes - len(data["axes"]))
    for line in data["lines"]:
        line["values"] = [0.0] * axes
    section = draw("parallel", data)
    assert "2 to 12 are needed" in section.one("p", "defect").text


def test_lines_of_another_length_and_other_axes_are_named() -> None:
    data = make_parallel()
    data["lines"][2]["values"] = [1, 2, "a", 4]
    assert "4 values; 3 are needed" in draw("parallel", data).one("p", "defect").text
    data = make_parallel()
    data["axes"][0]["kind"] = "colour"
    assert "has kind colour" in draw("parallel", data).one("p", "defect").text


def test_one_line_and_no_line_are_drawn() -> None:
    for count in (0, 1):
        section = draw("parallel", make_parallel(count=count))
        assert section.all(class_="defect") == []
        assert len(strands(drawings(section)[0])) == count


def test_hostile_strings_stay_text_in_both_charts() -> None:
    h = HOSTILE
    charts = (
        Section(
            "lines",
            h,
            h,
            {
                "series": [{"name": h, "style": "dots", "points": [[0, 1]], "labels": [h]}],
                "references": [{"value": 1, "label": h}],
                "x_label": h,
                "y_label": h,
            },
        ),
        Section(
            "parallel",
            h,
            h,
            {
                "axes": [{"name": h, "kind": "category", "values": [h]}, {"name": h * 5, "kind": "number"}],
                "lines": [{"label": h, "values": [h, h], "score": 1.0, "best": True}],
                "score_label": h,
            },
        ),
    )
    text = render_report(Report("A run", summarize(), evaluate(*charts)))
    text.encode("utf-8")
    page = Page(text).root
    assert page.all("img") == []
    assert page.all(class_="defect") == []
    assert [script.attributes.get("type") for script in page.all("script")] == ["application/json"] * 2 + [None]
    assert not [name for element in page.all() for name in element.attributes if name.startswith("on")]
    assert "alert" not in " ".join(element.attributes.get("style") or "" for element in page.all())
    label = json.loads(page.all("script", "chart-data")[1].text)["lines"][0][0]
    assert label.startswith("</script><script>alert(1)</script>")


def test_charts_can_be_read_by_a_screen_reader_and_have_no_controls_without_scripts() -> None:
    sections = (Section("lines", "History", "", make_lines()), Section("parallel", "All", "", make_parallel()))
    page = read(Report("A run", summarize(), evaluate(*sections)))
    for svg in part(page, "History").all("svg") + part(page, "All").all("svg"):
        assert svg.attributes.get("aria-label") or svg.attributes.get("aria-hidden")
    assert page.all("button") == []
    assert not [element for element in page.all("svg") if "tabindex" in element.attributes]


def test_same_data_is_the_same_page() -> None:
    def render() -> str:
        sections = (Section("lines", "History", "", make_lines()), Section("parallel", "All", "", make_parallel()))
        return render_report(Report("A run", summarize(), evaluate(*sections)))

    assert render() == render()


def test_ticks_are_round_and_inside() -> None:
    rng = random.Random(2)
    for _ in range(300):
        low = rng.uniform(-1, 1) * 10 ** rng.randint(-6, 9)
        axis = Axis.around([low, low + 10 ** rng.uniform(-6, 9)])
        ticks = axis.ticks(6)
        assert 2 <= len(ticks) <= 7
        slack = 1e-4 * (axis.high - axis.low)
        assert all(axis.low - slack <= value <= axis.high + slack for value, _ in ticks)
        assert len({label for _, label in ticks}) == len(ticks)
    for _ in range(100):
        low = 10 ** rng.uniform(-8, 3)
        axis = Axis.around([low, low * 10 ** rng.uniform(0.3, 9)], log=True)
        ticks = axis.ticks(6)
        assert 1 < len(ticks) <= 10
        assert len({label for _, label in ticks}) == len(ticks)


def test_constant_values_get_an_axis() -> None:
    for value in (0.0, 5.0, -3.0, 1e12, 1e-12):
        axis = Axis.around([value, value])
        assert axis.low < value < axis.high
        assert axis.at(value) == pytest.approx(0.5)
    assert Axis.around([0.0, 1.0], log=True).log is False


def test_range_keeps_what_must_be_seen() -> None:
    values = [0.1 * i for i in range(10)]
    assert choose_range([*values, 1e9]) == (0.0, 0.9)
    assert choose_range([*values, 1e9], keep=[1e9]) == (0.0, 1e9)
    assert choose_range([0.0, 1e9]) == (0.0, 1e9)
    assert choose_range([1.0] * 20 + [2.0]) == (1.0, 2.0)


def test_column_decimals_can_be_asked_for() -> None:
    columns = [{"name": "n", "kind": "number", "decimals": 5}]
    section = draw("table", {"columns": columns, "rows": [[0.861778], [0.861771]]})
    assert [cell.text for cell in section.one("tbody").all("th")] == ["0.86178", "0.86177"]
