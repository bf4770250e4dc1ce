"""What the small models' trainings survive: kills before the first checkpoint, flipped bits, divergence, other data."""

import json

import pytest
import torch
from torch import nn

from sf_llava.mini.training.clip_training import TrainingConfig, train

SHORT = TrainingConfig(steps=8, batch_size=1, evaluate_every=8, save_every=2)


class Lines(nn.Module):
    """One matrix for each optimizer."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.ModuleDict({"layers": nn.ModuleList([nn.Linear(3, 3, bias=False)])})
        self.out = nn.Linear(3, 1)


def losses(model: Lines, head: None, batch: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"loss": (model.out(model.block["layers"][0](batch)) - 1).square().mean()}


def fit(run_dir, stop_before: int | None = None, nan_at: int | None = None, data: str = "") -> Lines:
    torch.manual_seed(0)
    model = Lines()

    def make_batch(step: int) -> torch.Tensor:
        if step == stop_before:
            raise KeyboardInterrupt
        batch = torch.randn(4, 3, generator=torch.Generator().manual_seed(step))
        return batch / 0 if step == nan_at else batch

    train(model, None, make_batch, lambda model: {}, SHORT, run_dir, losses, data=data)
    return model


def weights(model: nn.Module) -> torch.Tensor:
    return torch.cat([weight.flatten() for weight in model.parameters()])


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> torch.Tensor:
    """Weights of a training that nothing disturbed."""
    return weights(fit(tmp_path_factory.mktemp("whole")))


def stopped(run_dir, before: int):
    with pytest.raises(KeyboardInterrupt):
        fit(run_dir, stop_before=before)
    return run_dir


def steps(run_dir) -> list[int]:
    return [json.loads(line)["step"] for line in (run_dir / "log.jsonl").read_text().splitlines()]


def test_a_kill_before_the_first_checkpoint_leaves_no_line_twice(tmp_path, whole):
    assert torch.equal(weights(fit(stopped(tmp_path, 1))), whole)
    assert steps(tmp_path) == list(range(8))


@pytest.mark.parametrize("where", [0.2, 0.5, 0.8, 0.999])
def test_a_flipped_bit_costs_the_newest_checkpoint_alone(tmp_path, whole, where, capsys):
    newest = stopped(tmp_path, 7) / "checkpoint.pt"
    data = bytearray(newest.read_bytes())
    sound = torch.load(newest, weights_only=True)
    place = data.index(sound["model"]["out.weight"].numpy().tobytes()) if where == 0.5 else int(where * len(data))
    data[place] ^= 1
    newest.write_bytes(data)
    assert torch.equal(weights(fit(tmp_path)), whole)
    assert steps(tmp_path) == list(range(8))
    if where == 0.5:
        assert "is damaged or missing: going on from" in capsys.readouterr().out


def test_damaged_checkpoints_alone_are_named(tmp_path):
    stopped(tmp_path, 7)
    for name in ("checkpoint.pt", "checkpoint-before.pt"):
        (tmp_path / name).write_bytes(b"PK")
    with pytest.raises(ValueError, match=r"checkpoint\.pt and .*checkpoint-before\.pt are damaged: remove them"):
        fit(tmp_path)


def test_a_kill_between_the_two_renames_goes_on_from_the_older_one(tmp_path, whole):
    stopped(tmp_path, 7)
    (tmp_path / "checkpoint.pt").unlink()
    assert torch.equal(weights(fit(tmp_path)), whole)


def test_a_damaged_line_takes_no_other_with_it(tmp_path, capsys):
    log = stopped(tmp_path, 7) / "log.jsonl"
    log.write_bytes(log.read_bytes().replace(b'{"step": 2', b'{"step\xff 2'))
    fit(tmp_path)
    assert steps(tmp_path) == [0, 1, 3, 4, 5, 6, 7]
    assert "1 damaged lines are left out (3)" in capsys.readouterr().out


def test_divergence_is_said_and_the_last_finite_checkpoint_stays(tmp_path):
    with pytest.raises(RuntimeError, match="diverged: the loss is nan at step 5"):
        fit(tmp_path, nan_at=5)
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["step"] == 4


def test_other_data_is_refused_and_another_thread_count_said(tmp_path, capsys):
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path, stop_before=7, data="photographs")
    with pytest.raises(ValueError, match="the same numbers and data"):
        fit(tmp_path, data="other photographs")
    torch.set_num_threads(2)
    try:
        fit(tmp_path, data="photographs")
    finally:
        torch.set_num_threads(1)
    assert "going on with 2 threads instead of 1" in capsys.readouterr().out
