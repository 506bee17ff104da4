"""Providers of servers: one door (`base`) and the drivers behind it."""
