"""The log as a product: what happened and who did it, at any moment, with the proof that nobody changed it since."""
