"""Components by name: what is accepted, and what an error says."""

from dataclasses import FrozenInstanceError
from typing import Annotated, Any, ClassVar

import pytest
from pydantic import Field, ValidationError, model_validator

from fl_lightning.config import load
from fl_lightning.errors import ConfigError, suggest
from fl_lightning.references import bibtex
from fl_lightning.registry import SLOTS, Component, Registry, Slot, parts, registry
from fl_lightning.registry import _registry as module


class Shape(Component):
    """A shape.

    More words.
    """


class Circle(Shape):
    """Round."""

    name: ClassVar[str] = "circle"
    radius: float = Field(default=1.0, gt=0)


class Box(Shape):
    """Two sides."""

    name: ClassVar[str] = "box"
    width: float
    height: float = 1.0
    inner: Annotated[Shape, Slot("shape")] | None = None
    corners: tuple[int, ...] = (1, 2)

    @model_validator(mode="after")
    def _flat(self) -> "Box":
        if self.height > self.width:
            raise ValueError(f"a box lies flat: height {self.height} > width {self.width}")
        return self


SHAPES = Registry("shape", Shape, [Circle, Box])


@pytest.fixture(autouse=True)
def _shape_slot(monkeypatch: pytest.MonkeyPatch) -> None:
    known = module.registry
    monkeypatch.setattr(module, "registry", lambda slot: SHAPES if slot == "shape" else known(slot))


def test_build_from_name_mapping_and_instance():
    assert SHAPES.build("circle") == Circle(radius=1.0)
    assert SHAPES.build({"name": "circle", "radius": "2.5"}) == Circle(radius=2.5)
    circle = Circle(radius=3.0)
    assert SHAPES.build(circle) is circle


def test_the_mapping_that_was_passed_is_left_alone():
    given = {"name": "circle", "radius": 2.0}
    SHAPES.build(given)
    assert given == {"name": "circle", "radius": 2.0}


def test_nested_components_round_trip():
    box = SHAPES.build({"name": "box", "width": 5, "inner": {"name": "box", "width": 2, "inner": "circle"}})
    plain = box.to_dict()
    assert plain["inner"]["inner"] == {"name": "circle", "radius": 1.0}
    assert plain["corners"] == [1, 2]
    assert SHAPES.build(plain) == box


@pytest.mark.parametrize(
    ("value", "path", "parts"),
    [
        ("circel", "", ["unknown shape 'circel'", "did you mean 'circle'?", "valid: box, circle"]),
        ("zzz", "", ["unknown shape 'zzz'", "valid: box, circle"]),
        ({"radius": 1}, "", ["needs the key 'name'", "box, circle"]),
        ({"name": 3}, "", ["needs the key 'name'"]),
        (7, "", ["expected a name or a mapping", "7"]),
        ({"name": "circle", "radus": 1}, "radus", ["unknown key", "did you mean 'radius'?"]),
        ({"name": "circle", "radius": -1}, "radius", ["greater than 0", "got -1"]),
        ({"name": "circle", "radius": "wide"}, "radius", ["valid number", "got 'wide'"]),
        ({"name": "box"}, "width", ["required, but not given"]),
        ({"name": "box", "widht": 2}, "widht", ["did you mean 'width'?"]),
        ({"name": "box", "width": 1, "height": 2}, "", ["a box lies flat: height 2.0 > width 1.0"]),
        ({"name": "box", "width": 2, "corners": [1, "x"]}, "corners.1", ["got 'x'"]),
        ({"name": "box", "width": 2, "inner": {"name": "circle", "radius": 0}}, "inner.radius", ["got 0"]),
        ({"name": "box", "width": 2, "inner": "boks"}, "inner", ["did you mean 'box'?"]),
    ],
)
def test_errors_name_path_value_and_what_is_valid(value: Any, path: str, parts: list[str]):
    with pytest.raises(ConfigError) as caught:
        SHAPES.build(value)
    assert caught.value.path == path
    assert str(caught.value).startswith(f"{path}: " if path else caught.value.message)
    for part in parts:
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_suggestion_when_nothing_is_near():
    assert suggest("zzzzzz", ["krum", "mean"]) == "valid: krum, mean"
    assert suggest("krun", ["mean", "krum"]) == "did you mean 'krum'? valid: krum, mean"
    assert suggest("x", []) == "valid: none"


def test_components_are_frozen_and_closed():
    with pytest.raises(FrozenInstanceError):
        Circle().radius = 2.0  # type: ignore[misc]
    with pytest.raises(ValidationError):
        Circle(color="red")  # type: ignore[call-arg]


def test_a_component_of_another_slot_is_refused():
    with pytest.raises(ConfigError, match="is not a aggregator"):
        registry("aggregator").build(Circle())


def test_order_names_and_lookup():
    assert SHAPES.names() == ["box", "circle"]
    assert list(SHAPES) == [Box, Circle]
    assert SHAPES["box"] is Box
    assert Box.summary() == "Two sides."
    assert Shape.summary() == "A shape."


def test_under_puts_paths_together():
    assert str(ConfigError("bad", "lr").under("optimizer").under("client")) == "client.optimizer.lr: bad"
    assert str(ConfigError("bad").under("client")) == "client: bad"
    assert ConfigError("bad").under("").path == ""


@pytest.mark.parametrize("slot", [slot for slot in SLOTS if slot != "callback"])
def test_every_class_is_the_camel_case_of_its_name(slot: str):
    for cls in registry(slot):
        assert cls.__name__ == "".join(part.capitalize() for part in cls.name.split("_"))
        assert cls.summary().endswith("."), f"{cls.__name__} has no one-line summary"


def test_unknown_slot():
    with pytest.raises(ConfigError, match="unknown slot 'agregator'; did you mean 'aggregator'"):
        registry("agregator")


def test_a_method_that_settings_make_together_is_cited():
    """SLSGD is a trimmed mean and a server's step below 1."""
    assert "xie2019slsgd" in bibtex(parts(load("digits_slsgd")))
    assert "xie2019slsgd" not in bibtex(parts(load("digits_slsgd").override({"server.lr": 1.0})))
