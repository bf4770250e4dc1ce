"""ScienceQA scoring on hand-made answers: every rule, every group."""

from dataclasses import dataclass

import pytest

from sf_llava.scienceqa.scoring import FAILED, compare, image_share, mcnemar, parse_answer, score


@dataclass
class Item:
    id: str
    answer: int = 0
    choices: tuple = ("x", "y", "z")
    subject: str = "natural science"
    grade: int = 3
    hint: str = ""
    has_image: bool = False


@pytest.mark.parametrize(
    ("text", "index"),
    [
        ("B", 1),
        ("E", FAILED),  # beyond the three choices
        ("b", FAILED),
        ("", FAILED),
        ("AB", FAILED),
        ("C. because", 2),
        ("C.", FAILED),
        ("C.because The answer is A.", 0),
        ("D. The answer is A.", FAILED),  # it starts with D., so the statement is not read
        ("Long text.\nThe answer is B.", 1),
        ("The answer is B", FAILED),  # no character after the letter
        ("The answer is B, and the answer is B.", 1),
        ("The answer is A. The answer is A.", FAILED),
        ("The answer is Z.", FAILED),
        ("The answer is A!", 0),  # LLaVA's pattern takes any character
        (" A", FAILED),
    ],
)
def test_an_answer_is_read_by_llavas_rules(text, index):
    assert parse_answer(text, 3) == index


def test_letters_beyond_e_are_read_where_there_are_so_many_choices():
    texts = ("F", "F. because", "The answer is F.", "G")
    assert [parse_answer(text, 6) for text in texts] == [5, 5, 5, FAILED]
    assert [parse_answer(text, 5) for text in texts] == [FAILED] * 4
    assert parse_answer("F. The answer is A.", 5) == 0 != parse_answer("F. The answer is A.", 6)


def test_predictions_for_other_questions_are_counted():
    assert score([Item("1")], {"1": "A", "2": "A", "3": "B"})["unknown"] == 2


def test_missing_and_unparsed_answers_are_wrong_and_counted_and_modality_is_the_datas():
    questions = [
        Item("1", 0, has_image=True),
        Item("2", 1, has_image=True),
        Item("3", 2, hint="read this", subject="social science", grade=9),
        Item("4", 1, subject="language science", grade=12),
    ]
    result = score(questions, {"1": "A", "3": "no idea", "4": "The answer is B.", "99": "A"})
    assert (result["total"], result["correct"], result["accuracy"]) == (4, 2, 0.5)
    assert (result["image_total"], result["image_correct"], result["image_accuracy"]) == (2, 1, 0.5)
    assert (result["unparsed"], result["missing"]) == (1, 1)
    assert result["interval"][0] < 0.5 < result["interval"][1]
    groups = {name: (group["correct"], group["total"]) for name, group in result["breakdown"].items()}
    expected = {"NAT": (1, 2), "SOC": (0, 1), "LAN": (1, 1), "TXT": (0, 1), "IMG": (1, 2), "NO": (1, 1)}
    assert groups == expected | {"G1-6": (1, 2), "G7-12": (1, 2)}
    assert result["answers"]["2"] == {"predicted": None, "correct": False, "image": True}


def test_predictions_of_another_split_are_refused():
    with pytest.raises(ValueError, match=r"none of the 1 predictions answers one of the 1 questions \(ids like 7"):
        score([Item("1")], {"7": "A"})


def test_a_group_without_questions_has_no_accuracy():
    result = score([Item("1")], {"1": "A"})
    assert result["image_accuracy"] is None and result["image_interval"] is None
    assert result["breakdown"]["SOC"] == {"accuracy": None, "correct": 0, "total": 0}


def test_comparison_counts_discordant_answers():
    questions = [Item(str(number), has_image=number < 4) for number in range(10)]
    first = score(questions, {str(number): "A" for number in range(9)} | {"9": "B"})
    second = score(questions, {str(number): "A" if number in (0, 9) else "B" for number in range(10)})
    result = compare(first, second)
    assert result["all"]["only_first_correct"] == 8 and result["all"]["only_second_correct"] == 1
    assert result["all"]["difference"] == pytest.approx(0.7)
    assert result["all"]["mcnemar_p"] == pytest.approx(2 * (1 + 9) / 2**9)
    assert result["image"]["total"] == 4 and result["image"]["difference"] == pytest.approx(0.75)
    with pytest.raises(ValueError, match="different questions"):
        compare(first, score(questions[:5], {"0": "A"}))


def test_what_neither_was_asked_does_not_dilute_a_comparison():
    questions = [Item(str(number)) for number in range(10)]
    first = score(questions, {"0": "A", "1": "A", "2": "B"})
    second = score(questions, {"0": "A", "1": "B", "3": "B"})
    result = compare(first, second)["all"]
    assert result["total"] == 4 and result["difference"] == pytest.approx(0.25)
    assert result["first_accuracy"] == 0.5 and result["second_accuracy"] == 0.25


def test_mcnemar_is_one_where_nothing_differs():
    assert mcnemar(0, 0) == mcnemar(5, 5) == 1.0
    assert mcnemar(0, 10) == mcnemar(10, 0) == pytest.approx(2 / 1024)


def test_image_share_is_what_is_lost_without_it():
    assert image_share(0.8, 0.6) == pytest.approx(0.25)
    assert image_share(0.0, 0.0) is None
