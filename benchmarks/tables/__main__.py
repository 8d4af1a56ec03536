"""python -m benchmarks.tables: see render."""

from benchmarks.tables.render import main

main()
