"""Checks whether a store's client library accepts a URL, without connecting.

Each library is imported only where its store's URL is checked: an import takes as long as many a whole command.
"""


def check_database_url(raw: str) -> None:
    """Raise `ValueError` where libpq does not accept the URL.

    Its message is dropped: it may hold a part of the password.
    """
    import psycopg  # noqa: PLC0415 - see above
    from psycopg.conninfo import conninfo_to_dict  # noqa: PLC0415

    try:
        _ = float(conninfo_to_dict(raw).get("connect_timeout") or 0)
    except psycopg.ProgrammingError:
        raise ValueError from None


def check_redis_url(raw: str) -> None:
    """Raise `ValueError` where redis-py does not accept the URL or one of its parameters. Opens no connection."""
    from redis import ConnectionPool, RedisError  # noqa: PLC0415

    try:
        ConnectionPool.from_url(raw).make_connection()  # pyright: ignore[reportUnknownMemberType] - untyped keyword arguments
    except (TypeError, RedisError):
        raise ValueError from None
