"""SparseFormer v1 as its paper and released models describe it, in float64: nothing shared, nothing fast.

    image or clip (F, 3, S, S) -> 7x7 convolution of stride 2, ReLU, 3x3 max-pooling of stride 2, channels normalised
    4 times in the focusing width, then once in the cortex's: attend, move the RoI, read and mix, feed forward
    the other blocks of the cortex: attend, feed forward; mean of the latents, norm, classifier

It takes a state dict in the released layout, of the video code too.
"""

import math

import numpy as np

HEADS = 64
ITERATIONS = 4


def classify(state, frames):
    """Logits (classes,), latents (N, D) and last RoIs (N, 2 A) of one image (1, 3, S, S) or clip (F, 3, S, S)."""
    w = {name: value.double().numpy() for name, value in state.items()}
    axes = w["initial_roi.weight"].shape[1] // 2
    maps = [extract(w, frame) for frame in np.asarray(frames, dtype=np.float64)]  # F times (C, H, W)
    tokens, rois = w["initial_embedding.weight"].copy(), w["initial_roi.weight"].copy()
    for _ in range(ITERATIONS):
        tokens, rois = read_block(w, "layers.0", tokens, rois, maps, axes)
    tokens = norm(linear(tokens, w, "layers.1.0"), w, "layers.1.1", 1e-6)
    tokens, rois = read_block(w, "layers.2", tokens, rois, maps, axes)
    layer = 3
    while f"layers.{layer}.norm1.weight" in w:
        tokens = feed_forward(w, f"layers.{layer}", attend(w, f"layers.{layer}", tokens))
        layer += 1
    pooled = norm(tokens.mean(axis=0), w, "norm", 1e-6)
    return linear(pooled, w, "proj"), tokens, rois


def extract(w, frame):
    kernel, bias = w["feat_extractor.conv1.weight"], w["feat_extractor.conv1.bias"]
    kernel = kernel.reshape(kernel.shape[0], 3, 7, 7)
    padded = np.pad(frame, ((0, 0), (3, 3), (3, 3)))
    side = frame.shape[-1] // 2
    convolved = np.zeros((len(kernel), side, side))
    for y in range(side):
        for x in range(side):
            patch = padded[:, 2 * y : 2 * y + 7, 2 * x : 2 * x + 7]
            convolved[:, y, x] = (kernel * patch).sum(axis=(1, 2, 3)) + bias
    rectified = np.pad(np.maximum(convolved, 0), ((0, 0), (1, 1), (1, 1)))  # nothing is below the zeros beside it
    features = np.zeros((len(kernel), side // 2, side // 2))
    for y in range(side // 2):
        for x in range(side // 2):
            column = rectified[:, 2 * y : 2 * y + 3, 2 * x : 2 * x + 3].max(axis=(1, 2))
            features[:, y, x] = (column - column.mean()) / math.sqrt(column.var() + 1e-5)
    return features


def read_block(w, block, tokens, rois, maps, axes):
    tokens = attend(w, block, tokens)
    moved, read = rois.copy(), tokens.copy()
    for n, token in enumerate(tokens):
        deltas = norm(token, w, f"{block}.roi_adjust_module.0", 1e-6) @ w[f"{block}.roi_adjust_module.1.weight"].T
        offsets = norm(token, w, f"{block}.roi_offset_module.0", 1e-6) @ w[f"{block}.roi_offset_module.1.weight"].T
        offsets = (offsets + w[f"{block}.roi_offset_bias"]).reshape(-1, axes)
        points = np.zeros_like(offsets)
        for axis in range(axes):
            low, high = rois[n, axis], rois[n, axes + axis]
            centre = (low + high) / 2 + deltas[axis] * abs(high - low)
            size = abs(high - low) * math.exp(deltas[axes + axis])
            moved[n, axis], moved[n, axes + axis] = centre - size / 2, centre + size / 2
            values = offsets[:, axis]
            points[:, axis] = centre + (values - values.mean()) / (3 * (values.std(ddof=1) + 1e-5)) * size
        samples = np.array([read_point(maps, point) for point in points])  # [P, C]
        read[n] += mix(w, f"{block}.adaptive_mixing", token, samples)
    return feed_forward(w, block, read), moved


def read_point(maps, point):
    """Interpolate between the pixels, and in a clip the frames, around a point; beyond the last of them all is zero."""
    channels, height, width = maps[0].shape
    sizes = (width, height, len(maps))[: len(point)]
    value = np.zeros(channels)
    places = [coordinate * size - 0.5 for coordinate, size in zip(point, sizes, strict=True)]
    for corner in range(2 ** len(point)):
        weight, index = 1.0, []
        for axis, place in enumerate(places):
            first = math.floor(place)
            is_upper = corner >> axis & 1
            weight *= place - first if is_upper else 1 - (place - first)
            index.append(first + is_upper)
        if all(0 <= i < size for i, size in zip(index, sizes, strict=True)):
            value += weight * maps[index[2] if len(index) == 3 else 0][:, index[1], index[0]]
    return value


def mix(w, name, token, samples):
    points, channels = samples.shape
    parameters = linear(norm(token, w, f"{name}.parameter_generator.0", 1e-5), w, f"{name}.parameter_generator.1")
    parameters = linear(parameters, w, f"{name}.parameter_generator.2")
    over_channels = parameters[: channels**2].reshape(channels, channels)
    over_points = parameters[channels**2 :].reshape(-1, points)
    mixed = gelu(samples @ over_channels + w[f"{name}.m_beta"])
    mixed = gelu(over_points @ mixed + w[f"{name}.s_beta"][:, None])  # [Q, C]
    return linear(mixed.reshape(-1), w, f"{name}.out_proj")


def attend(w, block, tokens):
    query, key, value = np.split(linear(norm(tokens, w, f"{block}.norm1", 1e-6), w, f"{block}.attn.qkv"), 3, axis=1)
    size = tokens.shape[1] // HEADS
    attended = np.zeros_like(tokens)
    for head in range(HEADS):
        part = slice(head * size, (head + 1) * size)
        for n in range(len(tokens)):
            scores = np.array([query[n, part] @ other[part] for other in key]) / math.sqrt(size)
            weights = np.exp(scores - scores.max())
            attended[n, part] = (weights / weights.sum()) @ value[:, part]
    return tokens + linear(attended, w, f"{block}.attn.proj")


def feed_forward(w, block, tokens):
    hidden = gelu(linear(norm(tokens, w, f"{block}.norm2", 1e-6), w, f"{block}.mlp.fc1"))
    return tokens + linear(hidden, w, f"{block}.mlp.fc2")


def linear(x, w, name):
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def norm(x, w, name, eps):
    mean, variance = x.mean(axis=-1, keepdims=True), x.var(axis=-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + eps) * w[f"{name}.weight"] + w[f"{name}.bias"]


@np.vectorize
def gelu(x):
    return x * (1 + math.erf(x / math.sqrt(2))) / 2
