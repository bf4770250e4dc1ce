"""Questions about the drawn world in ScienceQA's form."""
