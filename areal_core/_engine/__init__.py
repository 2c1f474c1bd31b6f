"""The inside of the engine."""
