"""``mini``, ``mini:diagrams``, ``mini:both``: pictures of the drawn world; its test split for evaluation."""

from sf_llava.data.images import ImageSource, LabelledImages

DOMAINS = {"": "scene", "diagrams": "diagram", "both": "both"}


def open_images(where: str) -> ImageSource:
    """Draw training pictures of the named part of the world."""
    from sf_llava.mini.world.scenes import MiniImages

    return MiniImages(_domain(where))


def open_labelled(where: str) -> LabelledImages:
    """Draw test pictures of one shape each, with their classes."""
    from sf_llava.mini.world.scenes import MiniLabelledImages

    images = MiniLabelledImages(_domain(where))
    return LabelledImages(images, images.labels, images.class_names)


def _domain(where: str) -> str:
    if where not in DOMAINS:
        raise ValueError(f"unknown data set 'mini:{where}': expected mini, mini:diagrams or mini:both")
    return DOMAINS[where]
