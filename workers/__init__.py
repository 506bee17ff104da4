"""The side effects: code that follows the log and drives providers and servers. Rebuilds of projections never run it."""
