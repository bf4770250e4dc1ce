"""Writes a tiny LLaVA directory in the llava package's format; works beside old and new transformers."""

import json
from pathlib import Path

import torch
from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM

TEXT = """The answer is A. The answer is B. What is shown in the image? A chat between a curious user and an
artificial intelligence assistant. The assistant gives helpful, detailed, and polite answers to the user's questions.
USER: ASSISTANT: Context: N/A Options: (A) red (B) blue (C) green Which of these colours is not in the picture, and
why? Solution: Lecture:"""
VISION = dict(
    hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=2, image_size=32, patch_size=8
)
WIDTH = 96


def write_tokenizer(directory: Path, extra: list[str]) -> int:
    """Train a Llama-like SentencePiece model; return the number of tokens with ``extra`` ones added."""
    import sentencepiece

    directory.mkdir(parents=True, exist_ok=True)
    (directory / "corpus.txt").write_text(TEXT)
    sentencepiece.SentencePieceTrainer.train(
        input=str(directory / "corpus.txt"),
        model_prefix=str(directory / "tokenizer"),
        vocab_size=360,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        split_digits=True,
        minloglevel=2,
    )
    (directory / "corpus.txt").unlink()
    (directory / "tokenizer.vocab").unlink()
    config = dict(
        tokenizer_class="LlamaTokenizer",
        add_bos_token=True,
        add_eos_token=False,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=2048,
    )
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    special = dict(bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    (directory / "special_tokens_map.json").write_text(json.dumps(special))
    if extra:
        (directory / "added_tokens.json").write_text(json.dumps({name: 360 + i for i, name in enumerate(extra)}))
    return 360 + len(extra)


def write_tower(directory: Path, seed: int = 1) -> CLIPVisionModel:
    """Write a tiny CLIP vision tower with its preprocessing."""
    torch.manual_seed(seed)
    tower = CLIPVisionModel(CLIPVisionConfig(**VISION))
    tower.save_pretrained(directory)
    side = VISION["image_size"]
    sizes = dict(size={"shortest_edge": side}, crop_size={"height": side, "width": side}, do_center_crop=True)
    flags = dict(do_resize=True, do_rescale=True, do_normalize=True, do_convert_rgb=True, resample=3)
    statistics = dict(image_mean=[0.48145466, 0.4578275, 0.40821073], image_std=[0.26862954, 0.26130258, 0.27577711])
    (directory / "preprocessor_config.json").write_text(
        json.dumps(dict(image_processor_type="CLIPImageProcessor", **sizes, **flags, **statistics))
    )
    return tower


def write_original(
    directory: Path,
    *,
    projector: str = "linear",
    layout: str = "safetensors",
    with_tower: bool = True,
    start_end: bool = False,
    tower_name: str | None = None,
    **config: object,
) -> Path:
    """Write the directory ``directory / "llava-tiny"`` and its tower ``directory / "tower"``; return the former.

    ``layout`` is safetensors, bin or sharded (.bin files with an index).
    """
    tower = write_tower(directory / "tower")
    path = directory / "llava-tiny"
    vocab_size = write_tokenizer(path, ["<im_start>", "<im_end>"] if start_end else [])
    llama = dict(
        vocab_size=vocab_size,
        hidden_size=WIDTH,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=512,
        rms_norm_eps=1e-5,
        hidden_act="silu",
        initializer_range=0.1,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        tie_word_embeddings=False,
    )
    torch.manual_seed(2)
    language_model = LlamaForCausalLM(LlamaConfig(**llama))
    state = dict(language_model.state_dict())
    state["lm_head.weight"][3:259] = 0  # single bytes would decode to broken UTF-8
    state["lm_head.weight"][360:] = 0  # start and end tokens belong to prompts
    state["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(24)  # old files hold buffers like this one
    names = {"linear": {"": VISION["hidden_size"]}, "mlp2x_gelu": {"0.": VISION["hidden_size"], "2.": WIDTH}}[projector]
    for name, width in names.items():
        state[f"model.mm_projector.{name}weight"] = torch.randn(WIDTH, width) / width**0.5
        state[f"model.mm_projector.{name}bias"] = torch.randn(WIDTH) / 10
    if with_tower:
        for name, tensor in tower.state_dict().items():
            state[f"model.vision_tower.vision_tower.vision_model.{name.removeprefix('vision_model.')}"] = tensor
    raw = llama | dict(
        architectures=["LlavaLlamaForCausalLM"],
        model_type="llava_llama",
        torch_dtype="float32",
        use_cache=True,
        mm_vision_tower=tower_name or str(directory / "tower"),
        mm_hidden_size=VISION["hidden_size"],
        mm_projector_type=projector,
        mm_vision_select_layer=-2,
        mm_vision_select_feature="patch",
        mm_use_im_start_end=start_end,
        mm_use_im_patch_token=False,
        use_mm_proj=True,
        **config,
    )
    (path / "config.json").write_text(json.dumps(raw))
    _save(path, {name: tensor.contiguous().clone() for name, tensor in state.items()}, layout)
    return path


def _save(path: Path, state: dict, layout: str) -> None:
    if layout == "safetensors":
        from safetensors.torch import save_file

        save_file(state, path / "model.safetensors", metadata={"format": "pt"})
    elif layout == "bin":
        torch.save(state, path / "pytorch_model.bin")
    else:
        names, weight_map = sorted(state), {}
        for shard, part in enumerate((names[::2], names[1::2]), 1):
            file = f"pytorch_model-{shard:05d}-of-00002.bin"
            torch.save({name: state[name] for name in part}, path / file)
            weight_map |= dict.fromkeys(part, file)
        index = dict(metadata={"total_size": 0}, weight_map=weight_map)
        (path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
