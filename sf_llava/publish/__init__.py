"""Directories that load anywhere: a LLaVA or an encoder, the encoder's code, card and digests beside its weights."""
