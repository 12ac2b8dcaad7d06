"""What every room may use: errors, nested data, spaces, ranks, random states, files."""
