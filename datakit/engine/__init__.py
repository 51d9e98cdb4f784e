"""What a step is, and who runs it."""
