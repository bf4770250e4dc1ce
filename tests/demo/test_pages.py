"""What the page shows: figures, agreement, and every text as text."""

from sf_llava.demo import pages
from sf_llava.demo.conversation import CLIP, SPARSEFORMER, Answer, Turn
from sf_llava.demo.uploads import accept

OPTIONS = "Which shape is red?\nContext: N/A\nOptions: (A) star (B) circle"


def turn(first: str, second: str, question: str = OPTIONS, state: str = "finished") -> Turn:
    answers = {SPARSEFORMER: Answer(SPARSEFORMER, first, state), CLIP: Answer(CLIP, second, "finished")}
    return Turn(question, answers=answers)


def test_answers_agree_where_they_choose_the_same_option():
    agreed = pages.agreement(turn("The red shape is the circle. The answer is B.", "B"))
    assert agreed == ("Both choose (B) circle.", "same")
    differ = pages.agreement(turn("The answer is A.", "The answer is B."))
    assert differ == ("They differ: SparseFormer chooses (A) star, CLIP (B) circle.", "different")


def test_without_options_the_words_are_compared():
    assert pages.agreement(turn("A red star.", "a red star", "What is it?"))[1] == "same"
    assert pages.agreement(turn("A red star.", "A blue star.", "What is it?"))[1] == "different"
    assert pages.agreement(turn("I cannot say.", "I cannot say"))[1] == "same"


def test_unfinished_and_stopped_answers_are_not_compared():
    assert pages.agreement(turn("A", "A", state="writing"))[1] == "open"
    assert "stopped" in pages.agreement(turn("A", "A", state="stopped"))[0]


def test_texts_are_shown_as_texts():
    evil = "<script>alert(1)</script>\n\n**bold** ${1+1} \"'"
    shown = "".join(html for _, html in pages.messages([turn(evil, evil, evil)]))
    assert "<script>" not in shown and "&lt;script&gt;" in shown and "\n" not in shown


def test_the_figures_are_those_of_the_answer():
    answer = Answer(SPARSEFORMER, "x", "finished", visual_tokens=16, encoder_ms=8.2, prefill_ms=3.5, num_tokens=21)
    answer.decode_seconds = 0.5
    assert pages.figures_of(answer) == [("encoder", "8.2 ms"), ("prefill", "3.5 ms"), ("speed", "40 tokens/s")]
    assert "16 visual tokens" in pages.card(answer)
    answer.encoder_ms, answer.reused, answer.forgotten = 0.0, 1, 2
    assert ("encoder", "kept from before") in pages.figures_of(answer)
    assert ("left out", "2 earlier turns") in pages.figures_of(answer)


def test_every_line_of_figures_is_there_from_the_start():
    assert len(pages.figures_of(Answer(CLIP))) == 3


def test_the_focus_shows_every_iteration_and_the_points_with_alternative_texts(engine, picture_files):
    picture = accept(picture_files[0])
    shown = pages.focus(picture, engine.see(SPARSEFORMER, picture)[0])
    assert shown.count("<figure") == shown.count("<img") == shown.count(' alt="') == 7
    assert "iteration 4 of 4" in shown and "256 points" in shown
