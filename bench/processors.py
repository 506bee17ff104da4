"""Measures processor time, which depends far less than elapsed time on how busy the machine is."""

from __future__ import annotations

from pathlib import Path

import psutil


def used_s(data: Path) -> float:
    """Seconds of processor time of this process, its ended children, and the PostgreSQL on `data` so far."""
    mine = psutil.Process().cpu_times()
    total = mine.user + mine.system + mine.children_user + mine.children_system
    for process in psutil.process_iter():
        try:
            if process.name() == "postgres" and process.cwd() == str(data):
                times = process.cpu_times()
                # The time of ended sessions counts for the main process, as that of its children.
                total += times.user + times.system + times.children_user + times.children_system
        except psutil.Error:
            continue
    return total
