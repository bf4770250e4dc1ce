"""Frozen ViT teachers from open_clip, transformers and timm behind one contract."""
