"""timm's plain ViT as the image tower of a teacher: timm's own models, and those that open_clip takes from timm.

The blocks' canonical names are timm's. CLIP's projection is kept as a classifier without bias.
"""

from collections.abc import Iterable
from typing import Any

from timm.layers import GELU, AttentionPoolLatent, GELUTanh, GluMlp, QuickGELU, SwiGLU
from timm.models import VisionTransformer
from timm.models.vision_transformer import Block, Mlp
from torch import Tensor, nn

from sf_llava.data.transforms import Preprocessing
from sf_llava.teachers.base import BLOCK_KEYS, LAYER_SCALES, Teacher, canonical_block, unsupported, weights_of
from sf_llava.teachers.families import NAFLEX, ROPE, SWIGLU

BLOCK_NAMES = {key: key for key in (*BLOCK_KEYS, *LAYER_SCALES)}
_POOL_PARTS = ("kv", "proj", "norm", "mlp.fc1", "mlp.fc2")
RESIZE_MODES = {"center": "shortest", "squash": "squash"}  # by timm's crop_mode


class TimmVitTeacher(Teacher):
    """A teacher whose image tower is a plain ViT of timm, with CLS or attention pooling."""

    vit: Any

    def __init__(self, name: str, vit: Any, preprocessing: Preprocessing) -> None:
        """Read the geometry of a loaded model.

        Args:
            name: as given to ``load_teacher``.
            vit: a ``timm.models.VisionTransformer`` that :func:`require_plain` admits.
            preprocessing: of its pictures.
        """
        super().__init__(name, vit.patch_embed.img_size[0], vit.patch_embed.patch_size[0], preprocessing)
        block = vit.blocks[0]
        self.vit = vit
        self.use_cls = vit.attn_pool is None
        self.num_registers = vit.num_reg_tokens
        self.hidden_size = vit.embed_dim
        self.num_hidden_layers = len(vit.blocks)
        self.num_attention_heads = block.attn.num_heads
        self.intermediate_size = block.mlp.fc1.out_features
        self.hidden_act = _activation(name, block.mlp.act)
        self.layer_norm_eps = block.norm1.eps

    def embed(self, pixel_values: Tensor) -> Tensor:
        tokens = self.vit._pos_embed(self.vit.patch_embed(pixel_values))
        return self.vit.norm_pre(tokens)

    def run_block(self, index: int, tokens: Tensor) -> Tensor:
        return self.vit.blocks[index](tokens)

    def block_state_dict(self, index: int) -> dict[str, Tensor]:
        return canonical_block(self.vit.blocks[index].state_dict(), BLOCK_NAMES, self.name)

    def head_state_dict(self) -> dict[str, Tensor]:
        vit, pool = self.vit, self.vit.attn_pool
        state = weights_of(norm=vit.norm)
        if not self.use_cls:
            state["pool.query"] = pool.q(pool.latent).detach().flatten()
            state |= weights_of(**{f"pool.{name}": pool.get_submodule(name) for name in _POOL_PARTS})
        if self.projection_dim:
            state["projection.weight"] = self.projection.weight.detach()  # [E, D]
        if self.num_classes:
            state |= weights_of(classifier=vit.head)
        return state

    @property
    def projection(self) -> nn.Linear:
        """CLIP's projection, where there is one."""
        return self.vit.head

    def image_parameters(self) -> Iterable[Tensor]:
        return self.vit.parameters()


def require_plain(name: str, vit: Any) -> None:
    """Refuse a model that is no plain ViT of timm, and say what it has.

    Raises:
        ValueError: see above.
    """
    if type(vit) is not VisionTransformer:
        why = ROPE if getattr(vit, "rope", None) is not None else NAFLEX if "NaFlex" in type(vit).__name__ else ""
        raise unsupported(name, f"it is a {type(vit).__name__}{why and ': '}{why}")
    if vit.attn_pool is None and (vit.global_pool != "token" or vit.cls_token is None):
        raise unsupported(name, f"it pools with {vit.global_pool!r} (an average ...), by neither CLS nor attention")
    if vit.attn_pool is not None:
        _require_plain_pooling(name, vit)
    if not isinstance(vit.patch_drop, nn.Identity):
        raise unsupported(name, "it uses patch dropout")
    if not isinstance(vit.norm, nn.LayerNorm) or not isinstance(vit.fc_norm, nn.Identity):
        raise unsupported(name, "it has no final LN in front of its pooling")
    if vit.patch_embed.img_size[0] != vit.patch_embed.img_size[1]:
        raise unsupported(name, f"its images are not square but {vit.patch_embed.img_size}")
    for block in vit.blocks:
        if isinstance(block.mlp, GluMlp | SwiGLU):
            raise unsupported(name, SWIGLU)
        if type(block) is not Block or type(block.mlp) is not Mlp:
            raise unsupported(name, f"its blocks are {type(block).__name__} with {type(block.mlp).__name__}")
        canonical_block(block.state_dict(), BLOCK_NAMES, name)


def _require_plain_pooling(name: str, vit: Any) -> None:
    """Refuse attention pooling that is not SigLIP's: one query over patches alone, shaped like the blocks."""
    pool, block = vit.attn_pool, vit.blocks[0]
    wanted = {"latent", *(f"{part}.{kind}" for part in ("q", *_POOL_PARTS) for kind in ("weight", "bias"))}
    if type(pool) is not AttentionPoolLatent or pool.latent.shape[1] != 1 or set(pool.state_dict()) != wanted:
        raise unsupported(name, f"it pools with a {type(pool).__name__} that is not SigLIP's")
    if vit.cls_token is not None or vit.num_prefix_tokens:
        raise unsupported(name, "attention pools its patches, but it has CLS or registers as well")
    shape = (block.attn.num_heads, block.mlp.fc1.out_features, type(block.mlp.act))
    if (pool.num_heads, pool.mlp.fc1.out_features, type(pool.mlp.act)) != shape:
        raise unsupported(name, "the heads, width or activation of its attention pooling are not those of its blocks")


def _activation(name: str, module: nn.Module) -> str:
    if isinstance(module, QuickGELU):
        return "quick_gelu"
    if isinstance(module, GELUTanh) or (isinstance(module, nn.GELU) and module.approximate == "tanh"):
        return "gelu_pytorch_tanh"
    if isinstance(module, nn.GELU | GELU):
        return "gelu"
    raise unsupported(name, f"its blocks use the activation {type(module).__name__}")


def read_preprocessing(name: str, size: int, config: dict[str, Any]) -> Preprocessing:
    """Read how pictures are preprocessed from a ``pretrained_cfg``.

    Raises:
        ValueError: they are padded.
    """
    mode = config.get("crop_mode", "center")
    if mode not in RESIZE_MODES:
        raise unsupported(name, f"its images are cropped by {mode!r} instead of at the centre")
    crop = config["crop_pct"]
    return Preprocessing(size, config["mean"], config["std"], config["interpolation"], crop, RESIZE_MODES[mode])
