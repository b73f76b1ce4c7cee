"""What single operations refuse, and what Apple's tests say of their edges."""

from __future__ import annotations

import pytest
import torch

from flashbulb.runtimes.engines.mil.errors import ProgramError
from flashbulb.runtimes.engines.mil.ops.resizing import upsample_nearest_neighbor
from flashbulb.runtimes.engines.mil.ops.slicing import slice_by_index, slice_update


@pytest.mark.parametrize("begin", [6, 7, -7])
def test_an_axis_is_not_dropped_at_an_element_that_is_not_there(begin: int) -> None:
    x = torch.arange(6.0)
    with pytest.raises(ProgramError, match=f"wanted one element of 6 on axis 0, got number {begin}"):
        slice_by_index(x, (begin,), (begin + 1,), squeeze_mask=(True,))
    with pytest.raises(ProgramError, match="wanted one element of 6"):
        slice_update(x, torch.zeros(()), (begin,), (begin + 1,), squeeze_mask=(True,))


@pytest.mark.parametrize(("begin", "wanted"), [(0, 0), (5, 5), (-1, 5), (-6, 0)])
def test_an_axis_is_dropped_at_an_element_counted_from_either_end(begin: int, wanted: int) -> None:
    assert slice_by_index(torch.arange(6.0), (begin,), (0,), squeeze_mask=(True,)) == wanted


@pytest.mark.parametrize(
    ("factors", "wanted"),
    [
        ((3.17, 0.67), [[1.5, -2.5]] * 3),
        ((2.0, 1.12), [[1.5, -2.5, 3.5]] * 2),
        ((1.0, 2.0), [[1.5, 1.5, -2.5, -2.5, 3.5, 3.5]]),
    ],
)
def test_a_factor_says_the_size_and_the_sizes_say_which_element(
    factors: tuple[float, float], wanted: list[list[float]]
) -> None:
    x = torch.tensor([1.5, -2.5, 3.5]).reshape(1, 1, 1, 3)
    assert upsample_nearest_neighbor(x, *factors)[0, 0].tolist() == wanted
