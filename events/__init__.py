"""The write side: what can happen to an instance, what may happen next, and the log that keeps it."""
