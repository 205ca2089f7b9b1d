"""Film sentences in Hugging Face's Trainer: four rules and a plan, in the same time."""
