"""Used by every room: errors, nested data, spaces, ranks, random states, files."""
