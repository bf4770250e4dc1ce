"""The chat: one LLM, two towers side by side, the RoIs on the picture."""
