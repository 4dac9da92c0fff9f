"""What a search's report says, on searches whose outcome is planted."""

import json
import math
import random
import sys
from typing import Any, cast

import pytest
from test_reports import HOSTILE, Element, Page, part, rows

from mlflywheel.models.contract import Section
from mlflywheel.tuning.experiment import Objective, Parameter
from mlflywheel.tuning.search import Reason, SearchResult, Trial, TrialStatus
from mlflywheel.tuning.sections import build_search_sections, render_search

SPACE = (
    Parameter("rate", "double", 1e-4, 1e-1, distribution="logUniform"),
    Parameter("topics", "int", 10, 200),
    Parameter("weighting", "categorical", values=("bm25", "tf-idf")),
    Parameter("min_df", "discrete", values=("1", "2", "10")),
    Parameter("shrinkage", "double", 0.0, 1.0, step=0.25),
    Parameter("normalise", "categorical", values=("true", "false")),
)
STATUSES: tuple[TrialStatus, ...] = ("failed", "early_stopped", "metrics_unavailable", "killed")


def make_trial(number: int, objective: float | None, status: TrialStatus = "succeeded", **values: Any) -> Trial:
    rng = random.Random(number)
    parameters = {
        "rate": repr(10 ** rng.uniform(-4, -1)),
        "topics": str(rng.randint(10, 200)),
        "weighting": rng.choice(["bm25", "tf-idf"]),
        "min_df": rng.choice(["1", "2", "10"]),
        "shrinkage": rng.choice(["0", "0.25", "0.5"]),
        "normalise": rng.choice(["true", "false"]),
    }
    given = {"message": "", "seconds": 3.25, **values}
    return Trial(f"search-{number:04d}", number, parameters, status, objective=objective, **given)


def make_search(*trials: Trial, reason: Reason = "ExperimentMaxTrialsReached", **changes: Any) -> SearchResult:
    objective = changes.pop("objective", Objective("maximize", "accuracy", goal=0.95))
    return SearchResult("search", "local", objective, trials, reason, **changes)


def plant(count: int) -> SearchResult:
    """A search whose accuracy follows the weighting; every seventh trial ends otherwise."""
    rng = random.Random(count)
    trials = []
    for number in range(count):
        trial = make_trial(number, None)
        value = 0.9 - 0.1 * (trial.parameters["weighting"] == "bm25") + rng.gauss(0, 0.01)
        status = STATUSES[number // 7 % 4] if number % 7 == 6 else "succeeded"
        kept = value - 0.05 if status == "early_stopped" else value if status == "succeeded" else None
        trials.append(make_trial(number, kept, status, message="" if status == "succeeded" else f"ended {number}"))
    return make_search(*trials)


def words(sections: tuple[Section, ...]) -> str:
    return " ".join(sections[0].data["paragraphs"])


def find(sections: tuple[Section, ...], title: str) -> Section:
    return next(section for section in sections if section.title == title)


def titles(sections: tuple[Section, ...]) -> list[str]:
    return [section.title for section in sections]


def read(result: SearchResult, **values: Any) -> Element:
    return Page(render_search(result, SPACE, **values)).root


@pytest.mark.parametrize(
    ("reason", "said"),
    [
        ("ExperimentGoalReached", "goal was reached: accuracy 0.951, at least 0.950 was asked for"),
        ("ExperimentFailed", "more trials failed than it allows"),
        ("ExperimentMaxTrialsReached", "all its trials were run"),
        ("ExperimentSuggestionEndReached", "no further parameters to try"),
    ],
)
def test_end_is_told_in_words(reason: Reason, said: str) -> None:
    assert said in words(build_search_sections(make_search(make_trial(0, 0.951), reason=reason), SPACE))


def test_missed_goal_is_said() -> None:
    assert "The goal of 0.950 was not reached." in words(build_search_sections(make_search(make_trial(0, 0.5)), SPACE))


def test_counts_and_resumed_trials_are_told() -> None:
    trials = (
        make_trial(0, 0.5),
        make_trial(1, None, "failed", message="no\nrows"),
        make_trial(2, 0.4, "early_stopped"),
    )
    told = words(build_search_sections(make_search(*trials, resumed=2), SPACE))
    assert "3 trials: 1 succeeded, 1 failed, 1 stopped early. 2 of them had been finished by an earlier call" in told
    assert "Trial 1 failed first: no rows" in told


@pytest.mark.parametrize(
    ("direction", "baseline", "said"),
    [
        ("maximize", 0.7, "reach 0.700. The best trial is better by 0.200."),
        (
            "maximize",
            0.95,
            "No trial is better than the given parameters; the best one is worse by 0.050.",
        ),
        ("maximize", 0.9, "No trial is better than the given parameters. Nothing here speaks for leaving them."),
        ("maximize", 0.89999, "0.90000; the given parameters, measured on the same validation part, reach 0.89999."),
        ("minimize", 0.95, "The best trial is better by 0.150."),
        ("minimize", 0.1, "the best one is worse by 0.700."),
        ("maximize", None, "What the given parameters reach was not measured"),
        ("maximize", math.nan, "What the given parameters reach was not measured"),
    ],
)
def test_best_is_judged_by_the_defaults(direction: Any, baseline: float | None, said: str) -> None:
    result = make_search(make_trial(0, 0.8), make_trial(1, 0.9), objective=Objective(direction, "m"))
    assert said in words(build_search_sections(result, SPACE, baseline))


def test_chance_in_the_best_of_many_is_told_and_not_in_the_best_of_one() -> None:
    many = words(build_search_sections(make_search(make_trial(0, 0.8), make_trial(1, 0.9)), SPACE))
    assert "The best value is the luckiest of 2: part of it is chance" in many
    assert "rows that the search never saw" in many
    assert "luckiest" not in words(build_search_sections(make_search(make_trial(0, 0.8)), SPACE))


def test_search_of_a_page_has_every_picture() -> None:
    sections = build_search_sections(plant(30), SPACE, 0.8)
    assert [section.kind for section in sections] == ["text", "table", "lines", "parallel", "bars", "table"]
    assert titles(sections)[2:] == [
        "History",
        "Parameters and values",
        "Which parameters the value followed",
        "Trials",
    ]
    page = read(plant(30), baseline=0.8)
    assert page.all(class_="defect") == []
    assert page.one("header").one(class_="badge").text == "✓Succeeded"


def test_history_separates_statuses_and_draws_the_best_so_far() -> None:
    trials = (
        make_trial(0, None, "failed"),
        make_trial(1, 0.5),
        make_trial(2, 0.4, "early_stopped"),
        make_trial(3, 0.7),
        make_trial(4, 0.6),
    )
    data = find(build_search_sections(make_search(*trials), SPACE, 0.55), "History").data
    series = {entry["name"]: entry for entry in data["series"]}
    assert series["Best so far"]["points"] == [[1, 0.5], [2, 0.5], [3, 0.7], [4, 0.7]]
    assert series["Best trial"]["points"] == [[3, 0.7]]
    assert series["Succeeded"]["points"] == [[1, 0.5], [4, 0.6]]
    assert series["Stopped early"]["points"] == [[2, 0.4]]
    assert series["Failed, killed or without the metric"]["points"] == [[0, None]]
    assert len({entry["mark"] for entry in data["series"] if entry["style"] == "dots"}) == 4
    assert data["references"] == [{"value": 0.55, "label": "given parameters"}, {"value": 0.95, "label": "goal"}]


def test_best_so_far_of_a_smaller_is_better_search_falls() -> None:
    result = make_search(
        *(make_trial(i, v) for i, v in enumerate([3.0, 4.0, 1.0])), objective=Objective("minimize", "m")
    )
    series = find(build_search_sections(result, SPACE), "History").data["series"]
    assert next(s for s in series if s["name"] == "Best so far")["points"] == [[0, 3.0], [1, 3.0], [2, 1.0]]


def test_parallel_coordinates_keep_the_space_and_its_scales() -> None:
    data = find(build_search_sections(plant(30), SPACE), "Parameters and values").data
    axes = {axis["name"]: axis for axis in data["axes"]}
    assert list(axes) == [parameter.name for parameter in SPACE]
    assert axes["rate"]["log"] is True
    assert (axes["topics"]["low"], axes["topics"]["high"]) == (10, 200)
    assert axes["min_df"] == {"name": "min_df", "kind": "category", "values": ["10", "2", "1"]}
    assert axes["normalise"]["values"] == ["true", "false"]
    assert sum(line["best"] for line in data["lines"]) == 1
    assert len(data["lines"]) == 30
    assert all(isinstance(line["values"][0], float) and isinstance(line["values"][1], int) for line in data["lines"])
    assert data["lower_is_better"] is False


def test_many_parameters_and_trials_are_cut_to_what_can_be_seen() -> None:
    space = tuple(Parameter(f"p{i}", "double", 0.0, 1.0) for i in range(20))
    rng = random.Random(0)
    trials = [
        Trial(f"t{n}", n, {p.name: repr(rng.random()) for p in space}, "succeeded", objective=float(n))
        for n in range(500)
    ]
    section = find(build_search_sections(make_search(*trials), space), "Parameters and values")
    assert len(section.data["axes"]) == 11
    assert "11 of 20 parameters are drawn" in section.text
    assert "The best 400 of 500 trials are drawn" in section.text
    assert min(line["score"] for line in section.data["lines"]) == 100


def test_importance_says_what_it_rests_on() -> None:
    section = find(build_search_sections(plant(30), SPACE), "Which parameters the value followed")
    succeeded = plant(30).count("succeeded")
    assert f"An estimate from {succeeded} succeeded trials" in section.text
    assert section.data["bars"][0]["label"] == "weighting"
    assert sum(bar["value"] for bar in section.data["bars"]) == pytest.approx(1)


def test_importance_that_cannot_be_estimated_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    few = find(build_search_sections(plant(5), SPACE), "Which parameters the value followed")
    assert few.kind == "text"
    assert "No estimate: it takes 12 succeeded trials or more" in few.text
    for name in [name for name in sys.modules if name.split(".")[0] == "optuna"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "optuna", None)
    without = find(build_search_sections(plant(30), SPACE), "Which parameters the value followed")
    assert "the optuna package" in without.text


def test_trials_are_listed_best_first_with_messages_and_enough_digits() -> None:
    trials = (
        make_trial(0, None, "failed", message="no rows"),
        make_trial(1, 0.81234),
        make_trial(2, 0.81229, "early_stopped", message="stopped at step 4"),
        make_trial(3, 0.5),
    )
    table = rows(part(read(make_search(*trials)), "Trials"))
    assert [row[0] for row in table] == ["1best", "2", "3", "0"]
    assert [row[1] for row in table] == ["succeeded", "stopped earlystopped at step 4", "succeeded", "failedno rows"]
    assert [row[2] for row in table] == ["0.81234", "0.81229", "0.50000", "–"]


def test_names_that_only_count_are_left_out_and_others_are_shown() -> None:
    counted = find(build_search_sections(make_search(make_trial(0, 0.5), make_trial(12, 0.5)), SPACE), "Trials")
    assert "Name" not in [column["name"] for column in counted.data["columns"]]
    random_name = Trial("search-x7k2", 1, {}, "succeeded", objective=0.5)
    named = find(build_search_sections(make_search(make_trial(0, 0.5), random_name), SPACE), "Trials")
    assert [row[-1] for row in named.data["rows"]] == ["0000", "x7k2"]
    assert "search-" in named.text


def test_parameters_of_the_best_are_shown_as_they_were_written() -> None:
    best = make_trial(1, 0.9)
    section = find(build_search_sections(make_search(make_trial(0, 0.8), best), SPACE), "Parameters of the best trial")
    found = {row[0]: row[1:] for row in section.data["rows"]}
    assert found["rate"] == [best.parameters["rate"], "0.0001 to 0.1, on a log scale"]
    assert found["shrinkage"][1] == "0 to 1 in steps of 0.25"
    assert found["weighting"][1] == "bm25, tf-idf"


def test_parameter_that_only_trials_have_is_shown() -> None:
    trial = Trial("t", 0, {"extra": "7"}, "succeeded", objective=0.5)
    section = find(build_search_sections(make_search(trial), ()), "Parameters of the best trial")
    assert section.data["rows"] == [["extra", "7", ""]]


def test_one_trial_has_no_pictures() -> None:
    sections = build_search_sections(make_search(make_trial(0, 0.5)), SPACE)
    assert titles(sections) == ["The search", "Parameters of the best trial", "Trials"]


def test_search_without_any_value_says_what_to_do() -> None:
    page = read(make_search(make_trial(0, None, "failed", message="boom"), make_trial(1, None, "killed")))
    failure = page.one(class_="failure")
    assert "no trial has a value of accuracy (2 trials: 1 failed, 1 killed)" in failure.text
    assert "read the messages" in failure.one(class_="fix").text
    assert page.all(class_="defect") == []
    assert "Parameters of the best trial" not in [section.one("h2").text for section in page.all("section")]


def test_search_without_trials_and_values_that_are_no_numbers_are_drawn() -> None:
    assert titles(build_search_sections(make_search(), SPACE)) == ["The search"]
    trials = (make_trial(0, math.nan), make_trial(1, 0.5), make_trial(2, math.inf), make_trial(3, 0.4, "running"))
    page = read(make_search(*trials))
    assert page.all(class_="defect") == []
    assert "Trial 1 is the best with accuracy 0.500" in page.text


def test_result_read_back_from_its_file_gives_the_same_page() -> None:
    result = plant(20)
    again = SearchResult.from_dict(json.loads(json.dumps(result.to_dict())))
    assert render_search(again, SPACE, 0.8) == render_search(result, SPACE, 0.8)


def test_hostile_search_stays_text() -> None:
    h = HOSTILE
    space = (Parameter(h, "categorical", values=(h, "x")), Parameter(h * 9, "double", 0.0, 1.0))
    trials = tuple(
        Trial(h, n, {h: h if n % 2 else "x", h * 9: "0.5" if n % 3 else h}, "failed" if n == 3 else "succeeded",
              objective=None if n == 3 else float(n), message=h)
        for n in range(6)
    )  # fmt: skip
    result = SearchResult(h, h, Objective("minimize", h), trials, "ExperimentFailed", facts={h: h})
    text = render_search(result, space, 0.5, title=h)
    text.encode("utf-8")
    page = Page(text).root
    assert page.all("img") == []
    assert page.all(class_="defect") == []
    assert {script.attributes.get("type") for script in page.all("script")} == {"application/json", None}
    assert len([script for script in page.all("script") if script.attributes.get("type") is None]) == 1
    assert not [name for element in page.all() for name in element.attributes if name.startswith("on")]


def test_three_hundred_trials_stay_under_300_kilobytes() -> None:
    assert len(render_search(plant(300), SPACE, 0.8).encode()) < 300_000


def test_sections_are_json() -> None:
    result = make_search(make_trial(0, math.nan), make_trial(1, 0.5), make_trial(2, math.inf), make_trial(3, 0.6))
    for section in build_search_sections(result, SPACE, 0.8):
        assert json.loads(json.dumps(dict(section.data), allow_nan=False)) == cast(Any, section.data)
