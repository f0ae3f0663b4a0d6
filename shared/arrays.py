"""Types of what compiled functions take, for whoever reads and for mypy: the compiler goes by what comes."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.void]
"""A structured array; where it is taken, its dtype is named."""
Record = Any
"""One of a structured array, with its fields as attributes."""
Integers = NDArray[np.int64]
Integers32 = NDArray[np.int32]
Bytes = NDArray[np.uint8]
Booleans = NDArray[np.bool_]
Int = Any
"""A whole number where it matters which of numpy's it is: mypy would have it apart from Python's."""
