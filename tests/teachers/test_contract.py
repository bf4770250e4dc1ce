"""Every family keeps the one contract: same tokens in, same block out; frozen; the host's own embeddings."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.activations import ACT2FN

from sf_llava.configuration import SparseFormerConfig
from sf_llava.model.cortex import CortexBlock
from sf_llava.model.pooling import AttentionPooling
from sf_llava.teachers import load_teacher
from sf_llava.teachers.base import BLOCK_KEYS, Teacher


def reference_block(parameters: dict[str, Tensor], tokens: Tensor, heads: int, activation: str, eps: float) -> Tensor:
    """A pre-norm transformer block written out, in float64."""
    p = {name: value.double() for name, value in parameters.items()}
    tokens = tokens.double()
    width = tokens.shape[-1]
    x = F.layer_norm(tokens, (width,), p["norm1.weight"], p["norm1.bias"], eps)
    query, key, value = (x @ p["attn.qkv.weight"].T + p["attn.qkv.bias"]).split(width, dim=-1)
    attended = []
    for head in range(heads):
        part = slice(head * width // heads, (head + 1) * width // heads)
        scores = query[..., part] @ key[..., part].transpose(1, 2) / (width // heads) ** 0.5
        attended.append(scores.softmax(-1) @ value[..., part])
    tokens = tokens + torch.cat(attended, -1) @ p["attn.proj.weight"].T + p["attn.proj.bias"]
    x = F.layer_norm(tokens, (width,), p["norm2.weight"], p["norm2.bias"], eps)
    x = ACT2FN[activation](x @ p["mlp.fc1.weight"].T + p["mlp.fc1.bias"])
    return tokens + x @ p["mlp.fc2.weight"].T + p["mlp.fc2.bias"]


@pytest.fixture
def tokens(teacher: Teacher) -> Tensor:
    return torch.randn(2, 5, teacher.hidden_size, generator=torch.Generator().manual_seed(7))


def test_a_block_rebuilt_from_its_canonical_parameters_gives_the_teachers_output(teacher, tokens):
    for index in range(teacher.num_hidden_layers):
        parameters = teacher.block_state_dict(index)
        assert tuple(parameters) == BLOCK_KEYS
        expected = reference_block(
            parameters, tokens, teacher.num_attention_heads, teacher.hidden_act, teacher.layer_norm_eps
        )
        torch.testing.assert_close(teacher.run_block(index, tokens).double(), expected, atol=1e-5, rtol=1e-5)


def test_a_cortex_block_that_inherits_gives_the_teachers_output(teacher, tokens):
    config = SparseFormerConfig(
        hidden_size=teacher.hidden_size,
        focusing_size=teacher.hidden_size // 2,
        focusing_num_attention_heads=1,
        num_attention_heads=teacher.num_attention_heads,
        intermediate_size=teacher.intermediate_size,
        hidden_act=teacher.hidden_act,
        cortex_layer_norm_eps=teacher.layer_norm_eps,
    )
    config._attn_implementation = "sdpa"
    block = CortexBlock(config)
    for index in range(teacher.num_hidden_layers):
        block.load_state_dict(teacher.block_state_dict(index), strict=True)
        torch.testing.assert_close(block(tokens), teacher.run_block(index, tokens), atol=1e-5, rtol=1e-5)


def test_the_wrong_activation_would_be_noticed(teacher, tokens):
    wrong = "gelu" if teacher.hidden_act == "quick_gelu" else "quick_gelu"
    other = reference_block(
        teacher.block_state_dict(0), tokens, teacher.num_attention_heads, wrong, teacher.layer_norm_eps
    )
    assert (teacher.run_block(0, tokens) - other).abs().max() > 1e-3


def test_tokens_at_a_layer_count_like_transformers(teacher, pixels):
    depth = teacher.num_hidden_layers
    inside = teacher.embed(pixels)
    first = int(teacher.use_cls)
    assert inside.shape == (3, first + teacher.num_registers + 9, teacher.hidden_size) and teacher.num_patches == 9
    for layer in range(depth + 1):
        patches = inside[:, first + teacher.num_registers :]
        expected = torch.cat([inside[:, :first], patches], dim=1)  # registers are no one's to read
        assert expected.shape[1] == teacher.num_tokens
        torch.testing.assert_close(teacher.tokens(pixels, layer), expected)
        torch.testing.assert_close(teacher.tokens(pixels, layer - depth - 1), expected)
        inside = inside if layer == depth else teacher.run_block(layer, inside)
    for layer in (depth + 1, -depth - 2):
        with pytest.raises(ValueError, match="has layers"):
            teacher.tokens(pixels, layer)


def norm(tokens: Tensor, head: dict[str, Tensor], name: str, eps: float) -> Tensor:
    return F.layer_norm(tokens, tokens.shape[-1:], head[f"{name}.weight"], head[f"{name}.bias"], eps)


def reference_pooling(head: dict[str, Tensor], tokens: Tensor, teacher: Teacher) -> Tensor:
    """SigLIP's pooling head written out, on normalised tokens, in float64."""
    heads, eps, width = teacher.num_attention_heads, teacher.layer_norm_eps, tokens.shape[-1]
    key, value = (tokens @ head["pool.kv.weight"].T + head["pool.kv.bias"]).split(width, dim=-1)
    read = []
    for number in range(heads):
        part = slice(number * width // heads, (number + 1) * width // heads)
        scores = key[..., part] @ head["pool.query"][part] / (width // heads) ** 0.5  # [B, M]
        read.append((scores.softmax(-1)[..., None] * value[..., part]).sum(1))
    pooled = torch.cat(read, -1) @ head["pool.proj.weight"].T + head["pool.proj.bias"]
    hidden = norm(pooled, head, "pool.norm", eps) @ head["pool.mlp.fc1.weight"].T + head["pool.mlp.fc1.bias"]
    return pooled + ACT2FN[teacher.hidden_act](hidden) @ head["pool.mlp.fc2.weight"].T + head["pool.mlp.fc2.bias"]


def test_the_head_turns_the_last_tokens_into_the_embedding(teacher, pixels):
    head = {name: value.double() for name, value in teacher.head_state_dict().items()}
    tokens = norm(teacher.tokens(pixels, -1).double(), head, "norm", teacher.layer_norm_eps)
    expected = tokens[:, 0] if teacher.use_cls else reference_pooling(head, tokens, teacher)
    names = {"norm.weight", "norm.bias"} | {name for name in head if name.startswith("pool.")}
    embeds = teacher(pixels)
    if teacher.projection_dim:
        assert head.keys() == names | {"projection.weight"}
        assert head["projection.weight"].shape == (teacher.projection_dim, teacher.hidden_size)
        expected = expected @ head["projection.weight"].T
    elif teacher.num_classes:
        assert head.keys() == names | {"classifier.weight", "classifier.bias"}
        assert teacher.classify(embeds).shape == (3, teacher.num_classes)
    else:
        assert head.keys() == names
        with pytest.raises(ValueError, match="without a classifier"):
            teacher.classify(embeds)
    torch.testing.assert_close(embeds.double(), expected, atol=1e-5, rtol=1e-5)
    assert embeds.shape == (3, teacher.embed_dim)


def test_a_students_pooling_that_inherits_gives_the_teachers_embedding(teacher, pixels):
    if teacher.use_cls:
        assert not any(name.startswith("pool.") for name in teacher.head_state_dict())
        return
    config = SparseFormerConfig(
        hidden_size=teacher.hidden_size,
        focusing_size=teacher.hidden_size // 2,
        focusing_num_attention_heads=1,
        num_attention_heads=teacher.num_attention_heads,
        intermediate_size=teacher.intermediate_size,
        hidden_act=teacher.hidden_act,
        cortex_layer_norm_eps=teacher.layer_norm_eps,
    )
    head = teacher.head_state_dict()
    pool = AttentionPooling(config)
    pool.load_state_dict({name[5:]: value for name, value in head.items() if name.startswith("pool.")}, strict=True)
    tokens = norm(teacher.tokens(pixels, -1), head, "norm", teacher.layer_norm_eps)
    torch.testing.assert_close(pool(tokens), teacher(pixels), atol=1e-5, rtol=1e-5)


def test_what_is_read_of_a_picture_is_its_own_whatever_the_batch(teacher, pixels):
    read, tokens = teacher.cls_and_tokens(pixels, -2)
    again, same = teacher.cls_and_tokens(pixels.flip(0), -2)
    assert torch.equal(again.flip(0), read) and torch.equal(same.flip(0), tokens)
    embeds, states = teacher.embeds_and_tokens(pixels, -2)
    assert torch.equal(embeds, teacher.embed_cls(read)) and torch.equal(states, tokens)


def test_a_teacher_stays_frozen_and_in_evaluation_mode_inside_a_training_parent(teacher, pixels):
    parent = nn.ModuleDict({"teacher": teacher, "student": nn.Linear(2, 2)})
    parent.train()
    assert parent.training and not any(module.training for module in teacher.modules())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert not teacher(pixels).requires_grad


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_teachers_work_and_stay_close(teacher_name, pixels, dtype):
    half = load_teacher(teacher_name, dtype=dtype)
    assert {parameter.dtype for parameter in half.parameters()} == {dtype}
    embeds = half(pixels)
    assert embeds.dtype == dtype and half.tokens(pixels, -2).dtype == dtype
    cosine = F.cosine_similarity(embeds.float(), load_teacher(teacher_name)(pixels))
    assert (cosine > 0.99).all()


def test_images_of_another_size_are_refused(teacher):
    with pytest.raises(ValueError, match=r"takes \(B, \(3, 24, 24\)\) pixels, got \(1, 3, 32, 32\)"):
        teacher(torch.zeros(1, 3, 32, 32))


def test_preprocessing_fits_the_model(teacher):
    assert teacher.preprocessing.image_size == teacher.image_size == 24


def test_texts_are_embedded_alike_whatever_the_batch(teacher):
    texts = ["a photo of a cat", "dog", "the red red dog of a cat"]
    if not teacher.has_text:
        with pytest.raises(ValueError, match="no text tower"):
            teacher.encode_text(texts)
        return
    together = teacher.encode_text(texts)
    assert together.shape == (3, teacher.embed_dim)
    torch.testing.assert_close(together, torch.cat([teacher.encode_text([text]) for text in texts]))
    assert not torch.allclose(together[0], together[1])
