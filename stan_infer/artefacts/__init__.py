"""The exported folder and the files in it: manifest, graphs, calibration; all may be strangers'.

Imports system and config.
Start at `folder.read_artefact`.
"""
