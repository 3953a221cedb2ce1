# SPDX-License-Identifier: Apache-2.0
"""Checkpoints: what a run is, written so that there is always a whole one.

In the order in which a save passes through them: ``run.py`` (what is saved), ``together.py`` (all
ranks or none), ``manifest.py`` (files with checksums), ``folder.py`` (beside, flushed, renamed),
``disk.py`` (the operating system). ``naming.py`` numbers checkpoints, ``sharded.py`` writes a
model by itself; ``foreign.py``, ``torch_file.py`` and ``pickles.py`` read what others wrote.
Nothing here knows the Accelerator; tensors are reached through engines.
"""
