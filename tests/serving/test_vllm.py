"""A swapped LLaVA that vLLM serves says what it says in transformers, token by token (make test-vllm)."""

import base64
import importlib.util
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.request import Request, urlopen

import pytest
import torch
from PIL import Image

from sf_llava import load_llava, preset, swap
from sf_llava.commands import scienceqa
from sf_llava.mini import MINI_LLAVA_DIR
from sf_llava.model import SparseFormerModel
from sf_llava.scienceqa.data import ask, open_scienceqa

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed: make test-vllm"),
    pytest.mark.skipif(not (MINI_LLAVA_DIR / "model.safetensors").is_file(), reason="this version has no mini LLaVA"),
]

PROMPTS = 50
TOGETHER = 20
TOKENS = 48


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """The mini LLaVA with an untrained encoder whose RoIs move, saved as any LLaVA is."""
    torch.manual_seed(0)
    model, processor = load_llava("mini")
    encoder = SparseFormerModel(preset("sf-mini")).eval()
    with torch.no_grad():  # zero as they are initialised
        for name, weight in encoder.named_parameters():
            if name.endswith(("roi_deltas.weight", "offsets.weight", "mixing.generate.weight")):
                weight.normal_(std=0.02)
    swap(model, processor, encoder)
    directory = tmp_path_factory.mktemp("served") / "llava"
    model.save_pretrained(directory)
    processor.save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def server(saved, tmp_path_factory):
    """The address of a server of it; nothing of this package is named to vLLM, whose plug-ins find it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # ``vllm serve`` itself asks for the version of a package called vllm, which the CPU's build is not
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(saved), "--port", str(port)]
    command += ["--host", "127.0.0.1", "--served-model-name", "swapped", "--model-impl", "transformers"]
    command += ["--dtype", "float32", "--enforce-eager"]
    environment = os.environ | {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    log = tmp_path_factory.mktemp("log") / "vllm.txt"
    with open(log, "wb") as file:
        process = subprocess.Popen(
            command, stdout=file, stderr=file, env=environment, cwd=log.parent, start_new_session=True
        )
    url = f"http://127.0.0.1:{port}"
    try:
        wait_for(url, process, log)
        yield url
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=60)


def wait_for(url: str, process: subprocess.Popen, log: Path) -> None:
    for _ in range(600):
        assert process.poll() is None, log.read_text()[-5000:]
        try:
            urlopen(f"{url}/health", timeout=5).read()
            return
        except OSError:
            time.sleep(1)
    raise AssertionError(f"vLLM does not start: {log.read_text()[-5000:]}")


@pytest.fixture(scope="module")
def cases() -> list[tuple[str, list[Image.Image]]]:
    """Questions with no, one and two pictures in turn."""
    data = open_scienceqa(f"mini:{PROMPTS}")
    pictures = [data.load_image(problem) for problem in data.problems if problem.has_image]
    return [
        (ask(problem), [pictures[(number + shift) % len(pictures)] for shift in range(number % 3)])
        for number, problem in enumerate(data.problems)
    ]


def serve(url: str, text: str, pictures: list[Image.Image]) -> tuple[list[int], list[int], list[dict]]:
    """Ids of prompt and answer, and the likeliest tokens at each step, as the server gives them."""
    content = [{"type": "image_url", "image_url": {"url": data_url(picture)}} for picture in pictures]
    message = {"role": "user", "content": [*content, {"type": "text", "text": text}]}
    body = dict(model="swapped", messages=[message], temperature=0, max_tokens=TOKENS, add_special_tokens=True)
    body |= dict(return_token_ids=True, logprobs=True, top_logprobs=2)
    headers = {"Content-Type": "application/json"}
    request = Request(f"{url}/v1/chat/completions", json.dumps(body).encode(), headers)
    answer = json.loads(urlopen(request, timeout=600).read())
    (choice,) = answer["choices"]
    return answer["prompt_token_ids"], choice["token_ids"], choice["logprobs"]["content"]


def data_url(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


@torch.inference_mode()
def generate(model, processor, text: str, pictures: list[Image.Image]) -> tuple[list[int], list[int]]:
    """The same by transformers alone."""
    content = [*[{"type": "image"}] * len(pictures), {"type": "text", "text": text}]
    prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    inputs = processor(images=pictures or None, text=[prompt], return_tensors="pt")
    ids = inputs["input_ids"][0].tolist()
    return ids, model.generate(**inputs, do_sample=False, max_new_tokens=TOKENS)[0, len(ids) :].tolist()


def test_served_ids_are_those_of_transformers(server, saved, cases):
    with ThreadPoolExecutor(TOGETHER) as pool:
        served = list(pool.map(lambda case: serve(server, *case), cases))
    model, processor = load_llava(saved)
    wrong = []
    for number, (case, (prompt, answer, likeliest)) in enumerate(zip(cases, served, strict=True)):
        ours = generate(model, processor, *case)
        assert prompt == ours[0], f"prompt {number} is tokenised otherwise"
        assert prompt.count(model.config.image_token_id) == len(case[1]) * 16
        if answer != ours[1]:
            place = next(i for i, pair in enumerate(zip(answer, ours[1], strict=False)) if pair[0] != pair[1])
            wrong.append((number, place, likeliest[place]["top_logprobs"]))
    assert not wrong, f"prompts, places and log-probabilities where ids differ: {wrong}"
    assert len({tuple(answer) for _, answer, _ in served}) > PROMPTS // 2  # they look at what they are asked


def test_the_picture_matters_to_the_served_answer(server, cases):
    text, pictures = next((text, pictures) for text, pictures in cases if len(pictures) == 1)
    black = [Image.new("RGB", pictures[0].size)]
    pairs = [serve(server, text, shown)[2][0]["top_logprobs"][0]["logprob"] for shown in (pictures, black)]
    assert pairs[0] != pairs[1]


def test_the_evaluation_through_the_server_answers_as_in_this_process(server, saved, tmp_path):
    common = ["--data", "mini:40", "--max-new-tokens", str(TOKENS), "--controls", "grey", "--output"]
    scienceqa.main(["run", "--server", server, *common, str(tmp_path / "served")])
    local = ["--model", str(saved), "--towers", "original", "--device", "cpu", "--batch-size", "1"]
    scienceqa.main(["run", *local, *common, str(tmp_path / "here")])
    for ours, theirs in (("original", "served"), ("original-grey", "served-grey")):
        texts = [
            {line["question_id"]: line["text"] for line in map(json.loads, path.read_text().splitlines())}
            for path in (tmp_path / "here" / ours / "answers.jsonl", tmp_path / "served" / theirs / "answers.jsonl")
        ]
        assert texts[0] == texts[1]
