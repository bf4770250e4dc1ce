"""The chat's engine under its name of version 0.1, which ends with version 0.3."""

from sf_llava.demo.engine import Engine, Sampling

__all__ = ["Engine", "Sampling"]
