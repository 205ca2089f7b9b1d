"""A small language model on real text: tokens, sequences or a plan, at equal tokens and time."""
