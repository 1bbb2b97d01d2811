"""What one input of a model looks like, kept beside its weights; models with several inputs by name are exported."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from fl_lightning.data import Named
from fl_lightning.tracking._example import described, numbers_in, shape_and_types, zeros
from fl_lightning.tracking._models import _save


class Masked(nn.Module):
    """The mean of the embeddings of the tokens that are there."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.EmbeddingBag(9, 2, mode="sum")

    def forward(self, x: dict[str, Tensor]) -> Tensor:
        scores: Tensor = self.embedding(x["tokens"], per_sample_weights=x["mask"].float())
        return scores


def test_inputs_are_described_and_made_again():
    x = Named(tokens=torch.ones(3, 5, dtype=torch.long), mask=torch.ones(3, 5, dtype=torch.bool))
    for inputs, count in ((x, 10), (torch.rand(3, 1, 8, 8), 64)):
        shape, types = shape_and_types(described(inputs))
        assert numbers_in(shape) == count
        again = zeros(shape, types, 3)
        assert described(again) == described(inputs)
    assert bool(zeros(*shape_and_types(described(x)))["mask"].all())
    assert shape_and_types({"shape": "1,8,8"}) == ((1, 8, 8), torch.float32)  # models of before


def test_a_network_with_inputs_by_name_can_be_handed_on():
    x = zeros({"tokens": (5,), "mask": (5,)}, {"tokens": torch.long, "mask": torch.bool})
    batch = {0: torch.export.Dim("batch")}
    program = torch.export.export(Masked().eval(), (x,), dynamic_shapes=({"tokens": batch, "mask": batch},))
    more = zeros({"tokens": (5,), "mask": (5,)}, {"tokens": torch.long, "mask": torch.bool}, 7)
    assert program.module()(more).shape == (7, 2)


class Packed(nn.Module):
    """What torch cannot trace: how much is computed depends on the values."""

    def forward(self, x: Tensor) -> Tensor:
        return x.repeat(int(x.sum()) + 1, 1)[: len(x)]


@pytest.mark.parametrize("named", [False, True])
def test_a_model_that_cannot_be_traced_is_kept_as_it_is(named: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    x = torch.ones(2, 3)
    example = {"x": x.numpy()} if named else x.numpy()
    _save(Packed(), tmp_path / "model", example, {"pip_requirements": ["torch"]})
    assert (tmp_path / "model" / "MLmodel").is_file()
    assert ("cannot be traced" in caplog.text) is not named
