"""The built-in runtime: chats with any OpenAI-compatible model, remembers, meters, and talks on Telegram.

See docs/runtime.md.
"""
