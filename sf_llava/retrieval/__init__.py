"""Image-text retrieval in one pass for a teacher and its students: captions, run, scoring."""
