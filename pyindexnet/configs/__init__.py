# SPDX-License-Identifier: Apache-2.0
"""Training configurations that come with the package."""
