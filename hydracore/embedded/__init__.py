"""What one machine needs to run everything by itself: PostgreSQL, Valkey, and a supervisor of processes."""
