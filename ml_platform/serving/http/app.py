"""The public port: MLflow's scoring routes, the Open Inference Protocol v2, metrics, and a page that describes them.

The routes of predictions bypass Litestar, which takes as long as a prediction. Their unusual requests, and all other
routes, go through Litestar, which calls the same functions.
"""

from collections.abc import Awaitable, Callable
from contextlib import suppress
from importlib.metadata import version as installed
from typing import Any

import msgspec
from litestar import Litestar, MediaType, Request, Response, get, post
from litestar.background_tasks import BackgroundTask
from litestar.datastructures import State
from litestar.exceptions import HTTPException
from litestar.openapi import OpenAPIConfig, ResponseSpec
from litestar.openapi.plugins import JsonRenderPlugin

from ml_platform.errors import RequestError
from ml_platform.serving import prometheus
from ml_platform.serving.http import openapi as http_openapi
from ml_platform.serving.http import wire_formats
from ml_platform.serving.http.binary_tensors import HEADER as BINARY_HEADER
from ml_platform.serving.http.binary_tensors import inline_binary_data
from ml_platform.serving.http.request_body import header, read_body
from ml_platform.serving.worker.request_handler import (
    INFERENCE,
    INVOCATIONS,
    Reply,
    RequestHandler,
    WireFormat,
    choose_request_id,
    parse_sticky_key,
)
from ml_platform.serving.worker.routing import RoutingTable

RequestMetrics = Callable[[], Awaitable[bytes]]
JSON_HEADER = (b"content-type", b"application/json")
OPENAPI = "/openapi.json"
INFER_ROUTE = "/v2/models/{name}/infer"  # as Litestar names it
NO_ROUTE = "none"


class Live(msgspec.Struct):
    """Liveness of the process."""

    live: bool


class Ready(msgspec.Struct):
    """Readiness: a version is loaded. A stale one, which may be out of date, is served nevertheless."""

    ready: bool
    stale: bool = False


class ModelReady(msgspec.Struct):
    """Readiness of the model, or of one of its versions."""

    name: str
    ready: bool


class Problem(msgspec.Struct):
    """One problem of a request."""

    rule: str
    field: str | None = None
    value: str | float | bool | None = None
    record: int | None = None


class Problems(msgspec.Struct):
    """The reasons why a request failed."""

    error: str
    problems: list[Problem]


class ServerMetadata(msgspec.Struct):
    """A server's metadata in the Open Inference Protocol."""

    name: str
    version: str
    extensions: list[str]


class Tensor(msgspec.Struct):
    """A tensor's metadata."""

    name: str
    datatype: str
    shape: list[int]


class ModelMetadata(msgspec.Struct):
    """A model's metadata in the Open Inference Protocol."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[Tensor]
    outputs: list[Tensor]


class PublicApp:
    """The ASGI application of a worker.

    Parameters
    ----------
    handler : RequestHandler
    model : str
    request_metrics : callable
        Returns the metrics of all processes of this host, in Prometheus's text format.
    """

    def __init__(self, handler: RequestHandler, model: str, request_metrics: RequestMetrics) -> None:
        self.handler = handler
        self.model = model
        self.request_metrics = request_metrics
        self._litestar = _make_litestar_app(self)
        self._direct = {"/invocations": INVOCATIONS, f"/v2/models/{model}/infer": INFERENCE}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer one request, and count its response."""
        wire = self._direct.get(scope["path"]) if scope["type"] == "http" and scope["method"] == "POST" else None
        if wire is None:
            await self._answer_by_litestar(scope, receive, send)
            return
        status = 500  # uvicorn's response to an error that is not handled
        try:
            reply = await self.reply(scope, receive, wire)
            status = reply.status
        finally:
            self.handler.counts.count_route(scope["path"] if wire is INVOCATIONS else INFER_ROUTE, status)
        headers = [JSON_HEADER, (b"content-length", str(len(reply.body)).encode()), *reply.headers]
        respond = scope["state"].get("respond") if "state" in scope else None
        if respond is not None:
            await respond(reply.status, headers, reply.body)
        else:
            await send({"type": "http.response.start", "status": reply.status, "headers": headers})
            await send({"type": "http.response.body", "body": reply.body})
        if reply.after is not None:
            reply.after()

    async def _answer_by_litestar(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer HEAD as GET, whose body the server leaves out, and count the response by its route."""
        status = 500

        async def send_and_note(message: Any) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        scope = {**scope, "method": "GET"} if scope["method"] == "HEAD" else scope
        try:
            await self._litestar(scope, receive, send_and_note)
        finally:
            self.handler.counts.count_route(scope.get("path_template") or self._find_route(scope["path"]), status)

    def _find_route(self, path: str) -> str:
        """Return the route of a path that does not accept the request's method; `NO_ROUTE` if there is none."""
        for method in ("GET", "POST"):
            with suppress(HTTPException):
                return str(self._litestar.asgi_router.handle_routing(path=path.rstrip("/") or "/", method=method)[-1])
        return NO_ROUTE

    async def reply(self, scope: Any, receive: Any, wire: WireFormat, version: int | None = None) -> Reply:
        """Return the reply to a prediction request; an invalid request gets a reply with its problems."""
        request_id = choose_request_id(header(scope, b"ml-platform-request-id") or header(scope, b"x-request-id"))
        try:
            length = header(scope, BINARY_HEADER) if wire is INFERENCE else None
            body = await read_body(scope, receive, binary=length is not None)
            if length is not None:
                body = inline_binary_data(body, length)
        except RequestError as error:
            return self.handler.refuse_unread(error, request_id)
        key = parse_sticky_key(header(scope, b"ml-platform-key"))
        return await self.handler.answer(wire, body, key=key, request_id=request_id, version=version)

    @property
    def openapi(self) -> bytes:
        """The OpenAPI document, with the fields of the served version."""
        serving = self.handler.serving
        schema = self._litestar.openapi_schema.to_schema()
        if serving is None:
            return http_openapi.with_contract(schema, None)
        return http_openapi.with_contract(schema, serving.stable.loaded.contract, sorted(serving.models))


def _make_litestar_app(public: PublicApp) -> Litestar:
    return Litestar(
        [
            *(invocations, mlflow_version, ping, live, ready),
            *(server_metadata, model_metadata, version_metadata, model_ready, version_ready),
            *(infer, version_infer, metrics, openapi_document, page),
        ],
        state=State({"public": public}),
        openapi_config=OpenAPIConfig(
            title=f"Predictions of {public.model}",
            version=installed("ml-platform"),
            description=http_openapi.ABOUT,
            path="/schema",
            render_plugins=[JsonRenderPlugin()],
        ),
        exception_handlers={HTTPException: _make_error_response},
        logging_config=None,
        # `read_body` limits the size, also of the decompressed body.
        request_max_body_size=None,
    )


def _make_error_response(_: Request[Any, Any, Any], error: HTTPException) -> Response[bytes]:
    """Return Litestar's own errors, such as an unknown path, in the form of all other errors."""
    body = msgspec.json.encode(Problems(error=error.detail, problems=[]))
    return Response(body, status_code=error.status_code, media_type=MediaType.JSON, headers=error.headers)


def _make_response(reply: Reply) -> Response[bytes]:
    async def after() -> None:  # Litestar would call a function that is not async in another thread
        if reply.after is not None:
            reply.after()

    headers = {name.decode(): value.decode("latin-1") for name, value in reply.headers}
    task = BackgroundTask(after)
    return Response(reply.body, status_code=reply.status, headers=headers, media_type=MediaType.JSON, background=task)


def _require_model(state: State, name: str, version: int | None = None) -> RoutingTable:
    """Return the routing table.

    Raises
    ------
    HTTPException
        404 for another model or a version that is not loaded, 503 before a version is loaded.
    """
    public: PublicApp = state.public
    serving = public.handler.serving
    if name != public.model:
        raise HTTPException(status_code=404, detail=f"This server serves {public.model!r}. Got model {name[:100]!r}.")
    if serving is None:
        raise HTTPException(status_code=503, detail="No version is loaded yet.", headers={"Retry-After": "1"})
    if version is not None and version not in serving.models:
        detail = f"Version must be one of {sorted(serving.models)}, which are loaded. Got {version}."
        raise HTTPException(status_code=404, detail=detail)
    return serving


REFUSALS = {
    400: ResponseSpec(Problems, description="The body is not JSON, or not in a known format."),
    404: ResponseSpec(Problems, description="The server does not have this model or version."),
    408: ResponseSpec(Problems, description="The body took too long to arrive."),
    413: ResponseSpec(Problems, description="The body has too many bytes or too many records."),
    415: ResponseSpec(Problems, description="The content type is not JSON, or the encoding is unknown."),
    422: ResponseSpec(Problems, description="Fields break rules of the contract; each is listed with rule and value."),
    500: ResponseSpec(Problems, description="The version failed to predict."),
    503: ResponseSpec(Problems, description="No version is loaded yet, or the queue is full: see Retry-After."),
}

UNKNOWN = {404: REFUSALS[404], 503: REFUSALS[503]}
NOT_READY = {503: ResponseSpec(Ready, description="No version is loaded yet.")}
OIP = ["Open Inference Protocol"]

# Routes of MLflow


@post(
    "/invocations",
    status_code=200,
    operation_class=http_openapi.Invocation,
    responses=REFUSALS,
    tags=["MLflow"],
    summary="Predict, in MLflow's format",
)
async def invocations(state: State, request: Request[Any, Any, Any]) -> Response[bytes]:
    """Accept dataframe_split, dataframe_records or inputs; return predictions and scores."""
    return _make_response(await state.public.reply(request.scope, request.receive, INVOCATIONS))


@get(
    "/version",
    media_type=MediaType.TEXT,
    tags=["MLflow"],
    summary="The version of MLflow whose formats the server uses",
)
async def mlflow_version() -> str:
    """Return the installed version of MLflow."""
    return installed("mlflow")


def _make_readiness_response(state: State) -> Response[Ready]:
    serving = state.public.handler.serving
    stale = serving is not None and serving.stale
    return Response(Ready(ready=serving is not None, stale=stale), status_code=200 if serving else 503)


@get(["/ping", "/health"], responses=NOT_READY, tags=["MLflow"], summary="Readiness: a version is loaded")
async def ping(state: State) -> Response[Ready]:
    """Return the readiness."""
    return _make_readiness_response(state)


# Routes of the Open Inference Protocol


@get("/v2/health/live", tags=OIP, summary="Liveness of the process")
async def live() -> Live:
    """Return the liveness."""
    return Live(live=True)


@get("/v2/health/ready", responses=NOT_READY, tags=OIP, summary="Readiness: a version is loaded")
async def ready(state: State) -> Response[Ready]:
    """Return the readiness."""
    return _make_readiness_response(state)


@get("/v2", summary="Metadata of the server", tags=OIP)
async def server_metadata() -> ServerMetadata:
    """Return the server's metadata."""
    return ServerMetadata("ml-platform", installed("ml-platform"), [])


@get("/v2/models/{name:str}", responses=UNKNOWN, summary="Metadata of the model", tags=OIP)
async def model_metadata(state: State, name: str) -> ModelMetadata:
    """Return the stable version's metadata, and the loaded versions."""
    serving = _require_model(state, name)
    metadata = wire_formats.metadata(serving.stable.loaded.contract, sorted(serving.models))
    return msgspec.convert(metadata, ModelMetadata)


@get("/v2/models/{name:str}/versions/{version:int}", responses=UNKNOWN, summary="Metadata of a version", tags=OIP)
async def version_metadata(state: State, name: str, version: int) -> ModelMetadata:
    """Return a version's metadata."""
    serving = _require_model(state, name, version)
    return msgspec.convert(wire_formats.metadata(serving.models[version].loaded.contract, [version]), ModelMetadata)


@get("/v2/models/{name:str}/ready", responses=UNKNOWN, summary="Readiness of the model", tags=OIP)
async def model_ready(state: State, name: str) -> ModelReady:
    """Return the model's readiness."""
    _require_model(state, name)
    return ModelReady(name=name, ready=True)


@get(
    "/v2/models/{name:str}/versions/{version:int}/ready", responses=UNKNOWN, summary="Readiness of a version", tags=OIP
)
async def version_ready(state: State, name: str, version: int) -> ModelReady:
    """Return a version's readiness."""
    _require_model(state, name, version)
    return ModelReady(name=name, ready=True)


@post(
    "/v2/models/{name:str}/infer",
    status_code=200,
    operation_class=http_openapi.Inference,
    responses=REFUSALS,
    tags=OIP,
    summary="Predict",
)
async def infer(state: State, name: str, request: Request[Any, Any, Any]) -> Response[bytes]:
    """Return the predictions of the version that the traffic plan selects."""
    _require_model(state, name)
    return _make_response(await state.public.reply(request.scope, request.receive, INFERENCE))


@post(
    "/v2/models/{name:str}/versions/{version:int}/infer",
    status_code=200,
    operation_class=http_openapi.Inference,
    responses=REFUSALS,
    tags=OIP,
    summary="Predict with one loaded version",
)
async def version_infer(state: State, name: str, version: int, request: Request[Any, Any, Any]) -> Response[bytes]:
    """Return a version's predictions."""
    _require_model(state, name, version)
    return _make_response(await state.public.reply(request.scope, request.receive, INFERENCE, version))


# Operation


@get("/metrics", media_type=MediaType.TEXT, tags=["Operation"], summary="Metrics of all processes of this host")
async def metrics(state: State) -> Response[bytes]:
    """Return the metrics in Prometheus's text format."""
    return Response(await state.public.request_metrics(), headers={"content-type": prometheus.CONTENT_TYPE})


@get(OPENAPI, include_in_schema=False, media_type=MediaType.JSON)
async def openapi_document(state: State) -> bytes:
    """Return the OpenAPI document."""
    document: bytes = state.public.openapi
    return document


@get(["/", "/docs"], include_in_schema=False, media_type=MediaType.HTML)
async def page(state: State) -> str:
    """Return the page of the OpenAPI document."""
    return http_openapi.page(msgspec.json.decode(state.public.openapi))
