# SPDX-License-Identifier: Apache-2.0
"""Modules: index networks, pairs of down- and upsampling, ASPP, convolution blocks."""

from pyindexnet.nn.aspp import ASPP
from pyindexnet.nn.index_networks import DepthwiseIndexNetwork, HolisticIndexNetwork, HolisticMaxIndex
from pyindexnet.nn.resampling import BilinearUpsampling, IndexedResampling, MaxUnpooling

__all__ = [
    "ASPP",
    "BilinearUpsampling",
    "DepthwiseIndexNetwork",
    "HolisticIndexNetwork",
    "HolisticMaxIndex",
    "IndexedResampling",
    "MaxUnpooling",
]
