"""The objective through a LLaVA: its frozen LLM must say the same next token behind the student's tokens as behind
CLIP's. ``llm`` reads the student's as they come, ``placed`` by RoI centre with the attention bias.

    objective = load_llm({"llm": 4.0}, "path/to/llava", "path/to/ScienceQA", teacher, -2, "sdpa", preprocessing)
    pixels = objective.pictures.pixel_values(indices.tolist())
    student = Seen.by_student(encoder(pixels, output_hidden_states=(-2, -1)), layer=-2)
    terms = objective(student, Seen(*teacher.embeds_and_tokens(pixels, -2)), indices, generator)

Questions come from the train split of data in ScienceQA's form, each with its own picture, worded as the evaluation
words them. The answer that is forced on the LLM is the data's own text (lecture, solution, "The answer is X."). It is
the only use of labels: the target of every position is the LLM's own distribution behind the teacher's tokens, not the
text. LLM and projector stay frozen; the gradient flows through them into the student.

Letters: K questions, T tokens of a picture, D width of the towers, W width of the LLM, L length, A answer tokens in
all, V vocabulary.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from sf_llava.bootstrap.inputs import digest_module
from sf_llava.bootstrap.objectives.objective import Objective, Seen
from sf_llava.data.bootstrap_images import BootstrapImages
from sf_llava.data.transforms import BootstrapTransform, Preprocessing
from sf_llava.llava.hooks import weigh_latents
from sf_llava.llava.loading import load_llava
from sf_llava.llava.reading import Reading, project, reading_of
from sf_llava.measure.store import digest_texts
from sf_llava.scienceqa.data import ScienceQA, explain, open_scienceqa
from sf_llava.scienceqa.run import Answerer, Generation
from sf_llava.teachers.base import Teacher

ROWS_AT_ONCE = 16  # of like length: little padding, and attention scores that stay in a CPU's cache
LARGEST_DIFFERENCE = 0.1  # of the tokens of the LLaVA's own tower to the teacher's, relative; bf16 stays far below


@dataclass(frozen=True)
class Questions:
    """The questions with a picture of some data; an ``ImageSource`` of their pictures."""

    data: ScienceQA

    def __len__(self) -> int:
        return len(self.data.problems)

    def load(self, index: int) -> Image.Image:
        return self.data.load_image(self.data.problems[index])

    def describe(self, index: int) -> str:
        return f"question {self.data.problems[index].id} of {self.data.name}"


class Conversation(NamedTuple):
    """Token ids of one question: before its picture, behind it, and the answer with its end."""

    before: list[int]
    behind: list[int]
    answer: list[int]


class LlmObjective(Objective):
    """Compares next-token distributions of a LLaVA's frozen LLM behind two sets of image tokens.

    Args:
        weights: of ``llm``, ``placed`` or both.
        model: the LLaVA; its own vision tower is not used.
        processor: its processor.
        questions: what is asked.
        preprocessing: of the questions' pictures.

    Attributes:
        pictures: those of the questions, each under its question's index.
    """

    needs_tokens = True

    def __init__(
        self,
        weights: Mapping[str, float],
        model: LlavaForConditionalGeneration,
        processor: LlavaProcessor,
        questions: Questions,
        preprocessing: Preprocessing,
    ) -> None:
        self.weights = weights
        self.model = model.requires_grad_(False).eval()
        self.questions = questions
        self.pictures = BootstrapImages(questions, BootstrapTransform(preprocessing, flip=0.0, scale=None), seed=0)
        self.answerer = Answerer(model, processor, Generation())
        self.reading = reading_of(model)

    def __call__(self, student: Seen, teacher: Seen, indices: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Compute the mean over answer positions of KL(behind the teacher's tokens || behind the student's).

        See :class:`Objective`; ``indices`` are those of the questions.
        """
        conversations = [self.encode(index) for index in indices.tolist()]
        with torch.no_grad():
            target = self.next_tokens(teacher.tokens, conversations, self.reading)
        losses = {}
        for name in self.weights:
            placed = name == "placed"
            reading = replace(self.reading, num_patches=teacher.places.shape[1]) if placed else self.reading
            said = self.next_tokens(student.tokens, conversations, reading, student.rois)
            losses[name] = F.kl_div(said, target, reduction="batchmean", log_target=True)
        return losses

    def digests(self) -> dict[str, str]:
        """Digest LLaVA and questions."""
        problems = (f"{problem}" for problem in self.questions.data.problems)
        return digest_module("weights of the LLaVA", self.model) | {"questions": digest_texts(*problems)}

    def encode(self, index: int) -> Conversation:
        """Tokenise question ``index`` as the evaluation does, and its answer."""
        processor, problem = self.answerer.processor, self.questions.data.problems[index]
        ids = processor.tokenizer(self.answerer.prompt(problem, has_image=True)).input_ids
        place = ids.index(processor.image_token_id)
        answer = processor.tokenizer(explain(problem), add_special_tokens=False).input_ids
        return Conversation(ids[:place], ids[place + 1 :], [*answer, processor.tokenizer.eos_token_id])

    def next_tokens(
        self, states: Tensor, conversations: Sequence[Conversation], reading: Reading, rois: Tensor | None = None
    ) -> Tensor:
        """Give the LLM's log-probabilities (A, V), float32, of every answer token.

        Args:
            states: (K, C + T, D) hidden state of a tower, CLS first where there is one.
            conversations: K of them.
            reading: how the LLM reads them.
            rois: (K, T, 4), to read by RoI centre.
        """
        tokens, places = reading.select(states, rois)
        words = self.model.get_input_embeddings()
        pictures = project(self.model, tokens.to(words.weight.dtype))  # [K, T, W]
        order = sorted(range(len(conversations)), key=lambda k: sum(map(len, conversations[k])))
        answers: dict[int, Tensor] = {}
        for begin in range(0, len(order), ROWS_AT_ONCE):
            chosen = order[begin : begin + ROWS_AT_ONCE]
            rows = []
            for k in chosen:
                before = torch.tensor(conversations[k].before, device=pictures.device)
                behind = torch.tensor([*conversations[k].behind, *conversations[k].answer[:-1]], device=pictures.device)
                rows.append(torch.cat([words(before), pictures[k], words(behind)]))
            starts = [len(conversations[k].before) for k in chosen]
            read = read_rows(self.model, rows, starts, None if places is None else places[chosen], reading)
            for k, row, hidden in zip(chosen, rows, read, strict=True):
                answers[k] = hidden[len(row) - len(conversations[k].answer) : len(row)]
        return (
            self.model.lm_head(torch.cat([answers[k] for k in range(len(conversations))])).float().log_softmax(dim=-1)
        )


def read_rows(
    model: LlavaForConditionalGeneration,
    rows: Sequence[Tensor],
    starts: Sequence[int],
    places: Tensor | None,
    reading: Reading,
) -> Tensor:
    """Let a LLaVA's LLM read rows of embeddings, each with one picture.

    Args:
        model: the LLaVA.
        rows: k of (L_k, W).
        starts: where the picture of each begins.
        places: (k, T) of :meth:`Reading.select`; None: tokens are read as they come.
        reading: how the LLM reads them.

    Returns:
        (k, L, W) last hidden states, padded on the right.
    """
    llm = model.model.language_model
    # Padded on the right, behind all that is read: causal attention needs no mask then.
    embeds = pad_sequence(list(rows), batch_first=True)
    if places is None:
        return llm(inputs_embeds=embeds, use_cache=False).last_hidden_state
    count = places.shape[1]
    token = torch.arange(embeds.shape[1]) - torch.tensor(starts)[:, None]  # [k, L], from the picture's first
    image = ((token >= 0) & (token < count)).to(embeds.device)
    positions = reading.count_positions(image, torch.ones_like(image), places)
    latents = image & (token >= reading.with_cls).to(embeds.device)
    with weigh_latents(model, latents, reading.bias(count - reading.with_cls)):
        return llm(inputs_embeds=embeds, position_ids=positions, use_cache=False).last_hidden_state


def load_llm(
    weights: Mapping[str, float],
    llava: str,
    questions: str,
    teacher: Teacher,
    layer: int,
    attention: str,
    preprocessing: Preprocessing,
) -> LlmObjective:
    """Load a LLaVA on ``teacher`` and the questions of a train split, in the teacher's dtype and on its device.

    Args:
        weights: of ``llm``, ``placed`` or both.
        llava: directory in transformers' or the llava package's format, hub name, or ``mini``.
        questions: data in ScienceQA's form.
        teacher: must be the LLaVA's own vision tower.
        layer: hidden state that the LLaVA must read.
        attention: kernel of the LLM's attention.
        preprocessing: of the questions' pictures.

    Raises:
        ValueError: no such LLaVA or data, another layer, another tower, no question with a picture.
    """
    data = open_scienceqa(questions, "train")
    data = replace(data, problems=[problem for problem in data.problems if problem.has_image])
    if not data.problems:
        raise ValueError(f"`questions` {questions} has no question with a picture in its train split")
    model, processor = open_llava(llava, teacher, layer, attention)
    return LlmObjective(weights, model, processor, Questions(data), preprocessing)


def open_llava(
    llava: str, teacher: Teacher, layer: int, attention: str
) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """Load a LLaVA that reads ``teacher``, whose place the teacher takes; arguments and errors of :func:`load_llm`."""
    model, processor = load_llava(llava, dtype=teacher.dtype, device_map={"": teacher.device})
    if model.config.vision_feature_layer != layer:
        raise ValueError(f"`llava` {llava} reads layer {model.config.vision_feature_layer}, `align_layer` is {layer}")
    model.model.language_model.set_attn_implementation(attention)
    check_tower(model, teacher, layer, llava)
    model.model.vision_tower = None
    return model, processor


@torch.no_grad()
def check_tower(model: LlavaForConditionalGeneration, teacher: Teacher, layer: int, llava: str) -> None:
    """Check that the LLaVA's own tower gives the teacher's tokens, by one image of noise."""
    side = model.config.vision_config.image_size
    difference = float("inf")
    if side == teacher.image_size:
        noise = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(0)).to(teacher.device)
        tokens = teacher.tokens(noise, layer).float()
        own = model.model.vision_tower(noise.to(teacher.dtype), output_hidden_states=True).hidden_states[layer].float()
        if own.shape == tokens.shape:
            difference = ((own - tokens).norm() / tokens.norm()).item()
    if not difference < LARGEST_DIFFERENCE:
        raise ValueError(
            f"the vision tower of `llava` {llava} is not the teacher {teacher.name} (its tokens differ): "
            "name the CLIP that this LLaVA was trained with"
        )
