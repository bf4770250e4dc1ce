"""sf-llava recover: before and after, merged, saved, resumed to the bit."""

import json

import pytest
import torch
from PIL import Image
from tiny_llava import make_encoder, make_llava
from transformers import TrainerCallback
from tuning_fixtures import mean_loss, picture, write_conversations

from sf_llava import load_llava
from sf_llava.commands import recover
from sf_llava.data import loading
from sf_llava.llava import encode_prompts
from sf_llava.tuning import run
from sf_llava.tuning.encoding import Encoder
from sf_llava.tuning.recipe import Recipe
from sf_llava.tuning.training import find_checkpoint, make_arguments

pytest.importorskip("peft", reason="peft is not installed (extra 'train')")


@pytest.fixture
def folder(tmp_path, processor, monkeypatch):
    """A directory with a LLaVA, an encoder and data."""
    make_llava().save_pretrained(tmp_path / "llava")
    processor.save_pretrained(tmp_path / "llava")
    make_encoder(16).save_pretrained(tmp_path / "encoder")
    write_conversations(tmp_path, 12)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def recovery(output: str, train: str = "projector+lora", **changes) -> run.Recovery:
    recipe = Recipe(train=train, batch_size=4, lr=1e-2, rank=4, save_steps=2, **({"steps": 6} | changes))
    return run.Recovery("llava", "encoder", "data.json", output, images="images", held_out=2, recipe=recipe)


class Kill(TrainerCallback):
    """Ends a training in the middle of a step, as a signal does."""

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 3:
            raise KeyboardInterrupt


def weights(path) -> dict[str, torch.Tensor]:
    return load_llava(path)[0].state_dict()


def test_a_killed_recovery_goes_on_to_the_bit(folder):
    whole = run.recover(recovery("whole"))
    with pytest.raises(KeyboardInterrupt):
        run.recover(recovery("killed"), (Kill(),))
    assert find_checkpoint(folder / "killed/checkpoints").endswith("checkpoint-2")
    torn = folder / "killed/checkpoints/checkpoint-3"  # as a kill while it is written leaves it
    torn.mkdir()
    (torn / "trainer_state.json").write_text('{"global_')
    resumed = run.recover(recovery("killed"))
    assert resumed["towers"] == whole["towers"] and not torn.exists()
    ours, theirs = weights("killed/llava"), weights("whole/llava")
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    again = run.recover(recovery("whole"))  # all is read
    assert again["towers"] == whole["towers"] and again["training"] == whole["training"]


def test_what_is_trained_moves_and_the_rest_does_not(folder):
    before = make_llava().state_dict()
    embedding = before["model.language_model.embed_tokens.weight"]
    tower = make_encoder(16).state_dict()
    moves = {"projector": {"multi_modal_projector"}, "lora": {"language_model"}}
    moves["projector+llm"] = {"multi_modal_projector", "language_model"}
    for train, expected in moves.items():
        results = run.recover(recovery(train, train))
        after = weights(f"{train}/llava")
        moved = {name.split(".")[1] for name, value in after.items()
                 if "vision_tower" not in name and not torch.equal(value, before[name])}  # fmt: skip
        assert moved == expected
        assert torch.equal(after["model.language_model.embed_tokens.weight"], embedding)
        assert all(torch.equal(after[f"model.vision_tower.{name}"], value) for name, value in tower.items())
        assert results["towers"]["recovered"]["loss"] < 0.95 * results["towers"]["swapped"]["loss"]
        assert [one["tokens"] for one in results["towers"].values()] == [16, 16, 16]


def test_what_is_saved_says_what_was_measured(folder):
    results = run.recover(recovery("out"))
    model, processor = load_llava("out/llava")
    assert type(model.model.vision_tower).__name__ == "SparseFormerModel"
    assert not [name for name, _ in model.named_parameters() if "lora" in name]
    data = run.open_data("data.json", "images", "test", 2, seed=0)
    encoder = Encoder(processor)
    with torch.no_grad():
        loss = mean_loss(model, encoder.collate([encoder.encode(one) for one in data.held_out]))
    assert results["towers"]["recovered"]["loss"] == pytest.approx(loss.item(), abs=1e-4)
    inputs = encode_prompts(processor, ["USER: <image>\nwhat is in the image ? ASSISTANT:"], [[picture(0)]])
    assert model.generate(**inputs, max_new_tokens=3, do_sample=False).shape[0] == 1


def test_the_command_prints_before_and_after_and_what_it_left_out(folder, capsys):
    entries = json.loads((folder / "data.json").read_text())
    (folder / "data.json").write_text(json.dumps([*entries, entries[0] | {"image": "gone.png"}]))
    flags = ["--data", "data.json", "--images", "images", "--output", "out", "--steps", "2", "--batch-size", "4",
             "--micro-batch-size", "2", "--rank", "2",
             "--gradient-checkpointing", "--dtype", "bf16", "--device", "cpu"]  # fmt: skip
    recover.main(["llava", "encoder", *flags])
    out = capsys.readouterr().out
    assert "left out, the picture is missing: 1 (the first: entry 13 (0))" in out
    rows = [line.split()[:2] for line in out.splitlines() if line.startswith(("original", "swapped", "recovered "))]
    assert rows == [["original", "16"], ["swapped", "16"], ["recovered", "16"]]
    assert "held-out loss" in out and "in 2 steps" in out and "answers right" not in out
    told = json.loads((folder / "out/results.json").read_text())
    assert load_llava("out/llava", dtype="auto")[0].dtype == torch.bfloat16
    assert told["left_out"] == {"the picture is missing": 1} and told["training"]["steps"] == 2
    recover.main(["llava", "encoder", *flags[:-2], "--save-steps", "1"])  # finished: nothing is trained again
    assert json.loads((folder / "out/results.json").read_text())["training"] == told["training"]
    with pytest.raises(ValueError, match=r"other settings \(rank was 2, now 3\): name another `output`"):
        recover.main(["llava", "encoder", *flags, "--rank", "3"])
    (folder / "images/0.png").rename(folder / "images/gone.png")
    with pytest.raises(ValueError, match=r"other settings \(conversations was"):
        recover.main(["llava", "encoder", *flags])


@pytest.mark.slow
def test_questions_are_answered_before_and_after(tmp_path, monkeypatch, capsys):
    from sf_llava import SparseFormerModel, preset

    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    SparseFormerModel(preset("sf-mini")).save_pretrained("runs/quickstart/encoder")
    flags = "--data mini:32 --held-out 2 --steps 1 --batch-size 4 --max-new-tokens 40"
    recover.main(flags.split())
    out = capsys.readouterr().out
    assert "answers right" in out and "recovered - swapped, all questions" in out
    towers = json.loads((tmp_path / "runs/recover/results.json").read_text())["towers"]
    assert [towers[name]["tokens"] for name in towers] == [64, 16, 16]
    assert towers["original"]["score"]["accuracy"] == 1.0 and towers["original"]["token_accuracy"] > 0.95


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (dict(encoder="wide"), ValueError, "the projector takes 64 channels but the encoder gives 32"),
        (dict(encoder="nowhere"), ValueError, "nowhere"),
        (dict(llava="encoder"), ValueError, "is no LLaVA"),
        (dict(data="data.json", images=None), ValueError, "say in `images` which folder"),
        (dict(images="images", held_out=99), ValueError, "`held_out` 99 leaves nothing"),
        (dict(recipe=Recipe(batch_size=5, micro_batch_size=2)), ValueError, "is no multiple of 1 process"),
    ],
)
def test_what_does_not_fit_is_one_sentence(folder, changes, error, message):
    make_encoder(16, hidden_size=32, intermediate_size=64).save_pretrained(folder / "wide")
    fields = vars(recovery("out")) | changes
    with pytest.raises(error, match=message):
        run.recover(run.Recovery(**fields))


def test_a_directory_of_anything_else_is_left_alone(folder):
    (folder / "out").mkdir()
    Image.new("RGB", (4, 4)).save(folder / "out/mine.png")
    with pytest.raises(ValueError, match=r"out holds mine.png without the config.json of a recovery"):
        run.recover(recovery("out"))
    assert [path.name for path in (folder / "out").iterdir()] == ["mine.png"]


def test_unknown_words_list_the_known_ones():
    with pytest.raises(ValueError, match="unknown `train` 'all': expected projector, lora, projector"):
        Recipe(train="all")
    with pytest.raises(ValueError, match="unknown `dtype` 'fp16': tuned is in fp32 or bf16"):
        run.Recovery("llava", "encoder", "data.json", "out", dtype="fp16")
    with pytest.raises(SystemExit):
        recover.parse(["llava", "encoder"])


def test_batches_are_shared_among_processes_and_accumulated():
    assert Recipe(batch_size=32).accumulate(4) == (8, 1)
    assert Recipe(batch_size=32, micro_batch_size=2).accumulate(4) == (2, 4)
    with pytest.raises(ValueError, match="`batch_size` 6 is no multiple of 4 process"):
        Recipe(batch_size=6).accumulate(4)


def test_data_processes_begin_as_elsewhere_where_trainer_lets_us_say_how(tmp_path):
    arguments = make_arguments(Recipe(workers=2), 100, tmp_path, on_cpu=True)
    if not hasattr(arguments, "dataloader_multiprocessing_context"):
        pytest.skip("this release of transformers has no such argument")
    assert arguments.dataloader_multiprocessing_context == loading.START
    assert make_arguments(Recipe(workers=0), 100, tmp_path, on_cpu=True).dataloader_multiprocessing_context is None
