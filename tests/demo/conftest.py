"""A small random LLaVA with a random SparseFormer, the demo served from it, and a browser where one is installed."""

import importlib.util
import os
import shutil
import time
from pathlib import Path

import pytest
import torch
from PIL import Image


@pytest.fixture(scope="session")
def llava_dir(tmp_path_factory) -> Path:
    """Directory of a mini LLaVA whose language model is random; it never ends an answer by itself."""
    from sf_llava.llava.conversations import CONVERSATIONS, chat_template
    from sf_llava.mini.training import llava_training
    from sf_llava.mini.training.llava_model import build_llava, build_processor, build_tokenizer, save_llava

    tokenizer = build_tokenizer(llava_training.sample_texts(400), CONVERSATIONS["vicuna_v1"])
    torch.manual_seed(0)
    model = build_llava(tokenizer, width=64, layers=2)
    with torch.no_grad():  # loud layers, so that each picture has an answer of its own
        model.model.multi_modal_projector.linear_1.weight.normal_(std=0.3)
        for name, weight in model.model.language_model.layers.named_parameters():
            if name.endswith("proj.weight"):
                weight.normal_(std=0.25)
    model.generation_config.suppress_tokens.append(tokenizer.eos_token_id)
    directory = tmp_path_factory.mktemp("llava")
    save_llava(model, build_processor(tokenizer, chat_template("vicuna_v1")), directory)
    return directory


@pytest.fixture(scope="session")
def encoder_dirs(tmp_path_factory) -> list[Path]:
    """Directories of two random SparseFormers that fit the mini CLIP, with 16 and 24 latents."""
    from sf_llava.configuration import preset
    from sf_llava.model import SparseFormerModel

    torch.manual_seed(1)
    directories = [tmp_path_factory.mktemp(f"encoder-{latents}") for latents in (16, 24)]
    for directory, latents in zip(directories, (16, 24), strict=True):
        SparseFormerModel(preset("sf-mini", num_latents=latents)).save_pretrained(directory)
    return directories


@pytest.fixture(scope="session")
def engine(llava_dir, encoder_dirs):
    """The demo's engine on all of them."""
    from sf_llava.demo.engine import Engine
    from sf_llava.llava.loading import load_llava

    return Engine(*load_llava(llava_dir), encoder_dirs)


@pytest.fixture
def slow_model(engine, monkeypatch):
    """What is done while an answer grows needs one that grows for a while: at least 20 ms a token, on any machine."""
    choose = engine._choose

    def choose_slowly(*args):
        time.sleep(0.02)
        return choose(*args)

    monkeypatch.setattr(engine, "_choose", choose_slowly)


@pytest.fixture(scope="session")
def picture_files(tmp_path_factory) -> list[Path]:
    """Twenty drawn pictures as PNG files."""
    from sf_llava.mini.questions.sets import draw_picture

    folder = tmp_path_factory.mktemp("pictures")
    paths = [folder / f"picture-{index}.png" for index in range(20)]
    for index, path in enumerate(paths):
        Image.fromarray(draw_picture(2 * index, "test").image).resize((96, 96)).save(path)
    return paths


@pytest.fixture(scope="session")
def served(engine, tmp_path_factory):
    """The page, served: ``local_url``, ``sessions`` and, in ``uploads``, where uploaded files lie."""
    if importlib.util.find_spec("gradio") is None:
        pytest.skip("gradio is not installed (pip install -e .[demo])")
    from sf_llava.commands import chat

    folder = tmp_path_factory.mktemp("served")
    before = dict(os.environ)
    chat.prepare(str(folder))
    os.environ["GRADIO_HEARTBEAT_INTERVAL"] = "0.3"
    from sf_llava.demo.examples import write_examples
    from sf_llava.demo.interface import build, mount
    from sf_llava.demo.serve import Server, listen

    pictures = folder / "examples"
    pictures.mkdir()
    blocks = build(engine, write_examples(pictures), "A model of random numbers.", whole=True)
    server = Server("127.0.0.1", listen("127.0.0.1", None))
    blocks.local_url, blocks.uploads = server.url, folder / chat.UPLOADS
    server.start(mount(blocks, [str(pictures)]), blocks.uploads)
    yield blocks
    server.close()
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="session")
def browser():
    """Headless Chromium."""
    found = (shutil.which(name) for name in ("chromium", "chromium-browser", "google-chrome"))
    path = next((name for name in found if name), None)
    if path is None:
        pytest.skip("no Chromium is installed (apt-get install chromium)")
    if importlib.util.find_spec("playwright") is None:
        pytest.skip("playwright is not installed (pip install -e .[dev])")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()
