"""The HTTP API: commands append events, queries read tables. It calls no provider and sends no job."""
