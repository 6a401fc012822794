# SPDX-License-Identifier: Apache-2.0
"""Benchmarks: ``python -m bench ops|models --device cpu|cuda`` and ``python -m bench report``."""
