"""Examples: one folder, one program."""
