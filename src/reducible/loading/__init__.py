"""Reads data sets and loaders, before anything is scored.

- ``labels``: labels and keys as people have them
- ``fetching``: whole batches from data sets that can give them
- ``order``: the order of a loader, read ahead of loading and drawn again after a stop
- ``reader``: passes over a loader that go on where they stopped
- ``streams``, ``workers``: random streams as text; the streams of a loader's workers
"""
