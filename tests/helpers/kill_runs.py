"""Kills bootstraps and continuations at random moments, resumes them, and compares with runs left alone.

    python tests/helpers/kill_runs.py --kills 40 --seed 1

Expected: a line a kill, then "identical" for every run. Every byte that depends on no clock is compared, and nothing
that a killed process was about to write may be left.
"""

import argparse
import json
import multiprocessing
import os
import random
import sys
import tempfile
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[2])]

from sf_llava.bootstrap.config import BootstrapConfig  # noqa: E402

TIMED = {"seconds", "images_per_second", "peak_memory_gb"}
CLOCKS_AND_SEEDS = {"progress.json", "random_states_0.pkl", "SHA256SUMS"}  # seeds: of Python itself, which nothing uses
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["kill_runs", "sf_llava.bootstrap.run"])  # a run starts at once, and forks none of ours


def run(config: BootstrapConfig) -> None:
    """Run or resume a bootstrap in this process, without a word but for errors."""
    import torch

    from sf_llava.bootstrap.run import bootstrap

    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
    torch.set_num_threads(1)
    bootstrap(config)


def finish(config: BootstrapConfig) -> None:
    """Run a bootstrap to its end, in a process of its own."""
    process = _context.Process(target=run, args=(config,))
    process.start()
    process.join()
    assert process.exitcode == 0, f"{config.run.output} ended with exit code {process.exitcode}"


def kill_at_random(config: BootstrapConfig, kills: int, draws: random.Random) -> list[str]:
    """Start ``config`` and kill it, up to ``kills`` times; say how far it had come each time.

    Every time it may take up to two more steps, or begin to write what follows the last one.
    """
    said: list[str] = []
    output = Path(config.run.output)
    while len(said) < kills and not (output / "results.json").exists():
        goal = min(newest(output) + draws.randrange(3), config.optimiser.steps)
        process = _context.Process(target=run, args=(config,))
        process.start()
        while process.exitcode is None and newest(output) < goal:
            process.join(0.005)
        process.join(draws.uniform(0, 0.5 if goal else 5))
        if process.exitcode is None:
            process.kill()
            process.join()
        assert process.exitcode in (-9, 0), f"{output} ended by itself, with exit code {process.exitcode}"
        said.append(f"at step {newest(output)}, {len(leftovers(output))} files half written")
    return said


def newest(output: Path) -> int:
    """Step of the newest checkpoint."""
    return max((int(path.name[5:]) for path in (output / "checkpoints").glob("step-*")), default=0)


def leftovers(output: Path) -> list[Path]:
    return list(output.rglob(".*"))


def contents(output: Path) -> dict[str, object]:
    """Everything in a run directory that depends on no clock, by path."""
    found: dict[str, object] = {}
    for path in sorted(output.rglob("*")):
        name = path.relative_to(output).as_posix()
        if path.is_dir() or name.startswith("tensorboard/") or path.name in CLOCKS_AND_SEEDS:
            continue
        data = path.read_bytes().replace(output.name.encode(), b"")
        found[name] = data
        if path.suffix == ".json":
            value = json.loads(data)
            found[name] = {key: kept for key, kept in value.items() if key not in TIMED | {"resume"}}
    return found


def compare(config: BootstrapConfig, kills: int, draws: random.Random) -> list[str]:
    """Kill a run ``kills`` times, as often from the beginning as it needs; what it leaves must be a whole run's."""
    whole = config.but(output=f"{config.run.output}-whole")
    finish(whole)
    said: list[str] = []
    while len(said) < kills:
        killed = config.but(output=f"{config.run.output}-{len(said)}", resume=True)
        said += kill_at_random(killed, kills - len(said), draws)
        finish(killed)
        left, right = contents(Path(whole.run.output)), contents(Path(killed.run.output))
        assert not leftovers(Path(killed.run.output))
        assert left.keys() == right.keys(), f"{killed.run.output}: {left.keys() ^ right.keys()}"
        differing = [name for name in left if left[name] != right[name]]
        assert not differing, f"{killed.run.output} differs in {differing}"
    return said


def make_runs(folder: Path) -> dict[str, BootstrapConfig]:
    """Write a tiny world; return a bootstrap in it, and two continuations: aligned, and with its teacher kept."""
    from tiny import save_images, save_tiny_clip

    images = f"folder:{save_images(folder / 'images', 24)}"
    numbers = dict(
        teacher=str(save_tiny_clip(folder / "clip")), data=images, val_data=images, steps=12, batch_size=8, lr=1e-3,
        log_every=1, save_every=1, eval_every=4, val_images=4, threads=1, device="cpu", dtype="fp32",
    )  # fmt: skip
    first = BootstrapConfig.of(**numbers, workers=1, warmup_steps=4, output=str(folder / "bootstrap"), align="none")
    aligned = BootstrapConfig.of(
        **numbers, workers=0, warmup_steps=0, output=str(folder / "aligned"), stage="scienceqa",
        init_from=str(folder / "bootstrap-whole"), align="set+readout+position",
    )  # fmt: skip
    return {"bootstrap": first, "aligned continuation": aligned, "plain continuation": plain(aligned)}


def plain(aligned: BootstrapConfig) -> BootstrapConfig:
    """The same, not aligned: its pictures are shown four times, and the teacher runs for the first of them."""
    return aligned.but(align="none", output=aligned.run.output.replace("aligned", "plain"))


def main() -> None:
    """Parse, kill, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=40, help="of each run (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (%(default)s)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for name, config in make_runs(Path(folder)).items():
            for number, said in enumerate(compare(config, arguments.kills, random.Random(arguments.seed)), 1):
                print(f"{name}, kill {number}: {said}")
            print(f"{name}: identical", flush=True)


if __name__ == "__main__":
    main()
