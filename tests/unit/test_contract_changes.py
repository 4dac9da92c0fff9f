"""Comparing what callers rely on: each kind of change is classified, and what is called compatible is compatible."""

from collections.abc import Callable
from copy import deepcopy
from random import Random
from typing import Any, Literal, Optional

import jsonschema
import pyarrow as pa
import pytest
from pydantic import BaseModel, ConfigDict, Field, model_validator

from mlflywheel.evaluation.contract import (
    compare_contracts,
    describe_contract,
    list_contract_changes,
)
from mlflywheel.models.contract import Evaluation, load_model_class

Schema = dict[str, Any]
Mutation = Callable[[Schema], None]

# One schema with every construct that is compared; both sides of the contract have it.
BASE: Schema = {
    "$defs": {
        "Node": {
            "type": "object",
            "title": "Node",
            "properties": {
                "label": {"type": "string", "maxLength": 20},
                "children": {"type": "array", "items": {"$ref": "#/$defs/Node"}},
                "next": {"anyOf": [{"$ref": "#/$defs/Node"}, {"type": "null"}], "default": None},
            },
            "required": ["label"],
            "additionalProperties": False,
        },
        "Cat": {
            "type": "object",
            "properties": {"kind": {"const": "cat", "type": "string"}, "lives": {"type": "integer"}},
            "required": ["kind"],
        },
        "Dog": {
            "type": "object",
            "properties": {"kind": {"const": "dog", "type": "string"}, "name": {"type": "string"}},
            "required": ["kind"],
        },
    },
    "type": "object",
    "properties": {
        "id": {"type": "string", "minLength": 1, "maxLength": 200, "description": "a name"},
        "year": {"anyOf": [{"type": "integer", "minimum": 1900, "maximum": 2100}, {"type": "null"}], "default": None},
        "fuel": {"type": "string", "enum": ["petrol", "diesel"]},
        "price": {"type": "number", "exclusiveMinimum": 0},
        "weights": {"type": "object", "additionalProperties": {"type": "number", "maximum": 9}},
        "tags": {"type": "array", "items": {"type": "string"}, "maxItems": 5, "uniqueItems": True},
        "pair": {
            "type": "array",
            "prefixItems": [{"type": "string"}, {"type": "integer"}],
            "minItems": 2,
            "maxItems": 2,
        },
        "tree": {"$ref": "#/$defs/Node"},
        "pet": {"oneOf": [{"$ref": "#/$defs/Cat"}, {"$ref": "#/$defs/Dog"}], "discriminator": {"propertyName": "kind"}},
        "code": {"type": "string", "pattern": "^[a-z]+$"},
        "count": {"type": "integer", "multipleOf": 2},
        "anything": {"title": "Anything"},
        "odd/na~me": {"type": "boolean"},
    },
    "required": ["id", "price"],
    "additionalProperties": False,
}


def put(path: str, value: Any) -> Mutation:
    """Return what writes a value at a path of the schema; None removes it."""

    def change(schema: Schema) -> None:
        *parents, last = path.split(" ")
        found: Any = schema
        for part in parents:
            found = found[int(part)] if isinstance(found, list) else found[part]
        if value is None:
            del found[last]
        else:
            found[last] = value

    return change


def rename(before: str, after: str) -> Mutation:
    def change(schema: Schema) -> None:
        schema["properties"][after] = schema["properties"].pop(before)

    return change


# What is changed; where it is to be seen; whether it breaks requests; whether it breaks answers.
MUTATIONS: dict[str, tuple[Mutation, str, bool, bool]] = {
    "a field becomes required": (put("required", ["id", "price", "fuel"]), "/fuel", True, False),
    "a field may be left out": (put("required", ["id"]), "/price", False, True),
    "a new optional field": (put("properties new", {"type": "string"}), "/new", False, False),
    "a field is gone": (put("properties fuel", None), "/fuel", True, True),
    "a field is renamed": (rename("fuel", "energy"), "/fuel", True, True),
    "a type is replaced": (put("properties fuel", {"type": "integer"}), "/fuel", True, True),
    "an integer becomes a number": (put("properties count type", "number"), "/count", False, True),
    "a number becomes an integer": (put("properties price type", "integer"), "/price", True, False),
    "null is refused": (put("properties year anyOf", [{"type": "integer", "minimum": 1900, "maximum": 2100}]),
                        "/year", True, False),
    "null is possible": (put("properties fuel type", ["string", "null"]), "/fuel", False, True),
    "another type is possible": (put("properties price", {"anyOf": [{"type": "number", "exclusiveMinimum": 0},
                                                                     {"type": "string"}]}), "/price", False, True),
    "a value of an enum is gone": (put("properties fuel enum", ["petrol"]), "/fuel", True, False),
    "a value of an enum is new": (put("properties fuel enum", ["petrol", "diesel", "gas"]), "/fuel", False, True),
    "an enum is opened": (put("properties fuel enum", None), "/fuel", False, True),
    "a text is closed to an enum": (put("properties id enum", ["a"]), "/id", True, False),
    "a bound is tighter": (put("properties year anyOf 0 minimum", 1950), "/year", True, False),
    "a bound is wider": (put("properties year anyOf 0 maximum", 2200), "/year", False, True),
    "a bound is gone": (put("properties price exclusiveMinimum", None), "/price", False, True),
    "a length is shorter": (put("properties id maxLength", 50), "/id", True, False),
    "a list may be longer": (put("properties tags maxItems", 6), "/tags", False, True),
    "elements may repeat": (put("properties tags uniqueItems", None), "/tags", False, True),
    "elements have another type": (put("properties tags items type", "integer"), "/tags/-", True, True),
    "a value of a mapping is bounded": (put("properties weights additionalProperties maximum", 5),
                                        "/weights/*", True, False),
    "a mapping has values of another type": (put("properties weights additionalProperties", {"type": "string"}),
                                             "/weights/*", True, True),
    "an element of a tuple changes": (put("properties pair prefixItems", [{"type": "string"}, {"type": "string"}]),
                                      "/pair/1", True, True),
    "a tuple gets an element": (put("properties pair", {"type": "array", "prefixItems": [
        {"type": "string"}, {"type": "integer"}, {"type": "string"}], "minItems": 3, "maxItems": 3}),
        "/pair", True, True),
    "a definition changes deep inside": (put("$defs Node properties label maxLength", 10), "/tree/label", True, False),
    "a union loses an alternative": (put("properties pet oneOf", [{"$ref": "#/$defs/Cat"}]), "/pet", True, False),
    "an alternative of a union changes": (put("$defs Dog properties name type", "integer"), "/pet/name", True, True),
    "a pattern is another one": (put("properties code pattern", "^[0-9]+$"), "/code", True, True),
    "a pattern is gone": (put("properties code pattern", None), "/code", False, True),
    "a format is new": (put("properties code format", "uuid"), "/code", True, False),
    "a multiple is coarser": (put("properties count multipleOf", 4), "/count", True, False),
    "any value becomes text": (put("properties anything type", "string"), "/anything", True, False),
    "text becomes any value": (put("properties code", {}), "/code", False, True),
    "other fields are allowed": (put("additionalProperties", True), "", False, False),
    "a keyword that is not compared": (put("properties id not", {"const": "x"}), "/id", True, True),
    "a default": (put("properties year default", 2000), "/year", False, False),
    "a field with a slash in its name": (put("properties odd/na~me", {"type": "string"}), "/odd~1na~0me", True, True),
}  # fmt: skip
WORDS: dict[str, Mutation] = {
    "a description": put("properties id description", "another name"),
    "a title": put("$defs Node title", "Knot"),
    "an extension": put("properties id x-order", 3),
    "a smallest length of nothing": put("properties tags minItems", 0),
}


def make(schema: Schema, **parts: Any) -> dict[str, Any]:
    return {"version": "1", "request": schema, "response": schema, "example": {}, **parts}


def mutate(mutation: Mutation) -> Schema:
    changed = deepcopy(BASE)
    mutation(changed)
    return changed


@pytest.mark.parametrize("name", MUTATIONS)
def test_every_mutation_is_classified(name: str) -> None:
    mutation, place, breaks_requests, breaks_answers = MUTATIONS[name]
    changed = mutate(mutation)
    jsonschema.Draft202012Validator.check_schema(changed)
    changes = list_contract_changes(make(changed), make(BASE))
    for side, breaks in (("request", breaks_requests), ("response", breaks_answers)):
        own = [change for change in changes if change.side == side]
        assert place in [change.pointer for change in own], own
        assert any(change.is_breaking for change in own) == breaks, own
        assert all(change.what and change.why for change in own)


@pytest.mark.parametrize("name", WORDS)
def test_words_for_people_are_no_change(name: str) -> None:
    assert list_contract_changes(make(mutate(WORDS[name])), make(BASE)) == ()


def test_a_removed_field_breaks_requests_only_where_other_fields_are_refused() -> None:
    lenient = mutate(put("additionalProperties", None))
    without = deepcopy(lenient)
    del without["properties"]["fuel"]
    request, answer = list_contract_changes(make(without), make(lenient))
    assert (request.is_breaking, request.why) == (False, "the field is ignored when it is sent")
    assert answer.is_breaking


def test_a_renamed_field_is_named() -> None:
    request = list_contract_changes(make(mutate(rename("fuel", "energy"))), make(BASE))[0]
    assert request.what == "is gone, and energy is new with the same schema"


def test_a_definition_is_the_same_written_out() -> None:
    inline = deepcopy(BASE)
    inline["properties"]["pet"] = {"anyOf": [BASE["$defs"]["Dog"], BASE["$defs"]["Cat"]]}
    assert list_contract_changes(make(inline), make(BASE)) == ()


def test_schemas_that_lead_to_themselves_end() -> None:
    loops: Schema = {
        "$defs": {
            "A": {"$ref": "#/$defs/B"},
            "B": {"$ref": "#/$defs/A"},
            "U": {"anyOf": [{"$ref": "#/$defs/U"}, {"type": "string"}]},
        },
        "type": "object",
        "properties": {"a": {"$ref": "#/$defs/A"}, "u": {"$ref": "#/$defs/U"}, "away": {"$ref": "other.json#/x"}},
    }
    assert list_contract_changes(make(loops), make(loops)) == ()
    narrower = deepcopy(loops)
    narrower["$defs"]["U"]["anyOf"][1]["maxLength"] = 3
    (request, _) = list_contract_changes(make(narrower), make(loops))
    assert (request.pointer, request.is_breaking) == ("/u", True)
    moved = deepcopy(loops)
    moved["properties"]["away"]["$ref"] = "other.json#/y"
    (request, answer) = list_contract_changes(make(moved), make(loops))
    assert request.is_breaking
    assert answer.is_breaking


# The contract of a model, and its measurements.


class Before(BaseModel):
    model_config = ConfigDict(extra="forbid")
    age: int = Field(ge=0)
    sex: Literal["female", "male"] | None = None
    parent: Optional["Before"] = None


class Renamed(BaseModel):
    model_config = ConfigDict(extra="forbid")
    years: int = Field(ge=0)
    sex: Literal["female", "male"] | None = None
    parent: Optional["Renamed"] = None


class WithRule(Before):
    @model_validator(mode="after")
    def _check(self) -> "WithRule":
        if self.age < 18:
            raise ValueError("adults only")
        return self


def contract_of(request: type[BaseModel], version: str = "1", **parts: Any) -> dict[str, Any]:
    return {
        "version": version,
        "request": request.model_json_schema(),
        "response": {"type": "number"},
        "example": {"age": 17},
        **parts,
    }


def read(evaluation: Evaluation) -> dict[str, tuple[float | None, str]]:
    return {one.metric: (one.value, one.note) for one in evaluation.measurements}


def test_a_renamed_required_field_blocks_and_is_listed() -> None:
    found = compare_contracts(contract_of(Renamed), contract_of(Before), "credit@3", Renamed)
    value, note = read(found)["breaking_contract_changes"]
    assert value is not None
    assert value >= 3
    assert note.startswith("against credit@3: request/age: is gone, and years is new with the same schema")
    assert "request/years: is a new field that has to be there" in note
    (section,) = found.sections
    assert section.kind == "table"
    assert [row[3] for row in section.data["rows"]].count("breaking") == value
    assert read(found)["contract_changes"][0] == len(section.data["rows"])


def test_a_higher_major_version_announces_it() -> None:
    found = compare_contracts(contract_of(Renamed, "2.0"), contract_of(Before, "1.7"), "credit@3", Renamed)
    value, note = read(found)["breaking_contract_changes"]
    assert value == 0
    assert "the major version rises from 1.7 to 2.0" in note
    assert "request/age" in note
    assert (read(found)["contract_changes"][0] or 0) > 0


@pytest.mark.parametrize("version", ["1.8", "1", "0.9", "next", ""])
def test_no_other_version_announces_it(version: str) -> None:
    found = compare_contracts(contract_of(Renamed, version), contract_of(Before, "1.7"), "credit@3")
    assert (read(found)["breaking_contract_changes"][0] or 0) > 0


def test_the_old_example_meets_rules_that_no_schema_says() -> None:
    assert list_contract_changes(contract_of(WithRule), contract_of(Before)) == ()
    (change,) = list_contract_changes(contract_of(WithRule), contract_of(Before), WithRule)
    assert change.is_breaking
    assert "the example that was documented is refused: Value error, adults only" in change.what


def test_an_equal_contract_counts_0_and_says_so() -> None:
    found = compare_contracts(contract_of(Before), contract_of(Before), "credit@3", Before)
    assert read(found) == {
        "breaking_contract_changes": (0.0, "against credit@3"),
        "contract_changes": (0.0, "against credit@3"),
    }
    assert "credit@3" in found.sections[0].text


@pytest.mark.parametrize(
    ("old", "reference", "note"),
    [
        (None, "", "no version to compare with"),
        (None, "credit@3", "credit@3 was registered without a contract"),
        ({"version": "1"}, "credit@3", "credit@3 was registered without a contract"),
    ],
)
def test_without_an_older_contract_there_is_no_value(old: Any, reference: str, note: str) -> None:
    found = compare_contracts(contract_of(Before), old, reference, Before)
    assert set(read(found).values()) == {(None, note)}
    assert found.sections == ()


def test_columns_of_the_scores_are_compared_where_both_are_known() -> None:
    old = contract_of(Before, columns={"id": "string", "price": "double", "gone": "bool"})
    new = contract_of(Before, columns={"id": "string", "price": "float", "more": "int64"})
    changes = list_contract_changes(new, old)
    assert [(change.pointer, change.is_breaking) for change in changes] == [
        ("/price", True), ("/gone", True), ("/more", False),
    ]  # fmt: skip
    assert list_contract_changes(contract_of(Before), old) == ()


@pytest.mark.parametrize("name", ["topic-fingerprints", "vehicle-price"])
def test_a_real_model_is_described_and_compatible_with_itself(name: str) -> None:
    model = load_model_class(name)
    described = describe_contract(model, pa.schema([("price", pa.float64())]))
    assert described["columns"] == {"price": "double"}
    assert described["version"] == model.contract_version
    assert list_contract_changes(described, deepcopy(described), model.Request) == ()
    gone = deepcopy(described)
    gone["response"]["properties"].pop(next(iter(gone["response"]["properties"])))
    assert [change.is_breaking for change in list_contract_changes(gone, described)] == [True]


# What is called compatible is compatible: held against a validator, on schemas and values that nobody chose.

NAMES = ("a", "b", "c")


def draw_schema(rng: Random, depth: int = 3) -> Schema:
    kind = rng.choice(["integer", "number", "string", "enum", "plain", "object", "object", "array", "union"])
    if depth == 0 and kind in ("object", "array", "union"):
        kind = "plain"
    if kind in ("integer", "number"):
        chosen = rng.sample([("minimum", rng.randint(-2, 1)), ("maximum", rng.randint(0, 3))], rng.randint(0, 2))
        return {"type": kind, **dict(chosen)}
    if kind == "string":
        chosen = rng.sample([("minLength", rng.randint(0, 1)), ("maxLength", rng.randint(1, 3))], rng.randint(0, 2))
        return {"type": kind, **dict(chosen)}
    if kind == "enum":
        return {"enum": rng.sample(["x", "y", 1, None, True], rng.randint(1, 3))}
    if kind == "plain":
        return deepcopy(rng.choice([{"type": "null"}, {"type": "boolean"}, {}, {"type": ["string", "null"]}]))
    if kind == "object":
        found: Schema = {"type": "object", "properties": {}}
        for name in rng.sample(NAMES, rng.randint(0, 3)):
            found["properties"][name] = draw_schema(rng, depth - 1)
        found["required"] = rng.sample(NAMES, rng.randint(0, 2))
        found["additionalProperties"] = rng.choice([True, False, False, draw_schema(rng, 0)])
        return found
    if kind == "array":
        return {"type": "array", "items": draw_schema(rng, depth - 1), "maxItems": rng.randint(1, 3)}
    return {"anyOf": [draw_schema(rng, depth - 1) for _ in range(rng.randint(1, 3))]}


def list_schemas(schema: Schema) -> list[Schema]:
    inner = [*schema.get("properties", {}).values(), *schema.get("anyOf", ())]
    inner += [schema[name] for name in ("items", "additionalProperties") if isinstance(schema.get(name), dict)]
    return [schema, *(found for one in inner for found in list_schemas(one))]


def edit_schema(schema: Schema, rng: Random) -> Schema:
    """Change one thing somewhere."""
    edited = deepcopy(schema)
    chosen = rng.choice(list_schemas(edited))
    edits = ["replace", "allow null"]
    edits += [name for name in ("minimum", "maximum", "minLength", "maxLength", "maxItems") if name in chosen] * 2
    edits += ["remove a field", "require", "add a field", "other fields"] if "properties" in chosen else []
    edits += ["an alternative"] * 2 if "anyOf" in chosen else []
    edits += ["a value"] * 2 if "enum" in chosen else []
    what = rng.choice(edits)
    before = dict(chosen)
    if what == "replace":
        chosen.clear()
        chosen.update(draw_schema(rng, 1))
    elif what == "allow null":
        chosen.clear()
        chosen["anyOf"] = [before, {"type": "null"}]
    elif what == "remove a field":
        chosen["properties"].pop(rng.choice(NAMES), None)
    elif what == "require":
        chosen["required"] = rng.sample(NAMES, rng.randint(0, 2))
    elif what == "add a field":
        chosen["properties"][rng.choice(NAMES)] = draw_schema(rng, 1)
    elif what == "other fields":
        chosen["additionalProperties"] = rng.choice([True, False])
    elif what == "an alternative":
        if len(chosen["anyOf"]) > 1 and rng.random() < 0.5:
            chosen["anyOf"].pop()
        else:
            chosen["anyOf"].append(draw_schema(rng, 1))
    elif what == "a value":
        chosen["enum"] = rng.sample(["x", "y", 1, None, True], rng.randint(1, 4))
    else:
        chosen[what] = max(0, chosen[what] + rng.choice([-1, 1]))
    return edited


def draw_value(schema: Any, rng: Random) -> Any:
    """Draw a value that is valid more often than not."""
    if not isinstance(schema, dict) or not schema or rng.random() < 0.05:
        return rng.choice([None, True, 0, 1, -2, 0.5, "", "x", "xyz", [], {}, {"a": 1}])
    if "anyOf" in schema:
        return draw_value(rng.choice(schema["anyOf"]), rng)
    if "enum" in schema:
        return rng.choice(schema["enum"])
    kind = schema["type"] if isinstance(schema["type"], str) else rng.choice(schema["type"])
    if kind == "object":
        names = [name for name in NAMES if name in schema.get("required", ()) or rng.random() < 0.5]
        others = schema.get("additionalProperties", True)
        fields = {name: schema.get("properties", {}).get(name, others) for name in names}
        return {name: draw_value(field, rng) for name, field in fields.items() if field is not False}
    if kind == "array":
        return [draw_value(schema["items"], rng) for _ in range(rng.randint(0, schema["maxItems"] + 1))]
    if kind == "string":
        return "x" * rng.randint(0, 4)
    if kind == "integer":
        return rng.randint(-3, 4)
    return {"number": rng.choice([-2.5, -1, 0, 0.5, 1, 2.5, 3, 4]), "boolean": rng.random() < 0.5}.get(kind)


def test_a_contract_beside_itself_has_no_changes() -> None:
    rng = Random(1)
    for _ in range(300):
        schema = draw_schema(rng)
        assert list_contract_changes(make(deepcopy(schema)), make(schema)) == ()


@pytest.mark.parametrize("side", ["request", "response"])
def test_what_is_called_compatible_refuses_and_brings_nothing_new(side: str) -> None:
    rng = Random(2)
    met = 0
    for _ in range(1500):
        old = draw_schema(rng)
        new = edit_schema(old, rng)
        if old == new:
            continue
        changes = [one for one in list_contract_changes(make(new), make(old)) if one.side == side]
        # What was valid has to stay valid; what is answered has to have been possible.
        given, kept = (old, new) if side == "request" else (new, old)
        given_is_valid, kept_is_valid = (jsonschema.Draft202012Validator(one).is_valid for one in (given, kept))
        values = [draw_value(given, rng) for _ in range(12)]
        broken = [value for value in values if given_is_valid(value) and not kept_is_valid(value)]
        # Fields that are added are compatible by rule: nobody sent or read them before.
        if broken and not any(one.effect == "adds" for one in changes):
            met += 1
            assert any(one.is_breaking for one in changes), (old, new, broken[0], changes)
    assert met > 200
