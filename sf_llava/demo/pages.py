"""What the chat shows, as HTML: pictures and questions, answers side by side with their figures, the RoIs.

Every text of a person or a model is escaped here. Line breaks are written as entities, so that nothing in a text is
taken for Markdown.
"""

import re
from collections.abc import Sequence
from html import escape

from sf_llava import visualize
from sf_llava.demo.conversation import CLIP, SPARSEFORMER, TOWER_NAMES, Answer, Turn
from sf_llava.demo.engine import View
from sf_llava.demo.uploads import Picture, data_uri
from sf_llava.scienceqa.scoring import FAILED, LETTERS, parse_answer

_OPTION = re.compile(r"\(([A-E])\)\s*([^()\n]*)")
NO_FOCUS = (
    '<section class="focus empty" aria-label="What the encoder looked at"><p>Here you will see where the SparseFormer '
    "looked in the picture: its regions of interest, iteration by iteration.</p></section>"
)
_PLACEHOLDER = "·"  # keeps a line's height until there is something to say
PANEL = 240  # side of a panel in pixels


def text(value: str) -> str:
    """Plain text as HTML."""
    return escape(value).replace("\n", "&#10;")


def messages(turns: Sequence[Turn]) -> list[tuple[str, str]]:
    """A whole conversation: role and HTML of every message."""
    shown = []
    for turn in turns:
        if turn.question or turn.pictures:
            shown.append(("user", question(turn)))
        if turn.answers or turn.notes:
            shown.append(("assistant", reply(turn)))
    return shown


def question(turn: Turn) -> str:
    """Pictures and question."""
    pictures = "".join(
        f'<img class="sent" src="{sent.thumbnail}" alt="Picture {escape(sent.name)}">' for sent in turn.pictures
    )
    return f'<div class="question">{pictures}<span class="said">{text(turn.question)}</span></div>'


def reply(turn: Turn) -> str:
    """Sentences about the turn, the answers side by side, and whether they agree."""
    parts = [f'<div class="note" role="note">{text(note)}</div>' for note in turn.notes]
    if turn.answers:
        parts.append('<div class="answers">' + "".join(map(card, turn.answers.values())) + "</div>")
    if len(turn.answers) > 1:
        verdict, kind = agreement(turn)
        parts.append(f'<div class="verdict {kind}">{text(verdict)}</div>')
    return "".join(parts)


def card(answer: Answer) -> str:
    """One tower's answer with its figures."""
    tokens = f"{answer.visual_tokens} visual tokens" if answer.visual_tokens else _PLACEHOLDER
    said = text(answer.text) if answer.text else '<span class="faint">…</span>'
    ending = {"stopped": " (stopped)", "length": " (cut at the longest answer allowed)"}.get(answer.state, "")
    ending = f'<span class="faint">{ending}</span>'
    figures = "".join(
        f'<span class="figure"><span class="name">{name}</span> {value}</span>' for name, value in figures_of(answer)
    )
    return (
        f'<div class="card {answer.tower.replace(" ", "-")}"><div class="tower">'
        f'<span class="title">{TOWER_NAMES[answer.tower]}</span><span class="tokens">{tokens}</span></div>'
        f'<div class="said">{said}{ending}</div><div class="figures">{figures}</div></div>'
    )


def figures_of(answer: Answer) -> list[tuple[str, str]]:
    """Times under an answer, by name; there from the start, so that nothing moves when they come."""
    speed = answer.tokens_per_second
    rows = [
        ("prefill", f"{answer.prefill_ms:.1f} ms" if answer.prefill_ms else "–"),
        ("speed", f"{speed:.0f} tokens/s" if speed else "–"),
    ]
    if answer.tower in (SPARSEFORMER, CLIP):
        encoder = f"{answer.encoder_ms:.1f} ms" if answer.encoder_ms else "–"
        if answer.reused:
            encoder = f"{encoder} + {answer.reused} kept" if answer.encoder_ms else "kept from before"
        rows.insert(0, ("encoder", encoder))
    if answer.forgotten:
        rows.append(("left out", f"{answer.forgotten} earlier turn{'s' * (answer.forgotten > 1)}"))
    return rows


def agreement(turn: Turn) -> tuple[str, str]:
    """Compare the two answers: a sentence, and ``same``, ``different`` or ``open``.

    Where the question lists options, the chosen ones are compared, otherwise the words.
    """
    first, second = turn.answers.values()
    if any(answer.state in ("waiting", "writing") for answer in (first, second)):
        return _PLACEHOLDER, "open"
    if "stopped" in (first.state, second.state):
        return "Not compared: an answer was stopped.", "open"
    options = dict(_OPTION.findall(turn.question))
    chosen = [parse_answer(answer.text, len(options)) for answer in (first, second)]
    if options and FAILED not in chosen:
        names = [f"({LETTERS[index]}) {options.get(LETTERS[index], '').strip()}".strip() for index in chosen]
        if chosen[0] == chosen[1]:
            return f"Both choose {names[0]}.", "same"
        towers = [TOWER_NAMES[answer.tower] for answer in (first, second)]
        return f"They differ: {towers[0]} chooses {names[0]}, {towers[1]} {names[1]}.", "different"
    words = [re.findall(r"\w+", answer.text.lower()) for answer in (first, second)]
    return ("Both give the same answer.", "same") if words[0] == words[1] else ("The answers differ.", "different")


def record(turn: Turn) -> dict:
    """The turn as plain data, for programs that talk to the demo."""
    answers = {
        answer.tower: {
            "text": answer.text,
            "state": answer.state,
            "visual_tokens": answer.visual_tokens,
            "encoder_ms": answer.encoder_ms,
            "reused": answer.reused,
            "prefill_ms": answer.prefill_ms,
            "tokens_per_second": answer.tokens_per_second,
            "num_tokens": answer.num_tokens,
        }
        for answer in turn.answers.values()
    }
    agree = {"same": True, "different": False}.get(agreement(turn)[1]) if len(answers) == 2 else None
    return {"question": turn.question, "answers": answers, "agree": agree, "notes": turn.notes}


def focus(picture: Picture, view: View) -> str:
    """Where the SparseFormer looked in a picture: RoIs by iteration, and the points of the last sampling."""
    rois, sampled = view.rois, view.points
    if rois is None or sampled is None:
        return NO_FOCUS
    name = escape(picture.name)
    last = len(rois) - 1
    panels = [("what it saw", f"The square view of {name}", visualize.plain(view.square, size=PANEL))]
    for stage in range(last + 1):
        caption = "start" if stage == 0 else f"iteration {stage}"
        drawn = visualize.draw_rois(view.square, rois[: stage + 1], size=PANEL)
        panels.append((caption, f"{rois.shape[1]} regions of interest on {name}: {caption} of {last}", drawn))
    points = visualize.draw_rois(view.square, None, sampled, size=PANEL)
    panels.append(("sampling points", f"{sampled[..., 0].numel()} points of the last sampling on {name}", points))
    figures = "".join(
        f'<figure tabindex="0"><img src="{data_uri(image)}" alt="{alt}" width="{PANEL}" height="{PANEL}">'
        f"<figcaption>{caption}</figcaption></figure>"
        for caption, alt, image in panels
    )
    latents = rois.shape[1]
    return (
        f'<section class="focus" aria-label="What the encoder looked at"><p>Where the SparseFormer looked: {latents} '
        "latents and their regions of interest, one colour each; a line is the way of a centre.</p>"
        f'<div class="strip">{figures}</div></section>'
    )
