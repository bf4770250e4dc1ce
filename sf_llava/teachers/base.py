"""The contract of a teacher: a frozen, plain vision transformer that a student inherits from and is aligned to.

An adapter (one file for each host library) says how images become tokens, hands out its blocks, and maps its
parameter names on the canonical ones below; everything else is here, so the three libraries cannot drift apart.

pixel_values -> ``embed`` (patches, CLS, registers, positions, pre-LN) -> blocks -> CLS -> final LN -> projection ->
image_embeds; without CLS: blocks -> final LN -> attention pooling -> image_embeds

Letters: B images, P patches, T tokens (CLS first where there is one, then P patches), R registers between the two, D
width, E size of ``image_embeds``.
"""

import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.activations import ACT2FN

from sf_llava.data.transforms import Preprocessing
from sf_llava.model.pooling import attend
from sf_llava.weights.fit import find_misfit
from sf_llava.weights.tensor_files import require_numbers

BLOCK_KEYS = tuple(
    f"{layer}.{kind}"
    for layer in ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
    for kind in ("weight", "bias")
)
"""Canonical names of a block's parameters; ``attn.qkv`` stacks query, key and value rows."""
LAYER_SCALES = {"ls1.gamma": "attn.proj", "ls2.gamma": "mlp.fc2"}
"""Canonical names of a block's LayerScales (D,), and the linear layers that they multiply."""


class Teacher(nn.Module):
    """A frozen vision transformer behind one contract; it stays in evaluation mode whatever its parent does.

    Attributes:
        name: as given to ``load_teacher``.
        image_size, patch_size: pixels; images and patches are square.
        hidden_size, num_hidden_layers, num_attention_heads, intermediate_size: geometry of the blocks.
        hidden_act: activation of the blocks, a name that ``transformers.activations.ACT2FN`` knows.
        layer_norm_eps: of every LN in the blocks and of the final one.
        tiles: G, where a picture is read in G x G tiles (tiled.py); 1 where it is one view.
        use_cls: whether CLS stands first and gives the embedding; without it attention pools the patches.
        num_registers: R, tokens inside the blocks that no one reads.
        projection_dim: size of ``image_embeds`` behind CLIP's projection, None where there is none.
        num_classes: size of a classification teacher's classifier, 0 for others.
        has_text: whether ``encode_text`` works.
        templates: zero-shot prompts that the teacher was trained with and brings along; mostly empty.
        preprocessing: how a PIL image becomes ``pixel_values``.
    """

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    hidden_act: str
    layer_norm_eps: float
    tiles: int = 1
    use_cls: bool = True
    num_registers: int = 0
    projection_dim: int | None = None
    num_classes: int = 0
    has_text: bool = False
    templates: tuple[str, ...] = ()

    def __init__(self, name: str, image_size: int, patch_size: int, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.name = name
        self.image_size = image_size
        self.patch_size = patch_size
        self.preprocessing = preprocessing

    # What an adapter brings.

    def embed(self, pixel_values: Tensor) -> Tensor:
        """Turn (B, 3, S, S) pixels into (B, R + T, D) tokens in front of the first block: CLS, registers, patches."""
        raise NotImplementedError

    def run_block(self, index: int, tokens: Tensor) -> Tensor:
        """Run one block on tokens (B, any number, D)."""
        raise NotImplementedError

    def block_state_dict(self, index: int) -> dict[str, Tensor]:
        """Give block ``index``'s parameters under the names of ``BLOCK_KEYS``."""
        raise NotImplementedError

    def head_state_dict(self) -> dict[str, Tensor]:
        """Give what follows the blocks under the names of a student's modules.

        Returns:
            ``norm.*``; without CLS ``pool.query`` (D,), the probe behind its projection, ``pool.kv.*`` (keys' rows
            first), ``pool.proj.*``, ``pool.norm.*`` and ``pool.mlp.*``; and, where there is one, ``projection.weight``
            (E, D) or ``classifier.weight`` and ``classifier.bias``.
        """
        raise NotImplementedError

    def encode_text(self, texts: list[str]) -> Tensor:
        """Embed texts, (len, E), not normalised."""
        raise ValueError(f"teacher {self.name} has no text tower; zero-shot evaluation needs a whole CLIP or SigLIP")

    # What follows from it.

    @property
    def num_patches(self) -> int:
        return (self.image_size // self.patch_size) ** 2

    @property
    def num_tokens(self) -> int:
        """T, the patches and CLS where there is one."""
        return self.num_patches + self.use_cls

    @property
    def embed_dim(self) -> int:
        return self.projection_dim or self.hidden_size

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def num_parameters(self) -> int:
        """Count the parameters of the image tower with its head (a text tower is not counted)."""
        return sum(p.numel() for p in self.image_parameters())

    def image_parameters(self) -> Iterable[Tensor]:
        """Iterate over the image tower's parameters, head included."""
        return self.parameters()

    @torch.no_grad()
    def tokens(self, pixel_values: Tensor, layer: int) -> Tensor:
        """Give ``hidden_states[layer]`` of (B, 3, S, S) pixels in transformers' counting.

        Args:
            pixel_values: (B, 3, S, S), preprocessed.
            layer: 0 is what enters the first block, k what leaves block k; -1 the last, -2 LLaVA's.

        Returns:
            (B, T, D) in the teacher's dtype, CLS first, before the final LN; registers are left out.
        """
        return self._without_registers(self._run_to(pixel_values, self._depth_of(layer)))

    @torch.no_grad()
    def forward(self, pixel_values: Tensor) -> Tensor:
        """Embed (B, 3, S, S) pixels: (B, E) ``image_embeds`` in the teacher's dtype, not normalised.

        For CLIP behind the projection, for SigLIP what its attention pools, for others the normalised CLS.
        """
        return self.embed_cls(self.cls_and_tokens(pixel_values, -1)[0])

    @torch.no_grad()
    def embeds_and_tokens(self, pixel_values: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """Give what ``forward`` and ``tokens`` give, (B, E) and (B, T, D), in one pass."""
        cls, tokens = self.cls_and_tokens(pixel_values, layer)
        return self.embed_cls(cls), tokens

    @torch.no_grad()
    def cls_and_tokens(self, pixel_values: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """Give what :meth:`read_out` takes from the last block, (B, D), and ``tokens``, in one pass.

        Both are a picture's own, to the bit, wherever in a batch of one size it stands. Embeddings are not: products
        with as few rows as there are pictures are split over a CPU's threads at other places.
        """
        depth = self._depth_of(layer)
        tokens = self._run_to(pixel_values, depth)
        last = self._run_blocks(tokens, depth, self.num_hidden_layers)
        return self.read_out(last), self._without_registers(tokens)

    @torch.no_grad()
    def read_out(self, tokens: Tensor) -> Tensor:
        """Take (B, D), of which ``embed_cls`` makes embeddings, from what leaves the last block, (B, any number, D).

        That is CLS, or without one what the attention of the pooling head reads, in front of its output projection.
        """
        if self.use_cls:
            return tokens[:, 0].contiguous()
        head = self.head_state_dict()
        tokens = F.layer_norm(tokens, tokens.shape[-1:], head["norm.weight"], head["norm.bias"], self.layer_norm_eps)
        keys_and_values = F.linear(tokens, head["pool.kv.weight"], head["pool.kv.bias"])
        return attend(head["pool.query"], keys_and_values, self.num_attention_heads)

    def embed_cls(self, cls: Tensor) -> Tensor:
        """Turn what :meth:`read_out` gave, (B, D), into (B, E) ``image_embeds``; a gradient flows back through it."""
        head, eps = self.head_state_dict(), self.layer_norm_eps
        if self.use_cls:
            embeds = F.layer_norm(cls, cls.shape[-1:], head["norm.weight"], head["norm.bias"], eps)
        else:
            pooled = F.linear(cls, head["pool.proj.weight"], head["pool.proj.bias"])
            hidden = F.layer_norm(pooled, pooled.shape[-1:], head["pool.norm.weight"], head["pool.norm.bias"], eps)
            hidden = F.linear(hidden, head["pool.mlp.fc1.weight"], head["pool.mlp.fc1.bias"])
            hidden = ACT2FN[self.hidden_act](hidden)
            embeds = pooled + F.linear(hidden, head["pool.mlp.fc2.weight"], head["pool.mlp.fc2.bias"])
        return F.linear(embeds, head["projection.weight"]) if "projection.weight" in head else embeds

    @torch.no_grad()
    def classify(self, image_embeds: Tensor) -> Tensor:
        """Turn (B, E) ``image_embeds`` into (B, num_classes) logits; classification teachers only."""
        if not self.num_classes:
            raise ValueError(f"{self.name} is a teacher without a classifier; score a CLIP or SigLIP by encode_text")
        head = self.head_state_dict()
        return F.linear(image_embeds, head["classifier.weight"], head["classifier.bias"])

    def train(self, mode: bool = True) -> "Teacher":
        """Stay in evaluation mode: a teacher has no dropout to switch on and nothing to learn."""
        return super().train(False)

    def freeze(self) -> "Teacher":
        """Switch gradients off for good; every adapter ends its construction with this."""
        return self.requires_grad_(False).eval()

    def extra_repr(self) -> str:
        return (
            f"{self.name}, {self.image_size} px / {self.patch_size}, {self.num_hidden_layers} x {self.hidden_size}, "
            f"{self.num_attention_heads} heads, {self.hidden_act}, eps={self.layer_norm_eps}"
        )

    def _depth_of(self, layer: int) -> int:
        """Turn a layer, which may count from the end, into the number of blocks in front of it."""
        depth = self.num_hidden_layers
        if not -depth - 1 <= layer <= depth:
            raise ValueError(f"{self.name} has layers {-depth - 1} .. {depth}, got {layer}")
        return layer % (depth + 1)

    def _run_to(self, pixel_values: Tensor, depth: int) -> Tensor:
        """Embed pixels and run the first ``depth`` blocks: (B, R + T, D)."""
        return self._run_blocks(self.embed(self._checked(pixel_values)), 0, depth)

    def _without_registers(self, tokens: Tensor) -> Tensor:
        """Leave the registers out of (B, R + T, D) tokens."""
        if not self.num_registers:
            return tokens
        return torch.cat([tokens[:, : self.use_cls], tokens[:, self.use_cls + self.num_registers :]], dim=1)

    def _run_blocks(self, tokens: Tensor, first: int, end: int) -> Tensor:
        for index in range(first, end):
            tokens = self.run_block(index, tokens)
        return tokens

    def _checked(self, pixel_values: Tensor) -> Tensor:
        expected = (3, self.image_size, self.image_size)
        if pixel_values.ndim != 4 or tuple(pixel_values.shape[1:]) != expected:
            raise ValueError(f"{self.name} takes (B, {expected}) pixels, got {tuple(pixel_values.shape)}")
        return pixel_values.to(self.dtype)


def weights_of(**layers: nn.Module) -> dict[str, Tensor]:
    """Give weight and bias of layers, detached, under the names that they are given here."""
    return {
        f"{name}.{kind}": getattr(layer, kind).detach() for name, layer in layers.items() for kind in ("weight", "bias")
    }


def canonical_block(parameters: Mapping[str, Tensor], names: Mapping[str, str], teacher: str) -> dict[str, Tensor]:
    """Rename a block's parameters and fold LayerScale; a block with more or fewer of them is not a plain one.

    ``gamma * (W x + b)`` is ``(gamma W) x + gamma b``; the products are rounded once, to the weights' dtype.

    Args:
        parameters: the block's own state dict.
        names: the host's name for each canonical name, those of ``LAYER_SCALES`` included if it has any.
        teacher: for the error message.

    Raises:
        ValueError: names the parameters that a plain block does not have, or lacks.
    """
    extra = sorted(set(parameters) - set(names.values()))
    missing = sorted(names[key] for key in BLOCK_KEYS if names[key] not in parameters)
    if extra or missing:
        raise unsupported(
            teacher,
            "its blocks are not plain (query/key norms, gates and missing biases cannot be inherited): "
            + (f"they also have {', '.join(extra)}" if extra else f"they lack {', '.join(missing)}"),
        )
    block = {key: parameters[names[key]].detach() for key in BLOCK_KEYS}
    for gamma, layer in LAYER_SCALES.items():
        if names.get(gamma) in parameters:
            scale = parameters[names[gamma]].detach().float()
            for kind in ("weight", "bias"):
                value = block[f"{layer}.{kind}"]
                rows = scale[:, None] if kind == "weight" else scale
                block[f"{layer}.{kind}"] = (rows * value.float()).to(value.dtype)
    return block


def require_fit(model: nn.Module, state_dict: Mapping[str, Tensor], source: str) -> None:
    """Refuse a state dict whose names and shapes are not exactly the model's, which may be on the meta device.

    Raises:
        ValueError: lists what is missing, unexpected or of another shape, and names ``source``.
    """
    expected, found = ({key: value.shape for key, value in state.items()} for state in (model.state_dict(), state_dict))
    if misfit := find_misfit(expected, found):
        raise ValueError(f"{source} does not fit the architecture ({misfit})")


def load_strictly(model: nn.Module, state_dict: Mapping[str, Tensor], source: str) -> None:
    """Load a state dict whose names and shapes must be exactly the model's, and whose numbers finite.

    Raises:
        ValueError: says what does not fit, or is no number, and names ``source``.
    """
    require_fit(model, state_dict, source)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    require_numbers({name: value for name, value in state_dict.items() if name in parameters}, source)
    model.load_state_dict(state_dict)


def is_torchscript(file: Path) -> bool:
    """Recognise a TorchScript archive, the format in which OpenAI ships its weights."""
    try:
        with zipfile.ZipFile(file) as archive:
            return any(member.endswith("/constants.pkl") for member in archive.namelist())
    except zipfile.BadZipFile:
        return False


def unsupported(teacher: str, reason: str) -> ValueError:
    """Say why a model cannot be a teacher."""
    return ValueError(f"{teacher} cannot be a teacher: {reason}; a plain ViT with CLS or attention pooling is needed")


def brief(error: Exception) -> str:
    """Shorten a library's error to what fits into a sentence."""
    return (" ".join(str(error).split()) or type(error).__name__)[:200].rstrip(".:")
