"""What callers of a model rely on, and what a new version changes of it.

Two schemas are compared as sets. Every request that was valid has to stay valid, so a request's schema may only widen.
Every answer that is given now has to be one that was possible before, so an answer's schema may only narrow; fields
that are added to an answer are compatible, because callers ignore what they do not know. What breaks callers blocks a
registration through the gate on `breaking_contract_changes`, unless the major version of the contract rises
(Semantic Versioning 2.0.0, rule 8).

Schemas are JSON Schema 2020-12 as pydantic writes them. A keyword that is not compared here counts as breaking where it
changed: it may be one.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa
from pydantic import BaseModel, ValidationError

from mlflywheel.models.contract import Evaluation, Measurement, Model, Section

Side = Literal["request", "response"]
#: What a change does to the set of valid values. `changes` is neither a subset nor a superset, or not known to be one.
Effect = Literal["narrows", "widens", "changes", "removes", "adds", "keeps"]
_BREAKING: Mapping[Side, frozenset[Effect]] = {
    "request": frozenset({"narrows", "changes"}),
    "response": frozenset({"widens", "changes", "removes"}),
}

# Words for people, which no caller's program reads.
_ANNOTATIONS = frozenset(
    {"title", "description", "examples", "example", "deprecated", "readOnly", "writeOnly", "discriminator"}
    | {"$comment", "$schema", "$id", "$defs", "definitions"}
)
_TYPES = ("null", "boolean", "integer", "number", "string", "array", "object")
# Keyword, and whether a larger number allows less.
_BOUNDS: Mapping[str, bool] = {
    "minimum": True,
    "exclusiveMinimum": True,
    "minLength": True,
    "minItems": True,
    "minProperties": True,
    "maximum": False,
    "exclusiveMaximum": False,
    "maxLength": False,
    "maxItems": False,
    "maxProperties": False,
}
# Where a keyword says something; elsewhere JSON Schema ignores it.
_KEYWORDS: Mapping[str, tuple[str, ...]] = {
    "integer": ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
    "number": ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
    "string": ("minLength", "maxLength", "pattern", "format", "contentEncoding", "contentMediaType"),
    "array": ("minItems", "maxItems", "uniqueItems", "items", "prefixItems"),
    "object": ("minProperties", "maxProperties", "properties", "required", "additionalProperties"),
}
_COMPARED = frozenset(
    {"type", "nullable", "enum", "const", "anyOf", "oneOf", "allOf", "$ref", "default"}
    | {name for names in _KEYWORDS.values() for name in names}
)
_SHOWN_CHARACTERS = 80


@dataclass(frozen=True)
class ContractChange:
    """One difference between two contracts.

    Args:
        side: Whether requests or answers differ.
        pointer: JSON pointer (RFC 6901) to what differs in a request or answer; `-` stands for every element of a list
            and `*` for every value of a mapping.
        what: What differs, in words.
        effect: What that does to the set of valid values.
        why: Why it breaks callers, or why it does not.
    """

    side: Side
    pointer: str
    what: str
    effect: Effect
    why: str

    @property
    def is_breaking(self) -> bool:
        """Whether a caller that worked before may fail now."""
        return self.effect in _BREAKING[self.side]


def describe_contract(model_class: type[Model], answer: pa.Schema | None = None) -> dict[str, Any]:
    """Describe what callers of a model rely on.

    Args:
        model_class: The model.
        answer: Schema of the table that `predict` returns, where it is known.

    Returns:
        JSON values: `version`, the schemas `request` (what is accepted) and `response` (what is written), `example`,
        and with `answer` the Arrow types of its `columns` by name.

    >>> from mlflywheel.models.contract import load_model_class
    >>> described = describe_contract(load_model_class("vehicle-price"))
    >>> described["version"], described["request"]["additionalProperties"], described["example"]["make"]
    ('1', False, 'Volkswagen')
    """
    described: dict[str, Any] = {
        "version": model_class.contract_version,
        "request": model_class.Request.model_json_schema(mode="validation"),
        "response": model_class.Response.model_json_schema(mode="serialization"),
        "example": model_class.example_request(),
    }
    if answer is not None:
        described["columns"] = {field.name: str(field.type) for field in answer}
    return described


def list_contract_changes(
    new: Mapping[str, Any], old: Mapping[str, Any], request_class: type[BaseModel] | None = None
) -> tuple[ContractChange, ...]:
    """List every difference between two contracts, breaking or not.

    Args:
        new: As `describe_contract` returns it.
        old: The same of the version before.
        request_class: The new request class; with it the old example is validated, which also meets rules that no
            schema can say.

    Returns:
        Changes of requests, then those of answers, each in the order of the schemas; none for equal contracts.

    >>> before = {"request": {"type": "integer"}, "response": {"type": "number"}, "example": 1}
    >>> after = {"request": {"type": "number"}, "response": {"type": ["number", "null"]}, "example": 1}
    >>> [(change.side, change.what, change.is_breaking) for change in list_contract_changes(after, before)]
    [('request', 'type integer becomes number', False), ('response', 'may be null now', True)]
    """
    changes = list(_compare_side("request", old.get("request"), new.get("request")))
    if request_class is not None and "example" in old:
        changes.extend(_check_example(old["example"], request_class))
    changes.extend(_compare_side("response", old.get("response"), new.get("response")))
    changes.extend(_compare_columns(old.get("columns"), new.get("columns")))
    return tuple(changes)


def compare_contracts(
    new: Mapping[str, Any],
    old: Mapping[str, Any] | None,
    reference: str,
    request_class: type[BaseModel] | None = None,
) -> Evaluation:
    """Count what a new version's contract changes of a registered one's.

    Args:
        new: As `describe_contract` returns it.
        old: The contract of the version that callers know; None, or one without schemas, where there is none.
        reference: What to call that version, `NAME@VERSION`; empty where there is none.
        request_class: See `list_contract_changes`.

    Returns:
        The measurements `breaking_contract_changes`, which is 0 if the major version of the contract rises, and
        `contract_changes`; both have no value without an older contract. The section lists the changes.
    """
    if not reference or old is None or "request" not in old or "response" not in old:
        note = f"{reference} was registered without a contract" if reference else "no version to compare with"
        names = ("breaking_contract_changes", "contract_changes")
        return Evaluation(tuple(Measurement(name, None, note=note, about="contract") for name in names))
    changes = list_contract_changes(new, old, request_class)
    breaking = [change for change in changes if change.is_breaking]
    versions = f"{old.get('version', '?')} to {new.get('version', '?')}"
    rises = _raises_major(str(old.get("version", "")), str(new.get("version", "")))
    listed = "; ".join(f"{change.side}{change.pointer}: {change.what}" for change in breaking)
    if breaking and rises:
        note = f"the major version rises from {versions}, so {len(breaking)} breaking changes are announced: {listed}"
    elif breaking:
        note = f"against {reference}: {listed}"
    else:
        note = f"against {reference}"
    return Evaluation(
        (
            Measurement(
                "breaking_contract_changes", 0.0 if rises else float(len(breaking)), note=note, about="contract"
            ),
            Measurement("contract_changes", float(len(changes)), note=f"against {reference}", about="contract"),
        ),
        (_list_changes(changes, reference, versions, rises),),
    )


def _list_changes(changes: Sequence[ContractChange], reference: str, versions: str, rises: bool) -> Section:
    title = "Contract with callers"
    if not changes:
        return Section("text", title, f"Requests and answers have the shape of those of {reference}.")
    breaking = sum(change.is_breaking for change in changes)
    told = f"Beside {reference}, {breaking} of {len(changes)} differences break callers."
    if breaking:
        told += (
            f" The major version of the contract rises from {versions}, which announces that."
            if rises
            else f" The version of the contract goes from {versions}; a higher major version would announce that."
        )
    rows = [
        [
            change.side,
            change.pointer or "/",
            change.what,
            "breaking" if change.is_breaking else "compatible",
            change.why,
        ]
        for change in sorted(changes, key=lambda change: not change.is_breaking)
    ]
    columns = [{"name": name, "kind": "text"} for name in ("Side", "Where", "Change", "Class", "Why")]
    return Section("table", title, told, {"columns": columns, "rows": rows, "sortable": False})


def _raises_major(old: str, new: str) -> bool:
    before, after = (re.match(r"\d+", version) for version in (old, new))
    return before is not None and after is not None and int(after[0]) > int(before[0])


def _check_example(example: Any, request_class: type[BaseModel]) -> Iterator[ContractChange]:
    try:
        request_class.model_validate(example)
    except ValidationError as error:
        first = error.errors()[0]
        place = "".join(f"/{_escape(str(part))}" for part in first["loc"])
        yield ContractChange(
            "request",
            place,
            f"the example that was documented is refused: {first['msg']}",
            "narrows",
            "callers who send what the example shows are refused",
        )


def _compare_columns(old: Any, new: Any) -> Iterator[ContractChange]:
    if not isinstance(old, Mapping) or not isinstance(new, Mapping):
        return
    for name, kind in old.items():
        place = f"/{_escape(str(name))}"
        if name not in new:
            why = "readers of the scores miss it"
            yield ContractChange("response", place, f"column {name} of the scores is gone", "removes", why)
        elif new[name] != kind:
            what = f"column {name} of the scores was {kind} and is {new[name]}"
            yield ContractChange("response", place, what, "changes", "readers of the scores expect the old type")
    for name, kind in new.items():
        if name not in old:
            why = "readers of the scores ignore what they do not know"
            yield ContractChange("response", f"/{_escape(str(name))}", f"column {name} ({kind}) is new", "adds", why)


def _compare_side(side: Side, old: Any, new: Any) -> Iterator[ContractChange]:
    comparison = _Comparison(side, old, new)
    yield from comparison.compare(old, new, "")


_WHY: Mapping[tuple[Side, Effect], str] = {
    ("request", "narrows"): "requests that were valid are refused",
    ("request", "widens"): "every request that was valid still is",
    ("request", "changes"): "requests that were valid may be refused",
    ("request", "removes"): "the field is ignored when it is sent",
    ("request", "adds"): "it may be left out",
    ("request", "keeps"): "every request that was valid still is",
    ("response", "narrows"): "every answer was possible before",
    ("response", "widens"): "callers may get what they never got",
    ("response", "changes"): "callers may get what they never got",
    ("response", "removes"): "callers that read it fail",
    ("response", "adds"): "callers ignore what they do not know",
    ("response", "keeps"): "every answer was possible before",
}


class _Comparison:
    """The comparison of one side's two schemas."""

    def __init__(self, side: Side, old: Any, new: Any) -> None:
        self.side = side
        self.roots = old, new
        # Pairs that are being compared: a recursive schema leads back to one of them.
        self._open: set[tuple[str, str]] = set()

    def compare(self, old: Any, new: Any, at: str) -> Iterator[ContractChange]:
        """Compare what two schemas allow at a place."""
        pair = _write(old), _write(new)
        if pair in self._open:
            return
        self._open.add(pair)
        yield from self._compare_defaults(old, new, at)
        before, after = (_expand(schema, root) for schema, root in zip((old, new), self.roots, strict=True))
        yield from self._compare_alternatives(before, after, at)
        self._open.discard(pair)

    def _tell(self, at: str, what: str, effect: Effect, why: str = "") -> ContractChange:
        return ContractChange(self.side, at, what, effect, why or _WHY[self.side, effect])

    def _compare_defaults(self, old: Any, new: Any, at: str) -> Iterator[ContractChange]:
        before, after = (
            schema.get("default", _NOTHING) if isinstance(schema, Mapping) else _NOTHING for schema in (old, new)
        )
        # JSON tells true from 1, and Python does not.
        if _write(before) != _write(after):
            what = f"default {_show(before)} becomes {_show(after)}"
            yield self._tell(at, what, "keeps", "no value becomes valid or invalid by it")

    def _compare_alternatives(
        self, old: list[dict[str, Any]], new: list[dict[str, Any]], at: str
    ) -> Iterator[ContractChange]:
        """Compare unions: alternatives are paired by type, several of one type by title."""
        if not _is_open(old) and _is_open(new):
            yield self._tell(at, f"{_name(old)} becomes any value", "widens")
            return
        if _is_open(old) and not _is_open(new):
            yield self._tell(at, f"any value becomes {_name(new)}", "narrows")
            return
        left, right = _drop_equal(old, new, self.roots)
        pairs = _pair(left, right)
        gone = [one for one in left if not any(one is before for before, _ in pairs)]
        come = [one for one in right if not any(one is after for _, after in pairs)]
        if gone and come and not pairs and len(old) == len(left) and len(new) == len(right):
            yield self._tell(at, f"type {_name(gone)} becomes {_name(come)}", "changes")
            return
        for one in gone:
            if one.get("type") == "null":
                yield self._tell(at, "may not be null any more", "narrows")
            else:
                yield self._tell(at, f"may not be {_name([one])} any more", "narrows")
        for one in come:
            what = "may be null now" if one.get("type") == "null" else f"may be {_name([one])} now"
            yield self._tell(at, what, "widens")
        for before, after in pairs:
            yield from self._compare_one(before, after, at)

    def _compare_one(self, old: Mapping[str, Any], new: Mapping[str, Any], at: str) -> Iterator[ContractChange]:
        """Compare two schemas of one type."""
        kinds = old.get("type", ""), new.get("type", "")
        if kinds == ("integer", "number"):
            yield self._tell(at, "type integer becomes number", "widens")
        elif kinds == ("number", "integer"):
            yield self._tell(at, "type number becomes integer", "narrows")
        yield from self._compare_enums(old, new, at)
        for keyword in _KEYWORDS.get(kinds[1] or "", ()):
            if keyword in _BOUNDS:
                yield from self._compare_bounds(keyword, old, new, at)
        if "string" in kinds:
            for keyword in ("pattern", "format", "contentEncoding", "contentMediaType"):
                yield from self._compare_restrictions(keyword, old, new, at)
        if kinds[1] in ("integer", "number"):
            yield from self._compare_multiples(old, new, at)
        if kinds[1] == "array":
            yield from self._compare_lists(old, new, at)
        if kinds[1] == "object":
            yield from self._compare_objects(old, new, at)
        for keyword in sorted({*old, *new} - _COMPARED - _ANNOTATIONS):
            if not keyword.startswith("x-") and _write(old.get(keyword, _NOTHING)) != _write(
                new.get(keyword, _NOTHING)
            ):
                what = f"{keyword} {_show(old.get(keyword, _NOTHING))} becomes {_show(new.get(keyword, _NOTHING))}"
                yield self._tell(at, what, "changes", f"what {keyword} allows is not compared, so it may break callers")

    def _compare_enums(self, old: Mapping[str, Any], new: Mapping[str, Any], at: str) -> Iterator[ContractChange]:
        before, after = old.get("enum"), new.get("enum")
        if before is not None and after is not None:
            known, now = ([_write(value) for value in values] for values in (before, after))
            gone = [value for value in before if _write(value) not in now]
            come = [value for value in after if _write(value) not in known]
            if gone:
                yield self._tell(at, f"{_list(gone)} may not be a value any more", "narrows")
            if come:
                yield self._tell(at, f"{_list(come)} may be a value now", "widens")
        elif after is not None:
            yield self._tell(at, f"only {_list(after)} are left", "narrows")
        elif before is not None:
            yield self._tell(at, f"is no longer one of {_list(before)}", "widens")

    def _compare_bounds(
        self, keyword: str, old: Mapping[str, Any], new: Mapping[str, Any], at: str
    ) -> Iterator[ContractChange]:
        before, after = old.get(keyword), new.get(keyword)
        # The smallest length is 0 whether that is said or not.
        if keyword.startswith("min") and keyword != "minimum":
            before, after = before or None, after or None
        if before == after:
            return
        tightens = before is None or (after is not None and (after > before) == _BOUNDS[keyword])
        what = f"{keyword} {_show_bound(before)} becomes {_show_bound(after)}"
        yield self._tell(at, what, "narrows" if tightens else "widens")

    def _compare_restrictions(
        self, keyword: str, old: Mapping[str, Any], new: Mapping[str, Any], at: str
    ) -> Iterator[ContractChange]:
        before, after = old.get(keyword), new.get(keyword)
        if before == after:
            return
        effect: Effect = "narrows" if before is None else "widens" if after is None else "changes"
        yield self._tell(at, f"{keyword} {_show_bound(before)} becomes {_show_bound(after)}", effect)

    def _compare_multiples(self, old: Mapping[str, Any], new: Mapping[str, Any], at: str) -> Iterator[ContractChange]:
        before, after = old.get("multipleOf"), new.get("multipleOf")
        if before == after:
            return
        effect: Effect = "changes"
        if before is None or (after is not None and after % before == 0):
            effect = "narrows"
        elif after is None or before % after == 0:
            effect = "widens"
        yield self._tell(at, f"multipleOf {_show_bound(before)} becomes {_show_bound(after)}", effect)

    def _compare_lists(self, old: Mapping[str, Any], new: Mapping[str, Any], at: str) -> Iterator[ContractChange]:
        if bool(old.get("uniqueItems")) != bool(new.get("uniqueItems")):
            narrows = bool(new.get("uniqueItems"))
            what = "elements may not repeat any more" if narrows else "elements may repeat now"
            yield self._tell(at, what, "narrows" if narrows else "widens")
        before, after = old.get("prefixItems", ()), new.get("prefixItems", ())
        rest = _find_rest(old), _find_rest(new)
        for index in range(max(len(before), len(after))):
            first = before[index] if index < len(before) else rest[0]
            second = after[index] if index < len(after) else rest[1]
            yield from self.compare(first, second, f"{at}/{index}")
        yield from self.compare(*rest, f"{at}/-")

    def _compare_objects(self, old: Mapping[str, Any], new: Mapping[str, Any], at: str) -> Iterator[ContractChange]:
        before, after = old.get("properties", {}), new.get("properties", {})
        needed, needs = set(old.get("required", ())), set(new.get("required", ()))
        others = old.get("additionalProperties", True), new.get("additionalProperties", True)
        for name in before:
            place = f"{at}/{_escape(name)}"
            if name in after:
                yield from self._compare_presence(name in needed, name in needs, place)
                yield from self.compare(before[name], after[name], place)
            else:
                yield from self._compare_removed(before[name], others[1], place, _find_renamed(name, old, new))
                if name in needs - needed:
                    yield self._tell(place, "has to be there now", "narrows")
        for name in after:
            place = f"{at}/{_escape(name)}"
            if name in before:
                continue
            if self.side == "request" and name in needs:
                why = "requests without it are refused"
                yield self._tell(place, "is a new field that has to be there", "narrows", why)
            else:
                yield self._tell(place, f"is a new field ({_name(_expand(after[name], self.roots[1]))})", "adds")
        # Names that are required but have no schema of their own.
        for name in sorted((needs - set(after)) ^ (needed - set(before))):
            if name not in before and name not in after:
                yield from self._compare_presence(name in needed, name in needs, f"{at}/{_escape(name)}")
        yield from self._compare_other_fields(*others, at)

    def _compare_presence(self, was_needed: bool, is_needed: bool, at: str) -> Iterator[ContractChange]:
        if was_needed and not is_needed:
            yield self._tell(at, "may be left out now", "widens")
        elif is_needed and not was_needed:
            yield self._tell(at, "has to be there now", "narrows")

    def _compare_removed(self, field: Any, others: Any, at: str, renamed: str) -> Iterator[ContractChange]:
        hint = f", and {renamed} is new with the same schema" if renamed else ""
        if self.side == "response":
            yield self._tell(at, f"is gone{hint}", "removes")
        elif others is False:
            yield self._tell(at, f"is gone{hint}", "narrows", "other fields are refused, so requests with it are")
        else:
            yield self._tell(at, f"is gone{hint}", "removes")
            if others is not True:
                yield from self.compare(field, others, at)

    def _compare_other_fields(self, old: Any, new: Any, at: str) -> Iterator[ContractChange]:
        closed = old is False, new is False
        if closed == (True, True):
            return
        if closed == (False, True):
            # Answers lose what nobody declared.
            effect: Effect = "narrows" if self.side == "request" or not isinstance(old, Mapping) else "removes"
            yield self._tell(at, "other fields are not allowed any more", effect)
        elif closed == (True, False):
            yield self._tell(at, "other fields are allowed now", "adds")
        else:
            yield from self.compare(old, new, f"{at}/*")


class _Nothing:
    """Stands where a keyword is not written, which is not the same as null."""


_NOTHING = _Nothing()


def _escape(name: str) -> str:
    """Escape a name as RFC 6901 says."""
    return name.replace("~", "~0").replace("/", "~1")


def _write(value: Any) -> str:
    return "" if value is _NOTHING else json.dumps(value, sort_keys=True, default=str)


def _show(value: Any) -> str:
    text = "nothing" if value is _NOTHING else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}…"


def _show_bound(value: Any) -> str:
    return _show(_NOTHING if value is None else value)


def _list(values: Sequence[Any]) -> str:
    shown = ", ".join(_show(value) for value in values[:8])
    return shown if len(values) <= 8 else f"{shown} and {len(values) - 8} more"


def _find_rest(schema: Mapping[str, Any]) -> Any:
    """Return the schema of the elements after those that have one of their own; False where there can be none."""
    most = schema.get("maxItems")
    if "prefixItems" in schema and most is not None and most <= len(schema["prefixItems"]):
        return False
    return schema.get("items", True)


def _resolve(schema: Mapping[str, Any], root: Any) -> dict[str, Any]:
    """Follow references within the document; one that leads nowhere stays, and is compared as text."""
    found, met = dict(schema), set()
    while "$ref" in found:
        reference = str(found["$ref"])
        target = root
        for part in reference.removeprefix("#").split("/")[1:] if reference.startswith("#") else [""]:
            name = part.replace("~1", "/").replace("~0", "~")
            target = target.get(name) if isinstance(target, Mapping) else None
        if reference in met or not isinstance(target, Mapping):
            return {"unresolved": reference, **{name: value for name, value in found.items() if name != "$ref"}}
        met.add(reference)
        beside = {name: value for name, value in found.items() if name != "$ref"}
        found = {**target, **beside}
    return found


def _expand(schema: Any, root: Any, met: frozenset[str] = frozenset()) -> list[dict[str, Any]]:
    """Return the alternatives that a schema allows, each of one type; an empty mapping is any value."""
    if schema is True or schema is None:
        return [{}]
    if schema is False:
        return []
    if not isinstance(schema, Mapping):
        return [{"unresolved": schema}]
    reference = str(schema.get("$ref", ""))
    if reference in met:
        # A union that has itself among its alternatives allows what the others do.
        return []
    met = met | {reference} if reference else met
    found = _resolve(schema, root)
    parts = found.pop("allOf", None)
    if isinstance(parts, list):
        if len(parts) == 1 and isinstance(parts[0], Mapping):
            found = {**_resolve(parts[0], root), **found}
        else:
            # The intersection of several schemas is not computed: it is compared as text.
            found["allOf of several"] = parts
    for name in found.keys() - _COMPARED - _ANNOTATIONS:
        found[name] = _inline(found[name], root)
    for union in ("anyOf", "oneOf"):
        options = found.get(union)
        if isinstance(options, list):
            kept = found.keys() - _ANNOTATIONS - {union, "default"}
            beside = {name: value for name, value in found.items() if name in kept}
            expanded = [one for option in options for one in _expand(_merge(option, beside, root), root, met)]
            return [{}] if _is_open(expanded) else expanded
    return list(_split_types(found))


def _merge(option: Any, beside: Mapping[str, Any], root: Any) -> Any:
    if not beside or not isinstance(option, Mapping):
        return option
    return {**beside, **_resolve(option, root)}


def _inline(value: Any, root: Any, met: frozenset[str] = frozenset()) -> Any:
    """Write references out, so that text says what it means; a reference back to itself stays."""
    if isinstance(value, Mapping):
        reference = str(value.get("$ref", ""))
        if reference and reference not in met:
            return _inline(_resolve(value, root), root, met | {reference})
        return {name: _inline(part, root, met) for name, part in value.items()}
    return [_inline(part, root, met) for part in value] if isinstance(value, list) else value


def _split_types(schema: dict[str, Any]) -> Iterator[dict[str, Any]]:
    kept = {name: value for name, value in schema.items() if name not in _ANNOTATIONS and name != "default"}
    if "const" in kept:
        kept["enum"] = [kept.pop("const")]
    nullable = kept.pop("nullable", False)
    types = kept.pop("type", None)
    names = [types] if isinstance(types, str) else list(types or ())
    if not names and "enum" in kept:
        names = list(dict.fromkeys(_type_of(value) for value in kept["enum"]))
    if not names:
        names = [name for name, keywords in _KEYWORDS.items() if any(word in kept for word in keywords)][:1]
    if nullable and "null" not in names:
        names.append("null")
    if not names:
        yield kept
    for name in names:
        one: dict[str, Any] = {"type": name}
        one |= {word: kept[word] for word in kept if word not in _COMPARED or word in _KEYWORDS.get(name, ())}
        if "enum" in kept and name != "null":
            one["enum"] = [value for value in kept["enum"] if _is_of(value, name)]
        yield one


def _type_of(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int):
        return "integer"
    if isinstance(value, float):
        return "number"
    return "string" if isinstance(value, str) else "array" if isinstance(value, list) else "object"


def _is_of(value: Any, name: str) -> bool:
    return _type_of(value) == name or (name == "number" and _type_of(value) == "integer")


def _is_open(alternatives: Sequence[Mapping[str, Any]]) -> bool:
    """Say whether one of the alternatives allows any value."""
    return any(not one for one in alternatives)


def _name(alternatives: Sequence[Mapping[str, Any]]) -> str:
    """Name what a union allows."""
    if not alternatives:
        return "nothing"
    names = []
    for one in alternatives:
        if not one:
            name = "any value"
        elif "enum" in one:
            name = f"one of {_list(one['enum'])}"
        else:
            name = str(one.get("type") or f"what {', '.join(sorted(one))} says")
        if name not in names:
            names.append(name)
    return " or ".join(names)


def _drop_equal(
    old: list[dict[str, Any]], new: list[dict[str, Any]], roots: tuple[Any, Any]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Leave out alternatives that are the same and refer to nothing, which two documents might define differently."""
    left, right = [], list(new)
    for one in old:
        same = next((other for other in right if _write(one) == _write(other)), None)
        if same is None or '"$ref"' in _write(one):
            left.append(one)
        else:
            right.remove(same)
    return left, right


def _pair(old: Sequence[dict[str, Any]], new: Sequence[dict[str, Any]]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Pair alternatives of one type; integers pair with numbers where nothing else is left."""
    pairs: list[tuple[dict[str, Any], dict[str, Any]]] = []
    left, right = list(old), list(new)

    def take(before: dict[str, Any], after: dict[str, Any]) -> None:
        pairs.append((before, after))
        left[:] = [one for one in left if one is not before]
        right[:] = [one for one in right if one is not after]

    for kind in (*_TYPES, None):
        before = [one for one in left if one.get("type") == kind]
        after = [one for one in right if one.get("type") == kind]
        for one in before:
            best = max(after, key=lambda other: _count_shared(one, other), default=None)
            if best is not None:
                after = [other for other in after if other is not best]
                take(one, best)
    for one in list(left):
        kinds = {"integer": "number", "number": "integer"}.get(str(one.get("type")))
        partner = next((other for other in right if other.get("type") == kinds), None) if kinds else None
        if partner is not None:
            take(one, partner)
    return pairs


def _count_shared(old: Mapping[str, Any], new: Mapping[str, Any]) -> tuple[int, int]:
    """Say how alike two schemas of one type are: constants of their fields first, then field names."""
    before, after = old.get("properties", {}), new.get("properties", {})
    shared = [name for name in before if name in after]
    constants = sum(
        _write(before[name].get("const", _NOTHING)) == _write(after[name].get("const", _NOTHING))
        for name in shared
        if isinstance(before[name], Mapping) and isinstance(after[name], Mapping) and "const" in before[name]
    )
    return constants, len(shared)


def _find_renamed(name: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """Return the new field with the schema of one that is gone, if there is exactly one."""
    fields, now = old.get("properties", {}), new.get("properties", {})

    def strip(schema: Any) -> str:
        words = schema if isinstance(schema, Mapping) else {"schema": schema}
        return _write({word: value for word, value in words.items() if word not in _ANNOTATIONS})

    found = [other for other in now if other not in fields and strip(now[other]) == strip(fields[name])]
    return found[0] if len(found) == 1 else ""
