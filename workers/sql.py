"""The workers' statements."""

from __future__ import annotations

from events.sql import Statements

OPERATIONS = Statements("workers", "operations.sql")
