"""Measured comparisons: `make bench`, or `python -m bench append read create_to_running --json FILE`."""
