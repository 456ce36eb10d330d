"""Differential privacy at the site: randomness, lots, accounting and the ledger."""
