"""ScienceQA: its forms of data, a LLaVA's answers, their scores with controls and intervals, and the tables."""
