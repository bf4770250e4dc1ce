"""The original llava package's route: a SparseFormer as its vision tower, ready to be named in a config."""
