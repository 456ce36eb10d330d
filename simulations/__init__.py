"""Federations on one machine: phantoms, the demo and the simulation harness."""
