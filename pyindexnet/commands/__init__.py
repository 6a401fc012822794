# SPDX-License-Identifier: Apache-2.0
"""Sub-commands and parts of them, a module each; they import what they need when they run."""
