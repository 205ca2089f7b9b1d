"""Studies: a folder each, from what is run to the pages that say what was found.

In each folder, as far as the study has it:

- ``recipes``: what is run (``reducible sweep``)
- ``measure``, ``prepare``: what is measured besides, each a command (``python -m …``)
- ``tables``, ``picture``: what is made of the results files, without torch
- ``documents``: the pages of ``docs/`` that hold them (``make docs``)
"""

WITH_DOCUMENTS = (
    "demo",
    "equal_time",
    "film",
    "language",
    "noise_floor",
    "online",
    "scoring",
)
