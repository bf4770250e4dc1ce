"""What a server of language models needs to know of this package: an entry point, and nothing to call by hand."""
