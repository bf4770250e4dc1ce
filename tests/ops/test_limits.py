"""What the ops refuse, alike on every path, and what the kernels are asked for."""

import pytest
import torch
from ops_cases import draw

from sf_llava.ops import force, sample_and_mix, sample_points
from sf_llava.ops.limits import kernels_fit

PATHS = ["reference", "op", "auto"]
WRONG = {
    "RoIs for one latent": lambda f, r, o, p: (f, r[:, :1], o, p),
    "RoIs of one image": lambda f, r, o, p: (f, r[:1], o, p),
    "RoIs without a corner": lambda f, r, o, p: (f, r[..., :2], o, p),
    "RoIs without images": lambda f, r, o, p: (f, r[0], o, p),
    "features of another image": lambda f, r, o, p: (torch.cat([f, f[:1]]), r, o, p),
    "features of one image": lambda f, r, o, p: (f[:1], r, o, p),
    "a map without extent": lambda f, r, o, p: (f[:, :0], r, o, p),
    "one offset": lambda f, r, o, p: (f, r, o[:, :, :1], p),
    "offsets for one latent": lambda f, r, o, p: (f, r, o[:, :1], p),
    "offsets of three numbers": lambda f, r, o, p: (f, r, torch.cat([o, o[..., :1]], dim=-1), p),
    "whole numbers": lambda f, r, o, p: (f, r, o.long(), p),
    "another device": lambda f, r, o, p: (f, r.to("meta"), o, p),
}
WRONG_PARAMETERS = {
    "one number too many": lambda p: torch.cat([p, p[..., :1]], dim=-1),
    "one number too few": lambda p: p[..., :-1],
    "channel mixing alone": lambda p: p[..., : 64 * 64],
    "parameters of one image": lambda p: p[:1],
    "parameters for one latent": lambda p: p[:, :1],
    "parameters without latents": lambda p: p[:, 0],
}


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("wrong", WRONG)
def test_every_path_refuses_what_does_not_belong_together(wrong, path):
    features, rois, offsets, parameters = WRONG[wrong](*draw())
    with force(path):
        with pytest.raises(ValueError, match="expected"):
            sample_points(features, rois, offsets)
        with pytest.raises(ValueError, match="expected"):
            sample_and_mix(features, rois, offsets, parameters)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("wrong", WRONG_PARAMETERS)
def test_every_path_refuses_parameters_of_another_length_or_batch(wrong, path):
    *tensors, parameters = draw()
    with force(path), pytest.raises(ValueError, match=r"parameters \(B, N, C C \+ Q P\), got \(2, 14, 14, 64\)"):
        sample_and_mix(*tensors, WRONG_PARAMETERS[wrong](parameters))


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("none", [dict(batch=0), dict(latents=0)])
def test_no_images_and_no_latents_are_no_fault(none, path):
    tensors = [tensor.requires_grad_() for tensor in draw(**none)]
    with force(path):
        samples, mixed = sample_points(*tensors[:3]), sample_and_mix(*tensors)
    assert samples.shape == (*tensors[2].shape[:3], 64)
    assert mixed.shape == (*tensors[1].shape[:2], 32 * 64)
    gradients = torch.autograd.grad(samples.sum() + mixed.sum(), tensors)
    assert all(not gradient.any() for gradient in gradients)


def test_a_graph_of_open_sizes_serves_them_all_and_refuses_the_wrong_ones():
    graphs = []
    compiled = torch.compile(
        sample_and_mix, fullgraph=True, dynamic=True, backend=lambda graph, _: graphs.append(1) or graph
    )
    for batch, latents in ((5, 7), (3, 9), (40, 23)):  # fewer samples than the op is worth, and more
        tensors = draw(batch=batch, latents=latents, points=12)
        torch.testing.assert_close(compiled(*tensors), sample_and_mix(*tensors))
    assert len(graphs) == 1
    with pytest.raises(Exception, match="expected features"):
        compiled(tensors[0][:3], *tensors[1:])


def test_no_size_is_read_where_none_is_known():
    tensors = draw()
    for tensor in tensors:
        torch._dynamo.decorators.mark_unbacked(tensor, (0, 1))
    compiled = torch.compile(sample_and_mix, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(*tensors), sample_and_mix(*tensors))


def inputs(channels=64, points=16, mixing_points=32, features=torch.float16, parameters=None, geometry=torch.float32):
    shapes = [(1, 4, 4, channels), (1, 2, 4), (1, 2, points, 2), (1, 2, channels**2 + mixing_points * points)]
    dtypes = [features, geometry, geometry, parameters or features]
    return [torch.empty(shape, dtype=dtype, device="meta") for shape, dtype in zip(shapes, dtypes, strict=True)]


@pytest.mark.parametrize(
    "most", [dict(), dict(points=32, mixing_points=64), dict(channels=16, points=64), dict(features=torch.float32)]
)
def test_kernels_are_asked_for_what_fits(most):
    assert kernels_fit(*inputs(**most))
    assert kernels_fit(*inputs(**most)[:3])
    assert kernels_fit(*inputs(**most, geometry=torch.float16))


@pytest.mark.parametrize(
    "more",
    [
        dict(points=33),
        dict(points=100),
        dict(mixing_points=65),
        dict(channels=128),
        dict(channels=48),
        dict(features=torch.float32, points=17),
        dict(features=torch.float32, channels=128),
        dict(parameters=torch.float32, points=17),
        dict(features=torch.float64),
        dict(geometry=torch.float64),
    ],
)
def test_kernels_are_not_asked_for_what_spills_or_loses_precision(more):
    assert not kernels_fit(*inputs(**more))


def test_kernels_are_not_asked_for_maps_that_an_int32_cannot_address():
    features, rois, offsets, _ = inputs()
    assert kernels_fit(features.new_empty(1, 4096, 8191, 64), rois, offsets)
    assert not kernels_fit(features.new_empty(1, 4096, 8192, 64), rois, offsets)
