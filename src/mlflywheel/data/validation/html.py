"""A validation result as one HTML file: no scripts, no external files, readable on a phone.

Pages stay below 100 kB for suites of up to a few hundred rules.
"""

import json
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from mlflywheel.data.validation.results import RuleResult, ValidationResult

LARGEST_BYTES = 100_000
#: Examples shown for each rule, from the first that fits into `LARGEST_BYTES`; `validation.json` has all.
_EXAMPLES_SHOWN = (10, 5, 2, 1, 0)
_LONGEST_TEXT = 300

_STYLE = """
:root{color-scheme:light dark;--page:#f6f7f9;--card:#fff;--ink:#1b1f24;--soft:#5b6470;--line:#dfe3e8;
--bad:#b3261e;--warn:#8a5a00;--good:#1a7044;--skip:#5b6470}
@media(prefers-color-scheme:dark){:root{--page:#14171a;--card:#1d2125;--ink:#e8eaed;--soft:#a3acb6;--line:#343a41;
--bad:#ff8a80;--warn:#ffcb6b;--good:#7bd8a4;--skip:#a3acb6}}
*{box-sizing:border-box}
body{margin:0;padding:1rem;background:var(--page);color:var(--ink);font:16px/1.5 system-ui,sans-serif}
main{max-width:56rem;margin:0 auto}
h1{font-size:1.4rem;margin:.2rem 0}h2{font-size:1.05rem;margin:1.6rem 0 .5rem}
p{margin:.3rem 0}.soft{color:var(--soft);font-size:.875rem}
.counts{display:grid;grid-template-columns:repeat(auto-fit,minmax(6rem,1fr));gap:.5rem;margin:1rem 0}
.counts div{background:var(--card);border:1px solid var(--line);border-radius:.5rem;padding:.5rem .75rem}
.counts b{display:block;font-size:1.4rem;font-variant-numeric:tabular-nums}
details{background:var(--card);border:1px solid var(--line);border-left:4px solid var(--tone);border-radius:.5rem;
margin:.4rem 0;padding:.5rem .75rem}
summary{cursor:pointer;overflow-wrap:anywhere}summary b{font-weight:600}
.tag{color:var(--tone);font-weight:600;font-size:.8rem;text-transform:uppercase;letter-spacing:.03em;margin-right:.4rem}
.bad{--tone:var(--bad)}.warn{--tone:var(--warn)}.good{--tone:var(--good)}.skip{--tone:var(--skip)}
.wide{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-size:.875rem;margin:.5rem 0}
th,td{text-align:left;padding:.25rem .6rem .25rem 0;border-top:1px solid var(--line);vertical-align:top;
overflow-wrap:anywhere}
th{color:var(--soft);font-weight:500;border-top:0;white-space:nowrap}td:first-child{font-variant-numeric:tabular-nums;white-space:nowrap}
td:nth-child(2):not(:last-child){min-width:8rem}
code{font:.8rem/1.4 ui-monospace,monospace;overflow-wrap:anywhere}
"""


def render_html(result: ValidationResult) -> str:
    """Render a result as a self-contained page.

    The page shows fewer examples for each rule, and less about rules that hold, where it would grow over 100 kB; counts
    are always exact.
    """
    page = ""
    for examples in _EXAMPLES_SHOWN:
        page = _render(result, examples)
        if len(page.encode()) <= LARGEST_BYTES:
            return page
    return page


def write_report(result: ValidationResult, html: Path, json_file: Path) -> None:
    """Write the page and the same result as JSON."""
    html.write_text(render_html(result), encoding="utf-8")
    text = json.dumps(result.to_dict(), indent=1, ensure_ascii=False, allow_nan=False)
    json_file.write_text(text + "\n", encoding="utf-8")


def _render(result: ValidationResult, examples: int) -> str:
    errors, warned, skipped = result.errors(), result.warnings(), result.skipped()
    passed = [rule for rule in result.rules if rule.status == "passed"]
    if errors:
        tone, verdict = "bad", "Data refused"
        text = f"{_count(len(errors), 'rule')} of severity error failed, so the run stops here."
    elif warned:
        tone, verdict = "warn", "Data accepted with warnings"
        text = f"Every rule of severity error holds; {_count(len(warned), 'warning')} to read."
    else:
        tone, verdict = "good", "Data accepted"
        text = f"{_count(len(passed), 'rule')} checked, and all hold."
    tables = " and ".join(f"{count:,} {_table(name)}" for name, count in result.counts.items())
    parts = [
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width,initial-scale=1"><title>Data validation</title>',
        f"<style>{_STYLE}</style></head><body><main>",
        f'<p class="tag {tone}">Data validation</p><h1>{verdict}</h1><p>{escape(text)}</p>',
        '<div class="counts">',
        *(
            f"<div><b>{number:,}</b>{escape(label)}</div>"
            for number, label in (
                (len(errors), "failed"),
                (len(warned), "warnings"),
                (len(passed), "passed"),
                (len(skipped), "skipped"),
            )
        ),
        "</div>",
        _section("Failed", "bad", "error", errors, examples, unfold=True),
        _section("Warnings", "warn", "warning", warned, examples, unfold=True),
        _section("Skipped", "skip", "skipped", skipped, examples, unfold=False),
        _section("Passed", "good", "passed", passed, examples, unfold=False),
        f'<p class="soft">Checked {escape(tables)} on {escape(result.today)} with {escape(result.checker)}. '
        "Values are masked: e-mail addresses, and digits where they could be a telephone number. "
        "Rows are counted from 1.</p></main></body></html>",
    ]
    return "".join(parts) + "\n"


def _section(title: str, tone: str, tag: str, rules: Any, examples: int, unfold: bool) -> str:
    if not rules:
        return ""
    return f"<h2>{title} ({len(rules)})</h2>" + "".join(_rule(rule, tone, tag, examples, unfold) for rule in rules)


def _rule(rule: RuleResult, tone: str, tag: str, examples: int, unfold: bool) -> str:
    parts = [
        f'<details class="{tone}"{" open" if unfold else ""}><summary><span class="tag">{tag}</span>',
        f"<b>{_text(rule.name)}</b> <span class=soft>{escape(rule.table)}</span></summary>",
    ]
    if not examples and rule.status != "failed":
        return "".join([*parts, f"<p>{_text(_finding(rule))}</p></details>"])
    if rule.description:
        parts.append(f"<p>{_text(rule.description)}</p>")
    parts.append(f"<p>{_text(_finding(rule))}</p>")
    shown = rule.examples[:examples]
    if shown:
        parts.append(_examples(shown))
    hidden = (rule.unexpected_count or 0) - len(shown)
    if shown and hidden > 0:
        parts.append(f'<p class="soft">and {hidden:,} more</p>')
    arguments = json.dumps(dict(rule.kwargs), ensure_ascii=False, default=str)
    parts.append(f"<p><code>{_text(f'{rule.type} {arguments}')}</code></p></details>")
    return "".join(parts)


def _finding(rule: RuleResult) -> str:
    if rule.reason:
        return rule.reason[:1].upper() + rule.reason[1:]
    if rule.unexpected_count is None:
        return f"Observed {format_value(rule.observed)}" + (f" over {rule.count:,} rows" if rule.count else "")
    if rule.count == 0:
        return "No row has a value to check"
    share = f" ({rule.unexpected_count / rule.count:.3%})" if rule.unexpected_count else ""
    return f"{rule.unexpected_count:,} of {rule.count:,} rows are unexpected{share}"


def _examples(examples: Any) -> str:
    named = any("id" in example for example in examples)
    head = "<tr><th>Row</th>" + ("<th>Id</th>" if named else "") + "<th>Value</th></tr>"
    body = "".join(
        f"<tr><td>{example['row']}</td>"
        + (f"<td>{_text(format_value(example.get('id')))}</td>" if named else "")
        + f"<td>{_text(format_value(example['value']))}</td></tr>"
        for example in examples
    )
    return f'<div class="wide"><table>{head}{body}</table></div>'


def format_value(value: Any) -> str:
    """Write a JSON value for a reader.

    >>> format_value({"clicks": 12, "impressions": None}), format_value(0.123456789), format_value(["a", "b"])
    ('clicks 12, impressions missing', '0.123457', 'a, b')
    """
    if value is None:
        return "missing"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {format_value(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(format_value(item) for item in value)
    if isinstance(value, float):
        return f"{value:.6g}"
    return str(value)


def _text(value: str) -> str:
    return escape(value if len(value) <= _LONGEST_TEXT else value[:_LONGEST_TEXT] + "…")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _table(name: str) -> str:
    return "rows" if name == "rows" else f"{name} rows"
