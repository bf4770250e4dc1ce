"""Builds the mini LLaVA: word tokenizer, tiny Llama, linear projector and the mini CLIP as its frozen vision tower.

What :func:`save_llava` writes is an ordinary directory for ``LlavaForConditionalGeneration`` and ``AutoProcessor``.
"""

from collections.abc import Iterable
from pathlib import Path

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from torch import Tensor
from transformers import (
    CLIPModel,
    GenerationConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from sf_llava.mini import MINI_CLIP_DIR

IMAGE_TOKENS = 64
_SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")
_WORD = r"\. The answer is|N/A|\([A-E]\)|\w[\w-]*:?|[^\w\s]"  # one token: ". The answer is", "(A)", "Options:"
_EMBEDDING_STD = 0.5


def build_tokenizer(texts: Iterable[str], system: str) -> PreTrainedTokenizerFast:
    """A tokenizer of whole words: those of ``texts``, and the conversation's system prompt as one token."""
    splitter = pre_tokenizers.Split(Regex(_WORD), behavior="removed", invert=True)
    letters = {token for letter in "ABCDE" for token in (letter, f"({letter})")}
    words = {word for text in texts for word, _ in splitter.pre_tokenize_str(text)} | letters
    vocabulary = {word: index for index, word in enumerate((*_SPECIAL, *sorted(words)))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = splitter
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=True)  # spaces between words, none before full stops
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        extra_special_tokens={"image_token": "<image>"},
        clean_up_tokenization_spaces=False,
    )
    fast.add_tokens([AddedToken(system, normalized=False)])
    return fast


def build_processor(tokenizer: PreTrainedTokenizerFast, template: str) -> LlavaProcessor:
    """The processor: the mini CLIP's pictures, and 64 image tokens for each."""
    return LlavaProcessor(
        CLIPImageProcessorPil.from_pretrained(MINI_CLIP_DIR),
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template,
    )


def build_llava(tokenizer: PreTrainedTokenizerFast, width: int = 192, layers: int = 4) -> LlavaForConditionalGeneration:
    """A LLaVA with the trained mini CLIP and a fresh LLM; all but LLM and projector's first layer is frozen.

    The projector is linear: transformers' two layers without activation, the second the identity (as converted
    original checkpoints have it).
    """
    tower = CLIPModel.from_pretrained(MINI_CLIP_DIR, dtype=torch.float32).vision_model
    text_config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=8 * width // 3,
        num_hidden_layers=layers,
        num_attention_heads=width // 32,
        max_position_embeddings=512,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        attn_implementation="eager",
    )
    image_token = tokenizer.convert_tokens_to_ids("<image>")
    config = LlavaConfig(
        vision_config=tower.config,
        text_config=text_config,
        projector_hidden_act="linear",
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        image_token_index=image_token,
        image_seq_length=IMAGE_TOKENS,
    )
    model = LlavaForConditionalGeneration._from_config(config, attn_implementation="eager")
    model.model.vision_tower = tower.requires_grad_(False)
    identity = model.model.multi_modal_projector.linear_2.requires_grad_(False)
    with torch.no_grad():
        identity.weight.copy_(torch.eye(width))
        identity.bias.zero_()
        model.get_input_embeddings().weight.normal_(std=_EMBEDDING_STD)
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        suppress_tokens=[image_token],
    )
    return model


def fit_projector(model: LlavaForConditionalGeneration, features: Tensor) -> None:
    """Start the projector so that pictures enter the LLM as large as words: a random rotation of whitened channels.

    Args:
        model: the LLaVA.
        features: (pictures, 64, 128) of the vision tower.
    """
    layer = model.model.multi_modal_projector.linear_1
    mean, std = features.float().mean(dim=(0, 1)), features.float().std(dim=(0, 1))
    with torch.no_grad():
        torch.nn.init.orthogonal_(layer.weight)
        layer.weight.mul_(_EMBEDDING_STD * (layer.out_features / layer.in_features) ** 0.5 / std)
        layer.bias.copy_(-layer.weight @ mean)


def save_llava(model: LlavaForConditionalGeneration, processor: LlavaProcessor, directory: Path) -> None:
    """Fill ``directory`` with half-precision weights and the processor."""
    half = type(model)._from_config(model.config, dtype=torch.float16)
    half.load_state_dict(model.state_dict())
    half.generation_config = model.generation_config
    half.save_pretrained(directory)
    processor.save_pretrained(directory)
