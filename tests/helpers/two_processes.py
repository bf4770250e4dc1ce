"""What each of two gloo processes does in tests/llava/test_distributed.py."""

import json
import os
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from tuning_fixtures import LR, make_swapped, mean_loss, picture

from sf_llava import freeze_unused
from sf_llava.tuning.conversations import Conversation
from sf_llava.tuning.encoding import Encoder

STEPS, AT_ONCE = 3, 4
ANSWERS = ("a red dog .", "the blue cat .", "on a mat .", "the answer B .")  # of one length: halves weigh the same


def make(dtype: torch.dtype = torch.float32):
    model, processor = make_swapped()
    frozen = freeze_unused(model)
    assert frozen
    return model.to(dtype).train(), processor


def batches(processor, dtype: torch.dtype, rank: int = 0, world: int = 1):
    """A batch a step; of it every ``world``-th conversation."""
    encoder = Encoder(processor)
    for step in range(STEPS):
        rows = []
        for number in range(step * AT_ONCE + rank, (step + 1) * AT_ONCE, world):
            turns = ("what is in the image ?", ANSWERS[number % len(ANSWERS)])
            rows.append(encoder.encode(Conversation(str(number), turns, lambda at=number: picture(at))))
        batch = encoder.collate(rows)
        yield batch | {"pixel_values": batch["pixel_values"].to(dtype)}


def train(model: torch.nn.Module, given) -> list[float]:
    """The losses of a loop by hand, over all processes."""
    optimizer = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], lr=LR / 10)
    losses = []
    for batch in given:
        loss = mean_loss(model, batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        whole = loss.detach().clone()
        if dist.is_initialized():
            dist.all_reduce(whole, dist.ReduceOp.SUM)
            whole /= dist.get_world_size()
        losses.append(whole.item())
    return losses


def shard(model: torch.nn.Module) -> torch.nn.Module:
    """FSDP2 as a swapped LLaVA says it wants to be sharded."""
    for module in reversed(list(model.modules())):
        if type(module).__name__ in model._no_split_modules:
            fully_shard(module)
    return fully_shard(model)


def work(rank: int, world: int, meeting: str, output: str) -> None:
    """Train with DDP, then FSDP2; the first process writes the losses, and DDP's error with all weights trained."""
    os.environ |= {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=world)
    losses = {}
    model, processor = make_swapped()
    try:  # what `freeze_unused` is for
        train(DistributedDataParallel(model.train()), batches(processor, torch.float32, rank, world))
    except RuntimeError as error:
        losses["unfrozen"] = str(error)
    model, processor = make()
    losses["ddp"] = train(DistributedDataParallel(model), batches(processor, torch.float32, rank, world))
    for name, dtype in (("fsdp fp32", torch.float32), ("fsdp bf16", torch.bfloat16)):
        model, processor = make(dtype)
        losses[name] = train(shard(model), batches(processor, dtype, rank, world))
    if rank == 0:
        Path(output).write_text(json.dumps(losses))
    dist.destroy_process_group()
