"""The documents' tables, from recorded runs: python -m benchmarks.tables --check or --write."""
