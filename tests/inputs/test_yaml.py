"""The one reader of YAML: what it reads, what it refuses, and that what is written is read back."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from fl_lightning.errors import ConfigError
from fl_lightning.inputs._yaml import MAX_INTEGER, MAX_SIZE, read_yaml_file, read_yaml_text, write_yaml
from fl_lightning.paths import CONFIGS

LAUGHS = "\n".join(
    ["a: &a [ha, ha, ha, ha]"]
    + [
        f"{name}: &{name} [{', '.join(['*' + before] * 9)}]"
        for before, name in zip("abcdefgh", "bcdefghi", strict=True)
    ]
)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("-1E+2", -100.0),
        (".5", 0.5),
        ("010", 10),
        ("0x1F", 31),
        (str(MAX_INTEGER), MAX_INTEGER),
        ("yes", "yes"),
        ("off", "off"),
        ("1:01", "1:01"),
        ("2024-01-01", "2024-01-01"),
        ("1_000", "1_000"),
        ("True", True),
        ("~", None),
        ("", None),
        ("{5: 7, '5 ': 8}", {5: 7, "5 ": 8}),
        ("{'yes': 1}", {"yes": 1}),
        ("a: &x {b: 1}\nc: {<<: *x, b: 2}", {"a": {"b": 1}, "c": {"b": 2}}),
    ],
)
def test_plain_words(text: str, value: Any):
    read = read_yaml_text(text)
    assert read == value
    assert type(read) is type(value)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("rounds: 5\nseed: 1\nrounds: 1", ["'rounds' is given twice (lines 1 and 3)"]),
        ("{5: a, '5': b}", ["'5' is given twice"]),
        ("yes: 1", ["the key 'yes' (line 1) is not text", "quotes"]),
        ("a: 1\non: 3", ["the key 'on' (line 2) is not text"]),
        ("null: 1", ["the key 'null'"]),
        ("0.5: 1", ["the key '0.5'"]),
        ("? [1]\n: 2", ["the key 'a list or mapping'"]),
        (".inf", ["'.inf' (line 1) is not a finite number"]),
        ("[1, -.INF]", ["is not a finite number"]),
        (".nan", ["is not a finite number"]),
        ("1e999", ["'1e999' (line 1) is not a finite number"]),
        (str(MAX_INTEGER + 1), ["too large", "64 bits"]),
        ("9" * 5000, ["too large", "... (5,002 characters)"]),
        ('"\\ud800"', ["character"]),
        ('"\\0"', ["character"]),
        ("{" * 800, ["nested more than 50 deep"]),
        ("[" * 51 + "]" * 51, ["nested more than 50 deep"]),
        (LAUGHS, ["aliases written out", "1,000,000 characters"]),
        ("&a [*a]", ["the alias *a (line 1) holds itself"]),
        ("*nowhere", ["undefined alias"]),
        ("!!python/object/apply:os.system [true]", ["the tag 'tag:yaml.org,2002:python/object/apply:os.system'"]),
        ("!!binary aGk=", ["not allowed"]),
        ("!!int abc", ["not allowed"]),
        ("a: b: c", ["is not YAML", "line 1"]),
        ("--- 1\n--- 2", ["is not YAML", "another document"]),
        ("'" + "x" * MAX_SIZE + "'", ["larger than 1,000,000 characters"]),
    ],
)
def test_what_is_refused_in_one_line(text: str, parts: list[str]):
    with pytest.raises(ConfigError) as caught:
        read_yaml_text(text, "a file")
    message = str(caught.value)
    assert message.startswith("a file")
    assert "\n" not in message
    assert len(message) < 400
    for part in parts:
        assert part in message


def test_depth_and_size_just_below_the_bounds_are_read():
    assert read_yaml_text("[" * 50 + "]" * 50) is not None
    text = "x" * (MAX_SIZE - 2)
    assert read_yaml_text(text) == text


@pytest.mark.slow
def test_without_libyaml_the_same_is_read_and_refused():
    program = (
        "import yaml; yaml.__with_libyaml__ = False\n"
        "from fl_lightning.inputs import _yaml as strict_yaml\n"
        "assert strict_yaml._Parser is strict_yaml._PurePython\n"
        "import pytest, sys; sys.exit(pytest.main(['-q', '-n', '0', '-p', 'no:cacheprovider', sys.argv[1], '-k', "
        "'plain_words or refused_in_one_line or bounds']))"
    )
    answer = subprocess.run([sys.executable, "-c", program, __file__], capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stdout
    assert "passed" in answer.stdout


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"a: \xe9"])
def test_a_file_that_is_no_text_is_named(content: bytes, tmp_path: Path):
    path = tmp_path / "file.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"file\.yaml.*is not YAML"):
        read_yaml_file(path)


def test_every_shipped_file_reads_as_any_reader_would():
    files = sorted(CONFIGS.rglob("*.yaml"))
    assert len(files) > 100
    for path in files:
        assert read_yaml_file(path) == yaml.safe_load(path.read_text(encoding="utf-8")), path


words = st.one_of(
    st.sampled_from(["1e-3", "123e45678901", "yes", "y", "010", "0o7", "1:01", "<<", "=", "~", "", ".5", "on", "0x1"]),
    st.text(st.characters(exclude_categories=("Cs", "Cc")), max_size=8),
)
plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-MAX_INTEGER, MAX_INTEGER)
    | st.floats(allow_nan=False, allow_infinity=False)
    | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=8,
)


@given(plain)
def test_what_is_written_is_read_back_here_and_elsewhere(value: Any):
    text = write_yaml(value)
    assert read_yaml_text(text) == value
    assert yaml.safe_load(text) == value
