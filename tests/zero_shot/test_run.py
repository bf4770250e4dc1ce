"""The evaluation agrees with the plain computation, image by image, and matches classes correctly."""

import json
from dataclasses import replace

import pytest
import timm
import torch
import torch.nn.functional as F

from sf_llava.bootstrap.inherit import inherit, student_config
from sf_llava.commands.zero_shot import main
from sf_llava.data import LabelledImages, open_labelled
from sf_llava.measure.encoders import student_candidate, teacher_candidate
from sf_llava.measure.store import EmbeddingStore
from sf_llava.measure.tuned import TunedTeacher
from sf_llava.model import SparseFormerModel
from sf_llava.teachers import load_teacher
from sf_llava.zero_shot.class_names import ClassSet, class_set
from sf_llava.zero_shot.run import evaluate_zero_shot
from sf_llava.zero_shot.task import find_class_set, match_labels, zero_shot_task


def labelled(*names: str, labels: tuple[int, ...] | None = None) -> LabelledImages:
    labels = labels or tuple(range(len(names)))
    return LabelledImages([None] * len(labels), list(labels), list(names))


@pytest.fixture
def result(clip_teacher, student, folder):
    task = zero_shot_task(clip_teacher, open_labelled(f"folder:{folder}"))
    return evaluate_zero_shot(
        task, [teacher_candidate(clip_teacher), student_candidate(student, clip_teacher)], batch_size=5
    )


def test_scores_agree_with_the_plain_computation(result, clip_teacher, student, folder):
    images = open_labelled(f"folder:{folder}")
    names, prompts = ["cat", "dog", "red ship"], ["a photo of a {}", "the {}"]
    rows = [F.normalize(clip_teacher.encode_text([p.replace("{}", n) for p in prompts]), dim=-1).mean(0) for n in names]
    correct = {"teacher": [], "student": []}
    cosines = []
    for index in range(len(images)):
        try:
            pixels = clip_teacher.preprocessing(images.load(index))[None]
        except ValueError:
            continue
        with torch.no_grad():
            embeds = {"teacher": clip_teacher(pixels)[0], "student": student(pixels).image_embeds[0]}
        for name, embed in embeds.items():
            similarity = [F.cosine_similarity(embed, row, dim=0).item() for row in rows]
            correct[name].append(max(range(3), key=similarity.__getitem__) == images.labels[index])
        cosines.append(F.cosine_similarity(embeds["teacher"], embeds["student"], dim=0).item())
    values = result.to_dict()
    assert values["num_images"] == 13 and values["num_corrupt"] == 1 and "06.png" in values["corrupt"][0]
    for score in values["encoders"]:
        assert score["top1"] == pytest.approx(sum(correct[score["name"]]) / 13)
        assert score["top5"] is None  # of three classes
    comparison = values["comparisons"][0]
    assert comparison["cosine"] == pytest.approx(sum(cosines) / 13, abs=1e-5)
    both = sum(t and s for t, s in zip(correct["teacher"], correct["student"], strict=True))
    assert comparison["both_right"] == both
    counts = [comparison[k] for k in ("both_right", "only_encoder_right", "only_reference_right", "neither_right")]
    assert sum(counts) == 13
    assert sum(entry["images"] for entry in values["per_class"]) == 13


def test_a_result_is_json_and_a_table(result):
    values = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert [score["num_tokens"] for score in values["encoders"]] == [64, 4]
    assert values["templates"] == ["a photo of a {}", "the {}"] and values["labels_matched_by"] == "id"
    header, rows = result.table()
    assert [row[0] for row in rows] == ["teacher", "student"] and all(len(row) == len(header) for row in rows)
    assert all(score["images_per_second"] > 0 for score in values["encoders"])


def test_batches_workers_and_progress_do_not_change_scores(result, clip_teacher, student, folder):
    done = []
    task = zero_shot_task(clip_teacher, open_labelled(f"folder:{folder}"))
    encoders = [teacher_candidate(clip_teacher), student_candidate(student, clip_teacher)]
    other = evaluate_zero_shot(task, encoders, batch_size=3, workers=2, advance=done.append)
    assert sum(done) == 14
    for first, second in zip(result.scores, other.scores, strict=True):
        assert torch.equal(first.ranks, second.ranks)
        torch.testing.assert_close(first.cosines, second.cosines)


def test_a_student_of_another_size_reads_its_own_pixels(clip_teacher, folder):
    torch.manual_seed(2)
    student = SparseFormerModel(student_config(clip_teacher, num_latents=4, image_size=96)).eval()
    encoder = student_candidate(student, clip_teacher)
    assert encoder.preprocessing == replace(clip_teacher.preprocessing, image_size=96)
    task = zero_shot_task(clip_teacher, open_labelled(f"folder:{folder}"), limit=4)
    assert len(evaluate_zero_shot(task, [teacher_candidate(clip_teacher), encoder]).labels) <= 4


def test_a_student_of_another_teacher_is_refused(clip_teacher):
    config = student_config(clip_teacher, num_latents=4)
    config.projection_dim = 16
    with pytest.raises(ValueError, match=r"embeds into 16 numbers .* into 24 .*another teacher"):
        student_candidate(SparseFormerModel(config), clip_teacher)


def test_a_limit_draws_the_same_images_again(clip_teacher, folder):
    images = open_labelled(f"folder:{folder}")
    first, again = (zero_shot_task(clip_teacher, images, limit=5, seed=3).indices for _ in range(2))
    assert first == again == sorted(first) and len(first) == 5
    assert zero_shot_task(clip_teacher, images, limit=5, seed=4).indices != first
    assert len(zero_shot_task(clip_teacher, images, limit=99).indices) == 14
    with pytest.raises(ValueError, match="at least 1 image"):
        zero_shot_task(clip_teacher, images, limit=0)


def test_all_images_corrupt_is_an_error_that_names_one(clip_teacher, tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.jpg").write_bytes(b"no picture")
    task = zero_shot_task(clip_teacher, open_labelled(f"folder:{tmp_path}"))
    with pytest.raises(ValueError, match=r"none of the 2 images can be read; the first: cat/x.jpg"):
        evaluate_zero_shot(task, [teacher_candidate(clip_teacher)])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_evaluates(clip_dir, folder, dtype):
    teacher = load_teacher(str(clip_dir), dtype=dtype)
    task = zero_shot_task(teacher, open_labelled(f"folder:{folder}"))
    assert task.classifier.dtype == torch.float32
    assert 0 <= evaluate_zero_shot(task, [teacher_candidate(teacher)]).scores[0].top(1) <= 1


def test_a_classification_teacher_scores_by_its_own_classifier(tmp_path, folder):
    vit = timm.create_model("vit_tiny_patch16_224", num_classes=3, depth=3)
    torch.nn.init.normal_(vit.head.weight)
    torch.save(vit.state_dict(), tmp_path / "vit.pt")
    timm.models.register_model(_vit_of_three_blocks)
    teacher = load_teacher(f"timm:_vit_of_three_blocks/{tmp_path / 'vit.pt'}")
    torch.manual_seed(3)
    student = SparseFormerModel(student_config(teacher, num_latents=4)).eval()
    inherit(student, teacher)
    images = open_labelled(f"folder:{folder}")
    task = zero_shot_task(teacher, images)
    assert task.classifier is None and task.class_names == ["cat", "dog", "red_ship"]
    result = evaluate_zero_shot(task, [teacher_candidate(teacher), student_candidate(student, teacher)])
    pixels = torch.stack([teacher.preprocessing(images.load(index)) for index in (0, 1)])
    assert result.scores[0].predictions[:2].tolist() == vit.eval()(pixels).argmax(-1).tolist()
    assert result.scores[1].predictions[:2].tolist() == student(pixels).logits.argmax(-1).tolist()
    with pytest.raises(ValueError, match="brings its own classifier"):
        zero_shot_task(teacher, images, classes="imagenet")


def _vit_of_three_blocks(pretrained=False, **options):
    return timm.create_model("vit_tiny_patch16_224", depth=3, num_classes=options["num_classes"])


def test_imagenet_folders_are_matched_by_synset_also_in_part():
    images = labelled("n01443537", "n01440764", labels=(0, 1, 1))
    found = find_class_set(images)
    assert found.name == "imagenet"
    labels, by = match_labels(images, found)
    assert labels == [1, 0, 0] and by == "id"


def test_imagenets_known_parts_are_scored_among_their_own_classes():
    for name in ("imagenet-a", "imagenet-r"):
        assert find_class_set(labelled(*class_set(name).ids)).name == name
    assert find_class_set(labelled(*class_set("imagenet-a").ids[:-1])).name == "imagenet"


def test_numbered_classes_are_matched_by_number_whatever_their_order():
    classes = ClassSet("letters", tuple("abcdefghijkl"), ("a {}",))
    folders = sorted(map(str, range(12)))  # 0, 1, 10, 11, 2 ... as ImageNet-V2's lie on disk
    assert match_labels(labelled(*folders), classes) == ([0, 1, 10, 11, 2, 3, 4, 5, 6, 7, 8, 9], "number")
    assert match_labels(labelled("7", "03"), classes) == ([7, 3], "number")
    with pytest.raises(ValueError, match=r"numbers its classes up to 12, but letters has 12 classes, numbered from 0"):
        match_labels(labelled("1", "12"), classes)


def test_the_text_classifier_is_kept_by_content(clip_teacher, folder, tmp_path, monkeypatch):
    images, store = open_labelled(f"folder:{folder}"), EmbeddingStore(tmp_path)
    first = zero_shot_task(clip_teacher, images, store=store).classifier
    assert torch.equal(first, zero_shot_task(clip_teacher, images).classifier)
    other = zero_shot_task(clip_teacher, images, templates="the {}", store=store).classifier
    assert not torch.equal(first, other) and len(list(tmp_path.iterdir())) == 2
    monkeypatch.setattr(type(clip_teacher), "encode_text", None)
    assert torch.equal(first, zero_shot_task(clip_teacher, images, store=store).classifier)
    assert torch.equal(other, zero_shot_task(clip_teacher, images, templates="the {}", store=store).classifier)


def test_classes_are_recognised_or_taken_as_they_are():
    assert find_class_set(labelled(*class_set("cifar10").class_names)).name == "cifar10"
    assert find_class_set(labelled(*class_set("mini").class_names)).name == "mini"
    assert find_class_set(labelled("grey_whale", "cat")).class_names == ("grey whale", "cat")
    with pytest.raises(ValueError, match=r"numbers its 3 classes but does not name them"):
        find_class_set(labelled("0", "1", "2"))


def test_classes_of_one_name_keep_their_images():
    names = class_set("imagenet").class_names
    assert len(names) - len(set(names)) == 2  # missile and sunglasses, each twice
    images = labelled(*names, labels=range(1000))
    assert match_labels(images, find_class_set(images)) == (list(range(1000)), "name")
    crane = ClassSet("birds", ("crane", "dog", "crane"), ("a {}",))
    assert match_labels(labelled("dog", "crane", "crane", labels=(0, 1, 2)), crane) == ([1, 0, 2], "name")
    assert match_labels(labelled("crane", "dog"), crane) == ([0, 1], "name")  # of equal prompts the first one wins
    own = labelled("red_fox", "cat", "red fox", labels=(0, 1, 2))
    assert match_labels(own, find_class_set(own)) == ([0, 1, 2], "id")
    with pytest.raises(ValueError, match=r"their names do not tell which is which: crane. Name them alike"):
        match_labels(labelled("crane", "crane", "crane"), crane)


def test_what_equal_names_and_an_order_mean_is_said(clip_teacher, tmp_path):
    file = tmp_path / "classes.json"
    file.write_text('["cat", "dog", "cat"]')
    images = labelled("cat", "dog", "cat", labels=(0, 1, 2, 2))
    (note,) = zero_shot_task(clip_teacher, images, classes=str(file)).description["notes"]
    assert note.startswith("1 names stand for several classes each (cat)") and "so that 2 images of the others" in note
    file.write_text('["cat", "dog"]')
    (note,) = zero_shot_task(clip_teacher, labelled("Kater", "Hund"), classes=str(file)).description["notes"]
    assert note == "the data set's class names are others: labels were matched by their order"
    assert zero_shot_task(clip_teacher, labelled("dog", "cat"), classes=str(file)).description["notes"] == []


def test_names_that_match_in_part_are_refused_not_read_by_order():
    classes = ClassSet("animals", ("dog", "cat", "grey whale"), ("a {}",))
    assert match_labels(labelled("Cat", "Grey_Whale", "dog", labels=(0, 1, 2)), classes) == ([1, 2, 0], "name")
    for names in (("cat", "whale", "dog"), ("Cat", "a", "b")):
        with pytest.raises(ValueError, match=r"has 3 classes, animals has 3, and not all are found there by name: \w+"):
            match_labels(labelled(*names), classes)
    spelt = ClassSet("places", ("turkey", "Turkey", "cat"), ("a {}",))
    assert match_labels(labelled("Turkey", "cat"), spelt) == ([1, 2], "name")
    with pytest.raises(ValueError, match="their names do not tell which is which: TURKEY, Cat"):
        match_labels(labelled("TURKEY", "Cat"), spelt)


def test_without_images_there_is_a_sentence(clip_teacher, student):
    nothing = LabelledImages([], [], ["cat", "dog"])
    with pytest.raises(ValueError, match="the data set has no images to evaluate on"):
        zero_shot_task(clip_teacher, nothing)
    task = zero_shot_task(clip_teacher, labelled("cat", "dog"))
    encoders = [teacher_candidate(clip_teacher)]
    with pytest.raises(ValueError, match="the data set has no images to evaluate on"):
        evaluate_zero_shot(replace(task, indices=[], labels=[]), encoders)
    for sizes in ({"batch_size": 0}, {"batch_size": -3}, {"workers": -1}):
        with pytest.raises(ValueError, match="expected batches of at least 1 image and 0 or more workers"):
            evaluate_zero_shot(task, encoders, **sizes)


def test_labels_are_matched_by_name_then_by_position_or_not_at_all():
    classes = ClassSet("animals", ("dog", "cat"), ("a {}",))
    assert match_labels(labelled("cat", "dog"), classes) == ([1, 0], "name")
    assert match_labels(labelled("kitten", "puppy"), classes) == ([0, 1], "position")
    assert match_labels(labelled("cat"), classes) == ([1], "name")
    with pytest.raises(ValueError, match=r"has 3 classes, animals has 2, .*: cow, pig"):
        match_labels(labelled("cow", "pig", "cat"), classes)


def test_a_teacher_with_fewer_tokens_is_a_row_with_its_cost_and_a_plot(clip_dir, folder, tmp_path, capsys):
    arguments = ["--teacher", str(clip_dir), "--data", f"folder:{folder}", "--output", str(tmp_path / "out")]
    arguments += ["--cache", str(tmp_path), "--device", "cpu", "--workers", "0"]
    TunedTeacher(load_teacher(str(clip_dir)), "tome:9").save_pretrained(tmp_path / "tuned")
    arguments += ["--reduced", "tome:9", "diffrate:9"]
    main([*arguments, "--encoder", str(tmp_path / "tuned"), "--speed", "1", "2"])
    rows = json.loads((tmp_path / "out" / "results.json").read_text())["encoders"]
    assert [(row["kind"], row["num_tokens"]) for row in rows] == [
        ("teacher", 64), ("tome, tuned", 37), ("tome", 37), ("diffrate", 37)
    ]  # fmt: skip
    assert rows[1]["multiply_adds"] == rows[2]["multiply_adds"] < rows[0]["multiply_adds"]
    assert rows[1]["top1"] == rows[2]["top1"]  # not trained yet
    assert all(row["speed"][size]["images_per_second"] > 0 for row in rows for size in ("1", "2"))
    assert "images/s of the forward pass, in turn" in capsys.readouterr().out
    assert (tmp_path / "out" / "results.png").stat().st_size > 1000
    for wrong in ("tome", "tome:0", "tome:-1", "merge:3"):
        with pytest.raises(ValueError, match=f"unknown reduction '{wrong}'; expected tome:R or diffrate:R"):
            main([*arguments, "--reduced", wrong])
