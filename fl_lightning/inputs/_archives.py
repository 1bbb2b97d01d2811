"""Packed files, unpacked in memory up to a bound: a few kilobytes can be packed so that they fill any machine."""

import zlib
from typing import IO

__all__ = ["MAX_UNPACKED", "bounded", "gunzip"]

MAX_UNPACKED = 2**30
"""Bytes of one unpacked file."""


def bounded(stream: IO[bytes], limit: int = MAX_UNPACKED) -> bytes:
    """All that a stream gives.

    Raises:
        OSError: it is more than `limit` bytes.
    """
    content = stream.read(limit + 1)
    if len(content) > limit:
        raise OSError(f"it unpacks to more than {limit:,} bytes")
    return content


def gunzip(content: bytes, limit: int = MAX_UNPACKED) -> bytes:
    """Content of a `.gz` file of one part.

    Raises:
        EOFError: it is cut short.
        zlib.error: it is damaged, or unpacks to more than `limit` bytes.
    """
    machine = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
    plain = machine.decompress(content, limit + 1)
    if len(plain) > limit:
        raise zlib.error(f"it unpacks to more than {limit:,} bytes")
    if not machine.eof:
        raise EOFError("it ends too early")
    return plain
