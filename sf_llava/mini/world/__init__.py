"""The drawn world: shapes, diagrams and mini photographs, with captions of what is in them."""
