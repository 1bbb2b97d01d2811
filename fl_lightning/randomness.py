"""Random numbers keyed by what they are for.

Every draw comes from a generator keyed by (seed, purpose, round, client...), never from a shared stream: the same
experiment gives the same numbers whatever the engine, the order of the clients, or a kill and resume in between.
"""

import hashlib

import torch

__all__ = ["generator", "key_of"]


def key_of(seed: int, purpose: str, *keys: int | str) -> int:
    """A 63-bit seed that depends on every argument; different purposes never share a stream."""
    text = "/".join(map(str, (seed, purpose, *keys)))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest()) >> 1


def generator(seed: int, purpose: str, *keys: int | str) -> torch.Generator:
    """A fresh CPU generator for one purpose. It lives on the CPU so that every device draws the same numbers.

    Example:
        >>> first = torch.rand(2, generator=generator(0, "batches", 3, 7))
        >>> bool((first == torch.rand(2, generator=generator(0, "batches", 3, 7))).all())
        True
    """
    return torch.Generator().manual_seed(key_of(seed, purpose, *keys))
