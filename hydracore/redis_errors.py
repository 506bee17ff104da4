"""What a call of Redis ends in where nobody answers it."""

from typing import Final

from redis.exceptions import RedisError

#: Of a connection that goes in the moment in which it is made, uvloop says so with a `RuntimeError`.
NO_ANSWER: Final = (RedisError, OSError, RuntimeError)
