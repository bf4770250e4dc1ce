"""Fewer visual tokens without training, as pure functions of tensors; what they are used in stands in other parts.

``grids`` a token for every cell of a grid, or a draw; ``tome`` merging by bipartite soft matching; ``selection`` by
attention or diversity.
"""

from sf_llava.reduction.reduced import Reduced

__all__ = ["Reduced"]
