"""The numbers of a tuning, which need no library to be named."""

from dataclasses import dataclass

TRAINED = ("projector", "lora", "projector+lora", "projector+llm")


@dataclass(frozen=True)
class Recipe:
    """Numbers of a tuning.

    Attributes:
        train: ``projector`` (all its weights), ``lora`` (on the LLM's linear layers) or both; ``projector+llm``: all
            weights of the LLM too but its words (embedding and head), for small ones.
        steps: optimiser steps; 0 for one pass over the data.
        batch_size: conversations a step, of all processes together.
        micro_batch_size: conversations at once in a process; None: as many as its share.
        lr: highest learning rate; cosine, after 3 % of warm-up.
        rank: of LoRA; alpha is twice that.
        gradient_checkpointing: compute activations twice and keep few.
        save_steps: steps between checkpoints.
        seed: of order and adapters.
        workers: processes that decode.
        bf16: autocast, adapters and projector in float32.
    """

    train: str = "projector+lora"
    steps: int = 0
    batch_size: int = 32
    micro_batch_size: int | None = None
    lr: float = 2e-4
    rank: int = 64
    gradient_checkpointing: bool = False
    save_steps: int = 100
    seed: int = 0
    workers: int = 0
    bf16: bool = False

    def __post_init__(self) -> None:
        if self.train not in TRAINED:
            raise ValueError(f"unknown `train` {self.train!r}: expected {', '.join(TRAINED)}")

    def accumulate(self, num_processes: int) -> tuple[int, int]:
        """Say how many conversations a process takes at once, and how often it does so in a step.

        Raises:
            ValueError: the batch cannot be shared so.
        """
        share, rest = divmod(self.batch_size, num_processes)
        at_once = self.micro_batch_size or share
        if rest or not share or share % at_once:
            raise ValueError(
                f"`batch_size` {self.batch_size} is no multiple of {num_processes} process(es) times "
                f"`micro_batch_size` {at_once}"
            )
        return at_once, share // at_once
