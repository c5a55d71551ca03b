"""The condition encoder's own rules: what shifts, what is masked, what is left out in training."""

import pytest
import torch
from pydantic import ValidationError

from trainer.radiodiff.swin import (
    PatchMerging,
    StochasticDepth,
    SwinConfig,
    SwinEncoder,
    WindowAttention,
    relative_position_index,
    shift_mask,
)

CPU = torch.device("cpu")


def test_after_a_shift_only_tokens_of_one_region_see_each_other() -> None:
    mask = shift_mask(4, 4, 2, (1, 1), CPU)
    # 2x2 windows of a 4x4 map: the last one holds one token of each corner
    assert mask[0].unique().tolist() == [0.0]
    assert mask[1].tolist() == [
        [0, -100, 0, -100],
        [-100, 0, -100, 0],
        [0, -100, 0, -100],
        [-100, 0, -100, 0],
    ]
    assert mask[2].tolist() == [
        [0, 0, -100, -100],
        [0, 0, -100, -100],
        [-100, -100, 0, 0],
        [-100, -100, 0, 0],
    ]
    assert mask[3].tolist() == [[0 if a == b else -100 for b in range(4)] for a in range(4)]


def test_an_axis_that_is_not_shifted_has_one_region() -> None:
    mask = shift_mask(2, 4, 2, (0, 1), CPU)
    assert mask[0].unique().tolist() == [0.0]
    assert mask[1].tolist() == [
        [0, -100, 0, -100],
        [-100, 0, -100, 0],
        [0, -100, 0, -100],
        [-100, 0, -100, 0],
    ]


def test_a_relative_position_has_one_row_of_the_table() -> None:
    window = 3
    index = relative_position_index(window).reshape(window, window, window, window)
    for r1, c1, r2, c2 in torch.cartesian_prod(*[torch.arange(window)] * 4).tolist():
        assert int(index[r1, c1, r2, c2]) == (r1 - r2 + window - 1) * (2 * window - 1) + c1 - c2 + window - 1


def test_merging_takes_rows_before_columns_and_fills_odd_sides_with_zeros() -> None:
    layer = PatchMerging(1)
    layer.norm = torch.nn.Identity()
    layer.reduction = torch.nn.Identity()
    x = torch.arange(1.0, 10.0).reshape(1, 3, 3, 1)
    assert layer(x)[0].tolist() == [[[1, 4, 2, 5], [3, 6, 0, 0]], [[7, 0, 8, 0], [9, 0, 0, 0]]]


def test_a_small_input_leaves_no_trace_on_larger_ones() -> None:
    layer, large = WindowAttention(8, 2, window=4, shift=2), torch.randn(1, 8, 8, 8)
    before = layer(large)
    layer(torch.randn(1, 4, 4, 8))
    assert torch.equal(layer(large), before)


def test_a_shifted_block_differs_from_an_unshifted_one_unless_one_window_covers_all() -> None:
    shifted, plain = WindowAttention(8, 2, window=4, shift=2), WindowAttention(8, 2, window=4, shift=0)
    plain.load_state_dict(shifted.state_dict())
    assert not torch.allclose(shifted(x := torch.randn(1, 8, 8, 8)), plain(x), atol=1e-4)
    torch.testing.assert_close(shifted(x := torch.randn(1, 3, 4, 8)), plain(x))


def test_stochastic_depth_drops_whole_samples_and_scales_up_the_others() -> None:
    x = torch.ones(1000, 2, 2, 3)
    kept = StochasticDepth(0.25).train()(x)
    assert all(sample.unique().tolist() in ([0.0], [pytest.approx(1 / 0.75)]) for sample in kept)
    assert float(kept.mean()) == pytest.approx(1.0, abs=0.05)
    assert torch.equal(StochasticDepth(0.25).eval()(x), x)


def test_the_chance_to_be_left_out_rises_linearly_over_all_blocks() -> None:
    config = SwinConfig(embed_dim=8, depths=(2, 2, 4, 2), heads=(1, 1, 1, 1), num_classes=2)
    blocks = [block for stage in SwinEncoder(config).stages for block in stage]
    chances = [block.stochastic_depth.chance for block in blocks]
    assert chances == pytest.approx([0.5 * i / 9 for i in range(10)])
    assert [block.attention.shift for block in blocks] == [0, 3] * 5


def test_the_pyramid_halves_the_side_and_doubles_the_width() -> None:
    config = SwinConfig(embed_dim=8, depths=(1, 1, 1, 1), heads=(1, 1, 1, 1), num_classes=2)
    shapes = [tuple(level.shape) for level in SwinEncoder(config)(torch.zeros(1, 3, 64, 96))]
    assert shapes == [(1, 8, 16, 24), (1, 16, 8, 12), (1, 32, 4, 6), (1, 64, 2, 3)]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"heads": (4, 8, 16)}, "depths has 4 stages and heads 3; give each stage both"),
        ({"embed_dim": 6}, "stage width 6 can't be split among 4 heads"),
    ],
)
def test_stages_that_do_not_fit_are_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        SwinConfig.model_validate(values)
