"""lmms-eval meets us here: a model name for it, and task files that need no network."""
