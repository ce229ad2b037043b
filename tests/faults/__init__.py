"""Faults and hostile inputs, made on purpose."""
