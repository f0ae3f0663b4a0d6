"""What several runs of the same came to."""

from collections.abc import Sequence
from statistics import median


def spread(values: Sequence[float], digits: int = 0) -> dict[str, float]:
    """Return the median, the least and the most, rounded to so many digits; whole numbers if none."""
    told = {"median": median(values), "least": min(values), "most": max(values)}
    return {name: round(value, digits) if digits else round(value) for name, value in told.items()}
