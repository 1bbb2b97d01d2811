"""Rows that the tests of the aggregators draw."""

import torch
from hypothesis import strategies as st

from fl_lightning.randomness import generator


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=generator(seed, "test"), dtype=torch.float64).to(dtype)


@st.composite
def matrices(draw, min_rows=1, max_rows=24):
    n_rows, n_columns = draw(st.integers(min_rows, max_rows)), draw(st.integers(1, 40))
    dtype = draw(st.sampled_from([torch.float32, torch.float64, torch.bfloat16]))
    if draw(st.booleans()):  # few distinct values: many ties
        few = torch.randint(-2, 3, (n_rows, n_columns), generator=generator(draw(st.integers(0, 999)), "ties"))
        return few.to(dtype)
    return normal(n_rows, n_columns, seed=draw(st.integers(0, 999)), dtype=dtype)
