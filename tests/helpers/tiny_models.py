"""Builders of small random models, and small timm architectures under names that ``timm:`` accepts."""

import torch
from timm.layers import SwiGLUPacked
from timm.models import VisionTransformer, register_model
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import nn
from transformers import PreTrainedTokenizerFast


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Draw every parameter anew: zero biases and unit norms would hide a mapping that mixes them up."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim >= 2:
                parameter.copy_(noise * parameter.shape[-1] ** -0.5)
            else:
                parameter.copy_(0.3 * noise + (1 if "norm" in name or "ln_" in name else 0))
    return model.eval()


def open_clip_config(quick_gelu: bool = False, **vision: object) -> dict:
    """A CLIP of 24 px images in patches of 8, two blocks with two heads."""
    return {
        "embed_dim": 20,
        "quick_gelu": quick_gelu,
        "vision_cfg": {"image_size": 24, "patch_size": 8, "width": 32, "head_width": 16, "layers": 2} | vision,
        "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 1, "layers": 1},
    }


def _tiny_vit(num_classes: int = 7, **options: object) -> VisionTransformer:
    # timm hands its own keywords to every entry point; they are none of the model's.
    options = {key: value for key, value in options.items() if not key.startswith(("pretrained", "cache_dir"))}
    model = VisionTransformer(24, 8, num_classes=num_classes, embed_dim=32, depth=2, num_heads=2, **options)
    normalisation = {"mean": (0.5,) * 3, "std": (0.5,) * 3}
    model.pretrained_cfg = {**normalisation, "interpolation": "bicubic", "crop_pct": 0.9, "crop_mode": "center"}
    return model


@register_model
def vit_sf_tiny(pretrained: bool = False, **options: object) -> VisionTransformer:
    return _tiny_vit(**options)


@register_model
def vit_sf_tiny_clip(pretrained: bool = False, **options: object) -> VisionTransformer:
    return _tiny_vit(pre_norm=True, act_layer="quick_gelu", norm_layer="layernorm", **options)


@register_model
def vit_sf_tiny_siglip(pretrained: bool = False, **options: object) -> VisionTransformer:
    options = {"class_token": False, "global_pool": "map", "act_layer": "gelu_tanh"} | options
    return _tiny_vit(**options)


@register_model
def vit_sf_tiny_dinov2(pretrained: bool = False, **options: object) -> VisionTransformer:
    return _tiny_vit(init_values=0.1, **options)


@register_model
def vit_sf_tiny_reg4_dinov2(pretrained: bool = False, **options: object) -> VisionTransformer:
    return _tiny_vit(init_values=0.1, reg_tokens=4, no_embed_class=True, **options)


@register_model
def vit_sf_tiny_swiglu(pretrained: bool = False, **options: object) -> VisionTransformer:
    return _tiny_vit(init_values=0.1, mlp_layer=SwiGLUPacked, act_layer=nn.SiLU, **options)


@register_model
def vit_sf_tiny_map(pretrained: bool = False, **options: object) -> VisionTransformer:
    return _tiny_vit(global_pool="map", **options)


@register_model
def vit_sf_tiny_avg(pretrained: bool = False, **options: object) -> VisionTransformer:
    return _tiny_vit(global_pool="avg", **options)


def open_clip_siglip_config() -> dict:
    """A SigLIP as open_clip has them: timm's ViT with attention pooling, a text tower that reads its last place."""
    vision = {"image_size": 24, "timm_model_name": "vit_sf_tiny_siglip", "timm_model_pretrained": False}
    text = {"context_length": 12, "vocab_size": 32, "width": 32, "heads": 2, "layers": 1, "no_causal_mask": True}
    return {
        "embed_dim": 32,
        "init_logit_bias": -10,
        "custom_text": True,
        "vision_cfg": vision | {"timm_pool": "map", "timm_proj": "none"},
        "text_cfg": text
        | {"hf_tokenizer_name": "tiny", "tokenizer_kwargs": {"clean": "canonicalize"}}
        | {"proj_bias": True, "pool_type": "last", "norm_kwargs": {"eps": 1e-6}},
    }


def word_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of whole words that ends texts and pads them, as SigLIP's does."""
    words = ["<pad>", "</s>", "<unk>", "a", "photo", "of", "the", "cat", "dog", "red", "Red"]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing("$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", padding_side="right"
    )
