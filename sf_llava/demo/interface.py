"""The page: a chat, its settings beside it, and where the encoder looked below; and what happens on every event.

Conversations live here on the server, by page; the page only shows them. Everything that runs the model waits in one
line, one at a time.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from time import monotonic
from typing import Any

import gradio as gr
from fastapi import FastAPI

from sf_llava.demo import pages
from sf_llava.demo.conversation import (
    BOTH,
    CLIP,
    MAX_PICTURES,
    MAX_TURNS,
    SPARSEFORMER,
    Answer,
    Conversation,
    Turn,
    check_length,
    prompt_turns,
    towers_for,
)
from sf_llava.demo.engine import Engine
from sf_llava.demo.examples import Example
from sf_llava.demo.memory import return_freed
from sf_llava.demo.sessions import MAX_SESSIONS, Sessions
from sf_llava.demo.settings import HOTTEST, Choices, Settings
from sf_llava.demo.uploads import MAX_BYTES, RefusedError, accept
from sf_llava.demo.waiting import Line

REFRESH = 0.08  # seconds between two updates of the page while an answer grows
LOOK = 0.5  # seconds between two looks at who is gone while somebody waits
BUSY, READY = {"submit_btn": False, "stop_btn": False}, {"submit_btn": True, "stop_btn": False}  # of the message box
DEFAULT_QUESTION = "Describe the picture."
MODES = {BOTH: "Both, side by side", SPARSEFORMER: "SparseFormer", CLIP: "CLIP"}
HEAD = (
    "<h1>One LLM, two towers</h1><p>The same LLaVA sees your picture through its own CLIP and through a SparseFormer "
    "in CLIP's place.</p>"
)
HERE = Path(__file__).parent

# On a phone the settings would lie over the chat: they start closed there. The message box has no name of its own.
_PREPARE_PAGE = """() => {
    if (innerWidth < 769) document.querySelector('#settings.open .toggle-button')?.click()
    document.querySelector('#message textarea')?.setAttribute('aria-label', 'Message')
}"""

Outputs = tuple[Any, Any, Any, Any]  # message box, chat, focus, record


class Chat:
    """The events of the page.

    Args:
        engine: answers.
        sessions: the conversations.
    """

    def __init__(self, engine: Engine, sessions: Sessions) -> None:
        self.engine, self.sessions, self.line = engine, sessions, Line()
        modes = [BOTH, *engine.towers] if len(engine.towers) > 1 else engine.towers
        self.choices = Choices(modes, list(engine.encoders), longest=max(engine.context // 2, 16))

    def ask(
        self,
        message: dict[str, Any],
        mode: str,
        whole: bool,
        temperature: float,
        length: float,
        latents: int | None,
        request: gr.Request,
    ) -> Iterator[Outputs]:
        """Take a message with pictures into the conversation and answer it; one that is refused is not kept."""
        message = message or {}
        question = (message.get("text") or "").strip()

        def take(conversation: Conversation) -> Turn:
            return self._take(question, message.get("files") or [], conversation, request.session_hash)

        yield from self._in_turn(take, question, (mode, whole, temperature, length, latents), request)

    def retry(
        self, mode: str, whole: bool, temperature: float, length: float, latents: int | None, request: gr.Request
    ) -> Iterator[Outputs]:
        """Answer the last question once more, with the settings as they are now."""

        def take(conversation: Conversation) -> Turn:
            if not conversation.turns:
                raise RefusedError("There is no question yet that could be answered once more.")
            return conversation.turns.pop()

        yield from self._in_turn(take, "", (mode, whole, temperature, length, latents), request)

    def _in_turn(
        self, take: Callable[[Conversation], Turn], question: str, settings: tuple[Any, ...], request: gr.Request
    ) -> Iterator[Outputs]:
        """Wait for the model, take the question and answer it; whatever is refused gets a sentence and is not kept."""
        key, shown = request.session_hash, question[:200] + " …" * (len(question) > 200)
        conversation = self.sessions.find(key)
        try:
            chosen = self.choices.read(*settings)
            check_length(question)
            with self.line.stand(request.client.host if request.client else "") as place:
                conversation = self.sessions.open(key)
                while not place.wait(LOOK):  # between two of these gradio sees whether the page has gone
                    waiting = Turn(shown, notes=[f"Waiting: {place.ahead} to be answered before."])
                    yield self._show(conversation, BUSY, waiting)
                if self.sessions.find(key) is not conversation:
                    raise RefusedError("The conversation was closed while the question waited: ask once more.")
                conversation.stop.clear()
                turn = take(conversation)
                if turn.refused:  # the text comes back to be sent again, without the files
                    yield self._show(conversation, {"value": {"text": turn.question, "files": []}, **READY}, turn)
                    return
                conversation.turns.append(turn)
                yield from self._answer(conversation, chosen)
        except RefusedError as error:
            yield self._show(conversation, READY, Turn(shown, notes=[str(error)]))

    def stop(self, request: gr.Request) -> None:
        """End the answer that is being written."""
        self.sessions.find(request.session_hash).stop.set()

    def clear(self, request: gr.Request) -> Outputs:
        """Forget the conversation and its pictures."""
        self.sessions.close(request.session_hash)
        return self._show(Conversation(), {"value": {"text": "", "files": []}, **READY})

    def leave(self, request: gr.Request) -> None:
        """The page was closed."""
        self.sessions.close(request.session_hash)

    def _take(self, text: str, files: list[str], conversation: Conversation, key: str) -> Turn:
        """Make a turn of a message."""
        turn = Turn(text)
        room = MAX_PICTURES - len(conversation.pictures)
        if len(files) > room:
            turn.notes.append(f"A conversation holds {MAX_PICTURES} pictures: clear the chat to send others.")
        for path in files[: max(room, 0)]:
            self.sessions.uploaded(key, path)
            try:
                picture = accept(path)
            except RefusedError as error:
                turn.notes.append(str(error))
                continue
            turn.pictures.append(picture)
            if picture.note:
                turn.notes.append(picture.note)
        if not text and not files:
            turn.notes.append("Write a question, and attach a picture if it is about one.")
        if full := len(conversation.turns) >= MAX_TURNS:
            turn.notes.append(f"A conversation holds {MAX_TURNS} questions: clear the chat to ask more.")
        turn.refused = full or (not turn.pictures if files else not text)
        if turn.refused:
            return turn
        turn.question = text or DEFAULT_QUESTION
        if unknown := self.engine.unknown_words(turn.question[:2000]):
            words = ", ".join(f"“{word}”" for word in unknown[:6])
            turn.notes.append(f"This small model has never seen {words}; the examples show what it knows.")
        return turn

    def _answer(self, conversation: Conversation, chosen: Settings) -> Iterator[Outputs]:
        """Let every tower of the mode answer the last turn, showing how the answers grow."""
        turn, latents = conversation.turns[-1], chosen.latents
        turns = prompt_turns(conversation.turns, chosen.whole)
        towers = towers_for(chosen.mode, self.engine.towers, turns)
        turn.answers = {tower: Answer(tower, latents=latents if tower == SPARSEFORMER else None) for tower in towers}
        taken = {"value": {"text": "", "files": []}}  # once: what is typed while the answers grow stays in the box
        yield self._show(conversation, {**taken, **BUSY, "stop_btn": True})
        steps = (step for one in turn.answers.values() for step in self.engine.answer(one, turns, chosen.sampling))
        shown = 0.0
        try:
            for _ in steps:
                if conversation.stop.is_set():
                    break
                if monotonic() - shown > REFRESH:
                    shown = monotonic()
                    yield self._show(conversation, {**BUSY, "stop_btn": True})
        except RefusedError as error:
            turn.answers.clear()
            turn.notes.append(str(error))
        finally:  # also where the page has gone away and nobody asks for more
            for answer in turn.answers.values():
                if answer.state in ("waiting", "writing"):
                    answer.state = "stopped"
        yield self._show(conversation, READY)

    def _show(self, conversation: Conversation, box: dict[str, Any], beside: Turn | None = None) -> Outputs:
        """What the page shows: a conversation, perhaps a turn beside it that is not part of it, and its box."""
        turns = [*conversation.turns, beside] if beside else conversation.turns
        messages = [{"role": role, "content": gr.HTML(html)} for role, html in pages.messages(turns)]
        turn = turns[-1] if turns else None
        writing = turn is not None and any(answer.text for answer in turn.answers.values())
        focus, record = _focus(conversation, draw=writing), pages.record(turn) if turn else None
        return gr.MultimodalTextbox(**box), messages, focus, record


def _focus(conversation: Conversation, draw: bool) -> str:
    """The RoIs of the picture that was sent last; they are drawn after the first word, which does not wait for them."""
    answers = [turn.answers[SPARSEFORMER] for turn in conversation.turns if SPARSEFORMER in turn.answers]
    latents = answers[-1].latents if answers else None
    seen = [(picture, picture.views[latents]) for picture in conversation.pictures if latents in picture.views]
    if seen and draw and not seen[-1][1].focus:
        picture, view = seen[-1]
        view.focus = pages.focus(picture, view)
    return next((view.focus for _, view in reversed(seen) if view.focus), pages.NO_FOCUS)


def _unchecked(component: gr.components.Component) -> gr.components.Component:
    """Have a component hand on whatever was sent, for ``Choices`` to judge; gradio takes NaN and fails at a text."""
    component.preprocess = lambda payload: payload
    return component


def build(engine: Engine, examples: Sequence[Example], about: str, whole: bool) -> gr.Blocks:
    """Lay the page out and connect its events.

    Args:
        engine: answers.
        examples: pictures and questions to start from.
        about: a sentence on what is running, as Markdown.
        whole: whether earlier turns are in the prompt at first.
    """
    sessions = Sessions()
    chat = Chat(engine, sessions)
    modes = [(MODES[mode], mode) for mode in chat.choices.modes]
    with gr.Blocks(title="sf_llava: one LLM, two towers", analytics_enabled=False, delete_cache=(60, 3600)) as blocks:
        with gr.Sidebar(label="Settings", elem_id="settings"):
            gr.Markdown("## Settings")
            mode = gr.Radio(modes, value=modes[0][1], label="Who answers", elem_id="mode")
            counts = list(engine.encoders)
            latents = gr.Radio(
                [(str(count), count) for count in counts],
                value=next(iter(counts), None),
                label="Latents of the SparseFormer",
                elem_id="latents",
                visible=len(counts) > 1,
            )
            with gr.Group():
                temperature = gr.Slider(0, HOTTEST, 0, step=0.1, label="Temperature", info="0: the likeliest word")
                longest = chat.choices.longest
                length = gr.Slider(8, longest, min(256, longest // 2), step=8, label="Longest answer", info="tokens")
                earlier = gr.Checkbox(whole, label="Earlier turns in the prompt", info="otherwise each question alone")
            gr.Markdown(about, elem_id="about")
        gr.HTML(HEAD, elem_id="head")
        transcript = gr.Chatbot(
            label="Conversation",
            show_label=False,
            elem_id="chat",
            height=None,
            buttons=[],
            latex_delimiters=[],
            line_breaks=False,
            placeholder="<h2>Send a picture and ask about it</h2>Attach, paste or drop one, or start from an example.",
            examples=[
                {"text": example.question, "display_text": example.title, "files": [str(example.picture)]}
                for example in examples
            ],
            feedback_options=None,
            group_consecutive_messages=False,
        )
        sessions.keep = {Path(file["path"]) for example in transcript.examples for file in example["files"]}
        box = gr.MultimodalTextbox(
            placeholder="Ask about a picture …",
            label="Message",
            show_label=False,
            file_count="multiple",
            max_plain_text_length=5000,
            autofocus=True,
            elem_id="message",
        )
        with gr.Row(elem_id="actions"):
            again = gr.Button("Retry", size="sm")
            clear = gr.Button("Clear", size="sm")
        focus = gr.HTML(pages.NO_FOCUS, elem_id="focus")
        record = gr.JSON(visible=False)

        shown = [box, transcript, focus, record]
        settings = [_unchecked(setting) for setting in (mode, earlier, temperature, length, latents)]
        running = dict(concurrency_limit=None, show_progress="minimal")  # they stand in a line of the chat's own
        asking = box.submit(chat.ask, [box, *settings], shown, api_name="ask", **running)
        retrying = again.click(chat.retry, settings, shown, api_name="retry", **running)
        box.stop(chat.stop, None, None, queue=False, api_name="stop")
        clear.click(chat.clear, None, shown, cancels=[asking, retrying], queue=False, api_name="clear")
        transcript.example_select(take_example, None, box, queue=False, api_visibility="private")

        def leave(request: gr.Request) -> None:
            chat.leave(request)
            # gradio's own state of the page, about a megabyte, which it would keep until MAX_SESSIONS newer ones came
            blocks.state_holder.session_data.pop(request.session_hash, None)
            return_freed()

        blocks.unload(leave)
    blocks.queue(max_size=64)
    blocks.sessions, blocks.line = sessions, chat.line
    return blocks


def take_example(event: gr.SelectData) -> dict[str, Any]:
    """Put an example into the message box."""
    return {"text": event.value["text"], "files": [file["path"] for file in event.value["files"]]}


def mount(blocks: gr.Blocks, allowed_paths: list[str]) -> FastAPI:
    """The page as an application: no link to the outside, and the browser asks nobody but this server."""
    fonts = ["system-ui", "sans-serif"]
    theme = gr.themes.Base(
        primary_hue="indigo", neutral_hue="slate", font=fonts, font_mono=["ui-monospace", "monospace"], radius_size="lg"
    )
    blocks.state_session_capacity = MAX_SESSIONS  # gradio would remember ten thousand pages, closed ones too
    blocks.has_launched = True  # else gradio would read any file of this machine that a request names, as if uploaded
    return gr.mount_gradio_app(
        FastAPI(openapi_url=None),
        blocks,
        path="/",
        allowed_paths=allowed_paths,
        footer_links=[],
        run_history=False,
        enable_monitoring=False,
        ssr_mode=False,
        mcp_server=False,
        max_file_size=MAX_BYTES,
        theme=theme,
        css_paths=HERE / "style.css",
        js=_PREPARE_PAGE,
    )
