"""What a LLaVA that was published with positions and bias is where this package is not; llava.py says the rest."""

from sf_llava.llava.placed import PlacedLlava
from sf_llava.publish.llava import SparseFormerLlavaConfig


class PlacedSparseFormerLlava(PlacedLlava):
    """A LLaVA whose vision tower is a SparseFormer, read by RoI centre with the attention bias in every call."""

    config: SparseFormerLlavaConfig
