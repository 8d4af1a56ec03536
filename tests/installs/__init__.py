"""Fresh installs: `python -m tests.installs`."""
