"""Measured comparisons: `make bench`, or `python -m bench append reads running --json FILE`."""
