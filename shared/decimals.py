"""Exact decimals: from the text of a number to a scaled integer.

A scaled integer is the number times 10**decimals. Nothing here rounds: what does not fit raises.
"""

from decimal import Decimal, InvalidOperation

INT64_MAX = 2**63 - 1


def decimals_of(text: str) -> int:
    """Return how many decimals a number needs: 2 for "0.0100". Raises ValueError on what is not a number."""
    number = _finite(text)
    exponent = number.normalize().as_tuple().exponent
    return max(0, -int(exponent)) if number else 0


def scaled(text: str, decimals: int, largest: int = INT64_MAX) -> int:
    """Return the number as an integer in units of 10**-decimals.

    Raises ValueError if it is not a finite number, needs more decimals, or is more than `largest`.
    """
    value = _finite(text).scaleb(decimals)
    whole = int(value)
    if whole != value:
        raise ValueError(f"{text!r} has more than {decimals} decimals")
    if abs(whole) > largest:
        raise ValueError(f"{text!r} with {decimals} decimals is more than {largest}")
    return whole


def _finite(text: str) -> Decimal:
    try:
        number = Decimal(text)
    except (InvalidOperation, TypeError) as error:
        raise ValueError(f"{text!r} is not a number") from error
    if not number.is_finite():
        raise ValueError(f"{text!r} is not a finite number")
    return number
