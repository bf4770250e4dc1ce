"""Records of questions: every usual form of choices and answers is read as it is meant, or refused."""

import math

import pytest

from sf_llava.scienceqa.problems import ask, explain, read_problem

GOOD = {"question": "what ?", "choices": ["cat", "dog", "mat"], "answer": 2}


def read(**changes):
    return read_problem("7", GOOD | changes, False, "table")


@pytest.mark.parametrize(
    "choices",
    [
        '["cat", "dog", "mat"]',
        "['cat', 'dog', 'mat']",
        "('cat', 'dog', 'mat')",
        ' ["cat",\n "dog", "mat"] ',
        ("cat", "dog", "mat"),
    ],
)
def test_choices_are_the_list_that_they_say(choices):
    assert read(choices=choices).choices == ("cat", "dog", "mat")


def test_numbers_are_choices_too():
    assert read(choices=[1, 2.5, True]).choices == ("1", "2.5", "True")
    assert read(choices="[1, 2, 3]").choices == ("1", "2", "3")


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ("cat, dog, mat", "are the text 'cat, dog, mat': expected a list"),
        ("yes", "are the text 'yes'"),
        ("", "are the text ''"),
        ("['cat' 'dog' 'mat']", "with a comma between any two"),  # as numpy prints, which Python reads as one text
        ("[open('/etc/passwd')]", r"are the text \"\[open"),
        ("[" * 5000, "are the text"),
        ("[" * 200_000, "are the text"),
        ("['a', ['b']]", "choice 2 of .* is a list"),
        ('["a", null]', "choice 2 of .* is null"),
        (["a", None], "choice 2 of .* is null"),
        (["a", math.nan], "choice 2 of .* is null"),
        (["a", " "], "choice 2 of .* is blank"),
        ({"text": ["a", "b"], "label": ["A", "B"]}, "are an object: expected a list"),
        ([], "has 0 choices and the answer 2"),
        ([str(number) for number in range(27)], "has 27 choices: at most 26 are read, A to Z"),
        (None, "problem 7 of table has no choices"),
    ],
)
def test_choices_of_other_forms_are_refused(choices, message):
    with pytest.raises(ValueError, match=message):
        read(choices=choices)


@pytest.mark.parametrize("answer", [1, 1.0, "1", "B", "b", "(B)", "B.", "dog", " dog "])
def test_an_answer_is_an_index_a_letter_or_a_choice(answer):
    assert read(answer=answer).answer == 1


@pytest.mark.parametrize(
    ("choices", "answer", "index"), [(["A", "B"], "B", 1), (["3", "1"], "3", 0), (["2", "4"], "4", 1)]
)
def test_an_answer_that_can_mean_one_choice_alone_is_read(choices, answer, index):
    assert read(choices=choices, answer=answer).answer == index


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(answer=3), "has 3 choices and the answer 3: expected an index from 0 to 2"),
        (dict(answer=-1), "has 3 choices and the answer -1"),
        (dict(answer=1.5), "the answer 1.5"),
        (dict(answer=math.inf), "the answer inf"),
        (dict(answer=True), "the answer True"),
        (dict(answer="D"), "the answer D"),
        (dict(answer="a cat"), "the answer a cat"),
        (dict(answer=[1]), r"the answer \[1\]"),
        (dict(answer=None), "has no answer"),
        (dict(answer=math.nan), "has no answer"),
        (dict(choices=["B", "A"], answer="A"), "the answer 'A' of .* can mean A or B"),
        (dict(choices=["1", "2"], answer="1"), "the answer '1' of .* can mean A or B"),
        (dict(choices=["cat", "cat"], answer="cat"), "can mean A or B"),
        (dict(question=None), "problem 7 of table has no question"),
        (dict(question=math.nan), "problem 7 of table has no question"),
        (dict(question=" "), "has no question: its text is blank"),
        (dict(question=5), "the question of problem 7 of table is a number: expected a text"),
        (dict(question="\ud83d"), "the question of .* holds half of a character"),
        (dict(hint=["x"]), "the hint of problem 7 of table is a list"),
        (dict(question=None, answer=None), "has no question and no answer"),
    ],
)
def test_a_record_that_is_no_question_is_refused_by_its_id(changes, message):
    with pytest.raises(ValueError, match=message):
        read(**changes)


def test_a_record_must_be_an_object():
    with pytest.raises(ValueError, match="problem 7 of table is a list: expected an object with question"):
        read_problem("7", ["what ?"], False, "table")


@pytest.mark.parametrize("nothing", [None, math.nan, ""])
def test_what_is_null_is_never_asked_as_a_word(nothing):
    problem = read(hint=nothing, lecture=nothing, solution=nothing, subject=nothing, grade=nothing)
    assert ask(problem) == "what ?\nContext: N/A\nOptions: (A) cat (B) dog (C) mat"
    assert explain(problem) == "The answer is C." and problem.grade == 0


@pytest.mark.parametrize(("grade", "number"), [("grade7", 7), (7, 7), (7.0, 7), ("7", 7), ("seven", 0), (math.inf, 0)])
def test_a_grade_is_a_number_or_unknown(grade, number):
    assert read(grade=grade).grade == number


def test_up_to_26_choices_are_asked_by_their_letters():
    choices = [f"choice {number}" for number in range(26)]
    problem = read(choices=choices, answer="Z")
    assert problem.answer == 25
    assert ask(problem).endswith("(Y) choice 24 (Z) choice 25") and explain(problem) == "The answer is Z."
