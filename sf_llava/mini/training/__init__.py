"""How the embedded models were trained; the package itself does not need it."""
