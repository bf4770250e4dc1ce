"""The chat's uploads under their name of version 0.1, which ends with version 0.3."""

from sf_llava.demo.uploads import accept

__all__ = ["accept"]
