"""The loss of a tuning, which looks at answers alone: no word is predicted in front of the first of them.

A LLaVA's prompts are pictures for the most part, and its LLM's head is wide: what it would say behind every token of a
picture takes more memory and time than a block of the LLM, and none of it is read.

Letters: B conversations, L tokens, K of them that are predicted, S that are to be said, V words.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORED = -100
"""The label of a token that is not to be said."""


def answers_alone(collate: Callable[[Sequence[Any]], dict[str, Tensor]]) -> Callable[[Sequence[Any]], dict[str, Any]]:
    """Let batches say, by ``logits_to_keep``, how many of the last tokens predict something of any answer.

    Args:
        collate: joins rows into a batch with ``labels`` (B, L), padded on the right.
    """

    def join(rows: Sequence[Any]) -> dict[str, Any]:
        batch = collate(rows)
        said = (batch["labels"][:, 1:] != IGNORED).any(dim=0)  # by the token before each
        before = int(said.int().argmax()) if said.any() else len(said)
        return batch | {"logits_to_keep": batch["labels"].shape[1] - before}

    return join


def loss_of_answers(outputs: Any, labels: Tensor, num_items_in_batch: Tensor | int | None = None) -> Tensor:
    """Compute the mean cross-entropy of what is to be said, as a causal LLM of transformers does, in float32.

    Args:
        outputs: of the model, with ``logits`` (B, K, V) of the last K tokens.
        labels: (B, L), ``IGNORED`` where nothing is to be said; a token predicts the next one's.
        num_items_in_batch: divides the sum, where the batch comes in parts; None: by those here.
    """
    logits, targets = pick_said(outputs.logits, labels)
    total = F.cross_entropy(logits, targets, reduction="sum")
    count = len(targets) if num_items_in_batch is None else num_items_in_batch
    return total / torch.as_tensor(count).to(total.device)


def pick_said(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Pick what predicts something that is to be said: its logits (S, V) in float32, and the words (S,).

    Args:
        logits: (B, K, V) of the last K tokens.
        labels: (B, L), ``IGNORED`` where nothing is to be said; a token predicts the next one's.
    """
    targets = F.pad(labels, (0, 1), value=IGNORED)[:, 1:][:, -logits.shape[1] :].to(logits.device)
    said = targets != IGNORED
    return logits[said].float(), targets[said]
