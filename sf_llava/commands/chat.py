"""Chat with a LLaVA through two towers: its own CLIP, and a SparseFormer in CLIP's place. Opens a page on this machine.

    sf-llava chat
        the embedded default, offline: the mini LLaVA, and the student of make quickstart beside it if there is one
    sf-llava chat --encoder runs/sf-16 runs/sf-32
        encoders of different sizes; their latents are chosen in the sidebar
    sf-llava chat --model llava-lcs558k-scienceqa-vicuna-13b-v1.3 --encoder runs/sf-l-64 \\
            --conversation llava_v1 --bits 4
        any LLaVA, in transformers' or the original format, and an encoder bootstrapped from its CLIP

Expected: the address of the page, http://127.0.0.1:7860 or the next free port. Ctrl-C ends it; nothing that was sent
is kept.
"""

import argparse
import os
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

from sf_llava import cli
from sf_llava.catalogue import default_encoder
from sf_llava.demo.memory import share_heaps
from sf_llava.extras import require

MINI = "mini"
UPLOADS = "uploads"  # in a folder that is removed at the end


def parse(argv: list[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_flags(parser, "model")
    parser.add_argument(
        "--encoder",
        nargs="+",
        default=[],
        metavar="DIR",
        help="SparseFormer or its run (mini: the quickstart's); several with different latents can be chosen from",
    )
    cli.add_flags(parser, "tower", "conversation", "device", "dtype", "bits", "seed", dtype="auto")
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 lets other machines in (%(default)s)")
    parser.add_argument(
        "--port", type=cli.Number(int, 1, 65535), metavar="N", help="default: 7860 or the next free one"
    )
    parser.add_argument(
        "--proxy-name",
        nargs="+",
        default=[],
        metavar="NAME",
        help="names, also NAME:PORT, by which a proxy in front of this server is asked; other names are refused",
    )
    return cli.parse(parser, argv)


def main(argv: list[str]) -> None:
    """Load once, then serve until interrupted."""
    arguments = parse(argv)
    require("the chat", "gradio", "fastapi", "starlette", "uvicorn")
    if hasattr(signal, "SIGHUP"):  # as other signals do, so that the folder of uploads is removed then too
        signal.signal(signal.SIGHUP, lambda number, _: sys.exit(128 + number))
    with tempfile.TemporaryDirectory(prefix="sf_llava_", ignore_cleanup_errors=True) as folder:
        share_heaps()
        prepare(folder)
        from sf_llava.demo.serve import Server, listen

        with listen(arguments.host, arguments.port) as listener:
            server = Server(arguments.host, listener, arguments.proxy_name)
            from sf_llava.demo.examples import write_examples
            from sf_llava.demo.interface import build, mount

            engine, about, mini = load(arguments)
            pictures = Path(folder) / "examples"
            pictures.mkdir()
            blocks = build(engine, write_examples(pictures), about, whole=not mini)
            try:
                server.start(mount(blocks, [str(pictures)]), Path(folder) / UPLOADS)
                print(f"open {server.url}", flush=True)
                server.wait()
            finally:
                server.close()


def prepare(folder: str) -> None:
    """Tell gradio, before it is imported, to ask nobody outside and to keep uploads where they are soon removed."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["GRADIO_TEMP_DIR"] = str(Path(folder) / UPLOADS)
    os.environ.setdefault("GRADIO_HEARTBEAT_INTERVAL", "2")  # seconds until a closed page is noticed


def load(arguments: argparse.Namespace) -> tuple[Any, str, bool]:
    """Load model and encoder: the engine, a sentence about both, and whether it is the embedded default."""
    import torch

    from sf_llava.demo.engine import Engine
    from sf_llava.devices import as_dtype, choose_device, choose_precision
    from sf_llava.llava.conversations import chat_template
    from sf_llava.llava.loading import load_llava

    cli.hide_loading_bars()
    torch.manual_seed(arguments.seed)
    encoders, hint = arguments.encoder, ""
    if mini := arguments.model == MINI:
        encoders, hint = choose_mini(encoders)
    device = choose_device(arguments.device)
    arguments.dtype = choose_precision(arguments.dtype, device)
    placement: dict[str, Any] = {"device_map": {"": device}}
    if arguments.bits:
        from sf_llava.llava.quantisation import quantisation_config

        placement["quantization_config"] = quantisation_config(arguments.bits, as_dtype(arguments.dtype))
    model, processor = load_llava(arguments.model, dtype=arguments.dtype, tower=arguments.tower, **placement)
    if arguments.conversation:
        processor.chat_template = chat_template(arguments.conversation)
    engine = Engine(model, processor, encoders)
    return engine, describe(arguments, engine, hint), mini


def choose_mini(encoders: list[str]) -> tuple[list[str], str]:
    """Take the embedded default's student unless encoders are named; say what the embedded LLaVA is."""
    hint = "It is tiny and knows only drawn shapes, maps and charts, in the examples' words, one question at a time."
    if not encoders:
        encoder, remark = default_encoder()
        encoders, hint = [encoder], f"{hint} {remark[:1].upper()}{remark[1:]}".strip()
    return encoders, hint


def describe(arguments: argparse.Namespace, engine: Any, hint: str) -> str:
    """Say in Markdown what is running."""
    name = "the embedded LLaVA" if arguments.model == MINI else f"`{Path(arguments.model).name}`"
    how = f"on {engine.device.type}, {f'{arguments.bits} bits' if arguments.bits else arguments.dtype}"
    return f"This is {name} {how}. {hint}".strip()
