"""Generate the tables of the documents: python -m benchmarks.tables --check or --write."""
