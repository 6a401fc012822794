# SPDX-License-Identifier: Apache-2.0
"""Triton kernels and their launchers, one module per operator. Importing them does not touch the GPU."""
