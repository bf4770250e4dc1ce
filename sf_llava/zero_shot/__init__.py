"""Zero-shot classification of a teacher and its students in one pass: task, run, scoring."""
