"""Small real data for reducible's recipes: images of clothing, and sentences on films.

The folder of this package is laid out as that of the original files. ``LICENSE.fashion-mnist`` and
``LICENSE.snippets`` hold the licences of the data.
"""
