"""Reading YAML and JSON into plain values that know their lines.

The values are built from the parser's events, without PyYAML's composer and constructors: this keeps the line of every
key, is not recursive (libyaml's composer breaks the process on deep nesting), and reads scalars as Kubernetes' own YAML
reader does: dates and `12:30` stay text, keys are always text.
"""

import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import yaml

from mlflywheel.errors import UsageError
from mlflywheel.lint.findings import RULES, Finding

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_SUFFIXES = (".yaml", ".yml", ".json")
_KUSTOMIZATIONS = ("kustomization.yaml", "kustomization.yml", "Kustomization")
_LARGEST_FILE = 32 * 2**20
#: Deeper than any manifest; the API server has a limit too.
_DEEPEST = 200
#: Values of one document, with those that aliases repeat.
_MOST_VALUES = 1_000_000

_NULLS = frozenset(("", "~", "null", "Null", "NULL"))
_TRUE = frozenset(("true", "True", "TRUE", "yes", "Yes", "YES", "on", "On", "ON", "y", "Y"))
_FALSE = frozenset(("false", "False", "FALSE", "no", "No", "NO", "off", "Off", "OFF", "n", "N"))
_INTEGER = re.compile(r"[-+]?(?:0[bB][01_]+|0[oO]?[0-7_]+|0[xX][0-9a-fA-F_]+|[1-9][0-9_]*|0)")
_FLOAT = re.compile(r"[-+]?(?:[0-9][0-9_]*\.?[0-9_]*|\.[0-9_]+)(?:[eE][-+]?[0-9]+)?")
_LONGEST_NUMBER = 400


class LinedMapping(dict[str, Any]):
    """A mapping that knows the line of each key, from 1."""

    __slots__ = ("lines",)

    def __init__(self) -> None:
        super().__init__()
        self.lines: dict[str, int] = {}


class LinedList(list[Any]):
    """A list that knows the line of each entry, from 1."""

    __slots__ = ("lines",)

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[int] = []


@dataclass(frozen=True)
class Document:
    """One document of a file.

    Attributes:
        value: What it holds: mappings, lists and scalars.
        file: Where it was read, for messages.
        line: Its first line, from 1, if it is known.
        problems: What was found while reading it; where this is an error, `value` may be None.
    """

    value: Any
    file: str = "document"
    line: int | None = None
    problems: tuple[Finding, ...] = ()


def read_paths(paths: Sequence[Path | Literal["-"]]) -> Iterator[Document]:
    """Read files, folders with all folders below, and standard input (`-`).

    Of a folder, files that end in .yaml, .yml or .json are read, in the order of their paths. Kustomizations and files
    in hidden folders are not; a kustomization leaves a note.

    Args:
        paths: What to read.

    Raises:
        UsageError: A path does not exist.
    """
    for path in paths:
        if path == "-":
            yield from read_text(sys.stdin.buffer.read(_LARGEST_FILE + 1), "-")
        elif path.is_dir():
            for file in sorted(path.rglob("*")):
                hidden = any(part.startswith(".") for part in file.relative_to(path).parts)
                if not hidden and (file.suffix in _SUFFIXES or file.name in _KUSTOMIZATIONS) and file.is_file():
                    yield from _read_file(file)
        elif path.exists():
            yield from _read_file(path)
        else:
            raise UsageError(str(path), "no such file or folder", "a file, a folder or - is needed", "correct the path")


def _read_file(file: Path) -> Iterator[Document]:
    if file.name in _KUSTOMIZATIONS:
        reason = "a kustomization says how to render manifests, and is none"
        fix = f"run kubectl kustomize {file.parent} | mlflywheel lint -"
        yield Document(None, str(file), problems=(_problem("kustomization-skipped", str(file), None, reason, fix),))
        return
    try:
        with file.open("rb") as opened:
            content = opened.read(_LARGEST_FILE + 1)
    except OSError as error:
        reason = error.strerror or str(error)
        yield _unreadable(str(file), None, f"it cannot be opened: {reason}", "check the file")
        return
    yield from read_text(content, str(file))


def read_text(content: bytes | str, file: str = "document") -> Iterator[Document]:
    r"""Read the documents of one text.

    Args:
        content: YAML or JSON, in UTF-8; of YAML, any number of documents.
        file: What it is called in findings.

    Yields:
        The documents that are not empty. The last one has an error among its problems if the rest could not be read.

    >>> [document.line for document in read_text("kind: A\n---\n---\nkind: B")]
    [1, 4]
    """
    if len(content) > _LARGEST_FILE:
        yield _unreadable(file, None, f"it is larger than {_LARGEST_FILE // 2**20} MiB", "lint it in parts")
        return
    try:
        text = content if isinstance(content, str) else content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        yield _unreadable(file, line, f"it is not UTF-8: {error.reason} at byte {error.start}", "save it as UTF-8")
        return
    reader = _Reader(file)
    try:
        for event in yaml.parse(text, _LOADER):
            document = reader.take(event)
            if document is not None:
                yield document
    except _RefusedError as error:
        yield _unreadable(file, error.line, error.reason, error.fix)
    except (yaml.YAMLError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        reason = " ".join(str(getattr(error, "problem", None) or getattr(error, "reason", error)).split())
        fix = "mend the syntax; nothing after it was read"
        yield _unreadable(file, None if mark is None else mark.line + 1, f"it is not YAML or JSON: {reason}", fix)


class _RefusedError(Exception):
    def __init__(self, line: int, reason: str, fix: str) -> None:
        super().__init__(reason)
        self.line = line
        self.reason = reason
        self.fix = fix


class _Open:
    """A mapping or list that is being read."""

    __slots__ = ("anchor", "before", "container", "key", "merges")

    def __init__(self, container: LinedMapping | LinedList, anchor: str | None, before: int) -> None:
        self.container = container
        self.anchor = anchor
        self.before = before
        #: The key that waits for its value, its line, and whether it is the merge key.
        self.key: tuple[str, int, bool] | None = None
        self.merges: list[Any] = []


class _Reader:
    """Builds values from a parser's events, one at a time."""

    def __init__(self, file: str) -> None:
        self._file = file
        self._start()

    def _start(self) -> None:
        self._stack: list[_Open] = []
        #: Value and number of values of each anchor; None while it is still open.
        self._anchors: dict[str, tuple[Any, int] | None] = {}
        self._count = 0
        self._root: Any = None
        self._line: int | None = None
        self._problems: list[Finding] = []

    def take(self, event: yaml.Event) -> Document | None:
        """Take one event; return a document when it has ended, unless it is empty."""
        line = 1 if event.start_mark is None else event.start_mark.line + 1
        if isinstance(event, yaml.ScalarEvent):
            # libyaml says '' for what PyYAML says None.
            plain = not event.style
            tagged_text = event.tag is not None and event.tag.endswith(":str")
            value = _resolve(event.value) if plain and not tagged_text else event.value
            self._count += 1
            if event.anchor is not None:
                self._anchors[event.anchor] = (value, 1)
            self._place(value, line, event.value, plain)
        elif isinstance(event, yaml.MappingStartEvent | yaml.SequenceStartEvent):
            container = LinedMapping() if isinstance(event, yaml.MappingStartEvent) else LinedList()
            if len(self._stack) >= _DEEPEST:
                raise _RefusedError(line, f"it is nested deeper than {_DEEPEST} levels", "make it flatter")
            self._count += 1
            self._place(container, line, None, False)
            if event.anchor is not None:
                self._anchors[event.anchor] = None
            self._stack.append(_Open(container, event.anchor, self._count))
        elif isinstance(event, yaml.MappingEndEvent | yaml.SequenceEndEvent):
            self._close(self._stack.pop())
        elif isinstance(event, yaml.AliasEvent):
            if event.anchor not in self._anchors:
                raise _RefusedError(line, f"the alias *{event.anchor} has no anchor", "write the anchor before it")
            known = self._anchors[event.anchor]
            if known is None:
                raise _RefusedError(line, f"the alias *{event.anchor} is a part of itself", "write it out")
            self._count += known[1]
            self._place(known[0], line, known[0] if isinstance(known[0], str) else None, False)
        elif isinstance(event, yaml.DocumentStartEvent):
            self._start()
        elif isinstance(event, yaml.DocumentEndEvent) and (self._root is not None or self._problems):
            return Document(self._root, self._file, self._line, tuple(self._problems))
        if self._count > _MOST_VALUES:
            raise _RefusedError(line, f"it has more than {_MOST_VALUES} values", "split it, or write aliases out")
        return None

    def _place(self, value: Any, line: int, text: str | None, plain: bool) -> None:
        if not self._stack:
            self._root, self._line = value, line
            return
        top = self._stack[-1]
        if isinstance(top.container, LinedList):
            top.container.append(value)
            top.container.lines.append(line)
        elif top.key is None:
            if text is None:
                raise _RefusedError(line, "a key is a mapping or a list", "render the template first, or quote the key")
            top.key = (text, line, plain and text == "<<")
        else:
            key, key_line, merge = top.key
            top.key = None
            if merge:
                # A list of mappings is still empty here.
                top.merges.append(value)
                return
            if key in top.container:
                first = top.container.lines[key]
                reason = f"the key {key[:60]!r} stands here a second time, first in line {first}"
                self._problems.append(_problem("duplicate-key", self._file, key_line, reason, "remove one of them"))
            top.container[key] = value
            top.container.lines[key] = key_line

    def _close(self, ended: _Open) -> None:
        container = ended.container
        if isinstance(container, LinedMapping):
            for merged in chain.from_iterable(each if isinstance(each, list) else [each] for each in ended.merges):
                for key, value in merged.items() if isinstance(merged, LinedMapping) else ():
                    if key not in container:
                        container[key] = value
                        container.lines[key] = merged.lines[key]
        if ended.anchor is not None:
            self._anchors[ended.anchor] = (container, self._count - ended.before + 1)


def _resolve(text: str) -> Any:
    if text in _NULLS:
        return None
    first = text[0]
    if first in "0123456789+-." and len(text) <= _LONGEST_NUMBER:
        digits = text.replace("_", "")
        try:
            if _INTEGER.fullmatch(text):
                bare = digits.lstrip("+-")
                octal = len(bare) > 1 and bare[0] == "0" and bare[1].isdigit()
                return int(digits, 8 if octal else 0)
            if _FLOAT.fullmatch(text):
                return float(digits)
        except ValueError:
            # Such as 0x_, which has no digit.
            pass
        return text
    if text in _TRUE:
        return True
    return False if text in _FALSE else text


def find_line(value: Any, path: Iterable[str | int], line: int | None) -> int | None:
    """Return the line of a field, or of the nearest one above it that is there.

    Args:
        value: What `read_text` returned, or any other value, which has no lines.
        path: Keys and indexes.
        line: The line of the value itself.
    """
    for part in path:
        lines = getattr(value, "lines", None)
        if isinstance(value, dict) and part in value:
            value = value[part]
            line = lines[str(part)] if lines else line
        elif isinstance(value, list) and isinstance(part, int) and part < len(value):
            value = value[part]
            line = lines[part] if lines else line
        else:
            break
    return line


def _unreadable(file: str, line: int | None, reason: str, fix: str) -> Document:
    return Document(None, file, line, (_problem("unreadable", file, line, reason, fix),))


def _problem(rule: str, file: str, line: int | None, reason: str, fix: str) -> Finding:
    place = file if line is None else f"{file}:{line}"
    return Finding(rule, RULES[rule].severity, place, reason, fix, file, line)
