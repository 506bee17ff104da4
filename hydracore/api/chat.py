"""`POST /v1/instances/{id}/chat`: the caller's message to the agent, the agent's answer back, whole or as it comes."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import AsyncExitStack, aclosing
from functools import partial
from http import HTTPStatus
from typing import Annotated, Any, Final, NamedTuple
from uuid import UUID, uuid4, uuid5

from litestar.types import Receive, Scope, Send
from psycopg_pool import AsyncConnectionPool

from events.commands import RecordConversationsAccess
from events.ids import NAMESPACE
from events.keys import Keyring
from events.state import Instance
from hydracore.api import use_schemas as s
from hydracore.api.access import is_owner
from hydracore.api.agent_link import Address, plainly, require_address
from hydracore.api.attended import Attended
from hydracore.api.changing import Asked, Changes
from hydracore.api.chat_stream import whole_events
from hydracore.api.consent import record_access
from hydracore.api.errors import BudgetSpent
from hydracore.api.model_choice import day_of, model_choice
from hydracore.api.operations import Answer, operation
from hydracore.api.validation import Header, Incoming, RawHeaders
from hydracore.auth import Principal
from hydracore.catalogue import Catalogue
from hydracore.vps import VpsClient
from projections.usage_queries import spent

Json = dict[str, Any]

#: How long an agent may take to answer a chat as a whole, and how long a stream may be silent. The agent has shorter
#: limits of its own (300 s for an answer): it is to reach those first, as it can say what went wrong.
ANSWER_TIMEOUT_S: Final = 315.0
IDLE_TIMEOUT_S: Final = 315.0

#: The longest message with each character as two escaped halves, which some JSON writers make of every emoji.
BODY_BYTES: Final = s.MESSAGE_LENGTH_MAX * len(r"\ud83d\ude00") + 1024

_QUALITY: Final = re.compile(r"0(\.[0-9]{0,3})?|1(\.0{0,3})?")
_STREAM_HEADERS: Final = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    # Proxies that gather an answer before they pass it on are asked not to.
    (b"x-accel-buffering", b"no"),
]


class _Question(NamedTuple):
    """What an agent is asked, and with which `Idempotency-Key`."""

    address: Address
    body: Json
    key: str | None


class Chats:
    """`now_ms`: milliseconds since 1970."""

    def __init__(
        self,
        *,
        changes: Changes,
        vps: VpsClient,
        pool: AsyncConnectionPool,
        keyring: Keyring,
        catalogue: Catalogue,
        master_key: bytes,
        now_ms: Callable[[], int],
    ) -> None:
        self._changes = changes
        self._vps = vps
        self._pool = pool
        self._keyring = keyring
        self._catalogue = catalogue
        self._master_key = master_key
        self._now_ms = now_ms

    @operation(
        "POST",
        "/v1/instances/{instance_id}/chat",
        "Proxy chat",
        answer=Any,
        errors=(402, 403, 404, 409, 413, 502, 503, 504),
        body_bytes=BODY_BYTES,
    )
    async def chat(
        self,
        who: Principal,
        incoming: Incoming,
        instance_id: UUID,
        body: s.ChatRequest,
        idempotency_key: Annotated[s.ChatKey | None, Header("Idempotency-Key")] = None,
    ) -> Attended:
        """Nothing of the database is held once the agent is asked."""
        asked = Asked(who, incoming, instance_id)
        state = await self._changes.look(who, instance_id)
        address = require_address(state, master_key=self._master_key)
        if idempotency_key is None:
            # A repeat costs nothing: the agent, which checks the budget too, knows one when it sees it.
            await self._require_budget(state)
        message = {
            "message": body.message,
            "conversation_id": await self._conversation_id(asked, state, body.conversation_id, idempotency_key),
            "end_user": who.user_id,
        }
        pass_on = self._pass_on_stream if wants_stream(incoming.headers) else self._pass_on_answer
        return Attended(partial(pass_on, _Question(address, message, idempotency_key)))

    async def _pass_on_answer(self, question: _Question, scope: Scope, receive: Receive, send: Send) -> None:
        with plainly():
            answer = await self._vps.chat(
                question.body, **question.address, idempotency_key=question.key, timeout_s=ANSWER_TIMEOUT_S
            )
        await Answer(HTTPStatus.OK, bytes(answer))(scope, receive, send)

    async def _pass_on_stream(self, question: _Question, _: Scope, __: Receive, send: Send) -> None:
        # Until the agent has begun, its refusals are answered as such; from then on they are events.
        async with AsyncExitStack() as stack:
            with plainly():
                stream = self._vps.chat_stream(
                    question.body, **question.address, idempotency_key=question.key, idle_timeout_s=IDLE_TIMEOUT_S
                )
                chunks = await stack.enter_async_context(stream)
            await send({"type": "http.response.start", "status": HTTPStatus.OK, "headers": [*_STREAM_HEADERS]})
            async with aclosing(whole_events(chunks)) as events:
                async for event in events:
                    await send({"type": "http.response.body", "body": event, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _require_budget(self, state: Instance) -> None:
        choice = model_choice(state, self._catalogue)
        if choice.has_budget:
            reason = choice.overspent(await spent(self._pool, state.id, today=day_of(self._now_ms())))
            if reason is not None:
                raise BudgetSpent(reason)

    async def _conversation_id(self, asked: Asked, state: Instance, wanted: str | None, key: str | None) -> str | None:
        """The conversation to go on with. Staff have conversations of their own: to join one of the owner's is to read it.

        Raises `Forbidden` where the owner has not allowed that.
        """
        if is_owner(asked.who, state):
            return wanted
        prefix = f"staff:{self._keyring.fingerprint(asked.who.actor.encode()).hex()[:12]}:"
        if wanted is None:
            return prefix + (uuid4() if key is None else uuid5(NAMESPACE, key)).hex
        if not wanted.startswith(prefix):
            access = RecordConversationsAccess(at_ms=self._now_ms(), conversation_id=wanted)
            await record_access(self._changes, asked, access)
        return wanted


def wants_stream(headers: RawHeaders) -> bool:
    """Whether `Accept` asks for an event stream, and for no JSON before it (RFC 9110, section 12.5.1)."""
    accept = b",".join(value for name, value in headers if name == b"accept").decode("latin-1").lower()
    weights: dict[str, float] = {}
    for part in accept.split(","):
        media_type, *parameters = (piece.strip() for piece in part.split(";"))
        weights[media_type] = max(weights.get(media_type, 0), _weight(parameters))
    stream = weights.get("text/event-stream", 0)
    return stream > 0 and stream >= weights.get("application/json", 0)


def _weight(parameters: list[str]) -> float:
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip() == "q" and _QUALITY.fullmatch(value.strip()):
            return float(value)
    return 1.0
