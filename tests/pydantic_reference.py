"""FastAPI's and pydantic's verdicts on the same types: the reference for validating requests.

Import it only in the tests that need it: it costs a process half a second.
"""

import uuid
from decimal import Decimal
from typing import Annotated, Any, Literal

import fastapi
import pydantic
from pydantic_core import PydanticKnownError


def _no_boolean(kind: Literal["int_type", "float_type"]) -> pydantic.BeforeValidator:
    """Our own rule, as JSON Schema has it."""

    def check(value: Any) -> Any:
        if isinstance(value, bool):
            raise PydanticKnownError(kind)
        return value

    return pydantic.BeforeValidator(check)


NoBooleanForInt = _no_boolean("int_type")
NoBooleanForFloat = _no_boolean("float_type")


class Inner(pydantic.BaseModel):
    size: Annotated[int, NoBooleanForInt]


class Outer(pydantic.BaseModel):
    text: str
    flag: bool = False
    count: Annotated[int, pydantic.Field(ge=1, le=100), NoBooleanForInt] = 5
    ratio: Annotated[float, pydantic.Field(gt=0, lt=2, allow_inf_nan=False), NoBooleanForFloat] | None = None
    ident: uuid.UUID | None = None
    words: list[str] | None = None
    switches: dict[str, bool] | None = None
    choice: Literal["a", "b", "c"] = "a"
    short: Annotated[str, pydantic.Field(min_length=1, max_length=5)] = "x"
    lower: Annotated[str, pydantic.Field(pattern="^[a-z]+$")] = "x"
    inner: Inner | None = None
    amount: Decimal | None = None


class Body(pydantic.BaseModel):
    name: Annotated[str, pydantic.Field(min_length=1, max_length=8)]
    size: Annotated[int, pydantic.Field(ge=1), NoBooleanForInt] = 1
    tags: list[str] | None = None
    force: bool = False


def pydantic_verdict(raw: dict[str, Any]) -> tuple[dict[str, Any] | None, list[tuple[Any, ...]]]:
    """An `Outer` as plain values, or `None` and its problems: place, words and code of each."""
    try:
        return Outer.model_validate(raw, from_attributes=True).model_dump(), []
    except pydantic.ValidationError as error:
        return None, [(each["loc"], each["msg"], each["type"]) for each in error.errors()]


def application() -> fastapi.FastAPI:
    """One operation, with something in every part of the request."""
    app = fastapi.FastAPI()

    @app.post("/things/{instance_id}")
    async def operation(
        *,
        body: Body,
        instance_id: uuid.UUID,
        x_count: Annotated[int, fastapi.Header()],
        limit: Annotated[int, fastapi.Query(ge=1, le=100)] = 20,
        deep: Annotated[bool, fastapi.Query()] = False,
    ) -> dict[str, Any]:
        return {"body": body.model_dump(), "instance_id": instance_id, "x_count": x_count, "limit": limit, "deep": deep}

    return app
