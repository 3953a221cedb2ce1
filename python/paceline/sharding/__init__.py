# SPDX-License-Identifier: Apache-2.0
"""Who reads what: the parts of a prepared data loader, each of which works without the others.

``shards``   cuts an order of samples into one rank's batches (pure arithmetic)
``plans``    decides the order of an epoch, the same on all ranks, and can say it again
``streams``  gives one rank its part of data that has no index
``dispatch`` lets rank 0 read for all
``sources``  what a loader reads from: a place in an epoch, opened
"""
