"""Bootstrap a SparseFormer from a frozen CLIP (or AugReg) ViT and unlabelled images.

On the embedded default, offline, in minutes (a drawn world and the small CLIP that ships with the package):

    python scripts/bootstrap_clip.py

The paper's run, on eight GPUs (20 epochs of ImageNet-1K; add --fsdp through `accelerate config` for larger models):

    accelerate launch scripts/bootstrap_clip.py --teacher open_clip:ViT-L-14-quickgelu/openai \\
        --data folder:/data/imagenet/train --val-data folder:/data/imagenet/val --classes imagenet \\
        --output runs/sf-l-64 --num-latents 64 --workers 12

More latents or pixels from that student (5 epochs), then the ScienceQA stage (about 1,000 steps on its images):

    ... --stage continue --init-from runs/sf-l-64 --num-latents 128 --output runs/sf-l-128
    ... --stage scienceqa --init-from runs/sf-l-64 --data folder:/data/scienceqa/images/train --output runs/sf-l-64-sqa

A killed run goes on with --resume. Expected: a run directory with log.jsonl, tensorboard/, rois/ (pictures of where the
student looks), encoder/ (for `from_pretrained`), results.json, and a table of teacher beside student.
"""

from sf_llava import cli


def main(argv: list[str]) -> None:
    """Parse, run, print."""
    from sf_llava.bootstrap.config import BootstrapConfig

    config = cli.parse_config(BootstrapConfig, argv, __doc__)

    from sf_llava.bootstrap.run import bootstrap

    results = bootstrap(config)
    print_results(results, config.output)


def print_results(results: dict, output: str) -> None:
    """Print the table of teacher and student, and where things are."""
    teacher, student = results["teacher"], results["student"]
    rows = [("", "teacher", "student")]
    if "val_top1" in results:
        rows.append(("validation top-1", f"{results['val_teacher_top1']:.1%}", f"{results['val_top1']:.1%}"))
    rows.append(("cosine to the teacher", "", f"{results['val_cosine']:.4f}"))
    rows.append(("visual tokens", str(teacher["tokens"]), str(student["tokens"])))
    rows.append(("parameters", f"{teacher['parameters'] / 1e6:.2f} M", f"{student['parameters'] / 1e6:.2f} M"))
    rows.append(("multiply-adds", f"{teacher['multiply_adds'] / 1e9:.3f} G", f"{student['multiply_adds'] / 1e9:.3f} G"))
    print()
    for name, *values in rows:
        print(f"{name:24}" + "".join(f"{value:>12}" for value in values))
    print(
        f"\n{results['seconds']:.0f} s, {results['images_per_second']:.0f} images/s, "
        f"peak {results['peak_memory_gb']:.1f} GB on {results['device']} in {results['dtype']}; "
        f"{len(results['skipped_images'])} unreadable images skipped"
    )
    print(f"encoder {output}/encoder   pictures {output}/rois   log {output}/log.jsonl   results {output}/results.json")


if __name__ == "__main__":
    cli.run(main)
