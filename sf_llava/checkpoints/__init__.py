"""Foreign checkpoint formats into ours, strictly."""
