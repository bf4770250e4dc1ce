"""The ops on the CPU: reference, analytic form, registration."""

import pytest
import torch
from ops_cases import draw

from sf_llava.ops import analytic, force, reference, sample_and_mix, sample_points, sampling

SIZES = [
    dict(),
    dict(points=36, height=7, width=19, latents=9, batch=3),
    dict(points=2, channels=3, mixing_points=5, height=1, width=4),
]


def gradients(op, tensors, path):
    tensors = [tensor.clone().requires_grad_() for tensor in tensors]
    with force(path):
        output = op(*tensors)
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return [output, *torch.autograd.grad(output, tensors, weights.to(output.dtype))]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("op", [sample_points, sample_and_mix])
def test_ops_equal_the_reference_with_all_gradients(op, size):
    tensors = draw(**size)[: 3 if op is sample_points else 4]
    for ours, expected in zip(gradients(op, tensors, "op"), gradients(op, tensors, "reference"), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("op", [sample_points, sample_and_mix])
def test_lower_precision_stays_close_to_float64(op, dtype):
    count = 3 if op is sample_points else 4
    exact = [tensor.to(dtype).double() if index in (0, 3) else tensor for index, tensor in enumerate(draw())][:count]
    lower = [tensor.to(dtype) if index in (0, 3) else tensor.float() for index, tensor in enumerate(exact)]
    tolerance = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 1e-2}[dtype]
    for path in ("op", "auto"):
        for ours, expected in zip(gradients(op, lower, path), gradients(op, exact, "reference"), strict=True):
            assert (ours - expected).norm() <= tolerance * expected.norm(), path


def test_offsets_without_spread_have_finite_gradients():
    features, rois, _, _ = draw()
    offsets = torch.zeros(2, 5, 16, 2, dtype=torch.float64)
    for gradient in gradients(sample_points, (features, rois, offsets), "op"):
        assert gradient.isfinite().all()


@pytest.mark.parametrize("path", ["op", "reference"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_not_a_number_stays_visible(value, path):
    features, rois, offsets, _ = draw()
    rois[0, 0] = value  # a RoI between two infinities has no centre
    with force(path):
        samples = sample_points(features, rois, offsets)
    assert samples[0, 0].isnan().all()
    assert samples[0, 1:].isfinite().all()


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -1e30, 1e38])
@pytest.mark.parametrize("where", ["rois", "offsets"])
def test_grid_sample_sees_finite_points_alone(value, where, monkeypatch):
    grids = []
    sample = reference.F.grid_sample

    def watch(maps, grid, **options):
        grids.append(grid.detach())
        assert grid.isfinite().all(), "on a CPU this reads outside the map"
        return sample(maps, grid, **options)

    monkeypatch.setattr(reference.F, "grid_sample", watch)
    features, rois, offsets, _ = draw(dtype=torch.float32)
    rois, offsets = rois.float(), offsets.float()
    (rois if where == "rois" else offsets)[0, 0, 0] = value
    for path in ("reference", "auto"):
        with force(path):
            tensors = [tensor.requires_grad_() for tensor in (features, rois, offsets)]
            sample_points(*tensors).nan_to_num().sum().backward()
    assert len(grids) == 2


def test_points_far_outside_read_the_border_and_have_no_gradient():
    features, rois, offsets, _ = draw()
    rois[:, 0] = torch.tensor([1e6, 1e6, 1e6 + 1, 1e6 + 1])
    _, *expected = gradients(sample_points, (features, rois, offsets), "op")
    output, *ours = gradients(sample_points, (features, rois, offsets), "reference")
    assert torch.equal(output[:, 0], features[:, -1:, -1].expand(-1, 16, -1))
    assert not ours[1][:, 0].any() and not expected[1][:, 0].any()


@pytest.mark.parametrize("path", ["op", "reference"])
@pytest.mark.parametrize("op", [sample_points, sample_and_mix])
def test_gradcheck(op, path):
    sizes = dict(batch=1, latents=5, points=4, channels=2, mixing_points=3, height=5, width=4)
    features, rois, offsets, parameters = draw(**sizes)
    # Points at a pixel's centre or at the clip have no derivative: only the two usual RoIs and the outer ones remain.
    keep = [0, 1, 3]
    rois, offsets, parameters = rois[:, keep], offsets[:, keep], parameters[:, keep]
    tensors = [x.requires_grad_() for x in (features, rois, offsets, parameters)][: 3 if op is sample_points else 4]
    with force(path):
        assert torch.autograd.gradcheck(op, tensors)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_opcheck(dtype):
    features, rois, offsets, parameters = draw(dtype=dtype, latents=4, points=4, height=5, width=6)
    geometry = (rois.float(), offsets.float())
    with_grad = [x.requires_grad_() for x in (features, *geometry, parameters)]
    ops = torch.ops.sf_llava
    torch.library.opcheck(ops.sample_points.default, with_grad[:3])
    torch.library.opcheck(ops.sample_and_mix.default, with_grad)
    without_grad = [x.detach() for x in with_grad]
    samples = analytic.sample_forward(*without_grad[:3])
    torch.library.opcheck(ops.sample_points_backward.default, (samples, *without_grad[:3]))
    mixed = analytic.mix_forward(*without_grad)
    torch.library.opcheck(ops.sample_and_mix_backward.default, (mixed, *without_grad))


def test_rois_keep_float32_under_autocast():
    features, rois, offsets, parameters = (tensor.float() for tensor in draw())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for path in ("op", "reference", "auto"):
            with force(path):
                samples = sample_points(features, rois, offsets)
                mixed = sample_and_mix(features, rois, offsets, parameters.bfloat16())
            assert torch.equal(samples, analytic.sample_forward(features, rois, offsets)) or path != "op"
            assert samples.dtype == torch.float32
            assert mixed.dtype == torch.bfloat16
    torch.testing.assert_close(samples, reference.sample_points(features, rois, offsets), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("op", [sample_points, sample_and_mix])
def test_much_work_on_the_cpu_goes_through_the_op(op, monkeypatch):
    tensors = draw()[: 3 if op is sample_points else 4]
    calls = []
    analytic_forward = analytic.sample_forward
    monkeypatch.setattr(analytic, "sample_forward", lambda *inputs: calls.append(1) or analytic_forward(*inputs))
    few = op(*tensors)
    assert not calls
    monkeypatch.setattr(sampling, "FEW_SAMPLES", 2 * 5 * 16)  # as many samples as there are
    torch.testing.assert_close(op(*tensors), few, rtol=1e-9, atol=1e-10)
    assert calls


def test_an_unknown_path_is_refused():
    with pytest.raises(ValueError, match="reference"), force("fast"):
        pass


def test_the_choice_of_kernels_does_not_break_a_compiled_graph(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (9, 0))

    @torch.compile(fullgraph=True, backend="eager")
    def choose(features):
        return features + 1 if sampling._gpu_fits(0) else features

    assert choose(torch.zeros(1)) == 1
