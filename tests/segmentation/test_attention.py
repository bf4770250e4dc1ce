"""Dense attention and its bias agree with their definitions in float64, whatever RoIs come."""

import math

import pytest
import torch

from sf_llava.segmentation.attention import ROI_SPREAD, dense_attention, geometric_bias
from sf_llava.segmentation.loss import dense_cross_entropy

ODD_ROIS = (
    (0.1, 0.2, 0.6, 0.9),
    (0.6, 0.9, 0.1, 0.2),  # corners the other way round: the same region
    (0.5, 0.5, 0.5, 0.5),  # no size
    (0.3, 0.1, 0.3, 0.8),  # no width
    (-3.0, -2.0, -2.5, -1.0),  # outside
    (1e4, 1e4, 1e4 + 1, 1e4 + 1),  # far outside
    (-5.0, -5.0, 6.0, 6.0),  # the whole picture many times
)


def bias_by_hand(roi, x, y, width, height):
    """The logarithm of a Gaussian in one RoI at one place."""
    x0, y0, x1, y1 = roi
    across, down = max(abs(x1 - x0), 1 / width), max(abs(y1 - y0), 1 / height)
    return -0.5 * (
        ((x - (x0 + x1) / 2) / (ROI_SPREAD * across)) ** 2 + ((y - (y0 + y1) / 2) / (ROI_SPREAD * down)) ** 2
    )


def attention_by_hand(queries, keys, values, rois, importance):
    """Equation 7, place by place."""
    batch, height, width, size = queries.shape
    rows = []
    for b in range(batch):
        for y in range(height):
            for x in range(width):
                scores = []
                for n in range(keys.shape[1]):
                    x0, y0, x1, y1 = rois[b, n]
                    across = torch.maximum((x1 - x0).abs(), torch.tensor(1 / width, dtype=rois.dtype))
                    down = torch.maximum((y1 - y0).abs(), torch.tensor(1 / height, dtype=rois.dtype))
                    far_x = ((x + 0.5) / width - (x0 + x1) / 2) / (ROI_SPREAD * across)
                    far_y = ((y + 0.5) / height - (y0 + y1) / 2) / (ROI_SPREAD * down)
                    match = (queries[b, y, x] * keys[b, n]).sum() / math.sqrt(size)
                    scores.append(match - 0.5 * (far_x**2 + far_y**2) + importance[b, n])
                weights = torch.stack(scores).exp()
                rows.append((weights[:, None] * values[b]).sum(dim=0) / weights.sum())
    return torch.stack(rows).view(batch, height, width, -1)


def inputs(dtype=torch.float64, latents=5):
    generator = torch.Generator().manual_seed(0)

    def draw(*size):
        return torch.randn(*size, generator=generator, dtype=torch.float64).to(dtype)

    corners = draw(2, latents, 2) / 2
    rois = torch.cat([corners, corners + 0.3 + draw(2, latents, 2).abs()], dim=-1)
    return [draw(2, 3, 4, 6), draw(2, latents, 6), draw(2, latents, 7), rois, draw(2, latents)]


def test_values_and_all_gradients_are_those_of_the_definition():
    ours, theirs = ([tensor.requires_grad_() for tensor in inputs()] for _ in range(2))
    found, wanted = dense_attention(*ours), attention_by_hand(*theirs)
    torch.testing.assert_close(found, wanted)
    weights = torch.randn(wanted.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for ours_of, theirs_of in zip(
        torch.autograd.grad((found * weights).sum(), ours), torch.autograd.grad((wanted * weights).sum(), theirs),
        strict=True,
    ):  # fmt: skip
        torch.testing.assert_close(ours_of, theirs_of)


def test_float32_and_bfloat16_are_near_float64():
    wanted = dense_attention(*inputs())
    torch.testing.assert_close(dense_attention(*inputs(torch.float32)).double(), wanted, rtol=1e-4, atol=1e-5)
    *coarse, _, importance = inputs(torch.bfloat16)
    exact = inputs()
    found = dense_attention(*coarse, exact[3].float(), importance)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.double(), wanted, rtol=0.05, atol=0.05)


def test_a_latent_of_importance_minus_infinity_is_masked():
    tensors = inputs()
    tensors[4][:, 2] = -math.inf
    tensors = [tensor.requires_grad_() for tensor in tensors]
    found = dense_attention(*tensors)
    kept = [0, 1, 3, 4]
    queries, *others = tensors
    torch.testing.assert_close(found, dense_attention(queries, *(tensor[:, kept] for tensor in others)))
    for gradient in torch.autograd.grad(found.square().sum(), others):
        assert gradient.isfinite().all() and not gradient[:, 2].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_bias_of_odd_rois_is_finite_and_right(dtype):
    rois = torch.tensor([ODD_ROIS], dtype=dtype, requires_grad=True)
    bias = geometric_bias(rois, 3, 5)
    assert bias.shape == (1, 15, len(ODD_ROIS)) and bias.dtype == dtype and (bias <= 0).all()
    for place in range(15):
        y, x = divmod(place, 5)
        wanted = [bias_by_hand(roi, (x + 0.5) / 5, (y + 0.5) / 3, 5, 3) for roi in ODD_ROIS]
        torch.testing.assert_close(
            bias[0, place].double(), torch.tensor(wanted, dtype=torch.float64), rtol=1e-4, atol=1e-6
        )
    (gradient,) = torch.autograd.grad(bias.sum(), rois)
    assert gradient.isfinite().all()


def test_latents_far_away_are_not_read_but_where_all_are_far():
    near, far = torch.tensor([[0.4, 0.4, 0.6, 0.6]]), torch.tensor([[50.0, 50.0, 50.1, 50.1]])
    values = torch.tensor([[[1.0], [-1.0]]])
    zero = torch.zeros(1, 2, 2, 4), torch.zeros(1, 2, 4)
    read = dense_attention(*zero, values, torch.cat([near, far])[None], torch.zeros(1, 2))
    assert (read == 1).all()
    read = dense_attention(*zero, values, torch.cat([far, far])[None], torch.zeros(1, 2))
    assert read.isfinite().all() and (read == 0).all()


def test_pixels_that_do_not_count_have_no_part_in_the_loss():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 4, 4, 3, generator=generator, dtype=torch.float32, requires_grad=True)
    labels = torch.randint(0, 3, (2, 4, 4), generator=generator)
    labels[0, :2] = labels[1, 3, 3] = 255
    counted = labels != 255
    chances = logits.double().log_softmax(dim=-1)
    wanted = -chances[counted].gather(1, labels[counted][:, None]).mean()
    loss = dense_cross_entropy(logits, labels)
    torch.testing.assert_close(loss.double(), wanted)
    (gradient,) = torch.autograd.grad(loss, logits, retain_graph=True)
    (reference,) = torch.autograd.grad(wanted, logits)
    torch.testing.assert_close(gradient, reference)
    assert not gradient[0, :2].any() and not gradient[1, 3, 3].any()
    nothing = dense_cross_entropy(logits, torch.full_like(labels, 255))
    assert nothing == 0 and not torch.autograd.grad(nothing, logits)[0].any()
