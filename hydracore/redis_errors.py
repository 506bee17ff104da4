"""The exceptions that a call to Redis raises where it gets no answer."""

from typing import Final

from redis.exceptions import RedisError

#: uvloop raises `RuntimeError` where a connection is lost in the moment in which it is made.
REDIS_ERRORS: Final = (RedisError, OSError, RuntimeError)
