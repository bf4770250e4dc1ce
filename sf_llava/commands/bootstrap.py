"""Bootstrap a SparseFormer from a frozen CLIP (or AugReg) ViT and unlabelled images.

On the embedded default, offline, in minutes (a drawn world and the small CLIP that ships with the package):

    sf-llava bootstrap

The paper's run, on eight GPUs (20 epochs of ImageNet-1K; add --fsdp through `accelerate config` for larger models):

    accelerate launch -m sf_llava bootstrap --teacher open_clip:ViT-L-14-quickgelu/openai \\
        --data folder:/data/imagenet/train --val-data folder:/data/imagenet/val --classes imagenet \\
        --output runs/sf-l-64 --num-latents 64

More latents or pixels from that student (5 epochs), then the ScienceQA stage (about 1,000 steps on its images):

    ... --stage continue --init-from runs/sf-l-64 --num-latents 128 --output runs/sf-l-128
    ... --stage scienceqa --init-from runs/sf-l-64 --data folder:/data/scienceqa/images/train --output runs/sf-l-64-sqa

Beyond the paper the tokens that LLaVA reads are aligned too, from images alone (--align none: the paper's loss).
A LLaVA keeps more where it reads along in the continuation: its projector and the first two layers of its LLM, without
a question, or all of it, with questions, for more time. And one encoder serves any number of latents between two:

    ... --stage scienceqa --init-from runs/sf-l-64 --align set+readout+position+layers --llava DIR
    ... --stage scienceqa --init-from runs/sf-l-64 --align set+llm+placed --llava DIR --questions DIR
    ... --num-latents 64 --elastic 16-196

For a LLaVA that cuts pictures into tiles, one student reads the whole picture in place of 2 x 2 of them:

    ... --stage continue --init-from runs/sf-l-16 --tiles 2 --image-size 672 --num-latents 64

In place of a SparseFormer, the teacher itself with fewer tokens, tuned by the same loss, pictures and steps (Table 4; a
zero-shot table of both: sf-llava zero-shot --encoder runs/sf-b-49 runs/tome-16 --reduced tome:16):

    ... --reduce tome:16 --output runs/tome-16

A killed run goes on with --resume, to the same numbers. Where training has diverged or does not fit into memory,
--resume may come with another --lr, --clip-norm, --dtype or --micro-batch-size. Expected: a run directory with
log.jsonl, tensorboard/, rois/ (pictures of where the student looks), encoder/ (for `from_pretrained`), results.json,
and a table of teacher beside student.
"""

from pathlib import Path

from sf_llava import cli


def main(argv: list[str]) -> None:
    """Parse, run, print."""
    from sf_llava.bootstrap.config import PARTS, BootstrapConfig

    config = BootstrapConfig.of(**cli.parse_fields(PARTS, argv, __doc__))

    from sf_llava.bootstrap.run import bootstrap

    cli.hide_loading_bars()
    go_on = "the same command with --resume goes on from the newest checkpoint"
    with cli.when_stopped(f"what {config.run.output} holds is whole; {go_on}"):
        results = bootstrap(config)
    if results:
        print_results(results, config.run.output)


def print_results(results: dict, output: str) -> None:
    """Print the table of teacher and student, and where things are."""
    from sf_llava.report import print_table

    zero_shot = results["zero_shot"]
    header = ["encoder", "cosine", "visual tokens", "parameters", "multiply-adds"]
    rows = [
        [
            encoder["name"],
            f"{results['val_cosine']:.4f}" if encoder["name"] == "student" else "",
            f"{encoder['tokens']}{' + CLS' * encoder.get('cls', True)}",
            f"{encoder['parameters'] / 1e6:.2f} M",
            f"{encoder['multiply_adds'] / 1e9:.3g} G",
        ]
        for encoder in results["encoders"]
    ]
    title = f"teacher and student after {results['step']} steps"
    if zero_shot:
        title += f", zero-shot on {zero_shot['num_images']:,} held-out images of {zero_shot['num_classes']} classes"
        header[1:1] = ["top-1", "95 %", "retention"]
        for row, score in zip(rows, zero_shot["encoders"], strict=True):
            low, high = score["top1_interval"]
            best = zero_shot["encoders"][0]["top1"]
            retention = f"{score['top1'] / best:.1%}" if best else "-"
            row[1:1] = [f"{score['top1']:.2%}", f"{100 * low:.1f}-{100 * high:.1f}", retention]
    print()
    print_table(title, header, rows)
    print(
        f"\ntrained in {results['seconds']:.0f} s, {results['images_per_second']:.0f} images/s, peak memory "
        f"{results['peak_memory_gb']:.1f} GB, {results['dtype']}, seed {results['seed']}, on "
        f"{results['environment']['device']}; {len(results['skipped_images'])} unreadable images skipped"
    )
    print(f"encoder   {output}/encoder\nlog       {output}/log.jsonl")
    if (pictures := Path(output) / "rois").exists():
        print(f"pictures  {pictures}")
