# SPDX-License-Identifier: Apache-2.0
"""Modules: index networks, pairs of down- and upsampling, context and fusion modules."""

from pyindexnet.nn.affinity import AffinityUpDown, AffinityUpsample
from pyindexnet.nn.aspp import ASPP
from pyindexnet.nn.carafe import CARAFE, CARAFEDownsample
from pyindexnet.nn.context import TMP, PyramidPooling
from pyindexnet.nn.fused_conv import FusedConv
from pyindexnet.nn.fusion import GLF, StaticFusion
from pyindexnet.nn.graphed import GraphedModule
from pyindexnet.nn.index_networks import DepthwiseIndexNetwork, HolisticIndexNetwork, HolisticMaxIndex
from pyindexnet.nn.inplace_abn import InPlaceABN, convert_inplace_abn, revert_inplace_abn
from pyindexnet.nn.resampling import BilinearUpsampling, CarafeUpsampling, IndexedResampling, MaxUnpooling

__all__ = [
    "ASPP",
    "CARAFE",
    "GLF",
    "TMP",
    "AffinityUpDown",
    "AffinityUpsample",
    "BilinearUpsampling",
    "CARAFEDownsample",
    "CarafeUpsampling",
    "DepthwiseIndexNetwork",
    "FusedConv",
    "GraphedModule",
    "HolisticIndexNetwork",
    "HolisticMaxIndex",
    "InPlaceABN",
    "IndexedResampling",
    "MaxUnpooling",
    "PyramidPooling",
    "StaticFusion",
    "convert_inplace_abn",
    "revert_inplace_abn",
]
