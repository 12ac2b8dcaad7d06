"""The same results, faster."""
