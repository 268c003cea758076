"""How a filter's inputs are shared between the input factor of a chain and its core."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Unfolding:
    """Weights (M, C, *kernel) seen as (M, columns, rest), of which Tucker-2 factors the first two sides.

    Without an axis the columns are the channels: the input factor is a 1×1 convolution, the core has all of
    the kernel (Kim et al. 2015). With one, that axis of the kernel goes to the input factor, which is then
    k×1 or 1×k, and the core has the others (Jaderberg et al. 2014, section 2.1, second scheme).

    Attributes:
        inputs: (C, *kernel), C per group.
        axis: of the kernel, from 0; None for none.
    """

    inputs: tuple[int, ...]
    axis: int | None = None

    @property
    def into_kernel(self) -> tuple[int, ...]:
        """Of the input factor."""
        return tuple(k if i == self.axis else 1 for i, k in enumerate(self.inputs[1:]))

    @property
    def core_kernel(self) -> tuple[int, ...]:
        """Of the core."""
        return tuple(1 if i == self.axis else k for i, k in enumerate(self.inputs[1:]))

    @property
    def columns(self) -> int:
        """Inputs of one filter of the input factor; its highest rank."""
        return self.inputs[0] * math.prod(self.into_kernel)

    @property
    def rest(self) -> int:
        """Elements of the core's kernel."""
        return math.prod(self.core_kernel)

    @property
    def order(self) -> NDArray[np.int64]:
        """Inputs of a filter (C · kernel) in the order of (columns, rest)."""
        numbers = np.arange(math.prod(self.inputs)).reshape(self.inputs)
        if self.axis is not None:
            numbers = np.moveaxis(numbers, 1 + self.axis, 1)
        return numbers.ravel()
