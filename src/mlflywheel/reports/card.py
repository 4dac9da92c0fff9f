"""Model cards: what is known of a registered version, for those who answer for it, as Markdown and as a page.

The parts and their order are those of Mitchell et al. 2019, "Model Cards for Model Reporting", section 4
(doi 10.1145/3287560.3287596), with reproducibility, sign-off and contract behind them. A card says nothing that is not
recorded: a part without data says what is missing and how to get it. The same input gives the same card; no clock is
asked.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any

from mlflywheel import __version__
from mlflywheel.registry.records import ModelVersion, State, Transition
from mlflywheel.reports.brief import draw_brief
from mlflywheel.reports.card_parts import (
    Block,
    Brief,
    Code,
    Facts,
    Heading,
    Listing,
    Missing,
    Part,
    Points,
    Text,
    Value,
    build_parts,
    list_brief,
    list_objections,
    tell_outcomes,
)
from mlflywheel.reports.formats import NOTHING
from mlflywheel.reports.markup import Html, code_name, tag
from mlflywheel.reports.tables import Cell, table
from mlflywheel.reports.tables import Heading as Column

__all__ = ["list_brief", "list_objections", "render_card", "render_card_html", "write_card"]

_TONES = {State.CANDIDATE: "quiet", State.APPROVED: "good", State.LIVE: "good", State.ARCHIVED: "warn"}
_SIGNS = {"good": "✓", "quiet": NOTHING, "warn": "!"}
_FOOT = "Made by mlflywheel {} from the registry and the version's dossier. Parts after Mitchell et al. 2019, doi {}."
_DOI = "10.1145/3287560.3287596"
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
# Only what a card has and a report has not.
_CARD_CSS = """
.card-page table { table-layout: auto; }
.card-page td, .card-page tbody th { overflow-wrap: break-word; }
.card-page .pairs td, .card-page .pairs code { overflow-wrap: anywhere; }
.card-page .pairs tbody th { width: 15rem; }
.card-page .part > * + * { margin-top: .8rem; }
.card-page .part > h3 { margin: 1.8rem 0 .6rem; }
.card-page .missing { border-left: 3px solid var(--warn); background: var(--warn-soft); padding: .55rem .8rem;
  border-radius: 0 8px 8px 0; max-width: 92ch; }
.card-page ul.points { list-style: disc; padding-left: 1.3rem; max-width: 92ch; display: grid; gap: .3rem; }
.card-page pre { white-space: pre-wrap; overflow-wrap: anywhere; }
.card-page .table { background: var(--surface); border: 1px solid var(--line); border-radius: var(--radius); }
@media (max-width: 640px) {
  .card-page .pairs, .card-page .pairs tbody, .card-page .pairs tr, .card-page .pairs tbody th,
  .card-page .pairs td { display: block; width: auto; max-width: none; border-bottom: 0; }
  .card-page .pairs tr { padding: .45rem .7rem; border-bottom: 1px solid var(--line-soft); }
  .card-page .pairs tbody th, .card-page .pairs td { padding: 0; }
}
@media print {
  @page { margin: 16mm 14mm; }
  .card-page .part { break-inside: auto; }
  .card-page table { font-size: 10.5px; }
  .card-page td { min-width: 0; }
  .card-page thead th { white-space: normal; }
  .card-page .missing { break-inside: avoid; }
}
"""


def render_card(
    version: ModelVersion,
    dossier: Mapping[str, Any] | None,
    history: Sequence[Transition],
    testscore: Mapping[str, Any] | None = None,
) -> str:
    """Render a version's card as Markdown (CommonMark with tables, as GitHub draws it).

    Args:
        version: From the registry.
        dossier: As `mlflywheel.registry.dossier.read_dossier` returns it; None if there is none.
        history: The states that it went through, its registration first.
        testscore: What `mlflywheel testscore --json` prints, or None.

    Returns:
        The document; names and notes of the data are escaped, so that none becomes markup.
    """
    lines = [f"# {_plain(version.reference)}: model card", ""]
    for part in build_parts(version, dossier, history, testscore):
        lines += [f"## {part.title}", ""]
        for block in part.blocks:
            lines += [*_write_block(block), ""]
    lines += ["---", "", _FOOT.format(__version__, _DOI)]
    return "\n".join(lines) + "\n"


def render_card_html(
    version: ModelVersion,
    dossier: Mapping[str, Any] | None,
    history: Sequence[Transition],
    testscore: Mapping[str, Any] | None = None,
) -> str:
    """Render a version's card as one HTML document that needs nothing else, and can be printed.

    Args:
        version: As for `render_card`, like the others.
        dossier: See there.
        history: See there.
        testscore: See there.

    Returns:
        The document, to be written as UTF-8. It has no scripts, and its policy forbids any request.
    """
    parts = build_parts(version, dossier, history, testscore)
    css = resources.files("mlflywheel.reports").joinpath("report.css").read_text(encoding="utf-8")
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag(
            "meta",
            http_equiv="Content-Security-Policy",
            content="default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'",
        ),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("meta", name="referrer", content="no-referrer"),
        tag("title", f"{version.reference} {NOTHING} model card"),
        tag("style", Html(css.replace("\r\n", "\n") + _CARD_CSS)),
    )
    entries = [tag("li", tag("a", part.title, href=f"#{part.id}")) for part in parts]
    rail = tag("nav", tag("p", "mlflywheel", class_="brand"), tag("ol", entries), aria_label="Contents", class_="rail")
    tone = _TONES[version.state]
    badge = tag("span", tag("b", _SIGNS[tone], aria_hidden="true"), str(version.state), class_=f"badge {tone}")
    header = tag(
        "header",
        tag("p", tag("span", "Model card"), class_="above"),
        tag("div", tag("h1", version.reference), badge, class_="heading"),
        class_="top",
    )
    footer = tag("footer", _FOOT.format(__version__, _DOI))
    page = tag("main", header, [_draw_part(part) for part in parts], footer)
    body = tag("body", tag("div", rail, page, class_="frame card-page"))
    return f'<!doctype html>\n<html lang="en">{head}{body}</html>\n'


def write_card(
    markdown: Path,
    page: Path,
    version: ModelVersion,
    dossier: Mapping[str, Any] | None,
    history: Sequence[Transition],
    testscore: Mapping[str, Any] | None = None,
) -> None:
    """Write a version's card as Markdown and as a page.

    Args:
        markdown: Where the Markdown goes; its folder is made.
        page: Where the page goes; its folder is made.
        version: As for `render_card`, like the others.
        dossier: See there.
        history: See there.
        testscore: See there.
    """
    for path, render in ((markdown, render_card), (page, render_card_html)):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(render(version, dossier, history, testscore), encoding="utf-8")


# Markdown


def _write_block(block: Block) -> Iterator[str]:
    if isinstance(block, Text):
        yield _plain(block.text)
    elif isinstance(block, Heading):
        yield f"### {_plain(block.text)}"
    elif isinstance(block, Missing):
        yield f"> **Missing.** {_plain(block.what)}. To get it: {_inline(block.how)}."
    elif isinstance(block, Points):
        yield from (f"- {_plain(point)}" for point in block.points)
    elif isinstance(block, Listing):
        fence = "`" * max(3, _longest_run(block.text) + 1)
        yield from (fence, *_CONTROLS.sub("\ufffd", block.text).splitlines(), fence)
    elif isinstance(block, Facts):
        yield from _write_table(("", ""), block.rows, frozenset())
    elif isinstance(block, Brief):
        answers = [(line.question, line.answer, tell_outcomes(line.gates)) for line in block.lines]
        yield from _write_table(("Question", "Answer", "Gates"), answers, frozenset())
    else:
        yield from _write_table(block.headings, block.rows, block.numbers)


def _write_table(headings: Sequence[str], rows: Sequence[Sequence[Value]], numbers: frozenset[int]) -> Iterator[str]:
    yield "| " + " | ".join(_plain(heading) for heading in headings) + " |"
    yield "|" + "|".join("---:" if index in numbers else "---" for index in range(len(headings))) + "|"
    for row in rows:
        yield "| " + " | ".join(_write_value(value) for value in row) + " |"


def _write_value(value: Value) -> str:
    # How a pipe is written within code within a table differs from reader to reader.
    if isinstance(value, Code) and "|" not in value:
        return _code(value)
    return _plain(_flatten(value), False)


def _code(text: str) -> str:
    """Write text as a code span, whatever is in it."""
    flat = _flatten(text)
    if not flat:
        return ""
    fence = "`" * (_longest_run(flat) + 1)
    # A space on both sides is dropped again, and keeps a backtick from the fence.
    gap = " " if flat.startswith("`") or flat.endswith("`") else ""
    return f"{fence}{gap}{flat}{gap}{fence}"


def _inline(text: str) -> str:
    """Write a text of ours in which code stands between backticks."""
    pieces = _flatten(text).split("`")
    return "".join(_code(piece) if index % 2 else _plain(piece, False) for index, piece in enumerate(pieces))


def _plain(text: str, at_start: bool = True) -> str:
    r"""Keep text of the data from becoming markup, a link, another cell or another block.

    >>> _plain("<b> *a* [x](y) | z")
    '&lt;b&gt; \\*a\\* \\[x\\](y) &#124; z'
    """
    flat = _flatten(text) if at_start else _CONTROLS.sub("\ufffd", text)
    # Underscores within words are not markup in CommonMark.
    escaped = re.sub(r"([\\`*\[\]~])|(?<![^\W_])(_)|(_)(?![^\W_])", r"\\\g<0>", escape(flat, quote=False))
    escaped = escaped.replace("|", "&#124;")
    # Addresses become links by themselves on GitHub.
    escaped = re.sub(r"(?i)\b(https?|ftp|mailto|xmpp)(:)", r"\1&#58;", escaped)
    escaped = re.sub(r"(?i)\bwww\.", "www&#46;", escaped)
    if at_start:
        escaped = re.sub(r"^([#+=-])", r"\\\1", escaped)
        escaped = re.sub(r"^(\d+)([.)])(?=\s|$)", r"\1\\\2", escaped)
    return escaped


def _flatten(text: str) -> str:
    return " ".join(_CONTROLS.sub("\ufffd", text).split())


def _longest_run(text: str) -> int:
    return max((len(run) for run in re.findall("`+", text)), default=0)


# HTML


def _draw_part(part: Part) -> Html:
    return tag(
        "section", tag("h2", part.title), [_draw_block(block) for block in part.blocks], id=part.id, class_="part"
    )


def _draw_block(block: Block) -> Html:
    if isinstance(block, Text):
        return tag("p", block.text)
    if isinstance(block, Heading):
        return tag("h3", block.text)
    if isinstance(block, Missing):
        return tag(
            "p",
            tag("b", "Missing. "),
            f"{block.what}. To get it: ",
            _draw_inline(block.how),
            ".",
            class_="missing",
        )
    if isinstance(block, Points):
        return tag("ul", [tag("li", point) for point in block.points], class_="points")
    if isinstance(block, Listing):
        return tag("pre", tag("code", block.text))
    if isinstance(block, Facts):
        rows = [[Cell(tag("span", name)), _draw_value(value)] for name, value in block.rows]
        return _without_head("Facts", rows)
    if isinstance(block, Brief):
        return draw_brief(block.lines)
    columns = [Column(name, "end" if index in block.numbers else "start") for index, name in enumerate(block.headings)]
    drawn = [[_draw_value(value) for value in row] for row in block.rows]
    return table(block.caption, columns, drawn, row_classes=block.tones, sortable=False)


def _without_head(caption: str, rows: Sequence[Sequence[Cell]]) -> Html:
    body = [tag("tr", tag("th", name.html, scope="row"), tag("td", value.html)) for name, value in rows]
    filled = tag("table", tag("caption", caption, class_="unseen"), tag("tbody", body), class_="pairs")
    return tag("div", tag("div", filled, class_="scroll"), class_="table")


def _draw_value(value: Value) -> Cell:
    if isinstance(value, Code):
        return Cell(code_name(value))
    return Cell(tag("span", value, class_="none" if value == NOTHING else None))


def _draw_inline(text: str) -> list[Any]:
    return [tag("code", piece) if index % 2 else piece for index, piece in enumerate(text.split("`"))]
