# SPDX-License-Identifier: Apache-2.0
"""Figures: each comes from one command here, peers measured in the same interleaved run."""
