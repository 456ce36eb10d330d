"""Bundles of other releases that a node of this release takes too.

This file is no part of the sources a bundle names, so listing a release changes no bundle.
"""

from __future__ import annotations

EARLIER: frozenset[str] = frozenset()
"""SHA-256 of the bundles of servers whose rounds this release answers as its own."""
