# SPDX-License-Identifier: Apache-2.0
"""The Accelerator's methods, one file a topic; ``accelerator.py`` puts them together.

Each class here only wires: what it calls works without an Accelerator.
"""
