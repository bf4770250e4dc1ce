"""The chat's conversations under their name of version 0.1, which ends with version 0.3."""

from sf_llava.demo.conversation import CLIP, SPARSEFORMER, Answer, Turn, as_messages

__all__ = ["CLIP", "SPARSEFORMER", "Answer", "Turn", "as_messages"]
