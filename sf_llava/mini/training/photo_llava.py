"""A LLaVA around a language model that someone else trained, taught to see photographs (``train_mini.py``).

A small CLIP of photographs, a linear projector, and a Llama such as SmolLM2-135M-Instruct. First the projector learns
to have pictures described, then projector and LLM learn questions with choices and descriptions together.
The projector does not begin at random: it is the linear map that takes a picture's mean patch nearest to the mean word
of its caption.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from tokenizers import AddedToken
from torch import Tensor
from tqdm import tqdm
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    CLIPImageProcessorPil,
    CLIPModel,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from sf_llava.files import write_bytes, write_directory, write_json
from sf_llava.llava.reading import reading_of
from sf_llava.mini.questions.pictures import DESCRIBE
from sf_llava.mini.training.llava_model import save_llava
from sf_llava.scienceqa.problems import Problem, ScienceQA, ask, explain, kind_of
from sf_llava.tuning.conversations import Conversation
from sf_llava.tuning.encoding import Encoder
from sf_llava.tuning.recipe import Recipe
from sf_llava.tuning.training import tune

TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' }}"
    "{% for part in message.content %}{{ '<image>\n' if part.type == 'image' else part.text }}{% endfor %}"
    "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""ChatML, as SmolLM2 and others were trained with."""
FIRST = Recipe(train="projector", steps=60, batch_size=16, lr=1e-3)
SECOND = Recipe(train="projector+llm", steps=600, batch_size=16, micro_batch_size=8, lr=2e-4)
TOGETHER = 3  # questions of one picture in a conversation, where no answer tells another
FITTED = 2000  # captions that the projector begins with
RIDGE = 0.01  # of the mean variance


@dataclass(frozen=True)
class PhotoLlava:
    """What is trained.

    Attributes:
        clip: directory of a CLIPModel.
        llm: directory or hub name of a causal language model; of a directory with one GGUF file, that.
        output: run directory.
        first, second: both parts of the training.
        on_cpu: leave a GPU alone.
    """

    clip: Path
    llm: str
    output: Path
    first: Recipe = FIRST
    second: Recipe = SECOND
    on_cpu: bool = False


def load_llm(path: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a language model in float32 (a GGUF file's weights as ordinary ones) and its tokenizer.

    Raises:
        ValueError: a directory with several GGUF files, or a transformers too old to train such weights.
    """
    files = sorted(Path(path).glob("*.gguf"))
    if len(files) > 1:
        raise ValueError(f"{path} holds {len(files)} GGUF files: expected a directory with one")
    options: dict[str, Any] = {"gguf_file": files[0].name} if files else {}
    tokenizer = AutoTokenizer.from_pretrained(path, **options)
    if files:
        try:
            from transformers import GgufConfig
        except ImportError as error:
            raise ValueError("weights from GGUF can be trained with transformers 5.23 and later only") from error
        options["quantization_config"] = GgufConfig(dequantize=True)
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, **options), tokenizer


def build_llava(
    llm: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tower: PreTrainedModel, image_processor: Any
) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """Put a CLIP's vision tower and a random linear projector before a language model, all in float32.

    Args:
        llm: a causal language model.
        tokenizer: of it; receives the token ``<image>``.
        tower: a CLIP's vision model.
        image_processor: of the CLIP.
    """
    tokenizer.add_tokens([AddedToken("<image>", special=True, normalized=False)], special_tokens=True)
    image_id = tokenizer.convert_tokens_to_ids("<image>")
    llm.resize_token_embeddings(max(image_id + 1, llm.config.vocab_size), mean_resizing=False)
    text_config = type(llm.config)(**llm.config.to_dict() | {"quantization_config": None})
    patches = (tower.config.image_size // tower.config.patch_size) ** 2
    config = LlavaConfig(
        vision_config=tower.config,
        text_config=text_config,
        projector_hidden_act="linear",
        image_token_index=image_id,
        image_seq_length=patches,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        tie_word_embeddings=text_config.tie_word_embeddings,
    )
    model = LlavaForConditionalGeneration(config)
    model.model.language_model.load_state_dict(llm.model.state_dict())
    model.lm_head.load_state_dict(llm.lm_head.state_dict())
    model.model.vision_tower.load_state_dict(tower.state_dict())
    width = text_config.hidden_size
    with torch.no_grad():
        model.model.multi_modal_projector.linear_2.weight.copy_(torch.eye(width))
        model.model.multi_modal_projector.linear_2.bias.zero_()
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.generation_config.suppress_tokens = [image_id]
    processor = LlavaProcessor(
        image_processor,
        tokenizer,
        patch_size=tower.config.patch_size,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    )
    return model, processor


@torch.no_grad()
def fit_projector(model: LlavaForConditionalGeneration, features: Tensor, words: Tensor) -> None:
    """Start the projector with the ridge regression of a caption's mean word on its picture's mean patch.

    What it gives is as large as words are: mean patches differ less than patches do.

    Args:
        model: the LLaVA.
        features: (N, M, D) of the tower's patches.
        words: (N, W) mean embeddings.
    """
    patches, targets = features.double().mean(dim=1), words.double()
    middle, offset = patches.mean(dim=0), targets.mean(dim=0)
    x, y = patches - middle, targets - offset
    gram = x.T @ x
    solved = torch.linalg.solve(gram + RIDGE * gram.diagonal().mean() * torch.eye(len(gram)).double(), x.T @ y)
    spread = ((features[:100].double() - middle) @ solved).std()
    solved *= model.get_input_embeddings().weight.std().double() / spread
    layer = model.model.multi_modal_projector.linear_1
    layer.weight.copy_(solved.T)
    layer.bias.copy_(offset - middle @ solved)


@torch.no_grad()
def look_and_read(
    model: LlavaForConditionalGeneration, processor: LlavaProcessor, problems: Sequence[Problem], data: ScienceQA
) -> tuple[Tensor, Tensor]:
    """Give what :func:`fit_projector` takes, of the pictures of problems and of their solutions."""
    features, words, reading = [], [], reading_of(model)
    for problem in tqdm(problems, desc="the projector begins", unit="picture", mininterval=2):
        pixels = processor.image_processor(data.load_image(problem), return_tensors="pt")["pixel_values"]
        states = model.model.vision_tower(pixels, output_hidden_states=True).hidden_states
        features.append(reading.select(states[reading.layer]).tokens[0])
        ids = processor.tokenizer(problem.solution, add_special_tokens=False, return_tensors="pt").input_ids
        words.append(model.get_input_embeddings()(ids)[0].mean(dim=0))
    return torch.stack(features), torch.stack(words)


def describing(data: ScienceQA) -> list[Problem]:
    """Those whose solution says what the whole picture shows."""
    return [problem for problem in data.problems if kind_of(problem.id) == "caption"]


def converse(data: ScienceQA, described_alone: bool) -> list[Conversation]:
    """Make conversations in which no answer can be read off an earlier one: what is asked is asked of the picture.

    Args:
        data: as ``photo_questions`` writes it; the questions of a picture follow each other.
        described_alone: every caption by itself and nothing else; else one description of each picture that has any,
            and every question: about captions by itself, others by threes.
    """
    pictures: dict[str, list[Problem]] = {}
    for problem in data.problems:
        pictures.setdefault(problem.id.rsplit("-", 2)[0], []).append(problem)
    captions = {problem.id for problem in describing(data)}
    found = []
    for id, problems in pictures.items():
        known = [problem for problem in problems if problem.id in captions]
        parts = [[(DESCRIBE, problem.solution)] for problem in known[: len(known) if described_alone else 1]]
        if not described_alone:
            turns, at_once = [(ask(problem), explain(problem)) for problem in problems], 1 if known else TOGETHER
            parts += [turns[first : first + at_once] for first in range(0, len(turns), at_once)]
        found += [_conversation(f"{id}-{place}", turns, problems[0], data) for place, turns in enumerate(parts)]
    return found


def _conversation(id: str, turns: list[tuple[str, str]], problem: Problem, data: ScienceQA) -> Conversation:
    return Conversation(id, tuple(text for turn in turns for text in turn), lambda: data.load_image(problem))


def train_photo_llava(settings: PhotoLlava, data: ScienceQA) -> dict[str, Any]:
    """Train, or go on; write ``OUTPUT/llava``, an ordinary directory, and results.json.

    Args:
        settings: all of it.
        data: training questions.

    Returns:
        Of both parts: ``steps``, ``seconds`` of this process, ``trained`` weights.

    Raises:
        ModuleNotFoundError: peft is not installed.
        ValueError: no question asks for a caption.
    """
    described = describing(data)
    if not described:
        raise ValueError(f"no question of {data.name} asks for a caption, which the projector begins with")
    torch.manual_seed(settings.first.seed)
    llm, tokenizer = load_llm(settings.llm)
    tower = CLIPModel.from_pretrained(settings.clip, dtype=torch.float32).vision_model
    model, processor = build_llava(llm, tokenizer, tower, CLIPImageProcessorPil.from_pretrained(settings.clip))
    projector, file = model.model.multi_modal_projector, settings.output / "projector.safetensors"
    told: dict[str, dict[str, Any]] = {}
    settings.output.mkdir(parents=True, exist_ok=True)
    if file.exists():
        projector.load_state_dict(load_file(file))
    else:
        begin = [*{problem.id.rsplit("-", 2)[0]: problem for problem in described}.values()][:FITTED]
        fit_projector(model, *look_and_read(model, processor, begin, data))
        parts = converse(data, described_alone=True)
        model, told["first"] = _tune(
            model, processor, parts, settings.first, settings.output / "first", settings.on_cpu
        )
        write_bytes(file, save(model.model.multi_modal_projector.state_dict()))
    parts = converse(data, described_alone=False)
    model, told["second"] = _tune(model, processor, parts, settings.second, settings.output / "second", settings.on_cpu)
    write_directory(settings.output / "llava", lambda path: save_llava(model.cpu(), processor, path))
    write_json(settings.output / "results.json", told)
    return told


def _tune(
    model: Any, processor: Any, parts: list[Conversation], recipe: Recipe, folder: Path, on_cpu: bool
) -> tuple[Any, dict[str, Any]]:
    if on_cpu:  # where PyTorch's fused attention is slow backwards: 2.0 s of a step in place of 1.4 (bf16, AMX)
        model.set_attn_implementation({"text_config": "eager", "vision_config": "sdpa"})
    model, told = tune(model, Encoder(processor), parts, recipe, folder, on_cpu)
    return model, {name: told[name] for name in ("steps", "seconds", "trained")}
