"""The commands that ``sf-llava`` offers: flags, messages and tables; the work is done in the rooms."""
