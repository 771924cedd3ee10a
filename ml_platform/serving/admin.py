"""The admin port: what is served, a rollback, what was asked; every call is written down before it is carried out."""

from typing import TYPE_CHECKING, Any

import msgspec
from litestar import Litestar, MediaType, Request, Response, get, post
from litestar.exceptions import HTTPException
from litestar.openapi import OpenAPIConfig
from litestar.openapi.plugins import JsonRenderPlugin
from litestar.params import Parameter

from ml_platform.errors import ConfigurationError, ConflictError, EvidenceError, PlatformError, StorageError
from ml_platform.records import now
from ml_platform.serving import metrics
from ml_platform.serving.bodies import header
from ml_platform.serving.tokens import Holder, Scope

if TYPE_CHECKING:
    from ml_platform.serving.supervisor import Supervisor

MOST_BODY = 16 * 1024
SHOWN = 200
STATUS_OF: dict[type[PlatformError], int] = {
    ConfigurationError: 422,
    EvidenceError: 409,
    ConflictError: 409,
    StorageError: 507,
}


class Asked(msgspec.Struct, forbid_unknown_fields=True):
    """A rollback: why, to which version (to the champion before where none is named), and in whose name.

    The name is the caller's word; who holds the token stands beside it.
    """

    reason: str
    to: int | None = None
    actor: str | None = None


class AdminApp:
    """The ASGI application of the admin port: it lets nobody pass whose token does not allow it.

    Parameters
    ----------
    supervisor : Supervisor
    """

    def __init__(self, supervisor: "Supervisor") -> None:
        self.supervisor = supervisor
        self._app = _litestar(supervisor)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Write a call down, and pass it on if its token allows it."""
        if scope["type"] != "http":
            return
        holder, refusal = self._judge(scope)
        try:
            self._record(scope, holder, refusal)
        except StorageError as error:
            refusal = (507, f"The call could not be recorded, so nothing was done: {error}")
        if refusal is not None:
            await _refuse(send, *refusal)
            return
        scope["state"]["actor"] = f"{holder.name}@admin" if holder else ""
        await self._app(scope, receive, send)

    def _judge(self, scope: Any) -> tuple[Holder | None, tuple[int, str] | None]:
        """Return who calls, and why they may not; None where they may."""
        given = header(scope, b"authorization") or b""
        kind, _, token = given.partition(b" ")
        if kind.lower() != b"bearer" or not token:
            return None, (401, "A bearer token must be given: Authorization: Bearer TOKEN.")
        holder = self.supervisor.tokens.holder(token.strip().decode("latin-1"))
        if holder is None:
            return None, (401, "The token is not known here.")
        needed = Scope.VIEWER if scope["method"] in {"GET", "HEAD"} else Scope.OPERATOR
        if not holder.may(needed):
            return holder, (403, f"The token of {holder.name} must have the scope {needed}.")
        return holder, None

    def _record(self, scope: Any, holder: Holder | None, refusal: tuple[int, str] | None) -> None:
        client = scope.get("client")
        self.supervisor.calls.append(
            {
                "at": now().isoformat(),
                "caller": holder.name if holder else None,
                "from": client[0] if client else None,
                "method": scope["method"][:20],
                "path": scope["path"][:SHOWN],
                "allowed": refusal is None,
                "status": refusal[0] if refusal else None,
            }
        )


async def _refuse(send: Any, status: int, why: str) -> None:
    body = msgspec.json.encode({"error": why})
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    headers += [(b"www-authenticate", b"Bearer")] if status == 401 else []
    await send({"type": "http.response.start", "status": status, "headers": [*headers, (b"connection", b"close")]})
    await send({"type": "http.response.body", "body": body})


def _litestar(supervisor: "Supervisor") -> Litestar:
    @get("/state", summary="What this host serves and is to serve")
    async def state() -> dict[str, Any]:
        desired = supervisor.state
        return {
            "model": supervisor.model,
            "server": supervisor.name,
            "facts": supervisor.facts,
            "desired": msgspec.json.decode(desired.document) if desired else None,
        }

    @post("/rollback", status_code=200, summary="Let an earlier champion answer, now")
    async def rollback(data: Asked, request: Request[Any, Any, Any]) -> Response[dict[str, Any]]:
        holder = request.scope["state"]["actor"]
        actor = f"{data.actor[:SHOWN]} ({holder})" if data.actor and data.actor.isprintable() else holder
        done = await supervisor.roll_back(data.to, reason=data.reason, actor=actor)
        return Response(done, status_code=200 if done["swapped"] else 202)

    @get("/log", summary="The last calls of this port, and the rollbacks with what became of them")
    async def log(most: int = Parameter(default=100, ge=1, le=1_000)) -> dict[str, Any]:
        entries = supervisor.journal.entries()[-most:]
        return {"calls": supervisor.calls.last(most), "rollbacks": [vars(entry) for entry in entries]}

    @get("/metrics", media_type=MediaType.TEXT, summary="What all workers of this host counted")
    async def shown() -> Response[bytes]:
        return Response(await supervisor.metrics(), headers={"content-type": metrics.CONTENT_TYPE})

    return Litestar(
        [state, rollback, log, shown],
        openapi_config=OpenAPIConfig(
            title=f"Admin port of {supervisor.model}", version="1", path="/schema", render_plugins=[JsonRenderPlugin()]
        ),
        exception_handlers={PlatformError: _failed, HTTPException: _refused},
        logging_config=None,
        request_max_body_size=MOST_BODY,
    )


def _failed(_: Request[Any, Any, Any], error: PlatformError) -> Response[dict[str, str]]:
    status = next((status for kind, status in STATUS_OF.items() if isinstance(error, kind)), 500)
    return Response({"error": str(error)}, status_code=status)


def _refused(_: Request[Any, Any, Any], error: HTTPException) -> Response[dict[str, Any]]:
    said = {"error": error.detail, **({"problems": error.extra} if error.extra else {})}
    return Response(said, status_code=error.status_code, headers=error.headers)
