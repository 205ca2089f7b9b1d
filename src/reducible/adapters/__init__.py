"""Selection in the trainers people use: hooks only, a framework a module.

- ``transformers``: SelectionTrainer, and a mix-in for other trainers (TRL's)
- ``lightning``: SelectionLoader
- ``accelerate``: prepare a SelectingLoader
- ``skorch``: a mix-in for nets
"""
