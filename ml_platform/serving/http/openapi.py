"""The OpenAPI page's schemas of requests and responses, with the fields of the served version."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import msgspec
from litestar.openapi.spec import OpenAPIMediaType, OpenAPIResponse, Operation, Reference, RequestBody, Schema
from litestar.openapi.spec.enums import OpenAPIType

from ml_platform.inference.request_contract import Field, RequestContract

ABOUT = (
    "Predictions in MLflow's format and in that of the Open Inference Protocol v2. The headers of every response name "
    "the model (`ml-platform-model`), the version that predicted (`ml-platform-version`), the sha256 of that version's "
    "file (`ml-platform-digest`) and the request (`ml-platform-request-id`); `ml-platform-stale: true` means that the "
    "server could not check that the version is still the champion. Requests with the same key (`params.key`, or the "
    "header `ml-platform-key`, else the first record's entity) get the same version while the traffic split does not "
    "change."
)
RECORD, TENSORS, MODEL_NAME = "Record", "Tensors", "ModelName"
_TYPES = {"int": "integer", "float": "number", "str": "string", "bool": "boolean", "time": "string"}
_BOUNDS = {"ge": "minimum", "le": "maximum", "gt": "exclusiveMinimum", "lt": "exclusiveMaximum"}


def _reference(name: str) -> Reference:
    return Reference(ref=f"#/components/schemas/{name}")


def _object(required: list[str] | None = None, **properties: Schema | Reference) -> Schema:
    return Schema(
        type=OpenAPIType.OBJECT,
        properties=properties,
        required=required or list(properties),
        additional_properties=False,
    )


def _make_list_schema(items: Schema | Reference) -> Schema:
    return Schema(type=OpenAPIType.ARRAY, items=items, min_items=1)


_ANY, _TEXT, _NUMBER = Schema(), Schema(type=OpenAPIType.STRING), Schema(type=OpenAPIType.INTEGER)
_KEY = Schema(
    type=OpenAPIType.STRING,
    min_length=1,
    max_length=256,
    description="Selects the version: the same key gets the same version.",
)
_NULL = Schema(type=OpenAPIType.NULL)
_PARAMS = Schema(any_of=[_object(required=[], key=Schema(any_of=[_KEY, _NUMBER, _NULL])), _NULL])
_SPLIT = _object(
    required=["columns", "data"],
    columns=_make_list_schema(_TEXT),
    data=_make_list_schema(_make_list_schema(_ANY)),
    index=Schema(type=OpenAPIType.ARRAY, items=_ANY),
)
_INVOCATION = Schema(
    one_of=[
        _object(
            required=["dataframe_records"], dataframe_records=_make_list_schema(_reference(RECORD)), params=_PARAMS
        ),
        _object(required=["dataframe_split"], dataframe_split=_SPLIT, params=_PARAMS),
        _object(required=["inputs"], inputs=_make_list_schema(_reference(RECORD)), params=_PARAMS),
    ]
)
_REQUESTED_OUTPUT = _object(
    required=["name"], name=Schema(type=OpenAPIType.STRING, enum=["predictions", "scores"]), parameters=Schema()
)
_INFERENCE = _object(
    required=["inputs"],
    id=Schema(any_of=[_TEXT, _NULL]),
    model_name=_reference(MODEL_NAME),
    inputs=_reference(TENSORS),
    parameters=Schema(
        any_of=[Schema(type=OpenAPIType.OBJECT, properties={"key": Schema(any_of=[_KEY, _NUMBER, _NULL])}), _NULL]
    ),
    outputs=Schema(any_of=[Schema(type=OpenAPIType.ARRAY, items=_REQUESTED_OUTPUT), _NULL]),
)
_ANSWER = _object(required=["predictions"], predictions=_make_list_schema(_ANY), scores=_make_list_schema(_ANY))
_OUTPUT = _object(name=_TEXT, datatype=_TEXT, shape=_make_list_schema(_NUMBER), data=_make_list_schema(_ANY))
_OUTPUTS = _object(
    required=["model_name", "model_version", "outputs"],
    model_name=_TEXT,
    model_version=_TEXT,
    id=_TEXT,
    outputs=_make_list_schema(_OUTPUT),
)


def _describe(operation: Operation, body: Schema, answer: Schema) -> None:
    """Set the schemas of an operation's body and of its successful response."""
    operation.request_body = RequestBody(required=True, content={"application/json": OpenAPIMediaType(schema=body)})
    content = {"application/json": OpenAPIMediaType(schema=answer)}
    success = OpenAPIResponse(description="The predictions.", content=content)
    operation.responses = {**(operation.responses or {}), "200": success}


@dataclass
class Invocation(Operation):
    """A prediction request in MLflow's format."""

    def __post_init__(self) -> None:
        """Set the schemas of body and response."""
        _describe(self, _INVOCATION, _ANSWER)


@dataclass
class Inference(Operation):
    """A prediction request of the Open Inference Protocol."""

    def __post_init__(self) -> None:
        """Set the schemas of body and response."""
        _describe(self, _INFERENCE, _OUTPUTS)


def with_contract(schema: dict[str, Any], contract: RequestContract | None, versions: Sequence[int] = ()) -> bytes:
    """Return an OpenAPI document with the fields and versions of the served model.

    Parameters
    ----------
    schema : dict
        Litestar's document; it is changed in place.
    contract : RequestContract or None
        Contract of the stable version, whose fields a record has. ``None`` if none is loaded: any fields are allowed.
    versions : sequence of int
        Allowed versions in a path.
    """
    schemas = schema.setdefault("components", {}).setdefault("schemas", {})
    schemas[RECORD] = record_schema(contract) if contract else {"type": "object"}
    schemas[TENSORS] = tensors_schema(contract) if contract else {"type": "array"}
    schemas[MODEL_NAME] = {"enum": [contract.model, None]} if contract else {}
    if contract is not None:
        allowed: dict[str, list[Any]] = {"name": [contract.model], "version": list(versions)}
        operations = (operation for path in schema["paths"].values() for operation in path.values())
        for parameter in (parameter for operation in operations for parameter in operation.get("parameters", ())):
            parameter["schema"]["enum"] = allowed[parameter["name"]]
    return msgspec.json.encode(schema)


def record_schema(contract: RequestContract) -> dict[str, Any]:
    """Return the JSON Schema of a record."""
    return {
        "type": "object",
        "properties": {field.name: _field_schema(field) for field in (*contract.features, contract.entity)},
        "required": [field.name for field in contract.features if field.required],
        "additionalProperties": False,
    }


def _field_schema(field: Field) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": _TYPES[field.kind]} if field.kind in _TYPES else {}
    if field.kind == "time":
        schema["format"] = "date-time"
    bounds = [("ge", field.least), ("le", field.most), *((rule.name, rule.value) for rule in field.rules)]
    for name, bound in bounds:
        if name in _BOUNDS and isinstance(bound, int | float):
            schema[_BOUNDS[name]] = bound
        elif name == "isin":
            schema["enum"] = list(bound)
    return {"anyOf": [schema, {"type": "null"}]} if field.nullable else schema


def tensors_schema(contract: RequestContract) -> dict[str, Any]:
    """Return the JSON Schema of the tensors of one record."""
    from ml_platform.serving.http.wire_formats import DATATYPES

    tensors = [
        {
            "type": "object",
            "properties": {
                "name": {"const": field.name},
                "datatype": {"const": DATATYPES[field.kind][0]},
                "shape": {"const": [1]},
                "data": {"type": "array", "items": _field_schema(field), "minItems": 1, "maxItems": 1},
            },
            "required": ["name", "datatype", "shape", "data"],
            "additionalProperties": False,
        }
        for field in contract.features
    ]
    return {"type": "array", "prefixItems": tensors, "minItems": len(tensors), "maxItems": len(tensors)}


PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>
<style>body{{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}}
code,pre{{background:#f4f4f4;padding:.1rem .3rem}}pre{{padding:.6rem;overflow:auto}}
td,th{{text-align:left;padding:.2rem .8rem .2rem 0;vertical-align:top}}</style>
<h1>{title}</h1><p>{about}</p><p>The complete description: <a href="/openapi.json">openapi.json</a></p>
{groups}<h2>A record</h2><pre>{record}</pre></html>"""


def page(document: dict[str, Any]) -> str:
    """Return an HTML page of an OpenAPI document; it loads no other files."""
    groups: dict[str, list[str]] = {}
    for path, methods in sorted(document["paths"].items()):
        for method, operation in methods.items():
            route = f"<code>{method.upper()} {escape(path)}</code>"
            row = f"<tr><td>{route}</td><td>{escape(operation['summary'])}</td></tr>"
            groups.setdefault(operation["tags"][0], []).append(row)
    tables = (f"<h2>{escape(name)}</h2><table>{''.join(rows)}</table>" for name, rows in sorted(groups.items()))
    record = msgspec.json.format(msgspec.json.encode(document["components"]["schemas"][RECORD]), indent=2).decode()
    info = document["info"]
    return PAGE.format(
        title=escape(info["title"]), about=escape(info["description"]), groups="".join(tables), record=escape(record)
    )
