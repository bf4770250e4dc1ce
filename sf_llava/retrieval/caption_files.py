"""Captions in JSON files: Karpathy's splits of COCO and Flickr30k, and COCO's own caption annotations."""

import os
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sf_llava import files
from sf_llava.data.folder import FolderImages
from sf_llava.data.images import PackedStrings
from sf_llava.retrieval.pairs import CAPTIONS_AN_IMAGE, CaptionedImages, check_unique, gather

SPLIT = "test"
KARPATHY_TEST_IMAGES = {"coco": 5000, "flickr30k": 1000}


def open_json(path: str, folders: Sequence[str] = ()) -> CaptionedImages:
    """Open a caption file of either kind, told apart by its content; the images are files in ``folders``.

    Raises:
        ValueError: no such file, a JSON of another kind, ids that occur twice, missing images.
    """
    path = os.path.expanduser(path)
    if not os.path.lexists(path):
        raise ValueError(f"no caption file {path!r}")
    content = files.read_json(path)
    images = content.get("images") if isinstance(content, dict) else None
    if not isinstance(images, list) or not images or not all(isinstance(image, dict) for image in images):
        raise _wrong_kind(path, "it has no list of images")
    notes: list[str] = []
    left_out: dict[str, list[str]] = {}
    if all("sentences" in image for image in images):
        items = _read_karpathy(path, content, notes)
    else:
        items = _read_coco(path, content, left_out)
    items = [(identity, names[0], names, texts) for identity, names, texts in items]
    kept, captions, image_of = gather(path, [(i, name, texts) for i, name, _, texts in items], left_out)
    source = _find_images(path, [items[index][2] for index in kept], folders)
    return CaptionedImages(path, source, captions, image_of, notes, left_out)


def _read_karpathy(path: str, content: dict, notes: list[str]) -> list[tuple]:
    """(id, file names to try, captions) of the test images."""
    kind = str(content.get("dataset", "data set"))
    images = [image for image in content["images"] if image.get("split") == SPLIT]
    if not images:
        splits = sorted({str(image.get("split")) for image in content["images"]})
        raise ValueError(f"{path} has no image of the split {SPLIT!r}; its splits: {', '.join(splits)}")
    expected = KARPATHY_TEST_IMAGES.get(kind)
    if expected not in (None, len(images)):
        notes.append(f"the {SPLIT} split of {path} has {len(images):,} images; Karpathy's of {kind} has {expected:,}")
    found = []
    sentences: Counter = Counter()
    for number, image in enumerate(images):
        name = _file_name(image, "filename", path, number)
        names = [f"{image['filepath']}/{name}", name] if image.get("filepath") else [name]
        own = image["sentences"]
        if not isinstance(own, list) or not all(isinstance(sentence, dict) for sentence in own):
            raise _wrong_kind(path, f"the sentences of its entry {number} are no list of objects with 'raw'")
        sentences.update(_id(sentence, "sentid", path, number) for sentence in own if "sentid" in sentence)
        identity = _id(image, "imgid", path, number) if "imgid" in image else name
        found.append((identity, names, [sentence.get("raw") for sentence in own]))
    check_unique(path, "sentence", sentences)
    if expected and (fewer := [names[0] for _, names, texts in found if len(texts) < CAPTIONS_AN_IMAGE]):
        notes.append(
            f"{len(fewer):,} images of the {SPLIT} split of {path} have fewer than Karpathy's {CAPTIONS_AN_IMAGE} "
            f"captions, the first: {fewer[0]}"
        )
    return found


def _read_coco(path: str, content: dict, left_out: dict[str, list[str]]) -> list[tuple]:
    """(id, file names to try, captions) of all images, captions in the order of their ids."""
    annotations = content.get("annotations")
    if not isinstance(annotations, list) or not annotations:
        raise _wrong_kind(path, "its images have no sentences, and there are no annotations")
    if not all(isinstance(annotation, dict) for annotation in annotations):
        raise _wrong_kind(path, "its annotations are no objects")
    if "caption" not in annotations[0]:
        raise _wrong_kind(path, f"its annotations hold {', '.join(sorted(annotations[0]))}, but no caption")
    texts = defaultdict(list)
    for number, annotation in enumerate(annotations):
        image = _id(annotation, "image_id", path, number)
        own = _id(annotation, "id", path, number) if "id" in annotation else number
        texts[image].append((own, annotation.get("caption")))
    check_unique(path, "caption", Counter(identity for pairs in texts.values() for identity, _ in pairs))
    found = []
    for number, image in enumerate(content["images"]):
        identity = _id(image, "id", path, number)
        names = [_file_name(image, "file_name", path, number)]
        found.append((identity, names, [text for _, text in sorted(texts[identity], key=lambda pair: _order(pair[0]))]))
    strays = texts.keys() - {identity for identity, _, _ in found}
    if strays:
        orphans = [f"caption {i} (image {image})" for image in sorted(strays, key=_order) for i, _ in texts[image]]
        left_out["captions whose image is not in the file are left out"] = orphans
    return found


def _find_images(path: str, names: list[list[str]], folders: Sequence[str]) -> FolderImages:
    """Find every image file; the first folder that has one of an image's names wins."""
    roots = [Path(folder).expanduser() for folder in folders] or _nearby(Path(path))
    for root in roots:
        if not root.is_dir():
            raise ValueError(f"{str(root)!r} is no folder of images")
    found = [
        next((file for name in own for root in roots if os.path.isfile(file := root / name)), None) for own in names
    ]
    missing = [own[0] for own, file in zip(names, found, strict=True) if file is None]
    if missing:
        looked = ", ".join(str(root) for root in roots[:4]) + (" ..." if len(roots) > 4 else "")
        raise ValueError(
            f"{len(missing):,} of {len(names):,} images of {path} are missing ({', '.join(missing[:3])}"
            f"{' ...' if len(missing) > 3 else ''}); looked in {looked}. Name the folders that hold them with `images`"
        )
    paths = [os.path.abspath(file) for file in found if file is not None]
    top = os.path.commonpath([os.path.dirname(file) for file in paths])
    return FolderImages(Path(top), PackedStrings(os.path.relpath(file, top) for file in paths))


def _nearby(path: Path) -> list[Path]:
    """The file's own folder (and the one above ``annotations``), and the folders in them."""
    here = path.expanduser().absolute().parent
    bases = [here, here.parent] if here.name == "annotations" else [here]
    return [*bases, *(folder for base in bases for folder in sorted(base.iterdir()) if folder.is_dir())]


def _field(entry: Any, key: str, path: str, number: int) -> Any:
    if not isinstance(entry, dict) or key not in entry:
        raise _wrong_kind(path, f"its entry {number} has no {key!r}")
    return entry[key]


def _id(entry: Any, key: str, path: str, number: int) -> int | str:
    value = _field(entry, key, path, number)
    if not isinstance(value, int | str) or isinstance(value, bool):
        raise _wrong_kind(path, f"the {key!r} of its entry {number} is {value!r}, no whole number or text")
    return value


def _file_name(entry: Any, key: str, path: str, number: int) -> str:
    value = _field(entry, key, path, number)
    if not isinstance(value, str) or not value.strip() or "\0" in value:
        raise _wrong_kind(path, f"the {key!r} of its entry {number} is {value!r}, no file name")
    return value


def _order(identity: int | str) -> tuple[bool, int | str]:
    """Numbers by size, then texts."""
    return isinstance(identity, str), identity


def _wrong_kind(path: str, reason: str) -> ValueError:
    return ValueError(
        f"{path} is no caption file ({reason}): expected Karpathy's dataset_*.json (images with split, filename, "
        "sentences) or COCO's captions_*.json (images with id, file_name; annotations with image_id, caption)"
    )
