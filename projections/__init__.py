"""The read side: tables folded from events, and the queries over them."""
