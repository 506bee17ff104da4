"""A small Telegram for tests: bots with tokens, people who write to them, long polls that wait, and trouble."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections import defaultdict, deque
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Any

from hydracore.http_server import running_server, uvicorn_config
from tests.waiting import PATIENCE_S

TOKEN = "4711:fake-telegram_TOKEN-0123456789"


class FakeTelegram:
    """Knows one bot, whose token is `token`. Updates are kept until a poll with a higher offset confirms them."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.token = TOKEN
        self.sent: list[tuple[int, str]] = []
        self.held = asyncio.Event()
        self.released = asyncio.Event()
        #: Messages that were refused.
        self.refused = 0
        self.polls: list[dict[str, Any]] = []
        self._updates: dict[int, dict[str, Any]] = {}
        self._next_update = 1000
        self._troubles: dict[str, deque[int | str]] = defaultdict(deque)
        self._news = asyncio.Condition()

    # --- for tests ---------------------------------------------------------------------------------------------------

    async def write(self, text: str | None, *, chat: int = 5, sender: int = 77) -> int:
        """Somebody writes to the bot (or sends a picture); the number of the update."""
        message: dict[str, Any] = {"message_id": 1, "date": 0, "chat": {"id": chat, "type": "private"}}
        message["from"] = {"id": sender, "is_bot": False, "first_name": "Eve"}
        message |= {"photo": []} if text is None else {"text": text}
        return await self.update({"message": message})

    async def update(self, content: dict[str, Any], *, number: int | None = None) -> int:
        async with self._news:
            number = self._next_update if number is None else number
            self._updates[number] = {"update_id": number, **content}
            self._next_update = number + 1
            self._news.notify_all()
        return number

    def script(self, method: str, *kinds: int | str) -> None:
        """The next calls of `method` meet these, one each: a status, "reply_lost", "gateway_timeout" (both after it was
        carried out), "held" (429 once `released` is set), or "fine"."""
        self._troubles[method].extend(kinds)

    async def until(self, happened: Callable[[], bool]) -> None:
        async with asyncio.timeout(PATIENCE_S), self._news:
            await self._news.wait_for(happened)

    async def until_sent(self, count: int) -> list[tuple[int, str]]:
        await self.until(lambda: len(self.sent) >= count)
        return self.sent

    @property
    def unconfirmed(self) -> list[int]:
        return sorted(self._updates)

    # --- the server --------------------------------------------------------------------------------------------------

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body", False):
                break
        _, bot, method = scope["path"].split("/")
        answering = asyncio.create_task(self._answer(bot, method, json.loads(body)))
        leaving = asyncio.create_task(_left(receive))
        await asyncio.wait({answering, leaving}, return_when=asyncio.FIRST_COMPLETED)
        leaving.cancel()
        if not answering.done():
            answering.cancel()
            return
        status, result = answering.result()
        async with self._news:
            self._news.notify_all()
        if status == 0:
            # A promise of a body that never comes makes uvicorn cut the connection.
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"9")]})
            await send({"type": "http.response.body", "body": b"", "more_body": True})
            return
        # What a message says in half characters comes as bytes that are no UTF-8.
        content = json.dumps(result, ensure_ascii=False).encode(errors="surrogateescape")
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": content})

    async def _answer(self, bot: str, method: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        troubles = self._troubles[method]
        trouble = troubles.popleft() if troubles else "fine"
        if trouble == "held":
            self.held.set()
            await self.released.wait()
            trouble = 429
        if isinstance(trouble, int):
            self.refused += method == "sendMessage"
            said = {"ok": False, "error_code": trouble, "description": f"Scripted, of {bot}"}
            return trouble, {**said, "parameters": {"retry_after": 1}} if trouble == 429 else said
        if bot != f"bot{self.token}":
            return 401, {"ok": False, "error_code": 401, "description": "Unauthorized"}
        match method:
            case "getUpdates":
                result: Any = await self._poll(body)
            case "sendMessage":
                assert len(body["text"]) <= 4096
                self.sent.append((body["chat_id"], body["text"]))
                result = {"message_id": len(self.sent), "date": 0, "chat": {"id": body["chat_id"]}}
            case _:
                return 404, {"ok": False, "error_code": 404, "description": "Not Found"}
        return {"reply_lost": 0, "gateway_timeout": 504}.get(trouble, 200), {"ok": True, "result": result}

    async def _poll(self, body: dict[str, Any]) -> list[dict[str, Any]]:
        self.polls.append(body)
        offset = body.get("offset", 0)
        async with self._news:
            self._news.notify_all()
            for number in [number for number in self._updates if number < offset]:
                del self._updates[number]
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(body["timeout"]):
                    await self._news.wait_for(lambda: bool(self._updates))
            return [self._updates[number] for number in sorted(self._updates)][: body["limit"]]


async def _left(receive: Any) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


@asynccontextmanager
async def running_telegram() -> AsyncGenerator[FakeTelegram]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        telegram = FakeTelegram(f"http://127.0.0.1:{listener.getsockname()[1]}")
        async with running_server(uvicorn_config(telegram, timeout_graceful_shutdown=1), listener):
            yield telegram
