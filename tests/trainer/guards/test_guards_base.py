import math

import pytest
import torch

from trainer.guards.base import count_nonfinite, every, norms


def test_a_schedule_comes_every_so_many_steps_but_not_at_zero() -> None:
    assert [step for step in range(31) if every(10)(step)] == [10, 20, 30]


def test_a_schedule_that_never_comes_is_refused() -> None:
    with pytest.raises(ValueError, match="give 1 or more"):
        every(0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_norms_are_those_of_the_slow_way(dtype: torch.dtype) -> None:
    tensors = [torch.randn(5, 3).to(dtype), torch.zeros(0, dtype=dtype), torch.full((900,), 3000.0).to(dtype)]
    expected = torch.tensor([t.double().norm() for t in tensors], dtype=torch.float64)
    torch.testing.assert_close(norms(tensors).double(), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_norm_is_finite_only_if_every_element_is(bad: float) -> None:
    sick = torch.ones(1000)
    sick[777] = bad
    assert torch.isfinite(norms([torch.ones(3), sick])).tolist() == [True, False]
    assert (count_nonfinite(sick), count_nonfinite(torch.ones(3))) == (1, 0)
