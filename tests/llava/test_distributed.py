"""Two processes train a swapped LLaVA to the losses of one: DistributedDataParallel, and FSDP2 in fp32 and bf16."""

import json

import pytest
import torch
import two_processes
from accelerate import FullyShardedDataParallelPlugin
from tiny_llava import make_encoder, make_llava
from torch import multiprocessing

from sf_llava.llava import restore, swap


@pytest.fixture(scope="module")
def losses(tmp_path_factory) -> dict[str, list[float]]:
    folder = tmp_path_factory.mktemp("two")
    told = str(folder / "losses.json")
    multiprocessing.spawn(two_processes.work, (2, str(folder / "meeting"), told), nprocs=2)
    return json.loads((folder / "losses.json").read_text())


@pytest.mark.parametrize(
    ("way", "dtype", "tolerance"),
    [("ddp", torch.float32, 1e-5), ("fsdp fp32", torch.float32, 1e-5), ("fsdp bf16", torch.bfloat16, 5e-3)],
)
def test_two_processes_train_as_one_does(losses, way, dtype, tolerance):
    model, processor = two_processes.make(dtype)
    expected = two_processes.train(model, two_processes.batches(processor, dtype))
    assert losses[way] == pytest.approx(expected, rel=tolerance)
    assert len(expected) == 3 and expected[2] < 0.99 * expected[0]


def test_unused_weights_that_are_not_frozen_end_such_a_training(losses):
    assert "Expected to have finished reduction in the prior iteration" in losses["unfrozen"]


def test_a_swapped_llava_names_its_units_as_one_that_was_built_so(llava, processor):
    before = llava._no_split_modules
    record = swap(llava, processor, make_encoder(16))
    assert set(llava._no_split_modules) == set(make_llava(make_encoder(16).config)._no_split_modules)
    assert set(llava._no_split_modules) <= {type(module).__name__ for module in llava.modules()}
    plugin = FullyShardedDataParallelPlugin(fsdp_version=2, auto_wrap_policy="transformer_based_wrap")
    plugin.set_auto_wrap_policy(llava)  # which raises for a unit that is not there
    restore(record)
    assert llava._no_split_modules == before
