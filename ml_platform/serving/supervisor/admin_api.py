"""The admin port: state, metrics, rollbacks and their records.

Every permitted call is recorded before it is carried out, and its outcome afterwards. If the disk refuses the record,
it goes to the server's log, because a rollback must be possible with a full disk.
"""

import logging
import secrets
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import msgspec
from litestar import Litestar, MediaType, Request, Response, get, post
from litestar.exceptions import HTTPException
from litestar.openapi import OpenAPIConfig
from litestar.openapi.plugins import JsonRenderPlugin
from litestar.params import Parameter

from ml_platform.errors import ConfigurationError, ConflictError, EvidenceError, PlatformError, StorageError
from ml_platform.records.canonical import canonical_json, now
from ml_platform.serving import prometheus
from ml_platform.serving.http.request_body import header
from ml_platform.serving.supervisor.admin_tokens import Principal, Scope

if TYPE_CHECKING:
    from ml_platform.serving.supervisor.supervisor import Supervisor

log = logging.getLogger("ml_platform.serving")

MAX_BODY = 16 * 1024
READS = frozenset({"GET", "HEAD"})
# Characters of a caller's text that are recorded.
MAX_RECORDED = 200
STATUS_OF: dict[type[PlatformError], int] = {
    ConfigurationError: 422,
    EvidenceError: 409,
    ConflictError: 409,
    StorageError: 507,
}


class RollbackRequest(msgspec.Struct, forbid_unknown_fields=True):
    """A request for a rollback: its reason, its target (the previous champion by default) and its actor.

    The actor is an unverified claim of the caller; the name of the token's holder is recorded with it.
    """

    reason: str
    to: int | None = None
    actor: str | None = None


class AdminApp:
    """The ASGI application of the admin port: it refuses calls whose token does not permit them.

    Parameters
    ----------
    supervisor : Supervisor
    """

    def __init__(self, supervisor: "Supervisor") -> None:
        self.supervisor = supervisor
        self._app = _make_litestar_app(supervisor)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Record a call, and carry it out if its token permits it."""
        if scope["type"] != "http":
            return
        holder, refusal = self._authorize(scope)
        call = _describe_call(scope, holder)
        audit_log = self.supervisor.audit_log
        if refusal is not None:
            _record(audit_log.append_refusal, {**call, "allowed": False, "status": refusal[0]})
            await _refuse(send, *refusal)
            return
        file = audit_log.reads if scope["method"] in READS else audit_log.changes
        _record(file.append, {**call, "allowed": True, "status": None})
        scope["state"]["actor"] = f"{holder.name}@admin" if holder else ""
        status = 500  # the response to an error that the application does not handle

        async def send_and_note(message: Any) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        if scope["method"] == "HEAD":  # as GET; the server leaves the body out
            scope = {**scope, "method": "GET"}
        try:
            await self._app(scope, receive, send_and_note)
        finally:
            _record(file.append, {"id": call["id"], "status": status, "ended_at": now().isoformat()})

    def _authorize(self, scope: Any) -> tuple[Principal | None, tuple[int, str] | None]:
        """Return the token's holder, and the status and reason of a refusal; ``None`` if the call is permitted."""
        kind, _, token = (header(scope, b"authorization") or b"").partition(b" ")
        if kind.lower() != b"bearer" or not token:
            return None, (401, "A bearer token must be given: Authorization: Bearer TOKEN.")
        holder = self.supervisor.tokens.find_principal(token.strip().decode("latin-1"))
        if holder is None:
            return None, (401, "The token is not known to this server.")
        needed = Scope.VIEWER if scope["method"] in READS else Scope.OPERATOR
        if not holder.may(needed):
            return holder, (403, f"The token of {holder.name} must have the scope {needed}.")
        return holder, None


def _describe_call(scope: Any, holder: Principal | None) -> dict[str, Any]:
    """Return a call's entry in the audit log. The query is left out: it may hold a secret."""
    client = scope.get("client")
    return {
        "id": secrets.token_hex(8),
        "at": now().isoformat(),
        "caller": holder.name if holder else None,
        "from": client[0] if client else None,
        "method": scope["method"][:20],
        "path": scope["path"][:MAX_RECORDED],
    }


def _record(append: Callable[[Mapping[str, Any]], None], call: Mapping[str, Any]) -> None:
    try:
        append(call)
    except StorageError as error:
        log.warning("%s The call is recorded here only: %s", error, canonical_json(dict(call)))


async def _refuse(send: Any, status: int, reason: str) -> None:
    body = msgspec.json.encode({"error": reason})
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    headers += [(b"www-authenticate", b"Bearer")] if status == 401 else []
    await send({"type": "http.response.start", "status": status, "headers": [*headers, (b"connection", b"close")]})
    await send({"type": "http.response.body", "body": body})


def _make_litestar_app(supervisor: "Supervisor") -> Litestar:
    @get("/state", summary="The versions that this host serves, and its desired state")
    async def state() -> dict[str, Any]:
        desired = supervisor.state
        return {
            "model": supervisor.model,
            "server": supervisor.name,
            "facts": supervisor.facts,
            "desired": msgspec.json.decode(desired.document) if desired else None,
        }

    @post("/rollback", status_code=200, summary="Return to an earlier champion at once")
    async def rollback(data: RollbackRequest, request: Request[Any, Any, Any]) -> Response[dict[str, Any]]:
        holder = request.scope["state"]["actor"]
        actor = f"{data.actor[:MAX_RECORDED]} ({holder})" if data.actor and data.actor.isprintable() else holder
        result = await supervisor.roll_back(data.to, reason=data.reason, actor=actor)
        return Response(result, status_code=200 if result["swapped"] else 202)

    @get("/log", summary="The last changes, reads and refused calls, and the rollbacks, with their outcomes")
    async def read_log(most: int = Parameter(default=100, ge=1, le=1_000)) -> dict[str, Any]:
        entries = supervisor.journal.entries()[-most:]
        return {**supervisor.audit_log.last(most), "rollbacks": [vars(entry) for entry in entries]}

    @get("/metrics", media_type=MediaType.TEXT, summary="The metrics of all processes of this host")
    async def metrics() -> Response[bytes]:
        return Response(await supervisor.metrics(), headers={"content-type": prometheus.CONTENT_TYPE})

    return Litestar(
        [state, rollback, read_log, metrics],
        openapi_config=OpenAPIConfig(
            title=f"Admin port of {supervisor.model}", version="1", path="/schema", render_plugins=[JsonRenderPlugin()]
        ),
        exception_handlers={PlatformError: _make_error_response, HTTPException: _make_error_response},
        logging_config=None,
        request_max_body_size=MAX_BODY,
    )


def _make_error_response(_: Request[Any, Any, Any], error: PlatformError | HTTPException) -> Response[dict[str, Any]]:
    if isinstance(error, HTTPException):
        body = {"error": error.detail, **({"problems": error.extra} if error.extra else {})}
        return Response(body, status_code=error.status_code, headers=error.headers)
    status = next((status for kind, status in STATUS_OF.items() if isinstance(error, kind)), 500)
    return Response({"error": str(error)}, status_code=status)
