"""Recovery: after a swap, projector or LLM are tuned on conversations about pictures, and measured before and after."""
