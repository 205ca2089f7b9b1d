"""From records to tables and pictures, without torch.

- ``folders``: read run and demo folders; ``report`` makes everything from them
- ``tables``: one column per method for the terminal, the same as Markdown
- ``curves``: the picture ``curves.png``
- ``results``: results files of sweeps, and the blocks of documents that hold what is made of them
- ``statistics``: medians with quartiles, paired bootstrap intervals
"""
