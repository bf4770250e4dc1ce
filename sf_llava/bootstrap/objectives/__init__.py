"""What a student is trained for: objectives, each an object with one call that gives named terms, and ``weights``.

objective.py says what they are given and what they give; embedding.py is the paper's, on the final embedding; tokens.py
and llm.py compare the tokens that LLaVA reads. All can be used alone, in a loop of one's own; sum.py is what the
bootstrap makes of them.
"""
