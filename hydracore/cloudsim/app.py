"""The application: all handlers over one `Sim`, with every error in the API's shape."""

import secrets
from http import HTTPStatus

import structlog
from litestar import Litestar, Response
from litestar.datastructures import State
from litestar.exceptions import HTTPException
from litestar.types import ASGIApp

from hydracore.cloudsim.api_catalogue import CATALOGUE
from hydracore.cloudsim.api_control import CONTROL
from hydracore.cloudsim.api_servers import SERVERS
from hydracore.cloudsim.gateway import Gateway
from hydracore.cloudsim.problems import ApiError
from hydracore.cloudsim.sim import AnyRequest, Sim, respond

_log = structlog.get_logger(__name__)

BODY_BYTES_MAX = 256 * 1024


def make_app(sim: Sim) -> ASGIApp:
    """The whole application as it is served."""
    app = Litestar(
        [SERVERS, CATALOGUE, CONTROL],
        state=State({"sim": sim}),
        # Litestar wants these to be plain functions: an async one would turn every error into a 500.
        exception_handlers={ApiError: _refused, HTTPException: _not_served, Exception: _broken},
        openapi_config=None,
        logging_config=None,
        request_max_body_size=BODY_BYTES_MAX,
    )
    return Gateway(app, token=sim.token, quota=sim.quota, new_id=lambda: secrets.token_hex(8))


def _refused(_: AnyRequest, error: ApiError) -> Response[bytes]:
    return respond(error.reply())


def _not_served(_: AnyRequest, error: HTTPException) -> Response[bytes]:
    """The answer to what the framework refuses by itself: unknown paths and methods, bodies that are too large."""
    code = {404: "not_found", 405: "method_not_allowed", 413: "invalid_input"}.get(error.status_code, "server_error")
    message = HTTPStatus(error.status_code).phrase
    return respond(ApiError(error.status_code, code, message, headers=error.headers).reply())


def _broken(request: AnyRequest, error: Exception) -> Response[bytes]:
    """The answer after a bug of ours, as a provider would give it."""
    _log.error("request_failed", method=request.method, path=request.url.path, exc_info=error)
    return respond(ApiError(500, "server_error", "unexpected error").reply())
