"""Whether the stores' clients find a URL in what was set, asked before anybody connects.

Each client is imported for its own store alone: that takes as long as many a command.
"""


def try_database_url(raw: str) -> None:
    """Raises `ValueError` where libpq finds no URL; what it says of that may have a part of the password."""
    import psycopg  # noqa: PLC0415 - see above
    from psycopg.conninfo import conninfo_to_dict  # noqa: PLC0415

    try:
        _ = float(conninfo_to_dict(raw).get("connect_timeout") or 0)
    except psycopg.ProgrammingError:
        raise ValueError from None


def try_redis_url(raw: str) -> None:
    """Raises `ValueError` where redis-py finds no URL, or a parameter that it does not have. Nothing is connected to."""
    from redis import ConnectionPool, RedisError  # noqa: PLC0415

    try:
        ConnectionPool.from_url(raw).make_connection()  # pyright: ignore[reportUnknownMemberType] - untyped keyword arguments
    except (TypeError, RedisError):
        raise ValueError from None
