"""ScienceQA: its forms of data, a LLaVA's answers, their scores with controls and intervals, and the tables."""

CONTROLS = ("blind", "shuffled", "grey")
"""Image questions asked once more: without a picture, with another question's, with a grey one."""
