"""`POST /v1/instances`: request an agent. A request with the same idempotency key is the same request."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated
from uuid import uuid4

import msgspec

from events.commands import RequestInstance
from events.errors import CustomerErased, KeyUnreadable
from events.ids import command_id_for, instance_id_for
from events.keys import Keyring
from events.record import Origin
from events.store import EventStore
from events.types import Sealed
from hydracore.api import schemas as s
from hydracore.api.errors import Forbidden, RequestInvalid
from hydracore.api.operations import Answer, operation
from hydracore.api.size_limits import slug_texts
from hydracore.api.validation import CheckProblems, Header, Incoming, RequestValues
from hydracore.auth import Principal
from hydracore.catalogue import Catalogue
from hydracore.clock import NowMs
from hydracore.problems import Problem

MESSAGE = "Instance requested; it is being provisioned"


def _keys_differ(given: RequestValues) -> Iterator[Problem]:
    """The problem of a request with different keys in header and body."""
    in_header, in_body = given["header"].get("idempotency-key"), given["body"].get("idempotency_key")
    if in_header is not None and isinstance(in_body, str) and in_body != in_header:
        msg = "Value error, differs from the idempotency_key of the body"
        yield Problem(("header", "idempotency-key"), msg, "value_error")


@dataclass(frozen=True, kw_only=True)
class InstanceCreation:
    store: EventStore
    keyring: Keyring
    catalogue: Catalogue
    now_ms: NowMs

    @operation(
        "POST",
        "/v1/instances",
        "Create instance",
        answer=s.CreateInstanceResponse,
        status=202,
        errors=(403, 409),
        cross_check=_keys_differ,
    )
    async def create_instance(
        self,
        who: Principal,
        incoming: Incoming,
        check_problems: CheckProblems,
        body: s.CreateInstance,
        idempotency_key: Annotated[s.IdempotencyKey | None, Header("Idempotency-Key")] = None,
    ) -> Answer:
        """Answers from the log: every repeat gets the answer of the first request."""
        customer_id = body.customer_id if body.customer_id is not None else who.user_id
        if who.role == "customer" and customer_id != who.user_id:
            check_problems.require_none()
            raise Forbidden("Customers can only request instances for themselves")
        given = body.idempotency_key if body.idempotency_key is not None else idempotency_key
        key = str(uuid4()) if given is None else given
        instance_id = instance_id_for(tenant_id=who.tenant_id, customer_id=customer_id, idempotency_key=key)
        command_id = command_id_for(instance_id, "request")
        answer = msgspec.json.encode(
            s.CreateInstanceResponse(
                idempotency_key=key, instance_id=instance_id, message=MESSAGE, task_id=str(command_id)
            )
        )
        request_hash, *former = self.keyring.fingerprints(_canonical(body))
        origin = Origin(
            actor=who.actor,
            command_id=command_id,
            correlation_id=incoming.correlation_id,
            request_hash=request_hash,
            request_hashes_former=tuple(former),
            result=answer,
        )
        try:
            command = await self._command(who, body, check_problems, customer_id=customer_id, key=key)
        except (RequestInvalid, CustomerErased, KeyUnreadable):
            # The order is refused now, but may have been accepted at first: then it is answered as before. Looked up
            # only here, because that costs a round trip, and an append looks by itself. If the log cannot be read, this
            # raises rather than refuse a repeat.
            outcome = None if given is None else await self.store.earlier_outcome(instance_id, origin)
            if outcome is None:
                raise
        else:
            outcome = await self.store.create(instance_id, command, origin)
            await self.keyring.ensure_stored(tenant_id=who.tenant_id, customer_id=customer_id)
        return Answer(202, outcome.result if outcome.result is not None else answer)

    async def _command(
        self, who: Principal, body: s.CreateInstance, check_problems: CheckProblems, *, customer_id: str, key: str
    ) -> RequestInstance:
        """Raises `RequestInvalid`, `CustomerErased` and `KeyUnreadable` where the order is not possible now."""
        check_problems.require_none()
        preset = self.catalogue.presets[body.preset_id]

        async def sealed(text: str | None, field: str) -> Sealed | None:
            if text is None:
                return None
            return await self.keyring.seal(text, tenant_id=who.tenant_id, customer_id=customer_id, field=field)

        return RequestInstance(
            at_ms=self.now_ms(),
            tenant_id=who.tenant_id,
            customer_id=customer_id,
            idempotency_key=key,
            region_id=body.region_id,
            tier_id=body.tier_id,
            preset_id=body.preset_id,
            runtime_type=preset.runtime_type,
            workload_type="agent" if body.website_template_slug is None else "website",
            capabilities=preset.capabilities,
            tier_name=self.catalogue.tiers[body.tier_id].name,
            agent_name=body.agent_name,
            manifest_id=body.manifest_id,
            recipe_id=body.recipe_id,
            website_template_slug=body.website_template_slug,
            workflow_slugs=slug_texts(body.workflow_slugs),
            # Only the customer's own token has their address. An admin's token has the admin's.
            customer_email=await sealed(who.email if who.user_id == customer_id else None, "customer_email"),
            user_display_name=await sealed(body.user_display_name, "user_display_name"),
        )


def _canonical(body: s.CreateInstance) -> bytes:
    """What two equal requests have in common: all fields except those that the instance's id is derived from."""
    return msgspec.json.encode(msgspec.structs.replace(body, idempotency_key=None, customer_id=None))
