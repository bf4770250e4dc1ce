"""What a SparseFormer's configuration admits."""

import pytest

from sf_llava.configuration import PRESETS, SparseFormerConfig, preset


@pytest.mark.parametrize("fields", [dict(num_latent=64), dict(latents=64, top_down=True)])
def test_unknown_fields_are_refused_with_the_known_ones(fields):
    with pytest.raises(ValueError, match=rf"{next(iter(fields))}.*num_latents.*crop_fraction"):
        SparseFormerConfig(**fields)


def test_fields_of_transformers_are_admitted():
    # What transformers 5.16 to 5.24 writes into a configuration, or hands to one while it is loaded.
    fields = dict(
        architectures=["SparseFormerModel"], dtype="bfloat16", transformers_version="5.16.0", model_type="sparseformer",
        id2label={"0": "cat"}, label2id={"cat": 0}, output_hidden_states=True, return_dict=False, problem_type=None,
        chunk_size_feed_forward=0, is_encoder_decoder=False, output_attentions=False, attn_implementation="eager",
        experts_implementation=None, name_or_path="x", torch_dtype="float32", auto_map={}, _commit_hash=None,
        _attn_implementation_autoset=True, tie_word_embeddings=True, num_labels=1,
    )  # fmt: skip
    config = SparseFormerConfig(**fields)
    assert config.output_hidden_states is True and config.return_dict is False


def test_a_configuration_comes_back_from_its_own_fields():
    for name in PRESETS:
        config = preset(name, dtype="bfloat16")
        assert SparseFormerConfig.from_dict(config.to_dict()).to_dict() == config.to_dict()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_hidden_layers", 10**9),
        ("num_latents", 10**9),
        ("num_latents", "64"),
        ("num_latents", True),
        ("num_focusing_iterations", 10**6),
        ("projection_dim", -1),
        ("num_classes", 1.5),
        ("hidden_act", ["gelu"]),
        ("layer_norm_eps", float("nan")),
        ("image_mean", None),
        ("image_mean", (0.5, 0.5)),
        ("image_std", (0.5, 0.5, 0.0)),
        ("image_std", (0.5, 0.5, float("inf"))),
        ("interpolation", "nearest"),
        ("crop_fraction", 0),
    ],
)
def test_values_that_make_no_encoder_are_named(field, value):
    with pytest.raises(ValueError, match=field):
        preset("sf-mini", **{field: value})


def test_numbers_that_only_together_are_absurd_are_refused():
    with pytest.raises(ValueError, match="parameters, more than"):
        preset("sf-mini", hidden_size=65_536, intermediate_size=262_144, num_hidden_layers=256)
