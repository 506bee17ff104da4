"""Server providers: the interface (`base`) and its drivers."""
