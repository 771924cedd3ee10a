"""What the OpenAPI page says of requests and answers, with the fields of the version that is served."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import msgspec
from litestar.openapi.spec import OpenAPIMediaType, OpenAPIResponse, Operation, Reference, RequestBody, Schema
from litestar.openapi.spec.enums import OpenAPIType

from ml_platform.request_contract import Field, RequestContract

ABOUT = (
    "Predictions in MLflow's format and in that of the Open Inference Protocol v2. Every answer names in its headers "
    "the model (`ml-platform-model`), the version that gave it (`ml-platform-version`), the sha256 of that version's "
    "file (`ml-platform-digest`) and the request (`ml-platform-request-id`); `ml-platform-stale: true` says that the "
    "server could not ask whether the version is still the champion. A request's key (`params.key`, or the header "
    "`ml-platform-key`, else the first record's entity) meets the same version as long as traffic is divided alike."
)
RECORD, TENSORS = "Record", "Tensors"
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


def _list_of(items: Schema | Reference) -> Schema:
    return Schema(type=OpenAPIType.ARRAY, items=items, min_items=1)


_ANY, _TEXT, _NUMBER = Schema(), Schema(type=OpenAPIType.STRING), Schema(type=OpenAPIType.INTEGER)
_KEY = Schema(type=OpenAPIType.STRING, min_length=1, max_length=256, description="The version is chosen by it.")
_NULL = Schema(type=OpenAPIType.NULL)
_PARAMS = Schema(any_of=[_object(required=[], key=Schema(any_of=[_KEY, _NUMBER, _NULL])), _NULL])
_SPLIT = _object(
    required=["columns", "data"],
    columns=_list_of(_TEXT),
    data=_list_of(_list_of(_ANY)),
    index=Schema(type=OpenAPIType.ARRAY, items=_ANY),
)
_INVOCATION = Schema(
    one_of=[
        _object(required=["dataframe_records"], dataframe_records=_list_of(_reference(RECORD)), params=_PARAMS),
        _object(required=["dataframe_split"], dataframe_split=_SPLIT, params=_PARAMS),
        _object(required=["inputs"], inputs=_list_of(_reference(RECORD)), params=_PARAMS),
    ]
)
_OUTPUT_ASKED = _object(
    required=["name"], name=Schema(type=OpenAPIType.STRING, enum=["predictions", "scores"]), parameters=Schema()
)
_INFERENCE = _object(
    required=["inputs"],
    id=Schema(any_of=[_TEXT, _NULL]),
    inputs=_reference(TENSORS),
    parameters=Schema(
        any_of=[Schema(type=OpenAPIType.OBJECT, properties={"key": Schema(any_of=[_KEY, _NUMBER, _NULL])}), _NULL]
    ),
    outputs=Schema(any_of=[Schema(type=OpenAPIType.ARRAY, items=_OUTPUT_ASKED), _NULL]),
)
_ANSWER = _object(required=["predictions"], predictions=_list_of(_ANY), scores=_list_of(_ANY))
_OUTPUT = _object(name=_TEXT, datatype=_TEXT, shape=_list_of(_NUMBER), data=_list_of(_ANY))
_OUTPUTS = _object(
    required=["model_name", "model_version", "outputs"],
    model_name=_TEXT,
    model_version=_TEXT,
    id=_TEXT,
    outputs=_list_of(_OUTPUT),
)


def _says(operation: Operation, body: Schema, answer: Schema) -> None:
    """Describe what an operation takes and, when all is well, answers."""
    operation.request_body = RequestBody(required=True, content={"application/json": OpenAPIMediaType(schema=body)})
    said = OpenAPIResponse(description="Answered.", content={"application/json": OpenAPIMediaType(schema=answer)})
    operation.responses = {**(operation.responses or {}), "200": said}


@dataclass
class Invocation(Operation):
    """A request for predictions as MLflow writes it."""

    def __post_init__(self) -> None:
        """Describe body and answer."""
        _says(self, _INVOCATION, _ANSWER)


@dataclass
class Inference(Operation):
    """A request for predictions as the Open Inference Protocol writes it."""

    def __post_init__(self) -> None:
        """Describe body and answer."""
        _says(self, _INFERENCE, _OUTPUTS)


def with_contract(schema: dict[str, Any], contract: RequestContract | None, versions: Sequence[int] = ()) -> bytes:
    """Return an OpenAPI document that speaks of what is served.

    Parameters
    ----------
    schema : dict
        The document as the framework makes it; it is changed.
    contract : RequestContract or None
        Of the version that answers: a record has its fields. ``None`` where none is loaded: it may have any.
    versions : sequence of int
        What may stand in a path.
    """
    schemas = schema.setdefault("components", {}).setdefault("schemas", {})
    schemas[RECORD] = record_schema(contract) if contract else {"type": "object"}
    schemas[TENSORS] = tensors_schema(contract) if contract else {"type": "array"}
    if contract is not None:
        known: dict[str, list[Any]] = {"name": [contract.model], "version": list(versions)}
        operations = (said for path in schema["paths"].values() for said in path.values())
        for parameter in (one for said in operations for one in said.get("parameters", ())):
            parameter["schema"]["enum"] = known[parameter["name"]]
    return msgspec.json.encode(schema)


def record_schema(contract: RequestContract) -> dict[str, Any]:
    """Return the JSON Schema of a record of a version."""
    fields = {of.name: _field(of) for of in contract.features}
    entity = _field(contract.entity)
    return {
        "type": "object",
        "properties": {**fields, contract.entity.name: entity},
        "required": [of.name for of in contract.features if of.required],
        "additionalProperties": False,
    }


def _field(of: Field) -> dict[str, Any]:
    found: dict[str, Any] = {"type": _TYPES[of.kind]} if of.kind in _TYPES else {}
    if of.kind == "time":
        found["format"] = "date-time"
    bounds = [("ge", of.least), ("le", of.most), *((rule.name, rule.value) for rule in of.rules)]
    for name, bound in bounds:
        if name in _BOUNDS and isinstance(bound, int | float):
            found[_BOUNDS[name]] = bound
        elif name == "isin":
            found["enum"] = list(bound)
    return {"anyOf": [found, {"type": "null"}]} if of.nullable else found


def tensors_schema(contract: RequestContract) -> dict[str, Any]:
    """Return the JSON Schema of the tensors of one record."""
    from ml_platform.serving.formats import DATATYPES

    tensors = [
        {
            "type": "object",
            "properties": {
                "name": {"const": of.name},
                "datatype": {"const": DATATYPES[of.kind][0]},
                "shape": {"const": [1]},
                "data": {"type": "array", "items": _field(of), "minItems": 1, "maxItems": 1},
            },
            "required": ["name", "datatype", "shape", "data"],
            "additionalProperties": False,
        }
        for of in contract.features
    ]
    return {"type": "array", "prefixItems": tensors, "minItems": len(tensors), "maxItems": len(tensors)}


PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>
<style>body{{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}}
code,pre{{background:#f4f4f4;padding:.1rem .3rem}}pre{{padding:.6rem;overflow:auto}}
td,th{{text-align:left;padding:.2rem .8rem .2rem 0;vertical-align:top}}</style>
<h1>{title}</h1><p>{about}</p><p>The whole description: <a href="/openapi.json">openapi.json</a></p>
{groups}<h2>A record</h2><pre>{record}</pre></html>"""


def page(document: dict[str, Any]) -> str:
    """Return a page that shows an OpenAPI document; it loads nothing from anywhere."""
    groups: dict[str, list[str]] = {}
    for path, methods in sorted(document["paths"].items()):
        for method, said in methods.items():
            row = f"<tr><td><code>{method.upper()} {escape(path)}</code></td><td>{escape(said['summary'])}</td></tr>"
            groups.setdefault(said["tags"][0], []).append(row)
    tables = (f"<h2>{escape(name)}</h2><table>{''.join(rows)}</table>" for name, rows in sorted(groups.items()))
    record = msgspec.json.format(msgspec.json.encode(document["components"]["schemas"][RECORD]), indent=2).decode()
    info = document["info"]
    return PAGE.format(
        title=escape(info["title"]), about=escape(info["description"]), groups="".join(tables), record=escape(record)
    )
