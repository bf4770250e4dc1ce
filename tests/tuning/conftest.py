"""A small LLaVA and its processor."""

from llava_fixtures import llava, processor  # noqa: F401
