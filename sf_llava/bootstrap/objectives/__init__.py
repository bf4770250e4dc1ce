"""What a student is trained for. Each objective is an object with one call that gives named terms, and ``weights``.

embedding.py is the paper's, on the final embedding; tokens.py and llm.py compare the tokens that LLaVA reads. All can
be used alone, in a loop of one's own; sum.py is what the bootstrap makes of them.
"""
