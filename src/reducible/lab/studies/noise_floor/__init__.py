"""What plans drop of clean and of flipped labels."""
