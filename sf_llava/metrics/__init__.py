"""Pure metric functions: numbers in, numbers out."""
