"""The usual stack: FastAPI, SQLAlchemy's async ORM and asyncpg, serving two of our endpoints from our own tables.

Written as its documentation teaches it: response models, dependencies for the session and the user, PyJWT, a pool.
"""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

import jwt
from fastapi import Depends, FastAPI, HTTPException
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import BaseModel, ConfigDict
from sqlalchemy import select
from sqlalchemy.dialects.postgresql import JSON
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

JWT_SECRET = os.environ["BENCH_JWT_SECRET"]
POOL_SIZE = int(os.environ["BENCH_POOL_SIZE"])

engine = create_async_engine(os.environ["BENCH_DATABASE_URL"], pool_size=POOL_SIZE, max_overflow=0)
sessions = async_sessionmaker(engine, expire_on_commit=False)


class Base(DeclarativeBase):
    pass


class Instance(Base):
    __tablename__ = "instance"

    lane: Mapped[int] = mapped_column(primary_key=True)
    id: Mapped[UUID] = mapped_column(primary_key=True)
    tenant_id: Mapped[str]
    customer_id: Mapped[str]
    status: Mapped[str]
    provisioning_stage: Mapped[str]
    region_id: Mapped[str]
    tier_name: Mapped[str | None]
    preset_id: Mapped[str]
    runtime_type: Mapped[str]
    workload_type: Mapped[str]
    capabilities: Mapped[Any] = mapped_column(JSON)
    agent_name: Mapped[str | None]
    customer_email: Mapped[str | None]
    hostname: Mapped[str | None]
    vpn_ip: Mapped[str | None]
    ip_address: Mapped[str | None]
    provider: Mapped[str | None]
    server_type: Mapped[str | None]
    bootstrap_stage: Mapped[str | None]
    bootstrap_seq: Mapped[int | None]
    health_status: Mapped[str | None]
    error_code: Mapped[str | None]
    created_at: Mapped[datetime]
    updated_at: Mapped[datetime]


class ListItem(BaseModel):
    model_config = ConfigDict(from_attributes=True)

    agent_name: str | None
    created_at: datetime
    hostname: str | None
    id: UUID
    ip_address: str | None
    preset_id: str
    provider: str | None
    region_id: str
    runtime_type: str
    status: str
    workload_type: str
    customer_email: str | None
    product_tier_name: str | None
    customer_id: str
    tenant_id: str


class InstanceList(BaseModel):
    instances: list[ListItem]


class Detail(BaseModel):
    agent_name: str | None
    created_at: datetime
    hostname: str | None
    id: UUID
    ip_address: str | None
    preset_id: str
    provider: str | None
    region_id: str
    runtime_type: str
    status: str
    workload_type: str
    callback_seq: int | None
    callback_stage: str | None
    capabilities: dict[str, bool]
    error_message: str | None
    health_status: str | None
    provisioning_stage: str | None
    server_type_plan: str | None
    updated_at: datetime
    vpn_ip: str | None
    customer_id: str
    tenant_id: str


class User(BaseModel):
    id: str
    tenant: str
    role: str


async def session() -> AsyncGenerator[AsyncSession]:
    async with sessions() as opened:
        yield opened


async def user(credentials: Annotated[HTTPAuthorizationCredentials, Depends(HTTPBearer())]) -> User:
    try:
        claims = jwt.decode(credentials.credentials, JWT_SECRET, algorithms=["HS256"])
    except jwt.InvalidTokenError:
        raise HTTPException(401, "Invalid token") from None
    return User(id=claims["sub"], tenant=claims["tenant"], role=claims["role"])


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncGenerator[None]:
    yield
    await engine.dispose()


app = FastAPI(lifespan=lifespan)


@app.get("/v1/instances")
async def list_instances(
    who: Annotated[User, Depends(user)], db: Annotated[AsyncSession, Depends(session)]
) -> InstanceList:
    wanted = (
        select(Instance)
        .where(Instance.tenant_id == who.tenant, Instance.customer_id == who.id, Instance.status != "deleted")
        .order_by(Instance.created_at.desc(), Instance.id.desc())
        .limit(1_000)
    )
    rows = (await db.scalars(wanted)).all()
    return InstanceList(
        instances=[
            ListItem(
                agent_name=row.agent_name,
                created_at=row.created_at,
                hostname=row.hostname,
                id=row.id,
                ip_address=row.ip_address,
                preset_id=row.preset_id,
                provider=row.provider,
                region_id=row.region_id,
                runtime_type=row.runtime_type,
                status=row.status,
                workload_type=row.workload_type,
                customer_email=row.customer_email,
                product_tier_name=row.tier_name,
                customer_id=row.customer_id,
                tenant_id=row.tenant_id,
            )
            for row in rows
        ]
    )


@app.get("/v1/instances/{instance_id}")
async def get_instance(
    instance_id: UUID, who: Annotated[User, Depends(user)], db: Annotated[AsyncSession, Depends(session)]
) -> Detail:
    # The primary key begins with the lane, as ours does.
    row = await db.get(Instance, (instance_id.bytes[15] & 63, instance_id))
    if row is None or row.tenant_id != who.tenant:
        raise HTTPException(404, "Instance not found")
    if who.role == "customer" and row.customer_id != who.id:
        raise HTTPException(403, "This instance belongs to another customer")
    return Detail(
        agent_name=row.agent_name,
        created_at=row.created_at,
        hostname=row.hostname,
        id=row.id,
        ip_address=row.ip_address,
        preset_id=row.preset_id,
        provider=row.provider,
        region_id=row.region_id,
        runtime_type=row.runtime_type,
        status=row.status,
        workload_type=row.workload_type,
        callback_seq=row.bootstrap_seq,
        callback_stage=row.bootstrap_stage,
        capabilities=row.capabilities,
        error_message=row.error_code,
        health_status=row.health_status,
        provisioning_stage=row.provisioning_stage,
        server_type_plan=row.server_type,
        updated_at=row.updated_at,
        vpn_ip=row.vpn_ip,
        customer_id=row.customer_id,
        tenant_id=row.tenant_id,
    )
