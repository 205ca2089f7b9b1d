"""The demo: in seconds against every row in turn, and the paper's own comparison."""
