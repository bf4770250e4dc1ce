"""Draw where an encoder looks: the paper's Figures 3-7, for any images.

    sf-llava visualize
        the quickstart's student on four drawn pictures, beside its teacher: three PNG files in runs/visualize
    sf-llava visualize photos/*.jpg --encoder runs/sf-l-clip --output runs/photos
        the same for your images

Expected: the names of focus.png (input, RoIs of the first, third and last iteration, sampling points), iterations.png
(RoIs of every iteration with the way of their centres), heat.png (sampling mass, attention) and, for a run that aligned
tokens by position, places.png (whose token says what is at each place); and how far RoIs move.
"""

import argparse
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sf_llava import cli
from sf_llava.catalogue import default_encoder

NUM_IMAGES = cli.Number(int, 1, 64)
SEED = cli.Number(int, 0, 10**6)

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor
    from transformers import PreTrainedModel

    from sf_llava.model import SparseFormerOutput


def parse(argv: list[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", nargs="*", metavar="IMAGE", help="image files (default: drawn pictures)")
    parser.add_argument("--encoder", metavar="DIR", help="encoder or run directory (default: the quickstart's)")
    parser.add_argument("--teacher", metavar="NAME", help="teacher beside it (default: the one that its run names)")
    parser.add_argument("--num-images", type=NUM_IMAGES, default=4, help="drawn pictures to show (%(default)s)")
    parser.add_argument("--seed", type=SEED, default=0, help="which drawn pictures (%(default)s)")
    cli.add_flags(parser, "output", "device", output="runs/visualize", device="cpu")
    arguments = cli.parse(parser, argv)
    if len(arguments.images) > NUM_IMAGES.high:
        raise ValueError(f"{len(arguments.images)} images do not fit on one sheet: name at most {NUM_IMAGES.high}")
    return arguments


def open_pictures(arguments: argparse.Namespace) -> "list[Image.Image]":
    """Read the images of the command line, or draw some of both domains of the mini world."""
    from sf_llava.data import open_images
    from sf_llava.data.images import decode
    from sf_llava.files import read_bytes

    if arguments.images:
        return [decode(read_bytes(path), path) for path in arguments.images]
    world = open_images("mini-test:both")
    return [world.load(arguments.seed + index) for index in range(arguments.num_images)]


def describe_movement(rois: "Tensor") -> str:
    """Say in one line how far RoIs (B, I + 1, N, 4) move, how they change in size, and how much images differ."""
    centres = (rois[..., :2] + rois[..., 2:]) / 2  # [B, I + 1, N, 2]
    sizes = rois[..., 2:] - rois[..., :2]
    moved = (centres[:, -1] - centres[:, 0]).norm(dim=-1).mean()
    differ = centres[:, -1].std(dim=0, unbiased=False).norm(dim=-1).mean()
    return (
        f"from the learned start to the last iteration RoI centres move by {moved:.3f} of the image on average and "
        f"RoI sides go from {sizes[:, 0].mean():.3f} to {sizes[:, -1].mean():.3f}; between the {len(rois)} images the "
        f"last centres differ by {differ:.3f}"
    )


def look(encoder: "PreTrainedModel", pixel_values: "Tensor") -> "tuple[Any, Tensor | None]":
    """Run an encoder on (B, 3, S, S) pixels; beside the output the attention (B, N) to its latents, None of a v1."""
    from sf_llava.model import SparseFormerModel
    from sf_llava.teachers.attention import cls_attention, pooling_attention

    if not isinstance(encoder, SparseFormerModel):
        return encoder(pixel_values, output_sampling_points=True), None
    output = encoder(pixel_values, output_hidden_states=True, output_sampling_points=True)
    shape = encoder.config.num_attention_heads, encoder.config.cortex_layer_norm_eps
    if encoder.config.use_cls:
        return output, cls_attention(output.hidden_states[-2], encoder.cortex[-1].state_dict(), *shape)
    return output, pooling_attention(output.last_hidden_state, encoder.state_dict(), *shape)


def read_places(path: str, output: "SparseFormerOutput") -> "Tensor | None":
    """Give the weights (B, M, N) of the latents at the places of the teacher's grid; None where no run knows them.

    Args:
        path: of the run, whose checkpoint holds the statistics of the teacher's tokens.
        output: of the encoder, with hidden states.
    """
    from sf_llava.bootstrap.objectives.objective import Seen
    from sf_llava.bootstrap.objectives.statistics import FILE, TokenStatistics
    from sf_llava.bootstrap.run_directory import RunDirectory
    from sf_llava.files import read_json_object

    run = RunDirectory(str(Path(path).parent if Path(path).name == "encoder" else path))
    kept = [checkpoint for checkpoint in run.checkpoint_paths() if (checkpoint / FILE).is_file()]
    if not kept:
        return None
    layer = read_json_object(run.config_path)["align_layer"]
    seen = Seen.by_student(output, layer)
    statistics = TokenStatistics.load(kept[0], seen.embeds.device)
    return statistics.weigh_by_place(statistics.standardise(seen.places))


def main(argv: list[str]) -> None:
    """Parse, run the encoder, draw."""
    arguments = parse(argv)

    from sf_llava.files import make_directory, write_bytes

    folder = make_directory(arguments.output)

    import torch

    from sf_llava import visualize
    from sf_llava.data.transforms import Preprocessing
    from sf_llava.devices import choose_device
    from sf_llava.measure.setup import teacher_of
    from sf_llava.model.loading import is_v1, load_encoder, load_v1
    from sf_llava.teachers import load_teacher
    from sf_llava.teachers.attention import cls_attention, pooling_attention

    path, teacher_name = arguments.encoder, arguments.teacher
    if path is None:
        path, remark = default_encoder()
        teacher_name = teacher_name or "mini"
        if remark:
            print(remark)
    device = choose_device(arguments.device)
    encoder = (load_v1 if is_v1(path) else load_encoder)(path, device=device)
    config = encoder.config
    preprocessing = Preprocessing(
        config.image_size, config.image_mean, config.image_std, resize_mode=config.resize_mode
    )
    views = [preprocessing.fit(picture) for picture in open_pictures(arguments)]
    pixel_values = torch.stack([preprocessing.normalise(view) for view in views]).to(device)
    with torch.no_grad():
        output, student_attention = look(encoder, pixel_values)
        teacher_attention = None
        if teacher_name := teacher_name or teacher_of(path):
            teacher = load_teacher(teacher_name, device=device)
            seen = torch.stack([teacher.preprocessing(view) for view in views]).to(device)
            last = teacher.num_hidden_layers - 1
            shape = teacher.num_attention_heads, teacher.layer_norm_eps
            if teacher.use_cls:
                teacher_attention = cls_attention(teacher.tokens(seen, last), teacher.block_state_dict(last), *shape)
            else:
                teacher_attention = pooling_attention(teacher.tokens(seen, -1), teacher.head_state_dict(), *shape)
            side = teacher.image_size // teacher.patch_size
            teacher_attention = teacher_attention.unflatten(-1, (side, side))
    sheets = {
        "focus": visualize.focus_sheet(views, output.rois, output.sampling_points),
        "iterations": visualize.iteration_sheet(views, output.rois),
        "heat": visualize.heat_sheet(views, output.sampling_points, student_attention, teacher_attention),
    }
    if (weights := read_places(path, output)) is not None:
        sheets["places"] = visualize.places_sheet(views, output.rois, weights)
    for name, picture in sheets.items():
        buffer = io.BytesIO()
        picture.save(buffer, "PNG")
        write_bytes(folder / f"{name}.png", buffer.getvalue())
        print(folder / f"{name}.png")
    print(describe_movement(output.rois))
