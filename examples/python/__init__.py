"""Programs of under 50 lines to copy from; tests/examples/test_python.py runs them."""
