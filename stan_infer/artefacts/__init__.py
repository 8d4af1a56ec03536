"""Reading and checking exported folders and their files, all of which may come from strangers.

Imports system and config.
Start at `folder.read_artefact`.
"""
