"""The laboratory: named runs, their data and networks, studies, reports, the command line.

Nothing outside of it imports it. From what decides a run to what is made of many:

- ``recipe``, ``recipes``: what decides a run; named runs
- ``data``, ``models``, ``encoders``, ``splits``: what is trained, and on what
- ``setup``, ``evaluation``, ``run``: what a rule is given; how good a model is; the training loop
- ``counts``, ``records``, ``logs``, ``arrow_logs``, ``info_records``: what was chosen; the files
- ``locks``, ``stopping``, ``provenance``, ``checking``: locks of folders; signals; versions; damage
- ``sweep``, ``report``, ``bench``: many runs; tables and figures; what selection costs
- ``demo``, ``method_pages``, ``cli``: the main job; pages of rules; the command line
"""
