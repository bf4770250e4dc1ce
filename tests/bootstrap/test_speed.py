"""What makes a bootstrap step fast changes nothing about it: a compiled teacher, no waiting for the device."""

import pytest
import torch
from safetensors.torch import load_file
from tiny import save_images, save_tiny_clip

from sf_llava.bootstrap import trainer
from sf_llava.bootstrap.config import BootstrapConfig
from sf_llava.bootstrap.run import bootstrap
from sf_llava.teachers.compiled import compile_frozen


@pytest.fixture
def settings(tmp_path) -> dict:
    save_tiny_clip(tmp_path / "clip")
    save_images(tmp_path / "images", 24)
    return dict(
        teacher=str(tmp_path / "clip"), data=f"folder:{tmp_path / 'images'}", steps=4, warmup_steps=1, batch_size=4,
        lr=1e-3, log_every=4, val_images=4, threads=1, workers=0, device="cpu", dtype="fp32",
    )  # fmt: skip


@pytest.mark.parametrize("align", ["none", "set"])
def test_a_compiled_teacher_teaches_the_same(settings, tmp_path, monkeypatch, align):
    bootstrap(BootstrapConfig.of(**settings, align=align, output=str(tmp_path / "plain")))
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    monkeypatch.setattr(trainer, "pays", lambda *_: True)
    monkeypatch.setattr(trainer, "compile_frozen", lambda *arguments: compile_frozen(*arguments, backend))
    bootstrap(BootstrapConfig.of(**settings, align=align, output=str(tmp_path / "compiled")))
    assert len(graphs) == 1
    plain, compiled = (load_file(tmp_path / run / "encoder" / "model.safetensors") for run in ("plain", "compiled"))
    for name, value in plain.items():
        torch.testing.assert_close(compiled[name], value, rtol=1e-4, atol=1e-6)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_on_a_gpu_a_step_never_waits_for_the_device(settings, tmp_path, monkeypatch, dtype):
    step = trainer.Trainer._train_step

    def watched(self, batches):
        if self.step >= 2:  # kernels and optimiser state are there
            torch.cuda.set_sync_debug_mode("error")
        try:
            return step(self, batches)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(trainer.Trainer, "_train_step", watched)
    changes = dict(device="auto", dtype=dtype, align="set", output=str(tmp_path / "run"))
    bootstrap(BootstrapConfig.of(**settings | changes))
