# SPDX-License-Identifier: Apache-2.0
"""Weights that come with the package, NAME.safetensors; their model card is docs/weights.md."""
