"""Proof that training keeps its privacy claim: an attack on it, and statistics of its chance."""
