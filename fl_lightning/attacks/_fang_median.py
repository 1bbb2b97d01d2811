"""Fang's attack on the median, which is the attack on the trimmed mean.

References:
    Fang, Cao, Jia, Gong, "Local Model Poisoning Attacks to Byzantine-Robust Federated Learning", USENIX Security 2020,
    section 3.5: the same crafted values, as the median is a trimmed mean that trims all but the middle.
"""

from typing import ClassVar

from fl_lightning.attacks._fang_trimmed_mean import FangTrimmedMean


class FangMedian(FangTrimmedMean):
    """Fang's attack on the median: the values of the attack on the trimmed mean."""

    name: ClassVar[str] = "fang_median"
    cites: ClassVar[tuple[str, ...]] = ("fang2020local",)
