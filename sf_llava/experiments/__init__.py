"""Tables that take many runs: the paper's ablations, baselines without training, what a swap costs."""
