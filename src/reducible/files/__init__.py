"""Files that are written whole or not at all, and that tell whether they are as written.

- ``whole``: replaces a file in one step
- ``seals``: checksums inside files
- ``checkpoints``: any state in a sealed safetensors file
"""

from reducible.files.whole import naming, replacing

__all__ = ["naming", "replacing"]
