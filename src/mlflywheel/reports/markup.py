"""Markup that is escaped unless it was built here: the report's only way from data to HTML."""

import json
import re
from collections.abc import Iterable
from html import escape
from typing import Any

# C0 and C1 controls are invalid in HTML; a lone surrogate cannot be written as UTF-8 at all.
_UNWRITABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
_VOID_TAGS = frozenset({"meta", "br", "hr", "path", "circle", "line"})


class Html(str):
    """Text that is markup already. Made by `tag` and `join`; a plain `str` is data and gets escaped."""

    __slots__ = ()


def text(value: Any) -> Html:
    """Escape a value for element content and for quoted attributes.

    >>> text("<b> & 'c'")
    '&lt;b&gt; &amp; &#x27;c&#x27;'
    """
    if isinstance(value, Html):
        return value
    return Html(escape(_UNWRITABLE.sub("\ufffd", str(value)), quote=True))


def join(*children: Any) -> Html:
    """Put children after each other: strings are escaped, None is left out, iterables are opened.

    >>> join("a < b", None, [tag("b", "c"), 1])
    'a &lt; b<b>c</b>1'
    """
    parts: list[str] = []
    for child in children:
        if child is None:
            continue
        if isinstance(child, str):
            parts.append(text(child))
        elif isinstance(child, Iterable):
            parts.append(join(*child))
        else:
            parts.append(text(child))
    return Html("".join(parts))


def tag(name: str, /, *children: Any, **attributes: Any) -> Html:
    """Build one element.

    Args:
        name: The element's name. It and the attributes' names come from our code, never from data.
        children: As in `join`.
        attributes: `class_` and `for_` lose the trailing underscore, other underscores become hyphens. None and False
            leave the attribute out, True writes it without a value.

    >>> tag("td", "1 < 2", class_="number", data_sort=1.5, hidden=False)
    '<td class="number" data-sort="1.5">1 &lt; 2</td>'
    """
    written = "".join(
        f" {key}" if value is True else f' {key}="{text(value)}"'
        for key, value in ((k.rstrip("_").replace("_", "-"), v) for k, v in attributes.items())
        if value is not None and value is not False
    )
    if name in _VOID_TAGS and not children:
        return Html(f"<{name}{written}/>" if name in {"path", "circle", "line"} else f"<{name}{written}>")
    return Html(f"<{name}{written}>{join(*children)}</{name}>")


def code_name(name: Any) -> Html:
    """Show an identifier as code that may wrap after its underscores, dots and slashes, and nowhere else.

    >>> code_name("topic_npmi")
    '<code class="name">topic_<wbr>npmi</code>'
    """
    parts = [part for part in re.split(r"(?<=[_./])(?=[^_./])", str(name)) if part]
    return tag("code", [[Html("<wbr>") if index else None, part] for index, part in enumerate(parts)], class_="name")


def json_script(value: Any, **attributes: Any) -> Html:
    r"""Embed JSON values as a script element that is data and cannot be left early.

    `<`, `>` and `&` are written as JSON escapes, so neither `</script>` nor `<!--` can occur in it.

    >>> json_script(["</script>"])
    '<script type="application/json">["\\u003c/script\\u003e"]</script>'
    """
    written = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        written = written.replace(character, f"\\u{ord(character):04x}")
    written = _UNWRITABLE.sub("\ufffd", written)
    return tag("script", Html(written), type="application/json", **attributes)
