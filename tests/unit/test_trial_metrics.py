"""Reading metrics from a log by the rules of Katib's metrics collector."""

import re
import string
import time
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlflywheel.errors import UsageError
from mlflywheel.tuning.experiment import Collector, EarlyStopping, Experiment, Objective, TrialTemplate
from mlflywheel.tuning.metrics import (
    MetricReader,
    Report,
    compile_filter,
    find_default,
    find_objective,
    order_values,
    summarize,
)

KATIBS_FILTER = r"([\w|-]+)\s*=\s*([+-]?\d*(\.\d+)?([Ee][+-]?\d+)?)"
OBJECTIVE = Objective("minimize", "loss", additional=("auc",))


def make_reader(*filters: str, is_json: bool = False, stops_early: bool = False) -> MetricReader:
    collector = Collector(kind="File", format="JSON" if is_json else "TEXT", filters=filters)
    stopping = EarlyStopping("medianstop") if stops_early else None
    template = TrialTemplate("c", {}, {})
    return MetricReader(
        Experiment("e", OBJECTIVE, "random", {}, (), template, collector=collector, early_stopping=stopping)
    )


def read(line: str, *filters: str, is_json: bool = False) -> list[tuple[str, str]]:
    return [(report.metric, report.value) for report in make_reader(*filters, is_json=is_json).feed(line)]


# --- text ---


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("loss=0.3", [("loss", "0.3")]),
        ("loss=0.3\n", [("loss", "0.3")]),
        ("loss = .98, auc=-7.53e-05", [("loss", ".98"), ("auc", "-7.53e-05")]),
        ("loss=+1E0", [("loss", "+1E0")]),
        ("loss=1.23E10", [("loss", "1.23E10")]),
        ("loss=5.", [("loss", "5")]),
        ("epoch 3: loss=1 loss=2", [("loss", "1"), ("loss", "2")]),
        ("loss=0.5\rloss=0.4", [("loss", "0.5"), ("loss", "0.4")]),
        # The name's last part counts, and only a whole name does.
        ("val/auc=0.9", [("auc", "0.9")]),
        ("val_auc=0.9", []),
        ("val-loss=0.9", []),
        # Go's \w is ASCII.
        ("é" + "loss=1", [("loss", "1")]),
        ("loss: 0.4", []),
        ("lr=0.1", []),
        ("auc=loss=3", [("loss", "3")]),
    ],
)
def test_text_is_read_as_katib_reads_it(line: str, expected: list[tuple[str, str]]) -> None:
    assert read(line) == expected


@given(st.text(alphabet=string.ascii_letters + string.digits + "==== \t_|-+.,/eE\r\vé", max_size=60))
def test_default_filter_finds_what_katibs_expression_finds(line: str) -> None:
    expected = [(match[1], match[2]) for match in re.compile(KATIBS_FILTER, re.ASCII).finditer(line)]
    assert list(find_default(line)) == expected


def test_default_filter_takes_linear_time() -> None:
    line = "loss" * 100_000 + " " + "=" * 100_000 + "a" * 100_000
    started = time.process_time()
    assert make_reader().feed(line) == []
    assert time.process_time() - started < 2.0


@pytest.mark.parametrize(
    ("word", "seconds"),
    [
        ("1970-01-01T00:00:10Z", 10.0),
        ("1970-01-01T00:00:10.25Z", 10.25),
        ("1970-01-01T01:00:10.123456789+01:00", 10.123456789),
        ("1969-12-31T23:00:00-01:00", 0.0),
        ("0001-01-01T00:00:00Z", -62135596800.0),
        ("1970-01-01 00:00:10Z", None),
        ("1970-13-01T00:00:10Z", None),
        ("1970-01-01T00:00:10", None),
        ("10", None),
    ],
)
def test_first_word_is_the_time_if_it_is_rfc_3339(word: str, seconds: float | None) -> None:
    reports = make_reader().feed(f"{word} loss=1")
    assert reports == [Report("loss", "1", seconds)]


def test_timestamp_needs_a_space_behind_it() -> None:
    assert make_reader().feed("1970-01-01T00:00:10Z\tloss=1") == [Report("loss", "1", None)]


# --- values that are no number ---


@pytest.mark.parametrize(
    "line", ["loss=nan", "loss=inf", "loss=np.float64(0.5)", "loss=", "loss=-", "loss=1e999", "loss=None"]
)
def test_objective_without_a_finite_number_is_a_problem(line: str) -> None:
    reader = make_reader()
    reader.feed("loss=0.1")
    assert reader.feed(line) == []
    assert reader.explain() == (
        f"metric loss: the log line {line!r} has no finite number for it; a trial without one could win the search. "
        "Fix: print loss=0.123 as a plain decimal number, and exit with 1 where there is none."
    )


def test_additional_metric_without_a_number_is_left_out_with_a_note() -> None:
    reader = make_reader()
    assert reader.feed("loss=0.1 auc=nan") == [Report("loss", "0.1")]
    assert reader.explain() == ""
    assert reader.notes == ["metric auc: the log line 'loss=0.1 auc=nan' has no finite number for it and is left out"]


def test_problems_and_long_lines_are_kept_short() -> None:
    reader = make_reader()
    for _ in range(1000):
        reader.feed("x" * 5000 + " loss=nan auc=nan")
    assert len(reader.problems) == len(reader.notes) == 10
    assert len(reader.problems[0]) < 500


def test_early_stopping_refuses_other_values_beside_the_objective() -> None:
    line = "epoch=last loss=0.5"
    assert make_reader().feed(line) == make_reader(stops_early=True).feed(line) == [Report("loss", "0.5")]
    tolerant, strict = make_reader(), make_reader(stops_early=True)
    tolerant.feed(line)
    strict.feed("epoch=last auc=nan")
    strict.feed("epoch=3 loss=0.5")
    assert tolerant.problems == strict.problems == []
    strict.feed(line)
    assert "epoch=: the log line 'epoch=last loss=0.5' has no number there" in strict.explain()


# --- metrics that were never printed ---


def test_missing_metric_names_what_was_seen() -> None:
    reader = make_reader()
    reader.feed("step=1 los=0.5 test_loss=0.4 lr=0.1")
    assert reader.explain() == (
        "metric loss: never printed; the log names los, test_loss; loss=0.123 is needed. "
        "Fix: print loss=0.123, or correct the metric's name."
    )


def test_missing_metric_quotes_a_line_that_has_it_in_another_form() -> None:
    reader = make_reader()
    reader.feed("epoch 1 loss: 0.5")
    assert "the log line 'epoch 1 loss: 0.5' has it in another form" in reader.explain()


def test_empty_log_has_no_metric() -> None:
    assert "never printed; the log names no metric" in make_reader().explain()


def test_additional_metrics_may_be_missing() -> None:
    reader = make_reader()
    reader.feed("loss=1")
    assert reader.explain() == ""
    reader = make_reader()
    reader.feed("auc=1")
    assert "never printed" in reader.explain()


# --- JSON ---


def test_json_takes_text_values_in_the_order_of_the_metrics() -> None:
    line = '{"auc": "0.9", "loss": "0.1", "epoch": 3, "timestamp": "1970-01-01T00:00:01.5Z"}'
    assert make_reader(is_json=True).feed(line) == [Report("loss", "0.1", 1.5), Report("auc", "0.9", 1.5)]


def test_json_timestamp_may_be_seconds() -> None:
    assert make_reader(is_json=True).feed('{"loss": "1", "timestamp": 12.5}') == [Report("loss", "1", 12.5)]
    for odd in ("true", '"now"', "[1]", "null", "1" + "0" * 400):
        assert make_reader(is_json=True).feed(f'{{"loss": "1", "timestamp": {odd}}}') == [Report("loss", "1")]


def test_json_numbers_are_not_read_and_the_message_says_so() -> None:
    reader = make_reader(is_json=True)
    assert reader.feed('{"loss": 0.1}') == []
    assert """the log line '{"loss": 0.1}' has it as a JSON number or object""" in reader.explain()
    assert """Fix: print {"loss": "0.123"}""" in reader.explain()


@pytest.mark.parametrize("value", ["nan", "inf", "", " 0.5", "0x1p-2", "1_000"])
def test_json_text_that_is_no_finite_decimal_is_a_problem(value: str) -> None:
    reader = make_reader(is_json=True)
    assert reader.feed(f'{{"loss": "{value}"}}') == []
    assert "has no finite number for it" in reader.explain()


@pytest.mark.parametrize("line", ["loss=1", "[1]", '"loss"', '{"loss": NaN}', "{", " ", "[" * 100_000])
def test_lines_that_are_no_json_object_are_a_problem(line: str) -> None:
    reader = make_reader(is_json=True)
    reader.feed('{"loss": "1"}')
    assert reader.feed(line) == []
    assert "is no JSON object" in reader.explain()


def test_empty_lines_and_null_are_skipped_in_json() -> None:
    reader = make_reader(is_json=True)
    assert reader.feed("") == reader.feed("\n") == reader.feed("null") == []
    assert reader.problems == []


def test_missing_json_metric_names_what_was_seen() -> None:
    reader = make_reader(is_json=True)
    reader.feed('{"los": "1", "timestamp": 1}')
    assert "never printed; the log names los;" in reader.explain()


# --- filters ---


def test_custom_filters_are_tried_one_after_the_other() -> None:
    filters = (r"([\w-]+): ([0-9.]+)", r"\{metricName: ([\w|-]+), metricValue: ([\d.]+)\}")
    line = "auc: 0.5 {metricName: loss, metricValue: 0.25} loss: 0.3 loss=0.2"
    assert read(line, *filters) == [("auc", "0.5"), ("loss", "0.3"), ("loss", "0.25")]


def test_custom_filter_values_are_trimmed() -> None:
    assert read("loss : 0.5 ;", r"(\w+\s*):(\s*[^;]*);") == [("loss", "0.5")]


def test_missing_metric_shows_the_filter() -> None:
    reader = make_reader(r"(\w+): ([0-9.]+)")
    reader.feed("loss=0.5")
    assert r"a line that matches (\w+): ([0-9.]+) is needed" in reader.explain()


@pytest.mark.parametrize(
    ("pattern", "text", "groups"),
    [
        (r"(?P<n>\w+)=(?P<v>\d+)", "a=1", ("a", "1")),
        (r"(?<n>\w+)=(?<v>\d+)\z", "a=1", ("a", "1")),
        (r"([[:alpha:]_]+)=([[:digit:].]+)", "x_y=1.5", ("x_y", "1.5")),
        (r"(?i)(LOSS)=(\d+)", "loss=1", ("loss", "1")),
        (r"(?i:(LOSS))=(\d+)", "loss=1", ("loss", "1")),
        (r"{(\w+)},(\d{1,3})", "{a},1234", ("a", "123")),
        (r"(\w+){,3}=(\d+)", "a{,3}=1", ("a", "1")),
        (r"([]a-z[&&~~||-]+)=(\d+?)", "a[b]&~|-=12", ("a[b]&~|-", "1")),
        (r"([^\]\s]+)\x3d(\d+)", "a=1", ("a", "1")),
        (r"(\w+)=(\d*)(?:;|$)", "a=12", ("a", "12")),
    ],
)
def test_filters_in_gos_syntax_match(pattern: str, text: str, groups: tuple[str, str]) -> None:
    match = compile_filter(pattern).search(text)
    assert match is not None
    assert (match[1], match[2]) == groups


@pytest.mark.parametrize(
    "pattern",
    [
        r"(\pL+)=(\d+)",
        r"(?U)(\w+)=(\d+)",
        r"\Q(\w+)\E=(\d+)()",
        r"(\w+)=(\d+)(",
        r"(\x{10FFFF})=(\d+)",
        # Python has these and Go has not: the search would work here and not on a cluster.
        r"(?=loss)(\w+)=(\d+)",
        r"(?<!x)(\w+)=(\d+)",
        r"(\w+)=(\d+)\1",
        r"(\w++)=(\d+)",
        r"(\w+)=(?>(\d+))",
        r"(\w+)=(\d+)\Z",
        r"(?x)(\w+) = (\d+)",
        r"(\w+)=(\d{1001})",
        r"(\w+)=(\d+{2})",
        "(\\w+)=(\\d+)\\",
        r"([a=(\d+)",
        r"([[:greek:]])=(\d+)",
    ],
)
def test_filters_that_go_or_python_lacks_are_refused(pattern: str) -> None:
    with pytest.raises(UsageError, match="metricsFormat") as caught:
        make_reader(r"(\w+)=(\d+)", pattern)
    assert repr(pattern) in caught.value.seen


def test_filters_need_two_groups() -> None:
    with pytest.raises(UsageError, match="has 1 groups"):
        make_reader(r"loss=(\d+)")


@given(st.text(alphabet=r"ab()[]{}?*+|\^$.-:<>=!P,019wdsSzZpQ", max_size=12))
def test_any_filter_compiles_or_is_refused(pattern: str) -> None:
    with suppress(UsageError):
        compile_filter(pattern)


# --- summaries ---


def test_summary_has_smallest_largest_and_latest() -> None:
    reports = [
        Report("auc", "0.5", 1.0),
        Report("loss", "0.3"),
        Report("loss", "-2e-1"),
        Report("loss", "0.1"),
        Report("other", "9"),
    ]
    loss, auc = summarize(reports, OBJECTIVE)
    assert (loss.name, loss.min, loss.max, loss.latest) == ("loss", -0.2, 0.3, 0.1)
    assert (auc.name, auc.min, auc.max, auc.latest) == ("auc", 0.5, 0.5, 0.5)


def test_latest_goes_by_time_and_then_by_place() -> None:
    reports = [Report("loss", "1", 20.0), Report("loss", "2", 20.0), Report("loss", "3", 10.0), Report("loss", "4")]
    assert summarize(reports, OBJECTIVE)[0].latest == 2.0
    assert order_values(reports, "loss") == (4.0, 3.0, 1.0, 2.0)


@pytest.mark.parametrize(
    ("objective", "value"),
    [
        (Objective("minimize", "loss"), 1.0),
        (Objective("maximize", "loss"), 3.0),
        (Objective("minimize", "loss", strategies={"loss": "latest"}), 2.0),
        (Objective("minimize", "loss", strategies={"loss": "max", "auc": "min"}), 3.0),
        (Objective("minimize", "auc"), None),
    ],
)
def test_objective_value_follows_its_strategy(objective: Objective, value: float | None) -> None:
    reports = [Report("loss", "3"), Report("loss", "1"), Report("loss", "2")]
    assert find_objective(summarize(reports, objective), objective) == value
