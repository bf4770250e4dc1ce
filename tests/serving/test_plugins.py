"""Servers find the encoder by an entry point that is light and needs none of them; they can read our chat templates."""

import importlib
import itertools
import subprocess
import sys
import tomllib
from pathlib import Path

import jinja2
import pytest
from jinja2 import nodes
from transformers.utils.chat_template_utils import render_jinja_template

from sf_llava.llava import tiles
from sf_llava.llava.conversations import CONVERSATIONS, chat_template
from sf_llava.mini import MINI_LLAVA_DIR

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("group", ["vllm.general_plugins", "sglang.srt.plugins"])
def test_the_entry_point_of_a_server_is_there(group):
    entries = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"][group]
    module, _, name = entries["sf_llava"].partition(":")
    assert callable(getattr(importlib.import_module(module), name))


def test_it_loads_nothing_before_it_is_called_and_then_the_tower_is_known():
    code = (
        "import sys, sf_llava.serving.plugins as plugins\n"
        "before = [name for name in ('torch', 'transformers', 'vllm', 'sglang') if name in sys.modules]\n"
        "plugins.register(); plugins.register()\n"
        "from transformers import AutoConfig, AutoModel\n"
        "config = AutoConfig.for_model('sparseformer')\n"
        "print(before, AutoModel._model_mapping[type(config)].__name__)\n"
        "for name in plugins.NOT_SERVED:\n"
        "    try: AutoConfig.for_model(name)\n"
        "    except ValueError as error: print(error)\n"
        "import sf_llava.llava.tiles\n"
        "print(*(AutoConfig.for_model(name).model_type for name in plugins.NOT_SERVED))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    first, *refused, last = done.stdout.splitlines()
    assert first == "[] SparseFormerModel"
    own = [flat.config.model_type for flat in (tiles.LLAVA_NEXT, tiles.LLAVA_NEXT_VIDEO, tiles.LLAVA_ONEVISION)]
    assert all(
        f"cuts pictures into tiles ({name}) is not served" in said for name, said in zip(own, refused, strict=True)
    )
    assert last.split() == own  # a process that loads them itself is not kept from it


def template_files() -> list[str]:
    return [chat_template(name, marked) for name in CONVERSATIONS for marked in (False, True)]


@pytest.mark.parametrize("template", template_files())
def test_a_template_loops_over_the_content_of_messages_in_so_many_words(template):
    # vLLM and SGLang read off a template whether contents may be lists; one that hides it is handed text, no picture.
    tree = jinja2.Environment(extensions=["jinja2.ext.loopcontrols"]).parse(template)
    loops = [loop for loop in tree.find_all(nodes.For) if getattr(loop.iter, "name", "") == "messages"]
    (name,) = {loop.target.name for loop in loops}
    inner = [loop.iter for loop in tree.find_all(nodes.For) if isinstance(loop.iter, nodes.Getattr)]
    assert [(iterated.node.name, iterated.attr) for iterated in inner] == [(name, "content")] * 2


def worded(system: str, turns: list[tuple[str, object]], image: str, prompted: bool) -> str:
    """A conversation as LLaVA writes it: pictures first, one </s> after every answer."""

    def show(content: object) -> str:
        if isinstance(content, str):
            return content
        pictures = f"{image}\n" * sum(part["type"] == "image" for part in content)
        return pictures + "".join(part["text"] for part in content if part["type"] == "text")

    if turns and turns[0][0] == "system":
        system, turns = show(turns[0][1]), turns[1:]
    text = system + " "
    for role, content in turns:
        text += f"USER: {show(content)} " if role == "user" else f"ASSISTANT: {show(content)}</s>"
    return text + "ASSISTANT:" * prompted


@pytest.mark.parametrize(
    "roles", [["user"], ["system", "user"], ["user", "assistant", "user"], ["system", "assistant"]]
)
def test_a_template_words_a_conversation_as_llava_does(roles):
    contents = ["x y", [{"type": "text", "text": "a "}, {"type": "image"}, {"type": "text", "text": "b"}], []]
    for chosen in itertools.product(contents, repeat=len(roles)):
        turns = list(zip(roles, chosen, strict=True))
        messages = [dict(role=role, content=content) for role, content in turns]
        for name, marked, prompted in itertools.product(CONVERSATIONS, (False, True), (False, True)):
            image = "<im_start><image><im_end>" if marked else "<image>"
            (made,), _ = render_jinja_template(
                [messages], chat_template=chat_template(name, marked), add_generation_prompt=prompted
            )
            assert made == worded(CONVERSATIONS[name], turns, image, prompted)


def test_the_mini_llava_has_the_template_that_is_made_today():
    if not MINI_LLAVA_DIR.is_dir():
        pytest.skip("this version has no mini LLaVA")
    assert (MINI_LLAVA_DIR / "chat_template.jinja").read_text() == chat_template("vicuna_v1")
