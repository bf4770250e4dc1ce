"""How well a LLaVA says held-out answers: loss and share of tokens, and accuracy where questions have choices."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import PartialState
from accelerate.utils import reduce
from torch import Tensor
from tqdm import tqdm
from transformers import LlavaForConditionalGeneration

from sf_llava import files
from sf_llava.scienceqa import scoring
from sf_llava.scienceqa.run import Answerer, Generation, answer_all
from sf_llava.tuning.conversations import TuningData
from sf_llava.tuning.encoding import Encoded, Encoder
from sf_llava.tuning.loss import answers_alone, pick_said


def measure(
    model: LlavaForConditionalGeneration,
    encoder: Encoder,
    data: TuningData,
    output: Path,
    name: str,
    generation: Generation,
    batch_size: int,
) -> dict[str, Any]:
    """Measure a LLaVA on what is held out, or read what an earlier call measured; several processes share the work.

    Args:
        model: with one tower or another in place.
        encoder: of its processor, as it is with that tower.
        data: what is held out.
        output: directory; ``NAME.json`` and, of questions, ``NAME/`` with the answers are written there.
        name: of the tower.
        generation: of answers to questions.
        batch_size: conversations at once in a process.

    Returns:
        ``tokens`` (of a picture), ``loss`` and ``token_accuracy`` (over all tokens of answers); with questions also
        ``score``, see :func:`sf_llava.scienceqa.scoring.score`.
    """
    state, file = PartialState(), output / f"{name}.json"
    if file.exists():
        return files.read_json_object(file)
    rows, quiet = Encoded(data.held_out, encoder), None if state.is_main_process else True  # None: without a terminal
    collate = answers_alone(encoder.collate)
    sums = torch.zeros(3, dtype=torch.float64)  # loss, right tokens, tokens
    starts = range(state.process_index * batch_size, len(rows), state.num_processes * batch_size)
    for start in tqdm(starts, desc=f"{name}, loss", unit="batch", disable=quiet):
        batch = collate([rows[index] for index in range(start, min(start + batch_size, len(rows)))])
        sums += count_said(model, batch)
    loss, right, total = reduce(sums.to(state.device, torch.float32), "sum").tolist()
    count = encoder.image_tokens.count(encoder.processor.image_token)
    result: dict[str, Any] = {"tokens": count, "loss": loss / total, "token_accuracy": right / total}
    if data.questions is not None:
        total = -(-len(data.questions.problems) // state.num_processes)
        with tqdm(desc=name, total=total, unit="question", disable=quiet) as bar:
            texts = answer_all(
                Answerer(model, encoder.processor, generation),
                data.questions,
                output / name,
                {"tower": name},
                batch_size=batch_size,
                rank=state.process_index,
                num_processes=state.num_processes,
                wait=state.wait_for_everyone,
                progress=lambda problem, text: bar.update(),
            )
        result["score"] = scoring.score(data.questions.problems, texts)
    state.wait_for_everyone()
    if state.is_main_process:
        files.write_json(file, result)
    return result


@torch.inference_mode()
def count_said(model: LlavaForConditionalGeneration, batch: dict[str, Any]) -> Tensor:
    """Sum a batch of :func:`answers_alone`: loss in nats, tokens that are the likeliest, tokens; (3,) float64."""
    inputs = {key: value.to(model.device) if isinstance(value, Tensor) else value for key, value in batch.items()}
    labels = inputs.pop("labels")
    logits, targets = pick_said(model(**inputs, use_cache=False).logits, labels)
    loss = F.cross_entropy(logits, targets, reduction="sum")
    right = (logits.argmax(dim=-1) == targets).sum()
    return torch.tensor([loss.item(), right.item(), len(targets)], dtype=torch.float64)


def rows_of_table(results: dict[str, dict[str, Any]]) -> tuple[list[str], list[Sequence[object]]]:
    """Word results by tower as a table, the LLaVA's own tower first: header and rows."""
    first = next(iter(results.values()))
    header, rows = ["tower", "tokens", "held-out loss", "tokens right"], list[Sequence[object]]()
    if "score" in first:
        header += ["answers right", "95 %", "kept"]
    for name, result in results.items():
        row = [name, result["tokens"], f"{result['loss']:.4f}", f"{result['token_accuracy']:.2%}"]
        if "score" in result:
            low, high = result["score"]["interval"]
            share, best = result["score"]["accuracy"], first["score"]["accuracy"]
            row += [f"{share:.2%}", f"{100 * low:.1f}-{100 * high:.1f}", f"{share / best:.1%}" if best else "-"]
        rows.append(row)
    return header, rows
