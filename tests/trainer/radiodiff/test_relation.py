"""Cross attention on windows: padding, positions, and logits that are not scaled."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from trainer.radiodiff.relation import RelationNet, WindowCrossAttention, sine_positions


def test_positions_are_sines_and_cosines_of_coordinates_from_one_on() -> None:
    code = sine_positions(8, 3, 5, torch.device("cpu"))
    for i in range(4):
        wave = math.cos if i % 2 else math.sin
        for row in range(3):
            for column in range(5):
                period = 10000 ** (2 * (i // 2) / 4)
                assert float(code[i, row, column]) == pytest.approx(wave((row + 1) / period), abs=1e-6)
                assert float(code[4 + i, row, column]) == pytest.approx(wave((column + 1) / period), abs=1e-6)


def test_positions_made_for_inference_serve_training_too() -> None:
    sine_positions.cache_clear()
    with torch.inference_mode():
        made = sine_positions(8, 2, 2, torch.device("cpu"))
    assert not made.is_inference()


def softmax(x: np.ndarray) -> np.ndarray:
    powers = np.exp(x - x.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def tokens_by_hand(x: np.ndarray, window: tuple[int, int]) -> np.ndarray:
    """(E, h, w) to (rows, columns, E): sums of each window over its full area."""
    rows, columns = math.ceil(x.shape[1] / window[0]), math.ceil(x.shape[2] / window[1])
    out = np.zeros((rows, columns, x.shape[0]))
    for r in range(x.shape[1]):
        for c in range(x.shape[2]):
            out[r // window[0], c // window[1]] += x[:, r, c] / (window[0] * window[1])
    return out


def with_positions(tokens: np.ndarray) -> np.ndarray:
    rows, columns, width = tokens.shape
    half, out = width // 2, tokens.copy()
    for i in range(half):
        wave, period = (math.cos if i % 2 else math.sin), 10000 ** (2 * (i // 2) / half)
        out[:, :, i] += np.array([wave((r + 1) / period) for r in range(rows)])[:, None]
        out[:, :, half + i] += np.array([wave((c + 1) / period) for c in range(columns)])[None, :]
    return out.reshape(rows * columns, width)


def resized_by_hand(x: np.ndarray, height: int, width: int) -> np.ndarray:
    """(h, w, E) to (height, width, E): bilinear, corners on corners."""
    out = np.zeros((height, width, x.shape[2]))
    for r in range(height):
        for c in range(width):
            y, z = r * (x.shape[0] - 1) / (height - 1), c * (x.shape[1] - 1) / (width - 1)
            top, left = min(int(y), x.shape[0] - 2), min(int(z), x.shape[1] - 2)
            a, b = y - top, z - left
            upper = (1 - b) * x[top, left] + b * x[top, left + 1]
            out[r, c] = (1 - a) * upper + a * ((1 - b) * x[top + 1, left] + b * x[top + 1, left + 1])
    return out


def by_hand(layer: WindowCrossAttention, cond: np.ndarray, feature: np.ndarray) -> np.ndarray:
    """One sample, (E, h, w) each, in float64."""
    p = {name: tensor.detach().double().numpy().squeeze() for name, tensor in layer.state_dict().items()}

    def apply(name: str, x: np.ndarray) -> np.ndarray:
        return np.asarray(x @ p[f"{name}.weight"].T + p[f"{name}.bias"])

    both = np.concatenate(
        [resized_by_hand(cond.transpose(1, 2, 0), *feature.shape[1:]), feature.transpose(1, 2, 0)], 2
    )
    merged = (feature.transpose(1, 2, 0) + apply("merge", both)).transpose(2, 0, 1)
    parts = merged.reshape(8, -1)
    normed = (parts - parts.mean(1, keepdims=True)) / np.sqrt(parts.var(1, keepdims=True) + 1e-5)
    shortcut = (
        normed.reshape(merged.shape) * p["merge_norm.weight"][:, None, None]
        + p["merge_norm.bias"][:, None, None]
    )

    s, known = tokens_by_hand(cond, layer.cond_window), tokens_by_hand(feature, layer.feature_window)
    q, k, v = apply("query", with_positions(s)), *(apply(n, with_positions(known)) for n in ("key", "value"))
    size = q.shape[1] // 8
    heads = [slice(h * size, (h + 1) * size) for h in range(8)]
    answer = np.concatenate([softmax(q[:, h] @ k[:, h].T) @ v[:, h] for h in heads], axis=1)
    s = s + answer.reshape(s.shape)
    s = s + apply("mlp.narrow", np.maximum(apply("mlp.widen", s), 0))
    return shortcut + apply("out", resized_by_hand(s, *feature.shape[1:])).transpose(2, 0, 1)


@pytest.mark.parametrize(
    ("cond_window", "feature_window", "cond_size", "feature_size"),
    [((4, 4), (4, 4), (10, 6), (10, 6)), ((2, 3), (4, 2), (7, 8), (9, 6)), ((1, 1), (1, 1), (4, 3), (4, 3))],
)
def test_windows_ask_and_answer_as_written_down_in_float64(
    cond_window: tuple[int, int],
    feature_window: tuple[int, int],
    cond_size: tuple[int, int],
    feature_size: tuple[int, int],
) -> None:
    layer = WindowCrossAttention(16, cond_window, feature_window).eval()
    torch.nn.init.normal_(layer.merge_norm.weight)
    cond, feature = torch.randn(2, 16, *cond_size), torch.randn(2, 16, *feature_size)
    with torch.no_grad():
        ours = layer(cond, feature)
    for one, c, f in zip(ours, cond, feature, strict=True):
        np.testing.assert_allclose(one, by_hand(layer, c.double().numpy(), f.double().numpy()), atol=2e-5)


def test_running_statistics_follow_slowly() -> None:
    net, x = RelationNet(8, 8, 8, (1, 1), (1, 1)), torch.randn(4, 8, 4, 4)
    projected = net.feature_in[0](x).detach()
    net(torch.randn(4, 8, 4, 4), x)
    running: Tensor = net.feature_in[1].running_mean
    torch.testing.assert_close(running, 0.03 * projected.mean(dim=(0, 2, 3)))
    assert net.feature_in[1].eps == 1e-3


def test_biases_begin_at_zero() -> None:
    net = RelationNet(8, 8, 8, (1, 1), (1, 1))
    assert not any(p.any() for name, p in net.named_parameters() if name.endswith("bias"))
