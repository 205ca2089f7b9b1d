"""Seeds of their own for every step, so that a choice depends on (seed, step) alone."""


def stream_seed(seed: int, step: int) -> int:
    """A well-mixed 63-bit seed for ``step`` of the stream ``seed`` (SplitMix64, Steele 2014).

    >>> stream_seed(0, 1) != stream_seed(1, 0)
    True
    """
    x = (seed * 0x9E3779B97F4A7C15 + step + 1) & 0xFFFFFFFFFFFFFFFF
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
    return (x ^ (x >> 31)) & 0x7FFFFFFFFFFFFFFF
