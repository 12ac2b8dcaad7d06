"""Agents of other libraries, and agents for other programs."""
