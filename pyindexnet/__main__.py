# SPDX-License-Identifier: Apache-2.0
"""``python -m pyindexnet``: the command line."""

from pyindexnet.cli import main

main()
