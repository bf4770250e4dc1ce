"""Files of weights: tensors without code, strict reading, shards, conversion, digests."""
