"""`POST /v1/instances/{id}/chat`: pass the caller's message to the agent, and its answer back, whole or as a stream."""

from __future__ import annotations

import re
from contextlib import aclosing, suppress
from functools import partial
from http import HTTPStatus
from typing import Annotated, Any, Final, NamedTuple
from uuid import UUID, uuid4, uuid5

from litestar.types import ASGIApp, Receive, Scope, Send
from psycopg_pool import AsyncConnectionPool

from events.commands import RecordConversationsAccess
from events.ids import NAMESPACE
from events.keys import Keyring
from events.master_keys import MasterKeys
from events.state import Instance
from events.times import day_of
from hydracore.agent_client import AgentAddress, AgentBadAnswer, AgentClient, AgentClientError, AgentUnreachable
from hydracore.api import use_schemas as s
from hydracore.api.access import is_owner
from hydracore.api.agent_link import agent_errors_translated, api_error_of, code_of, require_address
from hydracore.api.agent_watch import EventStream, check_repeatedly, run_watched
from hydracore.api.cancel_on_disconnect import CancelOnDisconnect
from hydracore.api.changes import Changes, RequestContext
from hydracore.api.chat_stream import StreamError, complete_events, error_event, has_ending
from hydracore.api.concurrency_limiter import ConcurrencyLimiter
from hydracore.api.consent import logged_conversation_id, record_access
from hydracore.api.errors import BudgetSpent, Interrupted
from hydracore.api.model_choice import model_choice
from hydracore.api.operations import Answer, operation
from hydracore.api.raw_request import RawHeaders
from hydracore.api.validation import Header, Incoming
from hydracore.auth import Principal
from hydracore.catalogue import Catalogue
from hydracore.clock import NowMs
from hydracore.media_types import EVENT_STREAM, JSON, media_type
from projections.usage_queries import spent

Json = dict[str, Any]

#: The most seconds that an agent may take for a whole answer, and that a stream may be silent. The agent's own limits
#: are shorter (300 s for an answer) and should be reached first, because it can say what went wrong.
ANSWER_TIMEOUT_S: Final = 315.0
IDLE_TIMEOUT_S: Final = 315.0

#: The most seconds that an agent which is silent in a chat may take to answer a status request. If it does not answer,
#: it is frozen or cut off, its own limits do not work, and its chats are ended.
CHECK_TIMEOUT_S: Final = 15.0

#: The most open chats per instance and process. A working agent refuses further ones itself. An agent that does not
#: answer would otherwise occupy the connections that others need.
CHATS_MAX: Final = 300

#: The longest message, with each character escaped as two surrogates, as some JSON writers do with every emoji.
BODY_BYTES: Final = s.MESSAGE_LENGTH_MAX * len(r"\ud83d\ude00") + 1024

_QUALITY: Final = re.compile(r"0(\.[0-9]{0,3})?|1(\.0{0,3})?")


class _Question(NamedTuple):
    """A request to an agent. `key`: its `Idempotency-Key`.

    The ids of staff's conversations are derived from the master key. `former_bodies`: the bodies of the same request
    with ids from former master keys.
    """

    instance_id: UUID
    address: AgentAddress
    body: Json
    key: str | None
    former_bodies: tuple[Json, ...] = ()

    def with_former_id(self, refusal: AgentBadAnswer) -> _Question | None:
        """The question with the id from the next former master key; None if there is none, or if it would not help.

        `refusal`: the agent's answer to this question. Another id helps only if the agent has stored another question
        under the same key.
        """
        if refusal.code != "idempotency_mismatch" or not self.former_bodies:
            return None
        return self._replace(body=self.former_bodies[0], former_bodies=self.former_bodies[1:])


class Chats:
    def __init__(
        self,
        *,
        changes: Changes,
        agent_client: AgentClient,
        pool: AsyncConnectionPool,
        keyring: Keyring,
        catalogue: Catalogue,
        master_keys: MasterKeys,
        now_ms: NowMs,
    ) -> None:
        self._changes = changes
        self._agent_client = agent_client
        self._pool = pool
        self._keyring = keyring
        self._catalogue = catalogue
        self._master_keys = master_keys
        self._now_ms = now_ms
        self._limiter = ConcurrencyLimiter("chats")

    @operation(
        "POST",
        "/v1/instances/{instance_id}/chat",
        "Proxy chat",
        answer=Any,
        errors=(402, 403, 404, 409, 413, 502, 503, 504),
        body_bytes=BODY_BYTES,
        streams=True,
    )
    async def chat(
        self,
        who: Principal,
        incoming: Incoming,
        instance_id: UUID,
        body: s.ChatRequest,
        idempotency_key: Annotated[s.ChatKey | None, Header("Idempotency-Key")] = None,
    ) -> ASGIApp:
        """Holds no database connection while it waits for the agent."""
        context = RequestContext(who, incoming, instance_id)
        state = await self._changes.load(who, instance_id)
        address = require_address(state, master_keys=self._master_keys)
        if idempotency_key is None:
            # With a key it may be a repeat, which costs nothing. The agent recognizes it, and checks the budget too.
            await self._require_budget(state)
        conversation_ids = await self._conversation_ids(context, state, body.conversation_id, idempotency_key)
        message, *former_bodies = (
            {"message": body.message, "conversation_id": conversation_id, "end_user": who.user_id}
            for conversation_id in conversation_ids
        )
        question = _Question(instance_id, address, message, idempotency_key, tuple(former_bodies))
        if wants_stream(incoming.headers):
            return partial(self._pass_on_stream, question)
        return CancelOnDisconnect(partial(self._pass_on_answer, question))

    async def _pass_on_answer(self, question: _Question, scope: Scope, receive: Receive, send: Send) -> None:
        with agent_errors_translated(), self._limiter.slot(question.instance_id, limit=CHATS_MAX):
            watch = check_repeatedly(partial(self._check_agent, question))
            answer = await run_watched(self._answer_to(question), watch=watch)
        await Answer(HTTPStatus.OK, answer)(scope, receive, send)

    async def _answer_to(self, question: _Question) -> bytes:
        """The agent's answer. Raises `AgentClientError`."""
        try:
            return await self._agent_client.chat(
                question.address, question.body, idempotency_key=question.key, timeout_s=ANSWER_TIMEOUT_S
            )
        except AgentBadAnswer as error:
            if (retry := question.with_former_id(error)) is None:
                raise
            return await self._answer_to(retry)

    async def _pass_on_stream(self, question: _Question, scope: Scope, receive: Receive, send: Send) -> None:
        stream = EventStream(send)
        try:
            await CancelOnDisconnect(partial(self._fill_stream, question, stream))(scope, receive, send)
        except Interrupted as error:
            if not stream.is_open:
                raise
            if not has_ending(stream.last):
                await stream.write(error_event(StreamError("interrupted", str(error)), cause=None))
            await stream.close()

    async def _fill_stream(self, question: _Question, stream: EventStream, *_: object) -> None:
        with self._limiter.slot(question.instance_id, limit=CHATS_MAX):
            try:
                watch = stream.keep_alive(partial(self._check_agent, question))
                await run_watched(self._pass_on_events(question, stream), watch=watch)
            except AgentClientError as error:
                # Before the stream has begun, the error can still be answered with its status.
                if not stream.is_open:
                    raise api_error_of(error) from error
                if not has_ending(stream.last):
                    stream_error = StreamError(code_of(error), str(api_error_of(error)))
                    await stream.write(error_event(stream_error, cause=str(error)))
        await stream.close()

    async def _pass_on_events(self, question: _Question, stream: EventStream) -> None:
        """Raises `AgentClientError` where the stream does not begin. One that has begun always gets an ending."""
        answer = self._agent_client.chat_stream(
            question.address, question.body, idempotency_key=question.key, idle_timeout_s=IDLE_TIMEOUT_S
        )
        try:
            async with answer as chunks, aclosing(complete_events(chunks)) as events:
                async for event in events:
                    await stream.write(event)
        except AgentBadAnswer as error:
            if (retry := question.with_former_id(error)) is None:
                raise
            await self._pass_on_events(retry, stream)

    async def _check_agent(self, question: _Question) -> None:
        """Raises `AgentTimeout` where the agent does not answer a status request. Other failures show in the chat."""
        with suppress(AgentUnreachable, AgentBadAnswer):
            await self._agent_client.status(question.address, timeout_s=CHECK_TIMEOUT_S)

    async def _require_budget(self, state: Instance) -> None:
        choice = model_choice(state, self._catalogue)
        if choice.has_budget:
            reason = choice.overspent(await spent(self._pool, state.id, today=day_of(self._now_ms())))
            if reason is not None:
                raise BudgetSpent(reason)

    async def _conversation_ids(
        self, context: RequestContext, state: Instance, requested_id: str | None, key: str | None
    ) -> list[str | None]:
        """The id of the conversation to continue. If the request may be a repeat, also its ids by former master keys.

        Staff have conversations of their own. To join one of the owner's is to read it: raises `Forbidden` where the
        owner has not allowed that.
        """
        if is_owner(context.who, state):
            return [requested_id]
        digests = self._keyring.fingerprints(context.who.actor.encode())
        prefixes = tuple(f"staff:{digest.hex()[:12]}:" for digest in digests)
        if requested_id is None:
            if key is None:
                return [prefixes[0] + uuid4().hex]
            return [prefix + uuid5(NAMESPACE, key).hex for prefix in prefixes]
        if not requested_id.startswith(prefixes):
            logged_id = logged_conversation_id(self._keyring, state.id, requested_id)
            access = RecordConversationsAccess(at_ms=self._now_ms(), conversation_id=logged_id)
            await record_access(self._changes, context, access)
        return [requested_id]


def wants_stream(headers: RawHeaders) -> bool:
    """Whether `Accept` prefers an event stream to JSON (RFC 9110, section 12.5.1)."""
    accept = b",".join(value for name, value in headers if name == b"accept").decode("latin-1").lower()
    weights: dict[str, float] = {}
    for part in accept.split(","):
        _, *parameters = (piece.strip() for piece in part.split(";"))
        kind = media_type(part)
        weights[kind] = max(weights.get(kind, 0), _weight(parameters))
    stream = weights.get(EVENT_STREAM, 0)
    return stream > 0 and stream >= weights.get(JSON, 0)


def _weight(parameters: list[str]) -> float:
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip() == "q" and _QUALITY.fullmatch(value.strip()):
            return float(value)
    return 1.0
