"""Packed files: what they hold, and what is refused before it fills the memory."""

import gzip
import io
import zlib

import pytest

from fl_lightning.data._sources import UnavailableError, download
from fl_lightning.inputs import bounded, gunzip


def test_content_comes_back():
    assert gunzip(gzip.compress(b"alpha"), 5) == b"alpha"
    assert bounded(io.BytesIO(b"alpha"), 5) == b"alpha"


def test_a_bomb_is_refused_at_its_limit():
    bomb = gzip.compress(b"\0" * 10_000_000)
    assert len(bomb) < 20_000
    with pytest.raises(zlib.error, match="more than 1,000 bytes"):
        gunzip(bomb, 1000)
    with pytest.raises(OSError, match="more than 4 bytes"):
        bounded(io.BytesIO(b"alpha"), 4)


@pytest.mark.parametrize(
    "content", [b"", b"not packed", gzip.compress(b"alpha")[:-4]], ids=["empty", "plain", "truncated"]
)
def test_what_is_damaged(content: bytes):
    with pytest.raises((EOFError, zlib.error)):
        gunzip(content)


def test_only_https_is_asked():
    with pytest.raises(UnavailableError, match="only https"):
        download("http://example.org/file")
