"""Original LLaVA directories (the llava package's format) into transformers classes.

An original directory has ``mm_vision_tower`` in its config.json. Its linear projector becomes transformers' projector
without activation whose second layer is the identity, which is exact and needs no class of our own.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoProcessor,
    GenerationConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerBase,
)
from transformers.utils import cached_file, logging

from sf_llava.catalogue import LLAVAS
from sf_llava.devices import as_dtype_to_load
from sf_llava.files import read_json_object
from sf_llava.llava.conversations import chat_template
from sf_llava.llava.original_tokens import load_tokenizer
from sf_llava.llava.original_towers import PREFIX, NamedTower, describe_tower
from sf_llava.llava.placed import FIELD, PlacedLlava
from sf_llava.model.loading import HUB_NAME, forget_code
from sf_llava.weights.conversion import check_output, write_conversion
from sf_llava.weights.fit import describe_misfit, some
from sf_llava.weights.model_directory import check_model_directory, check_no_adapters, read_by_transformers, reason

_KEY_MAPPING = {
    r"^model\.(embed_tokens|layers|norm)\.": r"model.language_model.\1.",
    r"^model\.mm_projector\.(weight|bias)$": r"model.multi_modal_projector.linear_1.\1",
    r"^model\.mm_projector\.0\.": r"model.multi_modal_projector.linear_1.",
    r"^model\.mm_projector\.2\.": r"model.multi_modal_projector.linear_2.",
    r"^model\.vision_tower\.vision_tower\.(vision_model\.)?": r"model.vision_tower.",
}
_PROJECTORS = {"linear": "linear", "mlp2x_gelu": "gelu"}  # the package's name: transformers' activation
_DROPPED = ("inv_freq", "position_ids")
_IDENTITY = "model.multi_modal_projector.linear_2"


def _read_raw_config(path: str | Path) -> dict[str, Any]:
    """Read config.json as it is: AutoConfig would fill an original one with wrong defaults."""
    if not Path(path).is_dir():
        try:
            return read_json_object(cached_file(str(path), "config.json"))
        except OSError as error:
            said = f" ({reason(error)})" if HUB_NAME.fullmatch(str(path)) else ""
            raise ValueError(
                f"no LLaVA at {path}: expected a directory with config.json and weights, or a name on the hub{said}"
            ) from error
    check_no_adapters(path)
    config = Path(path) / "config.json"
    if not config.is_file():
        raise ValueError(f"no LLaVA at {path}: the directory has no config.json")
    return read_json_object(config)


def load_llava(
    path: str | Path,
    *,
    dtype: torch.dtype | str = torch.float32,
    tower: str | Path | None = None,
    conversation: str = "vicuna_v1",
    **placement: Any,
) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """Load a LLaVA in either format, with a processor whose images are bit-equal to the original code's.

    Args:
        path: a directory in transformers' or the llava package's format, a name on the hub, or ``mini``, the small one
            that ships.
        dtype: of all weights: fp32, fp16, bf16, a torch.dtype, or auto, in which they were saved; RoIs and rotary
            frequencies stay float32.
        tower: for original directories: where the tower's config and, if the directory lacks them, weights are;
            ``mm_vision_tower`` of the config by default.
        conversation: for original directories: the chat template of the processor.
        placement: ``device_map``, ``quantization_config``, ``offload_folder`` and the like, for ``from_pretrained``.

    Returns:
        (model in eval mode, processor). A model that was published with positions and bias reads with them in every
        call (placed.py).

    Raises:
        ValueError: an unknown dtype, nothing there, weights are missing, the directory describes a LLaVA that
            transformers' class cannot be, or a ``tower`` is named for one in transformers' format.
    """
    dtype = as_dtype_to_load(dtype)
    if (registered := LLAVAS.find(str(path))) is not None:
        path = registered()
    raw = _read_raw_config(path)
    if Path(path).is_dir():
        check_model_directory(path)
    if "mm_vision_tower" not in raw:
        if raw.get("model_type") != "llava":
            raise ValueError(f"{path} is no LLaVA but has model_type {raw.get('model_type')!r} in its config.json")
        if tower is not None:
            raise ValueError(f"{path} holds its vision tower itself: a tower is named for the original format alone")
        kind = LlavaForConditionalGeneration if raw.get(FIELD) is None else PlacedLlava
        model, report = _read_model(path, kind, dtype=dtype, **placement)
        _check_report(path, report)
        with read_by_transformers(f"the processor in {path}"):
            processor = AutoProcessor.from_pretrained(path, backend="pil", trust_remote_code=False)
        forget_code(model.config)
        return model.eval(), processor
    found = describe_tower(str(tower or raw["mm_vision_tower"]), str(path), raw.get("image_aspect_ratio") == "pad")
    config = read_config(raw, found)
    tokenizer = load_tokenizer(path, raw)
    template = chat_template(conversation, raw.get("mm_use_im_start_end", False))
    with _without_load_report():
        model, report = _read_model(path, config=config, key_mapping=_KEY_MAPPING, dtype=dtype, **placement)
    _complete(model, path, config, found, report)
    _add_image_token(model, tokenizer)
    processor = LlavaProcessor(
        found.image_processor,
        tokenizer,
        patch_size=found.patch_size,
        num_additional_image_tokens=found.num_additional_image_tokens,
        vision_feature_select_strategy=config.vision_feature_select_strategy,
        chat_template=template,
    )
    return model.eval(), processor


def _read_model(
    path: str | Path, kind: type[LlavaForConditionalGeneration] = LlavaForConditionalGeneration, **options: Any
) -> tuple[LlavaForConditionalGeneration, dict[str, Any]]:
    """Read a model of a class, and transformers' report on what was missing."""
    with read_by_transformers(f"the model in {path}"):
        return kind.from_pretrained(path, output_loading_info=True, trust_remote_code=False, **options)


def convert_llava(
    source: str | Path,
    output: str | Path,
    *,
    dtype: torch.dtype | str = torch.float16,
    tower: str | Path | None = None,
    conversation: str = "vicuna_v1",
) -> LlavaForConditionalGeneration:
    """Write the original directory ``source`` as a transformers directory ``output``; return the model.

    Raises:
        ValueError: as :func:`load_llava` does, or ``output`` holds anything but an older conversion of ``source``.
        OSError: ``output`` cannot be written.
    """
    raw = _read_raw_config(source)
    if "mm_vision_tower" not in raw:
        raise ValueError(f"{source} is no original LLaVA directory: its config.json must name an mm_vision_tower")
    sources = [source, str(tower or raw["mm_vision_tower"]).removeprefix(PREFIX)]
    check_output(output, sources)
    model, processor = load_llava(source, dtype=dtype, tower=tower, conversation=conversation)

    def fill(directory: Path) -> None:
        model.save_pretrained(directory, save_original_format=False)
        processor.save_pretrained(directory)

    write_conversion(output, sources, fill)
    return model


def read_config(raw: Mapping[str, Any], tower: NamedTower) -> LlavaConfig:
    """Build transformers' config from an original one."""
    if not str(raw.get("model_type")).startswith("llava") or raw["model_type"] in ("llava_mpt", "llava_mistral"):
        raise ValueError(f"only LLaVA on Llama or Vicuna is supported, not model_type {raw.get('model_type')!r}")
    projector = raw.get("mm_projector_type", "linear")
    if projector not in _PROJECTORS:
        raise ValueError(f"unknown mm_projector_type {projector!r}; supported: {', '.join(_PROJECTORS)}")
    if raw.get("mm_patch_merge_type", "flat") != "flat" or raw.get("image_aspect_ratio") == "anyres":
        raise ValueError("anyres and spatial merging (LLaVA-NeXT) are not supported: an image must be one square view")
    strategy = tower.strategy(raw.get("mm_vision_select_feature", "patch"))
    text_config = _read_text_config(raw)
    if (width := raw.get("mm_hidden_size", tower.config.hidden_size)) != tower.config.hidden_size:
        raise ValueError(f"the projector takes {width} channels but the tower gives {tower.config.hidden_size}")
    with read_by_transformers("the LLaVA that config.json describes"):
        return LlavaConfig(
            vision_config=tower.config,
            text_config=text_config,
            projector_hidden_act=_PROJECTORS[projector],
            vision_feature_layer=raw.get("mm_vision_select_layer", -2),
            vision_feature_select_strategy=strategy,
            image_token_index=text_config.vocab_size,
            image_seq_length=tower.num_tokens(strategy),
        )


def _read_text_config(raw: Mapping[str, Any]) -> LlamaConfig:
    known = set(LlamaConfig().to_dict()) | {"rope_theta", "rope_scaling"}
    known -= {"model_type", "architectures", "transformers_version", "dtype", "rope_parameters"}
    fields = {name: value for name, value in raw.items() if name in known and value is not None}
    for name in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads"):
        if not isinstance(fields.get(name), int) or fields[name] < 1:
            raise ValueError(f"config.json must hold a positive whole number as {name}, not {fields.get(name)!r}")
    padding = fields.get("pad_token_id", 0)
    if not isinstance(padding, int) or not 0 <= padding < fields["vocab_size"]:
        del fields["pad_token_id"]
    with read_by_transformers("the LLM that config.json describes"):
        return LlamaConfig(**fields)


def _complete(
    model: LlavaForConditionalGeneration,
    path: str | Path,
    config: LlavaConfig,
    tower: NamedTower,
    report: Mapping[str, Any],
) -> None:
    """Fill what an original directory may leave out: the tower's weights, the identity behind a linear projector."""
    missing = set(report["missing_keys"])
    in_tower = {key for key in missing if key.startswith("model.vision_tower.")}
    if in_tower:
        if len(in_tower) < len(model.model.vision_tower.state_dict()):
            raise ValueError(f"{path} holds only part of its vision tower; missing: {some(in_tower)}")
        _put_tower(model, tower)
    if config.projector_hidden_act == "linear":
        layer = model.model.multi_modal_projector.linear_2
        if layer.weight.is_meta:
            raise ValueError("the projector was offloaded: convert the directory first, sf-llava convert llava")
        with torch.no_grad():
            layer.weight.copy_(torch.eye(layer.out_features))
            layer.bias.zero_()
        missing -= {f"{_IDENTITY}.weight", f"{_IDENTITY}.bias"}
    _check_report(path, dict(report) | {"missing_keys": missing - in_tower})


def _put_tower(model: LlavaForConditionalGeneration, tower: NamedTower) -> None:
    """Load the tower from where the config says it is; the module in place is kept, with its device and dtype."""
    weights = tower.load_weights()
    with torch.no_grad():
        for name, value in model.model.vision_tower.state_dict().items():
            if value.is_meta:
                raise ValueError("the vision tower was offloaded: convert the directory first, sf-llava convert llava")
            value.copy_(weights[name])


def _add_image_token(model: LlavaForConditionalGeneration, tokenizer: PreTrainedTokenizerBase) -> None:
    """Give ``<image>`` a row of the embeddings, never to be generated."""
    image_id = tokenizer.convert_tokens_to_ids("<image>")
    rows = model.get_input_embeddings().weight.shape[0]
    if image_id >= rows:
        model.resize_token_embeddings(image_id + 1, mean_resizing=False)
        for embeddings in (model.get_input_embeddings(), model.get_output_embeddings()):
            with torch.no_grad():
                embeddings.weight[rows:] = 0
    model.config.image_token_index = image_id
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        suppress_tokens=list(range(min(rows, image_id), image_id + 1)),
    )


@contextmanager
def _without_load_report() -> Iterator[None]:
    """Keep transformers from warning of missing weights: what may be missing is filled in, the rest is an error."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


def _check_report(path: str | Path, report: Mapping[str, Any]) -> None:
    unexpected = {key for key in report["unexpected_keys"] if not key.endswith(_DROPPED)}
    if misfit := describe_misfit(report["missing_keys"], unexpected, report["mismatched_keys"]):
        raise ValueError(f"the weights in {path} do not make this LLaVA: {misfit}")
