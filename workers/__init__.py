"""The side effects: code that follows the log and drives providers and servers. A rebuild never runs it."""
