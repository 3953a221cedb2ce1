# SPDX-License-Identifier: Apache-2.0
"""What a loop's steps need beside the models: windows, loss scaling, guards, uneven ends.

Each part works without an Accelerator; ``members/training.py`` and ``members/coordination.py`` wire
them. They reach tensors through the engine only.
"""
