"""ImageNet as the teachers' libraries know it: open_clip's names and prompts, timm's synset ids."""

from importlib import resources

from sf_llava.extras import require


def imagenet_prompts() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Give OpenAI's 1,000 names, in the order of the sorted synset ids, and its 80 templates, each with one ``{}``."""
    require("naming ImageNet's classes", "open_clip")
    from open_clip import IMAGENET_CLASSNAMES, OPENAI_IMAGENET_TEMPLATES

    return tuple(IMAGENET_CLASSNAMES), tuple(template("{}") for template in OPENAI_IMAGENET_TEMPLATES)


def synset_ids(num_classes: int) -> tuple[str, ...]:
    """List the synset ids behind a classifier of ImageNet-1K or one of its larger versions; empty for other sizes."""
    require("telling ImageNet's classes by their ids", "timm")
    from timm.data import ImageNetInfo, infer_imagenet_subset

    subset = infer_imagenet_subset({"num_classes": num_classes})
    return tuple(ImageNetInfo(subset).label_names()) if subset else ()


def part_ids(name: str) -> tuple[str, ...]:
    """List the 200 synset ids of ``imagenet-a`` or ``imagenet-r``."""
    found = resources.files("timm.data").joinpath(f"_info/{name.replace('-', '_')}_synsets.txt")
    return tuple(found.read_text().split())
