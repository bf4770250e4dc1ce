"""The embedded default: a drawn world of shapes, and the small models trained on it."""
