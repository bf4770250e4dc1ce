"""What the evaluations share: encoders side by side, stored embeddings, intervals."""
