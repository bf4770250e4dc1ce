"""A served LLaVA answers ScienceQA: an OpenAI-compatible server is asked over HTTP, many questions at once.

The server words the conversation with its own chat template, tokenises it, and batches as it likes; the answers are
kept one by one as those of a model in this process are (``answer_log``).
"""

import base64
import io
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import closing
from pathlib import Path
from typing import Any

from PIL import Image

from sf_llava.llava.tokens import break_tokens
from sf_llava.scienceqa.answer_log import open_log
from sf_llava.scienceqa.asking import Generation, digest_prompts, leave_out, pictures_under, word_all
from sf_llava.scienceqa.data import ScienceQA
from sf_llava.scienceqa.http_client import BUSY, PATIENCE, HttpClient, RefusedError
from sf_llava.scienceqa.problems import Problem, ask

CONCURRENCY = 32
"""Requests in flight."""
TOKENS = ("<s>", "</s>", "<unk>")
"""What has a meaning of its own to a LLaVA's tokenizer, which only the server has."""


class Server:
    """One model of an OpenAI-compatible server.

    Attributes:
        generation: how answers are generated.
        identity: what the server says of the model: its name, and where its weights lie.

    Args:
        url: ``http://HOST:PORT``, with or without ``/v1``.
        generation: the same; without a conversation, for the server has a chat template.
        model: its name; None where the server has one alone.
        patience: seconds that the server may be away, at the start or later.

    Raises:
        ValueError: the server does not have the model, or is no OpenAI-compatible one.
        RuntimeError: it was away for longer than that.
    """

    image_token = "<image>"

    def __init__(
        self, url: str, generation: Generation, model: str | None = None, *, patience: float = PATIENCE
    ) -> None:
        if generation.conversation is not None:
            raise ValueError("`conversation` is the server's: start the server with that chat template")
        self.client = HttpClient(url, patience)
        self.generation = generation
        self.identity = self._identify(self.client.ask, model)

    def prompt(self, problem: Problem, has_image: bool) -> str:
        """Word a problem as the user's part of a conversation, after ``<image>`` and a new line where it has one."""
        text = break_tokens(TOKENS, leave_out(self.image_token, ask(problem)))
        return f"{self.image_token}\n{text}" if has_image else text

    def answer(self, problem: Problem, prompt: str, images: Sequence[Image.Image]) -> str:
        """Let the server answer one prompt.

        Raises:
            ValueError: it refuses; the message names the problem.
            RuntimeError: it was away for longer than ``patience``, or another model came back.
        """
        content: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": _data_url(one)}} for one in images]
        content.append({"type": "text", "text": prompt.removeprefix(f"{self.image_token}\n")})
        body = {
            "model": self.identity["model"],
            "messages": [{"role": "user", "content": content}],
            "max_tokens": self.generation.max_new_tokens,
            "temperature": self.generation.temperature,
            "seed": self.generation.seed,
            "add_special_tokens": True,  # for vLLM: <s> comes first, as a processor writes it and no template of LLaVA
        }
        try:
            answer = self.client.ask("POST", "/v1/chat/completions", body, again=self._check_identity)
        except RefusedError as error:
            raise ValueError(
                f"the server at {self.client.url} refuses problem {problem.id} ({error}){_way_out(error)}"
            ) from error
        except RuntimeError as error:
            raise RuntimeError(f"problem {problem.id}: {error}") from error
        try:
            return (answer["choices"][0]["message"]["content"] or "").strip()
        except (TypeError, LookupError, AttributeError) as error:
            raise ValueError(
                f"the server at {self.client.url} gives no chat completion to problem {problem.id}: expected choices "
                f"with a message, not {str(answer)[:80]}"
            ) from error

    def _identify(self, request: Callable[..., Any], model: str | None) -> dict[str, Any]:
        """Ask which models there are, and choose one."""
        try:
            answer = request("GET", "/v1/models")
            models = {one["id"]: one.get("root") for one in answer["data"]}
        except (RefusedError, TypeError, LookupError, AttributeError) as error:
            if isinstance(error, RefusedError) and error.status in BUSY:  # it starts: whoever asks waits
                raise
            said = f" ({error}){_way_out(error)}" if isinstance(error, RefusedError) else ""
            raise ValueError(
                f"no OpenAI-compatible server at {self.client.url}: expected a list of models at /v1/models{said}"
            ) from error
        names = ", ".join(models) or "none"
        if model is None and len(models) != 1:
            raise ValueError(f"the server at {self.client.url} has {len(models)} models: name one, `model`, of {names}")
        if model is not None and model not in models:
            raise ValueError(f"the server at {self.client.url} has no model {model!r}: it has {names}")
        name = model or next(iter(models))
        return {"model": name, "root": models[name]}

    def _check_identity(self) -> None:
        """Check that the server that came back is the one that went."""
        now = self._identify(self.client.ask_once, self.identity["model"])
        if now != self.identity:
            raise ValueError(
                f"the server at {self.client.url} came back with another model ({now['root']}, before "
                f"{self.identity['root']}): the answers so far are kept; ask that one into another `output`"
            )


def ask_server(
    server: Server,
    data: ScienceQA,
    output: Path,
    settings: dict[str, Any],
    *,
    control: str | None = None,
    concurrency: int = CONCURRENCY,
    progress: Callable[[Problem, str], None] = lambda problem, text: None,
) -> dict[str, str]:
    """Ask every problem of ``data`` that ``output`` does not hold yet; return all answers by id.

    Args:
        server: who answers.
        data, output, settings, control, progress: as of ``answer_all``.
        concurrency: requests in flight; what the server does with them at once is its own.

    Raises:
        ValueError: ``output`` holds answers of other settings, a picture cannot be read, or the server refuses.
        RuntimeError: another run writes into ``output``, or the server was away for too long. Whatever it answered
            is in ``output``.
    """
    problems, prompts = word_all(server, data, control)
    settings = settings | {"control": control, "served": server.identity, "questions": digest_prompts(prompts)}
    with open_log(output, settings) as log:
        pictures = pictures_under(data, control, server.generation.seed)
        rest = []
        for problem in problems:
            if problem.id in log.texts:
                progress(problem, log.texts[problem.id])
            else:
                rest.append(problem)
        with closing(_ask_together(server, rest, prompts, pictures, concurrency)) as answers:
            for problem, text in answers:
                log.append(prompts, {problem.id: text})
                progress(problem, text)
        return log.finish(problems)


def _ask_together(
    server: Server,
    problems: Sequence[Problem],
    prompts: Mapping[str, str],
    pictures: Callable[[Problem], list[Image.Image]],
    concurrency: int,
) -> Generator[tuple[Problem, str], None, None]:
    """Keep ``concurrency`` requests in flight and give answers as they come; of a failure all others are told first."""
    rest, flying = iter(problems), dict[Future[str], Problem]()
    failure: Exception | None = None
    with ThreadPoolExecutor(concurrency) as pool:
        try:
            while True:
                while failure is None and len(flying) < concurrency and (problem := next(rest, None)) is not None:
                    try:
                        images = pictures(problem)
                    except Exception as error:  # whatever a file of pictures holds
                        failure = error
                        break
                    flying[pool.submit(server.answer, problem, prompts[problem.id], images)] = problem
                if not flying:
                    break
                for done in wait(flying, return_when=FIRST_COMPLETED).done:
                    problem = flying.pop(done)
                    try:
                        text = done.result()
                    except (ValueError, RuntimeError) as error:
                        failure = failure or error
                        server.client.stop_waiting()
                    else:
                        yield problem, text
        except BaseException:  # Ctrl-C, a full disk: what is in flight will not be kept
            server.client.cut()
            raise
    if failure is not None:
        raise failure


def _data_url(image: Image.Image) -> str:
    """Write a picture as the address that holds it, pixel by pixel."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _way_out(error: RefusedError) -> str:
    """Say what helps against a refusal, where that is known."""
    if error.status in (401, 403):
        return ": set OPENAI_API_KEY to the key that the server was started with"
    if "token" in str(error):
        return ": where prompt and answer are longer than the model's context, ask for fewer `max_new_tokens`"
    return ""
