# SPDX-License-Identifier: Apache-2.0
"""Sub-commands with a module of their own; they import what they need when they run."""
