"""The interface of one model as OpenAPI 3.1: the V1 and V2 protocols, with the model's own request and answer."""

from typing import Any

import orjson

from mlflywheel import __version__
from mlflywheel.serving.predictor import Exchange, Predictor
from mlflywheel.serving.tensors import Input

_NULLABLE_NUMBER = {"type": ["number", "null"]}


def example_v2(predictor: Predictor) -> dict[str, Any]:
    """Return the model's example as a V2 JSON request."""
    inputs = []
    for declared in predictor.inputs:
        if declared.name in predictor.example:
            value = predictor.example[declared.name]
            element = orjson.dumps(value).decode() if declared.is_json else value
            inputs.append({"name": declared.name, "datatype": declared.datatype, "shape": [1], "data": [element]})
    return {"inputs": inputs}


def describe_interface(predictor: Predictor) -> dict[str, Any]:
    """Return the OpenAPI document."""
    model = type(predictor.model)
    request = model.Request.model_json_schema(ref_template="#/components/schemas/{model}")
    response = model.Response.model_json_schema(ref_template="#/components/schemas/{model}", mode="serialization")
    schemas: dict[str, Any] = {**request.pop("$defs", {}), **response.pop("$defs", {})}
    schemas |= {"Instance": request, "Prediction": response, **_shared_schemas(predictor)}
    name = predictor.name
    example_v1 = {"instances": [predictor.example]}
    paths = {
        f"/v1/models/{name}:predict": _predict_path("Predict, V1", "V1Request", "V1Answer", example_v1),
        f"/v2/models/{name}/infer": _predict_path("Predict, V2", "V2Request", "V2Answer", example_v2(predictor)),
        f"/v1/models/{name}": _get_path("Readiness, V1", "ModelState", ready=True),
        f"/v2/models/{name}/ready": _get_path("Readiness of the model", "ModelState", ready=True),
        f"/v2/models/{name}": _get_path("Metadata of the model", "ModelMetadata"),
        "/v2/health/live": _get_path("Liveness", "Live"),
        "/v2/health/ready": _get_path("Readiness of the server", "Ready", ready=True),
        "/v2": _get_path("Metadata of the server", "ServerMetadata"),
        "/v1/models": _get_path("Names of models, V1", "Models"),
        "/v2/models": _get_path("Names of models, V2", "Models"),
    }
    return {
        "openapi": "3.1.0",
        "info": {
            "title": name,
            "version": predictor.version,
            "description": f"{model.__name__}, served by mlflywheel {__version__} over V1 and V2 of KServe.",
        },
        "paths": paths,
        "components": {"schemas": schemas},
    }


def _predict_path(summary: str, request: str, answer: str, example: dict[str, Any]) -> dict[str, Any]:
    errors = {
        "400": "the request is not what the model takes",
        "408": "the body did not arrive in time",
        "413": "the body is too large",
        "415": "the body is compressed",
        "500": "a defect of the server",
        "503": "still loading, stopping, or too many requests",
    }
    return {
        "post": {
            "summary": summary,
            "requestBody": {
                "required": True,
                "content": {"application/json": {"schema": _ref(request), "example": example}},
            },
            "responses": {"200": _content("predictions", answer)}
            | {code: _content(text, "Error") for code, text in errors.items()},
        }
    }


def _get_path(summary: str, answer: str, *, ready: bool = False) -> dict[str, Any]:
    responses = {"200": _content(summary, answer)}
    if ready:
        responses["503"] = _content("not ready", "Error")
    return {"get": {"summary": summary, "responses": responses}}


def _content(description: str, schema: str) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": _ref(schema)}}}


def _ref(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}


def _object(required: dict[str, Any], optional: dict[str, Any] | None = None) -> dict[str, Any]:
    return {"type": "object", "required": list(required), "properties": {**required, **(optional or {})}}


def _shared_schemas(predictor: Predictor) -> dict[str, Any]:
    text = {"type": "string"}
    texts = {"type": "array", "items": text}
    tensor = _object({"name": text, "datatype": text, "shape": {"type": "array", "items": {"type": "integer"}}})
    output = _object(
        {
            "name": {"enum": [output.name for output in predictor.outputs]},
            "datatype": text,
            "shape": {"type": "array", "items": {"type": "integer", "minimum": 0}},
        },
        {"data": {"type": "array"}, "parameters": {"type": "object"}},
    )
    v1_answer = {"predictions": {"type": "array", "items": _ref("Prediction")}, "model_name": text}
    return {
        "Error": _object({"error": {"type": "string", "description": "what was seen, what is needed, what to do"}}),
        "Live": _object({"live": {"type": "boolean"}}),
        "Ready": _object({"ready": {"type": "boolean"}}),
        "Models": _object({"models": texts}),
        "ModelState": _object({"name": text, "ready": {"type": "boolean"}}),
        "ServerMetadata": _object({"name": text, "version": text, "extensions": texts}),
        "ModelMetadata": _object(
            {
                "name": text,
                "versions": texts,
                "platform": text,
                "inputs": {"type": "array", "items": tensor},
                "outputs": {"type": "array", "items": tensor},
            }
        ),
        "V1Request": _object(
            {"instances": {"type": "array", "maxItems": predictor.max_rows, "items": _ref("Instance")}}
        ),
        "V1Answer": _object({**v1_answer, "model_version": text, **dict.fromkeys(predictor.hashes, text)}),
        "V2Request": _object(
            {"inputs": {"type": "array", "minItems": 1, "items": {"anyOf": _input_schemas(predictor.inputs)}}},
            {
                "id": text,
                "outputs": {
                    "type": "array",
                    "uniqueItems": True,
                    "items": _object({"name": {"enum": [output.name for output in predictor.outputs]}}),
                },
            },
        ),
        "V2Answer": _object(
            {"model_name": text, "model_version": text, "id": text, "outputs": {"type": "array", "items": output}},
            {"parameters": {"type": "object"}},
        ),
    }


def _input_schemas(inputs: tuple[Input, ...]) -> list[dict[str, Any]]:
    elements = {"BYTES": {"type": "string"}, "BOOL": {"type": "boolean"}, "INT64": {"type": "integer"}}
    return [
        _object(
            {
                "name": {"const": declared.name},
                "datatype": {"const": declared.datatype},
                "shape": {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1, "maxItems": 1},
                "data": {
                    "type": "array",
                    "items": elements.get(declared.datatype, _NULLABLE_NUMBER),
                    "description": "one JSON document an element" if declared.is_json else "one value an instance",
                },
            }
        )
        for declared in inputs
    ]


def example_answer(predictor: Predictor) -> Any:
    """Return the V1 answer to the model's example, for the documentation page."""
    body = orjson.dumps({"instances": [predictor.example]}, option=orjson.OPT_SERIALIZE_NUMPY)
    return orjson.loads(predictor.answer_v1(body, Exchange("docs", "")).body)
