"""Class sets: counts and order of the built-in ones, files, and what an unknown name is answered."""

import json

import pytest
from open_clip import OPENAI_IMAGENET_TEMPLATES

from sf_llava.zero_shot.class_names import CLASS_SETS, class_set, synset_ids, templates_named


def test_imagenet_has_1000_names_in_synset_order_and_openais_80_templates(imagenet_sample):
    classes = class_set("imagenet")
    assert (len(classes.class_names), len(classes.templates), len(classes.ids)) == (1000, 80, 1000)
    assert classes.ids == tuple(sorted(classes.ids))
    # The sample names every file after its class: n12998815/n12998815_agaric.jpg.
    words = {path.parent.name: path.stem.partition("_")[2] for path in imagenet_sample.glob("*/*.jpg")}
    assert set(words) == set(classes.ids)
    named = dict(zip(classes.ids, classes.class_names, strict=True))
    same = [words[key].replace("_", " ").lower() in named[key].lower() for key in words]
    assert sum(same) > 700  # the curated names differ from WordNet's in the rest
    assert named["n01440764"] == "tench" and named["n12998815"] == "agaric"


@pytest.mark.parametrize("name", ["imagenet-a", "imagenet-r"])
def test_the_parts_of_imagenet_name_200_of_its_classes(name):
    part, whole = class_set(name), class_set("imagenet")
    assert len(set(part.ids)) == len(part.class_names) == 200 and part.ids == tuple(sorted(part.ids))
    assert all(whole.class_names[whole.ids.index(i)] == n for i, n in zip(part.ids, part.class_names, strict=True))
    known = {"imagenet-a": ("n02233338", "cockroach"), "imagenet-r": ("n01443537", "goldfish")}[name]
    assert known in set(zip(part.ids, part.class_names, strict=True))


def test_imagenet_templates_are_open_clips_with_a_place_for_the_name():
    texts = [template.replace("{}", "tench") for template in class_set("imagenet").templates]
    assert texts == [template("tench") for template in OPENAI_IMAGENET_TEMPLATES]


def test_cifar10_and_mini():
    assert (len(class_set("cifar10").class_names), len(set(class_set("cifar10").templates))) == (10, 18)
    assert len(class_set("mini").class_names) == 64
    for name in CLASS_SETS:
        assert all(template.count("{}") == 1 for template in class_set(name).templates)


def test_classes_and_templates_from_files(tmp_path):
    file = tmp_path / "classes.json"
    file.write_text(json.dumps(["cat", "dog"]))
    assert class_set(str(file)).class_names == ("cat", "dog")
    assert templates_named(str(file)) == ("cat", "dog")  # a list of texts is a list of texts
    file.write_text(json.dumps({"class_names": ["cat"], "templates": ["one {}"]}))
    assert class_set(str(file)).templates == ("one {}",)
    file.write_bytes(b"\xef\xbb\xbf" + json.dumps([" cat", "dog \r"]).encode() + b"\r\n")
    assert class_set(str(file)).class_names == ("cat", "dog")
    for blank in (["cat", ""], ["cat", " \t"]):
        file.write_text(json.dumps(blank))
        with pytest.raises(ValueError, match=r"class 1 of 2 in .* has a blank name"):
            class_set(str(file))
    misspelt = {"class_names": ["cat"], "template": ["one {}"]}
    for broken in ({"names": ["cat"]}, {"class_names": [1]}, [], None, 3, "cat", True, [["cat"]], {}, misspelt):
        file.write_text(json.dumps(broken))
        with pytest.raises(ValueError, match="must hold a list of class names"):
            class_set(str(file))


@pytest.mark.parametrize("text", ["cat\ndog\n", "[" * 100_000, "9" * 5000, "", "\xe9"])
def test_a_file_that_is_no_json_is_named(tmp_path, text):
    (tmp_path / "classes.json").write_text(text, encoding="latin-1")
    for read in (class_set, templates_named):
        with pytest.raises(ValueError, match=r"classes\.json (is not valid JSON|is no text|must hold)"):
            read(str(tmp_path / "classes.json"))


def test_imagenettes_synsets_are_those_of_its_names():
    whole, part = class_set("imagenet"), class_set("imagenette")
    name_of = dict(zip(whole.ids, whole.class_names, strict=True))
    assert len(part.ids) == 10 and list(part.ids) == sorted(part.ids)
    for synset, name in zip(part.ids, part.class_names, strict=True):
        assert name_of[synset].lower().replace(" ", "").startswith(name.lower().replace(" ", ""))


def test_templates_by_name_and_literally():
    assert len(templates_named("imagenet")) == 80 and templates_named("simple") == ("a photo of a {}.",)
    assert templates_named("my {} here") == ("my {} here",)


def test_unknown_names_list_what_is_valid():
    known = "mini, cifar10, imagenet, imagenet-a, imagenet-r, imagenette"
    with pytest.raises(ValueError, match=f"unknown classes 'imagnet'; expected {known} or a JSON file"):
        class_set("imagnet")
    with pytest.raises(ValueError, match=f"unknown templates 'imagnet'; expected {known}, simple"):
        templates_named("imagnet")


def test_synset_ids_are_known_for_imagenets_sizes_only():
    assert len(synset_ids(21843)) == 21843 and synset_ids(10) == ()
