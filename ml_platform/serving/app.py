"""The public port: MLflow's scoring routes, the Open Inference Protocol v2, metrics, and the page that describes them.

The routes that predictions take go past the framework: it costs as much as the prediction. Whatever is unusual about a
request, and everything else, goes through Litestar, which calls the same functions.
"""

from collections.abc import Awaitable, Callable
from importlib.metadata import version as installed
from typing import Any

import msgspec
from litestar import Litestar, MediaType, Request, Response, get, post
from litestar.background_tasks import BackgroundTask
from litestar.exceptions import HTTPException
from litestar.openapi import OpenAPIConfig, ResponseSpec
from litestar.openapi.plugins import JsonRenderPlugin

from ml_platform.errors import RequestError, RequestProblem
from ml_platform.serving import described, formats, metrics
from ml_platform.serving.answering import INFERENCE, INVOCATIONS, Answering, Reply, Wire, key_of, request_id_of
from ml_platform.serving.bodies import header, read_body

Ask = Callable[[], Awaitable[bytes]]
JSON_TYPES = (b"application/json", b"text/json")
JSON_HEADER = (b"content-type", b"application/json")
OPENAPI = "/openapi.json"


class Live(msgspec.Struct):
    """Whether the process answers."""

    live: bool


class Ready(msgspec.Struct):
    """Whether a version is loaded, and whether it may be out of date: it is served all the same."""

    ready: bool
    stale: bool = False


class ModelReady(msgspec.Struct):
    """Whether a version of the model answers."""

    name: str
    ready: bool


class Problem(msgspec.Struct):
    """One thing that is wrong with a request."""

    rule: str
    field: str | None = None
    value: str | float | bool | None = None
    record: int | None = None


class Problems(msgspec.Struct):
    """Why a request was not answered."""

    error: str
    problems: list[Problem]


class ServerMetadata(msgspec.Struct):
    """What the Open Inference Protocol says of a server."""

    name: str
    version: str
    extensions: list[str]


class Tensor(msgspec.Struct):
    """A tensor as the metadata describe it."""

    name: str
    datatype: str
    shape: list[int]


class ModelMetadata(msgspec.Struct):
    """What the Open Inference Protocol says of a model."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[Tensor]
    outputs: list[Tensor]


class PublicApp:
    """The ASGI application of a worker.

    Parameters
    ----------
    answering : Answering
    model : str
    ask_metrics : callable
        Returns the metrics of all processes of this host, as Prometheus reads them.
    """

    def __init__(self, answering: Answering, model: str, ask_metrics: Ask) -> None:
        self.answering = answering
        self.model = model
        self._cold = _litestar(self, ask_metrics)
        self._hot = {"/invocations": INVOCATIONS, f"/v2/models/{model}/infer": INFERENCE}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer one request."""
        wire = self._hot.get(scope["path"]) if scope["type"] == "http" and scope["method"] == "POST" else None
        if wire is None:
            await self._cold(scope, receive, send)
            return
        reply = await self.reply(scope, receive, wire)
        headers = [JSON_HEADER, (b"content-length", str(len(reply.body)).encode()), *reply.headers]
        await send({"type": "http.response.start", "status": reply.status, "headers": headers})
        await send({"type": "http.response.body", "body": reply.body})
        if reply.after is not None:
            reply.after()

    async def reply(self, scope: Any, receive: Any, wire: Wire, version: int | None = None) -> Reply:
        """Return the reply to a request for predictions, whatever is wrong with it."""
        request_id = request_id_of(header(scope, b"ml-platform-request-id") or header(scope, b"x-request-id"))
        try:
            _require_json(scope)
            body = await read_body(scope, receive)
        except RequestError as error:
            return self.answering.unread(error, request_id)
        key = key_of(header(scope, b"ml-platform-key"))
        return await self.answering.answer(wire, body, key=key, request_id=request_id, version=version)

    @property
    def openapi(self) -> bytes:
        """The OpenAPI document, with the fields of the version that is served."""
        serving = self.answering.serving
        schema = self._cold.openapi_schema.to_schema()
        if serving is None:
            return described.with_contract(schema, None)
        return described.with_contract(schema, serving.stable.loaded.contract, sorted(serving.arms))


def _require_json(scope: Any) -> None:
    given = header(scope, b"content-type")
    if given is not None and given.partition(b";")[0].strip().lower() not in JSON_TYPES:
        value = given[:100].decode("latin-1")
        problem = RequestProblem(rule="must be application/json", field="content-type", value=value)
        raise RequestError(415, [problem])


def _response(reply: Reply) -> Response[bytes]:
    headers = {name.decode(): value.decode("latin-1") for name, value in reply.headers}
    after = BackgroundTask(_call, reply.after) if reply.after else None
    return Response(reply.body, status_code=reply.status, headers=headers, media_type=MediaType.JSON, background=after)


async def _call(after: Callable[[], None]) -> None:
    after()


def _refusal(_: Request[Any, Any, Any], error: HTTPException) -> Response[bytes]:
    """Return Litestar's own refusals, of an unknown path or method, in the form of all others."""
    body = msgspec.json.encode(Problems(error=error.detail, problems=[]))
    return Response(body, status_code=error.status_code, media_type=MediaType.JSON, headers=error.headers)


def _litestar(public: PublicApp, ask_metrics: Ask) -> Litestar:
    handlers = [*_mlflow(public), *_health(public), *_models(public), *_inference(public), *_pages(public, ask_metrics)]
    described_by = OpenAPIConfig(
        title=f"Predictions of {public.model}",
        version=installed("ml-platform"),
        description=described.ABOUT,
        path="/schema",
        render_plugins=[JsonRenderPlugin()],
    )
    return Litestar(
        handlers,
        openapi_config=described_by,
        exception_handlers={HTTPException: _refusal},
        logging_config=None,
        # read_body has the limit, which holds for what a body decompresses to as well.
        request_max_body_size=None,
    )


REFUSALS = {
    400: ResponseSpec(Problems, description="The body is no JSON of a known form."),
    404: ResponseSpec(Problems, description="There is no such model or version here."),
    408: ResponseSpec(Problems, description="The body did not come in time."),
    413: ResponseSpec(Problems, description="The body, or the number of its records, is too large."),
    415: ResponseSpec(Problems, description="The body is no JSON, or in an encoding that is not known."),
    422: ResponseSpec(Problems, description="A field breaks a rule: each is named with the rule and the value."),
    500: ResponseSpec(Problems, description="The version that answers failed."),
    503: ResponseSpec(Problems, description="No version is loaded yet, or too many requests wait: see Retry-After."),
}


OIP = ["Open Inference Protocol"]


def _mlflow(public: PublicApp) -> list[Any]:
    @post(
        "/invocations",
        status_code=200,
        operation_class=described.Invocation,
        responses=REFUSALS,
        tags=["MLflow"],
        summary="Predict, in MLflow's format",
    )
    async def invocations(request: Request[Any, Any, Any]) -> Response[bytes]:
        """Take dataframe_split, dataframe_records or inputs; answer predictions and scores."""
        return _response(await public.reply(request.scope, request.receive, INVOCATIONS))

    @get(
        "/version", media_type=MediaType.TEXT, tags=["MLflow"], summary="The version of MLflow whose formats these are"
    )
    async def version() -> str:
        return installed("mlflow")

    return [invocations, version]


def _health(public: PublicApp) -> list[Any]:
    def readiness() -> Response[Ready]:
        serving = public.answering.serving
        stale = serving is not None and serving.stale
        return Response(Ready(ready=serving is not None, stale=stale), status_code=200 if serving else 503)

    unready = {503: ResponseSpec(Ready, description="No version is loaded yet.")}

    @get(["/ping", "/health"], responses=unready, tags=["MLflow"], summary="Whether a version is loaded")
    async def ping() -> Response[Ready]:
        return readiness()

    @get("/v2/health/live", tags=OIP, summary="Whether the process answers")
    async def live() -> Live:
        return Live(live=True)

    @get("/v2/health/ready", responses=unready, tags=OIP, summary="Whether a version is loaded")
    async def ready() -> Response[Ready]:
        return readiness()

    return [ping, live, ready]


UNKNOWN = {404: REFUSALS[404], 503: REFUSALS[503]}
SAME = "The same of a version"


def _require(public: PublicApp, name: str, version: int | None = None) -> None:
    serving = public.answering.serving
    if name != public.model:
        raise HTTPException(status_code=404, detail=f"This server has no model {name[:100]!r}.")
    if serving is None:
        raise HTTPException(status_code=503, detail="No version is loaded yet.", headers={"Retry-After": "1"})
    if version is not None and version not in serving.arms:
        raise HTTPException(status_code=404, detail=f"Version {version} is not loaded here.")


def _models(public: PublicApp) -> list[Any]:
    @get("/v2", summary="What the server is", tags=OIP)
    async def server() -> ServerMetadata:
        return ServerMetadata("ml-platform", installed("ml-platform"), [])

    @get("/v2/models/{name:str}", responses=UNKNOWN, summary="What the model takes and answers", tags=OIP)
    async def model(name: str) -> ModelMetadata:
        _require(public, name)
        return _metadata(public)

    @get("/v2/models/{name:str}/versions/{version:int}", responses=UNKNOWN, summary=SAME, tags=OIP)
    async def model_version(name: str, version: int) -> ModelMetadata:
        _require(public, name, version)
        return _metadata(public, version)

    @get("/v2/models/{name:str}/ready", responses=UNKNOWN, summary="Whether the model answers", tags=OIP)
    async def model_ready(name: str) -> ModelReady:
        _require(public, name)
        return ModelReady(name=name, ready=True)

    @get("/v2/models/{name:str}/versions/{version:int}/ready", responses=UNKNOWN, summary=SAME, tags=OIP)
    async def version_ready(name: str, version: int) -> ModelReady:
        _require(public, name, version)
        return ModelReady(name=name, ready=True)

    return [server, model, model_version, model_ready, version_ready]


def _inference(public: PublicApp) -> list[Any]:
    @post(
        "/v2/models/{name:str}/infer",
        status_code=200,
        operation_class=described.Inference,
        responses=REFUSALS,
        tags=OIP,
        summary="Predict",
    )
    async def infer(name: str, request: Request[Any, Any, Any]) -> Response[bytes]:
        _require(public, name)
        return _response(await public.reply(request.scope, request.receive, INFERENCE))

    @post(
        "/v2/models/{name:str}/versions/{version:int}/infer",
        status_code=200,
        operation_class=described.Inference,
        responses=REFUSALS,
        tags=OIP,
        summary="Predict with a version that is loaded",
    )
    async def version_infer(name: str, version: int, request: Request[Any, Any, Any]) -> Response[bytes]:
        _require(public, name, version)
        return _response(await public.reply(request.scope, request.receive, INFERENCE, version))

    return [infer, version_infer]


def _metadata(public: PublicApp, version: int | None = None) -> ModelMetadata:
    serving = public.answering.serving
    if serving is None:  # it was there a moment ago, and is never taken away
        raise HTTPException(status_code=503, detail="No version is loaded yet.")
    arm = serving.stable if version is None else serving.arms[version]
    said = formats.metadata(arm.loaded.contract, sorted(serving.arms) if version is None else [version])
    return msgspec.convert(said, ModelMetadata)


def _pages(public: PublicApp, ask_metrics: Ask) -> list[Any]:
    @get("/metrics", media_type=MediaType.TEXT, tags=["Operation"], summary="What all workers of this host counted")
    async def shown() -> Response[bytes]:
        return Response(await ask_metrics(), headers={"content-type": metrics.CONTENT_TYPE})

    @get(OPENAPI, include_in_schema=False, media_type=MediaType.JSON)
    async def document() -> bytes:
        return public.openapi

    @get(["/", "/docs"], include_in_schema=False, media_type=MediaType.HTML)
    async def page() -> str:
        return described.page(msgspec.json.decode(public.openapi))

    return [shown, document, page]
