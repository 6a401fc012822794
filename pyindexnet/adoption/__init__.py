# SPDX-License-Identifier: Apache-2.0
"""Fused modules inside a user's own network: what is recognised, the check before it is replaced, the report."""

from pyindexnet.adoption.accelerate import accelerate, rebuild
from pyindexnet.adoption.report import Entry, Report

__all__ = ["Entry", "Report", "accelerate", "rebuild"]
