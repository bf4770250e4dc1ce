"""The objective through a little of a LLaVA: its projector and the first layers of its LLM, without a question.

    objective = load_layers({"layers": 1.0}, "path/to/llava", teacher, layer=-2, attention="sdpa")
    student = Seen.by_student(encoder(pixel_values, output_hidden_states=(-2, -1)), layer=-2)
    terms = objective(student, Seen(*teacher.embeds_and_tokens(pixel_values, -2)), indices, generator)

Words drawn at random are put behind a picture. What they have read of it after a few layers must be the same behind the
student's tokens as behind CLIP's. It needs no question and no answer, only the training images, and of the LLM only the
layers that are run: the others are dropped once it is loaded.

Letters: B pictures, Q words, W width of the LLM.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from sf_llava.bootstrap.inputs import digest_module
from sf_llava.bootstrap.objectives.llm import open_llava, read_rows
from sf_llava.bootstrap.objectives.objective import Objective, Seen
from sf_llava.llava.reading import Reading, project, reading_of
from sf_llava.teachers.base import Teacher

NUM_LAYERS = 2
NUM_WORDS = 32


class LayersObjective(Objective):
    """Compares what words read of two sets of image tokens in the first layers of a LLaVA's frozen LLM.

    With h_bq the last hidden state at word q behind picture b, A of the student's tokens, B of the teacher's:

        sum_bq |h_bq(A) - h_bq(B)|^2  /  sum_bq |h_bq(B) - mean_b h_bq(B)|^2

    the share of what the words tell of a picture that is wrong: 1 for tokens that say the same of all pictures. It is
    the mean of the tokens read as they come, and read by RoI centre with the attention bias.

    Args:
        weights: of ``layers``.
        model: the LLaVA; its LLM is cut to the first two layers, its own vision tower is not used.
        processor: its processor.
    """

    needs_tokens: ClassVar[bool] = True

    def __init__(
        self, weights: Mapping[str, float], model: LlavaForConditionalGeneration, processor: LlavaProcessor
    ) -> None:
        self.weights = weights
        self.model = model.requires_grad_(False).eval()
        llm = model.model.language_model
        llm.layers = llm.layers[:NUM_LAYERS]
        llm.config.num_hidden_layers = len(llm.layers)
        tokenizer = processor.tokenizer
        no_words = {processor.image_token_id, *tokenizer.all_special_ids}
        self.words = torch.tensor([token for token in range(len(tokenizer)) if token not in no_words])
        self.first = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
        self.reading = reading_of(model)

    def __call__(self, student: Seen, teacher: Seen, indices: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Compute the term; see :class:`Objective`. The generator draws the words, the same for all pictures.

        Raises:
            ValueError: a single picture, which differs from no other.
        """
        if len(teacher.tokens) < 2:
            raise ValueError("`align` layers compares pictures: raise `micro_batch_size` to 2 or more")
        words = self.words[torch.randint(len(self.words), (NUM_WORDS,), generator=generator)]
        with torch.no_grad():
            target = self.read(teacher.tokens, words, self.reading)
            told = (target - target.mean(dim=0)).square().sum()
        placed = replace(self.reading, num_patches=teacher.places.shape[1])
        wrong = [
            (self.read(student.tokens, words, reading, student.rois) - target).square().sum()
            for reading in (self.reading, placed)
        ]
        return {"layers": (wrong[0] + wrong[1]) / (2 * told)}

    def read(self, states: Tensor, words: Tensor, reading: Reading, rois: Tensor | None = None) -> Tensor:
        """Give what the words have read of each picture, (B, Q, W) float32.

        Args:
            states: (B, C + T, D) hidden state of a tower, CLS first where there is one.
            words: (Q,) token ids.
            reading: how the LLM reads them.
            rois: (B, T, 4), to read by RoI centre.
        """
        tokens, places = reading.select(states, rois)
        embed = self.model.get_input_embeddings()
        pictures = project(self.model, tokens.to(embed.weight.dtype))
        before = embed(torch.tensor(self.first, dtype=torch.long, device=pictures.device))
        behind = embed(words.to(pictures.device))
        rows = [torch.cat([before, picture, behind]) for picture in pictures]
        read = read_rows(self.model, rows, [len(before)] * len(rows), places, reading)
        return read[:, -len(words) :].float()

    def digests(self) -> dict[str, str]:
        """Digest what is left of the LLaVA."""
        return digest_module("projector and first layers of the LLaVA", self.model)


def load_layers(
    weights: Mapping[str, float], llava: str, teacher: Teacher, layer: int, attention: str
) -> LayersObjective:
    """Load projector and first layers of a LLaVA on ``teacher``, in the teacher's dtype and on its device.

    Args:
        weights: of ``layers``.
        llava: directory in transformers' or the llava package's format, hub name, or ``mini``.
        teacher: must be the LLaVA's own vision tower.
        layer: hidden state that the LLaVA must read.
        attention: kernel of the LLM's attention.

    Raises:
        ValueError: no such LLaVA, another layer, another tower.
    """
    return LayersObjective(weights, *open_llava(llava, teacher, layer, attention))
